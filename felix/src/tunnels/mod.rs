//! Routes to other nodes, and the tunnels that some of them use: what is wanted (pure), and the driver.
//!
//! VXLAN: one device for each family, no learning; for every other node a permanent neighbour (its tunnel's address
//! to its tunnel's MAC) and a forwarding entry (that MAC to the node's address); for every block an `onlink` route by
//! the tunnel's address. IP-in-IP: the kernel's one `tunl0`, with `onlink` routes by the nodes' addresses. Nodes that
//! are reached without a tunnel have routes by their addresses on the interface that holds this node's.

pub mod device;
pub mod driver;
pub mod settings;
pub mod wanted;

pub use driver::Tunnels;
pub use settings::TunnelSettings;

use std::net::IpAddr;

/// A forwarding entry: who has a MAC address, on a VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forwarding {
    pub interface: u32,
    pub mac: [u8; 6],
    pub node_ip: IpAddr,
}
