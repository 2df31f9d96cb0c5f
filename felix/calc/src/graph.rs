//! Assembly: state of the parts, and the flush that turns their changes into outputs.
//!
//! ```text
//!  Update ─▶ dispatch ─┬▶ ActiveRules   local endpoints × policy selectors ─▶ active policies, profiles
//!                      ├▶ Members       all endpoints × rule selectors     ─▶ members of IP sets
//!                      ├▶ Tiers         order                              ─▶ tiers of an endpoint
//!                      └▶ Config, hosts, pools
//! ```
//!
//! Updates only change state and mark what depends on it; everything else is worked out at the flush, from
//! the state alone, and compared with what was put out before. So the number and order of updates between
//! two flushes cannot matter, and nothing is put out for a change that was taken back.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use syncer_common::model::{PolicyKey, values};

use crate::active_rules::{ActiveRules, EndpointKey, LocalEndpoint};
use crate::addresses::{dscp, ips, nats, nets};
use crate::config::Config;
use crate::delta::DeltaMap;
use crate::ip_set::IpSetDef;
use crate::members::Members;
use crate::output::{ActivePolicy, ActiveProfile, Host, HostEndpoint, Output, QosLimits, WorkloadEndpoint};
use crate::policy_resolver::Tiers;
use crate::routes::Routes;
use crate::rule_scanner::{NeededSets, missing_profile, scan_policy, scan_profile};

/// The calculation for one node.
pub struct Graph {
    pub(crate) node: String,
    pub(crate) in_sync: bool,
    pub(crate) active: ActiveRules,
    pub(crate) tiers: Tiers,
    pub(crate) members: Members,
    pub(crate) config: Config,
    pub(crate) hosts: DeltaMap<String, Host>,
    pub(crate) pools: DeltaMap<IpNet, values::IpPool>,
    pub(crate) routes: Routes,
    pub(crate) service_cidrs: BTreeSet<IpNet>,
    sent_service_cidrs: BTreeSet<IpNet>,
    policies: Programmed<PolicyKey, ActivePolicy>,
    profiles: Programmed<String, ActiveProfile>,
    endpoints: DeltaMap<EndpointKey, Programme>,
}

/// Active policies or profiles with the sets that they hold.
struct Programmed<K, V> {
    rules: DeltaMap<K, V>,
    sets: BTreeMap<K, Vec<String>>,
}

#[derive(Clone, PartialEq)]
enum Programme {
    Workload(WorkloadEndpoint),
    Host(HostEndpoint),
}

/// Sizes, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub active_local_endpoints: usize,
    pub active_policies: usize,
    pub active_profiles: usize,
    pub active_selectors: usize,
    pub cluster_hosts: usize,
    pub cluster_policies: usize,
    pub cluster_tiers: usize,
}

impl Graph {
    pub fn new(node: impl Into<String>) -> Self {
        let node = node.into();
        Graph {
            routes: Routes::new(node.clone()),
            node,
            in_sync: false,
            active: ActiveRules::default(),
            tiers: Tiers::default(),
            members: Members::default(),
            config: Config::default(),
            hosts: DeltaMap::default(),
            pools: DeltaMap::default(),
            service_cidrs: BTreeSet::new(),
            sent_service_cidrs: BTreeSet::new(),
            policies: Programmed::default(),
            profiles: Programmed::default(),
            endpoints: DeltaMap::default(),
        }
    }

    /// The first proven snapshot is complete: from now on `flush` may speak.
    pub fn on_in_sync(&mut self) {
        self.in_sync = true;
    }

    /// The datastore's ready flag; none when it was never set. Felix waits while it is false.
    pub fn ready(&self) -> Option<bool> {
        self.config.ready()
    }

    pub fn stats(&self) -> Stats {
        Stats {
            active_local_endpoints: self.endpoints.len(),
            active_policies: self.policies.rules.len(),
            active_profiles: self.profiles.rules.len(),
            active_selectors: self.members.selectors(),
            cluster_hosts: self.hosts.len(),
            cluster_policies: self.active.policy_count(),
            cluster_tiers: self.tiers.len(),
        }
    }

    /// What changed since the last flush, in the order of `output`. Nothing before in-sync: half a
    /// snapshot would tear down what is right.
    pub fn flush(&mut self) -> Vec<Output> {
        if !self.in_sync {
            return Vec::new();
        }
        self.settle();
        let sets = self.members.flush();
        let (mut updates, mut endpoint_removals, mut removals) = (Vec::new(), Vec::new(), Vec::new());
        let policies = self.policies.rules.take();
        let profiles = self.profiles.rules.take();
        for (key, policy) in &policies {
            if let Some(policy) = policy.clone() {
                updates.push(Output::PolicyUpdate { key: key.clone(), policy });
            }
        }
        for (name, profile) in profiles {
            match profile {
                Some(profile) => updates.push(Output::ProfileUpdate { name, profile }),
                None => removals.push(Output::ProfileRemove { name }),
            }
        }
        removals.extend(
            policies
                .into_iter()
                .filter(|(_, policy)| policy.is_none())
                .map(|(key, _)| Output::PolicyRemove { key }),
        );
        for (key, programme) in self.endpoints.take() {
            match (key, programme) {
                (EndpointKey::Workload(key), Some(Programme::Workload(endpoint))) => {
                    updates.push(Output::WorkloadEndpointUpdate { key, endpoint });
                }
                (EndpointKey::Host(key), Some(Programme::Host(endpoint))) => {
                    updates.push(Output::HostEndpointUpdate { key, endpoint });
                }
                (EndpointKey::Workload(key), _) => {
                    endpoint_removals.push(Output::WorkloadEndpointRemove { key });
                }
                (EndpointKey::Host(key), _) => endpoint_removals.push(Output::HostEndpointRemove { key }),
            }
        }

        let mut out: Vec<Output> = self.config.take().map(Output::Config).into_iter().collect();
        out.extend(sets.added);
        out.extend(sets.deltas);
        out.extend(updates);
        out.extend(endpoint_removals);
        out.extend(removals);
        out.extend(sets.removed);
        out.extend(self.hosts.take().into_iter().map(|(node, host)| match host {
            Some(host) => Output::HostUpdate { node, host },
            None => Output::HostRemove { node },
        }));
        let mut pools = self.pools.take();
        pools.sort_by_key(|(_, pool)| pool.is_some());
        out.extend(pools.into_iter().map(|(cidr, pool)| match pool {
            Some(pool) => Output::PoolUpdate { cidr, pool },
            None => Output::PoolRemove { cidr },
        }));
        if self.service_cidrs != self.sent_service_cidrs {
            self.sent_service_cidrs = self.service_cidrs.clone();
            out.push(Output::ServiceCidrs(self.service_cidrs.clone()));
        }
        self.routes.flush(&mut out);
        out
    }

    /// Works out what was marked: policies and profiles first, as they decide which sets exist.
    fn settle(&mut self) {
        let dirty = self.active.take_dirty();
        for key in dirty.policies {
            let scanned = self.active.active_policy(&key).map(|policy| {
                scan_policy(&policy).expect("policies were scanned on arrival; refused ones are absent")
            });
            self.policies.set(key, scanned, &mut self.members);
        }
        for name in dirty.profiles {
            let scanned = self.active.active_profile(&name).map(|rules| match rules {
                Some(rules) => {
                    scan_profile(&rules).expect("profiles were scanned on arrival; refused ones are absent")
                }
                None => (missing_profile(), NeededSets::new()),
            });
            self.profiles.set(name, scanned, &mut self.members);
        }
        for key in dirty.endpoints {
            let programme = self.programme(&key);
            self.endpoints.set(key, programme);
        }
    }

    fn programme(&self, key: &EndpointKey) -> Option<Programme> {
        let endpoint = self.active.endpoint(key)?;
        let tiers = self.tiers.resolve(self.active.policies_of(key));
        Some(match endpoint {
            LocalEndpoint::Workload(endpoint) => Programme::Workload(WorkloadEndpoint {
                active: endpoint.state == "active",
                interface: endpoint.name.clone(),
                mac: endpoint.mac.clone(),
                profile_ids: endpoint.profile_ids.clone(),
                ipv4_nets: nets(key, "ipv4_nets", &endpoint.ipv4_nets),
                ipv6_nets: nets(key, "ipv6_nets", &endpoint.ipv6_nets),
                allow_spoofed_source_prefixes: nets(
                    key,
                    "allow_spoofed_source_prefixes",
                    &endpoint.allow_spoofed_source_prefixes,
                ),
                nats: nats(key, endpoint),
                ingress_limits: limits(endpoint, |qos| {
                    [qos.ingress_packet_rate, qos.ingress_packet_burst, qos.ingress_max_connections]
                }),
                egress_limits: limits(endpoint, |qos| {
                    [qos.egress_packet_rate, qos.egress_packet_burst, qos.egress_max_connections]
                }),
                dscp: dscp(key, endpoint.qos.as_ref().and_then(|qos| qos.dscp)),
                tiers: tiers.normal,
            }),
            LocalEndpoint::Host(endpoint) => Programme::Host(HostEndpoint {
                name: endpoint.name.clone(),
                expected_ips: [
                    ips(key, "expected_ipv4_addrs", &endpoint.expected_ipv4_addrs),
                    ips(key, "expected_ipv6_addrs", &endpoint.expected_ipv6_addrs),
                ]
                .concat(),
                dscp: dscp(key, endpoint.dscp),
                profile_ids: endpoint.profile_ids.clone(),
                tiers: tiers.normal,
                untracked_tiers: tiers.untracked,
                pre_dnat_tiers: tiers.pre_dnat,
                forward_tiers: tiers.forward,
            }),
        })
    }
}

fn limits(
    endpoint: &values::WorkloadEndpoint,
    of_direction: fn(&values::QosControls) -> [u32; 3],
) -> QosLimits {
    let [packet_rate, packet_burst, max_connections] =
        endpoint.qos.as_ref().map(of_direction).unwrap_or_default().map(u64::from);
    QosLimits { packet_rate, packet_burst, max_connections }
}

impl<K, V> Default for Programmed<K, V> {
    fn default() -> Self {
        Programmed { rules: DeltaMap::default(), sets: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> Programmed<K, V> {
    /// New sets are taken before old ones are let go, so that a set in both is never touched.
    fn set(&mut self, key: K, scanned: Option<(V, NeededSets)>, members: &mut Members) {
        let (rules, needed) =
            scanned.map_or((None, NeededSets::new()), |(rules, needed)| (Some(rules), needed));
        needed.values().for_each(|def: &IpSetDef| members.acquire(def));
        let old = if rules.is_some() {
            self.sets.insert(key.clone(), needed.into_keys().collect())
        } else {
            self.sets.remove(&key)
        };
        old.into_iter().flatten().for_each(|id| members.release(&id));
        self.rules.set(key, rules);
    }
}
