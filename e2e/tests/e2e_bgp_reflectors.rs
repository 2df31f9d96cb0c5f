//! From a full mesh to two reflectors, by `bulrushctl bgp advise`, and one of them killed: no kernel loses a
//! route for a moment. A router outside of the cluster reaches pods through what a reflector tells it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Cluster, Options};
use e2e::lab::{Node, ip};
use e2e::process::{Process, run, wait_for};
use e2e::require;

const PATIENCE: Duration = Duration::from_secs(60);
const ROUTER: &str = "172.30.0.200";

/// Every worker's kernel has BIRD's route to every other worker's block.
fn wait_routes(cluster: &Cluster, workers: &[Node]) -> Result<()> {
    for node in workers {
        for other in workers.iter().filter(|other| other.name != node.name) {
            let want = format!("{} via {} ", other.cidr(), other.ip);
            wait_for(&format!("{want} on {}", node.name), PATIENCE, || {
                let routes = cluster.lab.sh(&node.netns, "ip route show proto bird")?;
                ensure!(routes.lines().any(|line| line.starts_with(&want)), "routes:\n{routes}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Writes down every change of a kernel's routes.
fn monitor(cluster: &Cluster, node: &Node) -> Result<Process> {
    let mut command = Command::new("ip");
    command.args(["-n", &node.netns, "-4", "monitor", "route"]);
    let name = format!("monitor-{}", node.name);
    Process::start(&name, command, &cluster.lab.dir.join(format!("{name}.log")))
}

/// Blocks of others that a kernel lost, even for a moment.
fn lost(cluster: &Cluster, node: &Node, workers: &[Node]) -> Result<Vec<String>> {
    let log = std::fs::read_to_string(cluster.lab.dir.join(format!("monitor-{}.log", node.name)))?;
    let others: Vec<String> =
        workers.iter().filter(|other| other.name != node.name).map(Node::cidr).collect();
    let gone = log.lines().filter_map(|line| line.strip_prefix("Deleted "));
    Ok(gone
        .filter(|line| others.iter().any(|cidr| line.starts_with(cidr.as_str())))
        .map(Into::into)
        .collect())
}

fn status(cluster: &Cluster, node: &Node) -> Result<String> {
    let socket = cluster.lab.dir.join(&node.name).join("bird.ctl").display().to_string();
    run(&mut cluster.bulrushctl(&["node", "status", "--bird-socket", &socket, "--bird6-socket", "/nowhere"]))
}

#[test]
fn a_mesh_becomes_two_reflectors_and_one_is_killed_without_a_lost_route() -> Result<()> {
    require!("etcd", "etcdctl", "bird", "birdc", "iptables-nft", "ipset", "ping");
    let mut cluster = Cluster::up("brrefl", Options::default())?;
    let workers = cluster.lab.nodes.clone();
    for (node, name) in [("n1", "a1"), ("n2", "b1"), ("n3", "c1")] {
        let workload = cluster.add_workload(node, name, &[("app", name)])?;
        cluster.wait_workload(&workload)?;
    }
    // Two nodes without address blocks.
    for _ in 0..2 {
        let node = cluster.lab.add_node()?.clone();
        cluster.apply(&format!(
            "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {{name: {}}}\nspec:\n  bgp: {{ipv4Address: {}/16}}\n",
            node.name, node.ip
        ))?;
        cluster.start_bird(&node)?;
        cluster.start_confd(&node)?;
    }
    wait_routes(&cluster, &workers)?;
    for node in &workers {
        wait_for(&format!("four mesh sessions on {}", node.name), PATIENCE, || {
            let said = status(&cluster, node)?;
            ensure!(said.starts_with("Calico process is running.\n\nIPv4 BGP status\n"), "{said}");
            ensure!(said.contains("IPv6 BGP status\nNo IPv6 peers found.\n"), "{said}");
            let up = said
                .lines()
                .filter(|line| line.contains("| node-to-node mesh | up ") && line.contains("Established"));
            ensure!(up.count() == 4, "{said}");
            Ok(())
        })?;
    }

    // The change: nobody loses a route. Nodes that hold blocks are refused.
    let refused = cluster.bulrushctl(&["bgp", "advise", "--reflectors", "n1,n4", "--apply"]).output()?;
    let why = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && why.contains("n1 have address blocks"), "{why}");
    let monitors = workers.iter().map(|node| monitor(&cluster, node)).collect::<Result<Vec<_>>>()?;
    let said = run(&mut cluster.bulrushctl(&[
        "bgp",
        "advise",
        "--reflectors",
        "n4,n5",
        "--apply",
        "--settle",
        "6s",
    ]))?;
    ensure!(said.contains("Reflectors: n4, n5") && said.ends_with("Done.\n"), "{said}");
    for node in &workers {
        wait_for(&format!("two sessions on {}", node.name), PATIENCE, || {
            let said = status(&cluster, node)?;
            let up = said
                .lines()
                .filter(|line| line.contains("| node specific | up ") && line.contains("Established"));
            ensure!(up.count() == 2 && !said.contains("node-to-node mesh"), "{said}");
            Ok(())
        })?;
    }
    wait_routes(&cluster, &workers)?;
    for node in &workers {
        let lost = lost(&cluster, node, &workers)?;
        ensure!(lost.is_empty(), "{} lost routes at the change: {lost:?}", node.name);
    }
    ensure!(cluster.lab.reaches("a1", "b1", e2e::probe::Via::Tcp(80))?, "a1 does not reach b1");

    // A router outside of the cluster, on the same network, learns from one reflector and reaches pods.
    let outside = cluster.lab.ns("rtr");
    ip(None, &format!("netns add {outside}\n"))?;
    ip(
        Some(&cluster.lab.ns("fabric")),
        &format!("link add rtr type veth peer name eth0 netns {outside}\nlink set rtr master br0 up\n"),
    )?;
    ip(Some(&outside), &format!("link set lo up\nlink set eth0 up\naddr add {ROUTER}/16 dev eth0\n"))?;
    let reflector = cluster.lab.node("n5").clone();
    let config = cluster.lab.dir.join("rtr.cfg");
    std::fs::write(
        &config,
        format!(
            "router id {ROUTER};\nprotocol device {{ scan time 2; }}\nprotocol direct {{ ipv4; }}\n\
             protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; metric 0; }}\n\
             protocol bgp reflector {{ local {ROUTER} as 64512; neighbor {} as 64512; multihop; \
             connect retry time 2; error wait time 1, 5; ipv4 {{ import all; export none; gateway recursive; }}; }}\n",
            reflector.ip
        ),
    )?;
    let bird = e2e::require::find("bird").context("bird is not installed")?;
    let mut command = cluster.lab.exec(&outside, &bird);
    command.arg("-f").arg("-c").arg(&config).arg("-s").arg(cluster.lab.dir.join("rtr.ctl"));
    let _router = Process::start("bird-rtr", command, &cluster.lab.dir.join("bird-rtr.log"))?;
    cluster.apply(&format!(
        "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: outside}}\nspec: {{node: n5, peerIP: {ROUTER}, asNumber: 64512}}\n"
    ))?;
    let pod = cluster.lab.workload("b1").ip;
    wait_for("the router to reach a pod", PATIENCE, || {
        cluster.lab.sh(&outside, &format!("ping -n -q -c 1 -W 1 {pod}")).map(drop)
    })?;
    let route = cluster.lab.sh(&outside, &format!("ip route get {pod}"))?;
    ensure!(
        route.contains(&format!("via {} ", cluster.lab.node("n2").ip)),
        "not straight to its node: {route}"
    );

    // The other next-hop mode: through the reflector, and back. No felix makes that one forward.
    cluster.lab.sh(&reflector.netns, "sysctl -qw net.ipv4.ip_forward=1")?;
    for (mode, via) in [("Self", &reflector.ip), ("Auto", &cluster.lab.node("n2").ip)] {
        cluster.apply(&format!(
            "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: outside}}\n\
             spec: {{node: n5, peerIP: {ROUTER}, asNumber: 64512, nextHopMode: {mode}}}\n"
        ))?;
        wait_for(&format!("next hop {via} under nextHopMode {mode}"), PATIENCE, || {
            let route = cluster.lab.sh(&outside, &format!("ip route get {pod}"))?;
            ensure!(route.contains(&format!("via {via} ")), "{route}");
            cluster.lab.sh(&outside, &format!("ping -n -q -c 1 -W 1 {pod}")).map(drop)
        })?;
    }

    // One reflector dies: routes stay, and so does every session to the other.
    cluster.process("confd-n4")?.kill();
    cluster.process("bird-n4")?.kill();
    for node in &workers {
        wait_for(&format!("{} to notice", node.name), PATIENCE, || {
            let said = status(&cluster, node)?;
            let up = said.lines().filter(|line| line.contains("| node specific | up "));
            ensure!(up.count() == 1, "{said}");
            Ok(())
        })?;
    }
    wait_routes(&cluster, &workers)?;
    for node in &workers {
        let lost = lost(&cluster, node, &workers)?;
        ensure!(lost.is_empty(), "{} lost routes with the reflector: {lost:?}", node.name);
    }
    for (from, to) in [("a1", "b1"), ("b1", "c1"), ("c1", "a1")] {
        ensure!(cluster.lab.reaches(from, to, e2e::probe::Via::Tcp(80))?, "{from} does not reach {to}");
    }
    drop(monitors);
    Ok(())
}
