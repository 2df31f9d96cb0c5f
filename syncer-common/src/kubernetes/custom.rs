//! Custom resources that hold a v3 resource.
//!
//! In `projectcalico.org/v3` they are the resource. In `crd.projectcalico.org/v1` they wrap it: they have ids of
//! their own, and an annotation holds what of the resource's metadata is not theirs to have. What the API server
//! keeps for itself (revision, generation, who wrote which field) is in neither direction part of a value, so
//! that a value changes only when the resource does.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::object::{error, parse, resource_path};
use super::{ApiGroup, Options, Read, Written, resources, uid};
use crate::apis::{API_VERSION, ApiKind, FieldError};
use crate::model::ResourceKey;

/// In a wrapping resource the metadata of the wrapped one; in etcd the name of a policy.
const METADATA: &str = "projectcalico.org/metadata";
const CRD_API_VERSION: &str = "crd.projectcalico.org/v1";
/// Names with these are for others to read; a wrapping resource keeps them.
const SHOWN: [&str; 2] = ["projectcalico.org/", "operator.tigera.io/"];
/// What a value keeps of the metadata.
const KEPT: [&str; 9] = [
    "annotations",
    "creationTimestamp",
    "finalizers",
    "generateName",
    "labels",
    "name",
    "namespace",
    "ownerReferences",
    "uid",
];

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Object {
    metadata: Map<String, Value>,
    spec: Option<Value>,
    status: Option<Value>,
}

impl Object {
    fn parse(object: &[u8]) -> Result<Object, FieldError> {
        let mut object: Object = parse(object)?;
        object.metadata.retain(|_, value| !value.is_null());
        Ok(object)
    }

    fn text(&self, name: &str) -> &str {
        self.metadata.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    fn path(&self, kind: &ApiKind) -> Result<String, FieldError> {
        let namespace = if kind.namespaced { self.text("namespace") } else { "" };
        resource_path(kind.kind, namespace, self.text("name"))
    }

    fn with(self, api_version: &str, kind: &str) -> Value {
        let mut object = Map::new();
        object.insert("apiVersion".to_owned(), api_version.into());
        object.insert("kind".to_owned(), kind.into());
        object.insert("metadata".to_owned(), Value::Object(self.metadata));
        for (name, part) in [("spec", self.spec), ("status", self.status)] {
            if let Some(part) = part {
                object.insert(name.to_owned(), part);
            }
        }
        Value::Object(object)
    }
}

pub(super) fn path(kind: &ApiKind, object: &[u8]) -> Result<String, FieldError> {
    Object::parse(object)?.path(kind)
}

pub(super) fn read(kind: &ApiKind, group: ApiGroup, object: &[u8]) -> Result<Read, FieldError> {
    let mut object = Object::parse(object)?;
    let path = object.path(kind)?;
    let resource_version = object.text("resourceVersion").to_owned();
    object.metadata.retain(|name, _| KEPT.contains(&name.as_str()));
    let name = match group {
        ApiGroup::V1 => unwrap(&mut object.metadata)?,
        ApiGroup::V3 => Some(object.text("name").to_owned()),
    };
    if kind.has_name_annotation() {
        // Without it, readers take a name that starts with its tier for one of the old ones.
        set_annotation(&mut object.metadata, METADATA, name.map(|name| json!({ "name": name }).to_string()))?;
    }
    let value = object.with(API_VERSION, kind.kind).to_string().into_bytes();
    Ok(Read { path, value: Some(value), findings: Vec::new(), resource_version })
}

pub(super) fn write(
    kind: &'static ApiKind,
    key: ResourceKey,
    value: &[u8],
    options: &Options,
) -> Result<Written, FieldError> {
    let mut object = Object::parse(value)?;
    object.metadata.retain(|name, _| KEPT.contains(&name.as_str()));
    let name = policy_name(kind, &mut object.metadata)?;
    object.metadata.insert("name".to_owned(), key.name.clone().into());
    object.metadata.remove("namespace");
    let namespace = kind.namespaced.then_some(key.namespace);
    if let Some(namespace) = &namespace {
        object.metadata.insert("namespace".to_owned(), namespace.clone().into());
    }
    if options.group == ApiGroup::V1 {
        wrap(&mut object.metadata, name)?;
    }
    let resource = resources::custom_resource(kind, options.group);
    let object = object.with(&resource.api_version(), resource.kind);
    Ok(Written { resource, namespace, name: key.name, object })
}

/// The name that the stored form of a policy remembers.
fn policy_name(kind: &ApiKind, metadata: &mut Map<String, Value>) -> Result<Option<String>, FieldError> {
    if !kind.has_name_annotation() {
        return Ok(None);
    }
    let Some(text) = take_annotation(metadata)? else { return Ok(None) };
    let mut known = read_metadata(&text)?;
    Ok(match known.remove("name") {
        Some(Value::String(name)) if !name.is_empty() => Some(name),
        _ => None,
    })
}

fn read_metadata(text: &str) -> Result<Map<String, Value>, FieldError> {
    serde_json::from_str(text).map_err(|reason| {
        error(format!("metadata.annotations[{METADATA}]"), format!("not the JSON of metadata: {reason}"))
    })
}

/// Metadata of the wrapping resource → that of the wrapped one, and its name where the two may differ.
fn unwrap(metadata: &mut Map<String, Value>) -> Result<Option<String>, FieldError> {
    twin_uid(metadata, "metadata.uid")?;
    let mut known = match take_annotation(metadata)? {
        Some(text) => read_metadata(&text)?,
        None => Map::new(),
    };
    known.retain(|_, value| !value.is_null());
    for map in ["labels", "annotations"] {
        overlay(metadata, map, known.remove(map))?;
    }
    if let Some(created) = known.remove("creationTimestamp") {
        metadata.insert("creationTimestamp".to_owned(), created);
    }
    let owners = known.remove("ownerReferences").or_else(|| metadata.remove("ownerReferences"));
    if let Some(owners) = owners {
        metadata.insert("ownerReferences".to_owned(), owned_by(owners, CRD_API_VERSION, API_VERSION)?);
    }
    Ok(match known.remove("name") {
        Some(Value::String(name)) if !name.is_empty() => Some(name),
        _ => None,
    })
}

/// The way back.
fn wrap(metadata: &mut Map<String, Value>, name: Option<String>) -> Result<(), FieldError> {
    twin_uid(metadata, "metadata.uid")?;
    let mut known = Map::new();
    if let Some(name) = name {
        known.insert("name".to_owned(), name.into());
    }
    if let Some(owners) = metadata.remove("ownerReferences") {
        let owners = owned_by(owners, API_VERSION, CRD_API_VERSION)?;
        known.insert("ownerReferences".to_owned(), owners.clone());
        // Kubernetes collects what it sees the owner of.
        metadata.insert("ownerReferences".to_owned(), owners);
    }
    if let Some(created) = metadata.remove("creationTimestamp") {
        known.insert("creationTimestamp".to_owned(), created);
    }
    for map in ["labels", "annotations"] {
        if let Some(Value::Object(own)) = metadata.get_mut(map) {
            known.insert(map.to_owned(), Value::Object(own.clone()));
            own.retain(|name, _| SHOWN.iter().any(|shown| name.contains(shown)));
            if own.is_empty() {
                metadata.remove(map);
            }
        }
    }
    set_annotation(metadata, METADATA, Some(Value::Object(known).to_string()))
}

/// Owners that are of the other group are the same resources with other ids.
fn owned_by(owners: Value, from: &str, to: &str) -> Result<Value, FieldError> {
    let Value::Array(mut owners) = owners else {
        return Err(error("metadata.ownerReferences", "not a list"));
    };
    for (index, owner) in owners.iter_mut().enumerate() {
        let Value::Object(owner) = owner else { continue };
        if owner.get("apiVersion").and_then(Value::as_str) == Some(from) {
            owner.insert("apiVersion".to_owned(), to.into());
            twin_uid(owner, &format!("metadata.ownerReferences[{index}].uid"))?;
        }
    }
    Ok(Value::Array(owners))
}

fn twin_uid(object: &mut Map<String, Value>, field: &str) -> Result<(), FieldError> {
    if let Some(Value::String(own)) = object.get_mut("uid")
        && !own.is_empty()
    {
        *own = uid::twin(own, field)?;
    }
    Ok(())
}

fn annotations(metadata: &mut Map<String, Value>) -> Result<Option<&mut Map<String, Value>>, FieldError> {
    match metadata.get_mut("annotations") {
        None => Ok(None),
        Some(Value::Object(annotations)) => Ok(Some(annotations)),
        Some(_) => Err(error("metadata.annotations", "not an object")),
    }
}

fn take_annotation(metadata: &mut Map<String, Value>) -> Result<Option<String>, FieldError> {
    let Some(own) = annotations(metadata)? else { return Ok(None) };
    let text = own.remove(METADATA);
    if own.is_empty() {
        metadata.remove("annotations");
    }
    match text {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(error(format!("metadata.annotations[{METADATA}]"), "not a string")),
    }
}

fn set_annotation(
    metadata: &mut Map<String, Value>,
    name: &str,
    value: Option<String>,
) -> Result<(), FieldError> {
    if annotations(metadata)?.is_none() && value.is_some() {
        metadata.insert("annotations".to_owned(), Value::Object(Map::new()));
    }
    if let Some(own) = annotations(metadata)? {
        match value {
            Some(value) => own.insert(name.to_owned(), value.into()),
            None => own.remove(name),
        };
    }
    Ok(())
}

/// Entries of `over` beside, and instead of, the entries that are there.
fn overlay(metadata: &mut Map<String, Value>, map: &str, over: Option<Value>) -> Result<(), FieldError> {
    let Some(over) = over else { return Ok(()) };
    let field = || format!("metadata.annotations[{METADATA}].{map}");
    let Value::Object(over) = over else { return Err(error(field(), "not an object")) };
    match metadata.entry(map).or_insert_with(|| Value::Object(Map::new())) {
        Value::Object(own) => own.extend(over),
        _ => return Err(error(format!("metadata.{map}"), "not an object")),
    }
    Ok(())
}
