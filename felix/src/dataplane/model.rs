//! What this node should hold, from what the calculation puts out: pure.
//!
//! Outputs, interfaces and parameters only mark what they touch; [`Model::flush`] renders that and hands it to a
//! [`Sink`]: the drivers, or what `felix render` prints. A change of configuration renders everything anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use felix_calc::explain::{self, Settings};
use felix_calc::output::{
    ActivePolicy, ActiveProfile, Family, Host, HostEndpoint, IpSetKind, Nat, Output, OwnNode, Route, Vtep,
    WorkloadEndpoint,
};
use ipnet::IpNet;
use syncer_common::model::{HostEndpointKey, PolicyKey, WorkloadEndpointKey, values};

use super::params::DataplaneParams;
use crate::ipsets::names as sets;
use crate::iptables::chains::Owner;
use crate::iptables::plan::Hooks;
use crate::iptables::render::Features;
use crate::iptables::{Chain, InsertMode, IpVersion, TableName};
use crate::routetable::Workload;
use crate::rules::{ANY_INTERFACE, DscpRule, ParamError, Renderer, RulesConfig, StaticInputs};

/// Where rendered state goes. IP sets hold both families; each driver takes its own members.
pub trait Sink {
    fn chains(
        &mut self,
        version: IpVersion,
        table: TableName,
        owner: Owner,
        chains: Vec<Chain>,
        always_needed: bool,
    );
    fn hooks(
        &mut self,
        version: IpVersion,
        table: TableName,
        mode: InsertMode,
        hooks: BTreeMap<String, Hooks>,
    );
    fn set_replace(&mut self, id: &str, kind: IpSetKind, members: &BTreeSet<String>);
    fn set_change(&mut self, id: &str, added: &[String], removed: &[String]);
    fn set_remove(&mut self, id: &str);
    fn workload(&mut self, id: &WorkloadEndpointKey, workload: Option<Workload>);
    fn params(&mut self, params: &DataplaneParams);
    fn own_node(&mut self, own: &OwnNode);
    fn vtep(&mut self, node: &str, family: Family, vtep: Option<Vtep>);
    fn route(&mut self, dst: IpNet, route: Option<Route>);
}

/// The orchestrator whose floating addresses need no switch.
const OPENSTACK: &str = "openstack";

/// An IP set operation, in the order of arrival.
enum SetChange {
    Replace(IpSetKind, BTreeSet<String>),
    Delta(Vec<String>, Vec<String>),
    Remove,
}

/// A host endpoint's name or addresses meet an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostInterface {
    pub name: String,
    pub addresses: Vec<IpAddr>,
}

pub struct Model {
    versions: Vec<IpVersion>,
    features: Features,
    /// Parameters given on this node; they override the datastore's.
    local: BTreeMap<String, String>,
    datastore: BTreeMap<String, String>,
    renderer: Renderer,
    params: DataplaneParams,
    policies: BTreeMap<PolicyKey, ActivePolicy>,
    profiles: BTreeMap<String, ActiveProfile>,
    workloads: BTreeMap<WorkloadEndpointKey, WorkloadEndpoint>,
    host_endpoints: BTreeMap<HostEndpointKey, HostEndpoint>,
    pools: BTreeMap<IpNet, values::IpPool>,
    hosts: BTreeMap<String, Host>,
    own: OwnNode,
    vteps: BTreeMap<(String, Family), Vtep>,
    interfaces: Vec<HostInterface>,
    /// Endpoint per interface, as rendered last.
    owners: BTreeMap<String, WorkloadEndpointKey>,
    host_owners: BTreeMap<String, HostEndpointKey>,
    built_in: BTreeMap<&'static str, (IpSetKind, BTreeSet<String>)>,
    service_cidrs: BTreeSet<IpNet>,
    from_endpoints: FromEndpoints,
    dirty: Dirty,
    set_changes: Vec<(String, SetChange)>,
    /// On their way through: the driver keeps them.
    route_changes: BTreeMap<IpNet, Option<Route>>,
}

/// What local endpoints bring into the frame.
#[derive(Default, PartialEq)]
struct FromEndpoints {
    /// By interface: sources that its workload may use beside its own.
    spoofable: BTreeMap<String, Vec<IpNet>>,
    /// Floating addresses: external to internal.
    dnats: BTreeMap<String, String>,
    /// And back. Of several the lowest is the one by which a workload sees itself.
    snats: BTreeMap<String, String>,
    /// By source, of what leaves the cluster.
    dscp: BTreeMap<IpNet, u8>,
}

#[derive(Default)]
struct Dirty {
    config: bool,
    everything: bool,
    frame: bool,
    policies: BTreeSet<PolicyKey>,
    profiles: BTreeSet<String>,
    workloads: BTreeSet<WorkloadEndpointKey>,
    /// Interfaces whose endpoint may be another one now.
    interfaces: BTreeSet<String>,
    host_endpoints: bool,
    built_in: bool,
    own: bool,
    vteps: BTreeSet<(String, Family)>,
}

impl Model {
    pub fn new(versions: &[IpVersion], features: Features, local: BTreeMap<String, String>) -> Model {
        Model {
            versions: versions.to_vec(),
            features,
            local,
            datastore: BTreeMap::new(),
            renderer: Renderer::new(RulesConfig::default()),
            params: DataplaneParams::default(),
            policies: BTreeMap::new(),
            profiles: BTreeMap::new(),
            workloads: BTreeMap::new(),
            host_endpoints: BTreeMap::new(),
            pools: BTreeMap::new(),
            hosts: BTreeMap::new(),
            own: OwnNode::default(),
            vteps: BTreeMap::new(),
            interfaces: Vec::new(),
            owners: BTreeMap::new(),
            host_owners: BTreeMap::new(),
            built_in: BTreeMap::new(),
            service_cidrs: BTreeSet::new(),
            from_endpoints: FromEndpoints::default(),
            dirty: Dirty { config: true, everything: true, ..Dirty::default() },
            set_changes: Vec::new(),
            route_changes: BTreeMap::new(),
        }
    }

    pub fn params(&self) -> &DataplaneParams {
        &self.params
    }

    /// Where rules go can do other things now, and holds nothing of ours.
    pub fn render_everything(&mut self, features: Features) {
        self.features = features;
        (self.dirty.config, self.dirty.everything) = (true, true);
    }

    pub fn renderer(&self) -> &Renderer {
        &self.renderer
    }

    pub fn counts(&self) -> (usize, usize) {
        (self.workloads.len() + self.host_endpoints.len(), self.policies.len())
    }

    pub fn host_endpoints(&self) -> impl Iterator<Item = (&HostEndpointKey, &HostEndpoint)> {
        self.host_endpoints.iter()
    }

    /// Host endpoint per interface, as rendered last.
    pub fn host_owners(&self) -> &BTreeMap<String, HostEndpointKey> {
        &self.host_owners
    }

    /// The node's own interfaces.
    pub fn interfaces(&self) -> &[HostInterface] {
        &self.interfaces
    }

    /// Parameters in force: the datastore's, overlaid with those given on this node.
    pub fn merged_params(&self) -> BTreeMap<String, String> {
        let mut merged = self.datastore.clone();
        for (name, value) in &self.local {
            merged.retain(|other, _| !other.eq_ignore_ascii_case(name));
            merged.insert(name.clone(), value.clone());
        }
        merged
    }

    /// For explaining packets from what is rendered.
    pub fn explained<'a>(&'a self, sets: &'a dyn explain::Sets, settings: &'a Settings) -> explain::Node<'a> {
        explain::Node {
            policies: &self.policies,
            profiles: &self.profiles,
            workloads: &self.workloads,
            host_endpoints: &self.host_endpoints,
            sets,
            settings,
        }
    }

    pub fn workloads(&self) -> impl Iterator<Item = (&WorkloadEndpointKey, &WorkloadEndpoint)> {
        self.workloads.iter()
    }

    // === input ===

    pub fn on_output(&mut self, output: Output) {
        let dirty = &mut self.dirty;
        match output {
            Output::Config(params) => {
                self.datastore = params;
                dirty.config = true;
            }
            Output::IpSetUpdate { id, kind, members } => {
                self.set_changes.push((id, SetChange::Replace(kind, members)))
            }
            Output::IpSetDelta { id, added, removed } => {
                self.set_changes.push((id, SetChange::Delta(added, removed)))
            }
            Output::IpSetRemove { id } => self.set_changes.push((id, SetChange::Remove)),
            Output::PolicyUpdate { key, policy } => {
                dirty.policies.insert(key.clone());
                self.policies.insert(key, policy);
            }
            Output::PolicyRemove { key } => {
                self.policies.remove(&key);
                dirty.policies.insert(key);
            }
            Output::ProfileUpdate { name, profile } => {
                dirty.profiles.insert(name.clone());
                self.profiles.insert(name, profile);
            }
            Output::ProfileRemove { name } => {
                self.profiles.remove(&name);
                dirty.profiles.insert(name);
            }
            Output::WorkloadEndpointUpdate { key, endpoint } => {
                dirty.interfaces.insert(endpoint.interface.clone());
                dirty.workloads.insert(key.clone());
                if let Some(old) = self.workloads.insert(key, endpoint) {
                    dirty.interfaces.insert(old.interface);
                }
            }
            Output::WorkloadEndpointRemove { key } => {
                if let Some(old) = self.workloads.remove(&key) {
                    dirty.interfaces.insert(old.interface);
                    dirty.workloads.insert(key);
                }
            }
            Output::HostEndpointUpdate { key, endpoint } => {
                self.host_endpoints.insert(key, endpoint);
                dirty.host_endpoints = true;
            }
            Output::HostEndpointRemove { key } => {
                self.host_endpoints.remove(&key);
                dirty.host_endpoints = true;
            }
            // Tunnels on or off follow from pools unless configured.
            Output::PoolUpdate { cidr, pool } => {
                self.pools.insert(cidr, pool);
                (dirty.config, dirty.built_in, dirty.frame) = (true, true, true);
            }
            Output::PoolRemove { cidr } => {
                self.pools.remove(&cidr);
                (dirty.config, dirty.built_in, dirty.frame) = (true, true, true);
            }
            Output::HostUpdate { node, host } => {
                self.hosts.insert(node, host);
                dirty.built_in = true;
            }
            Output::HostRemove { node } => {
                self.hosts.remove(&node);
                dirty.built_in = true;
            }
            Output::ServiceCidrs(cidrs) => {
                self.service_cidrs = cidrs;
                dirty.frame = true;
            }
            // Packets into tunnels are masqueraded to the tunnel's own address.
            Output::OwnNode(own) => {
                self.own = own;
                (dirty.own, dirty.frame, dirty.built_in) = (true, true, true);
            }
            Output::VtepUpdate { node, family, vtep } => {
                dirty.vteps.insert((node.clone(), family));
                self.vteps.insert((node, family), vtep);
                dirty.built_in = true;
            }
            Output::VtepRemove { node, family } => {
                self.vteps.remove(&(node.clone(), family));
                dirty.vteps.insert((node, family));
                dirty.built_in = true;
            }
            Output::RouteUpdate { dst, route } => {
                self.route_changes.insert(dst, Some(route));
            }
            Output::RouteRemove { dst } => {
                self.route_changes.insert(dst, None);
            }
        }
    }

    /// The node's own interfaces: all but workloads' and excluded ones.
    pub fn on_interfaces(&mut self, interfaces: Vec<HostInterface>) {
        if self.interfaces != interfaces {
            self.interfaces = interfaces;
            self.dirty.built_in = true;
            self.dirty.host_endpoints |= !self.host_endpoints.is_empty();
        }
    }

    // === output ===

    /// Hands over what changed. Returns the parameters that were refused, if they were read anew.
    pub fn flush(&mut self, sink: &mut dyn Sink) -> Vec<ParamError> {
        let mut refused = Vec::new();
        if std::mem::take(&mut self.dirty.config) {
            refused = self.reconfigure(sink);
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        if dirty.everything {
            dirty.frame = true;
            dirty.built_in = true;
            dirty.host_endpoints = true;
            dirty.policies.extend(self.policies.keys().cloned());
            dirty.profiles.extend(self.profiles.keys().cloned());
            dirty.workloads.extend(self.workloads.keys().cloned());
            dirty.interfaces.extend(self.workloads.values().map(|endpoint| endpoint.interface.clone()));
            dirty.interfaces.extend(self.owners.keys().cloned());
        }
        for (id, change) in std::mem::take(&mut self.set_changes) {
            match change {
                SetChange::Replace(kind, members) => sink.set_replace(&id, kind, &members),
                SetChange::Delta(added, removed) => sink.set_change(&id, &added, &removed),
                SetChange::Remove => sink.set_remove(&id),
            }
        }
        if dirty.own {
            sink.own_node(&self.own);
        }
        for (node, family) in &dirty.vteps {
            sink.vtep(node, *family, self.vteps.get(&(node.clone(), *family)).copied());
        }
        for (dst, route) in std::mem::take(&mut self.route_changes) {
            sink.route(dst, route);
        }
        self.flush_workloads(&dirty, sink);
        if dirty.host_endpoints {
            let had = !self.host_owners.is_empty();
            self.flush_host_endpoints(sink);
            if had == self.host_owners.is_empty() {
                // The first or last host endpoint: policies come to, or leave, the other tables.
                dirty.policies.extend(self.policies.keys().cloned());
                dirty.profiles.extend(self.profiles.keys().cloned());
            }
        }
        self.flush_policies(&dirty.policies, sink);
        self.flush_profiles(&dirty.profiles, sink);
        if dirty.everything || dirty.host_endpoints || !dirty.interfaces.is_empty() {
            let from_endpoints = self.read_endpoints();
            dirty.frame |= from_endpoints != self.from_endpoints;
            dirty.built_in |= from_endpoints.dscp != self.from_endpoints.dscp;
            self.from_endpoints = from_endpoints;
        }
        if dirty.built_in {
            self.flush_built_in_sets(sink);
        }
        if dirty.frame {
            self.flush_frame(sink);
        }
        refused
    }

    fn reconfigure(&mut self, sink: &mut dyn Sink) -> Vec<ParamError> {
        let merged = self.merged_params();
        let given = |name: &str| merged.keys().any(|key| key.eq_ignore_ascii_case(name));
        let (mut rules, mut refused) = RulesConfig::from_params(&merged);
        let pool_uses = |mode: fn(&values::IpPool) -> &str, version: IpVersion| {
            self.pools
                .iter()
                .any(|(cidr, pool)| family(cidr) == version && !["", "never"].contains(&mode(pool)))
        };
        if !given("IpInIpEnabled") {
            rules.ipip_enabled = pool_uses(|pool| &pool.ipip_mode, IpVersion::V4);
        }
        if !given("VXLANEnabled") {
            rules.vxlan_enabled = pool_uses(|pool| &pool.vxlan_mode, IpVersion::V4);
        }
        if !given("VXLANEnabledV6") {
            rules.vxlan_enabled_v6 = pool_uses(|pool| &pool.vxlan_mode, IpVersion::V6);
        }
        rules.features = self.features;
        let (mut params, errors) = DataplaneParams::from_params(&merged, &rules.workload_iface_prefixes);
        // A parameter that both read is refused once.
        refused.extend(errors.into_iter().filter(|error| !refused.contains(error)).collect::<Vec<_>>());
        let tunnels = &mut params.tunnels;
        tunnels.vxlan_v4 = rules.vxlan_enabled;
        tunnels.vxlan_v6 = rules.vxlan_enabled_v6;
        tunnels.ipip = rules.ipip_enabled;
        if rules != *self.renderer.config() {
            self.renderer = Renderer::new(rules);
            self.dirty.everything = true;
        }
        self.dirty.everything |= params != self.params;
        self.params = params;
        sink.params(&self.params);
        refused
    }

    fn flush_built_in_sets(&mut self, sink: &mut dyn Sink) {
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

    fn flush_workloads(&mut self, dirty: &Dirty, sink: &mut dyn Sink) {
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

    fn read_endpoints(&self) -> FromEndpoints {
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
            mac: mac(&endpoint.mac),
            spoofing: !self.spoofable(endpoint).is_empty(),
        }
    }

    /// Sources beside its own that a workload may use.
    fn spoofable<'a>(&self, endpoint: &'a WorkloadEndpoint) -> &'a [IpNet] {
        if self.params.source_spoofing { &endpoint.allow_spoofed_source_prefixes } else { &[] }
    }

    fn flush_host_endpoints(&mut self, sink: &mut dyn Sink) {
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

    fn flush_policies(&self, keys: &BTreeSet<PolicyKey>, sink: &mut dyn Sink) {
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

    fn flush_profiles(&self, names: &BTreeSet<String>, sink: &mut dyn Sink) {
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

    fn flush_frame(&self, sink: &mut dyn Sink) {
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
fn resolve_host_endpoints(
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

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

fn family(net: &IpNet) -> IpVersion {
    match net {
        IpNet::V4(_) => IpVersion::V4,
        IpNet::V6(_) => IpVersion::V6,
    }
}

#[cfg(test)]
mod tests;
