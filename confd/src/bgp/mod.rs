//! The BGP model of one node: what has to be configured, with no word of any configuration syntax.
//!
//! `Model` keeps the objects that arrive from the stream; `Model::compute` derives a `BgpModel` from
//! them, always from scratch and always the same for the same objects, whatever order they came in.
//! Pure: no clock, no files, no sockets. A bad object takes only itself away and is named in `problems`.

mod aggregates;
mod expansion;
mod filters;
mod model;
mod parsed;
mod peers;
mod pools;
mod services;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

pub use aggregates::{Advertisement, Block, Community};
pub use filters::{Direction, Filter, NetMatch, Operation, Operator, PeerType, Rule};
pub use model::Model;
pub use peers::{NextHop, Origin, Password, Peer};
pub use pools::{ClusterRoutes, Encapsulation, Pool};

/// What the node itself contributes: its name and the settings of its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalSettings {
    pub node: String,
    pub router_id: RouterId,
    /// Overrides the log level of BGPConfiguration.
    pub log_severity: Option<String>,
    /// Replaces `serviceClusterIPs` of BGPConfiguration.
    pub advertise_cluster_ips: Option<Vec<String>>,
    /// The node's name in Kubernetes, where it is another one.
    pub kubernetes_node: Option<String>,
    pub incomplete_peers: IncompletePeers,
}

/// What becomes of a peering whose password or filter is not at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncompletePeers {
    /// It is not opened until it is complete.
    #[default]
    Withhold,
    /// It is opened without, as Calico's confd does.
    Open,
}

impl std::str::FromStr for IncompletePeers {
    type Err = String;

    fn from_str(text: &str) -> Result<IncompletePeers, String> {
        match text.to_ascii_lowercase().as_str() {
            "withhold" => Ok(IncompletePeers::Withhold),
            "open" => Ok(IncompletePeers::Open),
            _ => Err(format!("{text:?} is neither withhold nor open")),
        }
    }
}

/// Passwords by Secret and key. No log, error or debug output shows them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(BTreeMap<(String, String), String>);

impl Secrets {
    pub fn insert(&mut self, secret: &str, key: &str, value: String) {
        self.0.insert((secret.to_owned(), key.to_owned()), value);
    }

    pub fn get(&self, secret: &str, key: &str) -> Option<&str> {
        self.0.get(&(secret.to_owned(), key.to_owned())).map(String::as_str)
    }

    /// Takes in others; theirs win.
    pub fn extend(&mut self, others: Secrets) {
        self.0.extend(others.0);
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.0.len())
    }
}

/// A workload of this node that asked for BGP, as felix reports it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkloadPeer {
    /// The BGPPeer that selects it.
    pub peer: String,
    pub v4: Option<IpAddr>,
    pub v6: Option<IpAddr>,
}

/// How the router ID is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouterId {
    /// The node's IPv4 address; its name's hash where it has none.
    #[default]
    NodeAddress,
    Hash,
    Fixed(Ipv4Addr),
}

/// How much BIRD says about its protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Debug,
    Info,
    Quiet,
}

/// The BGP configuration of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpModel {
    pub node: String,
    pub router_id: Ipv4Addr,
    pub log_level: LogLevel,
    pub local_as: u32,
    /// Where BIRD listens; 179 when absent.
    pub listen_port: Option<u16>,
    /// Listen on the node's address only.
    pub bind_node_address: bool,
    /// Set on a route reflector.
    pub cluster_id: Option<Ipv4Addr>,
    pub ignored_interfaces: Vec<String>,
    pub cluster_routes: ClusterRoutes,
    /// Every filter that can be used, by name.
    pub filters: BTreeMap<String, Filter>,
    pub v4: FamilyModel,
    pub v6: FamilyModel,
    pub problems: Vec<Problem>,
}

impl BgpModel {
    pub fn families(&self) -> [&FamilyModel; 2] {
        [&self.v4, &self.v6]
    }

    /// The same without some objects. Peerings that need one of their filters go with it: opened without, they
    /// could let in, or give away, what it is there to stop.
    pub fn without(&self, objects: &BTreeMap<String, String>) -> BgpModel {
        let mut model = self.clone();
        model.filters.retain(|name, _| !objects.contains_key(&format!("BGPFilter({name})")));
        for family in [&mut model.v4, &mut model.v6] {
            family.peers.retain(|peer| {
                !objects.contains_key(&peer.because)
                    && peer.filters.iter().all(|name| model.filters.contains_key(name))
            });
        }
        model
    }

    /// Every peer of both families.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.v4.peers.iter().chain(&self.v6.peers)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    pub fn of_net(net: IpNet) -> Family {
        Family::of(net.addr())
    }

    /// 4 or 6.
    pub fn version(self) -> u8 {
        match self {
            Family::V4 => 4,
            Family::V6 => 6,
        }
    }

    /// Bits of an address.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }
}

/// The part of the configuration that belongs to one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyModel {
    pub family: Family,
    /// The node's own address: without one there are no peers.
    pub address: Option<IpAddr>,
    /// The network that the address is in.
    pub subnet: Option<IpNet>,
    /// Next hops that WireGuard serves: felix's.
    pub wireguard_next_hops: Vec<IpAddr>,
    /// The metric of an ordinary route; a lower one marks a route that may leave its block.
    pub route_priority: u32,
    pub blocks: Vec<Block>,
    /// Service ranges and addresses to originate.
    pub statics: Vec<IpNet>,
    /// Ranges that never belong into this node's kernel.
    pub kernel_rejects: Vec<IpNet>,
    /// Service ranges that a route reflector passes on.
    pub reflected: Vec<IpNet>,
    pub pools: Vec<Pool>,
    pub advertisements: Vec<Advertisement>,
    /// Sorted by name.
    pub peers: Vec<Peer>,
}

/// An object, or a part of one, that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    /// Kind and name, as in `BGPPeer(rack-1)`.
    pub object: String,
    pub field: String,
    pub reason: String,
}

impl Problem {
    pub fn new(object: impl Into<String>, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Problem { object: object.into(), field: field.into(), reason: reason.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.reason)
    }
}

/// The order of blocks, ranges and statics: that of their datastore names, `<address>-<length>`.
fn by_store_name(net: &IpNet) -> String {
    format!("{}-{}", net.addr(), net.prefix_len())
}
