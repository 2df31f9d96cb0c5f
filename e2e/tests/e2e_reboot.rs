//! A node that reboots while no server is there: the last proven state is in force before anybody answers. In a cluster with
//! as many endpoints elsewhere as `BULRUSH_REBOOT_ENDPOINTS` says.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Cluster, Options, endpoint_manifest};
use e2e::lab::{Workload, interface_of};
use e2e::probe::Via;
use e2e::process::{patience, wait_for};
use e2e::require;
use e2e::watch::Monitor;

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
    wait_for(&format!("{from} -> server {}", if open { "open" } else { "closed" }), patience(), || {
        ensure!(cluster.lab.reaches(from, "server", Via::Tcp(80))? == open, "it is the other way round");
        Ok(())
    })
}

/// Endpoints of other nodes, which felix holds, too.
fn endpoints_elsewhere(cluster: &Cluster, count: u32) -> Result<()> {
    let numbers: Vec<u32> = (0..count).collect();
    for chunk in numbers.chunks(5000) {
        let endpoint = |n: &u32| {
            let (name, node) = (format!("p{n}"), format!("far{}", n / 100));
            let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + n);
            let labels = vec![("app".to_owned(), format!("a{}", n % 50))];
            let interface = interface_of("default", &name);
            let (netns, ip6) = (String::new(), Ipv6Addr::UNSPECIFIED);
            endpoint_manifest(&Workload { name, node, netns, ip, ip6, interface, labels })
        };
        cluster.apply(&chunk.iter().map(endpoint).collect::<Vec<_>>().join("---\n"))?;
    }
    Ok(())
}

/// Whether something is in the file, and no transaction is under way.
fn written(file: &Path, what: &str) -> Result<()> {
    let bytes = std::fs::read(file)?;
    ensure!(
        bytes.windows(what.len()).any(|window| window == what.as_bytes()),
        "it is not in {}",
        file.display()
    );
    std::thread::sleep(Duration::from_millis(200));
    ensure!(std::fs::read(file)? == bytes, "it is being written");
    Ok(())
}

#[test]
fn the_last_state_is_in_force_without_a_server() -> Result<()> {
    require!("etcd", "etcdctl", "bird", "iptables-nft", "ipset", "ping", "nft", "ss");
    let mut cluster = Cluster::up("brboot", Options { nodes: 1, ..Options::default() })?;
    let elsewhere = std::env::var("BULRUSH_REBOOT_ENDPOINTS").map_or(Ok(100), |text| text.parse())?;
    endpoints_elsewhere(&cluster, elsewhere)?;
    for name in ["client", "server", "outsider"] {
        let workload = cluster.add_workload("n1", name, &[("app", name)])?;
        cluster.wait_workload(&workload)?;
    }
    cluster.apply(POLICY)?;
    open(&cluster, "client", true)?;
    open(&cluster, "outsider", false)?;
    let node = cluster.lab.node("n1").clone();
    let felix = format!("felix-{}", node.name);
    let file = cluster.node_dir(&node).join("felix.state");
    wait_for("the policy to be on disk", patience(), || written(&file, "app == \"server\""))?;

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
    // A packet that is dropped is one that nobody answers for a second: what counts is when it was sent.
    let closed = wait_for("the policy to be in force", patience(), || {
        let asked = Instant::now();
        ensure!(!cluster.lab.reaches("outsider", "server", Via::Tcp(80))?, "not yet");
        Ok(asked - started)
    })?;
    println!(
        "{} endpoints elsewhere, a file of {} KiB: closed {} ms after felix was started",
        elsewhere,
        std::fs::metadata(&file)?.len() >> 10,
        closed.as_millis()
    );
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
    wait_for("felix is connected again", patience(), || {
        let log = std::fs::read_to_string(cluster.log(&felix))?;
        let last = log.lines().rev().find(|line| line.contains("verdict=")).context("not yet")?;
        ensure!(!last.contains("SNAPSHOT"), "it began anew: {last}");
        Ok(())
    })?;
    let flapped = monitor.deletions();
    ensure!(flapped.is_empty(), "withdrawn from the kernel:\n{}", flapped.join("\n"));

    // A file that cannot be read is set aside and named, and the server's word is enough.
    cluster.process(&felix)?.kill();
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
