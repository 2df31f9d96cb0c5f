//! Who this node talks BGP with: the node-to-node mesh, the peers that BGPPeer objects name, and the
//! reverse side of peers that other nodes have with this one.
//!
//! A peering has a key, (scope, address, port), and the first to claim it keeps it: global peers, then
//! those of this node, then reverse ones; within a pass, objects in the order of their names. A peering
//! that may not be opened (it needs a password or a filter that is not at hand) keeps its key, so that no
//! other object opens it instead.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use syncer_common::model::values;

use super::model::Model;
use super::parsed::{Parsed, References, Target, parse};
use super::peers::{NextHop, NodeView, Origin, Peer};
use super::{Family, IncompletePeers, Problem};

/// Calico compares addresses as text, so `9.9.9.9` is greater than `10.0.0.1`; both ends must agree.
fn greater(left: IpAddr, right: IpAddr) -> bool {
    left.to_string() > right.to_string()
}

/// A global peering, then one of this node, takes the place of another with the same address and port.
type PeeringKey = (Scope, IpAddr, Option<u16>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Global,
    Node,
    Workload,
}

enum Entry {
    Open(Peer),
    Withheld,
}

pub(super) struct Expansion<'a> {
    pub model: &'a Model,
    pub default: &'a values::BgpConfiguration,
    pub default_as: u32,
    pub me: &'a NodeView<'a>,
    pub nodes: &'a BTreeMap<&'a str, NodeView<'a>>,
    pub references: References<'a>,
    pub problems: &'a mut Vec<Problem>,
}

impl Expansion<'_> {
    /// Every peering of this node, unsorted.
    pub fn peers(mut self) -> Vec<Peer> {
        let mut peers = self.mesh();
        let model = self.model;
        let parsed: Vec<Parsed<'_>> = model
            .peers
            .iter()
            .filter_map(|(name, object)| parse(name, object, &self.references, self.problems))
            .collect();

        let mut entries: BTreeMap<PeeringKey, Entry> = BTreeMap::new();
        let mut withheld: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        let mut claim = |source: &Parsed<'_>, name, peer: Peer| {
            let scope = match peer.origin {
                Origin::Global => Scope::Global,
                Origin::LocalWorkload => Scope::Workload,
                Origin::Mesh | Origin::Node => Scope::Node,
            };
            let held = |scope| entries.contains_key(&(scope, peer.address, peer.port));
            let taken = held(scope) || (scope == Scope::Node && held(Scope::Global));
            if taken || self.me.address(Family::of(peer.address)).is_none() || self.me.has(peer.address) {
                return;
            }
            let key = (scope, peer.address, peer.port);
            if source.withheld.is_some() {
                withheld.entry(name).or_default().insert(peer.name());
                entries.insert(key, Entry::Withheld);
            } else {
                entries.insert(key, Entry::Open(peer));
            }
        };
        for peer in parsed.iter().filter(|peer| peer.is_global()) {
            self.forward(peer, Origin::Global).into_iter().for_each(|made| claim(peer, peer.name, made));
        }
        for peer in parsed.iter().filter(|peer| !peer.is_global() && peer.covers(self.me)) {
            self.forward(peer, Origin::Node).into_iter().for_each(|made| claim(peer, peer.name, made));
        }
        for peer in parsed.iter().filter(|peer| peer.object.reverse_peering != "Manual") {
            self.reverse(peer).into_iter().for_each(|made| claim(peer, peer.name, made));
        }
        for peer in &parsed {
            let (Some((field, reason)), Some(names)) = (&peer.withheld, withheld.get(peer.name)) else {
                continue;
            };
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            self.problems.push(Problem::new(
                format!("BGPPeer({})", peer.name),
                *field,
                format!("{reason}; withheld: {}", names.join(", ")),
            ));
        }
        peers.extend(entries.into_values().filter_map(|entry| match entry {
            Entry::Open(peer) => Some(peer),
            Entry::Withheld => None,
        }));
        peers
    }

    fn mesh(&mut self) -> Vec<Peer> {
        if !self.default.node_to_node_mesh_enabled.unwrap_or(true) || self.me.cluster_id.is_some() {
            return Vec::new();
        }
        let mut peers = Vec::new();
        let mut known = BTreeSet::new();
        for node in self.nodes.values().filter(|node| node.name != self.me.name && node.cluster_id.is_none())
        {
            for address in node.addresses() {
                let Some(own) = self.me.address(Family::of(address)) else { continue };
                if self.me.has(address) {
                    self.problems.push(Problem::new(
                        format!("Node({})", node.name),
                        "spec.bgp",
                        format!("{address} is also the address of {}: no session", self.me.name),
                    ));
                    continue;
                }
                let peer = Peer {
                    port: node.listen_port,
                    source: Some(own),
                    passive: greater(address, own),
                    mirrored: true,
                    restart_seconds: self.default.node_mesh_max_restart_seconds,
                    ..self.peer(Origin::Mesh, address, node.as_number, format!("Node({})", node.name))
                };
                // Two nodes with one address: one session, the first name's.
                if !known.insert(address) {
                    self.problems.push(Problem::new(
                        format!("Node({})", node.name),
                        "spec.bgp",
                        format!("{address} belongs to another node too: only one session"),
                    ));
                    continue;
                }
                peers.push(peer);
            }
        }
        let Some(reference) = self.default.node_mesh_password.as_ref().filter(|_| !peers.is_empty()) else {
            return peers;
        };
        match (self.references.password(reference), self.references.incomplete) {
            (Ok(password), _) => {
                for peer in &mut peers {
                    peer.password = Some(password.clone());
                }
            }
            (Err(reason), incomplete) => {
                let sessions = peers.len();
                let what = match incomplete {
                    IncompletePeers::Open => "the mesh is opened without",
                    IncompletePeers::Withhold => "the mesh is withheld",
                };
                self.problems.push(Problem::new(
                    "BGPConfiguration(default)",
                    "spec.nodeMeshPassword",
                    format!("{reason}; {what}: {sessions} sessions"),
                ));
                if incomplete == IncompletePeers::Withhold {
                    return Vec::new();
                }
            }
        }
        peers
    }

    /// The peerings that an object gives to the node that it speaks about.
    fn forward(&self, source: &Parsed<'_>, origin: Origin) -> Vec<Peer> {
        match &source.peer {
            Target::Address(address, port) => {
                let remote_as = self.as_or_default(source.object.as_number);
                // Where the address is a node of ours, it listens where its configuration says.
                let port = port.or_else(|| {
                    self.nodes
                        .values()
                        .find(|node| node.has(*address) && node.as_number == remote_as)
                        .and_then(|node| node.listen_port)
                });
                let own = self.me.address(Family::of(*address));
                let is_node = self.nodes.values().any(|node| node.has(*address));
                let made = Peer {
                    port,
                    local_as: source.object.local_as_number.filter(|number| *number > 0),
                    allowed_own_as: source.object.num_allowed_local_as_numbers,
                    passive: origin == Origin::Global
                        && is_node
                        && own.is_some_and(|own| greater(*address, own)),
                    ..self.peer(origin, *address, remote_as, format!("BGPPeer({})", source.name))
                };
                vec![self.with_options(made, source, None)]
            }
            Target::Nodes(selector) => self
                .nodes
                .values()
                .filter(|node| node.name != self.me.name && node.selected(selector))
                .flat_map(|node| node.addresses().map(move |address| (node, address)))
                .map(|(node, address)| self.to_node(source, origin, node, address))
                .collect(),
            Target::LocalWorkloads => self.to_workloads(source),
        }
    }

    /// The workloads of this node that felix says the object selects. They connect to us.
    fn to_workloads(&self, source: &Parsed<'_>) -> Vec<Peer> {
        let remote_as = self.as_or_default(source.object.as_number);
        let local_as = source.object.local_as_number.filter(|number| *number > 0);
        self.model
            .workloads
            .iter()
            .filter(|workload| workload.peer == source.name)
            .flat_map(|workload| workload.v4.into_iter().chain(workload.v6))
            .map(|address| Peer {
                local_as,
                same_as: remote_as == local_as.unwrap_or(self.me.as_number),
                passive: true,
                filters: source.filters.clone(),
                ..self.peer(Origin::LocalWorkload, address, remote_as, format!("BGPPeer({})", source.name))
            })
            .collect()
    }

    /// The peerings that an object gives to this node because it is the other end.
    fn reverse(&self, source: &Parsed<'_>) -> Vec<Peer> {
        let family = match &source.peer {
            Target::Nodes(selector) => {
                if !self.me.selected(selector) {
                    return Vec::new();
                }
                None
            }
            Target::Address(address, port) => {
                let listens = port.is_none_or(|port| port == self.me.listen_port.unwrap_or(179));
                let named = self.as_or_default(source.object.as_number) == self.me.as_number;
                if !self.me.has(*address) || !named || !listens {
                    return Vec::new();
                }
                Some(Family::of(*address))
            }
            Target::LocalWorkloads => return Vec::new(),
        };
        self.nodes
            .values()
            .filter(|node| node.name != self.me.name && source.covers(node))
            .flat_map(|node| node.addresses().map(move |address| (node, address)))
            .filter(|(_, address)| family.is_none_or(|family| Family::of(*address) == family))
            .map(|(node, address)| self.to_node(source, Origin::Node, node, address))
            .collect()
    }

    fn to_node(&self, source: &Parsed<'_>, origin: Origin, node: &NodeView<'_>, address: IpAddr) -> Peer {
        let made = Peer {
            port: node.listen_port,
            mirrored: source.object.reverse_peering != "Manual",
            ..self.peer(origin, address, node.as_number, format!("BGPPeer({})", source.name))
        };
        self.with_options(made, source, node.cluster_id)
    }

    fn peer(&self, origin: Origin, address: IpAddr, remote_as: u32, because: String) -> Peer {
        Peer {
            origin,
            address,
            port: None,
            remote_as,
            local_as: None,
            same_as: remote_as == self.me.as_number,
            source: None,
            ttl_security: None,
            passive: false,
            mirrored: false,
            restart_seconds: None,
            keepalive_seconds: None,
            reflector_client: false,
            next_hop: NextHop::Auto,
            allowed_own_as: None,
            reachable_by: None,
            password: None,
            filters: Vec::new(),
            because,
        }
    }

    /// What an object says about a peering whichever way it came about.
    fn with_options(&self, mut peer: Peer, source: &Parsed<'_>, cluster_id: Option<Ipv4Addr>) -> Peer {
        let object = source.object;
        peer.same_as = peer.remote_as == peer.local_as.unwrap_or(self.me.as_number);
        peer.source = match object.source_address.as_str() {
            "None" => None,
            _ => self.me.address(Family::of(peer.address)),
        };
        peer.ttl_security = object.ttl_security;
        peer.restart_seconds = object.max_restart_seconds;
        peer.keepalive_seconds = source.keepalive_seconds;
        peer.password.clone_from(&source.password);
        peer.filters.clone_from(&source.filters);
        peer.reflector_client =
            peer.same_as && self.me.cluster_id.is_some() && cluster_id != self.me.cluster_id;
        peer.next_hop = match object.next_hop_mode.as_str() {
            "Keep" => NextHop::Keep,
            "Self" => NextHop::Own,
            _ if object.keep_original_next_hop && !peer.same_as => NextHop::Keep,
            _ => NextHop::Auto,
        };
        peer.reachable_by =
            source.reachable_by.filter(|gateway| Family::of(*gateway) == Family::of(peer.address));
        peer
    }

    fn as_or_default(&self, as_number: u32) -> u32 {
        if as_number == 0 { self.default_as } else { as_number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_compared_as_text() {
        assert!(greater("9.9.9.9".parse().unwrap(), "10.0.0.1".parse().unwrap()));
    }
}
