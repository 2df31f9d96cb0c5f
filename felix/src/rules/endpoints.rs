//! The chains of one endpoint: what every packet from or to it passes.
//!
//! In this order: established connections go through; what conntrack finds invalid does not; on host
//! endpoints the failsafe ports; then tier by tier the policies, each accepting, denying or passing; and
//! last the profiles. A packet that nothing accepted is denied.

pub use felix_calc::output::QosLimits;
use felix_calc::output::{HostEndpoint, WorkloadEndpoint};

use super::Renderer;
use super::fragments::{
    AllowAction, DenyAction, Match, always, clear_mark, drop, jump, notrack, ret, set_mark, set_masked_mark,
};
use super::groups::{PolicyGroup, TierGroups};
use super::names::{self, ANY_INTERFACE, Direction, EndpointChain, nflog};
use crate::iptables::{Chain, IpVersion, Rule, TableName};

/// A workload endpoint with its policies in groups.
#[derive(Clone, Debug, Default)]
pub struct WorkloadInput<'a> {
    pub iface: &'a str,
    pub admin_up: bool,
    pub tiers: &'a [TierGroups],
    pub profiles: &'a [String],
    pub ingress_limits: QosLimits,
    pub egress_limits: QosLimits,
    /// Given where kube-proxy uses IPVS.
    pub endpoint_mark: Option<u32>,
}

/// What a chain enforces decides how it ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ChainKind {
    Normal,
    /// Before conntrack: no established connections, and what is accepted stays untracked.
    Untracked,
    PreDnat,
    Forward,
}

struct EndpointSpec<'a> {
    name: String,
    kind: ChainKind,
    direction: Direction,
    tiers: &'a [TierGroups],
    profiles: &'a [String],
    failsafe: Option<&'static str>,
    allow: AllowAction,
    deny: DenyAction,
    drop_encapsulated: bool,
    limits: QosLimits,
}

impl Renderer {
    /// The filter chains of a workload endpoint. Those of its groups are [`Renderer::group_chains`].
    pub fn workload_chains(
        &self,
        _version: IpVersion,
        iface: &str,
        endpoint: &WorkloadEndpoint,
    ) -> Vec<Chain> {
        self.workload_endpoint(&WorkloadInput {
            iface,
            admin_up: endpoint.active,
            tiers: &TierGroups::of(&endpoint.tiers),
            profiles: &endpoint.profile_ids,
            ingress_limits: endpoint.ingress_limits,
            egress_limits: endpoint.egress_limits,
            ..WorkloadInput::default()
        })
    }

    pub fn workload_endpoint(&self, input: &WorkloadInput<'_>) -> Vec<Chain> {
        let config = self.config();
        let directions = [
            (EndpointChain::ToWorkload, Direction::Ingress, input.ingress_limits),
            (EndpointChain::FromWorkload, Direction::Egress, input.egress_limits),
        ];
        let mut chains: Vec<Chain> = directions
            .into_iter()
            .map(|(chain, direction, limits)| {
                let name = names::endpoint_chain(chain, input.iface);
                if !input.admin_up {
                    let rule = always(config.filter_deny_action.action()).comment("Endpoint admin disabled");
                    return Chain { name, rules: vec![rule] };
                }
                self.endpoint_chain(&EndpointSpec {
                    name,
                    kind: ChainKind::Normal,
                    direction,
                    tiers: input.tiers,
                    profiles: input.profiles,
                    failsafe: None,
                    allow: config.filter_allow_action,
                    deny: config.filter_deny_action,
                    drop_encapsulated: direction == Direction::Egress,
                    limits,
                })
            })
            .collect();
        chains.extend(self.set_mark_chain(input.iface, input.endpoint_mark));
        chains
    }

    /// For IPVS: puts the endpoint's mark on what comes from it.
    fn set_mark_chain(&self, iface: &str, mark: Option<u32>) -> Option<Chain> {
        mark.filter(|_| self.config().kube_ipvs).map(|mark| Chain {
            name: names::endpoint_chain(EndpointChain::SetMark, iface),
            rules: vec![always(set_masked_mark(mark, self.config().marks.endpoint))],
        })
    }

    /// The chains of a host endpoint in one table: in filter always, in mangle its normal egress for
    /// packets that DNAT sends out again and its pre-DNAT policy, in raw its untracked policy, the latter
    /// two only where there is such policy.
    pub fn host_endpoint_chains(
        &self,
        table: TableName,
        _version: IpVersion,
        iface: &str,
        endpoint: &HostEndpoint,
    ) -> Vec<Chain> {
        match table {
            TableName::Nat => Vec::new(),
            TableName::Filter => self.host_filter_chains(
                iface,
                &TierGroups::of(&endpoint.tiers),
                &TierGroups::of(&endpoint.forward_tiers),
                &endpoint.profile_ids,
                None,
            ),
            TableName::Mangle => {
                let mut chains =
                    self.host_mangle_egress(iface, &TierGroups::of(&endpoint.tiers), &endpoint.profile_ids);
                if !endpoint.pre_dnat_tiers.is_empty() {
                    chains.extend(self.host_mangle_ingress(iface, &TierGroups::of(&endpoint.pre_dnat_tiers)));
                }
                chains
            }
            TableName::Raw if endpoint.untracked_tiers.is_empty() || iface == ANY_INTERFACE => Vec::new(),
            TableName::Raw => self.host_raw_chains(iface, &TierGroups::of(&endpoint.untracked_tiers)),
        }
    }

    pub fn host_filter_chains(
        &self,
        iface: &str,
        tiers: &[TierGroups],
        forward_tiers: &[TierGroups],
        profiles: &[String],
        endpoint_mark: Option<u32>,
    ) -> Vec<Chain> {
        let config = self.config();
        let (allow, deny) = (config.filter_allow_action, config.filter_deny_action);
        let normal = |direction| EndpointSpec {
            profiles,
            ..self.host_spec(iface, ChainKind::Normal, direction, tiers, allow, deny)
        };
        let forward = |direction, chain| EndpointSpec {
            name: names::endpoint_chain(chain, iface),
            failsafe: None,
            ..self.host_spec(iface, ChainKind::Forward, direction, forward_tiers, allow, deny)
        };
        let specs = [
            normal(Direction::Egress),
            normal(Direction::Ingress),
            forward(Direction::Egress, EndpointChain::ToHostForward),
            forward(Direction::Ingress, EndpointChain::FromHostForward),
        ];
        let mut chains: Vec<Chain> = specs.iter().map(|spec| self.endpoint_chain(spec)).collect();
        chains.extend(self.set_mark_chain(iface, endpoint_mark));
        chains
    }

    /// What it accepts returns, to go on through the rest of mangle.
    pub fn host_mangle_egress(&self, iface: &str, tiers: &[TierGroups], profiles: &[String]) -> Vec<Chain> {
        let deny = self.deny_in(TableName::Mangle);
        let allow = AllowAction::Return;
        let spec = self.host_spec(iface, ChainKind::Normal, Direction::Egress, tiers, allow, deny);
        vec![self.endpoint_chain(&EndpointSpec { profiles, ..spec })]
    }

    pub fn host_mangle_ingress(&self, iface: &str, pre_dnat_tiers: &[TierGroups]) -> Vec<Chain> {
        let deny = self.deny_in(TableName::Mangle);
        let allow = self.config().mangle_allow_action;
        let tiers = pre_dnat_tiers;
        vec![self.endpoint_chain(&self.host_spec(
            iface,
            ChainKind::PreDnat,
            Direction::Ingress,
            tiers,
            allow,
            deny,
        ))]
    }

    pub fn host_raw_chains(&self, iface: &str, untracked_tiers: &[TierGroups]) -> Vec<Chain> {
        let deny = self.deny_in(TableName::Raw);
        [Direction::Egress, Direction::Ingress]
            .into_iter()
            .map(|direction| {
                let allow = AllowAction::Accept;
                let tiers = untracked_tiers;
                self.endpoint_chain(&self.host_spec(
                    iface,
                    ChainKind::Untracked,
                    direction,
                    tiers,
                    allow,
                    deny,
                ))
            })
            .collect()
    }

    fn host_spec<'a>(
        &self,
        iface: &str,
        kind: ChainKind,
        direction: Direction,
        tiers: &'a [TierGroups],
        allow: AllowAction,
        deny: DenyAction,
    ) -> EndpointSpec<'a> {
        let (chain, failsafe) = match direction {
            Direction::Egress => (EndpointChain::ToHost, names::FAILSAFE_OUT),
            Direction::Ingress => (EndpointChain::FromHost, names::FAILSAFE_IN),
        };
        EndpointSpec {
            name: names::endpoint_chain(chain, iface),
            kind,
            direction,
            tiers,
            profiles: &[],
            failsafe: Some(failsafe),
            allow,
            deny,
            drop_encapsulated: false,
            limits: QosLimits::default(),
        }
    }

    fn endpoint_chain(&self, spec: &EndpointSpec<'_>) -> Chain {
        let marks = &self.config().marks;
        let mut rules = Vec::new();
        self.limit_packets(spec, &mut rules);
        if spec.kind != ChainKind::Untracked {
            self.check_conntrack(spec, &mut rules);
        }
        limit_connections(spec, &mut rules);
        if let Some(failsafe) = spec.failsafe {
            rules.push(always(jump(failsafe)));
        }
        rules.push(always(clear_mark(marks.accept | marks.pass)));
        if spec.drop_encapsulated {
            self.drop_encapsulated(spec, &mut rules);
        }
        for tier in spec.tiers {
            self.tier(spec, tier, &mut rules);
        }
        match spec.kind {
            // By direction: a policy for what comes in must not leave what goes out to the kernel chain's own policy.
            ChainKind::Forward if spec.tiers.iter().all(|tier| tier.groups(spec.direction).is_empty()) => {
                rules.push(always(set_mark(marks.accept)).comment("Allow forwarded traffic by default"));
                rules.push(always(ret()).comment("Return for accepted forward traffic"));
            }
            ChainKind::Normal => self.profiles(spec, &mut rules),
            ChainKind::Forward | ChainKind::Untracked | ChainKind::PreDnat => {}
        }
        Chain { name: spec.name.clone(), rules }
    }

    fn limit_packets(&self, spec: &EndpointSpec<'_>, rules: &mut Vec<Rule>) {
        let QosLimits { packet_rate, packet_burst, .. } = spec.limits;
        if packet_rate == 0 {
            return;
        }
        let scratch = self.config().marks.scratch0;
        let way = spec.direction.word();
        let clear = always(clear_mark(scratch)).comment(format!("Clear {way} packet rate limit mark"));
        let limit = format!("-m limit --limit {packet_rate}/sec --limit-burst {packet_burst}");
        rules.extend([
            clear.clone(),
            Match::new()
                .raw(limit)
                .then(set_mark(scratch))
                .comment(format!("Mark packets within {way} packet rate limit")),
            Match::new()
                .mark_is_not(scratch, scratch)
                .then(drop())
                .comment(format!("Drop packets over {way} packet rate limit")),
            clear,
        ]);
    }

    fn check_conntrack(&self, spec: &EndpointSpec<'_>, rules: &mut Vec<Rule>) {
        let established = || Match::new().conntrack("RELATED,ESTABLISHED");
        if spec.allow == AllowAction::Return {
            // Whoever comes next has to see that policy accepted.
            rules.push(established().then(set_mark(self.config().marks.accept)));
        }
        rules.push(established().then(spec.allow.action()));
        if !self.config().disable_conntrack_invalid {
            rules.push(Match::new().conntrack("INVALID").then(spec.deny.action()));
        }
    }

    /// A workload could otherwise speak to the tunnels of other nodes as if it were one.
    fn drop_encapsulated(&self, spec: &EndpointSpec<'_>, rules: &mut Vec<Rule>) {
        let config = self.config();
        let verb = spec.deny.verb();
        if !config.allow_vxlan_packets_from_workloads {
            rules.push(
                Match::new()
                    .protocol("17")
                    .destination_ports(&config.vxlan_port.to_string())
                    .then(spec.deny.action())
                    .comment(format!("{verb} VXLAN encapped packets originating in workloads")),
            );
        }
        if !config.allow_ipip_packets_from_workloads {
            rules.push(
                Match::new()
                    .protocol("4")
                    .then(spec.deny.action())
                    .comment(format!("{verb} IPinIP encapped packets originating in workloads")),
            );
        }
    }

    fn tier(&self, spec: &EndpointSpec<'_>, tier: &TierGroups, rules: &mut Vec<Rule>) {
        let marks = &self.config().marks;
        let groups = tier.groups(spec.direction);
        if groups.is_empty() {
            return;
        }
        let name = &tier.name;
        rules.push(always(clear_mark(marks.pass)).comment(format!("Start of tier {name}")));
        for target in groups.iter().flat_map(|group| targets(group, spec.direction)) {
            rules.push(Match::new().mark_clear(marks.pass).then(jump(&target)));
            if spec.kind == ChainKind::Untracked {
                rules.push(Match::new().mark_set(marks.accept).then(notrack()));
            }
            rules.push(Match::new().mark_set(marks.accept).then(ret()).comment("Return if policy accepted"));
        }
        if !matches!(spec.kind, ChainKind::Normal | ChainKind::Forward) {
            return;
        }
        let enforced = groups.iter().any(|group| !group.is_all_staged());
        let denies = enforced && tier.default_action != "Pass";
        if self.config().flow_logs_enabled {
            let prefix = nflog::end_of_tier(denies, spec.direction, name);
            rules.push(Match::new().mark_clear(marks.pass).then(self.nflog(spec.direction, &prefix)));
        }
        if denies {
            let verb = spec.deny.verb();
            rules.push(
                Match::new()
                    .mark_clear(marks.pass)
                    .then(spec.deny.action())
                    .comment(format!("End of tier {name}. {verb} if no policies passed packet")),
            );
        }
    }

    fn profiles(&self, spec: &EndpointSpec<'_>, rules: &mut Vec<Rule>) {
        for profile in spec.profiles {
            rules.push(always(jump(&names::profile_chain(profile, spec.direction))));
            rules.push(
                Match::new()
                    .mark_set(self.config().marks.accept)
                    .then(ret())
                    .comment("Return if profile accepted"),
            );
        }
        if self.config().flow_logs_enabled {
            rules.push(always(self.nflog(spec.direction, &nflog::no_profile(spec.direction))));
        }
        let verb = spec.deny.verb();
        rules.push(always(spec.deny.action()).comment(format!("{verb} if no profiles matched")));
    }
}

/// The chains that stand for a group: its own, or those of its members that are enforced.
fn targets(group: &PolicyGroup, direction: Direction) -> Vec<String> {
    if group.has_chain() {
        vec![group.chain_name()]
    } else {
        group.enforced().map(|key| names::policy_chain(key, direction)).collect()
    }
}

fn limit_connections(spec: &EndpointSpec<'_>, rules: &mut Vec<Rule>) {
    let limit = spec.limits.max_connections;
    if limit == 0 {
        return;
    }
    let opening = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN";
    rules.push(
        Match::new()
            .raw(format!("{opening} -m connlimit --connlimit-above {limit} --connlimit-mask 0"))
            .then("-j REJECT --reject-with tcp-reset")
            .comment(format!("Reject connections over {} connection limit", spec.direction.word())),
    );
}

#[cfg(test)]
mod tests {
    use felix_calc::output::{PolicyRef, Tier};
    use syncer_common::model::PolicyKey;

    use super::*;
    use crate::rules::RulesConfig;

    #[test]
    fn an_inactive_workload_is_only_denied() {
        let renderer = Renderer::new(RulesConfig::default());
        let chains = renderer.workload_chains(IpVersion::V4, "cali1", &WorkloadEndpoint::default());
        assert_eq!(chains.len(), 2);
        for chain in chains {
            assert_eq!(chain.rules.len(), 1);
            assert_eq!(chain.rules[0].action, "--jump DROP");
        }
    }

    #[test]
    fn forwarded_traffic_is_accepted_in_a_direction_without_policy() {
        let renderer = Renderer::new(RulesConfig::default());
        let key =
            PolicyKey { kind: "GlobalNetworkPolicy".into(), namespace: String::new(), name: "in".into() };
        let policy = PolicyRef { key, original_selector: "all()".into() };
        let incoming = Tier { name: "default".into(), ingress: vec![policy], ..Tier::default() };
        let endpoint = HostEndpoint { forward_tiers: vec![incoming], ..HostEndpoint::default() };
        let chains = renderer.host_endpoint_chains(TableName::Filter, IpVersion::V4, "eth0", &endpoint);
        let accepts = |name: &str| {
            let chain = chains.iter().find(|chain| chain.name == name).expect("is rendered");
            chain.rules.iter().any(|rule| rule.comments == ["Allow forwarded traffic by default"])
        };
        assert!(accepts("cali-thfw-eth0"));
        assert!(!accepts("cali-fhfw-eth0"));
    }

    #[test]
    fn reject_stays_out_of_mangle_and_raw() {
        let config = RulesConfig { filter_deny_action: DenyAction::Reject, ..RulesConfig::default() };
        let renderer = Renderer::new(config);
        let endpoint = HostEndpoint {
            untracked_tiers: vec![Default::default()],
            pre_dnat_tiers: vec![Default::default()],
            ..HostEndpoint::default()
        };
        let rejects = |table| {
            let chains = renderer.host_endpoint_chains(table, IpVersion::V4, "eth0", &endpoint);
            assert!(!chains.is_empty());
            chains.iter().flat_map(|chain| &chain.rules).any(|rule| rule.action.contains("REJECT"))
        };
        assert!(rejects(TableName::Filter));
        assert!(!rejects(TableName::Mangle));
        assert!(!rejects(TableName::Raw));
    }
}
