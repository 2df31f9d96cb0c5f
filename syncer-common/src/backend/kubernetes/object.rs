//! Objects as the API server writes them, read only as far as the client needs to: the rest stays text,
//! which `crate::kubernetes` converts.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::backend::{Event, Finding, KeyValue, Listing, MAX_VALUE_BYTES, Revision};
use crate::kubernetes::{self, ApiResource, Options};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    pub(super) resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
    pub(super) uid: Option<String>,
}

/// One page of a list.
#[derive(Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub(super) metadata: ListMeta,
    #[serde(borrow)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

/// One line of a watch.
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    #[serde(rename = "type")]
    pub(super) event: &'a str,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

#[derive(Default, Deserialize)]
struct Head {
    #[serde(default)]
    metadata: Meta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

/// Text of a revision. Kubernetes promises only an opaque string, but every API server on etcd gives numbers
/// that grow (and since 1.35 that is the contract).
pub(super) fn revision(text: Option<&str>) -> Option<Revision> {
    text?.parse().ok().filter(|revision| *revision > 0)
}

/// An object, converted.
pub(super) struct Object {
    pub(super) key: String,
    pub(super) revision: Revision,
    pub(super) content: Content,
}

pub(super) enum Content {
    /// With what could not be used of it.
    Value(Bytes, Vec<Finding>),
    /// None of ours.
    Nothing,
    /// It exists, and can not be used at all.
    Unusable(Finding),
}

pub(super) fn revision_of(raw: &RawValue) -> Option<Revision> {
    let Head { metadata } = serde_json::from_str(raw.get()).ok()?;
    revision(metadata.resource_version.as_deref())
}

/// The path of an object. One that has none, however broken, is told apart by what the API server calls it.
pub(super) fn path(resource: &ApiResource, options: &Options, raw: &RawValue) -> String {
    kubernetes::path(resource, options, raw.get().as_bytes()).unwrap_or_else(|| {
        let Head { metadata } = serde_json::from_str(raw.get()).unwrap_or_default();
        let part = |part: Option<String>| part.filter(|part| !part.is_empty()).map(|part| format!("/{part}"));
        let (namespace, name) = (part(metadata.namespace), part(metadata.name));
        let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
        format!("/calico/resources/v3/projectcalico.org/{}{namespace}{name}", resource.plural)
    })
}

pub(super) fn convert(
    resource: &ApiResource,
    options: &Options,
    raw: &RawValue,
    fallback: Revision,
) -> Object {
    let (key, revision, content) = match kubernetes::read(resource, options, raw.get().as_bytes()) {
        Ok(read) => {
            let revision = self::revision(Some(&read.resource_version)).unwrap_or(fallback);
            let finding = |error: crate::apis::FieldError| Finding {
                key: read.path.clone(),
                mod_revision: revision,
                field: error.field,
                reason: error.reason,
            };
            let content = match read.value {
                Some(value) if value.len() > MAX_VALUE_BYTES => Content::Unusable(Finding {
                    key: read.path.clone(),
                    mod_revision: revision,
                    field: "the value".into(),
                    reason: format!(
                        "{} bytes, more than {MAX_VALUE_BYTES}: too large to be carried",
                        value.len()
                    ),
                }),
                Some(value) => Content::Value(value.into(), read.findings.into_iter().map(finding).collect()),
                None => Content::Nothing,
            };
            (read.path, revision, content)
        }
        Err(error) => {
            let (key, revision) = (path(resource, options, raw), revision_of(raw).unwrap_or(fallback));
            let (field, reason) = (error.field, error.reason);
            let finding = Finding { key: key.clone(), mod_revision: revision, field, reason };
            (key, revision, Content::Unusable(finding))
        }
    };
    Object { key, revision, content }
}

impl Object {
    /// As a listing holds it.
    pub(super) fn list_into(self, listing: &mut Listing) {
        match self.content {
            Content::Value(value, findings) => {
                listing.findings.extend(findings);
                listing.items.push(item(self.key, value, self.revision));
            }
            Content::Unusable(finding) => listing.findings.push(finding),
            Content::Nothing => {}
        }
    }

    /// As events tell it.
    pub(super) fn into_events(self) -> Vec<Event> {
        match self.content {
            Content::Value(value, findings) => {
                let put = Event::Put(item(self.key, value, self.revision));
                std::iter::once(put).chain(findings.into_iter().map(Event::Finding)).collect()
            }
            Content::Unusable(finding) => vec![Event::Finding(finding)],
            Content::Nothing => vec![Event::Delete { key: self.key, mod_revision: self.revision }],
        }
    }
}

/// Kubernetes does not say at which revision an object was created: 0.
pub(super) fn item(key: String, value: Bytes, revision: Revision) -> KeyValue {
    KeyValue { key, value, create_revision: 0, mod_revision: revision }
}
