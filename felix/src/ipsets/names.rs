//! The ids of the IP sets that felix itself fills, and the names of sets that are filled aside.

use super::temporary_prefix;
use crate::iptables::IpVersion;

/// Every pool that workloads or tunnels use.
pub const NETWORK_IP_POOLS: &str = "network-ip-pools";
/// Pools whose traffic is masqueraded when it leaves them.
pub const MASQ_IP_POOLS: &str = "masq-ipam-pools";
/// Addresses of all nodes.
pub const ALL_HOSTS: &str = "all-hosts-net";
/// Addresses that VXLAN packets may come from.
pub const ALL_VXLAN: &str = "all-vxlan-net";
/// This node's own addresses.
pub const THIS_HOST: &str = "this-host";
/// Workloads whose packets get a DSCP value.
pub const DSCP_SOURCES: &str = "dscp-src-net";

/// The name of a set that is filled aside and swapped in.
pub fn temporary_name(version: IpVersion, number: u64) -> String {
    format!("{}{number}", temporary_prefix(version))
}
