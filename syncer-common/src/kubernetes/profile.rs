//! Namespaces and service accounts as profiles: what their pods inherit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::object::{Meta, Stored, StoredMeta, error, parse, resource_path};
use super::{Read, uid};
use crate::apis::FieldError;

pub const KIND: &str = "Profile";
pub const NAMESPACE_PREFIX: &str = "kns.";
pub const SERVICE_ACCOUNT_PREFIX: &str = "ksa.";
const DEFAULT_NAMESPACE: &str = "default";
/// Inherited labels start with one of these, the name's label after it.
const NAMESPACE_LABELS: &str = "pcns.";
const SERVICE_ACCOUNT_LABELS: &str = "pcsa.";
const NAME_LABEL: &str = "projectcalico.org/name";

pub fn namespace_profile(namespace: &str) -> String {
    format!("{NAMESPACE_PREFIX}{namespace}")
}

pub fn service_account_profile(namespace: &str, name: &str) -> String {
    let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
    format!("{SERVICE_ACCOUNT_PREFIX}{namespace}.{name}")
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Object<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ingress: &'static [Allow],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    egress: &'static [Allow],
    labels_to_apply: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Allow {
    action: &'static str,
}

/// Pods that no policy selects may do everything.
const ALLOW: &[Allow] = &[Allow { action: "Allow" }];

pub(super) fn namespace_path(object: &[u8]) -> Result<String, FieldError> {
    let Object { metadata } = parse(object)?;
    path(&metadata, &namespace_profile(&metadata.name))
}

pub(super) fn service_account_path(object: &[u8]) -> Result<String, FieldError> {
    let Object { metadata } = parse(object)?;
    path(&metadata, &service_account_profile(&metadata.namespace, &metadata.name))
}

fn path(metadata: &Meta<'_>, name: &str) -> Result<String, FieldError> {
    if metadata.name.is_empty() {
        return Err(error("metadata.name", "missing"));
    }
    resource_path(KIND, "", name)
}

pub(super) fn read_namespace(object: &[u8]) -> Result<Read, FieldError> {
    let Object { metadata } = parse(object)?;
    let name = namespace_profile(&metadata.name);
    profile(&metadata, &name, NAMESPACE_LABELS, ALLOW)
}

pub(super) fn read_service_account(object: &[u8]) -> Result<Read, FieldError> {
    let Object { metadata } = parse(object)?;
    let name = service_account_profile(&metadata.namespace, &metadata.name);
    profile(&metadata, &name, SERVICE_ACCOUNT_LABELS, &[])
}

fn profile(
    metadata: &Meta<'_>,
    name: &str,
    prefix: &str,
    rules: &'static [Allow],
) -> Result<Read, FieldError> {
    let path = path(metadata, name)?;
    let uid = uid::twin(&metadata.uid, "metadata.uid")?;
    let mut labels: BTreeMap<String, String> = metadata
        .labels
        .iter()
        .map(|(label, value)| (format!("{prefix}{}", &**label), value.to_string()))
        .collect();
    // Nobody may call himself by another's name.
    labels.insert(format!("{prefix}{NAME_LABEL}"), metadata.name.to_string());
    let stored = StoredMeta {
        name,
        uid: &uid,
        creation_timestamp: &metadata.creation_timestamp,
        ..StoredMeta::default()
    };
    let spec = Profile { ingress: rules, egress: rules, labels_to_apply: labels };
    let value = Stored::new(KIND, stored, spec, None::<()>).to_vec();
    let resource_version = metadata.resource_version.to_string();
    Ok(Read { path, value: Some(value), findings: Vec::new(), resource_version })
}
