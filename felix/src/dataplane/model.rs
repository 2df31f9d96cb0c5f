//! What this node should hold, from what the calculation puts out: pure.
//!
//! Outputs, interfaces and parameters only mark what they touch; [`Model::flush`] renders that and hands it to a
//! [`Sink`]: the drivers, or what `felix render` prints. A change of configuration renders everything anew.

mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use felix_calc::explain::{self, Settings};
use felix_calc::output::{
    ActivePolicy, ActiveProfile, Family, Host, HostEndpoint, IpSetKind, Output, OwnNode, Route, Vtep,
    WorkloadEndpoint,
};
use ipnet::IpNet;
use syncer_common::model::{HostEndpointKey, PolicyKey, WorkloadEndpointKey, values};

use super::params::DataplaneParams;
use crate::iptables::chains::Owner;
use crate::iptables::plan::Hooks;
use crate::iptables::render::Features;
use crate::iptables::{Chain, InsertMode, IpVersion, TableName};
use crate::routetable::Workload;
use crate::rules::{ParamError, Renderer, RulesConfig};

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
}

fn family(net: &IpNet) -> IpVersion {
    match net {
        IpNet::V4(_) => IpVersion::V4,
        IpNet::V6(_) => IpVersion::V6,
    }
}

#[cfg(test)]
mod tests;
