//! Grouping of a tier's policies: neighbours with the same selector apply to the same endpoints, so their
//! jumps are put into a chain that all those endpoints share.

use std::collections::BTreeMap;

use felix_calc::output::{PolicyRef, Tier};
use syncer_common::model::PolicyKey;

use super::Renderer;
use super::fragments::{Match, always, jump, ret};
use super::names::{self, Direction};
use crate::iptables::Chain;

/// After this many jumps a group's chain asks whether a verdict is there: a packet that has one then skips
/// the rest instead of failing each rule's match.
const JUMPS_PER_CHECK: usize = 5;

/// Adjacent policies with one selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyGroup {
    pub direction: Direction,
    pub selector: String,
    pub policies: Vec<PolicyKey>,
}

impl PolicyGroup {
    pub fn uid(&self) -> String {
        names::group_uid(&self.selector, self.direction, &self.policies)
    }

    pub fn chain_name(&self) -> String {
        names::group_chain(&self.uid(), self.direction)
    }

    /// The members that render to anything.
    pub fn enforced(&self) -> impl Iterator<Item = &PolicyKey> {
        self.policies.iter().filter(|key| !names::is_staged(&key.kind))
    }

    pub fn is_all_staged(&self) -> bool {
        self.enforced().next().is_none()
    }

    /// A single policy is jumped to directly.
    pub fn has_chain(&self) -> bool {
        self.enforced().nth(1).is_some()
    }
}

/// A tier with one direction's policies in groups.
#[derive(Clone, Debug, Default)]
pub struct TierGroups {
    pub name: String,
    /// `Pass` lets what no policy decided go on to the next tier; anything else denies it.
    pub default_action: String,
    pub ingress: Vec<PolicyGroup>,
    pub egress: Vec<PolicyGroup>,
}

impl TierGroups {
    pub fn of(tiers: &[Tier]) -> Vec<TierGroups> {
        tiers
            .iter()
            .map(|tier| TierGroups {
                name: tier.name.clone(),
                default_action: tier.default_action.clone(),
                ingress: group(&tier.ingress, Direction::Ingress),
                egress: group(&tier.egress, Direction::Egress),
            })
            .collect()
    }

    pub fn groups(&self, direction: Direction) -> &[PolicyGroup] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

fn group(policies: &[PolicyRef], direction: Direction) -> Vec<PolicyGroup> {
    policies
        .chunk_by(|a, b| a.original_selector == b.original_selector)
        .map(|chunk| PolicyGroup {
            direction,
            selector: chunk[0].original_selector.clone(),
            policies: chunk.iter().map(|policy| policy.key.clone()).collect(),
        })
        .collect()
}

impl Renderer {
    /// The chains of all groups in these tiers that have one, each once, by name.
    pub fn group_chains<'a>(&self, tiers: impl IntoIterator<Item = &'a Tier>) -> Vec<Chain> {
        let mut chains = BTreeMap::new();
        for tier in tiers {
            let grouped = [group(&tier.ingress, Direction::Ingress), group(&tier.egress, Direction::Egress)];
            for group in grouped.iter().flatten().filter(|group| group.has_chain()) {
                chains.entry(group.chain_name()).or_insert_with(|| self.group_chain(group));
            }
        }
        chains.into_values().collect()
    }

    /// Jumps to a group's members until one gives a verdict.
    pub fn group_chain(&self, group: &PolicyGroup) -> Chain {
        let marks = &self.config().marks;
        let verdict = marks.accept | marks.pass;
        let mut rules = Vec::new();
        for (index, key) in group.enforced().enumerate() {
            let first_after_check = index % JUMPS_PER_CHECK == 0;
            if first_after_check && index > 0 {
                rules.push(Match::new().mark_not_clear(verdict).then(ret()).comment("Return on verdict"));
            }
            let target = jump(&names::policy_chain(key, group.direction));
            rules.push(if first_after_check {
                always(target)
            } else {
                Match::new().mark_clear(verdict).then(target)
            });
        }
        Chain { name: group.chain_name(), rules }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, selector: &str) -> PolicyRef {
        PolicyRef {
            key: PolicyKey {
                kind: "GlobalNetworkPolicy".into(),
                namespace: String::new(),
                name: name.into(),
            },
            original_selector: selector.into(),
        }
    }

    #[test]
    fn only_neighbours_are_grouped() {
        let policies = [policy("a", "x"), policy("b", "x"), policy("c", "y"), policy("d", "x")];
        let groups = group(&policies, Direction::Ingress);
        let sizes: Vec<_> = groups.iter().map(|group| group.policies.len()).collect();
        assert_eq!(sizes, [2, 1, 1]);
        assert!(groups[0].has_chain() && !groups[1].has_chain());
    }

    #[test]
    fn staged_members_do_not_make_a_chain() {
        let mut staged = policy("b", "x");
        staged.key.kind = "StagedGlobalNetworkPolicy".into();
        let groups = group(&[policy("a", "x"), staged], Direction::Egress);
        assert_eq!(groups.len(), 1);
        assert!(!groups[0].has_chain() && !groups[0].is_all_staged());
    }
}
