//! What this node originates: its blocks, the service ranges, and the communities of what it announces.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use syncer_common::model::values;

use super::peers::NodeView;
use super::services::{Ranges, Services};
use super::{Family, LocalSettings, Problem, by_store_name};

const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// A block of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub cidr: IpNet,
    /// The block is announced and covers the addresses inside it. Not while it is being given back:
    /// then only the blackhole remains.
    pub aggregated: bool,
}

impl Block {
    /// A block of one address is routed to its workload; a blackhole would shadow it.
    pub fn has_blackhole(&self) -> bool {
        self.cidr.prefix_len() < Family::of_net(self.cidr).bits()
    }
}

/// The blocks of a node: confirmed ones, and those being given back. A pending one is not ours yet.
pub(super) fn blocks(own: Option<&BTreeMap<IpNet, values::BlockAffinity>>, family: Family) -> Vec<Block> {
    let mut blocks: Vec<Block> = own
        .into_iter()
        .flatten()
        .filter(|(cidr, affinity)| Family::of_net(**cidr) == family && !affinity.deleted)
        .filter_map(|(cidr, affinity)| match affinity.state.as_str() {
            "" | "confirmed" => Some(Block { cidr: cidr.trunc(), aggregated: true }),
            "pendingDeletion" => Some(Block { cidr: cidr.trunc(), aggregated: false }),
            _ => None,
        })
        .collect();
    blocks.sort_by_cached_key(|block| by_store_name(&block.cidr));
    blocks
}

#[derive(Debug, Default)]
pub(super) struct ServiceRoutes {
    pub statics: Vec<IpNet>,
    pub kernel_rejects: Vec<IpNet>,
    pub reflected: Vec<IpNet>,
}

/// The ranges of both families. A range of one address is announced per Service, not as a range.
pub(super) fn service_ranges(
    local: &LocalSettings,
    default: &values::BgpConfiguration,
    problems: &mut Vec<Problem>,
) -> Ranges {
    let mut parse = |ranges: &[String], field: &str| -> Vec<IpNet> {
        let mut nets = Vec::new();
        for text in ranges {
            match text.parse::<IpNet>() {
                Ok(net) => nets.push(net.trunc()),
                Err(_) => problems.push(Problem::new(
                    "BGPConfiguration(default)",
                    field,
                    format!("{text:?} is not a CIDR: left out"),
                )),
            }
        }
        nets
    };
    Ranges {
        cluster: match &local.advertise_cluster_ips {
            Some(ranges) => parse(ranges, "CALICO_ADVERTISE_CLUSTER_IPS"),
            None => parse(&default.service_cluster_ips, "spec.serviceClusterIPs"),
        },
        external: parse(&default.service_external_ips, "spec.serviceExternalIPs"),
        load_balancer: parse(&default.service_load_balancer_ips, "spec.serviceLoadBalancerIPs"),
        aggregated: default.service_load_balancer_aggregation != "Disabled",
    }
}

/// What a node announces for Services, and what it keeps out of its kernel.
pub(super) fn service_routes(
    family: Family,
    ranges: &Ranges,
    services: &Services,
    local: &LocalSettings,
    me: &NodeView<'_>,
) -> ServiceRoutes {
    let of_family = |net: &&IpNet| Family::of_net(**net) == family;
    let many = |net: &&IpNet| net.prefix_len() < family.bits();
    let external = ranges.external.iter().filter(of_family);
    let load_balancer = ranges.load_balancer.iter().filter(of_family);
    let mut whole: BTreeSet<IpNet> = ranges.cluster.iter().filter(of_family).copied().collect();
    whole.extend(external.clone().filter(many));
    if ranges.aggregated {
        whole.extend(load_balancer.clone().filter(many));
    }
    let excluded =
        me.labels.and_then(|labels| labels.get(EXCLUDE_LABEL)).is_some_and(|value| value == "true");
    let mut statics = BTreeSet::new();
    if !excluded {
        statics.clone_from(&whole);
        let node = local.kubernetes_node.as_deref().unwrap_or(&local.node);
        statics.extend(services.host_routes(ranges, node, family));
    }
    let sorted = |nets: BTreeSet<IpNet>| {
        let mut nets: Vec<IpNet> = nets.into_iter().collect();
        nets.sort_by_cached_key(by_store_name);
        nets
    };
    ServiceRoutes {
        statics: sorted(statics),
        kernel_rejects: sorted(whole),
        reflected: match me.cluster_id {
            Some(_) => load_balancer.chain(external).copied().collect(),
            None => Vec::new(),
        },
    }
}

/// A community value, standard or large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Community {
    Standard(u16, u16),
    Large(u32, u32, u32),
}

impl Community {
    pub(super) fn parse(text: &str) -> Option<Community> {
        let mut parts = text.split(':');
        let (first, second, third) = (parts.next()?, parts.next()?, parts.next());
        if parts.next().is_some() {
            return None;
        }
        match third {
            None => Some(Community::Standard(first.parse().ok()?, second.parse().ok()?)),
            Some(third) => {
                Some(Community::Large(first.parse().ok()?, second.parse().ok()?, third.parse().ok()?))
            }
        }
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Community::Standard(a, b) => write!(f, "{a}:{b}"),
            Community::Large(a, b, c) => write!(f, "{a}:{b}:{c}"),
        }
    }
}

/// The communities that routes inside a prefix are announced with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertisement {
    pub cidr: IpNet,
    pub communities: Vec<Community>,
}

/// The advertisements of a family. A list on the node's own BGPConfiguration replaces the global one.
pub(super) fn advertisements(
    family: Family,
    node: &str,
    default: &values::BgpConfiguration,
    own: Option<&values::BgpConfiguration>,
    problems: &mut Vec<Problem>,
) -> Vec<Advertisement> {
    let (configuration, object) = match own {
        Some(own) if !own.prefix_advertisements.is_empty() => (own, format!("BGPConfiguration(node.{node})")),
        _ => (default, "BGPConfiguration(default)".to_owned()),
    };
    let mut result = Vec::new();
    for advertisement in &configuration.prefix_advertisements {
        let cidr = match advertisement.cidr.parse::<IpNet>() {
            Ok(cidr) if Family::of_net(cidr) == family => cidr.trunc(),
            Ok(_) => continue,
            Err(_) => {
                if family == Family::V4 {
                    problems.push(Problem::new(
                        object.clone(),
                        "spec.prefixAdvertisements.cidr",
                        format!("{:?} is not a CIDR: left out", advertisement.cidr),
                    ));
                }
                continue;
            }
        };
        let mut values = BTreeMap::new();
        for text in &advertisement.communities {
            let named = configuration.communities.iter().find(|community| community.name == *text);
            let value = named.map_or(text.as_str(), |community| community.value.as_str());
            match Community::parse(value) {
                Some(community) => {
                    values.insert(value.to_owned(), community);
                }
                None => problems.push(Problem::new(
                    object.clone(),
                    "spec.prefixAdvertisements.communities",
                    format!("{text:?} is neither a community nor the name of one: left out"),
                )),
            }
        }
        result.push(Advertisement { cidr, communities: values.into_values().collect() });
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn communities_are_standard_or_large_and_nothing_else() {
        assert_eq!(Community::parse("100:6532"), Some(Community::Standard(100, 6532)));
        assert_eq!(Community::parse("70000:5:4"), Some(Community::Large(70000, 5, 4)));
        for bad in ["", "5", "70000:1", "1:2:3:4", "a:b", "1:-2"] {
            assert_eq!(Community::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_pending_block_is_absent_and_one_given_back_keeps_its_blackhole() {
        let mut own = BTreeMap::new();
        for (cidr, state) in [
            ("10.1.0.64/26", "confirmed"),
            ("10.1.0.192/26", ""),
            ("10.1.0.0/26", "pending"),
            ("10.1.1.0/26", "pendingDeletion"),
            ("10.1.2.1/32", "confirmed"),
        ] {
            own.insert(cidr.parse().unwrap(), values::BlockAffinity { state: state.into(), deleted: false });
        }
        let found: Vec<(String, bool, bool)> = blocks(Some(&own), Family::V4)
            .iter()
            .map(|block| (block.cidr.to_string(), block.aggregated, block.has_blackhole()))
            .collect();
        assert_eq!(
            found,
            [
                ("10.1.0.192/26".to_owned(), true, true),
                ("10.1.0.64/26".to_owned(), true, true),
                ("10.1.1.0/26".to_owned(), false, true),
                ("10.1.2.1/32".to_owned(), true, false),
            ]
        );
        assert!(blocks(Some(&own), Family::V6).is_empty());
    }
}
