//! Endpoints as clusters have them: names, labels and addresses that compress as real ones do, the same in every run.

use proto::model::{WorkloadEndpoint, value};
use syncer_common::digest;
use syncer_common::model::{Key, Update};

/// `version`: when the change was made, or 0.
pub fn endpoint(n: u64, version: u64) -> Update {
    let hash = |n: u64| digest::hash(&n.to_string(), b"");
    let (host, namespace) = (n % 1_000, n % 211);
    let path =
        format!("/calico/v1/host/node-{host:04}/workload/k8s/ns-{namespace:03}%2fpod-{n:06}/endpoint/eth0");
    let labels = [
        ("app", format!("app-{}", n % 97)),
        ("pod-template-hash", format!("{:010x}", hash(n / 7) >> 24)),
        ("projectcalico.org/namespace", format!("ns-{namespace:03}")),
        ("projectcalico.org/orchestrator", "k8s".to_owned()),
        ("projectcalico.org/serviceaccount", "default".to_owned()),
        ("version", version.to_string()),
    ];
    let (a, b, c) = (n >> 16 & 255, n >> 8 & 255, n & 255);
    let value = WorkloadEndpoint {
        state: "active".into(),
        name: format!("cali{:011x}", hash(n) >> 20),
        mac: format!("ee:ee:ee:{a:02x}:{b:02x}:{c:02x}"),
        profile_ids: vec![format!("kns.ns-{namespace:03}"), format!("ksa.ns-{namespace:03}.default")],
        ipv4_nets: vec![format!("10.{a}.{b}.{c}/32")],
        labels: labels.map(|(name, value)| (name.to_owned(), value)).into_iter().collect(),
        ..Default::default()
    };
    let key = Key::parse(&path).expect("the path of an endpoint");
    Update::set(key, value::Kind::WorkloadEndpoint(value))
}
