//! The parameters that decide about packets beside policy.

use std::collections::BTreeMap;

use super::packet::{Packet, Protocol};
use super::{Direction, Hook};
use crate::failsafe::{self, FailsafePort};

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub to_host: ToHost,
    pub failsafe_inbound: Vec<FailsafePort>,
    pub failsafe_outbound: Vec<FailsafePort>,
    pub vxlan_port: u16,
    pub allow_vxlan_from_workloads: bool,
    pub allow_ipip_from_workloads: bool,
    /// The sources that endpoints ask for beside their own count: WorkloadSourceSpoofing.
    pub source_spoofing: bool,
}

/// What becomes of what policy lets a workload send to its node: DefaultEndpointToHostAction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToHost {
    #[default]
    Drop,
    Accept,
    Return,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            to_host: ToHost::Drop,
            failsafe_inbound: failsafe::default_inbound(),
            failsafe_outbound: failsafe::default_outbound(),
            vxlan_port: 4789,
            allow_vxlan_from_workloads: false,
            allow_ipip_from_workloads: false,
            source_spoofing: false,
        }
    }
}

impl Settings {
    /// From parameters by Felix's names, in any case. One that cannot be read keeps its default, as in felix.
    pub fn from_params(params: &BTreeMap<String, String>) -> Settings {
        let get = |name: &str| {
            let given = params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            given.map(|(_, value)| value.trim().to_ascii_lowercase())
        };
        let flag =
            |name| get(name).is_some_and(|text| ["true", "1", "yes", "y", "t"].contains(&text.as_str()));
        let failsafes = |name, default| match get(name).map(|text| failsafe::parse_list(&text)) {
            Some(Ok(list)) => list,
            _ => default,
        };
        Settings {
            to_host: match get("DefaultEndpointToHostAction").as_deref() {
                Some("accept") => ToHost::Accept,
                Some("return") => ToHost::Return,
                _ => ToHost::Drop,
            },
            failsafe_inbound: failsafes("FailsafeInboundHostPorts", failsafe::default_inbound()),
            failsafe_outbound: failsafes("FailsafeOutboundHostPorts", failsafe::default_outbound()),
            vxlan_port: get("VXLANPort").and_then(|text| text.parse().ok()).unwrap_or(4789),
            allow_vxlan_from_workloads: flag("AllowVXLANPacketsFromWorkloads"),
            allow_ipip_from_workloads: flag("AllowIPIPPacketsFromWorkloads"),
            source_spoofing: get("WorkloadSourceSpoofing").as_deref() == Some("any"),
        }
    }

    /// Why a workload may not send this: it would speak to tunnels as if it were a node.
    pub(super) fn encapsulated(&self, packet: &Packet) -> Option<&'static str> {
        match packet.protocol {
            Protocol::Ports { number: 17, dst, .. }
                if dst == self.vxlan_port && !self.allow_vxlan_from_workloads =>
            {
                Some("workloads may not send VXLAN packets")
            }
            Protocol::Other(4) if !self.allow_ipip_from_workloads => {
                Some("workloads may not send IP-in-IP packets")
            }
            _ => None,
        }
    }

    pub(super) fn is_failsafe(&self, way: Direction, packet: &Packet) -> bool {
        let Protocol::Ports { number, dst, .. } = packet.protocol else { return false };
        match way {
            Direction::Ingress => {
                self.failsafe_inbound.iter().any(|entry| entry.holds(number, dst, packet.src))
            }
            Direction::Egress => {
                self.failsafe_outbound.iter().any(|entry| entry.holds(number, dst, packet.dst))
            }
        }
    }

    /// Before conntrack the answers of failsafe connections have to pass, too.
    pub(super) fn is_untracked_failsafe(&self, hook: Hook, way: Direction, packet: &Packet) -> bool {
        let Protocol::Ports { number, src, .. } = packet.protocol else { return false };
        let answer = |list: &[FailsafePort], peer| list.iter().any(|entry| entry.holds(number, src, peer));
        self.is_failsafe(way, packet)
            || match hook {
                Hook::UntrackedIngress => answer(&self.failsafe_outbound, packet.src),
                Hook::UntrackedEgress => answer(&self.failsafe_inbound, packet.dst),
                _ => false,
            }
    }
}
