//! How pools of each mode look on the nodes: routes, tunnel devices and their entries, as tables to compare with.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::cluster::{Cluster, Options, Store, endpoint_manifest};
use crate::lab::{Node, Workload, ip};
use crate::probe::{Via, within};
use crate::process::{patience, wait_for};

const VIAS: [Via; 2] = [Via::Icmp, Via::Tcp(80)];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// BIRD writes routes; the fabric knows the blocks.
    Bird,
    /// Felix writes them.
    Direct,
    Vxlan,
    VxlanCrossSubnet,
    /// IP-in-IP is IPv4 only: the other family is as with [`Mode::Bird`].
    Ipip,
    IpipCrossSubnet,
}

impl Mode {
    fn vxlan(self) -> &'static str {
        match self {
            Mode::Vxlan => "Always",
            Mode::VxlanCrossSubnet => "CrossSubnet",
            _ => "Never",
        }
    }

    fn ipip(self) -> &'static str {
        match self {
            Mode::Ipip => "Always",
            Mode::IpipCrossSubnet => "CrossSubnet",
            _ => "Never",
        }
    }

    /// What carries a family's packets to nodes of another subnet, if not the fabric.
    fn tunnel(self, v6: bool) -> Option<&'static str> {
        match (self, v6) {
            (Mode::Vxlan | Mode::VxlanCrossSubnet, false) => Some("vxlan.calico"),
            (Mode::Vxlan | Mode::VxlanCrossSubnet, true) => Some("vxlan-v6.calico"),
            (Mode::Ipip | Mode::IpipCrossSubnet, false) => Some("tunl0"),
            _ => None,
        }
    }

    fn is_cross_subnet(self) -> bool {
        matches!(self, Mode::VxlanCrossSubnet | Mode::IpipCrossSubnet)
    }

    fn objects(self) -> String {
        let (vxlan, ipip) = (self.vxlan(), self.ipip());
        let felix = if self == Mode::Direct { "Enabled" } else { "EnabledIPIPOnly" };
        let bird = if self == Mode::Direct { "Disabled" } else { "EnabledNoEncapOnly" };
        let v4 = format!("ipipMode: {ipip}, vxlanMode: {vxlan}, natOutgoing: true");
        format!(
            "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {{name: default}}\nspec: {{programClusterRoutes: {felix}}}\n---\n\
             apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {{name: default}}\nspec: {{programClusterRoutes: {bird}}}\n---\n\
             {}---\n{}",
            pool("default-ipv4-ippool", "10.244.0.0/16", &v4),
            pool("v6", "fd65::/48", &format!("vxlanMode: {vxlan}, blockSize: 122")),
        )
    }
}

pub fn pool(name: &str, cidr: &str, more: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: \"{cidr}\", {more}}}\n"
    )
}

/// The address of a node's `tunl0`.
pub fn ipip_address(node: &Node) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(node.block) + 1)
}

/// The node with its tunnels, and its block of IPv6.
fn node_objects(node: &Node) -> String {
    let Node { name, ip, ip6, block, block6, .. } = node;
    let (cidr6, ipip) = (node.cidr6(), ipip_address(node));
    let slug = cidr6.replace([':', '/'], "-");
    format!(
        "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {{name: {name}}}\nspec:\n  \
         bgp: {{ipv4Address: {ip}/16, ipv6Address: \"{ip6}/64\", ipv4IPIPTunnelAddr: {ipip}}}\n  \
         ipv4VXLANTunnelAddr: {block}\n  ipv6VXLANTunnelAddr: \"{block6}\"\n---\n\
         apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {{name: {name}{slug}}}\n\
         spec: {{state: confirmed, node: {name}, cidr: \"{cidr6}\", deleted: \"false\"}}\n---\n\
         apiVersion: projectcalico.org/v3\nkind: IPAMBlock\nmetadata: {{name: {name}{slug}}}\n\
         spec: {{cidr: \"{cidr6}\", affinity: \"host:{name}\", allocations: [], unallocated: [], attributes: [], deleted: false}}\n"
    )
}

/// Three nodes in two subnets with workloads `a1` and `a2`, `b1`, and far away `c1`, in both families.
pub fn cluster(prefix: &str, store: Store) -> Result<Cluster> {
    let mut cluster = Cluster::up(prefix, Options { far: 1, store, ..Options::default() })?;
    for node in &cluster.lab.nodes {
        cluster.apply(&node_objects(node))?;
    }
    for (node, name) in [("n1", "a1"), ("n1", "a2"), ("n2", "b1"), ("n3", "c1")] {
        let workload = cluster.add_workload(node, name, &[("app", name)])?;
        let manifest = endpoint_manifest(&workload);
        let both = format!("[{}/32, \"{}/128\"]", workload.ip, workload.ip6);
        cluster.apply(&manifest.replace(&format!("[{}/32]", workload.ip), &both))?;
    }
    Ok(cluster)
}

/// The fabric routes pods' addresses where no tunnel carries them, as switches that peer with the nodes would.
fn fabric_routes(cluster: &Cluster, mode: Mode) -> Result<()> {
    let fabric = cluster.lab.ns("fabric");
    for node in &cluster.lab.nodes {
        for (v6, cidr, via) in
            [(false, node.cidr(), node.ip.to_string()), (true, node.cidr6(), node.ip6.to_string())]
        {
            match (mode.tunnel(v6), v6) {
                (None, _) => ip(Some(&fabric), &format!("route replace {cidr} via {via}\n"))?,
                (Some(_), false) => ip(Some(&fabric), &format!("route flush {cidr}\n"))?,
                // `ip -batch` takes no family within a line.
                (Some(_), true) => cluster.lab.sh(&fabric, &format!("ip -6 route flush {cidr}")).map(drop)?,
            }
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
        for v6 in [false, true] {
            let (cidr, node_ip, vtep, router) = match v6 {
                false => (
                    other.cidr(),
                    IpAddr::V4(other.ip),
                    IpAddr::V4(other.block),
                    format!("172.{}.0.1", 30 + subnet),
                ),
                true => (other.cidr6(), other.ip6.into(), other.block6.into(), format!("fd3{subnet}::1")),
            };
            let way = match mode.tunnel(v6) {
                Some(device) if far(other) || !mode.is_cross_subnet() => {
                    let via = if device == "tunl0" { node_ip } else { vtep };
                    format!("via {via} dev {device} onlink")
                }
                Some(_) => format!("via {node_ip} dev eth0 onlink"),
                // BIRD resolves the next hop; felix leaves it to the way to the node itself.
                None if mode != Mode::Direct && far(other) => format!("via {router} dev eth0"),
                None if mode != Mode::Direct => format!("via {node_ip} dev eth0"),
                None if far(other) => continue,
                None => format!("via {node_ip} dev eth0 onlink"),
            };
            routes.insert(format!("{cidr} {way}"));
        }
    }
    routes
}

/// Neighbours and forwarding entries of the tunnels, without the MAC addresses; addresses of the devices.
fn tunnel_entries(cluster: &Cluster, node: &Node) -> Result<BTreeSet<String>> {
    let listed = cluster.lab.sh(
        &node.netns,
        "ip neigh show nud permanent; ip -6 neigh show nud permanent; bridge fdb show | grep ' dst ' || true; \
         ip -o addr show scope global | sed 's/^[0-9]*: //; s/ brd .*//; s/ scope .*//'",
    )?;
    let tunnels = listed.lines().filter(|line| line.contains("calico") || line.contains("tunl0"));
    Ok(tunnels
        .map(|line| {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            words.retain(|word| word.matches(':').count() != 5 && *word != "lladdr");
            words.join(" ")
        })
        .collect())
}

fn expected_entries(nodes: &[Node], node: &Node, mode: Mode) -> BTreeSet<String> {
    let mut entries = BTreeSet::new();
    match mode.tunnel(false) {
        Some("tunl0") => entries.extend([format!("tunl0 inet {}/32", ipip_address(node))]),
        Some(_) => entries.extend([
            format!("vxlan.calico inet {}/32", node.block),
            format!("vxlan-v6.calico inet6 {}/128", node.block6),
        ]),
        None => {}
    }
    let others = nodes.iter().filter(|other| other.name != node.name && mode.vxlan() != "Never");
    entries.extend(others.flat_map(|other| {
        [
            format!("{} dev vxlan.calico PERMANENT", other.block),
            format!("{} dev vxlan-v6.calico PERMANENT", other.block6),
            format!("dev vxlan.calico dst {} self permanent", other.ip),
            format!("dev vxlan-v6.calico dst {} self permanent", other.ip6),
        ]
    }));
    entries
}

/// Changes every pool's mode; ends when each node's tables are right and each pair of workloads talks.
pub fn switch(cluster: &Cluster, mode: Mode) -> Result<()> {
    fabric_routes(cluster, mode)?;
    let started = Instant::now();
    cluster.apply(&mode.objects())?;
    let nodes = &cluster.lab.nodes;
    for node in nodes {
        wait_for(&format!("{mode:?} on {}", node.name), patience(), || {
            let (is, should) = (routes(cluster, node)?, expected_routes(nodes, node, mode));
            ensure!(is == should, "routes:\n{is:#?}\ninstead of\n{should:#?}");
            let (is, should) = (tunnel_entries(cluster, node)?, expected_entries(nodes, node, mode));
            ensure!(is == should, "entries:\n{is:#?}\ninstead of\n{should:#?}");
            let links = cluster.lab.sh(&node.netns, "ip -br link")?;
            ensure!(links.contains("vxlan") == (mode.vxlan() != "Never"), "devices:\n{links}");
            // The kernel's own `tunl0` stays once the module is loaded; nothing of ours speaks of it.
            let rules = cluster.lab.sh(&node.netns, "iptables-nft-save; ipset list -name")?;
            let ipip = ["tunl0", "cali40all-hosts-net"].map(|word| rules.contains(word));
            ensure!(ipip == [mode.ipip() != "Never"; 2], "tunl0 and the set of nodes, in rules: {ipip:?}");
            Ok(())
        })?;
    }
    for of in [|workload: &Workload| IpAddr::from(workload.ip), |workload: &Workload| workload.ip6.into()] {
        wait_for(&format!("every pair in {mode:?}"), patience(), || {
            let unreached = cluster.lab.unreached(of, &VIAS)?;
            ensure!(unreached.is_empty(), "{unreached:?}");
            Ok(())
        })?;
    }
    println!("{mode:?}: every table right and every pair reached {:?} after the change", started.elapsed());
    Ok(())
}

/// Who a listener sees when somebody connects to it.
pub fn seen_by(cluster: &Cluster, listener: &str, from: &str) -> Result<IpAddr> {
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

/// What leaves the pools has the node's address, what goes from pod to pod the pod's, and what the node sends through
/// the tunnel the tunnel's: answers would not come back in it otherwise.
pub fn masquerades_what_leaves_the_pools(cluster: &Cluster, tunnel: Ipv4Addr) -> Result<()> {
    let (pod, node) = (cluster.lab.workload("a1").ip, cluster.lab.node("n1").ip);
    let seen = seen_by(cluster, "outside", "a1")?;
    ensure!(seen == node, "a host outside sees {seen}, not the node {node}");
    for other in ["a2", "b1", "c1"] {
        let seen = seen_by(cluster, other, "a1")?;
        ensure!(seen == pod, "{other} sees {seen}, not the pod {pod}");
    }
    let seen = seen_by(cluster, "c1", "n1")?;
    ensure!(seen == tunnel, "c1 sees {seen}, not the node's tunnel address {tunnel}");
    Ok(())
}
