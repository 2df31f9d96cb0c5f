//! Outputs of a calculation, held so that they can be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use syncer_common::model::{HostEndpointKey, PolicyKey, WorkloadEndpointKey};

use super::{Node, Sets, Settings};
use crate::output::{ActivePolicy, ActiveProfile, HostEndpoint, Output, WorkloadEndpoint};

#[derive(Default)]
pub struct Collected {
    pub policies: BTreeMap<PolicyKey, ActivePolicy>,
    pub profiles: BTreeMap<String, ActiveProfile>,
    pub workloads: BTreeMap<WorkloadEndpointKey, WorkloadEndpoint>,
    pub host_endpoints: BTreeMap<HostEndpointKey, HostEndpoint>,
    pub params: BTreeMap<String, String>,
    sets: Members,
    settings: Settings,
}

/// Members as the kernel's tools write them, by set.
#[derive(Default)]
struct Members(BTreeMap<String, BTreeSet<String>>);

impl Collected {
    pub fn on_output(&mut self, output: Output) {
        match output {
            Output::Config(params) => {
                self.settings = Settings::from_params(&params);
                self.params = params;
            }
            Output::IpSetUpdate { id, members, .. } => {
                self.sets.0.insert(id, members);
            }
            Output::IpSetDelta { id, added, removed } => {
                let members = self.sets.0.entry(id).or_default();
                removed.iter().for_each(|member| {
                    members.remove(member);
                });
                members.extend(added);
            }
            Output::IpSetRemove { id } => {
                self.sets.0.remove(&id);
            }
            Output::PolicyUpdate { key, policy } => {
                self.policies.insert(key, policy);
            }
            Output::PolicyRemove { key } => {
                self.policies.remove(&key);
            }
            Output::ProfileUpdate { name, profile } => {
                self.profiles.insert(name, profile);
            }
            Output::ProfileRemove { name } => {
                self.profiles.remove(&name);
            }
            Output::WorkloadEndpointUpdate { key, endpoint } => {
                self.workloads.insert(key, endpoint);
            }
            Output::WorkloadEndpointRemove { key } => {
                self.workloads.remove(&key);
            }
            Output::HostEndpointUpdate { key, endpoint } => {
                self.host_endpoints.insert(key, endpoint);
            }
            Output::HostEndpointRemove { key } => {
                self.host_endpoints.remove(&key);
            }
            Output::PoolUpdate { .. }
            | Output::PoolRemove { .. }
            | Output::HostUpdate { .. }
            | Output::HostRemove { .. }
            | Output::ServiceCidrs(_)
            | Output::OwnNode(_)
            | Output::RouteRemove { .. }
            | Output::VtepRemove { .. }
            | Output::VtepUpdate { .. }
            | Output::RouteUpdate { .. } => {}
        }
    }

    pub fn node(&self) -> Node<'_> {
        Node {
            policies: &self.policies,
            profiles: &self.profiles,
            workloads: &self.workloads,
            host_endpoints: &self.host_endpoints,
            sets: &self.sets,
            settings: &self.settings,
        }
    }
}

impl Sets for Members {
    fn has_address(&self, id: &str, ip: IpAddr) -> bool {
        let Some(members) = self.0.get(id) else { return false };
        members.contains(&ip.to_string()) || contains(ip, |net| members.contains(&net.to_string()))
    }

    fn has_port(&self, id: &str, ip: IpAddr, protocol: u8, port: u16) -> bool {
        let name = match protocol {
            6 => "tcp",
            17 => "udp",
            132 => "sctp",
            _ => return false,
        };
        self.0.get(id).is_some_and(|members| members.contains(&format!("{ip},{name}:{port}")))
    }
}

/// Whether any network that an address lies in is a member, narrowest first.
pub fn contains(ip: IpAddr, is_member: impl Fn(IpNet) -> bool) -> bool {
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    (0..=longest).rev().filter_map(|length| IpNet::new(ip, length).ok()).any(|net| is_member(net.trunc()))
}
