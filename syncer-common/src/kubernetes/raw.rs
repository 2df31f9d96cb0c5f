//! Services and endpoint slices, which travel as they are.

use serde_json::{Map, Value};

use super::object::{Meta, parse, resource_path};
use super::{ApiResource, Read};
use crate::apis::FieldError;

/// Changes with every write, and says nothing about the object: the value stays the same without it.
const BOOKKEEPING: [&str; 2] = ["resourceVersion", "managedFields"];

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Identity<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
}

pub(super) fn path(kind: &str, object: &[u8]) -> Result<String, FieldError> {
    let Identity { metadata } = parse(object)?;
    resource_path(kind, &metadata.namespace, &metadata.name)
}

pub(super) fn read(kind: &str, resource: &ApiResource, object: &[u8]) -> Result<Read, FieldError> {
    let Identity { metadata } = parse(object)?;
    let path = resource_path(kind, &metadata.namespace, &metadata.name)?;
    let mut value: Map<String, Value> = parse(object)?;
    // Items of lists lack them; a value is to be the same from a list and from a watch.
    value.entry("apiVersion").or_insert_with(|| resource.api_version().into());
    value.entry("kind").or_insert_with(|| resource.kind.into());
    if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
        metadata.retain(|name, _| !BOOKKEEPING.contains(&name.as_str()));
    }
    let value = Value::Object(value).to_string().into_bytes();
    let resource_version = metadata.resource_version.to_string();
    Ok(Read { path, value: Some(value), findings: Vec::new(), resource_version })
}
