//! Order: which tiers with which policies apply to an endpoint, in the order of evaluation.
//!
//! Tiers: existing ones first, then by order (none is last), then by name. A tier that does not exist comes
//! last and denies at its end: its policies still apply, and nothing falls through them by accident.
//! Policies in a tier: by order (none is last), then by `name/namespace/kind`.

use std::cmp::Ordering;
use std::collections::HashMap;

use syncer_common::model::{PolicyKey, values};

use crate::output::{PolicyRef, Tier};
use crate::rule_scanner::tier_of;

const DENY: &str = "Deny";
const PASS: &str = "Pass";

#[derive(Default)]
pub(crate) struct Tiers {
    tiers: HashMap<String, values::Tier>,
}

/// The tiers of one endpoint by where they are enforced. Workloads use `normal` only.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct AppliedTiers {
    pub normal: Vec<Tier>,
    pub untracked: Vec<Tier>,
    pub pre_dnat: Vec<Tier>,
    pub forward: Vec<Tier>,
}

impl Tiers {
    pub fn set(&mut self, name: String, tier: Option<values::Tier>) {
        match tier {
            Some(tier) => self.tiers.insert(name, tier),
            None => self.tiers.remove(&name),
        };
    }

    pub fn len(&self) -> usize {
        self.tiers.len()
    }

    /// Sorts what matches an endpoint.
    pub fn resolve<'a>(
        &self,
        policies: impl Iterator<Item = (&'a PolicyKey, &'a values::Policy)>,
    ) -> AppliedTiers {
        let mut policies: Vec<_> = policies.map(|(key, policy)| (tier_of(policy), key, policy)).collect();
        policies.sort_by(|(left_tier, left_key, left), (right_tier, right_key, right)| {
            self.compare_tiers(left_tier, right_tier)
                .then_with(|| compare_orders(left.order, right.order))
                .then_with(|| sort_name(left_key).cmp(&sort_name(right_key)))
        });

        let mut applied = AppliedTiers::default();
        for group in policies.chunk_by(|left, right| left.0 == right.0) {
            let name = group[0].0;
            let default_action = match self.tiers.get(name) {
                Some(tier) if tier.default_action == PASS => PASS,
                _ => DENY,
            };
            let tier = |default_action: &str| Tier {
                name: name.to_owned(),
                default_action: default_action.to_owned(),
                ..Tier::default()
            };
            let (mut normal, mut forward) = (tier(default_action), tier(default_action));
            // These stages only pick packets out; what they do not decide goes on to the normal ones.
            let (mut untracked, mut pre_dnat) = (tier(PASS), tier(PASS));
            for (_, key, policy) in group {
                let add = |tier: &mut Tier, with_egress: bool| {
                    let reference =
                        || PolicyRef { key: (*key).clone(), original_selector: policy.selector.clone() };
                    if applies(policy, "ingress") {
                        tier.ingress.push(reference());
                    }
                    if with_egress && applies(policy, "egress") {
                        tier.egress.push(reference());
                    }
                };
                if policy.untracked {
                    add(&mut untracked, true);
                } else if policy.pre_dnat {
                    add(&mut pre_dnat, false);
                } else {
                    add(&mut normal, true);
                    if policy.apply_on_forward {
                        add(&mut forward, true);
                    }
                }
            }
            let stages = [
                (&mut applied.normal, normal),
                (&mut applied.untracked, untracked),
                (&mut applied.pre_dnat, pre_dnat),
                (&mut applied.forward, forward),
            ];
            for (tiers, tier) in stages {
                if !tier.ingress.is_empty() || !tier.egress.is_empty() {
                    tiers.push(tier);
                }
            }
        }
        applied
    }

    fn compare_tiers(&self, left: &str, right: &str) -> Ordering {
        let rank = |name| {
            let tier = self.tiers.get(name);
            (tier.is_none(), tier.and_then(|tier| tier.order))
        };
        let ((left_missing, left_order), (right_missing, right_order)) = (rank(left), rank(right));
        left_missing
            .cmp(&right_missing)
            .then_with(|| compare_orders(left_order, right_order))
            .then_with(|| left.cmp(right))
    }
}

/// No types at all means both directions.
fn applies(policy: &values::Policy, direction: &str) -> bool {
    policy.types.is_empty() || policy.types.iter().any(|of| of.eq_ignore_ascii_case(direction))
}

fn compare_orders(left: Option<f64>, right: Option<f64>) -> Ordering {
    // Adding zero turns -0.0 into 0.0, which `total_cmp` would tell apart.
    (left.unwrap_or(f64::INFINITY) + 0.0).total_cmp(&(right.unwrap_or(f64::INFINITY) + 0.0))
}

fn sort_name(key: &PolicyKey) -> String {
    format!("{}/{}/{}", key.name, key.namespace, key.kind)
}
