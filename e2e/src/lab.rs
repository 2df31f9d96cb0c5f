//! A throw-away data centre of network namespaces.
//!
//! A bridge is the fabric; it also routes to an outside host and knows each node's block, as a top-of-rack
//! switch would. Nodes may be in two subnets, of both families, with the fabric as the router between. A workload gets what a CNI plugin gives it: a veth pair whose host side is `cali` + 11 hex
//! digits of SHA-1(`namespace.pod`), one address, a link-local gateway. Nothing is attached to the root
//! namespace, so no packet can leave the machine.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use sha1::Digest as _;

use crate::probe::{join, within};
use crate::process::run;

/// Addresses of the two typhas (and of etcd) on the fabric.
pub const CONTROL: [Ipv4Addr; 2] = [Ipv4Addr::new(172, 30, 0, 2), Ipv4Addr::new(172, 30, 0, 3)];
/// A host outside of the cluster.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

pub struct Lab {
    pub prefix: String,
    pub dir: PathBuf,
    pub nodes: Vec<Node>,
    keep: bool,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub netns: String,
    pub ip: Ipv4Addr,
    pub ip6: Ipv6Addr,
    /// First address of the node's /26.
    pub block: Ipv4Addr,
    /// First address of the node's /122.
    pub block6: Ipv6Addr,
    pub workloads: Vec<Workload>,
}

#[derive(Clone, Debug)]
pub struct Workload {
    pub name: String,
    pub node: String,
    pub netns: String,
    pub ip: Ipv4Addr,
    pub ip6: Ipv6Addr,
    pub interface: String,
    pub labels: Vec<(String, String)>,
}

impl Node {
    pub fn cidr(&self) -> String {
        format!("{}/26", self.block)
    }

    pub fn cidr6(&self) -> String {
        format!("{}/122", self.block6)
    }
}

impl Lab {
    /// Builds the fabric, the control namespace, the outside host and `nodes` nodes.
    pub fn up(prefix: &str, nodes: usize) -> Result<Lab> {
        let dir = PathBuf::from(format!("/run/bulrush/{prefix}"));
        if dir.exists() || !namespaces(prefix)?.is_empty() {
            bail!("lab '{prefix}' exists already: `make demo-down` (or a reboot) clears it");
        }
        std::fs::create_dir_all(&dir).context("create the lab's folder")?;
        let mut lab = Lab { prefix: prefix.into(), dir, nodes: Vec::new(), keep: false };
        lab.raise_neighbour_limits()?;
        let (fabric, control, outside) = (lab.ns("fabric"), lab.ns("ctl"), lab.ns("ext"));
        ip(None, &format!("netns add {fabric}\nnetns add {control}\nnetns add {outside}\n"))?;
        sysctl(&fabric, "net.ipv4.ip_forward", "1")?;
        sysctl(&fabric, "net.ipv6.conf.all.forwarding", "1")?;
        let [c1, c2] = CONTROL;
        ip(
            Some(&fabric),
            &format!(
                "link set lo up\n\
                 link add br0 type bridge mcast_snooping 0\nlink set br0 up\naddr add 172.30.0.1/16 dev br0\n\
                 link add ctl type veth peer name eth0 netns {control}\nlink set ctl master br0 up\n\
                 link add ext type veth peer name eth0 netns {outside}\nlink set ext up\n\
                 addr add 198.51.100.1/24 dev ext\n\
                 addr add fd30::1/64 dev br0 nodad\n\
                 link add br1 type bridge mcast_snooping 0\nlink set br1 up\naddr add 172.31.0.1/16 dev br1\n\
                 addr add fd31::1/64 dev br1 nodad\n"
            ),
        )?;
        ip(
            Some(&control),
            &format!(
                "link set lo up\nlink set eth0 up\naddr add {c1}/16 dev eth0\naddr add {c2}/16 dev eth0\n\
                 route add default via 172.30.0.1\n"
            ),
        )?;
        ip(
            Some(&outside),
            &format!(
                "link set lo up\nlink set eth0 up\naddr add {OUTSIDE}/24 dev eth0\nroute add default via 198.51.100.1\n"
            ),
        )?;
        for _ in 0..nodes {
            lab.add_node()?;
        }
        Ok(lab)
    }

    /// Full name of one of the lab's namespaces.
    pub fn ns(&self, who: &str) -> String {
        format!("{}-{who}", self.prefix)
    }

    /// A node joins: a namespace on the fabric, with a folder of its own.
    pub fn add_node(&mut self) -> Result<&Node> {
        self.add_node_in(0)
    }

    /// A node joins in the first (0) or second (1) subnet.
    pub fn add_node_in(&mut self, subnet: u8) -> Result<&Node> {
        let i = u8::try_from(self.nodes.len() + 1).context("at most 200 nodes")?;
        let name = format!("n{i}");
        let netns = self.ns(&name);
        let (addr, block) = (Ipv4Addr::new(172, 30 + subnet, 0, 20 + i), block_of(i));
        let addr6 = Ipv6Addr::new(0xfd30 + u16::from(subnet), 0, 0, 0, 0, 0, 0, 0x20 + u16::from(i));
        let block6 = Ipv6Addr::new(0xfd65, 0, 0, 0, 0, 0, u16::from(i), 0);
        let (router, router6) = (format!("172.{}.0.1", 30 + subnet), format!("fd3{subnet}::1"));
        ip(None, &format!("netns add {netns}\n"))?;
        ip(
            Some(&self.ns("fabric")),
            &format!(
                "link add {name} type veth peer name eth0 netns {netns}\nlink set {name} master br{subnet} up\n\
                 route add {block}/26 via {addr}\n"
            ),
        )?;
        ip(
            Some(&netns),
            &format!(
                "link set lo up\nlink set eth0 up\naddr add {addr}/16 dev eth0\n\
                 addr add {addr6}/64 dev eth0 nodad\nroute add default via {router}\n\
                 route add default via {router6}\n"
            ),
        )?;
        std::fs::create_dir_all(self.dir.join(&name))?;
        self.nodes.push(Node { name, netns, ip: addr, ip6: addr6, block, block6, workloads: Vec::new() });
        Ok(&self.nodes[self.nodes.len() - 1])
    }

    /// A node leaves with everything on it.
    pub fn remove_node(&mut self, name: &str) -> Result<Node> {
        let at = self.nodes.iter().position(|n| n.name == name).context("no such node")?;
        let node = self.nodes.remove(at);
        for ns in node.workloads.iter().map(|w| &w.netns).chain([&node.netns]) {
            kill_inside(ns);
            ip(None, &format!("netns del {ns}\n"))?;
        }
        Ok(node)
    }

    /// Wires a workload to its node, as a CNI plugin would. Only the wiring: its WorkloadEndpoint is the caller's.
    pub fn add_workload(&mut self, node: &str, name: &str, labels: &[(&str, &str)]) -> Result<Workload> {
        let prefix = self.prefix.clone();
        let host = self.nodes.iter_mut().find(|n| n.name == node).context("no such node")?;
        let slot = u32::try_from(host.workloads.len() + 2)?;
        let address = Ipv4Addr::from(u32::from(host.block) + slot);
        let address6 = Ipv6Addr::from(u128::from(host.block6) + u128::from(slot));
        let interface = interface_of("default", name);
        let netns = format!("{prefix}-w-{name}");
        ip(None, &format!("netns add {netns}\n"))?;
        ip(
            Some(&host.netns),
            &format!(
                "link add {interface} address ee:ee:ee:ee:ee:ee type veth peer name eth0 netns {netns}\n\
                 link set {interface} up\n"
            ),
        )?;
        ip(
            Some(&netns),
            &format!(
                "link set lo up\nlink set eth0 up\naddr add {address}/32 dev eth0\n\
                 route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0\n\
                 addr add {address6}/128 dev eth0 nodad\nroute add default via fe80::ecee:eeff:feee:eeee dev eth0\n"
            ),
        )?;
        let workload = Workload {
            name: name.into(),
            node: node.into(),
            netns,
            ip: address,
            ip6: address6,
            interface,
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        };
        host.workloads.push(workload.clone());
        Ok(workload)
    }

    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|n| n.name == name).expect("the caller names a node it added")
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.nodes.iter().flat_map(|n| &n.workloads)
    }

    pub fn workload(&self, name: &str) -> &Workload {
        self.workloads().find(|w| w.name == name).expect("the caller names a workload it added")
    }

    /// Namespace and address of a node, a workload, or `outside`.
    pub fn locate(&self, who: &str) -> (String, IpAddr) {
        if who == "outside" {
            return (self.ns("ext"), OUTSIDE.into());
        }
        if let Some(node) = self.nodes.iter().find(|n| n.name == who) {
            return (node.netns.clone(), node.ip.into());
        }
        let workload = self.workload(who);
        (workload.netns.clone(), workload.ip.into())
    }

    /// A command that runs inside a namespace.
    pub fn exec(&self, netns: &str, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns]).arg(program);
        command
    }

    /// Runs a shell line inside a namespace and returns what it printed. `/sys` is that of the root namespace: mounting
    /// another one for every line, as `ip netns exec` does, takes longer than most lines.
    pub fn sh(&self, netns: &str, line: &str) -> Result<String> {
        let line = line.to_owned();
        join(within(netns, move || run(Command::new("sh").args(["-c", &line]))))?
    }

    /// Leaves everything in place when this value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    // The neighbour table is one for all namespaces, 1,024 entries by default: a mesh of some forty nodes
    // overflows it. What it was is noted in the lab's folder, for `down` to put back.
    fn raise_neighbour_limits(&self) -> Result<()> {
        let mut before = String::new();
        for (name, want) in [("gc_thresh3", 8192), ("gc_thresh2", 8192), ("gc_thresh1", 4096)] {
            let file = Path::new(NEIGHBOURS).join(name);
            let old = std::fs::read_to_string(&file)?.trim().to_owned();
            if old.parse::<u32>().is_ok_and(|n| n < want) {
                before += &format!("{name} {old}\n");
                std::fs::write(self.dir.join(RAISED), &before)?;
                std::fs::write(&file, want.to_string())?;
            }
        }
        Ok(())
    }
}

const NEIGHBOURS: &str = "/proc/sys/net/ipv4/neigh/default";
/// In the lab's folder: the settings that it raised, and what they were.
const RAISED: &str = "raised";

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = down(&self.prefix) {
            eprintln!("lab {}: {error:#}", self.prefix);
        }
    }
}

/// Kills what runs in a lab's namespaces, removes them and the lab's folder, and puts host settings back.
pub fn down(prefix: &str) -> Result<()> {
    let all = namespaces(prefix)?;
    for ns in &all {
        kill_inside(ns);
    }
    let batch: String = all.iter().map(|ns| format!("netns del {ns}\n")).collect();
    ip(None, &batch)?;
    let dir = PathBuf::from(format!("/run/bulrush/{prefix}"));
    for line in std::fs::read_to_string(dir.join(RAISED)).unwrap_or_default().lines() {
        if let Some((name, old)) = line.split_once(' ') {
            std::fs::write(Path::new(NEIGHBOURS).join(name), old)?;
        }
    }
    if dir.exists() {
        std::fs::remove_dir_all(&dir).context("remove the lab's folder")?;
    }
    Ok(())
}

/// The lab's namespaces that exist.
pub fn namespaces(prefix: &str) -> Result<Vec<String>> {
    let out = run(Command::new("ip").args(["netns", "list"]))?;
    let own = format!("{prefix}-");
    Ok(out
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .filter(|n| n.starts_with(&own))
        .map(Into::into)
        .collect())
}

fn kill_inside(netns: &str) {
    let Ok(pids) = run(Command::new("ip").args(["netns", "pids", netns])) else { return };
    for pid in pids.split_whitespace().filter_map(|p| p.parse().ok()) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).ok();
    }
}

/// The host-side interface of a pod, as Calico's CNI plugin names it.
pub fn interface_of(namespace: &str, pod: &str) -> String {
    let digest = sha1::Sha1::digest(format!("{namespace}.{pod}"));
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("cali{}", &hex[..11])
}

// Spread over the pool, as an allocator that starts at a hash of the host name does.
fn block_of(i: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, i.wrapping_mul(47).wrapping_add(93), 64 * (i % 4))
}

/// Feeds `ip -batch` in a namespace (or in the root one).
pub fn ip(netns: Option<&str>, batch: &str) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    if let Some(ns) = netns {
        command.args(["-n", ns]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ip")?;
    child.stdin.take().expect("stdin is piped").write_all(batch.as_bytes())?;
    let out = child.wait_with_output()?;
    if !out.status.success() {
        bail!("ip -batch in {}: {}", netns.unwrap_or("root"), String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}

fn sysctl(netns: &str, name: &str, value: &str) -> Result<()> {
    run(Command::new("ip").args(["netns", "exec", netns, "sysctl", "-qw", &format!("{name}={value}")]))?;
    Ok(())
}
