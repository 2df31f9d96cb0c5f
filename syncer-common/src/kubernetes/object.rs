//! What all objects of the API have in common, read without copying, and the envelope that they leave in.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use serde::de::{Deserialize, Deserializer, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};

use crate::apis::{API_VERSION, FieldError};
use crate::model::{Key, ResourceKey};

pub(super) fn error(field: impl Into<String>, reason: impl Into<String>) -> FieldError {
    FieldError::new(field, reason)
}

/// A string of the object, without a copy where it has no escapes. `null` is the same as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Text<'a>(Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Text<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Text(Cow::Borrowed(text))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor).map(Text)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(""))
    }
}

pub(super) type Labels<'a> = BTreeMap<Text<'a>, Text<'a>>;

/// For members that Go writes as `null` when they are empty.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The part of an object's metadata that is read.
#[derive(Clone, Debug, Default, DeriveDeserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
    pub namespace: Text<'a>,
    pub generate_name: Text<'a>,
    pub uid: Text<'a>,
    pub resource_version: Text<'a>,
    pub creation_timestamp: Text<'a>,
    pub deletion_timestamp: Text<'a>,
    #[serde(deserialize_with = "or_default")]
    pub labels: Labels<'a>,
    #[serde(deserialize_with = "or_default")]
    pub annotations: Labels<'a>,
}

impl Meta<'_> {
    pub fn annotation(&self, name: &str) -> &str {
        self.annotations.get(name).map_or("", Deref::deref)
    }
}

/// Reads an object; an error names the field.
pub(super) fn parse<'a, T: Deserialize<'a>>(object: &'a [u8]) -> Result<T, FieldError> {
    serde_json::from_slice(object).map_err(|error| {
        // Reading again is for errors only: keeping track of the path has its price.
        let deserializer = &mut serde_json::Deserializer::from_slice(object);
        let path = serde_path_to_error::deserialize::<_, T>(deserializer)
            .err()
            .map(|error| error.path().to_string());
        let field = path
            .filter(|path| !matches!(path.as_str(), "" | "."))
            .unwrap_or_else(|| "the document".to_owned());
        FieldError::new(field, error.to_string())
    })
}

/// Path of a resource in the datastore. Names with a slash, which Kubernetes itself never gives, would mean
/// another path.
pub(super) fn resource_path(kind: &str, namespace: &str, name: &str) -> Result<String, FieldError> {
    for (field, part) in [("metadata.name", name), ("metadata.namespace", namespace)] {
        if part.contains('/') {
            return Err(error(field, "must not contain a slash"));
        }
    }
    if name.is_empty() {
        return Err(error("metadata.name", "missing"));
    }
    let key = ResourceKey { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() };
    Key::Resource(key).path().map_err(|lacking| error("metadata.namespace", lacking.to_string()))
}

fn is_empty(text: &str) -> bool {
    text.is_empty()
}

/// Metadata as the datastore keeps it: without the revision, which is beside the value.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StoredMeta<'a> {
    pub name: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    pub generate_name: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    pub namespace: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    pub uid: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    pub creation_timestamp: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Labels<'a>,
}

/// A resource as the datastore keeps it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stored<'a, Spec, Status = ()> {
    kind: &'static str,
    api_version: &'static str,
    metadata: StoredMeta<'a>,
    spec: Spec,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

impl<'a, Spec: Serialize, Status: Serialize> Stored<'a, Spec, Status> {
    pub fn new(kind: &'static str, metadata: StoredMeta<'a>, spec: Spec, status: Option<Status>) -> Self {
        Stored { kind, api_version: API_VERSION, metadata, spec, status }
    }

    pub fn to_vec(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a resource has string keys only")
    }
}
