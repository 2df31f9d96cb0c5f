//! Objects of a small cluster, and what a node's kernel holds.

use std::collections::BTreeMap;

use felix::iptables::Backend;
use syncer_common::model::{Key, PolicyKey, Update, Value, WorkloadEndpointKey, values};

use super::Lab;

pub fn workload_key(name: &str) -> WorkloadEndpointKey {
    WorkloadEndpointKey {
        host: "n1".into(),
        orchestrator: "k8s".into(),
        workload: format!("default/{name}"),
        endpoint: "eth0".into(),
    }
}

/// A workload of the node, labelled with its name.
pub fn endpoint(name: &str, interface: &str, ip: &str) -> Update {
    let value = values::WorkloadEndpoint {
        state: "active".into(),
        name: interface.into(),
        profile_ids: vec!["open".into()],
        ipv4_nets: vec![format!("{ip}/32")],
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        ..Default::default()
    };
    Update::set(Key::WorkloadEndpoint(workload_key(name)), Value::WorkloadEndpoint(value))
}

/// Allows everything.
pub fn profile() -> Update {
    let allow = || vec![values::Rule { action: "allow".into(), ..Default::default() }];
    let rules = values::ProfileRules { inbound_rules: allow(), outbound_rules: allow() };
    Update::set(Key::ProfileRules { name: "open".into() }, Value::ProfileRules(rules))
}

/// Lets one workload in to another, and nobody else.
pub fn policy(name: &str, to: &str, from: &str) -> Update {
    let key = PolicyKey { kind: "NetworkPolicy".into(), namespace: "default".into(), name: name.into() };
    let rule = values::Rule {
        action: "allow".into(),
        src: Some(values::EntityRule { selector: format!("app == \"{from}\""), ..Default::default() }),
        ..Default::default()
    };
    let value = values::Policy {
        namespace: "default".into(),
        tier: "default".into(),
        selector: format!("app == \"{to}\""),
        inbound_rules: vec![rule],
        types: vec!["ingress".into()],
        ..Default::default()
    };
    Update::set(Key::Policy(key), Value::Policy(value))
}

pub fn pool() -> Update {
    let cidr = "10.65.0.0/16";
    let value = values::IpPool { cidr: cidr.into(), masquerade: true, ..Default::default() };
    Update::set(Key::IpPool { cidr: cidr.parse().expect("a CIDR") }, Value::IpPool(value))
}

pub fn config(name: &str, value: &str) -> Update {
    Update::set(Key::GlobalConfig { name: name.into() }, Value::Config(value.into()))
}

/// Two workloads, on `cali1` and `cali2`; the second is let in to the first.
pub fn cluster() -> Vec<Update> {
    vec![
        pool(),
        profile(),
        endpoint("web", "cali1", "10.65.0.1"),
        endpoint("client", "cali2", "10.65.0.2"),
        policy("web", "web", "client"),
    ]
}

/// Everything of ours in the kernel, without counters and link-local addresses, which are made up at random; chains
/// by name, their rules in order.
pub fn state(lab: &Lab, backend: Backend) -> String {
    let b = backend.name();
    lab.sh(&format!(
        "(for p in iptables ip6tables; do for t in raw mangle nat filter; do echo \"*$p $t\"; \
         $p-{b}-save -t $t | grep '^[-:]' | sed 's/ \\[.*//' | sort -s -k1,2; done; done; \
         ipset save | sed 's/ hashsize.*//' | sort; ip -d route; ip -6 -d route; \
         ip neigh show nud permanent) | sed '/fe80/d'"
    ))
}

/// The lines that one lacks, and those that it has beyond.
pub fn difference(wanted: &str, now: &str) -> String {
    let beyond = |a: &str, b: &str, sign: &str| -> String {
        let lines = a.lines().filter(|line| !b.lines().any(|other| other == *line));
        lines.map(|line| format!("{sign} {line}\n")).collect()
    };
    format!("{}{}", beyond(wanted, now, "-"), beyond(now, wanted, "+"))
}
