//! Routes and neighbours of local workloads: desired state and ownership (pure), the netlink driver, and the
//! settings of workload interfaces.

pub mod conntrack;
pub mod listing;
pub mod netlink;
pub mod ownership;
pub mod sysctl;
pub mod table;

pub use table::{RouteTable, Workload};

use std::net::IpAddr;

use ipnet::IpNet;

/// A route of the main table, as far as we look at it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub dst: IpNet,
    pub kind: RouteKind,
    /// Interface it leaves by; none for blackholes and multipath routes.
    pub interface: Option<u32>,
    pub metric: u32,
    pub protocol: u8,
    /// `scope link`: no gateway.
    pub link_scope: bool,
    pub gateway: Option<IpAddr>,
    /// The gateway is taken to be on the interface's link, whatever its address.
    pub onlink: bool,
    /// The node's own address for what it sends itself.
    pub source: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    Unicast,
    Blackhole,
}

/// A permanent neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    pub interface: u32,
    pub address: IpAddr,
    pub mac: [u8; 6],
}
