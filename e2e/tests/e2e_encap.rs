//! Encapsulation: three nodes in two subnets, every mode of pools in both families, changed while pods talk.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Cluster, Options, endpoint_manifest};
use e2e::lab::{Node, OUTSIDE, Workload, ip};
use e2e::probe::{Via, within};
use e2e::process::wait_for;
use e2e::require;

const PATIENCE: Duration = Duration::from_secs(60);
const VIAS: [Via; 2] = [Via::Icmp, Via::Tcp(80)];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    /// BIRD writes routes; the fabric knows the blocks.
    Bird,
    /// Felix writes them.
    Direct,
    Vxlan,
    CrossSubnet,
}

impl Mode {
    fn vxlan(self) -> &'static str {
        match self {
            Mode::Bird | Mode::Direct => "Never",
            Mode::Vxlan => "Always",
            Mode::CrossSubnet => "CrossSubnet",
        }
    }

    fn objects(self) -> String {
        let vxlan = self.vxlan();
        let felix = if self == Mode::Direct { "Enabled" } else { "EnabledIPIPOnly" };
        let bird = if self == Mode::Direct { "Disabled" } else { "EnabledNoEncapOnly" };
        format!(
            "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {{name: default}}\nspec: {{programClusterRoutes: {felix}}}\n---\n\
             apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {{name: default}}\nspec: {{programClusterRoutes: {bird}}}\n---\n\
             {}---\n{}",
            pool("default-ipv4-ippool", "10.244.0.0/16", &format!("vxlanMode: {vxlan}, natOutgoing: true")),
            pool("v6", "fd65::/48", &format!("vxlanMode: {vxlan}, blockSize: 122")),
        )
    }
}

fn pool(name: &str, cidr: &str, more: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: \"{cidr}\", {more}}}\n"
    )
}

/// The node with its tunnels, and its block of IPv6.
fn node_objects(node: &Node) -> String {
    let Node { name, ip, ip6, block, block6, .. } = node;
    let cidr6 = node.cidr6();
    let slug = cidr6.replace([':', '/'], "-");
    format!(
        "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {{name: {name}}}\nspec:\n  bgp: {{ipv4Address: {ip}/16, ipv6Address: \"{ip6}/64\"}}\n  \
         ipv4VXLANTunnelAddr: {block}\n  ipv6VXLANTunnelAddr: \"{block6}\"\n---\n\
         apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {{name: {name}{slug}}}\n\
         spec: {{state: confirmed, node: {name}, cidr: \"{cidr6}\", deleted: \"false\"}}\n---\n\
         apiVersion: projectcalico.org/v3\nkind: IPAMBlock\nmetadata: {{name: {name}{slug}}}\n\
         spec: {{cidr: \"{cidr6}\", affinity: \"host:{name}\", allocations: [], unallocated: [], attributes: [], deleted: false}}\n"
    )
}

/// Whether the fabric routes pods' addresses, as switches that peer with the nodes would.
fn fabric_routes(cluster: &Cluster, known: bool) -> Result<()> {
    let fabric = cluster.lab.ns("fabric");
    let mut batch = String::new();
    for node in &cluster.lab.nodes {
        for (cidr, via) in [(node.cidr(), node.ip.to_string()), (node.cidr6(), node.ip6.to_string())] {
            let verb = if known { "replace" } else { "flush" };
            let via = if known { format!(" via {via}") } else { String::new() };
            let family = if cidr.contains(':') && !known { "-6 " } else { "" };
            batch += &format!("{family}route {verb} {cidr}{via}\n");
        }
    }
    // `ip -batch` takes no family within a line.
    for line in batch.lines() {
        match line.strip_prefix("-6 ") {
            Some(line) => cluster.lab.sh(&fabric, &format!("ip -6 {line}")).map(drop)?,
            None => ip(Some(&fabric), &format!("{line}\n"))?,
        }
    }
    Ok(())
}

/// `10.244.140.64/26 via 10.244.140.64 dev vxlan.calico onlink`, whoever wrote it and with whatever metric.
fn routes(cluster: &Cluster, node: &Node) -> Result<BTreeSet<String>> {
    let listed = cluster.lab.sh(&node.netns, "ip route; ip -6 route")?;
    let pods = |line: &str| line.contains("10.244.") || line.contains("fd65:");
    // The kernel's own are those of the addresses of tunnels.
    let ours = |line: &&str| pods(line) && !line.contains(" dev cali") && !line.contains("proto kernel");
    Ok(listed
        .lines()
        .filter(ours)
        .map(|line| {
            let mut words = line.split_whitespace().peekable();
            let mut kept = Vec::new();
            while let Some(word) = words.next() {
                match word {
                    "proto" | "metric" | "pref" => drop(words.next()),
                    // IPv6 lists its blackholes there.
                    "dev" if words.peek() == Some(&"lo") => drop(words.next()),
                    _ => kept.push(word),
                }
            }
            kept.join(" ")
        })
        .collect())
}

fn expected_routes(nodes: &[Node], node: &Node, mode: Mode) -> BTreeSet<String> {
    let far = |other: &Node| other.ip.octets()[1] != node.ip.octets()[1];
    let subnet = node.ip.octets()[1] - 30;
    let mut routes =
        BTreeSet::from([format!("blackhole {}", node.cidr()), format!("blackhole {}", node.cidr6())]);
    for other in nodes.iter().filter(|other| other.name != node.name) {
        let tunnel = mode == Mode::Vxlan || (mode == Mode::CrossSubnet && far(other));
        let mut add = |cidr: &str, tunnel_ip: &str, node_ip: &str, router: &str, device: &str| match mode {
            _ if tunnel => drop(routes.insert(format!("{cidr} via {tunnel_ip} dev {device} onlink"))),
            // BIRD resolves the next hop; felix leaves it to the way to the node itself.
            Mode::Bird if far(other) => drop(routes.insert(format!("{cidr} via {router} dev eth0"))),
            Mode::Bird => drop(routes.insert(format!("{cidr} via {node_ip} dev eth0"))),
            _ if far(other) => {}
            _ => drop(routes.insert(format!("{cidr} via {node_ip} dev eth0 onlink"))),
        };
        add(
            &other.cidr(),
            &other.block.to_string(),
            &other.ip.to_string(),
            &format!("172.{}.0.1", 30 + subnet),
            "vxlan.calico",
        );
        add(
            &other.cidr6(),
            &other.block6.to_string(),
            &other.ip6.to_string(),
            &format!("fd3{subnet}::1"),
            "vxlan-v6.calico",
        );
    }
    routes
}

/// Neighbours and forwarding entries of the tunnels, without the MAC addresses.
fn tunnel_entries(cluster: &Cluster, node: &Node) -> Result<BTreeSet<String>> {
    let listed = cluster.lab.sh(
        &node.netns,
        "ip neigh show nud permanent; ip -6 neigh show nud permanent; bridge fdb show | grep ' dst ' || true",
    )?;
    let calico = listed.lines().filter(|line| line.contains("calico"));
    Ok(calico
        .map(|line| {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            words.retain(|word| word.matches(':').count() != 5 && *word != "lladdr");
            words.join(" ")
        })
        .collect())
}

fn expected_entries(nodes: &[Node], node: &Node, mode: Mode) -> BTreeSet<String> {
    let others = nodes.iter().filter(|other| other.name != node.name && mode.vxlan() != "Never");
    others
        .flat_map(|other| {
            [
                format!("{} dev vxlan.calico PERMANENT", other.block),
                format!("{} dev vxlan-v6.calico PERMANENT", other.block6),
                format!("dev vxlan.calico dst {} self permanent", other.ip),
                format!("dev vxlan-v6.calico dst {} self permanent", other.ip6),
            ]
        })
        .collect()
}

fn switch(cluster: &Cluster, mode: Mode) -> Result<()> {
    fabric_routes(cluster, mode.vxlan() == "Never")?;
    let started = Instant::now();
    cluster.apply(&mode.objects())?;
    let nodes = &cluster.lab.nodes;
    for node in nodes {
        wait_for(&format!("{mode:?} on {}", node.name), PATIENCE, || {
            let (is, should) = (routes(cluster, node)?, expected_routes(nodes, node, mode));
            ensure!(is == should, "routes:\n{is:#?}\ninstead of\n{should:#?}");
            let (is, should) = (tunnel_entries(cluster, node)?, expected_entries(nodes, node, mode));
            ensure!(is == should, "entries:\n{is:#?}\ninstead of\n{should:#?}");
            let links = cluster.lab.sh(&node.netns, "ip -br link")?;
            ensure!(links.contains("vxlan") == (mode.vxlan() != "Never"), "devices:\n{links}");
            Ok(())
        })?;
    }
    for of in [|workload: &Workload| IpAddr::from(workload.ip), |workload: &Workload| workload.ip6.into()] {
        wait_for(&format!("every pair in {mode:?}"), PATIENCE, || {
            let unreached = cluster.lab.unreached(of, &VIAS)?;
            ensure!(unreached.is_empty(), "{unreached:?}");
            Ok(())
        })?;
    }
    println!("{mode:?}: every table right and every pair reached {:?} after the change", started.elapsed());
    Ok(())
}

#[test]
fn every_mode_carries_every_pair_and_leaves_nothing_behind() -> Result<()> {
    require!("etcd", "etcdctl", "bird", "birdc", "iptables-nft", "ipset", "ping", "bridge");
    let mut cluster = Cluster::up("brencap", Options { far: 1, ..Options::default() })?;
    for node in &cluster.lab.nodes {
        cluster.apply(&node_objects(node))?;
    }
    for (node, name) in [("n1", "a1"), ("n1", "a2"), ("n2", "b1"), ("n3", "c1")] {
        let workload = cluster.add_workload(node, name, &[("app", name)])?;
        let manifest = endpoint_manifest(&workload);
        let both = format!("[{}/32, \"{}/128\"]", workload.ip, workload.ip6);
        cluster.apply(&manifest.replace(&format!("[{}/32]", workload.ip), &both))?;
    }
    for mode in
        [Mode::Bird, Mode::Vxlan, Mode::CrossSubnet, Mode::Direct, Mode::CrossSubnet, Mode::Vxlan, Mode::Bird]
    {
        switch(&cluster, mode)?;
    }
    switch(&cluster, Mode::Vxlan)?;
    masquerades_what_leaves_the_pools(&mut cluster)?;
    ipip_without_its_module_is_named_and_the_rest_goes_on(&mut cluster)?;
    failsafe_ports_stay_open(&mut cluster)
}

/// Who a listener sees when somebody connects to it.
fn seen_by(cluster: &Cluster, listener: &str, from: &str) -> Result<IpAddr> {
    const PORT: u16 = 7777;
    let (netns, address) = cluster.lab.locate(listener);
    let (ready_out, ready) = std::sync::mpsc::channel();
    let seen = within(&netns, move || -> Result<IpAddr> {
        let socket = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
        ready_out.send(()).ok();
        Ok(socket.accept()?.1.ip())
    });
    ready.recv().context("the listener did not start")?;
    let (netns, _) = cluster.lab.locate(from);
    let to = (address, PORT).into();
    let connected =
        within(&netns, move || std::net::TcpStream::connect_timeout(&to, Duration::from_secs(20)).map(drop));
    let connected = connected.join().map_err(|_| anyhow::anyhow!("the prober panicked"))?;
    connected?.with_context(|| format!("{from} does not reach {listener}"))?;
    seen.join().map_err(|_| anyhow::anyhow!("the listener panicked"))??
}

fn masquerades_what_leaves_the_pools(cluster: &mut Cluster) -> Result<()> {
    let (pod, node) = (cluster.lab.workload("a1").ip, cluster.lab.node("n1").ip);
    let seen = seen_by(cluster, "outside", "a1")?;
    ensure!(seen == node, "a host outside ({OUTSIDE}) sees {seen}, not the node {node}");
    for other in ["a2", "b1", "c1"] {
        let seen = seen_by(cluster, other, "a1")?;
        ensure!(seen == pod, "{other} sees {seen}, not the pod {pod}");
    }
    // What the node itself sends through the tunnel has the tunnel's address, or answers would not come back in it.
    let (tunnel, seen) = (cluster.lab.node("n1").block, seen_by(cluster, "c1", "n1")?);
    ensure!(seen == tunnel, "c1 sees {seen}, not the node's tunnel address {tunnel}");
    Ok(())
}

fn ipip_without_its_module_is_named_and_the_rest_goes_on(cluster: &mut Cluster) -> Result<()> {
    cluster.apply(&pool("ipip", "10.99.0.0/16", "ipipMode: Always"))?;
    let node = cluster.lab.node("n1").clone();
    let log = cluster.log("felix-n1");
    wait_for("felix to have taken up the pool", PATIENCE, || {
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
        wait_for(&format!("port {port} of the node"), PATIENCE, || {
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
    wait_for("the host's policy to close port 8080", PATIENCE, || {
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
    wait_for("the host's policy to open port 8080", PATIENCE, || {
        ensure!(cluster.lab.reaches("outside", "n1", Via::Tcp(8080))?, "still closed");
        Ok(())
    })
}
