//! Encapsulation: three nodes in two subnets, every mode of pools in both families, changed while pods talk.

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Store};
use e2e::encap::{self, Mode, masquerades_what_leaves_the_pools, pool, switch};
use e2e::probe::Via;
use e2e::process::{patience, wait_for};
use e2e::require;

#[test]
fn every_mode_carries_every_pair_and_leaves_nothing_behind() -> Result<()> {
    require!("etcd", "etcdctl", "bird", "birdc", "iptables-nft", "ipset", "ping", "bridge");
    let mut cluster = encap::cluster("brencap", Store::Etcd)?;
    for mode in [
        Mode::Bird,
        Mode::Vxlan,
        Mode::VxlanCrossSubnet,
        Mode::Direct,
        Mode::VxlanCrossSubnet,
        Mode::Vxlan,
        Mode::Bird,
    ] {
        switch(&cluster, mode)?;
    }
    switch(&cluster, Mode::Vxlan)?;
    masquerades_what_leaves_the_pools(&cluster, cluster.lab.node("n1").block)?;
    ipip_without_its_module_is_named_and_the_rest_goes_on(&mut cluster)?;
    failsafe_ports_stay_open(&mut cluster)
}

fn ipip_without_its_module_is_named_and_the_rest_goes_on(cluster: &mut Cluster) -> Result<()> {
    cluster.apply(&pool("ipip", "10.99.0.0/16", "ipipMode: Always"))?;
    let node = cluster.lab.node("n1").clone();
    let log = cluster.log("felix-n1");
    wait_for("felix to have taken up the pool", patience(), || {
        let device = cluster.lab.sh(&node.netns, "ip link show tunl0").is_ok();
        let said = std::fs::read_to_string(&log)?.matches("modprobe ipip").count();
        ensure!(device || said == 1, "neither tunl0 nor one word about it, but {said}");
        Ok(())
    })?;
    ensure!(cluster.lab.reaches("a1", "c1", Via::Tcp(80))?, "VXLAN suffered from a missing IPIP");
    cluster.wait_node(&node)?;
    let said = std::fs::read_to_string(&log)?.matches("modprobe ipip").count();
    ensure!(said <= 1, "said {said} times");
    Ok(())
}

fn failsafe_ports_stay_open(cluster: &mut Cluster) -> Result<()> {
    let node = cluster.lab.node("n1").clone();
    let mut probe = cluster.lab.exec(&node.netns, &e2e::cluster::binaries()?.join("probe"));
    probe.args(["serve", "--tcp", "22", "--tcp", "8080"]);
    let log = cluster.lab.dir.join("sshd.log");
    let _sshd = e2e::process::Process::start("sshd", probe, &log)?;
    for port in [22, 8080] {
        wait_for(&format!("port {port} of the node"), patience(), || {
            ensure!(cluster.lab.reaches("outside", "n1", Via::Tcp(port))?, "not yet");
            Ok(())
        })?;
    }
    cluster.apply(
        "apiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {name: n1-all, labels: {role: host}}\n\
         spec: {node: n1, interfaceName: \"*\"}\n---\n\
         apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: nobody}\n\
         spec: {selector: role == 'host', types: [Ingress, Egress], order: 1, ingress: [{action: Deny}], egress: [{action: Deny}]}\n",
    )?;
    wait_for("the host's policy to close port 8080", patience(), || {
        ensure!(!cluster.lab.reaches("outside", "n1", Via::Tcp(8080))?, "still open");
        Ok(())
    })?;
    ensure!(cluster.lab.reaches("outside", "n1", Via::Tcp(22))?, "locked out of port 22");
    // The agents keep their ways, too: the next change arrives.
    let workload = cluster.lab.workload("a1").clone();
    ensure!(cluster.lab.reaches("a2", "a1", Via::Tcp(80))?, "pods are not the host");
    cluster.wait_workload(&workload)?;
    cluster.apply(
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: nobody}\n\
         spec: {selector: role == 'host', types: [Ingress], order: 1, ingress: [{action: Allow}]}\n",
    )?;
    wait_for("the host's policy to open port 8080", patience(), || {
        ensure!(cluster.lab.reaches("outside", "n1", Via::Tcp(8080))?, "still closed");
        Ok(())
    })
}
