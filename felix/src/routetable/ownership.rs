//! Which routes are ours to remove. Pure.
//!
//! Only routes that leave by a workload interface are ever looked at. Those of our protocols are ours, from this
//! run or a former one; others are removed too unless RemoveExternalRoutes is off, because a route to a
//! workload that nobody declared is a way around policy. What the kernel makes by itself (protocol kernel,
//! link-local, multicast) is never touched.

use ipnet::IpNet;

use super::Route;

const PROTOCOL_KERNEL: u8 = 2;
const PROTOCOL_BOOT: u8 = 3;
/// What felix of Calico marks its routes with.
const PROTOCOL_CALICO: u8 = 80;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// DeviceRouteProtocol.
    pub protocol: u8,
    /// RemoveExternalRoutes.
    pub remove_external: bool,
}

impl Default for Ownership {
    fn default() -> Self {
        Ownership { protocol: PROTOCOL_BOOT, remove_external: true }
    }
}

impl Ownership {
    /// Whether a route that leaves by a workload interface may be removed when it is not wanted.
    pub fn owns(&self, route: &Route) -> bool {
        if is_made_by_the_kernel(route) {
            return false;
        }
        self.remove_external || [self.protocol, PROTOCOL_BOOT, PROTOCOL_CALICO].contains(&route.protocol)
    }
}

pub fn is_made_by_the_kernel(route: &Route) -> bool {
    let local = match route.dst {
        IpNet::V4(net) => net.addr().is_multicast() || net.addr().is_broadcast(),
        IpNet::V6(net) => net.addr().is_multicast() || net.addr().is_unicast_link_local(),
    };
    route.protocol == PROTOCOL_KERNEL || local
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routetable::RouteKind;

    fn route(dst: &str, protocol: u8) -> Route {
        Route {
            dst: dst.parse().unwrap(),
            kind: RouteKind::Unicast,
            interface: Some(7),
            metric: 0,
            protocol,
            link_scope: true,
            gateway: None,
            onlink: false,
            source: None,
        }
    }

    #[test]
    fn the_kernels_own_routes_are_never_removed() {
        let ownership = Ownership::default();
        assert!(!ownership.owns(&route("10.0.0.0/24", PROTOCOL_KERNEL)));
        assert!(!ownership.owns(&route("fe80::/64", 3)));
        assert!(!ownership.owns(&route("ff00::/8", 3)));
    }

    #[test]
    fn external_routes_stay_when_configured_so() {
        let mut ownership = Ownership::default();
        assert!(ownership.owns(&route("10.0.0.1/32", 4)));
        ownership.remove_external = false;
        assert!(!ownership.owns(&route("10.0.0.1/32", 4)));
        assert!(ownership.owns(&route("10.0.0.1/32", PROTOCOL_CALICO)));
        assert!(ownership.owns(&route("10.0.0.1/32", PROTOCOL_BOOT)));
    }
}
