//! A packet's way through the whole cluster, from the entries of the datastore.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use syncer_common::model::{Key, ResourceKey, Update, Value, WorkloadEndpointKey};

use super::{Collected, Packet, Place, Protocol, Stage, Verdict, verdict};
use crate::Graph;
use crate::addresses::{ip, net};

/// What is known of a cluster; one calculation per node that a packet passes.
pub struct Cluster {
    entries: BTreeMap<Key, Update>,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Workload {
        key: WorkloadEndpointKey,
        ip: IpAddr,
    },
    Node {
        name: String,
        ip: IpAddr,
    },
    /// No workload and no node.
    Address(IpAddr),
}

impl Peer {
    pub fn ip(&self) -> IpAddr {
        match self {
            Peer::Workload { ip, .. } | Peer::Node { ip, .. } | Peer::Address(ip) => *ip,
        }
    }

    fn node(&self) -> Option<&str> {
        match self {
            Peer::Workload { key, .. } => Some(&key.host),
            Peer::Node { name, .. } => Some(name),
            Peer::Address(_) => None,
        }
    }
}

impl Cluster {
    /// The later of two entries with one key counts.
    pub fn new(entries: Vec<Update>) -> Cluster {
        Cluster { entries: entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect() }
    }

    /// Who has a name or an address: `default/web-1`, `web-1`, a node's name, `10.65.0.3`. Several addresses: those
    /// of both families are given, so that the other end can choose.
    pub fn find(&self, text: &str) -> Result<Vec<Peer>, String> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            let peers = self.peers().into_iter().filter(|peer| peer.ip() == ip);
            let found: Vec<Peer> = peers.collect();
            return Ok(if found.is_empty() { vec![Peer::Address(ip)] } else { found });
        }
        let named = |peer: &Peer| match peer {
            Peer::Workload { key, .. } => {
                let short = key.workload.rsplit(['/', '.']).next();
                key.workload == text || key.workload.replacen('.', "/", 1) == text || short == Some(text)
            }
            Peer::Node { name, .. } => name == text,
            Peer::Address(_) => false,
        };
        let found: Vec<Peer> = self.peers().into_iter().filter(named).collect();
        let mut owners: Vec<String> = found.iter().map(Peer::to_string).collect();
        owners.dedup();
        match owners.len() {
            0 => Err(format!(
                "no workload, node or address is called {text:?}; `bulrushctl get workloadendpoint -A` lists them"
            )),
            1 => Ok(found),
            _ => Err(format!(
                "{text:?} may be any of {}: say which, as namespace/name or address",
                owners.join(", ")
            )),
        }
    }

    /// The two ends of a connection, of one family.
    pub fn ends(&self, from: &str, to: &str) -> Result<(Peer, Peer), String> {
        let (from, to) = (self.find(from)?, self.find(to)?);
        let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (from, to)));
        let mut pairs = pairs.filter(|(from, to)| from.ip().is_ipv4() == to.ip().is_ipv4());
        let (from, to) = pairs.next().ok_or("the two ends have no address of the same family")?;
        Ok((from.clone(), to.clone()))
    }

    /// Explains, node by node. The text ends with the verdict.
    pub fn explain(&self, from: &Peer, to: &Peer, protocol: Protocol) -> (String, Verdict) {
        let packet = Packet { src: from.ip(), dst: to.ip(), protocol };
        let mut text = format!("{packet}\n");
        let mut stages: Vec<Stage> = Vec::new();
        for node in nodes(from, to) {
            let held = self.calculate(node);
            let place = |peer: &Peer| match peer {
                Peer::Workload { key, .. } if key.host == node => Place::Workload(key.clone()),
                Peer::Node { name, .. } if name == node => Place::Host,
                _ => Place::Outside(self.uplink(node, &held)),
            };
            let here = held.node().path(&packet, &place(from), &place(to));
            push(&mut text, format_args!("\nnode {node}\n"));
            if here.is_empty() {
                text.push_str("  nothing polices it here\n");
            }
            for line in
                here.iter().flat_map(|stage| stage.to_string().lines().map(str::to_owned).collect::<Vec<_>>())
            {
                push(&mut text, format_args!("  {line}\n"));
            }
            let denied = verdict(&here) == Verdict::Deny;
            if held.host_endpoints.values().any(|endpoint| !["*", ""].contains(&endpoint.name.as_str())) {
                text.push_str("  note: host endpoints of named interfaces are left out; `felix explain` on the node knows the interfaces\n");
            }
            stages.extend(here);
            if denied {
                break;
            }
        }
        if from.node().is_none() && to.node().is_none() {
            text.push_str("\nneither end is a workload or a node of this cluster: nothing polices it\n");
        }
        let verdict = verdict(&stages);
        push(&mut text, format_args!("\n{verdict}\n"));
        (text, verdict)
    }

    fn calculate(&self, node: &str) -> Collected {
        let mut graph = Graph::new(node);
        self.entries.values().cloned().for_each(|entry| graph.on_update(entry));
        graph.on_in_sync();
        let mut held = Collected::default();
        graph.flush().into_iter().for_each(|output| held.on_output(output));
        held
    }

    /// The host endpoint that has the node's address: the interface to other nodes.
    fn uplink(&self, node: &str, held: &Collected) -> Option<syncer_common::model::HostEndpointKey> {
        let own: Vec<IpAddr> = self
            .peers()
            .into_iter()
            .filter_map(|peer| match peer {
                Peer::Node { name, ip } if name == node => Some(ip),
                _ => None,
            })
            .collect();
        let expected = held.host_endpoints.iter().find(|(_, endpoint)| {
            endpoint.name.is_empty() && endpoint.expected_ips.iter().any(|ip| own.contains(ip))
        });
        expected.map(|(key, _)| key.clone())
    }

    fn peers(&self) -> Vec<Peer> {
        let mut peers = Vec::new();
        for entry in self.entries.values() {
            match (&entry.key, &entry.value) {
                (Key::WorkloadEndpoint(key), Ok(Value::WorkloadEndpoint(endpoint))) => {
                    let nets = endpoint.ipv4_nets.iter().chain(&endpoint.ipv6_nets);
                    let addresses = nets.filter_map(|text| net(text)).map(|net| net.addr());
                    peers.extend(addresses.map(|ip| Peer::Workload { key: key.clone(), ip }));
                }
                (Key::Resource(ResourceKey { kind, name, .. }), Ok(Value::Node(node))) if kind == "Node" => {
                    let bgp = node.bgp.iter().flat_map(|bgp| [&bgp.ipv4_address, &bgp.ipv6_address]);
                    let texts = bgp.chain(node.addresses.iter().map(|address| &address.address));
                    let mut own: Vec<IpAddr> = texts.filter_map(|text| ip(text)).collect();
                    own.sort();
                    own.dedup();
                    peers.extend(own.into_iter().map(|ip| Peer::Node { name: name.clone(), ip }));
                }
                _ => {}
            }
        }
        peers
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Workload { key, .. } => {
                write!(f, "workload {} {} on {}", key.workload, key.endpoint, key.host)
            }
            Peer::Node { name, .. } => write!(f, "node {name}"),
            Peer::Address(ip) => write!(f, "{ip}"),
        }
    }
}

/// The nodes on the way, in its order.
fn nodes<'a>(from: &'a Peer, to: &'a Peer) -> Vec<&'a str> {
    let mut nodes: Vec<&str> = from.node().into_iter().chain(to.node()).collect();
    nodes.dedup();
    nodes
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("writing to a String cannot fail");
}
