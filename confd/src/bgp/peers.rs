//! Who this node talks BGP with: the node-to-node mesh, the peers that BGPPeer objects name, and the
//! reverse side of peers that other nodes have with this one.
//!
//! A peering has a key, (scope, address, port), and the first to claim it keeps it: global peers, then
//! those of this node, then reverse ones; within a pass, objects in the order of their names. A peering
//! that may not be opened (it needs a password or a filter that is not at hand) keeps its key, so that no
//! other object opens it instead.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use syncer_common::model::values;
use syncer_common::selector::Selector;

use super::model::Model;
use super::{Family, Problem};

/// Where a peering comes from; part of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    Mesh,
    Global,
    Node,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    Auto,
    Own,
    Keep,
}

/// One BGP session to configure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub origin: Origin,
    pub address: IpAddr,
    /// The neighbour's port; 179 when absent.
    pub port: Option<u16>,
    pub remote_as: u32,
    /// What this node calls itself here, where that is not its own AS number.
    pub local_as: Option<u32>,
    /// Remote and local AS (as this session knows it) are equal.
    pub same_as: bool,
    /// The local end of the connection; the kernel chooses when absent.
    pub source: Option<IpAddr>,
    pub ttl_security: Option<u32>,
    /// Never connect, wait for the other side: Calico's rule.
    pub passive: bool,
    /// The other node has the mirror image of this peering from the same object, so one side may wait
    /// even where Calico lets both connect.
    pub mirrored: bool,
    pub restart_seconds: Option<u64>,
    pub keepalive_seconds: Option<u64>,
    /// The peer is a client of this reflector.
    pub reflector_client: bool,
    pub next_hop: NextHop,
    pub allowed_own_as: Option<u32>,
    /// The gateway that leads to the peer.
    pub reachable_by: Option<IpAddr>,
    /// The object that asked for it, for people.
    pub because: String,
}

impl Peer {
    /// The protocol's name: what operators and `calicoctl node status` look for.
    pub fn name(&self) -> String {
        let origin = match self.origin {
            Origin::Mesh => "Mesh",
            Origin::Global => "Global",
            Origin::Node => "Node",
        };
        let address = self.address.to_string().replace(['.', ':'], "_");
        match (self.origin, self.port) {
            (Origin::Global | Origin::Node, Some(port)) => format!("{origin}_{address}_port_{port}"),
            _ => format!("{origin}_{address}"),
        }
    }
}

/// A node with its settings parsed and defaults filled in.
#[derive(Clone, Debug)]
pub(super) struct NodeView<'a> {
    pub name: &'a str,
    pub labels: Option<&'a BTreeMap<String, String>>,
    pub v4: Option<IpAddr>,
    pub v6: Option<IpAddr>,
    pub as_number: u32,
    pub listen_port: Option<u16>,
    pub cluster_id: Option<Ipv4Addr>,
}

impl<'a> NodeView<'a> {
    pub fn nameless(name: &'a str, as_number: u32) -> NodeView<'a> {
        NodeView { name, labels: None, v4: None, v6: None, as_number, listen_port: None, cluster_id: None }
    }

    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.into_iter().chain(self.v6)
    }

    fn has(&self, address: IpAddr) -> bool {
        self.addresses().any(|own| own == address)
    }

    fn selected(&self, selector: &Selector) -> bool {
        self.labels.is_some_and(|labels| selector.matches(labels))
    }
}

/// Calico compares addresses as text, so `9.9.9.9` is greater than `10.0.0.1`; both ends must agree.
fn greater(left: IpAddr, right: IpAddr) -> bool {
    left.to_string() > right.to_string()
}

/// BIRD refuses a keepalive time beyond the hold time, which nobody can set and is 240 s.
const KEEPALIVE_SECONDS: std::ops::RangeInclusive<u64> = 1..=240;
const TTL_HOPS: std::ops::RangeInclusive<u32> = 1..=255;

/// A session over several hops cannot be had with a link-local address: BIRD refuses the whole file.
pub(super) fn can_be_peer(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(link_local || address.is_unspecified())
}

type PeeringKey = (bool, IpAddr, Option<u16>);

/// A BGPPeer with its text parsed.
struct Parsed<'a> {
    name: &'a str,
    object: &'a values::BgpPeer,
    node_selector: Option<Selector>,
    peer: Target,
    reachable_by: Option<IpAddr>,
    /// Why it may not be opened, if so.
    withheld: Option<(&'static str, String)>,
}

enum Target {
    Address(IpAddr, Option<u16>),
    Nodes(Selector),
}

impl Parsed<'_> {
    fn is_global(&self) -> bool {
        self.object.node.is_empty() && self.node_selector.is_none()
    }

    /// Whether the object speaks about this node's own side.
    fn covers(&self, node: &NodeView<'_>) -> bool {
        match &self.node_selector {
            Some(selector) => node.selected(selector),
            None => self.object.node.is_empty() || self.object.node == node.name,
        }
    }
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
    pub problems: &'a mut Vec<Problem>,
}

impl Expansion<'_> {
    /// Every peering of this node, unsorted.
    pub fn peers(mut self) -> Vec<Peer> {
        let mut peers = self.mesh();
        let model = self.model;
        let parsed: Vec<Parsed<'_>> =
            model.peers.iter().filter_map(|(name, object)| self.parse(name, object)).collect();

        let mut entries: BTreeMap<PeeringKey, Entry> = BTreeMap::new();
        let mut withheld: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        let mut claim = |source: &Parsed<'_>, name, peer: Peer| {
            let global = peer.origin == Origin::Global;
            let taken = entries.contains_key(&(true, peer.address, peer.port))
                || (!global && entries.contains_key(&(false, peer.address, peer.port)));
            if taken || self.me.address(Family::of(peer.address)).is_none() || self.me.has(peer.address) {
                return;
            }
            let key = (global, peer.address, peer.port);
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
        if let Some(password) = &self.default.node_mesh_password
            && !peers.is_empty()
        {
            self.problems.push(Problem::new(
                "BGPConfiguration(default)",
                "spec.nodeMeshPassword",
                format!(
                    "the password (Secret {}, key {}) is not available; the mesh is withheld: {} sessions",
                    password.name,
                    password.key,
                    peers.len()
                ),
            ));
            return Vec::new();
        }
        peers
    }

    fn parse<'a>(&mut self, name: &'a str, object: &'a values::BgpPeer) -> Option<Parsed<'a>> {
        let mut problem = |field: &str, reason: String| {
            self.problems.push(Problem::new(format!("BGPPeer({name})"), field, reason));
        };
        if !object.local_workload_selector.is_empty() {
            problem(
                "spec.localWorkloadSelector",
                "peering with local workloads is not supported: left out".into(),
            );
            return None;
        }
        let mut selector = |text: &str, field: &str| match Selector::parse(text) {
            Ok(selector) => Some(selector),
            Err(error) => {
                problem(field, format!("{text:?}: {error}; the peer is left out"));
                None
            }
        };
        let node_selector = if object.node.is_empty() && !object.node_selector.is_empty() {
            Some(selector(&object.node_selector, "spec.nodeSelector")?)
        } else {
            None
        };
        let peer = if object.peer_selector.is_empty() {
            match parse_peer_ip(&object.peer_ip) {
                Some((address, _)) if !can_be_peer(address) => {
                    problem("spec.peerIP", format!("{address} cannot be a BGP peer; the peer is left out"));
                    return None;
                }
                Some((address, port)) => Target::Address(address, port),
                None => {
                    problem(
                        "spec.peerIP",
                        format!(
                            "{:?} is neither an address nor address:port; the peer is left out",
                            object.peer_ip
                        ),
                    );
                    return None;
                }
            }
        } else {
            Target::Nodes(selector(&object.peer_selector, "spec.peerSelector")?)
        };
        if object.keepalive_seconds.is_some_and(|seconds| !KEEPALIVE_SECONDS.contains(&seconds)) {
            problem(
                "spec.keepaliveTime",
                format!(
                    "{} s is not within {}-{} s: BIRD's default is used",
                    object.keepalive_seconds.unwrap_or_default(),
                    KEEPALIVE_SECONDS.start(),
                    KEEPALIVE_SECONDS.end()
                ),
            );
        }
        if object.ttl_security.is_some_and(|hops| !TTL_HOPS.contains(&hops)) {
            problem("spec.ttlSecurity", "not within 1-255 hops; the peer is left out".into());
            return None;
        }
        let reachable_by = if object.reachable_by.is_empty() {
            None
        } else {
            match object.reachable_by.parse::<IpAddr>() {
                Ok(gateway) => Some(gateway),
                Err(_) => {
                    problem(
                        "spec.reachableBy",
                        format!("{:?} is not an address: no route to the peer is added", object.reachable_by),
                    );
                    None
                }
            }
        };
        let withheld = if let Some(password) = &object.password {
            Some((
                "spec.password",
                format!("the password (Secret {}, key {}) is not available", password.name, password.key),
            ))
        } else if !object.filters.is_empty() {
            // Opened without its filters it could let in, or give away, what they are there to stop.
            Some((
                "spec.filters",
                format!("BGPFilter objects are not available ({})", object.filters.join(", ")),
            ))
        } else {
            None
        };
        Some(Parsed { name, object, node_selector, peer, reachable_by, withheld })
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
        }
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
        peer.keepalive_seconds =
            object.keepalive_seconds.filter(|seconds| KEEPALIVE_SECONDS.contains(seconds));
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

/// `address`, `address:port` or `[v6 address]:port`.
fn parse_peer_ip(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address, None));
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse().ok().map(|address| (address, None));
    }
    let socket: SocketAddr = text.parse().ok()?;
    (socket.port() > 0).then_some((socket.ip(), Some(socket.port())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_addresses_may_carry_a_port() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(parse_peer_ip("10.0.0.1"), Some((address("10.0.0.1"), None)));
        assert_eq!(parse_peer_ip("10.0.0.1:1790"), Some((address("10.0.0.1"), Some(1790))));
        assert_eq!(parse_peer_ip("[2001::9]:1791"), Some((address("2001::9"), Some(1791))));
        assert_eq!(parse_peer_ip("2001::9"), Some((address("2001::9"), None)));
        for bad in ["", "10.0.0.1:0", "10.0.0.1:99999", "host:1", "[10.0.0"] {
            assert_eq!(parse_peer_ip(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_are_compared_as_text() {
        assert!(greater("9.9.9.9".parse().unwrap(), "10.0.0.1".parse().unwrap()));
    }
}
