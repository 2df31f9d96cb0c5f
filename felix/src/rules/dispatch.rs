//! Dispatch: from the interface of a packet to its endpoint's chains.
//!
//! Interfaces are spread over child chains by the first character behind their common prefix, which keeps
//! the walk short. Every child ends as its parent does, since `goto` does not come back.

use std::collections::{BTreeMap, BTreeSet};

use felix_calc::output::HostEndpoint;

use super::Renderer;
use super::endpoint_marks::EndpointMarks;
use super::fragments::{Match, always, goto, ret, set_masked_mark};
use super::names::{self, ANY_INTERFACE, EndpointChain};
use crate::iptables::{Chain, IpVersion, Rule, TableName};

/// An interface with the host endpoint that governs it. [`ANY_INTERFACE`] stands for all others.
pub type HostInterface<'a> = (&'a str, &'a HostEndpoint);

/// Which interface of a packet decides.
#[derive(Clone, Copy)]
enum Arrow {
    In,
    Out,
}

impl Arrow {
    fn matches(self, iface: &str) -> Match {
        match self {
            Arrow::In => Match::new().in_interface(iface),
            Arrow::Out => Match::new().out_interface(iface),
        }
    }
}

/// One dispatch chain with its children, before it is built.
struct Dispatch<'a> {
    root: &'a str,
    /// What the children's names start with.
    child_root: &'a str,
    arrow: Arrow,
    target: EndpointChain,
    /// At the end of the root chain.
    end: Vec<Rule>,
    /// At the end of each child.
    child_end: Vec<Rule>,
}

impl Dispatch<'_> {
    /// Children first, so that no chain names one that comes later.
    fn chains<'n>(self, ifaces: impl IntoIterator<Item = &'n str>) -> Vec<Chain> {
        let (mut chains, mut rules) = self.tree(ifaces);
        rules.extend(self.end);
        chains.push(Chain { name: self.root.to_owned(), rules });
        chains
    }

    /// The children, and the rules of the root that lead to them.
    fn tree<'n>(&self, ifaces: impl IntoIterator<Item = &'n str>) -> (Vec<Chain>, Vec<Rule>) {
        // A name that no interface can have gets no rule: its packets are none, and the rule might not load.
        let names: BTreeSet<&str> = ifaces.into_iter().filter(|name| names::is_interface(name)).collect();
        let prefix = common_prefix(&names);
        let mut bins: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for name in names {
            let next = name[prefix.len()..].chars().next().map_or(0, char::len_utf8);
            bins.entry(&name[prefix.len()..prefix.len() + next]).or_default().push(name);
        }
        let mut children = Vec::new();
        let mut rules = Vec::new();
        for (next, names) in bins {
            if let [name] = names[..] {
                rules.push(self.leaf(name));
                continue;
            }
            let child = names::dispatch_child(self.child_root, next);
            rules.push(self.arrow.matches(&format!("{prefix}{next}+")).then(goto(&child)));
            let mut below: Vec<Rule> = names.iter().map(|name| self.leaf(name)).collect();
            below.extend(self.child_end.iter().cloned());
            children.push(Chain { name: child, rules: below });
        }
        (children, rules)
    }

    fn leaf(&self, iface: &str) -> Rule {
        self.arrow.matches(iface).then(goto(&names::endpoint_chain(self.target, iface)))
    }
}

fn common_prefix<'a>(names: &BTreeSet<&'a str>) -> &'a str {
    let (Some(first), Some(last)) = (names.first(), names.last()) else { return "" };
    let same = first.chars().zip(last.chars()).take_while(|(a, b)| a == b);
    &first[..same.map(|(c, _)| c.len_utf8()).sum()]
}

impl Renderer {
    /// Both directions of local workloads. An interface that nobody configured is dropped.
    pub fn workload_dispatch<S: AsRef<str>>(&self, _version: IpVersion, ifaces: &[S]) -> Vec<Chain> {
        let unknown = vec![always(deny(self)).comment("Unknown interface")];
        let names = || ifaces.iter().map(AsRef::as_ref);
        let dispatch = |root, arrow, target| Dispatch {
            root,
            child_root: root,
            arrow,
            target,
            end: unknown.clone(),
            child_end: unknown.clone(),
        };
        let mut chains =
            dispatch(names::FROM_WORKLOAD_DISPATCH, Arrow::In, EndpointChain::FromWorkload).chains(names());
        chains.extend(
            dispatch(names::TO_WORKLOAD_DISPATCH, Arrow::Out, EndpointChain::ToWorkload).chains(names()),
        );
        chains
    }

    /// The dispatch of a table's host endpoint chains, for exactly those endpoints that
    /// [`Renderer::host_endpoint_chains`] has chains of in this table.
    pub fn host_dispatch(
        &self,
        table: TableName,
        _version: IpVersion,
        endpoints: &[HostInterface<'_>],
    ) -> Vec<Chain> {
        let with = |wanted: fn(&HostEndpoint) -> bool| -> (Vec<&str>, Option<&str>) {
            let chosen = endpoints.iter().filter(|(_, endpoint)| wanted(endpoint));
            let all: Vec<&str> = chosen.map(|(name, _)| *name).collect();
            let any = all.contains(&ANY_INTERFACE).then_some(ANY_INTERFACE);
            (all.into_iter().filter(|name| *name != ANY_INTERFACE).collect(), any)
        };
        match table {
            TableName::Nat => Vec::new(),
            TableName::Filter => {
                let (ifaces, any) = with(|_| true);
                self.host_dispatch_chains(&ifaces, any, true)
            }
            TableName::Raw => {
                // The endpoint for all interfaces has no untracked policy: it would also be asked about
                // packets of workloads, whose own policy needs their connections tracked.
                let (ifaces, _) = with(|endpoint| !endpoint.untracked_tiers.is_empty());
                self.host_dispatch_chains(&ifaces, None, false)
            }
            TableName::Mangle => {
                let (ifaces, any) = with(|endpoint| !endpoint.pre_dnat_tiers.is_empty());
                let mut chains = self.from_host_dispatch(&ifaces, any);
                let (ifaces, any) = with(|_| true);
                chains.extend(self.to_host_dispatch(&ifaces, any));
                chains
            }
        }
    }

    /// Both directions, and with `forward` those of forwarded packets too; `any` names the chains for
    /// interfaces that are not listed.
    pub fn host_dispatch_chains(&self, ifaces: &[&str], any: Option<&str>, forward: bool) -> Vec<Chain> {
        let mut chains = self.from_host_dispatch(ifaces, any);
        if !forward {
            chains.extend(self.to_host_dispatch(ifaces, any));
            return chains;
        }
        let rest = [
            (names::TO_HOST_ENDPOINT, Arrow::Out, EndpointChain::ToHost),
            (names::FROM_HOST_FORWARD, Arrow::In, EndpointChain::FromHostForward),
            (names::TO_HOST_FORWARD, Arrow::Out, EndpointChain::ToHostForward),
        ];
        for (root, arrow, target) in rest {
            chains.extend(
                self.host_direction(root, arrow, target, any, Vec::new()).chains(ifaces.iter().copied()),
            );
        }
        chains
    }

    pub fn from_host_dispatch(&self, ifaces: &[&str], any: Option<&str>) -> Vec<Chain> {
        self.host_direction(names::FROM_HOST_ENDPOINT, Arrow::In, EndpointChain::FromHost, any, Vec::new())
            .chains(ifaces.iter().copied())
    }

    /// The endpoint for all interfaces does not police what the host sends to its own workloads.
    pub fn to_host_dispatch(&self, ifaces: &[&str], any: Option<&str>) -> Vec<Chain> {
        let mut skip = Vec::new();
        if any.is_some() {
            skip.extend(self.config().workload_iface_prefixes.iter().map(|prefix| {
                Match::new()
                    .out_interface(&format!("{prefix}+"))
                    .then(ret())
                    .comment("Skip egress WHEP policy for traffic to local workload")
            }));
        }
        self.host_direction(names::TO_HOST_ENDPOINT, Arrow::Out, EndpointChain::ToHost, any, skip)
            .chains(ifaces.iter().copied())
    }

    fn host_direction<'a>(
        &self,
        root: &'a str,
        arrow: Arrow,
        target: EndpointChain,
        any: Option<&str>,
        mut end: Vec<Rule>,
    ) -> Dispatch<'a> {
        if let Some(any) = any {
            end.push(always(goto(&names::endpoint_chain(target, any))));
        }
        Dispatch { root, child_root: root, arrow, target, child_end: end.clone(), end }
    }

    /// For IPVS: from interface to mark on the way in, from mark to the endpoint's chain on the way out.
    pub fn endpoint_mark_dispatch(
        &self,
        marks: &mut EndpointMarks,
        workloads: &[&str],
        hosts: &[&str],
    ) -> Vec<Chain> {
        let config = self.config();
        let set_mark = |child_root| Dispatch {
            root: names::SET_ENDPOINT_MARK,
            child_root,
            arrow: Arrow::In,
            target: EndpointChain::SetMark,
            end: Vec::new(),
            child_end: Vec::new(),
        };
        let (mut chains, mut set) = set_mark("cali-set-endpoint-mark-wep").tree(workloads.iter().copied());
        let (host_chains, host_rules) = set_mark("cali-set-endpoint-mark-hep").tree(hosts.iter().copied());
        chains.extend(host_chains);
        set.extend(host_rules);
        for prefix in &config.workload_iface_prefixes {
            let unknown = Match::new().in_interface(&format!("{prefix}+"));
            set.push(unknown.then(deny(self)).comment("Unknown endpoint"));
        }
        let non_cali = set_masked_mark(config.marks.non_cali_endpoint, config.marks.endpoint);
        set.push(always(non_cali).comment("Non-Cali endpoint mark"));
        chains.push(Chain { name: names::SET_ENDPOINT_MARK.to_owned(), rules: set });

        let mut from = Vec::new();
        let groups = [(workloads, EndpointChain::FromWorkload), (hosts, EndpointChain::FromHostForward)];
        for (ifaces, target) in groups {
            for iface in ifaces.iter().collect::<BTreeSet<_>>() {
                // Without a free mark the packet ends at the drop below.
                if let Some(mark) = marks.mark(iface) {
                    let chain = goto(&names::endpoint_chain(target, iface));
                    from.push(Match::new().mark_is(mark, config.marks.endpoint).then(chain));
                }
            }
        }
        from.push(always(deny(self)).comment("Unknown interface"));
        chains.push(Chain { name: names::FROM_ENDPOINT_MARK.to_owned(), rules: from });
        chains
    }
}

/// The configured deny action; these chains live in filter.
fn deny(renderer: &Renderer) -> String {
    renderer.config().filter_deny_action.action()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::RulesConfig;

    fn renderer() -> Renderer {
        Renderer::new(RulesConfig::default())
    }

    #[test]
    fn an_interface_that_is_the_prefix_of_another_is_dispatched_itself() {
        let chains = renderer().host_dispatch_chains(&["eth0", "eth0.1", "eth0.2"], None, false);
        let root = chains.iter().find(|chain| chain.name == "cali-from-host-endpoint").unwrap();
        assert_eq!(root.rules[0].matches, "--in-interface eth0");
        assert_eq!(root.rules[1].matches, "--in-interface eth0.+");
    }

    #[test]
    fn names_that_no_interface_can_have_are_not_dispatched() {
        let chains = renderer().workload_dispatch(IpVersion::V4, &["cali+", "cali 1", "cali1"]);
        assert_eq!(chains[0].rules.len(), 2);
        assert_eq!(chains[0].rules[0].matches, "--in-interface cali1");
    }

    #[test]
    fn without_workloads_everything_from_a_workload_interface_is_dropped() {
        let chains = renderer().workload_dispatch::<&str>(IpVersion::V4, &[]);
        assert_eq!(chains.len(), 2);
        assert!(chains.iter().all(|chain| chain.rules.len() == 1 && chain.rules[0].action == "--jump DROP"));
    }

    #[test]
    fn the_endpoint_for_all_interfaces_has_no_untracked_policy() {
        let tier = felix_calc::output::Tier::default();
        let endpoint = HostEndpoint { untracked_tiers: vec![tier], ..HostEndpoint::default() };
        let chains = renderer().host_dispatch(TableName::Raw, IpVersion::V4, &[(ANY_INTERFACE, &endpoint)]);
        assert!(chains.iter().all(|chain| chain.rules.is_empty()));
    }
}
