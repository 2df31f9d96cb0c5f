//! A v3 resource as it is written in a manifest, and its form in the datastore.
//!
//! The spec stays untyped here, so that nothing an operator wrote is lost on the way through; typed
//! specs are beside this file. IPAM objects are kept in the datastore in an older form under paths of
//! their own; the conversion is in `ipam.rs`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::{FieldError, prune_nulls, read};
use super::ipam;
use super::kinds::{API_VERSION, ApiKind, CRD_API_VERSION};
use crate::model::{Key, ResourceKey};

/// Holds the name of a policy in its stored form.
const NAME_ANNOTATION: &str = "projectcalico.org/metadata";
/// Names of policies in the default tier were once stored with this in front.
const DEFAULT_TIER_PREFIX: &str = "default.";
/// Of namespaced resources that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

pub type Result<T> = std::result::Result<T, FieldError>;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub creation_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// What else there is (`generateName`, `ownerReferences`, …), kept as it came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One object of a manifest or of the datastore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resource {
    pub api_version: String,
    pub kind: String,
    pub metadata: Metadata,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub spec: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub status: Value,
    /// The name in the path of the datastore, where it is not `metadata.name`.
    #[serde(skip)]
    stored_name: Option<String>,
}

impl Resource {
    /// An object with nothing but its identity.
    pub fn named(kind: &ApiKind, namespace: &str, name: &str) -> Resource {
        let namespace = if kind.namespaced { namespace } else { "" };
        Resource {
            api_version: API_VERSION.to_owned(),
            kind: kind.kind.to_owned(),
            metadata: Metadata {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                ..Metadata::default()
            },
            ..Resource::default()
        }
    }

    /// Checks and reads one object. Missing namespaces become `default`; `null` is the same as absent.
    pub fn from_json(value: Value) -> Result<Resource> {
        Self::from_json_in(value, DEFAULT_NAMESPACE)
    }

    /// The same, with another namespace for namespaced objects that name none.
    pub fn from_json_in(mut value: Value, namespace: &str) -> Result<Resource> {
        prune_nulls(&mut value);
        if !value.is_object() {
            return Err(FieldError::new("the document", "not an object"));
        }
        let mut resource: Resource = read(&value, "")?;
        if resource.kind.is_empty() {
            return Err(FieldError::new("kind", "missing"));
        }
        match resource.api_version.as_str() {
            API_VERSION => {}
            CRD_API_VERSION => resource.api_version = API_VERSION.to_owned(),
            "" => return Err(FieldError::new("apiVersion", format!("missing: write {API_VERSION}"))),
            other => {
                return Err(FieldError::new(
                    "apiVersion",
                    format!("{other} is not known: write {API_VERSION}"),
                ));
            }
        }
        let kind = ApiKind::by_kind(&resource.kind)
            .ok_or_else(|| FieldError::new("kind", format!("unknown kind {}", resource.kind)))?;
        resource.kind = kind.kind.to_owned();
        if kind.namespaced && resource.metadata.namespace.is_empty() {
            resource.metadata.namespace = namespace.to_owned();
        } else if !kind.namespaced {
            resource.metadata.namespace.clear();
        }
        if resource.metadata.name.is_empty() {
            return Err(FieldError::new("metadata.name", "missing"));
        }
        for (field, value) in [("spec", &resource.spec), ("status", &resource.status)] {
            if !value.is_null() && !value.is_object() {
                return Err(FieldError::new(field, "not an object"));
            }
        }
        Ok(resource)
    }

    pub fn api_kind(&self) -> Result<&'static ApiKind> {
        ApiKind::by_kind(&self.kind)
            .ok_or_else(|| FieldError::new("kind", format!("unknown kind {}", self.kind)))
    }

    /// The typed spec.
    pub fn typed_spec<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        match &self.spec {
            Value::Null => read(&Value::Object(Map::new()), "spec"),
            spec => read(spec, "spec"),
        }
    }

    /// The typed status.
    pub fn typed_status<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        match &self.status {
            Value::Null => read(&Value::Object(Map::new()), "status"),
            status => read(status, "status"),
        }
    }

    /// `kind(name)` or `kind(namespace/name)`, as errors name it.
    pub fn id(&self) -> String {
        self.resource_key().to_string()
    }

    /// The name as the datastore has it.
    pub fn stored_name(&self) -> &str {
        self.stored_name.as_deref().unwrap_or(&self.metadata.name)
    }

    pub fn set_stored_name(&mut self, name: &str) {
        self.stored_name = (name != self.metadata.name).then(|| name.to_owned());
    }

    pub fn resource_key(&self) -> ResourceKey {
        ResourceKey {
            kind: self.kind.clone(),
            namespace: self.metadata.namespace.clone(),
            name: self.stored_name().to_owned(),
        }
    }

    /// Where the datastore keeps it.
    pub fn key_path(&self) -> Result<String> {
        let kind = self.api_kind()?;
        let key = if kind.is_v3_stored() {
            for (field, part) in
                [("metadata.name", self.stored_name()), ("metadata.namespace", &self.metadata.namespace)]
            {
                if part.contains('/') {
                    return Err(FieldError::new(field, "must not contain a slash"));
                }
            }
            Key::Resource(self.resource_key())
        } else {
            ipam::key(kind.kind, self.stored_name(), &self.spec)?
        };
        key.path().map_err(|error| FieldError::new(error.field, error.to_string()))
    }

    /// The bytes that the datastore keeps: with what a writer fills in.
    pub fn to_stored(&self) -> Vec<u8> {
        let kind = ApiKind::by_kind(&self.kind);
        if let Some(kind) = kind.filter(|kind| !kind.is_v3_stored()) {
            return ipam::to_stored(kind.kind, &self.spec).to_string().into_bytes();
        }
        let mut stored = self.clone();
        stored.fill_defaults();
        stored.metadata.resource_version.clear();
        if kind.is_some_and(ApiKind::has_name_annotation) {
            let name = json!({ "name": self.metadata.name });
            stored.metadata.annotations.insert(NAME_ANNOTATION.to_owned(), name.to_string());
            stored.metadata.name = self.stored_name().to_owned();
        }
        serde_json::to_vec(&stored).expect("a resource has string keys only")
    }

    /// Reads what the datastore keeps at `path`.
    pub fn from_stored(path: &str, value: &[u8]) -> Result<Resource> {
        let key = Key::parse_stored(path)
            .ok_or_else(|| FieldError::new("key", format!("{path} holds no resource")))?;
        let key = match key {
            Key::Resource(key) => key,
            key => {
                let (kind, name, spec) = ipam::from_stored(&key, value)?;
                let metadata = Metadata { name, ..Metadata::default() };
                return Ok(Resource {
                    api_version: API_VERSION.to_owned(),
                    kind: kind.to_owned(),
                    metadata,
                    spec,
                    ..Resource::default()
                });
            }
        };
        let mut value: Value = serde_json::from_slice(value)
            .map_err(|error| FieldError::new("the value", format!("not JSON: {error}")))?;
        prune_nulls(&mut value);
        if !value.is_object() {
            return Err(FieldError::new("the value", "not an object"));
        }
        let mut resource: Resource = read(&value, "")?;
        resource.adopt_key(key)?;
        Ok(resource)
    }

    /// The key decides about identity; what the object says about itself only where the two may differ.
    fn adopt_key(&mut self, key: ResourceKey) -> Result<()> {
        self.api_version = API_VERSION.to_owned();
        self.kind = key.kind;
        self.metadata.namespace = key.namespace;
        self.metadata.name = key.name.clone();
        if !ApiKind::by_kind(&self.kind).is_some_and(ApiKind::has_name_annotation) {
            return Ok(());
        }
        if let Some(annotation) = self.metadata.annotations.remove(NAME_ANNOTATION) {
            let field = format!("metadata.annotations[{NAME_ANNOTATION}]");
            let known: Value = serde_json::from_str(&annotation)
                .map_err(|error| FieldError::new(&field, format!("not JSON: {error}")))?;
            if let Some(name) = known.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()) {
                self.metadata.name = name.to_owned();
            }
        } else if matches!(self.spec.get("tier").and_then(Value::as_str), None | Some("" | "default"))
            && let Some(name) = key.name.strip_prefix(DEFAULT_TIER_PREFIX)
        {
            self.metadata.name = name.to_owned();
        }
        self.set_stored_name(&key.name);
        Ok(())
    }
}
