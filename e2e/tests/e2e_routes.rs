//! Routes as in a direct-routing Calico cluster; nodes that join and leave.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Options};
use e2e::probe::Via;
use e2e::process::wait_for;
use e2e::require;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn every_kernel_holds_blocks_own_workloads_and_a_blackhole() -> Result<()> {
    require!("etcd", "etcdctl", "bird", "birdc", "iptables-nft", "ipset", "ping");
    let mut cluster = Cluster::up("brroute", Options::default())?;
    for (node, name) in [("n1", "a1"), ("n1", "a2"), ("n2", "b1"), ("n3", "c1")] {
        let workload = cluster.add_workload(node, name, &[("app", name)])?;
        cluster.wait_workload(&workload)?;
    }
    cluster.wait_bgp(PATIENCE)?;
    for node in &cluster.lab.nodes {
        let routes = cluster.lab.sh(&node.netns, "ip route")?;
        let own = format!("blackhole {} proto bird", node.cidr());
        ensure!(routes.lines().any(|l| l.starts_with(&own)), "{}: no {own}:\n{routes}", node.name);
        for workload in &node.workloads {
            let want = format!("{} dev {} ", workload.ip, workload.interface);
            ensure!(
                routes.lines().any(|l| l.starts_with(&want) && l.contains("scope link")),
                "{}: no {want}:\n{routes}",
                node.name
            );
        }
        // Only blocks travel: nobody else's single addresses.
        let foreign: Vec<_> = cluster
            .lab
            .workloads()
            .filter(|w| w.node != node.name)
            .filter(|w| routes.contains(&format!("{} ", w.ip)))
            .collect();
        ensure!(foreign.is_empty(), "{}: addresses of others leaked: {foreign:?}\n{routes}", node.name);
    }
    for (from, to) in [("a1", "b1"), ("b1", "c1"), ("c1", "a2"), ("a1", "a2")] {
        ensure!(cluster.lab.reaches(from, to, Via::Tcp(80))?, "{from} does not reach {to}");
    }

    // A node joins: everybody learns its block, and it learns theirs.
    let joined = cluster.add_node()?;
    let workload = cluster.add_workload(&joined.name, "d1", &[("app", "d1")])?;
    cluster.wait_workload(&workload)?;
    cluster.wait_bgp(PATIENCE)?;
    ensure!(cluster.lab.reaches("a1", "d1", Via::Tcp(80))?, "a1 does not reach the new node's workload");

    // A node leaves: its block goes from every kernel, the others stay.
    let gone = cluster.lab.node("n3").clone();
    cluster.remove_node("n3")?;
    for node in cluster.lab.nodes.clone() {
        wait_for(&format!("{} to go from {}", gone.cidr(), node.name), Duration::from_secs(60), || {
            let routes = cluster.lab.sh(&node.netns, "ip route")?;
            ensure!(!routes.contains(&gone.cidr()), "still there:\n{routes}");
            Ok(())
        })?;
    }
    cluster.wait_bgp(PATIENCE)?;
    ensure!(cluster.lab.reaches("a1", "b1", Via::Tcp(80))?, "a1 lost b1 when n3 left");
    Ok(())
}
