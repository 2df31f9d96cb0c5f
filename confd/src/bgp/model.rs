//! The objects of the stream, and the derivation of one node's configuration from them.
//!
//! Updates may come in any order and more than once; only the latest value of a key counts. A value of a
//! kind that does not belong to its key is ignored: typha never sends one, and it must not end the agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use syncer_common::model::{Key, Update, Value, values};

use super::expansion::Expansion;
use super::filters::Filter;
use super::parsed::References;
use super::peers::{NodeView, can_be_peer};
use super::services::{Ranges, Services};
use super::{
    BgpModel, ClusterRoutes, Family, FamilyModel, LocalSettings, LogLevel, Problem, RouterId, Secrets,
    WorkloadPeer, aggregates, pools,
};

const DEFAULT_AS: u32 = 64512;
const DEFAULT_ROUTE_PRIORITY: u32 = 1024;
/// Local preferences are `i32::MAX - metric`; a metric beyond it has none.
pub(super) const MAX_ROUTE_PRIORITY: u32 = 2_147_483_646;

/// Everything that confd knows of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub(super) nodes: BTreeMap<String, values::Node>,
    pub(super) pools: BTreeMap<IpNet, values::IpPool>,
    /// Affinities by node, so that a thousand nodes' blocks cost nothing to the one that renders.
    pub(super) affinities: BTreeMap<String, BTreeMap<IpNet, values::BlockAffinity>>,
    pub(super) configurations: BTreeMap<String, values::BgpConfiguration>,
    pub(super) peers: BTreeMap<String, values::BgpPeer>,
    filters: BTreeMap<String, values::BgpFilter>,
    wireguard: BTreeMap<String, values::Wireguard>,
    services: Services,
    secrets: Secrets,
    pub(super) workloads: Vec<WorkloadPeer>,
}

impl Model {
    /// Takes one change in; `true` when anything that is kept changed.
    pub fn on_update(&mut self, update: Update) -> bool {
        match update.key {
            Key::IpPool { cidr } => match update.value {
                Ok(Value::IpPool(pool)) => set(&mut self.pools, cidr, pool),
                Ok(_) => false,
                Err(_) => self.pools.remove(&cidr).is_some(),
            },
            // A virtual affinity (load balancer addresses) belongs to no node.
            Key::BlockAffinity(key) if key.affinity_type == "host" => match update.value {
                Ok(Value::BlockAffinity(affinity)) => {
                    set(self.affinities.entry(key.host).or_default(), key.cidr, affinity)
                }
                Ok(_) => false,
                Err(_) => {
                    let Some(blocks) = self.affinities.get_mut(&key.host) else { return false };
                    let removed = blocks.remove(&key.cidr).is_some();
                    if blocks.is_empty() {
                        self.affinities.remove(&key.host);
                    }
                    removed
                }
            },
            Key::Wireguard { node } => match update.value {
                Ok(Value::Wireguard(wireguard)) => set(&mut self.wireguard, node, wireguard),
                Ok(_) => false,
                Err(_) => self.wireguard.remove(&node).is_some(),
            },
            Key::Resource(key) => match (key.kind.as_str(), update.value) {
                ("Node", Ok(Value::Node(node))) => set(&mut self.nodes, key.name, node),
                ("Node", Err(_)) => self.nodes.remove(&key.name).is_some(),
                ("BGPConfiguration", Ok(Value::BgpConfiguration(configuration))) => {
                    set(&mut self.configurations, key.name, configuration)
                }
                ("BGPConfiguration", Err(_)) => self.configurations.remove(&key.name).is_some(),
                ("BGPPeer", Ok(Value::BgpPeer(peer))) => set(&mut self.peers, key.name, peer),
                ("BGPPeer", Err(_)) => self.peers.remove(&key.name).is_some(),
                ("BGPFilter", Ok(Value::BgpFilter(filter))) => set(&mut self.filters, key.name, filter),
                ("BGPFilter", Err(_)) => self.filters.remove(&key.name).is_some(),
                ("KubernetesService", Ok(Value::Service(service))) => {
                    set(&mut self.services.services, (key.namespace, key.name), service)
                }
                ("KubernetesService", Err(_)) => {
                    self.services.services.remove(&(key.namespace, key.name)).is_some()
                }
                ("KubernetesEndpointSlice", Ok(Value::EndpointSlice(slice))) => {
                    set(&mut self.services.slices, (key.namespace, key.name), slice)
                }
                ("KubernetesEndpointSlice", Err(_)) => {
                    self.services.slices.remove(&(key.namespace, key.name)).is_some()
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// Passwords that are at hand; `true` when they are others than before.
    pub fn set_secrets(&mut self, secrets: Secrets) -> bool {
        let changed = self.secrets != secrets;
        self.secrets = secrets;
        changed
    }

    /// Workloads of this node that peer; `true` when they are others than before.
    pub fn set_workloads(&mut self, mut workloads: Vec<WorkloadPeer>) -> bool {
        workloads.sort();
        let changed = self.workloads != workloads;
        self.workloads = workloads;
        changed
    }

    /// The configuration of one node.
    pub fn compute(&self, local: &LocalSettings) -> BgpModel {
        let mut problems = Vec::new();
        let empty = values::BgpConfiguration::default();
        let default = self.configurations.get("default").unwrap_or(&empty);
        let own = self.configurations.get(&format!("node.{}", local.node));
        let default_as = default.as_number.filter(|number| *number > 0).unwrap_or(DEFAULT_AS);

        if !self.nodes.contains_key(&local.node) {
            problems.push(Problem::new(
                format!("Node({})", local.node),
                "metadata.name",
                "no such node: it gets no address and no peers until it is created",
            ));
        }
        let mut views = BTreeMap::new();
        for (name, node) in &self.nodes {
            let view = self.view(name, node, default_as, default.listen_port, &mut problems);
            views.insert(name.as_str(), view);
        }
        let nobody = NodeView::nameless(&local.node, default_as);
        let me = views.get(local.node.as_str()).unwrap_or(&nobody);

        let bind_node_address = match default.bind_mode.as_str() {
            "NodeIP" => true,
            "" | "None" => false,
            other => {
                problems.push(Problem::new(
                    "BGPConfiguration(default)",
                    "spec.bindMode",
                    format!("{other:?} is neither None nor NodeIP: treated as None"),
                ));
                false
            }
        };
        let severity = local
            .log_severity
            .as_deref()
            .or(own.map(|own| own.log_severity_screen.as_str()).filter(|level| !level.is_empty()))
            .unwrap_or(&default.log_severity_screen);
        let ignored_interfaces = default
            .ignored_interfaces
            .iter()
            .filter(|pattern| {
                let plain = !pattern.is_empty()
                    && pattern.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '#' | ';'));
                if !plain {
                    problems.push(Problem::new(
                        "BGPConfiguration(default)",
                        "spec.ignoredInterfaces",
                        format!("{pattern:?} is not an interface name or pattern: left out"),
                    ));
                }
                plain
            })
            .cloned()
            .collect();

        let mut filters = BTreeMap::new();
        for (name, given) in &self.filters {
            match Filter::parse(name, given) {
                Ok(filter) => {
                    filters.insert(name.clone(), filter);
                }
                Err(problem) => problems.push(problem),
            }
        }
        let references =
            References { secrets: &self.secrets, filters: &filters, incomplete: local.incomplete_peers };
        let mut peers = Expansion {
            model: self,
            default,
            default_as,
            me,
            nodes: &views,
            references,
            problems: &mut problems,
        }
        .peers();
        peers.sort_by_cached_key(|peer| peer.name());
        let (peers_v4, peers_v6) = peers.into_iter().partition(|peer| peer.address.is_ipv4());

        let ranges = aggregates::service_ranges(local, default, &mut problems);
        let mut v4 = self.family(Family::V4, local, default, me, &ranges, &mut problems);
        v4.peers = peers_v4;
        let mut v6 = self.family(Family::V6, local, default, me, &ranges, &mut problems);
        v6.peers = peers_v6;

        let router_id = match (local.router_id, me.v4) {
            (RouterId::Fixed(id), _) => id,
            (RouterId::NodeAddress, Some(IpAddr::V4(address))) => address,
            _ => hashed_router_id(&local.node),
        };
        BgpModel {
            node: local.node.clone(),
            router_id,
            log_level: match severity.to_ascii_lowercase().as_str() {
                "" | "info" => LogLevel::Info,
                "debug" => LogLevel::Debug,
                _ => LogLevel::Quiet,
            },
            local_as: me.as_number,
            listen_port: me.listen_port,
            bind_node_address,
            cluster_id: me.cluster_id,
            ignored_interfaces,
            cluster_routes: ClusterRoutes::parse(&default.program_cluster_routes),
            filters,
            v4,
            v6,
            problems,
        }
    }

    fn family(
        &self,
        family: Family,
        local: &LocalSettings,
        default: &values::BgpConfiguration,
        me: &NodeView<'_>,
        ranges: &Ranges,
        problems: &mut Vec<Problem>,
    ) -> FamilyModel {
        let priority = match family {
            Family::V4 => default.ipv4_normal_route_priority,
            Family::V6 => default.ipv6_normal_route_priority,
        };
        let route_priority = match priority {
            Some(priority) if (1..=MAX_ROUTE_PRIORITY).contains(&priority) => priority,
            None => DEFAULT_ROUTE_PRIORITY,
            Some(priority) => {
                problems.push(Problem::new(
                    "BGPConfiguration(default)",
                    match family {
                        Family::V4 => "spec.ipv4NormalRoutePriority",
                        Family::V6 => "spec.ipv6NormalRoutePriority",
                    },
                    format!("{priority} is not in 1-{MAX_ROUTE_PRIORITY}: {DEFAULT_ROUTE_PRIORITY} is used"),
                ));
                DEFAULT_ROUTE_PRIORITY
            }
        };
        let own = self.configurations.get(&format!("node.{}", local.node));
        let routes = aggregates::service_routes(family, ranges, &self.services, local, me);
        FamilyModel {
            family,
            address: me.address(family),
            subnet: me.subnets[usize::from(family == Family::V6)],
            wireguard_next_hops: self.wireguard_next_hops(family, me.name),
            route_priority,
            blocks: aggregates::blocks(self.affinities.get(&local.node), family),
            statics: routes.statics,
            kernel_rejects: routes.kernel_rejects,
            reflected: routes.reflected,
            pools: pools::pools(&self.pools, family),
            advertisements: aggregates::advertisements(family, &local.node, default, own, problems),
            peers: Vec::new(),
        }
    }

    /// Nodes that this one has a WireGuard tunnel to.
    fn wireguard_next_hops(&self, family: Family, me: &str) -> Vec<IpAddr> {
        let has_tunnel = |node: &str| {
            self.wireguard.get(node).is_some_and(|wireguard| match family {
                Family::V4 => !wireguard.interface_ipv4_addr.is_empty(),
                Family::V6 => !wireguard.interface_ipv6_addr.is_empty(),
            })
        };
        if !has_tunnel(me) {
            return Vec::new();
        }
        let others = self.nodes.iter().filter(|(name, _)| *name != me && has_tunnel(name));
        others
            .filter_map(|(_, node)| {
                let bgp = node.bgp.as_ref()?;
                let text = match family {
                    Family::V4 => &bgp.ipv4_address,
                    Family::V6 => &bgp.ipv6_address,
                };
                text.split('/').next()?.parse().ok()
            })
            .collect()
    }

    fn view<'a>(
        &'a self,
        name: &'a str,
        node: &'a values::Node,
        default_as: u32,
        default_port: Option<u32>,
        problems: &mut Vec<Problem>,
    ) -> NodeView<'a> {
        let own = self.configurations.get(&format!("node.{name}"));
        let mut view = NodeView::nameless(name, default_as);
        view.labels = Some(&node.labels);
        view.listen_port = match own.and_then(|own| own.listen_port).or(default_port) {
            None => None,
            Some(port) => match u16::try_from(port) {
                Ok(port) if port > 0 => Some(port),
                _ => {
                    let of = if own.is_some_and(|own| own.listen_port.is_some()) {
                        format!("BGPConfiguration(node.{name})")
                    } else {
                        "BGPConfiguration(default)".to_owned()
                    };
                    let problem =
                        Problem::new(of, "spec.listenPort", format!("{port} is not a port: 179 is used"));
                    if !problems.contains(&problem) {
                        problems.push(problem);
                    }
                    None
                }
            },
        };
        let Some(bgp) = &node.bgp else { return view };
        view.as_number = bgp.as_number.filter(|number| *number > 0).unwrap_or(default_as);
        let mut address = |text: &str, field: &str, family: Family| -> Option<IpAddr> {
            if text.is_empty() {
                return None;
            }
            let bare = text.split_once('/').map_or(text, |(address, _)| address);
            match bare.parse::<IpAddr>() {
                Ok(address) if Family::of(address) == family && can_be_peer(address) => Some(address),
                _ => {
                    problems.push(Problem::new(
                        format!("Node({name})"),
                        field,
                        format!("{text:?} is not a usable address: the node has none of this family"),
                    ));
                    None
                }
            }
        };
        view.v4 = address(&bgp.ipv4_address, "spec.bgp.ipv4Address", Family::V4);
        view.v6 = address(&bgp.ipv6_address, "spec.bgp.ipv6Address", Family::V6);
        let subnet = |text: &str| text.contains('/').then(|| text.parse::<IpNet>().ok()).flatten();
        view.subnets =
            [subnet(&bgp.ipv4_address), subnet(&bgp.ipv6_address)].map(|net| net.map(|net| net.trunc()));
        if !bgp.route_reflector_cluster_id.is_empty() {
            match bgp.route_reflector_cluster_id.parse::<Ipv4Addr>() {
                Ok(id) => view.cluster_id = Some(id),
                Err(_) => problems.push(Problem::new(
                    format!("Node({name})"),
                    "spec.bgp.routeReflectorClusterID",
                    format!(
                        "{:?} is not written like an IPv4 address: the node is no reflector",
                        bgp.route_reflector_cluster_id
                    ),
                )),
            }
        }
        view
    }
}

fn set<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    if map.get(&key) == Some(&value) {
        return false;
    }
    map.insert(key, value);
    true
}

/// A router ID that two nodes hardly ever share: the name's hash, kept out of the multicast range.
fn hashed_router_id(node: &str) -> Ipv4Addr {
    let digest = Sha256::digest(node.as_bytes());
    let first = if digest[0] > 223 { digest[0] - 32 } else { digest[0] };
    Ipv4Addr::new(first, digest[1], digest[2], digest[3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_router_ids_are_those_of_calico() {
        assert_eq!(hashed_router_id("worker-1"), Ipv4Addr::new(19, 2, 159, 158));
        assert_eq!(hashed_router_id("n13"), Ipv4Addr::new(212, 245, 13, 237));
    }
}
