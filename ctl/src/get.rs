//! `get`: finds resources and prints them.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};
use syncer_common::apis::{API_VERSION, ApiKind, Resource};
use syncer_common::backend::{Datastore, KeyValue};
use syncer_common::model::{Key, ResourceKey};

use crate::{Output, columns, files};

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
    output: Output,
) -> Result<String> {
    let kind = kind(name)?;
    if names.is_empty() {
        let mut found = list(store, kind).await?;
        if let (true, Some(namespace)) = (kind.namespaced, namespace) {
            found.retain(|resource| resource.metadata.namespace == namespace);
        }
        return print(kind, &found, output, kind.namespaced && namespace.is_none(), false);
    }
    let Some(namespace) = namespace else { bail!("give a namespace with a name, not --all-namespaces") };
    let mut found = Vec::new();
    for name in names {
        let resource = find(store, kind, name, namespace).await?;
        found.push(resource.with_context(|| {
            let place = if kind.namespaced { format!("{namespace}/") } else { String::new() };
            format!("resource does not exist: {}({place}{name})", kind.kind)
        })?);
    }
    print(kind, &found, output, false, names.len() == 1)
}

pub async fn by_file(store: &dyn Datastore, paths: &[PathBuf], output: Output) -> Result<String> {
    let mut text = String::new();
    for asked in files::read(paths, false)? {
        let kind = asked.api_kind()?;
        let kv = store.get(&asked.key_path()?).await?;
        let kv = kv.with_context(|| format!("resource does not exist: {}", asked.id()))?;
        if output == Output::Yaml && !text.is_empty() {
            text.push_str("---\n");
        }
        text += &print(kind, &[read(&kv)?], output, false, true)?;
    }
    Ok(text)
}

/// One resource by the name that operators know it under.
pub async fn find(
    store: &dyn Datastore,
    kind: &'static ApiKind,
    name: &str,
    namespace: &str,
) -> Result<Option<Resource>> {
    if kind.is_v3_stored() {
        let namespace = if kind.namespaced { namespace } else { "" };
        let key = ResourceKey { kind: kind.kind.into(), namespace: namespace.into(), name: name.into() };
        let path = Key::Resource(key).path().map_err(|error| anyhow!("{name:?}: {error}"))?;
        if let Some(kv) = store.get(&path).await? {
            return read(&kv).map(Some);
        }
    }
    let found = list(store, kind).await?;
    Ok(found.into_iter().find(|resource| {
        resource.metadata.name == name && (!kind.namespaced || resource.metadata.namespace == namespace)
    }))
}

/// All resources of a kind, by namespace and name. What can not be read is said and left out.
async fn list(store: &dyn Datastore, kind: &'static ApiKind) -> Result<Vec<Resource>> {
    let prefix = match kind.kind {
        "IPAMBlock" => "/calico/ipam/v2/assignment/".into(),
        "BlockAffinity" => "/calico/ipam/v2/host/".into(),
        "IPAMHandle" => "/calico/ipam/v2/handle/".into(),
        "IPAMConfig" => "/calico/ipam/v2/config".into(),
        _ => format!("/calico/resources/v3/projectcalico.org/{}/", kind.plural),
    };
    let mut found = Vec::new();
    for kv in store.get_prefix(&prefix).await? {
        match read(&kv) {
            Ok(resource) if resource.kind == kind.kind => found.push(resource),
            Ok(_) => {}
            Err(error) => eprintln!("left out: {error:#}"),
        }
    }
    found.sort_by(|a, b| {
        (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name))
    });
    Ok(found)
}

fn read(kv: &KeyValue) -> Result<Resource> {
    let mut resource = Resource::from_stored(&kv.key, &kv.value).with_context(|| kv.key.clone())?;
    resource.metadata.resource_version = kv.mod_revision.to_string();
    Ok(resource)
}

fn print(
    kind: &ApiKind,
    found: &[Resource],
    output: Output,
    with_namespace: bool,
    single: bool,
) -> Result<String> {
    let mut text = String::new();
    match output {
        Output::Ps | Output::Wide => {
            let all =
                if output == Output::Wide { columns::wide(kind.kind) } else { columns::main(kind.kind) };
            return Ok(columns::table(all, found, with_namespace));
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
