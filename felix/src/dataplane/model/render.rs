//! What was touched becomes chains, hooks, sets and workloads.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use felix_calc::mac;
use felix_calc::output::{HostEndpoint, IpSetKind, Nat, Vtep, WorkloadEndpoint};
use ipnet::IpNet;
use syncer_common::model::{HostEndpointKey, PolicyKey, WorkloadEndpointKey, values};

use super::{Dirty, FromEndpoints, HostInterface, Model, Sink, family};
use crate::ipsets::names as sets;
use crate::iptables::TableName;
use crate::iptables::chains::Owner;
use crate::iptables::plan::Hooks;
use crate::routetable::Workload;
use crate::rules::{ANY_INTERFACE, DscpRule, StaticInputs};

/// The orchestrator whose floating addresses need no switch.
const OPENSTACK: &str = "openstack";

impl Model {
    pub(super) fn flush_built_in_sets(&mut self, sink: &mut dyn Sink) {
        let config = self.renderer.config();
        let text = |net: &IpNet| net.to_string();
        let mut wanted: BTreeMap<&'static str, (IpSetKind, BTreeSet<String>)> = BTreeMap::new();
        let load_balancer_only = |pool: &values::IpPool| pool.allowed_uses == ["LoadBalancer"];
        let pools = self.pools.iter().filter(|(_, pool)| !load_balancer_only(pool));
        wanted.insert(sets::NETWORK_IP_POOLS, (IpSetKind::Net, pools.map(|(cidr, _)| text(cidr)).collect()));
        let masquerading = self.pools.iter().filter(|(_, pool)| pool.masquerade);
        wanted.insert(
            sets::MASQ_IP_POOLS,
            (IpSetKind::Net, masquerading.map(|(cidr, _)| text(cidr)).collect()),
        );
        let own = self.interfaces.iter().flat_map(|interface| &interface.addresses).map(IpAddr::to_string);
        wanted.insert(sets::THIS_HOST, (IpSetKind::Ip, own.collect()));
        let marked = self.from_endpoints.dscp.keys().map(text).collect();
        wanted.insert(sets::DSCP_SOURCES, (IpSetKind::Net, marked));
        let nodes = || {
            let addresses = self.hosts.values().flat_map(|host| {
                host.ipv4
                    .map(IpAddr::V4)
                    .into_iter()
                    .chain(host.ipv6.map(IpAddr::V6))
                    .map(|address| address.to_string())
            });
            (IpSetKind::Net, addresses.chain(self.params.external_nodes.iter().map(text)).collect())
        };
        if config.ipip_enabled || config.nat_outgoing_excludes_hosts {
            wanted.insert(sets::ALL_HOSTS, nodes());
        }
        if config.vxlan_enabled || config.vxlan_enabled_v6 {
            let ends = self.vteps.values().map(|vtep| vtep.node_ip.to_string());
            let members = ends.chain(self.params.external_nodes.iter().map(text)).collect();
            wanted.insert(sets::ALL_VXLAN, (IpSetKind::Net, members));
        }
        for (id, (kind, members)) in &wanted {
            if self.built_in.get(id) != Some(&(*kind, members.clone())) {
                sink.set_replace(id, *kind, members);
            }
        }
        for id in self.built_in.keys().filter(|id| !wanted.contains_key(*id)) {
            sink.set_remove(id);
        }
        self.built_in = wanted;
    }

    pub(super) fn flush_workloads(&mut self, dirty: &Dirty, sink: &mut dyn Sink) {
        if dirty.interfaces.is_empty() && !dirty.everything {
            return;
        }
        let mut by_interface: BTreeMap<&str, &WorkloadEndpointKey> = BTreeMap::new();
        for (key, endpoint) in &self.workloads {
            // The lowest id has the interface, the others wait.
            by_interface.entry(&endpoint.interface).or_insert(key);
        }
        let mut interfaces_changed = dirty.everything;
        let mut touched = dirty.workloads.clone();
        for interface in &dirty.interfaces {
            let key = by_interface.get(interface.as_str()).copied();
            let before = match key {
                Some(key) => self.owners.insert(interface.clone(), key.clone()),
                None => self.owners.remove(interface),
            };
            interfaces_changed |= before.is_some() != key.is_some();
            touched.extend(before.into_iter().chain(key.cloned()));
            let endpoint = key.and_then(|key| self.workloads.get(key));
            for &version in &self.versions {
                let mut chains = Vec::new();
                if let Some(endpoint) = endpoint {
                    chains = self.renderer.workload_chains(version, interface, endpoint);
                    chains.extend(self.renderer.group_chains(&endpoint.tiers));
                }
                sink.chains(version, TableName::Filter, Owner::Workload(interface.clone()), chains, false);
            }
        }
        for key in &touched {
            let endpoint = self.workloads.get(key);
            let has_interface =
                |endpoint: &&WorkloadEndpoint| self.owners.get(&endpoint.interface) == Some(key);
            let workload = endpoint.filter(has_interface).map(|endpoint| self.workload(key, endpoint));
            sink.workload(key, workload);
        }
        if interfaces_changed {
            let names: Vec<&String> = self.owners.keys().collect();
            for &version in &self.versions {
                let chains = self.renderer.workload_dispatch(version, &names);
                sink.chains(version, TableName::Filter, Owner::WorkloadDispatch, chains, false);
            }
        }
    }

    pub(super) fn read_endpoints(&self) -> FromEndpoints {
        let mut found = FromEndpoints::default();
        for (interface, key) in &self.owners {
            let Some(endpoint) = self.workloads.get(key) else { continue };
            let prefixes = self.spoofable(endpoint);
            if !prefixes.is_empty() {
                found.spoofable.insert(interface.clone(), prefixes.to_vec());
            }
            for nat in self.nats(key, endpoint) {
                // Two workloads with one floating address: the first interface has it.
                found.dnats.entry(nat.external.to_string()).or_insert_with(|| nat.internal.to_string());
                found.snats.entry(nat.internal.to_string()).or_insert_with(|| nat.external.to_string());
            }
            let nets = endpoint.ipv4_nets.iter().chain(&endpoint.ipv6_nets);
            found.dscp.extend(nets.filter_map(|net| Some((*net, endpoint.dscp?))));
        }
        for endpoint in self.host_endpoints.values() {
            let addresses = endpoint.expected_ips.iter().map(|address| IpNet::from(*address));
            found.dscp.extend(addresses.filter_map(|address| Some((address, endpoint.dscp?))));
        }
        found
    }

    /// Floating addresses that are to be translated: OpenStack's always, others' when configured.
    fn nats<'a>(
        &self,
        key: &WorkloadEndpointKey,
        endpoint: &'a WorkloadEndpoint,
    ) -> impl Iterator<Item = &'a Nat> + use<'a> {
        let wanted = self.renderer.config().floating_ips || key.orchestrator == OPENSTACK;
        endpoint.nats.iter().filter(move |_| wanted && endpoint.active)
    }

    fn workload(&self, key: &WorkloadEndpointKey, endpoint: &WorkloadEndpoint) -> Workload {
        // An endpoint that is administratively down keeps its chains, which drop, and has no routes.
        let mut nets: Vec<IpNet> = match endpoint.active {
            true => endpoint.ipv4_nets.iter().chain(&endpoint.ipv6_nets).copied().collect(),
            false => Vec::new(),
        };
        // Others learn from the route where the floating address is.
        nets.extend(self.nats(key, endpoint).map(|nat| IpNet::from(nat.external)));
        Workload {
            interface: endpoint.interface.clone(),
            nets,
            mac: mac::parse(&endpoint.mac),
            spoofing: !self.spoofable(endpoint).is_empty(),
        }
    }

    /// Sources beside its own that a workload may use.
    fn spoofable<'a>(&self, endpoint: &'a WorkloadEndpoint) -> &'a [IpNet] {
        if self.params.source_spoofing { &endpoint.allow_spoofed_source_prefixes } else { &[] }
    }

    pub(super) fn flush_host_endpoints(&mut self, sink: &mut dyn Sink) {
        let resolved = resolve_host_endpoints(&self.host_endpoints, &self.interfaces);
        let endpoints: Vec<(&str, &HostEndpoint)> = resolved
            .iter()
            .filter_map(|(interface, key)| Some((interface.as_str(), self.host_endpoints.get(key)?)))
            .collect();
        for &version in &self.versions {
            for table in [TableName::Filter, TableName::Mangle, TableName::Raw] {
                for (interface, endpoint) in &endpoints {
                    let mut chains = self.renderer.host_endpoint_chains(table, version, interface, endpoint);
                    let tiers = match table {
                        TableName::Raw => endpoint.untracked_tiers.clone(),
                        TableName::Mangle => [endpoint.pre_dnat_tiers.as_slice(), &endpoint.tiers].concat(),
                        _ => [endpoint.tiers.as_slice(), &endpoint.forward_tiers].concat(),
                    };
                    chains.extend(self.renderer.group_chains(&tiers));
                    sink.chains(version, table, Owner::HostEndpoint((*interface).to_owned()), chains, false);
                }
                for gone in self.host_owners.keys().filter(|name| !resolved.contains_key(*name)) {
                    sink.chains(version, table, Owner::HostEndpoint(gone.clone()), Vec::new(), false);
                }
                let chains = self.renderer.host_dispatch(table, version, &endpoints);
                sink.chains(version, table, Owner::HostDispatch, chains, false);
            }
        }
        self.host_owners = resolved;
    }

    pub(super) fn flush_policies(&self, keys: &BTreeSet<PolicyKey>, sink: &mut dyn Sink) {
        for key in keys {
            let policy = self.policies.get(key);
            for &version in &self.versions {
                for table in [TableName::Filter, TableName::Mangle, TableName::Raw] {
                    let chains = match policy {
                        Some(policy) if table == TableName::Filter || !self.host_owners.is_empty() => {
                            self.renderer.policy_chains_in(table, key, policy, version)
                        }
                        _ => Vec::new(),
                    };
                    let always =
                        table == TableName::Filter && policy.is_some_and(|policy| policy.always_needed);
                    sink.chains(version, table, Owner::Policy(key.clone()), chains, always);
                }
            }
        }
    }

    pub(super) fn flush_profiles(&self, names: &BTreeSet<String>, sink: &mut dyn Sink) {
        for name in names {
            let profile = self.profiles.get(name);
            for &version in &self.versions {
                for table in [TableName::Filter, TableName::Mangle] {
                    let chains = match profile {
                        Some(profile) if table == TableName::Filter || !self.host_owners.is_empty() => {
                            self.renderer.profile_chains_in(table, name, profile, version).into()
                        }
                        _ => Vec::new(),
                    };
                    sink.chains(version, table, Owner::Profile(name.clone()), chains, false);
                }
            }
        }
    }

    pub(super) fn flush_frame(&self, sink: &mut dyn Sink) {
        for &version in &self.versions {
            let masquerades =
                |(cidr, pool): (&IpNet, &values::IpPool)| family(cidr) == version && pool.masquerade;
            let tunnel = |vtep: &Option<Vtep>| vtep.map(|vtep| vtep.tunnel_ip.to_string());
            let inputs = StaticInputs {
                ipip_tunnel_address: self.own.ipip.map(|ip| ip.to_string()),
                vxlan_tunnel_address: tunnel(&self.own.vxlan_v4),
                vxlan_tunnel_address_v6: tunnel(&self.own.vxlan_v6),
                nat_outgoing: self.pools.iter().any(masquerades),
                spoofable: self.from_endpoints.spoofable.clone(),
                service_cidrs: self.service_cidrs.iter().map(IpNet::to_string).collect(),
                dnats: self.from_endpoints.dnats.clone(),
                snats: self.from_endpoints.snats.clone(),
                dscp: self.from_endpoints.dscp.iter().map(dscp_rule).collect(),
            };
            for table in TableName::ALL {
                let chains = self.renderer.static_chains(table, version, &inputs);
                sink.chains(version, table, Owner::Static, chains, false);
                let mut hooks: BTreeMap<String, Hooks> = BTreeMap::new();
                for hook in self.renderer.hooks(table, version) {
                    let hooks = hooks.entry(hook.chain).or_default();
                    if hook.append_always {
                        hooks.last.push(hook.rule)
                    } else {
                        hooks.movable.push(hook.rule)
                    }
                }
                sink.hooks(version, table, self.params.insert_mode, hooks);
            }
        }
    }
}

/// Interface by interface: an explicit name beats expected addresses, the lowest id breaks ties.
pub(super) fn resolve_host_endpoints(
    endpoints: &BTreeMap<HostEndpointKey, HostEndpoint>,
    interfaces: &[HostInterface],
) -> BTreeMap<String, HostEndpointKey> {
    let mut resolved = BTreeMap::new();
    if let Some((key, _)) = endpoints.iter().find(|(_, endpoint)| endpoint.name == "*") {
        resolved.insert(ANY_INTERFACE.to_owned(), key.clone());
    }
    for interface in interfaces {
        let named = endpoints.iter().find(|(_, endpoint)| endpoint.name == interface.name);
        let expected = || {
            endpoints.iter().find(|(_, endpoint)| {
                endpoint.name.is_empty()
                    && endpoint.expected_ips.iter().any(|ip| interface.addresses.contains(ip))
            })
        };
        if let Some((key, _)) = named.or_else(expected) {
            resolved.insert(interface.name.clone(), key.clone());
        }
    }
    resolved
}

/// One rule per source: of a list the program makes several, which would never look as they were written.
fn dscp_rule((net, value): (&IpNet, &u8)) -> DscpRule {
    let host = net.prefix_len() == net.max_prefix_len();
    DscpRule { sources: if host { net.addr().to_string() } else { net.to_string() }, value: *value }
}
