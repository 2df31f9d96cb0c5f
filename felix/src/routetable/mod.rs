//! Routes and neighbours of local workloads: desired state and ownership (pure), the netlink driver, and the
//! settings of workload interfaces.

pub mod conntrack;
pub mod netlink;
pub mod ownership;
pub mod sysctl;
pub mod table;

pub use table::{RouteTable, Workload};

use ipnet::IpNet;

/// A route of the main table, as far as we look at it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub dst: IpNet,
    /// Interface it leaves by; none for blackholes and multipath routes.
    pub interface: Option<u32>,
    pub metric: u32,
    pub protocol: u8,
    /// `scope link`: no gateway.
    pub link_scope: bool,
    pub gateway: bool,
}

/// A permanent neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    pub interface: u32,
    pub address: std::net::IpAddr,
    pub mac: [u8; 6],
}
