//! IP pools as BGP sees them: which routes may leave, and who writes them into the kernel.

use std::collections::BTreeMap;

use ipnet::IpNet;
use syncer_common::model::values;

use super::Family;

/// How packets to other nodes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    None,
    Ipip { cross_subnet: bool },
    Vxlan,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub cidr: IpNet,
    pub encapsulation: Encapsulation,
    /// Whether its routes are announced.
    pub export: bool,
}

/// Which classes of pools BIRD programs into the kernel (`programClusterRoutes`); felix does the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterRoutes {
    pub ipip: bool,
    pub unencapsulated: bool,
}

impl ClusterRoutes {
    /// Unknown values mean the default, as upstream.
    pub fn parse(text: &str) -> ClusterRoutes {
        let (ipip, unencapsulated) = match text {
            "Disabled" => (false, false),
            "EnabledIPIPOnly" => (true, false),
            "Enabled" => (true, true),
            _ => (false, true),
        };
        ClusterRoutes { ipip, unencapsulated }
    }

    /// Whether BIRD writes the routes of this pool.
    pub fn owns(self, encapsulation: Encapsulation) -> bool {
        match encapsulation {
            Encapsulation::None => self.unencapsulated,
            Encapsulation::Ipip { .. } => self.ipip,
            Encapsulation::Vxlan => false,
        }
    }
}

/// The pools of a family, in the order of their text. Disabled pools count: their addresses are in use
/// until the last workload is gone.
pub(super) fn pools(all: &BTreeMap<IpNet, values::IpPool>, family: Family) -> Vec<Pool> {
    let mut pools: Vec<Pool> = all
        .iter()
        .filter(|(cidr, _)| Family::of_net(**cidr) == family)
        .map(|(cidr, pool)| Pool {
            cidr: cidr.trunc(),
            encapsulation: encapsulation(pool),
            export: !pool.disable_bgp_export,
        })
        .collect();
    pools.sort_by_cached_key(|pool| pool.cidr.to_string());
    pools
}

fn encapsulation(pool: &values::IpPool) -> Encapsulation {
    let mode = |text: &str| text.to_ascii_lowercase().replace('-', "");
    match (mode(&pool.vxlan_mode).as_str(), mode(&pool.ipip_mode).as_str()) {
        ("always" | "crosssubnet", _) => Encapsulation::Vxlan,
        (_, "always") => Encapsulation::Ipip { cross_subnet: false },
        (_, "crosssubnet") => Encapsulation::Ipip { cross_subnet: true },
        _ => Encapsulation::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_owner_of_cluster_routes_means_the_default() {
        for text in ["", "EnabledNoEncapOnly", "Whatever"] {
            assert_eq!(ClusterRoutes::parse(text), ClusterRoutes { ipip: false, unencapsulated: true });
        }
        assert!(!ClusterRoutes::parse("Enabled").owns(Encapsulation::Vxlan));
        assert!(!ClusterRoutes::parse("EnabledIPIPOnly").owns(Encapsulation::None));
        assert!(ClusterRoutes::parse("EnabledIPIPOnly").owns(Encapsulation::Ipip { cross_subnet: true }));
    }

    #[test]
    fn vxlan_wins_over_ipip_and_cross_subnet_is_read_in_both_spellings() {
        let pool = |ipip: &str, vxlan: &str| {
            encapsulation(&values::IpPool {
                ipip_mode: ipip.into(),
                vxlan_mode: vxlan.into(),
                ..Default::default()
            })
        };
        assert_eq!(pool("always", "always"), Encapsulation::Vxlan);
        assert_eq!(pool("cross-subnet", ""), Encapsulation::Ipip { cross_subnet: true });
        assert_eq!(pool("CrossSubnet", "Never"), Encapsulation::Ipip { cross_subnet: true });
        assert_eq!(pool("Never", "Never"), Encapsulation::None);
    }
}
