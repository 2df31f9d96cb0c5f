//! `get`: finds resources and prints them.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};
use syncer_common::apis::{API_VERSION, ApiKind, FieldError, Resource};
use syncer_common::backend::{Datastore, Error, KeyValue};
use syncer_common::model::Key;
use syncer_common::processors::DEFAULT_ALLOW_PROFILE;

use crate::columns;
use crate::files::{self, Purpose};
use crate::output::Output;

/// The kind that an operator's word means.
pub fn kind(name: &str) -> Result<&'static ApiKind> {
    ApiKind::by_name(name).ok_or_else(|| {
        let known: Vec<_> = ApiKind::all().map(|kind| kind.kind).collect();
        anyhow!("resource type '{name}' is not supported; known: {}", known.join(", "))
    })
}

pub async fn by_name(
    store: &dyn Datastore,
    name: &str,
    names: &[String],
    namespace: Option<&str>,
    output: &Output,
) -> Result<String> {
    let kind = kind(name)?;
    if names.is_empty() {
        let mut found = list(store, kind).await?;
        if let (true, Some(namespace)) = (kind.namespaced, namespace) {
            found.retain(|resource| resource.metadata.namespace == namespace);
        }
        if kind.kind == "Node" && output.is_wide() {
            show_default_as_number(store, &mut found).await?;
        }
        return print(kind, &found, output, kind.namespaced && namespace.is_none(), false);
    }
    let Some(namespace) = namespace else { bail!("give a namespace with a name, not --all-namespaces") };
    let mut found = Vec::new();
    for name in names {
        let resource = find(store, kind, name, namespace).await?;
        found.push(resource.with_context(|| missing(kind, namespace, name))?);
    }
    if kind.kind == "Node" && output.is_wide() {
        show_default_as_number(store, &mut found).await?;
    }
    print(kind, &found, output, false, names.len() == 1)
}

/// Nodes without an AS number of their own have the cluster's, which the table shows in parentheses.
async fn show_default_as_number(store: &dyn Datastore, nodes: &mut [Resource]) -> Result<()> {
    let configuration = find(store, kind("bgpconfiguration")?, "default", "").await?;
    let number = configuration.and_then(|found| match found.spec.get("asNumber")? {
        Value::String(text) => Some(text.clone()),
        number => Some(number.to_string()),
    });
    let Some(number) = number else { return Ok(()) };
    for bgp in nodes.iter_mut().filter_map(|node| node.spec.get_mut("bgp")?.as_object_mut()) {
        bgp.entry("asNumber").or_insert_with(|| format!("({number})").into());
    }
    Ok(())
}

pub async fn by_file(
    store: &dyn Datastore,
    paths: &[PathBuf],
    namespace: &str,
    output: &Output,
) -> Result<String> {
    let mut text = String::new();
    for mut asked in files::read(paths, namespace, Purpose::Find)?.0 {
        let kind = asked.api_kind()?;
        let kv = stored(store, &mut asked).await?;
        let kv = kv.with_context(|| format!("resource does not exist: {}", asked.id()))?;
        if *output == Output::Yaml && !text.is_empty() {
            text.push_str("---\n");
        }
        text += &print(kind, &[read(&kv)?], output, false, true)?;
    }
    Ok(text)
}

/// What the datastore holds of a resource. Older writers put the tier in front of a policy's name: such
/// an object is found under the name it has, and keeps its place.
pub async fn stored(
    store: &dyn Datastore,
    resource: &mut Resource,
) -> std::result::Result<Option<KeyValue>, Lookup> {
    let found = store.get(&resource.key_path()?).await?;
    if found.is_some() || !resource.api_kind()?.has_name_annotation() {
        return Ok(found);
    }
    let mut older = resource.clone();
    older.set_stored_name(&format!("default.{}", resource.metadata.name));
    let path = older.key_path()?;
    let Some(kv) = store.get(&path).await? else { return Ok(None) };
    if !Resource::from_stored(&path, &kv.value).is_ok_and(|old| old.metadata.name == resource.metadata.name) {
        return Ok(None);
    }
    *resource = older;
    Ok(Some(kv))
}

/// Why nothing could be looked up.
#[derive(Debug, thiserror::Error)]
pub enum Lookup {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error(transparent)]
    Store(#[from] Error),
}

/// One resource by the name that operators know it under.
pub async fn find(
    store: &dyn Datastore,
    kind: &'static ApiKind,
    name: &str,
    namespace: &str,
) -> Result<Option<Resource>> {
    let found = find_stored(store, kind, name, namespace).await?.map(|(_, resource)| resource);
    Ok(found.or_else(|| built_in(kind).into_iter().find(|resource| resource.metadata.name == name)))
}

/// The same with its place in the datastore, and without what is in none.
pub async fn find_stored(
    store: &dyn Datastore,
    kind: &'static ApiKind,
    name: &str,
    namespace: &str,
) -> Result<Option<(KeyValue, Resource)>> {
    if kind.is_v3_stored() {
        let mut asked = Resource::named(kind, namespace, name);
        return match stored(store, &mut asked).await? {
            Some(kv) => read(&kv).map(|resource| Some((kv, resource))),
            None => Ok(None),
        };
    }
    let found = list_stored(store, kind).await?;
    Ok(found.into_iter().find(|(_, resource)| resource.metadata.name == name))
}

/// The identity of an object that was asked for and is not there.
pub fn missing(kind: &ApiKind, namespace: &str, name: &str) -> String {
    let place = if kind.namespaced { format!("{namespace}/") } else { String::new() };
    format!("resource does not exist: {}({place}{name})", kind.kind)
}

/// What every reader makes, because it is in no datastore.
fn built_in(kind: &ApiKind) -> Vec<Resource> {
    if kind.kind != "Profile" {
        return Vec::new();
    }
    let mut profile = Resource::named(kind, "", DEFAULT_ALLOW_PROFILE);
    profile.metadata.resource_version = "1".into();
    profile.spec = json!({"egress": [{"action": "Allow"}], "ingress": [{"action": "Allow"}]});
    vec![profile]
}

/// All resources of a kind, by namespace and name. What can not be read is said and left out.
async fn list(store: &dyn Datastore, kind: &'static ApiKind) -> Result<Vec<Resource>> {
    let mut found = built_in(kind);
    found.extend(list_stored(store, kind).await?.into_iter().map(|(_, resource)| resource));
    found.sort_by(|a, b| {
        (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name))
    });
    Ok(found)
}

/// Where the datastore keeps a kind.
pub fn prefix(kind: &ApiKind) -> String {
    match kind.kind {
        // Affinities are of hosts and of virtual owners, side by side.
        "IPAMBlock" | "BlockAffinity" | "IPAMHandle" | "IPAMConfig" => "/calico/ipam/v2/".into(),
        _ => format!("/calico/resources/v3/projectcalico.org/{}/", kind.plural),
    }
}

/// What the datastore holds of a kind. What can not be read is said and left out.
pub async fn list_stored(
    store: &dyn Datastore,
    kind: &'static ApiKind,
) -> Result<Vec<(KeyValue, Resource)>, Error> {
    let mut found = Vec::new();
    for kv in store.get_prefix(&prefix(kind)).await? {
        if !kind.is_v3_stored() && !holds(kind, &kv.key) {
            continue;
        }
        match read(&kv) {
            Ok(resource) if resource.kind == kind.kind => found.push((kv, resource)),
            Ok(_) => {}
            Err(error) => eprintln!("left out: {error:#}"),
        }
    }
    Ok(found)
}

/// IPAM keeps all its kinds below one path.
fn holds(kind: &ApiKind, path: &str) -> bool {
    match Key::parse_stored(path) {
        Some(Key::Block { .. }) => kind.kind == "IPAMBlock",
        Some(Key::BlockAffinity(_)) => kind.kind == "BlockAffinity",
        Some(Key::IpamHandle { .. }) => kind.kind == "IPAMHandle",
        Some(Key::IpamConfig) => kind.kind == "IPAMConfig",
        _ => false,
    }
}

fn read(kv: &KeyValue) -> Result<Resource> {
    let mut resource = Resource::from_stored(&kv.key, &kv.value).with_context(|| kv.key.clone())?;
    resource.metadata.resource_version = kv.mod_revision.to_string();
    Ok(resource)
}

fn print(
    kind: &ApiKind,
    found: &[Resource],
    output: &Output,
    with_namespace: bool,
    single: bool,
) -> Result<String> {
    let mut text = String::new();
    match output {
        Output::Ps => return Ok(columns::table(columns::main(kind.kind), found, with_namespace)),
        Output::Wide => return Ok(columns::table(columns::wide(kind.kind), found, with_namespace)),
        Output::Columns(headings) => {
            return Ok(columns::table(&columns::chosen(kind.kind, headings)?, found, with_namespace));
        }
        Output::Name => {
            for resource in found {
                writeln!(text, "{}/{}", kind.kind.to_lowercase(), resource.metadata.name)?;
            }
        }
        Output::Yaml => text = serde_yaml_ng::to_string(&document(kind, found, single)?)?,
        Output::Json => text = serde_json::to_string_pretty(&document(kind, found, single)?)? + "\n",
    }
    Ok(text)
}

fn document(kind: &ApiKind, found: &[Resource], single: bool) -> Result<Value> {
    if let (true, [resource]) = (single, found) {
        return Ok(serde_json::to_value(resource)?);
    }
    let revision =
        found.iter().filter_map(|r| r.metadata.resource_version.parse::<u64>().ok()).max().unwrap_or(0);
    Ok(json!({
        "apiVersion": API_VERSION,
        "items": found.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?,
        "kind": kind.list_kind(),
        "metadata": {"resourceVersion": revision.to_string()},
    }))
}
