//! `node init`: hosts that become nodes with nothing but the datastore.

mod support;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::Value;
use support::{Ctl, Ended};
use syncer_common::kubernetes::ApiGroup;
use syncer_common::testing::etcd::EtcdServer;
use syncer_common::testing::kubernetes::KubeServer;

const BASE: [&str; 2] = [
    include_str!("../../deploy/kustomize/base/namespace.yaml"),
    include_str!("../../deploy/kustomize/base/rbac.yaml"),
];

/// A host: its settings, and its folder for CNI plugins.
struct Host {
    ctl: Ctl,
    state: tempfile::TempDir,
}

impl Host {
    fn new(ctl: &Ctl, name: &str, variables: &[(&str, &str)]) -> Self {
        let mut ctl = ctl.clone();
        let name = [("NODENAME", name)];
        let variables = name.iter().chain(variables);
        ctl.variables.extend(variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Self { ctl, state: tempfile::tempdir().expect("a temporary folder") }
    }

    fn args<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let state = self.state.path().to_str().expect("a path in UTF-8");
        ["node", "init", "--state", state].into_iter().chain(more.iter().copied()).collect()
    }

    fn init(&self) -> Ended {
        self.ctl.run(&self.args(&[]))
    }

    #[track_caller]
    fn ok(&self) -> String {
        self.ctl.ok(&self.args(&[]))
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.state.path().join(name)).expect("a file for CNI plugins")
    }
}

fn etcd_ctl(etcd: &EtcdServer) -> Ctl {
    Ctl::new(&[("DATASTORE_TYPE", "etcdv3"), ("ETCD_ENDPOINTS", &etcd.endpoint())])
}

fn node(ctl: &Ctl, name: &str) -> Value {
    serde_json::from_str(&ctl.ok(&["get", "node", name, "-o", "json"])).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_an_empty_cluster_and_joining_again_changes_nothing() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let ctl = etcd_ctl(&etcd);
    let settings = [
        ("IP", "192.0.2.5/24"),
        ("AS", "65001"),
        ("CALICO_IPV4POOL_CIDR", "10.65.0.0/16"),
        ("CALICO_IPV4POOL_VXLAN", "CrossSubnet"),
        ("CALICO_K8S_NODE_REF", "kube-n1"),
    ];
    let host = Host::new(&ctl, "n1", &settings);
    let said = host.ok();
    for part in [
        "Node(n1): IPv4 address 192.0.2.5/24",
        "IPPool(default-ipv4-ippool): 10.65.0.0/16",
        "Node(n1): VXLAN tunnel address 10.65.",
        "Node(n1) is ready for felix and confd",
    ] {
        assert!(said.contains(part), "{part} is missing:\n{said}");
    }
    let first = node(&ctl, "n1");
    assert_eq!(first["spec"]["bgp"], serde_json::json!({"asNumber": 65001, "ipv4Address": "192.0.2.5/24"}));
    assert_eq!(first["spec"]["orchRefs"][0]["nodeName"], "kube-n1");
    let tunnel = first["spec"]["ipv4VXLANTunnelAddr"].as_str().expect("a tunnel address").to_owned();
    let owner = ctl.ok(&["ipam", "show", &format!("--ip={tunnel}")]);
    assert!(owner.contains("vxlanTunnelAddress") && owner.contains("n1"), "{owner}");
    let pools = ctl.ok(&["get", "ippool", "-o", "name"]);
    assert_eq!(pools, "ippool/default-ipv4-ippool\nippool/default-ipv6-ippool\n");
    assert!(ctl.ok(&["get", "clusterinformation", "default", "-o", "yaml"]).contains("datastoreReady: true"));
    assert!(ctl.ok(&["get", "felixconfiguration", "-o", "name"]).contains("node.n1"));
    assert_eq!(host.file("nodename"), "n1");
    assert!(host.file("mtu").parse::<u32>().is_ok_and(|mtu| mtu > 0));

    assert_eq!(host.ok(), "Node(n1) is ready for felix and confd\n", "nothing is left to do");
    assert_eq!(node(&ctl, "n1"), first, "its revision included");

    // What belongs to it goes with it, the tunnel's address too.
    ctl.ok(&["delete", "node", "n1"]);
    let owner = ctl.ok(&["ipam", "show", &format!("--ip={tunnel}")]);
    assert!(owner.contains("not assigned"), "{owner}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_join_at_the_same_time_share_no_address() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let ctl = etcd_ctl(&etcd);
    // Four blocks of four addresses for eight nodes: they have to borrow.
    ctl.apply(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: small}\n\
         spec: {cidr: 10.65.0.0/28, blockSize: 30, ipipMode: Always}\n",
    );
    let hosts: Vec<Host> = (0..8)
        .map(|n| {
            Host::new(
                &ctl,
                &format!("n{n}"),
                &[("IP", &format!("192.0.2.{n}/24")), ("NO_DEFAULT_POOLS", "true")],
            )
        })
        .collect();
    let running: Vec<_> = hosts.iter().map(|host| host.ctl.start(&host.args(&[]), "")).collect();
    for host in running {
        let ended = host.end();
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    let addresses: BTreeSet<String> = (0..8)
        .map(|n| {
            let node = node(&ctl, &format!("n{n}"));
            node["spec"]["bgp"]["ipv4IPIPTunnelAddr"].as_str().expect("a tunnel address").to_owned()
        })
        .collect();
    assert_eq!(addresses.len(), 8, "{addresses:?}");
    let shown = ctl.ok(&["ipam", "show"]);
    assert!(shown.contains("8 (50%)"), "IPAM counts what was given, and nothing else:\n{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnel_addresses_follow_the_pools() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let ctl = etcd_ctl(&etcd);
    let pool = |name: &str, cidr: &str, spec: &str| {
        ctl.apply(&format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\n\
             spec: {{cidr: {cidr}, {spec}}}\n"
        ));
    };
    pool("a", "10.65.0.0/24", "vxlanMode: Always");
    pool("v6", "fd00:65::/64", "vxlanMode: Always");
    pool("other", "10.66.0.0/24", "ipipMode: Always, nodeSelector: rack == 'far'");
    let host = Host::new(&ctl, "n1", &[("IP", "192.0.2.5/24"), ("IP6", "2001:db8::5/64")]);
    host.ok();
    let tunnels = || {
        let spec = node(&ctl, "n1")["spec"].clone();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        [
            text(&spec["ipv4VXLANTunnelAddr"]),
            text(&spec["ipv6VXLANTunnelAddr"]),
            text(&spec["bgp"]["ipv4IPIPTunnelAddr"]),
        ]
    };
    let [v4, v6, ipip] = tunnels();
    assert!(v4.starts_with("10.65.0.") && v6.starts_with("fd00:65:") && ipip.is_empty(), "{v4} {v6} {ipip}");

    // Another mode: the old address is given back, and the new tunnel has one.
    pool("a", "10.65.0.0/24", "ipipMode: Always, vxlanMode: Never");
    let said = host.ok();
    assert!(said.contains("no pool uses VXLAN here: its tunnel address was given back"), "{said}");
    let [v4, _, ipip] = tunnels();
    assert!(v4.is_empty() && ipip.starts_with("10.65.0."), "{v4} {ipip}");

    // The pool is not for this node any more, and another is.
    pool("a", "10.65.0.0/24", "ipipMode: Always, vxlanMode: Never, nodeSelector: rack == 'near'");
    ctl.ok(&["label", "node", "n1", "rack=far"]);
    host.ok();
    let [_, _, ipip] = tunnels();
    assert!(ipip.starts_with("10.66.0."), "{ipip}");
    let shown = ctl.ok(&["ipam", "show", "--show-blocks"]);
    let used = |cidr: &str| shown.lines().find(|line| line.contains(cidr)).unwrap_or_default().to_owned();
    assert!(used("10.66.0.0/24").contains("1 (0%)"), "{shown}");
    assert!(used("10.65.0.0/24").contains("0 (0%)"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stops_a_host_is_said_with_its_remedy() {
    let Some(mut etcd) = EtcdServer::start().await else { return };
    let ctl = etcd_ctl(&etcd);
    let pools = ("NO_DEFAULT_POOLS", "true");
    Host::new(&ctl, "n1", &[("IP", "192.0.2.5/24"), pools]).ok();
    let taken = Host::new(&ctl, "n2", &[("IP", "192.0.2.5/24"), pools]).init();
    assert_eq!(taken.code, 1, "{taken:?}");
    assert!(taken.err.contains("192.0.2.5 is the address of Node(n1) already"), "{taken:?}");
    assert!(ctl.run(&["get", "node", "n2"]).code != 0, "nothing was written");
    let unchecked = [("IP", "192.0.2.5/24"), pools, ("DISABLE_NODE_IP_CHECK", "true")];
    Host::new(&ctl, "n2", &unchecked).ok();

    let nowhere = Host::new(&ctl, "n3", &[("IP_AUTODETECTION_METHOD", "interface=none0"), pools]).init();
    assert!(nowhere.code == 1 && nowhere.err.contains("set IP to the address"), "{nowhere:?}");
    let wrong = Host::new(&ctl, "n3", &[("IP", "192.0.2.6"), ("CALICO_IPV4POOL_VXLAN", "Sometimes")]).init();
    assert!(wrong.code == 1 && wrong.err.contains("vxlanMode"), "{wrong:?}");

    // The datastore comes later than the node.
    etcd.stop();
    let host = Host::new(&ctl, "n4", &[("IP", "192.0.2.8/24"), pools]);
    let down = host.init();
    assert!(down.code == 1 && down.err.contains("bulrushctl datastore info"), "{down:?}");
    let waiting = host.ctl.start(&host.args(&["--wait-for-datastore"]), "");
    etcd.restart().await;
    let ended = waiting.end();
    assert_eq!(ended.code, 0, "{ended:?}");
}

/// Answers as felix does when it is ready.
fn felix() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 512];
            let _length = stream.read(&mut request);
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").ok();
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn on_kubernetes_the_node_keeps_it_in_annotations() {
    let Some(server) = KubeServer::start().await else { return };
    server
        .apply("apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {rack: a, zone: z}}\nspec: {}\n")
        .await;
    server.install_crds(ApiGroup::V1).await;
    // Under exactly the account that the base gives it.
    for manifest in BASE {
        server.apply(manifest).await;
    }
    let token = server.service_account_token("bulrush-system", "bulrush-node-init").await;
    let kubeconfig = server.kubeconfig_for(&token);
    let kubeconfig = kubeconfig.to_str().expect("a path in UTF-8");
    let ctl = Ctl::new(&[("DATASTORE_TYPE", "kubernetes"), ("KUBECONFIG", kubeconfig)]);
    let settings = [("IP", "192.0.2.5/24"), ("AS", "65001"), ("CALICO_IPV4POOL_VXLAN", "Always")];
    let host = Host::new(&ctl, "n1", &settings);
    host.ok();
    let first = node(&ctl, "n1");
    assert_eq!(first["spec"]["bgp"], serde_json::json!({"asNumber": 65001, "ipv4Address": "192.0.2.5/24"}));
    let tunnel = first["spec"]["ipv4VXLANTunnelAddr"].as_str().expect("a tunnel address");
    let owner = ctl.ok(&["ipam", "show", &format!("--ip={tunnel}")]);
    assert!(owner.contains("vxlanTunnelAddress"), "{owner}");
    assert_eq!(host.ok(), "Node(n1) is ready for felix and confd\n", "nothing is left to do");
    let unknown = Host::new(&ctl, "n2", &settings[..1]).init();
    assert!(unknown.code == 1 && unknown.err.contains("kubectl get nodes"), "{unknown:?}");

    // Labels: one's own can be set, those of Kubernetes can not.
    ctl.ok(&["label", "node", "n1", "bgp=reflector"]);
    assert_eq!(node(&ctl, "n1")["metadata"]["labels"]["bgp"], "reflector");
    let refused = ctl.run(&["label", "node", "n1", "rack=b", "--overwrite"]);
    assert!(refused.code == 1 && refused.err.contains("kubectl label node"), "{refused:?}");

    // Once felix is ready, pods may come.
    let felix = felix();
    let mut watching = host.ctl.start(&host.args(&["--watch", "--felix-health", &felix]), "");
    let nodes: Api<Node> = Api::all(server.client().await);
    let mut available = false;
    for _ in 0..100 {
        let status = nodes.get("n1").await.expect("the node").status.unwrap_or_default();
        let mut conditions = status.conditions.unwrap_or_default().into_iter();
        available = conditions.any(|c| c.type_ == "NetworkUnavailable" && c.status == "False");
        if available {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    watching.child.kill().expect("the program runs");
    watching.child.wait().expect("the program ends");
    assert!(available, "felix is ready, and the node's network is not available");
}
