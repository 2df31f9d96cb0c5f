//! Policy on real kernels: allow and deny across and within nodes, edits, deletions, label changes.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Options, Store, endpoint_manifest};
use e2e::probe::Via;
use e2e::process::{run, wait_for};
use e2e::require;

/// Between a write and its effect in a kernel, on a machine that builds something else beside.
const PATIENCE: Duration = Duration::from_secs(60);

fn expect(cluster: &Cluster, from: &str, to: &str, via: Via, open: bool) -> Result<()> {
    wait_for(&format!("{from} -> {to} {via:?} {}", if open { "open" } else { "closed" }), PATIENCE, || {
        ensure!(cluster.lab.reaches(from, to, via)? == open, "it is the other way round");
        Ok(())
    })
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: default}}\nspec: {spec}\n"
    )
}

fn policies_decide(prefix: &str, options: Options) -> Result<()> {
    let mut cluster = Cluster::up(prefix, options)?;
    for (node, name, app) in [
        ("n1", "client", "client"),
        ("n1", "near", "server"),
        ("n2", "far", "server"),
        ("n2", "other", "other"),
    ] {
        let workload = cluster.add_workload(node, name, &[("app", app)])?;
        cluster.wait_workload(&workload)?;
    }
    if cluster.options.bgp {
        cluster.wait_bgp(Duration::from_secs(30))?;
    }

    // Without policy the profile allows everything.
    for to in ["near", "far"] {
        for via in [Via::Tcp(80), Via::Udp(53), Via::Icmp] {
            expect(&cluster, "client", to, via, true)?;
            expect(&cluster, "other", to, via, true)?;
        }
    }

    // An ingress policy denies what it does not name, within the node and across nodes, per protocol.
    cluster.apply(&policy(
        "server",
        "{selector: app == 'server', types: [Ingress], ingress: [{action: Allow, protocol: TCP, source: {selector: app == 'client'}, destination: {ports: [80]}}]}",
    ))?;
    for to in ["near", "far"] {
        expect(&cluster, "client", to, Via::Tcp(80), true)?;
        expect(&cluster, "client", to, Via::Tcp(8080), false)?;
        expect(&cluster, "client", to, Via::Udp(53), false)?;
        expect(&cluster, "client", to, Via::Icmp, false)?;
        expect(&cluster, "other", to, Via::Tcp(80), false)?;
    }
    // The policed ones still reach out: egress is not this policy's.
    expect(&cluster, "far", "other", Via::Tcp(80), true)?;

    // An edit opens UDP and ICMP, and closes TCP.
    cluster.apply(&policy(
        "server",
        "{selector: app == 'server', types: [Ingress], ingress: [{action: Allow, protocol: UDP, source: {selector: app == 'client'}}, {action: Allow, protocol: ICMP, source: {selector: app == 'client'}}]}",
    ))?;
    for to in ["near", "far"] {
        expect(&cluster, "client", to, Via::Udp(53), true)?;
        expect(&cluster, "client", to, Via::Icmp, true)?;
        expect(&cluster, "client", to, Via::Tcp(80), false)?;
    }

    // A label change moves a workload into the selector, and out of it again.
    let mut other = cluster.lab.workload("other").clone();
    other.labels = vec![("app".into(), "client".into())];
    cluster.apply(&endpoint_manifest(&other))?;
    expect(&cluster, "other", "near", Via::Udp(53), true)?;
    other.labels = vec![("app".into(), "other".into())];
    cluster.apply(&endpoint_manifest(&other))?;
    expect(&cluster, "other", "near", Via::Udp(53), false)?;

    // Egress: a deny with an order before an allow wins.
    cluster.apply(&policy(
        "client-out",
        "{order: 10, selector: app == 'client', types: [Egress], egress: [{action: Deny, destination: {selector: app == 'other'}}, {action: Allow}]}",
    ))?;
    expect(&cluster, "client", "other", Via::Tcp(80), false)?;
    expect(&cluster, "client", "far", Via::Udp(53), true)?;

    // Deletion restores what was before.
    for name in ["server", "client-out"] {
        run(&mut cluster.bulrushctl(&["delete", "networkpolicy", name, "-n", "default"]))?;
    }
    for to in ["near", "far"] {
        expect(&cluster, "other", to, Via::Tcp(80), true)?;
        expect(&cluster, "client", to, Via::Tcp(8080), true)?;
    }
    expect(&cluster, "client", "other", Via::Tcp(80), true)
}

#[test]
fn policies_decide_on_etcd_with_the_nft_backend() -> Result<()> {
    require!("etcd", "etcdctl", "bird", "iptables-nft", "ipset", "ping");
    policies_decide("brpol1", Options { store: Store::Etcd, nodes: 2, backend: "nft", ..Options::default() })
}

#[test]
fn policies_decide_on_a_directory_with_the_legacy_backend() -> Result<()> {
    require!("bird", "iptables-legacy", "ipset", "ping");
    policies_decide(
        "brpol2",
        Options { store: Store::Directory, nodes: 2, backend: "legacy", ..Options::default() },
    )
}

#[test]
fn bad_objects_are_reported_once_and_harm_nobody() -> Result<()> {
    require!("etcd", "etcdctl", "iptables-nft", "ipset", "ping");
    let mut cluster = Cluster::up("brbad", Options { nodes: 1, bgp: false, ..Options::default() })?;
    for (name, app) in [("client", "client"), ("server", "server")] {
        let workload = cluster.add_workload("n1", name, &[("app", app)])?;
        cluster.wait_workload(&workload)?;
    }
    let resources = "/calico/resources/v3/projectcalico.org";
    let huge = format!(
        "{{\"metadata\":{{\"name\":\"huge\"}},\"spec\":{{\"nets\":[\"{}\"]}}}}",
        "x".repeat(1_200_000)
    );
    for (key, value) in [
        (format!("{resources}/networkpolicies/default/malformed"), "{\"metadata\": {\"name\": \"malf".to_owned()),
        (
            format!("{resources}/networkpolicies/default/invalid"),
            "{\"metadata\":{\"name\":\"invalid\",\"namespace\":\"default\"},\"spec\":{\"selector\":\"app ==\"}}".to_owned(),
        ),
        (format!("{resources}/unknownkinds/thing"), "{\"kind\":\"UnknownKind\"}".to_owned()),
        (format!("{resources}/globalnetworksets/huge"), huge),
    ] {
        let file = cluster.lab.dir.join("value.json");
        std::fs::write(&file, value)?;
        cluster.etcd_put(&key, &file)?;
    }
    // What comes after them still takes effect.
    cluster.apply(&policy("server", "{selector: app == 'server', types: [Ingress]}"))?;
    expect(&cluster, "client", "server", Via::Tcp(80), false)?;
    let log = std::fs::read_to_string(cluster.log("typha-1"))?;
    for name in ["networkpolicies/default/malformed", "networkpolicies/default/invalid"] {
        let reported = log.lines().filter(|line| line.contains(name)).count();
        ensure!(reported == 1, "{name} is reported {reported} times, not once:\n{log}");
    }
    Ok(())
}
