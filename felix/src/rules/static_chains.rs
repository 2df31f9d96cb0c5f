//! The frame of every table: the chains that do not depend on policy or endpoints, and our rules in the
//! kernel's chains.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::Renderer;
use super::config::{EndpointToHostAction, FailsafePort, LoopPrevention};
use super::fragments::{
    Match, accept, always, clear_mark, drop, goto, is_of_family, jump, notrack, port_lists, ret, set_mark,
};
use super::names;
use crate::ipsets::names::{ALL_HOSTS, ALL_VXLAN, DSCP_SOURCES, NETWORK_IP_POOLS, THIS_HOST};
use crate::iptables::{Chain, IpVersion, Rule, TableName};

/// A rule of ours in a chain of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `FORWARD`, `PREROUTING`, …
    pub chain: String,
    pub rule: Rule,
    /// Goes to the end whatever ChainInsertMode says.
    pub append_always: bool,
}

/// What the frame depends on besides configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StaticInputs {
    pub ipip_tunnel_address: Option<String>,
    pub vxlan_tunnel_address: Option<String>,
    pub vxlan_tunnel_address_v6: Option<String>,
    /// Some pool masquerades.
    pub nat_outgoing: bool,
    /// Service addresses that must not be routed back out.
    pub service_cidrs: BTreeSet<String>,
    /// By interface: sources it may use beside its own.
    pub spoofable: BTreeMap<String, Vec<IpNet>>,
    /// Floating addresses: external to internal.
    pub dnats: BTreeMap<String, String>,
    /// Floating addresses: internal to external.
    pub snats: BTreeMap<String, String>,
    pub dscp: Vec<DscpRule>,
}

/// Packets from these addresses, separated by commas, leave the cluster with this value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DscpRule {
    pub sources: String,
    pub value: u8,
}

const ACCEPTED_BY_HOST_POLICY: &str = "Host endpoint policy accepted packet.";
const ACCEPTED_BY_POLICY: &str = "Policy explicitly accepted packet.";
const NODE_PORT: &str = "To kubernetes NodePort service";

/// Router and neighbour discovery, which IPv6 does not work without.
const ICMPV6_ESSENTIALS: [u8; 6] = [130, 131, 132, 133, 135, 136];

fn chain(name: &str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), rules }
}

fn family(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "IPv4",
        IpVersion::V6 => "IPv6",
    }
}

impl Renderer {
    /// All chains of a table that are there whatever the policy: those of the frame, and those that the
    /// frame jumps to and `inputs` fills. Dispatch chains come from [`Renderer::workload_dispatch`] and
    /// [`Renderer::host_dispatch`], which give empty ones where there is no endpoint.
    pub fn static_chains(&self, table: TableName, version: IpVersion, inputs: &StaticInputs) -> Vec<Chain> {
        match table {
            TableName::Filter => {
                let mut chains = self.static_filter_chains(version);
                chains.push(self.blocked_cidrs(version, &inputs.service_cidrs));
                chains
            }
            TableName::Nat => {
                let mut chains = self.static_nat_chains(version, inputs);
                chains.push(self.nat_outgoing(version, inputs.nat_outgoing, self.nat_address(version)));
                let of_family = |map: &BTreeMap<String, String>| {
                    map.iter()
                        .filter(|(address, _)| is_of_family(address, version))
                        .map(|(a, b)| (a.clone(), b.clone()))
                        .collect()
                };
                chains.push(self.floating_ip_dnat(&of_family(&inputs.dnats)));
                chains.push(self.floating_ip_snat(&of_family(&inputs.snats)));
                chains
            }
            TableName::Mangle => {
                let mut chains = self.static_mangle_chains(version);
                let dscp: Vec<_> =
                    inputs.dscp.iter().filter(|rule| is_of_family(&rule.sources, version)).cloned().collect();
                chains.push(self.egress_dscp(&dscp));
                chains
            }
            TableName::Raw => {
                let mut chains = self.static_raw_chains(version);
                chains.push(self.rpf_skip(version, &inputs.spoofable));
                chains
            }
        }
    }

    /// Our rules in the kernel's chains of a table, in order.
    pub fn hooks(&self, table: TableName, _version: IpVersion) -> Vec<Hook> {
        let inserted = |chain: &str| Hook {
            chain: chain.to_owned(),
            rule: always(jump(&format!("cali-{chain}"))),
            append_always: false,
        };
        let appended = |chain: &str, rule: Rule| Hook { chain: chain.to_owned(), rule, append_always: true };
        match table {
            TableName::Filter => {
                let mut hooks = vec![inserted("INPUT"), inserted("FORWARD"), inserted("OUTPUT")];
                hooks.extend(self.forward_append_rules().into_iter().map(|rule| appended("FORWARD", rule)));
                hooks
            }
            TableName::Nat => vec![
                inserted("PREROUTING"),
                inserted("OUTPUT"),
                appended("POSTROUTING", always(jump(names::POSTROUTING))),
            ],
            TableName::Mangle => vec![inserted("PREROUTING"), inserted("POSTROUTING")],
            TableName::Raw => vec![inserted("PREROUTING"), inserted("OUTPUT")],
        }
    }

    /// At the end of FORWARD: what policy accepted is not left to the chain's default, and what reached
    /// this point without policy is marked so that host endpoint policy further on does not drop it.
    pub fn forward_append_rules(&self) -> Vec<Rule> {
        let config = self.config();
        vec![
            Match::new()
                .mark_set(config.marks.accept)
                .then(config.filter_allow_action.action())
                .comment(ACCEPTED_BY_POLICY),
            always(set_mark(config.marks.accept)),
        ]
    }

    fn prefixes(&self) -> impl Iterator<Item = String> + '_ {
        self.config().workload_iface_prefixes.iter().map(|prefix| format!("{prefix}+"))
    }

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

    fn vxlan_in(&self, version: IpVersion) -> bool {
        match version {
            IpVersion::V4 => self.config().vxlan_enabled,
            IpVersion::V6 => self.config().vxlan_enabled_v6,
        }
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

    fn failsafe_in(&self, table: TableName, version: IpVersion) -> Chain {
        let config = self.config();
        let to = failsafe_rules(&config.failsafe_inbound, version, "--destination-ports", "--source");
        // Before conntrack the answers to what the host itself may always ask look like new packets.
        let answers: Vec<Rule> = match table {
            TableName::Raw => {
                failsafe_rules(&config.failsafe_outbound, version, "--source-ports", "--source").collect()
            }
            _ => Vec::new(),
        };
        chain(names::FAILSAFE_IN, to.chain(answers).collect())
    }

    fn failsafe_out(&self, table: TableName, version: IpVersion) -> Chain {
        let config = self.config();
        let to = failsafe_rules(&config.failsafe_outbound, version, "--destination-ports", "--destination");
        let answers: Vec<Rule> = match table {
            TableName::Raw => {
                failsafe_rules(&config.failsafe_inbound, version, "--source-ports", "--destination").collect()
            }
            _ => Vec::new(),
        };
        chain(names::FAILSAFE_OUT, to.chain(answers).collect())
    }

    pub fn static_nat_chains(&self, version: IpVersion, inputs: &StaticInputs) -> Vec<Chain> {
        vec![self.nat_prerouting(version), self.nat_postrouting(version, inputs), self.nat_output()]
    }

    pub fn static_mangle_chains(&self, version: IpVersion) -> Vec<Chain> {
        vec![
            self.failsafe_in(TableName::Mangle, version),
            self.failsafe_out(TableName::Mangle, version),
            self.mangle_prerouting(),
            self.mangle_postrouting(version),
        ]
    }

    fn mangle_prerouting(&self) -> Chain {
        let config = self.config();
        let allow = || config.mangle_allow_action.action();
        let accepted = || Match::new().mark_set(config.marks.accept);
        chain(
            names::PREROUTING,
            vec![
                Match::new().conntrack("RELATED,ESTABLISHED").then(allow()),
                accepted().then(allow()),
                always(jump(names::FROM_HOST_ENDPOINT)),
                accepted().then(allow()).comment(ACCEPTED_BY_HOST_POLICY),
            ],
        )
    }

    pub fn mangle_postrouting(&self, version: IpVersion) -> Chain {
        let config = self.config();
        let marks = &config.marks;
        let mut rules = vec![
            Match::new()
                .set(version, DSCP_SOURCES, "src")
                .not_set(version, NETWORK_IP_POOLS, "dst")
                .not_set(version, THIS_HOST, "dst")
                .then(jump(names::EGRESS_DSCP))
                .comment("set dscp for traffic leaving cluster."),
            Match::new().mark_set(marks.accept).then(ret()),
        ];
        if config.kube_ipvs {
            rules.push(Match::new().mark_not_clear(marks.endpoint).then(ret()));
        }
        rules.push(always(clear_mark(marks.all())));
        rules.push(Match::new().conntrack("DNAT").then(jump(names::TO_HOST_ENDPOINT)));
        rules.push(Match::new().mark_set(marks.accept).then(ret()).comment(ACCEPTED_BY_HOST_POLICY));
        chain(names::POSTROUTING, rules)
    }

    pub fn egress_dscp(&self, dscp: &[DscpRule]) -> Chain {
        let rules = dscp
            .iter()
            .map(|rule| {
                Match::new().source(&rule.sources).then(format!("--jump DSCP --set-dscp {}", rule.value))
            })
            .collect();
        chain(names::EGRESS_DSCP, rules)
    }

    pub fn static_raw_chains(&self, version: IpVersion) -> Vec<Chain> {
        vec![
            self.failsafe_in(TableName::Raw, version),
            self.failsafe_out(TableName::Raw, version),
            self.raw_prerouting(version),
            self.wireguard_incoming_mark(),
            self.raw_output(version),
        ]
    }

    pub fn raw_prerouting(&self, version: IpVersion) -> Chain {
        let config = self.config();
        let marks = &config.marks;
        let mut rules = vec![always(clear_mark(marks.all()))];
        let wireguard = config.wireguard_enabled || config.wireguard_enabled_v6;
        if wireguard && config.wireguard_encrypt_host_traffic {
            rules.push(always(jump(names::WIREGUARD_INCOMING_MARK)));
        }
        rules.extend(self.vxlan_notrack(version));
        for prefix in self.prefixes() {
            rules.push(Match::new().in_interface(&prefix).then(set_mark(marks.scratch0)));
        }
        rules.push(Match::new().mark_set(marks.scratch0).then(jump(names::RPF_SKIP)));
        rules.extend(self.rpf_check(version));
        // Host endpoints have no untracked policy on packets of workloads.
        rules.push(Match::new().mark_clear(marks.scratch0).then(jump(names::FROM_HOST_ENDPOINT)));
        rules.push(Match::new().mark_set(marks.accept).then(accept()));
        chain(names::PREROUTING, rules)
    }

    /// Conntrack of the tunnel's own packets costs and gives nothing.
    fn vxlan_notrack(&self, version: IpVersion) -> Option<Rule> {
        let port = self.config().vxlan_port;
        self.vxlan_in(version)
            .then(|| Match::new().protocol("udp").raw(format!("--dport {port}")).then(notrack()))
    }

    /// A workload's packets are taken only from addresses that are routed to it.
    pub fn rpf_check(&self, version: IpVersion) -> Vec<Rule> {
        let config = self.config();
        let mut rules = Vec::new();
        if version == IpVersion::V4 && config.openstack.is_some() {
            // An instance that asks for its address has none yet.
            let dhcp =
                Match::new().protocol("udp").source("0.0.0.0").source_ports("68").destination_ports("67");
            rules.push(dhcp.then(accept()));
        }
        let spoofed = Match::new().mark_set(config.marks.scratch0).raw("-m rpfilter --invert --validmark");
        rules.push(spoofed.then(self.deny_in(TableName::Raw).action()));
        rules
    }

    pub fn rpf_skip(&self, version: IpVersion, spoofable: &BTreeMap<String, Vec<IpNet>>) -> Chain {
        let mut rules = Vec::new();
        for (iface, nets) in spoofable.iter().filter(|(iface, _)| names::is_interface(iface)) {
            let texts = nets.iter().map(IpNet::to_string);
            for net in texts.filter(|net| is_of_family(net, version)) {
                rules.push(Match::new().in_interface(iface).source(&net).then(accept()));
            }
        }
        chain(names::RPF_SKIP, rules)
    }

    fn wireguard_incoming_mark(&self) -> Chain {
        let config = self.config();
        let devices = ["lo", &config.wireguard_interface, &config.wireguard_interface_v6];
        let mut rules: Vec<Rule> =
            devices.into_iter().map(|device| Match::new().in_interface(device).then(ret())).collect();
        rules.extend(self.prefixes().map(|prefix| Match::new().in_interface(&prefix).then(ret())));
        rules.push(always(set_mark(config.marks.wireguard)));
        chain(names::WIREGUARD_INCOMING_MARK, rules)
    }

    fn raw_output(&self, version: IpVersion) -> Chain {
        let marks = &self.config().marks;
        let mut rules = vec![always(clear_mark(marks.all())), always(jump(names::TO_HOST_ENDPOINT))];
        rules.extend(self.vxlan_notrack(version));
        rules.push(Match::new().mark_set(marks.accept).then(accept()));
        chain(names::OUTPUT, rules)
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

fn failsafe_rules<'a>(
    ports: &'a [FailsafePort],
    version: IpVersion,
    ports_option: &'a str,
    net_option: &'a str,
) -> impl Iterator<Item = Rule> + 'a {
    ports.iter().filter_map(move |entry| {
        let mut matches =
            Match::new().protocol(&entry.protocol).raw(format!("-m multiport {ports_option} {}", entry.port));
        if let Some(net) = entry.net.map(|net| net.to_string()) {
            if !is_of_family(&net, version) {
                return None;
            }
            matches = matches.raw(format!("{net_option} {net}"));
        }
        Some(matches.then(accept()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::RulesConfig;

    const TABLES: [TableName; 4] = [TableName::Raw, TableName::Mangle, TableName::Nat, TableName::Filter];

    /// With nothing configured and no endpoint, a table can be loaded as it is.
    #[test]
    fn every_jump_of_the_frame_has_its_target() {
        let renderer = Renderer::new(RulesConfig {
            ipip_enabled: true,
            vxlan_enabled: true,
            vxlan_enabled_v6: true,
            ..RulesConfig::default()
        });
        for version in [IpVersion::V4, IpVersion::V6] {
            for table in TABLES {
                let mut chains = renderer.static_chains(table, version, &StaticInputs::default());
                chains.extend(renderer.host_dispatch(table, version, &[]));
                if table == TableName::Filter {
                    chains.extend(renderer.workload_dispatch::<&str>(version, &[]));
                }
                let names: BTreeSet<&str> = chains.iter().map(|chain| chain.name.as_str()).collect();
                let hooks = renderer.hooks(table, version);
                let rules = chains.iter().flat_map(|chain| &chain.rules).chain(hooks.iter().map(|h| &h.rule));
                for rule in rules {
                    let target = rule.action.split_whitespace().nth(1).unwrap();
                    assert!(!target.starts_with("cali-") || names.contains(target), "{table:?}: {target}");
                }
            }
        }
    }

    #[test]
    fn nothing_but_filter_rejects() {
        let config = RulesConfig {
            filter_deny_action: crate::rules::fragments::DenyAction::Reject,
            ..RulesConfig::default()
        };
        let renderer = Renderer::new(config);
        for table in [TableName::Raw, TableName::Mangle, TableName::Nat] {
            let chains = renderer.static_chains(table, IpVersion::V4, &StaticInputs::default());
            assert!(chains.iter().flat_map(|c| &c.rules).all(|rule| !rule.action.contains("REJECT")));
        }
    }
}
