//! Address translation: masquerading of what leaves the pools and the tunnels, and floating addresses.

use std::collections::BTreeMap;

use super::Renderer;
use super::fragments::{Match, always, is_of_family, jump, ret};
use super::names;
use super::static_chains::StaticInputs;
use crate::ipsets::names::{ALL_HOSTS, MASQ_IP_POOLS, NETWORK_IP_POOLS};
use crate::iptables::{Chain, IpVersion};

/// Below this, ports are for services.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

pub const IPIP_DEVICE: &str = "tunl0";
pub const VXLAN_DEVICE: &str = "vxlan.calico";
pub const VXLAN_DEVICE_V6: &str = "vxlan-v6.calico";

impl Renderer {
    pub fn static_nat_chains(&self, version: IpVersion, inputs: &StaticInputs) -> Vec<Chain> {
        vec![self.nat_prerouting(version), self.nat_postrouting(version, inputs), self.nat_output()]
    }

    fn masquerade(&self, ports: Option<(u16, u16)>) -> String {
        let mut action = jump("MASQUERADE");
        if let Some((first, last)) = ports {
            action.push_str(&format!(" --to-ports {first}-{last}"));
        }
        if self.config().features.masquerade_random_fully {
            action.push_str(" --random-fully");
        }
        action
    }

    fn snat(&self, to: &str) -> String {
        let random = if self.config().features.snat_random_fully { " --random-fully" } else { "" };
        format!("--jump SNAT --to-source {to}{random}")
    }

    /// What workloads in masquerading pools send outside all pools gets this node's address, or the one
    /// configured. `address` is left out where it is of the other family.
    pub fn nat_outgoing(&self, version: IpVersion, active: bool, address: Option<&str>) -> Chain {
        let config = self.config();
        let mut rules = Vec::new();
        if active {
            let matches = |protocol: Option<&str>| {
                let mut matches =
                    Match::new().set(version, MASQ_IP_POOLS, "src").not_set(version, NETWORK_IP_POOLS, "dst");
                if config.nat_outgoing_excludes_hosts {
                    matches = matches.not_set(version, ALL_HOSTS, "dst");
                }
                if let Some(protocol) = protocol {
                    matches = matches.protocol(protocol);
                }
                if let Some(filter) = &config.nat_outgoing_interface_filter {
                    matches = matches.out_interface(filter);
                }
                matches
            };
            let translate = |ports: Option<(u16, u16)>| match (address, ports) {
                (Some(address), Some((first, last))) => self.snat(&format!("{address}:{first}-{last}")),
                (Some(address), None) => self.snat(address),
                (None, ports) => self.masquerade(ports),
            };
            if config.nat_port_range.is_some() {
                for protocol in ["tcp", "udp"] {
                    rules.push(matches(Some(protocol)).then(translate(config.nat_port_range)));
                    // When the range is used up the packet keeps its address rather than take a port
                    // outside it.
                    rules.push(matches(Some(protocol)).then(ret()));
                }
            }
            rules.push(matches(None).then(translate(None)));
        }
        Chain { name: names::NAT_OUTGOING.to_owned(), rules }
    }

    /// External addresses to workloads.
    pub fn floating_ip_dnat(&self, dnats: &BTreeMap<String, String>) -> Chain {
        let rules = dnats
            .iter()
            .map(|(external, internal)| {
                Match::new().destination(external).then(format!("--jump DNAT --to-destination {internal}"))
            })
            .collect();
        Chain { name: names::FLOATING_IP_DNAT.to_owned(), rules }
    }

    /// A workload that reaches itself over its external address sees that address.
    pub fn floating_ip_snat(&self, snats: &BTreeMap<String, String>) -> Chain {
        let rules = snats
            .iter()
            .map(|(internal, external)| {
                Match::new().destination(internal).source(internal).then(self.snat(external))
            })
            .collect();
        Chain { name: names::FLOATING_IP_SNAT.to_owned(), rules }
    }

    pub fn nat_prerouting(&self, version: IpVersion) -> Chain {
        let mut rules = vec![always(jump(names::FLOATING_IP_DNAT))];
        let metadata = self.config().openstack.as_ref().filter(|_| version == IpVersion::V4);
        if let Some((openstack, address)) =
            metadata.and_then(|openstack| Some((openstack, openstack.metadata_ip.as_ref()?)))
        {
            rules.push(
                Match::new()
                    .protocol("tcp")
                    .destination("169.254.169.254")
                    .destination_ports("80")
                    .then(format!("--jump DNAT --to-destination {address}:{}", openstack.metadata_port)),
            );
        }
        Chain { name: names::PREROUTING.to_owned(), rules }
    }

    pub fn nat_output(&self) -> Chain {
        Chain { name: names::OUTPUT.to_owned(), rules: vec![always(jump(names::FLOATING_IP_DNAT))] }
    }

    /// What this node sends into a tunnel from an address that is not the tunnel's gets the tunnel's, or
    /// the answer would come back outside it.
    pub fn nat_postrouting(&self, version: IpVersion, inputs: &StaticInputs) -> Chain {
        let config = self.config();
        let (devices, vxlan) = match version {
            IpVersion::V4 => (
                [
                    (config.ipip_enabled && inputs.ipip_tunnel_address.is_some()).then_some(IPIP_DEVICE),
                    (config.vxlan_enabled && inputs.vxlan_tunnel_address.is_some()).then_some(VXLAN_DEVICE),
                    config.wireguard_enabled.then_some(config.wireguard_interface.as_str()),
                ],
                config.vxlan_enabled,
            ),
            IpVersion::V6 => (
                [
                    None,
                    (config.vxlan_enabled_v6 && inputs.vxlan_tunnel_address_v6.is_some())
                        .then_some(VXLAN_DEVICE_V6),
                    config.wireguard_enabled_v6.then_some(config.wireguard_interface_v6.as_str()),
                ],
                config.vxlan_enabled_v6,
            ),
        };
        let mut rules = vec![always(jump(names::FLOATING_IP_SNAT)), always(jump(names::NAT_OUTGOING))];
        for device in devices.into_iter().flatten() {
            let leaves = |matches: Match| {
                matches
                    .out_interface(device)
                    .raw("-m addrtype ! --src-type LOCAL --limit-iface-out")
                    .from_local()
            };
            if vxlan {
                // A masqueraded UDP flow with the VXLAN port as its source would be taken for a tunnel's.
                let udp = leaves(Match::new().protocol("17"));
                rules.push(udp.then(self.masquerade(Some(ports_beside(config.vxlan_port)))));
            }
            rules.push(leaves(Match::new()).then(self.masquerade(None)));
        }
        Chain { name: names::POSTROUTING.to_owned(), rules }
    }

    /// The configured source address, where it is of this family.
    pub(super) fn nat_address(&self, version: IpVersion) -> Option<&str> {
        self.config().nat_outgoing_address.as_deref().filter(|address| is_of_family(address, version))
    }
}

/// The wider range of ports above or below one.
fn ports_beside(port: u16) -> (u16, u16) {
    let above = u16::MAX - port;
    let below = port.saturating_sub(FIRST_UNPRIVILEGED_PORT);
    if above >= below { (port + 1, u16::MAX) } else { (FIRST_UNPRIVILEGED_PORT, port - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::RulesConfig;

    #[test]
    fn masqueraded_ports_avoid_the_tunnels() {
        assert_eq!(ports_beside(4789), (4790, 65535));
        assert_eq!(ports_beside(65535), (1024, 65534));
    }

    #[test]
    fn a_source_address_of_the_other_family_is_not_used() {
        let config = RulesConfig { nat_outgoing_address: Some("192.0.2.1".into()), ..RulesConfig::default() };
        let renderer = Renderer::new(config);
        assert_eq!(renderer.nat_address(IpVersion::V4), Some("192.0.2.1"));
        assert_eq!(renderer.nat_address(IpVersion::V6), None);
    }
}
