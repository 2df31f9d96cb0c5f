//! The frame of every table: the chains that do not depend on policy or endpoints, and our rules in the
//! kernel's chains.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::Renderer;
use super::config::FailsafePort;
use super::fragments::{Match, accept, always, is_of_family, jump, set_mark};
use super::names;
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

pub(super) const ACCEPTED_BY_HOST_POLICY: &str = "Host endpoint policy accepted packet.";
pub(super) const ACCEPTED_BY_POLICY: &str = "Policy explicitly accepted packet.";

pub(super) fn chain(name: &str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), rules }
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

    pub(super) fn prefixes(&self) -> impl Iterator<Item = String> + '_ {
        self.config().workload_iface_prefixes.iter().map(|prefix| format!("{prefix}+"))
    }

    pub(super) fn vxlan_in(&self, version: IpVersion) -> bool {
        match version {
            IpVersion::V4 => self.config().vxlan_enabled,
            IpVersion::V6 => self.config().vxlan_enabled_v6,
        }
    }

    /// Where the host is to be reached whatever its policy says: nobody locks out SSH.
    pub(super) fn failsafe_in(&self, table: TableName, version: IpVersion) -> Chain {
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

    /// What the host may ask whatever its policy says.
    pub(super) fn failsafe_out(&self, table: TableName, version: IpVersion) -> Chain {
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
