//! The canonical form of values: two spellings of one thing leave here equal.

use crate::model::Value;
use crate::selector::normalise;
use proto::model as v1;

/// Selectors in canonical form. Empty ones stay empty: in a rule that means no selector, not `all()`.
pub(super) fn canonical(value: &mut Value) {
    match value {
        Value::Policy(policy) => {
            policy.selector = normalise(&policy.selector);
            rules(&mut policy.inbound_rules);
            rules(&mut policy.outbound_rules);
        }
        Value::ProfileRules(profile) => {
            rules(&mut profile.inbound_rules);
            rules(&mut profile.outbound_rules);
        }
        Value::BgpPeer(peer) => {
            selector(&mut peer.node_selector);
            selector(&mut peer.peer_selector);
            selector(&mut peer.local_workload_selector);
        }
        Value::FelixConfiguration(configuration) => selector(&mut configuration.node_selector),
        _ => {}
    }
}

fn rules(rules: &mut [v1::Rule]) {
    for side in rules.iter_mut().flat_map(|rule| rule.src.iter_mut().chain(rule.dst.iter_mut())) {
        selector(&mut side.selector);
        selector(&mut side.not_selector);
    }
}

fn selector(text: &mut String) {
    if !text.is_empty() {
        *text = normalise(text);
    }
}
