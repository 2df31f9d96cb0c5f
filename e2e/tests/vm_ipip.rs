//! IP-in-IP, plain and cross-subnet, where the kernel has it; elsewhere this test runs itself under Debian's own
//! kernel, in a virtual machine (`scripts/vm`).

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Store};
use e2e::encap::{self, Mode, ipip_address, switch};
use e2e::lab::{OUTSIDE, ip};
use e2e::probe::Via;
use e2e::process::{patience, wait_for};
use e2e::require;

#[test]
fn ip_in_ip_carries_every_pair_and_leaves_nothing_behind() -> Result<()> {
    require!("bird", "birdc", "iptables-nft", "ipset", "ping", "bridge");
    if !require::kernel_makes("ipip")? {
        return require::in_vm("ip_in_ip_carries_every_pair_and_leaves_nothing_behind");
    }
    // An emulated processor is busy enough without etcd.
    let cluster = encap::cluster("bripip", Store::Directory)?;
    switch(&cluster, Mode::Ipip)?;
    for node in &cluster.lab.nodes {
        let device = cluster.lab.sh(&node.netns, "ip link show tunl0")?;
        ensure!(device.contains("mtu 1480") && device.contains(",UP"), "{}: {device}", node.name);
    }
    encap::masquerades_what_leaves_the_pools(&cluster, ipip_address(cluster.lab.node("n1")))?;
    only_nodes_may_send_it(&cluster)?;
    for mode in [Mode::IpipCrossSubnet, Mode::Vxlan, Mode::Bird] {
        switch(&cluster, mode)?;
    }
    Ok(())
}

/// A host that knows a pod's address and its node's may not wrap packets for it, unless it is listed.
fn only_nodes_may_send_it(cluster: &Cluster) -> Result<()> {
    let (node, pod) = (cluster.lab.node("n1").ip, cluster.lab.workload("a1").ip);
    let settings = |spec: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {{name: default}}\nspec: {spec}\n"
        )
    };
    ip(
        Some(&cluster.lab.ns("ext")),
        &format!(
            "link add wrap type ipip local {OUTSIDE} remote {node}\nlink set wrap up\nroute add {pod} dev wrap\n"
        ),
    )?;
    ensure!(!cluster.lab.reaches("outside", "a1", Via::Icmp)?, "a stranger's packets were unwrapped");
    cluster.apply(&settings(&format!("{{externalNodesList: [{OUTSIDE}/32]}}")))?;
    wait_for("a listed host's packets to be unwrapped", patience(), || {
        ensure!(cluster.lab.reaches("outside", "a1", Via::Icmp)?, "not yet");
        Ok(())
    })?;
    cluster.apply(&settings("{}"))?;
    wait_for("a stranger's packets to be dropped again", patience(), || {
        ensure!(!cluster.lab.reaches("outside", "a1", Via::Icmp)?, "still unwrapped");
        Ok(())
    })?;
    ip(Some(&cluster.lab.ns("ext")), "link del wrap\n")
}
