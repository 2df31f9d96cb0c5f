//! What somebody else changes in the kernel is found without any input, put right, counted, and nothing else is.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use daemon::Metrics;
use dataplane_support::node::Node;
use dataplane_support::{Lab, eventually, in_namespace};
use felix::iptables::Backend;
use syncer_common::model::{Key, PolicyKey, Update, Value, WorkloadEndpointKey, values};

/// Found within 10 s, put right within 1 s after; the rest is for a machine with other work.
const LIMIT: Duration = Duration::from_secs(40);
const TOOLS: [&str; 5] = ["ip", "ipset", "iptables-nft-restore", "iptables-legacy-restore", "conntrack"];

fn cluster() -> Vec<Update> {
    let allow = || vec![values::Rule { action: "allow".into(), ..Default::default() }];
    let rules = values::ProfileRules { inbound_rules: allow(), outbound_rules: allow() };
    let key = WorkloadEndpointKey {
        host: "n1".into(),
        orchestrator: "k8s".into(),
        workload: "default/web".into(),
        endpoint: "eth0".into(),
    };
    let endpoint = values::WorkloadEndpoint {
        state: "active".into(),
        name: "cali1".into(),
        profile_ids: vec!["open".into()],
        ipv4_nets: vec!["10.65.0.1/32".into()],
        ..Default::default()
    };
    let side = values::EntityRule { selector: "set == 'x'".into(), ..Default::default() };
    let rule = values::Rule { action: "allow".into(), src: Some(side), ..Default::default() };
    let policy = values::Policy {
        tier: "default".into(),
        selector: "all()".into(),
        inbound_rules: vec![rule],
        types: vec!["ingress".into()],
        ..Default::default()
    };
    let set = values::NetworkSet {
        nets: vec!["10.1.0.0/16".into(), "10.2.0.0/16".into()],
        labels: BTreeMap::from([("set".to_owned(), "x".to_owned())]),
        ..Default::default()
    };
    let name = PolicyKey { kind: "GlobalNetworkPolicy".into(), namespace: "".into(), name: "p".into() };
    vec![
        Update::set(Key::ProfileRules { name: "open".into() }, Value::ProfileRules(rules)),
        Update::set(Key::WorkloadEndpoint(key), Value::WorkloadEndpoint(endpoint)),
        Update::set(Key::Policy(name), Value::Policy(policy)),
        Update::set(Key::NetworkSet { name: "x".into() }, Value::NetworkSet(set)),
    ]
}

fn state(lab: &Lab, backend: Backend) -> String {
    let b = backend.name();
    lab.sh(&format!(
        "for t in iptables-{b}-save ip6tables-{b}-save; do $t | grep '^[-:*]' | sed 's/ \\[.*//'; done; \
         ipset save | sed 's/ hashsize.*//' | sort; ip route"
    ))
}

/// `felix_drift_total` by what was changed.
fn counted(metrics: &Metrics) -> BTreeMap<String, u64> {
    let text = metrics.render();
    let series = text.lines().filter_map(|line| line.strip_prefix("felix_drift_total{what=\""));
    series
        .map(|rest| {
            let (what, number) = rest.split_once("\"} ").unwrap();
            (what.to_owned(), number.parse().unwrap())
        })
        .collect()
}

/// One test: the counters are the process's.
#[test]
fn changes_by_others_are_found_put_right_and_counted_and_no_others_are() {
    let metrics = Metrics::install().unwrap();
    for backend in [Backend::Nft, Backend::Legacy] {
        let metrics = metrics.clone();
        in_namespace(&TOOLS, move |lab| async move { drift(lab, backend, &metrics).await });
    }
}

async fn drift(lab: Lab, backend: Backend, metrics: &Metrics) {
    lab.sh("ipset create cali40leftover hash:net; ip link add eth0 type veth peer name peth0");
    lab.veth("cali1");
    let mut node = Node::start(&lab, backend).await;
    node.program(cluster()).await;
    let program = format!("iptables-{}", backend.name());
    let right = eventually(LIMIT, async || {
        let now = state(&lab, backend);
        if now.contains("leftover") { Err(now) } else { Ok(now) }
    })
    .await;
    let name = right.lines().find_map(|line| line.strip_prefix("create cali40s:")).unwrap();
    let set = format!("cali40s:{}", name.split_whitespace().next().unwrap());
    let others = format!("{program} -D FORWARD -s 192.0.2.1 -j DROP");
    for (damage, drift) in [
        (
            [
                format!("{program} -F cali-tw-cali1"),
                format!("{program} -A cali-fw-cali1 -j ACCEPT"),
                format!("{program} -N cali-foreign"),
                format!("{program} -t raw -F PREROUTING"),
                // As many members as before.
                format!("ipset del {set} 10.1.0.0/16 && ipset add {set} 10.3.0.0/16"),
                "ipset create cali40foreign hash:net".to_owned(),
                "ip route del 10.65.0.1".to_owned(),
            ],
            [("chain", 3), ("hook", 1), ("set", 3), ("workload route", 1)].as_slice(),
        ),
        (
            [
                // It stays, below ours.
                format!("{program} -I FORWARD -s 192.0.2.1 -j DROP"),
                format!("{program} -F cali-tw-cali1"),
                format!("ipset flush {set}"),
                format!("ipset add {set} 10.9.0.0/16"),
                "ip route del 10.65.0.1".to_owned(),
                format!("{program} -t nat -F cali-POSTROUTING"),
                "ip -6 route add fd65::9 dev cali1 && ip -6 route del fd65::9 dev cali1".to_owned(),
            ],
            [("chain", 2), ("hook", 1), ("set", 3), ("workload route", 1)].as_slice(),
        ),
    ] {
        let mut expected = counted(metrics);
        for (what, count) in drift {
            *expected.entry((*what).to_owned()).or_insert(0) += count;
        }
        let started = Instant::now();
        lab.sh(&damage.join("\n"));
        let foreign = damage[0].contains("-I FORWARD");
        eventually(LIMIT, async || {
            let now = state(&lab, backend);
            let (mut without, mut below) = (now.clone(), true);
            if let Some(at) = now.find("-A FORWARD -s 192.0.2.1").filter(|_| foreign) {
                below = now[..at].contains("-j cali-FORWARD");
                without = now.replace("-A FORWARD -s 192.0.2.1/32 -j DROP\n", "");
            }
            let counted = counted(metrics);
            if without == right && below && counted == expected {
                return Ok(());
            }
            Err(format!("after {damage:#?}: {counted:?} instead of {expected:?}\n{now}"))
        })
        .await;
        println!("{}: put right after {:?}", backend.name(), started.elapsed());
    }
    lab.sh(&others);
    // What felix itself changes, and what the kernel takes along with an interface, is no drift.
    let before = counted(metrics);
    let mut gone = cluster();
    gone.truncate(2);
    node.program(gone.iter().map(|update| Update::delete(update.key.clone())).collect()).await;
    node.program(cluster()).await;
    lab.sh("ip link set cali1 down");
    eventually(LIMIT, async || {
        let now = lab.sh("ip route");
        if now.contains("10.65.0.1") { Err(now) } else { Ok(()) }
    })
    .await;
    lab.sh("ip link set cali1 up");
    eventually(LIMIT, async || {
        let now = state(&lab, backend);
        if now == right { Ok(()) } else { Err(now) }
    })
    .await;
    // Past the next look at sets and, with legacy, at tables.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(counted(metrics), before);
    node.stop().await;
}
