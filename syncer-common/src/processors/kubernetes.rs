//! Staged Kubernetes policies, which keep their Kubernetes form in the datastore.
//!
//! They change nothing on any node. What they select is converted; their rules are converted by the part
//! that reads Kubernetes itself, so a staged one carries only its selector and directions.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::findings::Findings;
use super::policies;
use crate::apis::policy::PolicySpec;
use crate::apis::{FieldError, Resource};
use crate::model::{ResourceKey, Update};

/// Kubernetes policies come after the ordered ones of the tier.
const ORDER: f64 = 1000.0;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StagedSpec {
    staged_action: String,
    pod_selector: LabelSelector,
    policy_types: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LabelSelector {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<Requirement>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Requirement {
    key: String,
    operator: String,
    values: Vec<String>,
}

pub(super) fn convert_staged(
    key: &ResourceKey,
    resource: &Resource,
    findings: &mut Findings,
) -> Result<Update, FieldError> {
    let staged: StagedSpec = resource.typed_spec()?;
    let types = if staged.policy_types.is_empty() { vec!["Ingress".to_owned()] } else { staged.policy_types };
    let spec = PolicySpec {
        order: Some(ORDER),
        selector: pods(&staged.pod_selector)?,
        types,
        staged_action: staged.staged_action,
        ..PolicySpec::default()
    };
    Ok(policies::policy(key, &spec, findings))
}

fn pods(selector: &LabelSelector) -> Result<String, FieldError> {
    let mut terms = vec!["projectcalico.org/orchestrator == 'k8s'".to_owned()];
    terms.extend(selector.match_labels.iter().map(|(label, value)| format!("{label} == '{value}'")));
    for (index, Requirement { key, operator, values }) in selector.match_expressions.iter().enumerate() {
        let values: Vec<String> = values.iter().map(|value| format!("'{value}'")).collect();
        let values = values.join(", ");
        terms.push(match operator.as_str() {
            "In" => format!("{key} in {{ {values} }}"),
            "NotIn" => format!("{key} not in {{ {values} }}"),
            "Exists" => format!("has({key})"),
            "DoesNotExist" => format!("! has({key})"),
            other => {
                let field = format!("spec.podSelector.matchExpressions[{index}].operator");
                return Err(FieldError::new(field, format!("{other:?} is not an operator")));
            }
        });
    }
    Ok(terms.join(" && "))
}
