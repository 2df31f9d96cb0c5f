//! A node that reboots while no server is there: the last proven state is in force before anybody answers.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Cluster, Options};
use e2e::probe::Via;
use e2e::process::wait_for;
use e2e::require;
use e2e::watch::Monitor;

const PATIENCE: Duration = Duration::from_secs(60);
const POLICY: &str = "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: server, namespace: default}\nspec: \
    {selector: app == 'server', types: [Ingress], ingress: [{action: Allow, source: {selector: app == 'client'}}]}\n";

/// What a reboot leaves of felix' work in a kernel: nothing.
fn forget(cluster: &Cluster, netns: &str) -> Result<()> {
    for program in ["iptables-nft", "ip6tables-nft"] {
        for table in ["raw", "mangle", "nat", "filter"] {
            cluster.lab.sh(netns, &format!("{program} -t {table} -F && {program} -t {table} -X"))?;
        }
    }
    cluster.lab.sh(netns, "ipset destroy")?;
    Ok(())
}

fn open(cluster: &Cluster, from: &str, open: bool) -> Result<()> {
    wait_for(&format!("{from} -> server {}", if open { "open" } else { "closed" }), PATIENCE, || {
        ensure!(cluster.lab.reaches(from, "server", Via::Tcp(80))? == open, "it is the other way round");
        Ok(())
    })
}

#[test]
fn the_last_state_is_in_force_without_a_server() -> Result<()> {
    require!("etcd", "etcdctl", "bird", "iptables-nft", "ipset", "ping", "nft", "ss");
    let mut cluster = Cluster::up("brboot", Options { nodes: 1, ..Options::default() })?;
    for name in ["client", "server", "outsider"] {
        let workload = cluster.add_workload("n1", name, &[("app", name)])?;
        cluster.wait_workload(&workload)?;
    }
    cluster.apply(POLICY)?;
    open(&cluster, "client", true)?;
    open(&cluster, "outsider", false)?;
    // The file follows within a second or two.
    std::thread::sleep(Duration::from_secs(4));
    let node = cluster.lab.node("n1").clone();
    let felix = format!("felix-{}", node.name);

    for i in 1..=2 {
        cluster.process(&format!("typha-{i}"))?.kill();
    }
    cluster.process(&felix)?.kill();
    forget(&cluster, &node.netns)?;
    ensure!(cluster.lab.reaches("outsider", "server", Via::Tcp(80))?, "the kernel has forgotten the policy");
    // As felix is told of a reboot: a restart alone leaves it to the servers to say what is.
    std::fs::write(cluster.node_dir(&node).join("boot_id"), "5f6a2b4c-0000-4000-8000-000000000001\n")?;
    let started = Instant::now();
    cluster.start_felix(&node)?;
    open(&cluster, "outsider", false)?;
    println!("closed {} ms after felix was started", started.elapsed().as_millis());
    open(&cluster, "client", true)?;
    let log = std::fs::read_to_string(cluster.log(&felix))?;
    ensure!(log.contains("enforcing the last proven state"), "{log}");

    // A server comes: it has nothing to change, and resumes from the file's token.
    let monitor = Monitor::rules(&cluster.lab, &node.netns)?;
    for i in 0..2 {
        cluster.start_typha(i)?;
    }
    for i in 0..2 {
        cluster.wait_typha(i)?;
    }
    wait_for("felix is connected again", PATIENCE, || {
        let log = std::fs::read_to_string(cluster.log(&felix))?;
        let last = log.lines().rev().find(|line| line.contains("verdict=")).context("not yet")?;
        ensure!(!last.contains("SNAPSHOT"), "it began anew: {last}");
        Ok(())
    })?;
    let flapped = monitor.deletions();
    ensure!(flapped.is_empty(), "withdrawn from the kernel:\n{}", flapped.join("\n"));

    // A file that cannot be read is set aside and named, and the server's word is enough.
    cluster.process(&felix)?.kill();
    let file = cluster.node_dir(&node).join("felix.state");
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    for byte in &mut bytes[64..middle] {
        *byte = !*byte;
    }
    std::fs::write(&file, bytes)?;
    forget(&cluster, &node.netns)?;
    cluster.start_felix(&node)?;
    open(&cluster, "outsider", false)?;
    open(&cluster, "client", true)?;
    let log = std::fs::read_to_string(cluster.log(&felix))?;
    ensure!(log.contains("the state on disk cannot be read: set aside"), "{log}");
    Ok(())
}
