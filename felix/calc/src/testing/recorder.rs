//! A stand-in for the dataplane that takes nothing on trust: outputs out of order, changes that change
//! nothing, references to what is not there and removals of what is still used all panic.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use syncer_common::model::{HostEndpointKey, PolicyKey, WorkloadEndpointKey, values};

use crate::output::{
    ActivePolicy, ActiveProfile, Encapsulation, Family, Hop, Host, HostEndpoint, IpSetKind, Output, OwnNode,
    PolicyRef, QosLimits, Route, Rule, Tier, Vtep, WorkloadEndpoint,
};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recorder {
    pub config: Option<BTreeMap<String, String>>,
    pub sets: BTreeMap<String, (IpSetKind, BTreeSet<String>)>,
    pub policies: BTreeMap<PolicyKey, ActivePolicy>,
    pub profiles: BTreeMap<String, ActiveProfile>,
    pub workloads: BTreeMap<WorkloadEndpointKey, WorkloadEndpoint>,
    pub host_endpoints: BTreeMap<HostEndpointKey, HostEndpoint>,
    pub hosts: BTreeMap<String, Host>,
    pub pools: BTreeMap<IpNet, values::IpPool>,
    pub service_cidrs: BTreeSet<IpNet>,
    pub own: OwnNode,
    pub vteps: BTreeMap<(String, Family), Vtep>,
    pub routes: BTreeMap<IpNet, Route>,
}

impl Recorder {
    /// Takes the outputs of one flush.
    pub fn apply(&mut self, outputs: Vec<Output>) {
        assert!(outputs.is_sorted_by_key(rank), "outputs out of order: {outputs:#?}");
        for output in outputs {
            self.apply_one(output);
        }
        for (dst, route) in &self.routes {
            if let (Encapsulation::Vxlan, Hop::Tunnel(end)) = (route.encapsulation, route.hop) {
                assert!(self.vteps.values().any(|vtep| vtep.tunnel_ip == end), "{dst}: nobody has {end}");
            }
        }
    }

    fn apply_one(&mut self, output: Output) {
        match output {
            Output::Config(config) => {
                assert_ne!(self.config.replace(config.clone()), Some(config), "config did not change");
            }
            Output::IpSetUpdate { id, kind, members } => {
                assert!(!self.sets.contains_key(&id), "set {id} exists");
                self.sets.insert(id, (kind, members));
            }
            Output::IpSetDelta { id, added, removed } => {
                let (_, members) =
                    self.sets.get_mut(&id).unwrap_or_else(|| panic!("delta of unknown set {id}"));
                assert!(!added.is_empty() || !removed.is_empty(), "empty delta of set {id}");
                for member in removed {
                    assert!(members.remove(&member), "{member} was not in set {id}");
                }
                for member in added {
                    assert!(members.insert(member.clone()), "{member} is already in set {id}");
                }
            }
            Output::IpSetRemove { id } => {
                assert!(!self.referred_sets().contains(&id), "set {id} is still in use");
                assert!(self.sets.remove(&id).is_some(), "removal of unknown set {id}");
            }
            Output::PolicyUpdate { key, policy } => {
                self.check_sets(policy.inbound.iter().chain(policy.outbound.iter()));
                changed(&mut self.policies, key, policy);
            }
            Output::ProfileUpdate { name, profile } => {
                self.check_sets(profile.inbound.iter().chain(profile.outbound.iter()));
                changed(&mut self.profiles, name, profile);
            }
            Output::WorkloadEndpointUpdate { key, endpoint } => {
                self.check_endpoint(&endpoint.tiers, &endpoint.profile_ids);
                changed(&mut self.workloads, key, endpoint);
            }
            Output::HostEndpointUpdate { key, endpoint } => {
                self.check_endpoint(&all_tiers(&endpoint), &endpoint.profile_ids);
                changed(&mut self.host_endpoints, key, endpoint);
            }
            Output::WorkloadEndpointRemove { key } => removed(&mut self.workloads, key),
            Output::HostEndpointRemove { key } => removed(&mut self.host_endpoints, key),
            Output::ProfileRemove { name } => {
                let used = self.workloads.values().flat_map(|endpoint| &endpoint.profile_ids);
                let used =
                    used.chain(self.host_endpoints.values().flat_map(|endpoint| &endpoint.profile_ids));
                assert!(!used.into_iter().any(|used| *used == name), "profile {name} is still in use");
                removed(&mut self.profiles, name);
            }
            Output::PolicyRemove { key } => {
                let used = self.workloads.values().flat_map(|endpoint| endpoint.tiers.clone());
                let used = used.chain(self.host_endpoints.values().flat_map(all_tiers));
                let mut used = used.flat_map(|tier| references(&tier));
                assert!(!used.any(|used| used.key == key), "{key} is still in use");
                removed(&mut self.policies, key);
            }
            Output::HostUpdate { node, host } => changed(&mut self.hosts, node, host),
            Output::HostRemove { node } => removed(&mut self.hosts, node),
            Output::PoolUpdate { cidr, pool } => changed(&mut self.pools, cidr, pool),
            Output::PoolRemove { cidr } => removed(&mut self.pools, cidr),
            Output::ServiceCidrs(cidrs) => {
                assert_ne!(self.service_cidrs, cidrs, "service ranges did not change");
                self.service_cidrs = cidrs;
            }
            Output::OwnNode(own) => {
                assert_ne!(std::mem::replace(&mut self.own, own.clone()), own, "this node did not change");
            }
            Output::RouteRemove { dst } => removed(&mut self.routes, dst),
            Output::VtepRemove { node, family } => removed(&mut self.vteps, (node, family)),
            Output::VtepUpdate { node, family, vtep } => changed(&mut self.vteps, (node, family), vtep),
            Output::RouteUpdate { dst, route } => changed(&mut self.routes, dst, route),
        }
    }

    /// Everything in short lines, for expectations: sets with members, policies and profiles with their
    /// actions and sets, endpoints with what applies to them, and the rest.
    pub fn lines(&self) -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        for (name, value) in self.config.iter().flatten() {
            lines.insert(format!("config {name}={value}"));
        }
        for (id, (_, members)) in &self.sets {
            lines.insert(line(&format!("set {id}"), members));
        }
        for (key, policy) in &self.policies {
            let PolicyKey { kind, namespace, name } = key;
            let name = if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") };
            let kind = if kind == "GlobalNetworkPolicy" { "policy" } else { kind };
            lines.insert(format!("{kind} {name}{}", rules_text(&policy.inbound, &policy.outbound)));
        }
        for (name, profile) in &self.profiles {
            lines.insert(format!("profile {name}{}", rules_text(&profile.inbound, &profile.outbound)));
        }
        for (key, endpoint) in &self.workloads {
            let name = key.workload.strip_prefix("default/").unwrap_or(&key.workload);
            lines.insert(line(&format!("workload {name}"), &stage("", &endpoint.tiers)));
            for nat in &endpoint.nats {
                lines.insert(format!("floating {} for {} of {name}", nat.external, nat.internal));
            }
            for (direction, limits) in [("in", endpoint.ingress_limits), ("out", endpoint.egress_limits)] {
                if limits != QosLimits::default() {
                    let QosLimits { packet_rate, packet_burst, max_connections } = limits;
                    lines.insert(format!(
                        "limits {name} {direction} {packet_rate} {packet_burst} {max_connections}"
                    ));
                }
            }
            lines.extend(endpoint.dscp.map(|dscp| format!("dscp {name} {dscp}")));
        }
        for (key, endpoint) in &self.host_endpoints {
            let stages = [
                stage("", &endpoint.tiers),
                stage("untracked:", &endpoint.untracked_tiers),
                stage("prednat:", &endpoint.pre_dnat_tiers),
                stage("forward:", &endpoint.forward_tiers),
            ];
            lines.insert(line(&format!("host endpoint {}", key.endpoint), &stages.concat()));
            lines.extend(endpoint.dscp.map(|dscp| format!("dscp {} {dscp}", key.endpoint)));
        }
        for (node, host) in &self.hosts {
            lines.insert(line(&format!("host {node}"), &host.ipv4.map(|ip| ip.to_string())));
        }
        lines.extend(self.pools.keys().map(|cidr| format!("pool {cidr}")));
        lines.extend(self.service_cidrs.iter().map(|cidr| format!("services {cidr}")));
        for vtep in [self.own.vxlan_v4, self.own.vxlan_v6].into_iter().flatten() {
            lines.insert(format!("own vtep {} {}", vtep.node_ip, vtep.tunnel_ip));
        }
        for ((node, _), vtep) in &self.vteps {
            lines.insert(format!("vtep {node} {} {}", vtep.node_ip, vtep.tunnel_ip));
        }
        for (dst, Route { encapsulation, hop }) in &self.routes {
            let encapsulation = match encapsulation {
                Encapsulation::None => "plain",
                Encapsulation::Vxlan => "vxlan",
                Encapsulation::IpIp => "ipip",
            };
            lines.insert(match hop {
                Hop::Blackhole => format!("route {dst} {encapsulation} blackhole"),
                Hop::Node(via) => format!("route {dst} {encapsulation} node {via}"),
                Hop::Tunnel(via) => format!("route {dst} {encapsulation} tunnel {via}"),
            });
        }
        lines
    }

    fn referred_sets(&self) -> BTreeSet<String> {
        let policies =
            self.policies.values().flat_map(|policy| policy.inbound.iter().chain(policy.outbound.iter()));
        let profiles =
            self.profiles.values().flat_map(|profile| profile.inbound.iter().chain(profile.outbound.iter()));
        policies.chain(profiles).flat_map(set_ids).map(|(_, id)| id.clone()).collect()
    }

    fn check_sets<'a>(&self, rules: impl Iterator<Item = &'a Rule>) {
        for (_, id) in rules.flat_map(set_ids) {
            assert!(self.sets.contains_key(id), "rule refers to unknown set {id}");
        }
    }

    fn check_endpoint(&self, tiers: &[Tier], profiles: &[String]) {
        for reference in tiers.iter().flat_map(references) {
            let policy = self.policies.get(&reference.key);
            let policy = policy.unwrap_or_else(|| panic!("endpoint refers to unknown {}", reference.key));
            assert_eq!(policy.original_selector, reference.original_selector);
        }
        for name in profiles {
            assert!(self.profiles.contains_key(name), "endpoint refers to unknown profile {name}");
        }
    }
}

/// Place in the order of outputs.
fn rank(output: &Output) -> usize {
    match output {
        Output::Config(_) => 0,
        Output::IpSetUpdate { .. } => 1,
        Output::IpSetDelta { .. } => 2,
        Output::PolicyUpdate { .. } => 3,
        Output::ProfileUpdate { .. } => 4,
        Output::WorkloadEndpointUpdate { .. } | Output::HostEndpointUpdate { .. } => 5,
        Output::WorkloadEndpointRemove { .. } | Output::HostEndpointRemove { .. } => 6,
        Output::ProfileRemove { .. } => 7,
        Output::PolicyRemove { .. } => 8,
        Output::IpSetRemove { .. } => 9,
        Output::HostUpdate { .. } | Output::HostRemove { .. } => 10,
        Output::PoolUpdate { .. } | Output::PoolRemove { .. } => 11,
        Output::ServiceCidrs(_) | Output::OwnNode(_) => 12,
        Output::RouteRemove { .. } => 13,
        Output::VtepRemove { .. } => 14,
        Output::VtepUpdate { .. } => 15,
        Output::RouteUpdate { .. } => 16,
    }
}

fn changed<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    map: &mut BTreeMap<K, V>,
    key: K,
    value: V,
) {
    assert!(map.get(&key) != Some(&value), "update of {key:?} changes nothing");
    map.insert(key, value);
}

fn removed<K: Ord + std::fmt::Debug, V>(map: &mut BTreeMap<K, V>, key: K) {
    assert!(map.remove(&key).is_some(), "removal of unknown {key:?}");
}

fn all_tiers(endpoint: &HostEndpoint) -> Vec<Tier> {
    let stages =
        [&endpoint.tiers, &endpoint.untracked_tiers, &endpoint.pre_dnat_tiers, &endpoint.forward_tiers];
    stages.into_iter().flatten().cloned().collect()
}

fn references(tier: &Tier) -> Vec<PolicyRef> {
    tier.ingress.iter().chain(&tier.egress).cloned().collect()
}

fn set_ids(rule: &Rule) -> Vec<(&'static str, &String)> {
    let lists = [
        ("src", &rule.src_ip_set_ids),
        ("src-port", &rule.src_named_port_ip_set_ids),
        ("dst", &rule.dst_ip_set_ids),
        ("dst-port", &rule.dst_named_port_ip_set_ids),
        ("dst-service", &rule.dst_ip_port_set_ids),
        ("!src", &rule.not_src_ip_set_ids),
        ("!src-port", &rule.not_src_named_port_ip_set_ids),
        ("!dst", &rule.not_dst_ip_set_ids),
        ("!dst-port", &rule.not_dst_named_port_ip_set_ids),
    ];
    lists.into_iter().flat_map(|(name, ids)| ids.iter().map(move |id| (name, id))).collect()
}

fn rules_text(inbound: &[Rule], outbound: &[Rule]) -> String {
    let text = |direction: &str, rules: &[Rule]| -> String {
        let rule = |rule: &Rule| {
            let sets: String = set_ids(rule).iter().map(|(name, id)| format!(" {name}={id}")).collect();
            format!(" {direction}({}{sets})", rule.action)
        };
        rules.iter().map(rule).collect()
    };
    text("in", inbound) + &text("out", outbound)
}

/// `tier(in: a b; out: a)`, with `+pass` behind the name of a tier that passes at its end.
fn stage(prefix: &str, tiers: &[Tier]) -> Vec<String> {
    let names = |policies: &[PolicyRef]| -> String {
        policies.iter().map(|policy| format!(" {}", policy.key.name)).collect()
    };
    let text = |tier: &Tier| {
        let pass = if tier.default_action == "Pass" { "+pass" } else { "" };
        format!("{prefix}{}{pass}(in:{}; out:{})", tier.name, names(&tier.ingress), names(&tier.egress))
    };
    tiers.iter().map(text).collect()
}

fn line<'a>(head: &str, words: impl IntoIterator<Item = &'a String>) -> String {
    words.into_iter().fold(head.to_owned(), |line, word| line + " " + word)
}
