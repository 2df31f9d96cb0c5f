//! Explains a packet: which tier, policy and rule decides about it, stage by stage. Pure.
//!
//! It goes through the same stages as the kernel does with what felix programs, in the same order, over the same
//! outputs of the calculation from which rules are rendered. It speaks of the first packet of a connection: what
//! belongs to an established one passes without being asked.

mod cluster;
mod collected;
mod packet;
mod report;
mod rules;
mod settings;

use std::collections::BTreeMap;
use std::net::IpAddr;

use syncer_common::model::{HostEndpointKey, PolicyKey, WorkloadEndpointKey};

use crate::output::{ActivePolicy, ActiveProfile, HostEndpoint, WorkloadEndpoint};

pub use cluster::{Cluster, Peer};
pub use collected::{Collected, contains};
pub use packet::{Packet, Protocol};
pub use settings::{Settings, ToHost};

/// Members of IP sets.
pub trait Sets {
    fn has_address(&self, id: &str, ip: IpAddr) -> bool;
    fn has_port(&self, id: &str, ip: IpAddr, protocol: u8, port: u16) -> bool;
}

/// What a node enforces.
pub struct Node<'a> {
    pub policies: &'a BTreeMap<PolicyKey, ActivePolicy>,
    pub profiles: &'a BTreeMap<String, ActiveProfile>,
    pub workloads: &'a BTreeMap<WorkloadEndpointKey, WorkloadEndpoint>,
    pub host_endpoints: &'a BTreeMap<HostEndpointKey, HostEndpoint>,
    pub sets: &'a dyn Sets,
    pub settings: &'a Settings,
}

/// Where a packet comes from or goes to, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Workload(WorkloadEndpointKey),
    /// The node itself.
    Host,
    /// Beyond an interface of the node, with the host endpoint that governs it.
    Outside(Option<HostEndpointKey>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    Deny,
}

/// A stage of a packet's way through a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    pub hook: Hook,
    /// The endpoint that is asked.
    pub endpoint: String,
    pub steps: Vec<Step>,
    /// None: it has nothing to say, and the packet goes on.
    pub verdict: Option<Verdict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    UntrackedIngress,
    UntrackedEgress,
    PreDnat,
    ForwardIngress,
    ForwardEgress,
    HostIngress,
    HostEgress,
    WorkloadIngress,
    WorkloadEgress,
    WorkloadToHost,
}

/// What was looked at in a stage, in order; the last one decided, if anything did.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Policy {
        tier: String,
        key: PolicyKey,
        matched: Option<Matched>,
    },
    /// The tier has policies, and none of them decided.
    EndOfTier {
        tier: String,
    },
    Profile {
        name: String,
        matched: Option<Matched>,
    },
    NoProfile,
    /// No policy decides this, the node does: why.
    Fixed(&'static str),
}

/// A rule that ends the policy or profile, and its place from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matched {
    pub rule: usize,
    pub action: Action,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
    Pass,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

/// The interface that stands for all that no other host endpoint governs.
const ANY: &str = "*";

impl Node<'_> {
    /// The stages that a packet passes on its way through this node, up to the one that denies it.
    pub fn path(&self, packet: &Packet, from: &Place, to: &Place) -> Vec<Stage> {
        let mut way = Way { node: self, packet, stages: Vec::new() };
        way.go(from, to);
        way.stages
    }

    /// The host endpoint of all interfaces that have none of their own.
    pub fn any_host_endpoint(&self) -> Option<&HostEndpointKey> {
        self.host_endpoints.iter().find(|(_, endpoint)| endpoint.name == ANY).map(|(key, _)| key)
    }
}

/// The verdict of a path.
pub fn verdict(stages: &[Stage]) -> Verdict {
    match stages.iter().any(|stage| stage.verdict == Some(Verdict::Deny)) {
        true => Verdict::Deny,
        false => Verdict::Allow,
    }
}

struct Way<'a> {
    node: &'a Node<'a>,
    packet: &'a Packet,
    stages: Vec<Stage>,
}

impl<'a> Way<'a> {
    fn go(&mut self, from: &Place, to: &Place) {
        let Some(accepted) = self.arrive(from) else { return };
        match (from, to) {
            (Place::Workload(key), Place::Host) => self.workload_to_host(key),
            (Place::Outside(_), Place::Host) => {
                if let Some((key, endpoint)) = self.governing(from).filter(|_| !accepted) {
                    self.host(Hook::HostIngress, Direction::Ingress, key, endpoint);
                }
            }
            // What the host sends to its own workloads is never policed.
            (Place::Host, Place::Workload(_) | Place::Host) => {}
            (Place::Host, Place::Outside(_)) => self.host_to_outside(to),
            (_, _) => self.forward(from, to, accepted),
        }
    }

    /// Before routing: whether the source is its own, untracked and pre-DNAT policy. None: dropped. Else whether
    /// policy accepted the packet already.
    fn arrive(&mut self, from: &Place) -> Option<bool> {
        if *from == Place::Host {
            return Some(false);
        }
        if let Place::Workload(key) = from
            && let Some(endpoint) = self.node.workloads.get(key)
            && !self.owns_source(endpoint)
        {
            self.fixed(
                Hook::WorkloadEgress,
                name_of(key),
                "the source address is not one of the workload's",
                Some(Verdict::Deny),
            );
            return None;
        }
        let Some((key, endpoint)) = self.governing(from) else { return Some(false) };
        // The endpoint of all interfaces has no untracked policy: it would untrack workloads' connections.
        if endpoint.name != ANY && !endpoint.untracked_tiers.is_empty() {
            match self.staged(Hook::UntrackedIngress, Direction::Ingress, key, endpoint) {
                Some(Verdict::Deny) => return None,
                Some(Verdict::Allow) => return Some(true),
                None => {}
            }
        }
        if !endpoint.pre_dnat_tiers.is_empty() {
            match self.staged(Hook::PreDnat, Direction::Ingress, key, endpoint) {
                Some(Verdict::Deny) => return None,
                Some(Verdict::Allow) => return Some(true),
                None => {}
            }
        }
        Some(false)
    }

    fn forward(&mut self, from: &Place, to: &Place, accepted: bool) {
        if let Some((key, endpoint)) = self.governing(from).filter(|_| !accepted)
            && self.staged(Hook::ForwardIngress, Direction::Ingress, key, endpoint) == Some(Verdict::Deny)
        {
            return;
        }
        if let Place::Workload(key) = from
            && self.workload(Hook::WorkloadEgress, Direction::Egress, key) == Some(Verdict::Deny)
        {
            return;
        }
        if let Place::Workload(key) = to
            && self.workload(Hook::WorkloadIngress, Direction::Ingress, key) == Some(Verdict::Deny)
        {
            return;
        }
        if let Some((key, endpoint)) = self.governing(to) {
            self.staged(Hook::ForwardEgress, Direction::Egress, key, endpoint);
        }
    }

    fn workload_to_host(&mut self, key: &WorkloadEndpointKey) {
        // Neighbour discovery and multicast listeners: IPv6 does not work without them.
        let discovery = [130, 131, 132, 133, 135, 136];
        if matches!(self.packet.protocol, Protocol::IcmpV6 { kind, .. } if discovery.contains(&kind)) {
            let why = "neighbour discovery always reaches the host";
            self.fixed(Hook::WorkloadToHost, name_of(key), why, Some(Verdict::Allow));
            return;
        }
        if self.workload(Hook::WorkloadEgress, Direction::Egress, key) == Some(Verdict::Deny) {
            return;
        }
        let (why, verdict) = match self.node.settings.to_host {
            ToHost::Drop => ("DefaultEndpointToHostAction is Drop", Some(Verdict::Deny)),
            ToHost::Accept => ("DefaultEndpointToHostAction is Accept", Some(Verdict::Allow)),
            ToHost::Return => ("DefaultEndpointToHostAction is Return: the host's own rules decide", None),
        };
        self.fixed(Hook::WorkloadToHost, name_of(key), why, verdict);
    }

    fn host_to_outside(&mut self, to: &Place) {
        let Some((key, endpoint)) = self.governing(to) else { return };
        if endpoint.name != ANY
            && !endpoint.untracked_tiers.is_empty()
            && self.staged(Hook::UntrackedEgress, Direction::Egress, key, endpoint).is_some()
        {
            return;
        }
        self.host(Hook::HostEgress, Direction::Egress, key, endpoint);
    }

    /// The host endpoint of the interface: workloads' interfaces have only that of all interfaces.
    fn governing(&self, place: &Place) -> Option<(&'a HostEndpointKey, &'a HostEndpoint)> {
        let node = self.node;
        let key = match place {
            Place::Host => None,
            Place::Outside(Some(key)) => Some(key),
            Place::Workload(_) | Place::Outside(None) => node.any_host_endpoint(),
        }?;
        node.host_endpoints.get_key_value(key)
    }

    fn workload(&mut self, hook: Hook, way: Direction, key: &WorkloadEndpointKey) -> Option<Verdict> {
        let name = name_of(key);
        let Some(endpoint) = self.node.workloads.get(key) else {
            return self.fixed(hook, name, "the workload's interface is unknown", Some(Verdict::Deny));
        };
        if !endpoint.active {
            return self.fixed(hook, name, "the workload is administratively down", Some(Verdict::Deny));
        }
        if way == Direction::Egress
            && let Some(why) = self.node.settings.encapsulated(self.packet)
        {
            return self.fixed(hook, name, why, Some(Verdict::Deny));
        }
        let mut steps = Vec::new();
        let mut verdict = self.node.tiers(&endpoint.tiers, way, true, self.packet, &mut steps);
        if verdict.is_none() {
            verdict = Some(self.node.profiles(&endpoint.profile_ids, way, self.packet, &mut steps));
        }
        self.push(Stage { hook, endpoint: name, steps, verdict })
    }

    /// A host endpoint's normal policy.
    fn host(&mut self, hook: Hook, way: Direction, key: &HostEndpointKey, endpoint: &HostEndpoint) {
        let name = key.endpoint.clone();
        if self.node.settings.is_failsafe(way, self.packet) {
            self.fixed(hook, name, "a failsafe port, which policy cannot close", Some(Verdict::Allow));
            return;
        }
        let mut steps = Vec::new();
        let mut verdict = self.node.tiers(&endpoint.tiers, way, true, self.packet, &mut steps);
        if verdict.is_none() {
            verdict = Some(self.node.profiles(&endpoint.profile_ids, way, self.packet, &mut steps));
        }
        self.push(Stage { hook, endpoint: name, steps, verdict });
    }

    /// A host endpoint's policy where profiles are not asked.
    fn staged(
        &mut self,
        hook: Hook,
        way: Direction,
        key: &HostEndpointKey,
        endpoint: &HostEndpoint,
    ) -> Option<Verdict> {
        let name = key.endpoint.clone();
        let (tiers, ends) = match hook {
            Hook::UntrackedIngress | Hook::UntrackedEgress => (&endpoint.untracked_tiers, false),
            Hook::PreDnat => (&endpoint.pre_dnat_tiers, false),
            _ => (&endpoint.forward_tiers, true),
        };
        if ends && tiers.is_empty() {
            return None;
        }
        if !ends && self.node.settings.is_untracked_failsafe(hook, way, self.packet) {
            // Accepted here, and no more: later stages look again.
            return self.fixed(hook, name, "a failsafe port, which policy cannot close", None);
        }
        let mut steps = Vec::new();
        let verdict = self.node.tiers(tiers, way, ends, self.packet, &mut steps);
        self.push(Stage { hook, endpoint: name, steps, verdict })
    }

    fn fixed(
        &mut self,
        hook: Hook,
        endpoint: String,
        why: &'static str,
        verdict: Option<Verdict>,
    ) -> Option<Verdict> {
        self.push(Stage { hook, endpoint, steps: vec![Step::Fixed(why)], verdict })
    }

    /// Strict reverse path: the source's route has to lead back to the interface.
    fn owns_source(&self, endpoint: &WorkloadEndpoint) -> bool {
        let source = self.packet.src;
        let own = endpoint.ipv4_nets.iter().chain(&endpoint.ipv6_nets);
        let others =
            endpoint.allow_spoofed_source_prefixes.iter().filter(|_| self.node.settings.source_spoofing);
        own.chain(others).any(|net| net.contains(&source))
            || matches!(source, IpAddr::V6(ip) if ip.is_unicast_link_local())
    }

    fn push(&mut self, stage: Stage) -> Option<Verdict> {
        let verdict = stage.verdict;
        if !stage.steps.is_empty() {
            self.stages.push(stage);
        }
        verdict
    }
}

fn name_of(key: &WorkloadEndpointKey) -> String {
    format!("{} {}", key.workload, key.endpoint)
}
