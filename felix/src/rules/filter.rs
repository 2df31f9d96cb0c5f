//! The filter table's frame: forwarding, to and from the host, tunnels, services' loops.

use std::collections::BTreeSet;

use super::Renderer;
use super::config::{EndpointToHostAction, LoopPrevention};
use super::fragments::{Match, always, clear_mark, drop, goto, is_of_family, jump, port_lists, ret};
use super::names;
use super::static_chains::{ACCEPTED_BY_HOST_POLICY, ACCEPTED_BY_POLICY, chain};
use crate::ipsets::names::{ALL_HOSTS, ALL_VXLAN, THIS_HOST};
use crate::iptables::{Chain, IpVersion, TableName};

const NODE_PORT: &str = "To kubernetes NodePort service";

/// Router and neighbour discovery, which IPv6 does not work without.
const ICMPV6_ESSENTIALS: [u8; 6] = [130, 131, 132, 133, 135, 136];

impl Renderer {
    pub fn static_filter_chains(&self, version: IpVersion) -> Vec<Chain> {
        let mut chains = vec![
            self.filter_forward(),
            self.filter_input(version),
            self.workload_to_host(version),
            self.failsafe_in(TableName::Filter, version),
        ];
        if self.config().kube_ipvs {
            chains.push(self.forward_check(version));
        }
        chains.push(self.filter_output(version));
        chains.push(self.failsafe_out(TableName::Filter, version));
        if self.config().kube_ipvs {
            chains.push(self.forward_endpoint_mark());
        }
        chains
    }

    fn filter_forward(&self) -> Chain {
        let marks = &self.config().marks;
        let mut rules = vec![
            // The accept mark may come from raw or mangle and is kept.
            always(clear_mark(marks.all() & !marks.accept)),
            Match::new().mark_clear(marks.accept).then(jump(names::FROM_HOST_FORWARD)),
        ];
        for prefix in self.prefixes() {
            rules.push(Match::new().in_interface(&prefix).then(jump(names::FROM_WORKLOAD_DISPATCH)));
            rules.push(Match::new().out_interface(&prefix).then(jump(names::TO_WORKLOAD_DISPATCH)));
        }
        rules.push(always(jump(names::TO_HOST_FORWARD)));
        rules.push(always(jump(names::CIDR_BLOCK)));
        chain(names::FILTER_FORWARD, rules)
    }

    fn filter_input(&self, version: IpVersion) -> Chain {
        let config = self.config();
        let marks = &config.marks;
        let allow = || config.filter_allow_action.action();
        let mut rules = Vec::new();
        if version == IpVersion::V4 && config.ipip_enabled {
            let deny = config.filter_deny_action;
            rules.push(
                Match::new()
                    .protocol("4")
                    .set(version, ALL_HOSTS, "src")
                    .to_local()
                    .then(allow())
                    .comment("Allow IPIP packets from Calico hosts"),
            );
            rules.push(
                Match::new()
                    .protocol("4")
                    .then(deny.action())
                    .comment(format!("{} IPIP packets from non-Calico hosts", deny.verb())),
            );
        }
        if self.vxlan_in(version) {
            let family = family(version);
            // Ahead of the failsafes and of policy, since a node that takes tunnel packets from anywhere
            // takes any packet from anywhere. The v6 rule follows the configured action, the v4 one
            // does not: so the rules of running clusters have it.
            let denied = match version {
                IpVersion::V4 => drop(),
                IpVersion::V6 => config.filter_deny_action.action(),
            };
            let verb = match version {
                IpVersion::V4 => "Drop",
                IpVersion::V6 => config.filter_deny_action.verb(),
            };
            rules.push(
                self.udp_to(config.vxlan_port)
                    .set(version, ALL_VXLAN, "src")
                    .to_local()
                    .then(allow())
                    .comment(format!("Allow {family} VXLAN packets from allowed hosts")),
            );
            rules.push(
                self.udp_to(config.vxlan_port)
                    .to_local()
                    .then(denied)
                    .comment(format!("{verb} {family} VXLAN packets from non-allowed hosts")),
            );
        }
        if let Some(port) = self.wireguard_in(version) {
            rules.push(
                self.udp_to(port)
                    .to_local()
                    .then(allow())
                    .comment(format!("Allow incoming {} Wireguard packets", family(version))),
            );
        }
        if config.kube_ipvs {
            rules.push(always(clear_mark(marks.endpoint)));
            rules.push(always(jump(names::FORWARD_CHECK)));
            rules.push(Match::new().mark_not_clear(marks.endpoint).then(ret()));
        }
        for prefix in self.prefixes() {
            rules.push(Match::new().in_interface(&prefix).then(goto(names::WORKLOAD_TO_HOST)));
        }
        rules.push(Match::new().mark_set(marks.accept).then(allow()));
        rules.push(always(clear_mark(marks.all())));
        rules.push(always(jump(names::FROM_HOST_ENDPOINT)));
        rules.push(Match::new().mark_set(marks.accept).then(allow()).comment(ACCEPTED_BY_HOST_POLICY));
        chain(names::FILTER_INPUT, rules)
    }

    fn wireguard_in(&self, version: IpVersion) -> Option<u16> {
        let config = self.config();
        match version {
            IpVersion::V4 => config.wireguard_enabled.then_some(config.wireguard_port),
            IpVersion::V6 => config.wireguard_enabled_v6.then_some(config.wireguard_port_v6),
        }
    }

    fn udp_to(&self, port: u16) -> Match {
        Match::new().protocol("17").destination_ports(&port.to_string())
    }

    fn workload_to_host(&self, version: IpVersion) -> Chain {
        let config = self.config();
        let allow = || config.filter_allow_action.action();
        let mut rules = Vec::new();
        if version == IpVersion::V6 {
            rules.extend(ICMPV6_ESSENTIALS.map(|kind| {
                Match::new().protocol("58").raw(format!("-m icmp6 --icmpv6-type {kind}")).then(allow())
            }));
        }
        if let Some(openstack) = &config.openstack {
            if let (IpVersion::V4, Some(address)) = (version, &openstack.metadata_ip) {
                let port = openstack.metadata_port.to_string();
                let matches = Match::new().protocol("tcp").destination(address).destination_ports(&port);
                rules.push(matches.then(allow()));
            }
            let (from, to) = match version {
                IpVersion::V4 => ("68", "67"),
                IpVersion::V6 => ("546", "547"),
            };
            let dhcp = Match::new().protocol("udp").source_ports(from).destination_ports(to);
            rules.push(dhcp.then(allow()));
            rules.push(Match::new().protocol("udp").destination_ports("53").then(allow()));
        }
        rules.push(always(jump(names::FROM_WORKLOAD_DISPATCH)));
        let action = match config.endpoint_to_host_action {
            EndpointToHostAction::Drop => drop(),
            EndpointToHostAction::Accept => allow(),
            EndpointToHostAction::Return => ret(),
        };
        rules.push(always(action).comment("Configured DefaultEndpointToHostAction"));
        chain(names::WORKLOAD_TO_HOST, rules)
    }

    fn filter_output(&self, version: IpVersion) -> Chain {
        let config = self.config();
        let marks = &config.marks;
        let allow = || config.filter_allow_action.action();
        let mut rules = vec![Match::new().mark_set(marks.accept).then(allow())];
        if config.kube_ipvs {
            let marked = Match::new().mark_not_clear(marks.endpoint);
            rules.push(marked.then(goto(names::FORWARD_ENDPOINT_MARK)));
        }
        // The host always reaches its own workloads.
        for prefix in self.prefixes() {
            rules.push(Match::new().out_interface(&prefix).then(ret()));
        }
        if version == IpVersion::V4 && config.ipip_enabled {
            rules.push(
                Match::new()
                    .protocol("4")
                    .set(version, ALL_HOSTS, "dst")
                    .from_local()
                    .then(allow())
                    .comment("Allow IPIP packets to other Calico hosts"),
            );
        }
        if self.vxlan_in(version) {
            rules.push(
                self.udp_to(config.vxlan_port)
                    .from_local()
                    .set(version, ALL_VXLAN, "dst")
                    .then(allow())
                    .comment(format!("Allow {} VXLAN packets to other allowed hosts", family(version))),
            );
        }
        if let Some(port) = self.wireguard_in(version) {
            rules.push(
                self.udp_to(port)
                    .from_local()
                    .then(allow())
                    .comment(format!("Allow outgoing {} Wireguard packets", family(version))),
            );
        }
        rules.push(always(clear_mark(marks.all())));
        // What DNAT redirected is policed in mangle POSTROUTING, where its real device is known.
        let not_redirected = Match::new().raw("-m conntrack ! --ctstate DNAT");
        rules.push(not_redirected.then(jump(names::TO_HOST_ENDPOINT)));
        rules.push(Match::new().mark_set(marks.accept).then(allow()).comment(ACCEPTED_BY_HOST_POLICY));
        chain(names::OUTPUT, rules)
    }

    fn forward_check(&self, version: IpVersion) -> Chain {
        let mut rules = vec![Match::new().conntrack("RELATED,ESTABLISHED").then(ret())];
        for ports in port_lists(&self.config().kube_node_port_ranges) {
            for protocol in ["tcp", "udp"] {
                rules.push(
                    Match::new()
                        .protocol(protocol)
                        .destination_ports(&ports)
                        .set(version, THIS_HOST, "dst")
                        .then(goto(names::SET_ENDPOINT_MARK))
                        .comment(NODE_PORT),
                );
            }
        }
        let elsewhere = Match::new().not_set(version, THIS_HOST, "dst");
        rules.push(elsewhere.then(jump(names::SET_ENDPOINT_MARK)).comment("To kubernetes service"));
        chain(names::FORWARD_CHECK, rules)
    }

    fn forward_endpoint_mark(&self) -> Chain {
        let config = self.config();
        let marks = &config.marks;
        let mut rules = vec![
            Match::new()
                .mark_is_not(marks.non_cali_endpoint, marks.endpoint)
                .then(jump(names::FROM_ENDPOINT_MARK)),
        ];
        for prefix in self.prefixes() {
            rules.push(Match::new().out_interface(&prefix).then(jump(names::TO_WORKLOAD_DISPATCH)));
        }
        rules.push(always(jump(names::TO_HOST_FORWARD)));
        rules.push(always(clear_mark(marks.endpoint)));
        rules.push(
            Match::new()
                .mark_set(marks.accept)
                .then(config.filter_allow_action.action())
                .comment(ACCEPTED_BY_POLICY),
        );
        chain(names::FORWARD_ENDPOINT_MARK, rules)
    }

    /// Packets to a service address that no service answers for would bounce between this node and its
    /// router.
    pub fn blocked_cidrs(&self, version: IpVersion, cidrs: &BTreeSet<String>) -> Chain {
        let action = match self.config().service_loop_prevention {
            LoopPrevention::Drop => Some(drop()),
            LoopPrevention::Reject => Some(jump("REJECT")),
            LoopPrevention::Disabled => None,
        };
        let rules = action
            .iter()
            .flat_map(|action| {
                let of_family = cidrs.iter().filter(|cidr| is_of_family(cidr, version));
                of_family.map(|cidr| Match::new().destination(cidr).then(action.clone()))
            })
            .collect();
        chain(names::CIDR_BLOCK, rules)
    }
}

fn family(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "IPv4",
        IpVersion::V6 => "IPv6",
    }
}
