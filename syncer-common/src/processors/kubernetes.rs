//! Staged Kubernetes policies, which keep their Kubernetes form in the datastore.
//!
//! They change nothing on any node. Their form is that of Kubernetes' own policies, and so is their conversion.

use serde::Deserialize;

use super::findings::Findings;
use super::policies;
use crate::apis::policy::PolicySpec;
use crate::apis::{self, FieldError, Resource};
use crate::kubernetes::{NetworkPolicySpec, convert_network_policy};
use crate::model::{ResourceKey, Update};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Staging {
    staged_action: String,
}

pub(super) fn convert_staged(
    key: &ResourceKey,
    resource: &Resource,
    findings: &mut Findings,
) -> Result<Update, FieldError> {
    let Staging { staged_action } = resource.typed_spec()?;
    let staged: NetworkPolicySpec = resource.typed_spec()?;
    let mut left_out = Vec::new();
    let converted = convert_network_policy(&staged, &mut left_out)?;
    for FieldError { field, reason } in left_out {
        findings.note(field, reason);
    }
    let converted = serde_json::to_value(converted).expect("a policy's spec has string keys only");
    let spec = PolicySpec { staged_action, ..apis::read(&converted, "spec")? };
    Ok(policies::policy(key, &spec, findings))
}
