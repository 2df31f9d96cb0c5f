//! Policies, tiers and profiles.

use proto::model as v1;

use super::DEFAULT_ALLOW_PROFILE;
use super::findings::Findings;
use super::rules::{
    self, NAMESPACE_LABEL, NAMESPACE_PREFIX, SERVICE_ACCOUNT_LABEL, SERVICE_ACCOUNT_PREFIX, prefixed,
};
use crate::apis::policy::{PolicySpec, ProfileSpec, TierSpec};
use crate::apis::{FieldError, Resource};
use crate::model::{Key, PolicyKey, ResourceKey, Update, Value};

const DEFAULT_TIER: &str = "default";

/// The key keeps the stored name, whatever the object calls itself.
pub(super) fn key(key: &ResourceKey) -> Key {
    Key::Policy(PolicyKey {
        kind: key.kind.clone(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    })
}

pub(super) fn convert(
    key: &ResourceKey,
    resource: &Resource,
    findings: &mut Findings,
) -> Result<Update, FieldError> {
    let spec: PolicySpec = resource.typed_spec()?;
    Ok(policy(key, &spec, findings))
}

/// Any kind of policy, from the one form of spec.
pub(super) fn policy(key: &ResourceKey, spec: &PolicySpec, findings: &mut Findings) -> Update {
    let own = self::key(key);
    if key.kind.starts_with("Staged") && spec.staged_action == "Delete" {
        return Update::delete(own);
    }
    let selector = if key.namespace.is_empty() {
        global_selector(spec, findings)
    } else {
        namespaced_selector(spec, &key.namespace, findings)
    };
    let tier = if spec.tier.is_empty() { DEFAULT_TIER } else { &spec.tier };
    let staged_action =
        if key.kind.starts_with("Staged") { spec.staged_action.clone() } else { String::new() };
    let policy = v1::Policy {
        namespace: key.namespace.clone(),
        tier: tier.to_owned(),
        order: spec.order,
        selector,
        inbound_rules: rules::convert(&spec.ingress, &key.namespace, "spec.ingress", findings),
        outbound_rules: rules::convert(&spec.egress, &key.namespace, "spec.egress", findings),
        types: spec.types.iter().map(|direction| direction.to_ascii_lowercase()).collect(),
        untracked: spec.do_not_track,
        pre_dnat: spec.pre_dnat,
        apply_on_forward: spec.apply_on_forward,
        performance_hints: spec.performance_hints.clone(),
        staged_action,
    };
    Update::set(own, Value::Policy(policy))
}

/// `(<left>) && <right>`, or what there is of it.
fn both(left: String, right: String) -> String {
    match (left.is_empty(), right.is_empty()) {
        (_, true) => left,
        (true, false) => right,
        (false, false) => format!("({left}) && {right}"),
    }
}

fn namespaced_selector(spec: &PolicySpec, namespace: &str, findings: &mut Findings) -> String {
    let within = both(spec.selector.clone(), format!("{NAMESPACE_LABEL} == '{namespace}'"));
    let accounts = prefixed(
        &spec.service_account_selector,
        SERVICE_ACCOUNT_PREFIX,
        "spec.serviceAccountSelector",
        findings,
    );
    both(within, accounts)
}

/// The replacements go over the whole text, as they always did: a policy with a namespace selector
/// thereby never selects what is in no namespace.
fn global_selector(spec: &PolicySpec, findings: &mut Findings) -> String {
    let mut selector = spec.selector.clone();
    let parts = [
        (&spec.namespace_selector, NAMESPACE_PREFIX, NAMESPACE_LABEL, "spec.namespaceSelector"),
        (
            &spec.service_account_selector,
            SERVICE_ACCOUNT_PREFIX,
            SERVICE_ACCOUNT_LABEL,
            "spec.serviceAccountSelector",
        ),
    ];
    for (text, prefix, label, field) in parts {
        let part = prefixed(text, prefix, field, findings);
        if !part.is_empty() {
            selector = both(selector, part).replace("all()", &format!("has({label})"));
        }
    }
    selector
}

pub(super) fn convert_tier(key: &ResourceKey, resource: &Resource) -> Result<Update, FieldError> {
    let spec: TierSpec = resource.typed_spec()?;
    let default_action = if spec.default_action == "Pass" { "Pass" } else { "Deny" };
    let tier = v1::Tier { order: spec.order, default_action: default_action.to_owned() };
    Ok(Update::set(Key::Tier { name: key.name.clone() }, Value::Tier(tier)))
}

pub(super) fn profile_keys(name: &str) -> Vec<Key> {
    vec![Key::ProfileLabels { name: name.to_owned() }, Key::ProfileRules { name: name.to_owned() }]
}

pub(super) fn convert_profile(
    key: &ResourceKey,
    resource: &Resource,
    findings: &mut Findings,
) -> Result<Vec<Update>, FieldError> {
    let spec: ProfileSpec = resource.typed_spec()?;
    let labels_key = Key::ProfileLabels { name: key.name.clone() };
    let labels = if spec.labels_to_apply.is_empty() {
        Update::delete(labels_key)
    } else {
        Update::set(labels_key, Value::ProfileLabels(v1::ProfileLabels { labels: spec.labels_to_apply }))
    };
    let rules = v1::ProfileRules {
        inbound_rules: rules::convert(&spec.ingress, "", "spec.ingress", findings),
        outbound_rules: rules::convert(&spec.egress, "", "spec.egress", findings),
    };
    Ok(vec![labels, Update::set(Key::ProfileRules { name: key.name.clone() }, Value::ProfileRules(rules))])
}

pub(super) fn default_allow() -> Update {
    let allow = || vec![v1::Rule { action: "allow".to_owned(), ..v1::Rule::default() }];
    let rules = v1::ProfileRules { inbound_rules: allow(), outbound_rules: allow() };
    Update::set(Key::ProfileRules { name: DEFAULT_ALLOW_PROFILE.to_owned() }, Value::ProfileRules(rules))
}
