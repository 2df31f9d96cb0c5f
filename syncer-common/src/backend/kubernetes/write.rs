//! Reads and writes of single objects, by Calico's path.
//!
//! The revision that a caller expects is the object's `resourceVersion`: the server compares it. A deletion
//! has a revision too, which the server tells only to watches: so one is opened for that object before it is
//! deleted. IPAM's objects are marked as deleted first, as everything that shares them with us expects.

use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Api, Call};
use super::collection;
use super::failure::{Failure, full_name};
use super::kind::{escaped, parse, read_all};
use super::object::{self, Content, Line};
use super::watch::Lines;
use crate::backend::{Error, KeyValue, Result, Revision};
use crate::kubernetes::{self as conversion, ApiResource, Located, Options, Written};

/// Where the objects of a prefix are found with requests of this size.
const PAGE: usize = 500;
/// How long to wait for the news of a deletion.
const DELETION: Duration = Duration::from_secs(5);

/// A conflict of a write that is tried again.
const ATTEMPTS: usize = 5;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Stored {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    uid: String,
    resource_version: String,
    finalizers: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    deleted: Value,
}

impl Stored {
    /// A deletion that somebody began.
    fn is_marked(&self) -> bool {
        self.spec.deleted == json!(true) || self.spec.deleted == json!("true")
    }
}

async fn settings(api: &Api) -> Result<Options> {
    let group = api.group().await.map_err(|failure| failure.into_error("read", &super::GROUPS, 0))?;
    Ok(api.options(group))
}

fn url(resource: &ApiResource, namespace: &str, name: &str) -> String {
    format!("{}/{}", collection(resource, namespace), escaped(name))
}

/// Kept by IPAM, which deletes in two steps.
fn is_ipam(resource: &ApiResource) -> bool {
    matches!(resource.plural, "ipamblocks" | "blockaffinities" | "ipamhandles")
}

pub(super) async fn get(api: &Api, key: &str) -> Result<Option<KeyValue>> {
    let options = settings(api).await?;
    let Some(Located { resource, namespace, name }) = conversion::locate(key, &options) else {
        return Ok(None);
    };
    let namespace = namespace.unwrap_or_default();
    let call = Call::get(url(&resource, &namespace, &name), api.timing.request);
    let body = match api.fetch(&call).await {
        Ok(body) => body,
        Err(failure) if failure.missing() => return Ok(None),
        Err(failure) => return Err(failure.into_error("get", &resource, 0)),
    };
    if is_ipam(&resource) {
        let stored: Stored = serde_json::from_slice(&body).unwrap_or_default();
        if stored.is_marked() {
            // Whoever began this deletion did not end it. That it fails shows at the next look.
            let precondition = Some(stored.metadata.resource_version.as_str());
            let call = deletion(api, &resource, &namespace, &name, &stored.metadata.uid, precondition);
            if let Err(failure) = api.fetch(&call).await {
                tracing::debug!(key, ?failure, "the deletion that was begun can not be ended");
            }
            return Ok(None);
        }
    }
    let raw = serde_json::from_slice(&body).map_err(|error| Error::Unavailable {
        what: key.into(),
        reason: format!("the answer can not be read: {error}"),
    })?;
    let found = object::convert(&resource, &options, raw, 0);
    match found.content {
        // The path of a pod names its node: of another node it is another path.
        _ if found.key != key => Ok(None),
        Content::Value(value, _) => Ok(Some(object::item(found.key, value, found.revision))),
        Content::Nothing => Ok(None),
        Content::Unusable(finding) => Err(Error::Invalid {
            what: finding.key,
            reason: format!("{}: {}", finding.field, finding.reason),
        }),
    }
}

pub(super) async fn get_prefix(api: &Api, prefix: &str) -> Result<Vec<KeyValue>> {
    let options = settings(api).await?;
    let mut items = Vec::new();
    for resource in conversion::resources_under(prefix, &options) {
        let start = items.len();
        let mut attempts = 0;
        loop {
            let each = |raw: &_, revision| {
                let found = object::convert(&resource, &options, raw, revision);
                if let Content::Value(value, _) = found.content
                    && found.key.starts_with(prefix)
                {
                    items.push(object::item(found.key, value, found.revision));
                }
            };
            attempts += 1;
            match read_all(api, &resource, None, PAGE, each).await {
                Ok(_) => break,
                Err(failure) if failure.missing() => break,
                Err(Failure::Refused(refusal)) if refusal.expired() && attempts < ATTEMPTS => {
                    items.truncate(start);
                }
                Err(failure) => return Err(failure.into_error("list", &resource, 0)),
            }
        }
    }
    items.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    items.dedup_by(|a, b| a.key == b.key);
    Ok(items)
}

async fn converted(api: &Api, key: &str, value: &[u8]) -> Result<Written> {
    let options = settings(api).await?;
    conversion::write(key, value, &options)
        .map_err(|error| Error::Invalid { what: key.into(), reason: error.to_string() })
}

async fn written(
    api: &Api,
    method: Method,
    path: String,
    object: &Value,
    key: &str,
    (verb, resource): (&str, &ApiResource),
) -> Result<Revision> {
    let call = Call { method, path, body: object.to_string().into(), timeout: api.timing.request };
    let body = api.fetch(&call).await.map_err(|failure| failure.into_write_error(verb, key, resource))?;
    let stored: Stored = serde_json::from_slice(&body).unwrap_or_default();
    object::revision(Some(&stored.metadata.resource_version)).ok_or_else(|| Error::Unavailable {
        what: key.into(),
        reason: "was written, but the API server does not say at which revision".into(),
    })
}

pub(super) async fn create(api: &Api, key: &str, value: &[u8]) -> Result<Revision> {
    let Written { resource, namespace, object, .. } = converted(api, key, value).await?;
    let path = collection(&resource, &namespace.unwrap_or_default());
    written(api, Method::POST, path, &object, key, ("create", &resource)).await
}

pub(super) async fn replace(api: &Api, key: &str, value: &[u8], expected: Revision) -> Result<Revision> {
    let options = settings(api).await?;
    if let Some(Located { resource, name, .. }) = conversion::locate(key, &options)
        && resource.kind == "Node"
    {
        // Of Kubernetes' own object only what Calico keeps there is ours.
        let annotations = conversion::node_annotations(value)
            .map_err(|error| Error::Invalid { what: key.into(), reason: error.to_string() })?;
        let metadata = json!({"resourceVersion": expected.to_string(), "annotations": annotations});
        let path = format!("{}/status", url(&resource, "", &name));
        let patch = json!({ "metadata": metadata });
        return written(api, Method::PATCH, path, &patch, key, ("patch", &resource)).await;
    }
    let Written { resource, namespace, name, mut object } = converted(api, key, value).await?;
    // The revision tells which object is meant, also from one of the same name before it.
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("uid");
        metadata.insert("resourceVersion".into(), expected.to_string().into());
    }
    let path = url(&resource, &namespace.unwrap_or_default(), &name);
    written(api, Method::PUT, path, &object, key, ("update", &resource)).await
}

/// The condition that keeps pods away from a node until it is false.
pub(super) async fn set_network_available(api: &Api, node: &str) -> Result<()> {
    const CONDITION: &str = "NetworkUnavailable";
    let key = format!("/calico/resources/v3/projectcalico.org/nodes/{node}");
    let options = settings(api).await?;
    let located = conversion::locate(&key, &options).ok_or_else(|| Error::NotFound { key: key.clone() })?;
    let resource = located.resource;
    let path = url(&resource, "", node);
    for attempt in 1.. {
        let body = api.fetch(&Call::get(path.clone(), api.timing.request)).await;
        let body = body.map_err(|failure| failure.into_error("get", &resource, 0))?;
        let object: Value = serde_json::from_slice(&body).unwrap_or_default();
        let mut conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|condition| condition["type"] == CONDITION && condition["status"] == "False")
        {
            return Ok(());
        }
        conditions.retain(|condition| condition["type"] != CONDITION);
        let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        conditions.push(json!({
            "type": CONDITION,
            "status": "False",
            "reason": "BulrushIsUp",
            "message": "felix has programmed this node",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }));
        let revision = &object["metadata"]["resourceVersion"];
        let patch = json!({"metadata": {"resourceVersion": revision}, "status": {"conditions": conditions}});
        let written =
            written(api, Method::PATCH, format!("{path}/status"), &patch, &key, ("patch", &resource)).await;
        match written {
            // The kubelet writes there too.
            Err(Error::Conflict { .. }) if attempt < ATTEMPTS => {}
            written => return written.map(drop),
        }
    }
    unreachable!("the last attempt returns")
}

fn deletion(
    api: &Api,
    resource: &ApiResource,
    namespace: &str,
    name: &str,
    uid: &str,
    revision: Option<&str>,
) -> Call {
    let mut preconditions = json!({ "uid": uid });
    if let Some(revision) = revision {
        preconditions["resourceVersion"] = revision.into();
    }
    let options = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions });
    Call {
        method: Method::DELETE,
        path: url(resource, namespace, name),
        body: options.to_string().into(),
        timeout: api.timing.request,
    }
}

pub(super) async fn delete(api: &Api, key: &str, expected: Option<Revision>) -> Result<Revision> {
    let options = settings(api).await?;
    let Some(Located { resource, namespace, name }) = conversion::locate(key, &options) else {
        return Err(Error::NotFound { key: key.into() });
    };
    let namespace = namespace.unwrap_or_default();
    refuse_foreign(key, &resource, &namespace, &name)?;
    let fail = |failure: Failure| failure.into_write_error("delete", key, &resource);

    let selected =
        format!("{}?fieldSelector=metadata.name%3D{}", collection(&resource, &namespace), escaped(&name));
    let body = api.fetch(&Call::get(selected.clone(), api.timing.request)).await.map_err(fail)?;
    let page = parse(&body).map_err(fail)?;
    let item = page.items.iter().flatten().next().ok_or_else(|| Error::NotFound { key: key.into() })?;
    let Stored { mut metadata, .. } = serde_json::from_str(item.get()).unwrap_or_default();
    let conflict = |reason: String| Error::Conflict { key: key.into(), reason };
    if let Some(expected) = expected
        && metadata.resource_version != expected.to_string()
    {
        return Err(conflict(format!("is at revision {}, not {expected}", metadata.resource_version)));
    }
    let listed = page.metadata.resource_version.clone().unwrap_or_default();
    let path =
        format!("{selected}&watch=true&resourceVersion={listed}&timeoutSeconds={}", DELETION.as_secs());
    let watch = api.stream(&Call::get(path, api.timing.request)).await.map_err(fail)?;

    let mut precondition = expected.is_some();
    if is_ipam(&resource) {
        let mut marked: Value = serde_json::from_str(item.get()).unwrap_or_default();
        // The affinities' schema has it as text.
        let yes = if resource.plural == "blockaffinities" { json!("true") } else { json!(true) };
        marked["spec"]["deleted"] = yes;
        // Items of lists do not say what they are.
        marked["apiVersion"] = format!("{}/{}", resource.group, resource.version).into();
        marked["kind"] = resource.kind.into();
        let path = url(&resource, &namespace, &name);
        let revision = written(api, Method::PUT, path, &marked, key, ("update", &resource)).await?;
        metadata.resource_version = revision.to_string();
        precondition = true;
    }
    let precondition = precondition.then_some(metadata.resource_version.as_str());
    api.fetch(&deletion(api, &resource, &namespace, &name, &metadata.uid, precondition))
        .await
        .map_err(fail)?;
    if !metadata.finalizers.is_empty() {
        tracing::info!(key, finalizers = ?metadata.finalizers, "is deleted once its finalizers are removed");
    }
    match tokio::time::timeout(DELETION, deleted(Lines::new(watch), &metadata.uid)).await {
        Ok(Some(revision)) => Ok(revision),
        // The news did not come. It is gone at any later revision.
        _ => {
            let path = format!("{}?limit=1", collection(&resource, ""));
            let body = api.fetch(&Call::get(path, api.timing.request)).await.map_err(fail)?;
            super::kind::revision(&resource, &parse(&body).map_err(fail)?).map_err(fail)
        }
    }
}

/// The revision at which the object with that uid was deleted.
async fn deleted(mut lines: Lines, uid: &str) -> Option<Revision> {
    while let Ok(Some(line)) = lines.next().await {
        let Line { event, object } = serde_json::from_slice(&line).ok()?;
        let stored: Stored = serde_json::from_str(object.get()).ok()?;
        if event == "DELETED" && stored.metadata.uid == uid {
            return object::revision_of(object);
        }
    }
    None
}

/// What Kubernetes makes from its own objects is not ours to delete.
fn refuse_foreign(key: &str, resource: &ApiResource, namespace: &str, name: &str) -> Result<()> {
    if super::is_calico(resource) {
        return Ok(());
    }
    let object = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
    Err(Error::Invalid {
        what: key.into(),
        reason: format!("is made from {} {object} of Kubernetes: delete that", full_name(resource)),
    })
}
