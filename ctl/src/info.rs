//! `datastore info` and `version`: what is there, and whether it is well. Only reads.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;
use syncer_common::apis::{FieldError, Resource};
use syncer_common::backend::config::{KubernetesConfig, StoreConfig};
use syncer_common::backend::{self, Datastore, Listing, Revision, Source};
use syncer_common::model::{Key, ResourceKey};
use syncer_common::processors::{ConversionError, Processors};
use syncer_common::validate;
use tokio::task::JoinSet;

use crate::{Report, get};

/// For a source that says nothing at all; the clients give up earlier by themselves.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one source says about itself.
struct Answer {
    name: String,
    result: backend::Result<Said>,
}

struct Said {
    history: String,
    revision: Revision,
    latency: Duration,
    listing: Listing,
}

async fn ask(source: Arc<dyn Source>) -> Answer {
    let name = source.name().to_owned();
    let asked = async {
        let started = Instant::now();
        let head = source.head().await?;
        let latency = started.elapsed();
        let (history, listing) = (source.history().await?, source.list(None).await?);
        Ok(Said { history, revision: head.revision, latency, listing })
    };
    let result = tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
        let reason = format!("no answer within {} s", PATIENCE.as_secs());
        Err(backend::Error::Unavailable { what: name.clone(), reason })
    });
    Answer { name, result }
}

pub async fn datastore(config: &StoreConfig, store: Arc<dyn Datastore>) -> Result<Report> {
    let mut tasks = JoinSet::new();
    for source in store.sources() {
        tasks.spawn(ask(source));
    }
    let mut answers = tasks.join_all().await;
    answers.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = describe(config);
    let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.result.is_ok());
    let said: Vec<(&str, &Said)> =
        good.iter().filter_map(|answer| Some((answer.name.as_str(), answer.result.as_ref().ok()?))).collect();
    match said.iter().map(|(_, said)| said.latency).min() {
        Some(latency) => {
            let some = if bad.is_empty() { "yes" } else { "in part" };
            writeln!(text, "Reachable:    {some}, answered in {:.1} ms", latency.as_secs_f64() * 1000.0)?;
        }
        None => writeln!(text, "Reachable:    no")?,
    }
    for answer in &bad {
        let Err(error) = &answer.result else { continue };
        writeln!(text, "Not answered: {}: {error}", answer.name)?;
    }
    if said.is_empty() {
        writeln!(text, "Check that the address is right, the server runs, and the credentials are valid.")?;
        return Ok(Report { text, warnings: Vec::new(), complete: false, exit: None });
    }
    let mut histories: Vec<&str> = said.iter().map(|(_, said)| said.history.as_str()).collect();
    histories.dedup();
    writeln!(text, "History:      {}", histories.join(", "))?;
    content(&mut text, &said)?;
    Ok(Report { text, warnings: Vec::new(), complete: bad.is_empty(), exit: None })
}

/// Type and address; never a credential.
fn describe(config: &StoreConfig) -> String {
    match config {
        StoreConfig::Etcd(etcd) => {
            let endpoints: Vec<String> =
                etcd.endpoints.iter().map(|endpoint| without_user(endpoint)).collect();
            let user =
                etcd.username.as_deref().map(|user| format!("User:         {user}\n")).unwrap_or_default();
            format!("Datastore:    etcdv3\nEndpoints:    {}\n{user}", endpoints.join(", "))
        }
        StoreConfig::Directory { path } => {
            format!("Datastore:    directory\nFolder:       {}\n", path.display())
        }
        StoreConfig::Kubernetes(KubernetesConfig { kubeconfig, context, .. }) => {
            let from =
                kubeconfig.as_ref().map_or("service account of this pod".into(), |f| f.display().to_string());
            let context = context.as_deref().map(|c| format!(", context {c}")).unwrap_or_default();
            format!("Datastore:    kubernetes\nAccess:       {from}{context}\n")
        }
    }
}

/// The same in one line, for errors.
pub fn place(config: &StoreConfig) -> String {
    let lines = describe(config);
    let words = lines.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    words.collect::<Vec<_>>().join(", ")
}

/// `http://user:password@host` is written here and there.
fn without_user(endpoint: &str) -> String {
    match endpoint.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit('@').next().unwrap_or(rest)),
        None => endpoint.rsplit('@').next().unwrap_or(endpoint).to_owned(),
    }
}

/// What the objects are, and which of them do not count.
fn content(text: &mut String, said: &[(&str, &Said)]) -> Result<()> {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut refused = Vec::new();
    let mut cluster = None;
    let mut processors = Processors::new();
    for (_, said) in said {
        for item in &said.listing.items {
            let key = Key::parse_stored(&item.key);
            if let Some(Key::Resource(ResourceKey { kind, name, .. })) = &key
                && (kind.as_str(), name.as_str()) == ("ClusterInformation", "default")
            {
                cluster = serde_json::from_slice::<Value>(&item.value).ok();
            }
            *kinds.entry(kind_of(key.as_ref())).or_default() += 1;
            if let Some(error) = processors.put(&item.key, &item.value).error {
                let object = object_of(&error.key);
                refused.extend(
                    mistakes(&item.key, &item.value, error)
                        .iter()
                        .map(|mistake| format!("{object}: {mistake}")),
                );
            }
        }
        for finding in &said.listing.findings {
            refused.push(format!("{}: {}: {}", object_of(&finding.key), finding.field, finding.reason));
        }
    }
    let spec = |field: &str| cluster.as_ref()?.pointer(&format!("/spec/{field}")).cloned();
    let word = |field| spec(field).and_then(|value| value.as_str().map(str::to_owned));
    let or_unknown = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or("unknown".into());
    writeln!(
        text,
        "Cluster:      GUID {}, type {}",
        or_unknown(word("clusterGUID")),
        or_unknown(word("clusterType"))
    )?;
    writeln!(text, "Calico:       {}", or_unknown(word("calicoVersion")))?;
    let ready = match (&cluster, spec("datastoreReady")) {
        (None, _) => "not known: there is no ClusterInformation named default; agents go ahead",
        (_, Some(Value::Bool(true))) => "yes",
        (_, Some(_)) => "no: datastoreReady is false in ClusterInformation(default); agents hold still",
        (_, None) => "no: datastoreReady is not set in ClusterInformation(default); agents hold still",
    };
    writeln!(text, "Ready:        {ready}")?;
    writeln!(text, "\nSources:")?;
    let width = said.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, said) in said {
        writeln!(
            text,
            "  {name:<width$}   revision {}, {} object(s)",
            said.revision,
            said.listing.items.len()
        )?;
    }
    writeln!(text, "\nObjects:")?;
    let width = kinds.keys().map(String::len).max().unwrap_or(0);
    for (kind, count) in &kinds {
        writeln!(text, "  {kind:<width$}   {count}")?;
    }
    if kinds.is_empty() {
        writeln!(text, "  none")?;
    }
    if !refused.is_empty() {
        writeln!(text, "\nRefused, or used in part:")?;
        for line in refused {
            writeln!(text, "  {line}")?;
        }
    }
    Ok(())
}

fn kind_of(key: Option<&Key>) -> String {
    match key {
        Some(Key::Resource(key)) => key.kind.clone(),
        Some(Key::Block { .. }) => "IPAMBlock".into(),
        Some(Key::BlockAffinity(_)) => "BlockAffinity".into(),
        Some(Key::IpamHandle { .. }) => "IPAMHandle".into(),
        Some(Key::IpamConfig) => "IPAMConfig".into(),
        // Status reports, keys of old releases.
        _ => "(other)".into(),
    }
}

/// By the fields of the resource, as `validate` names them, where it finds them too.
fn mistakes(key: &str, value: &[u8], refused: ConversionError) -> Vec<FieldError> {
    let found =
        Resource::from_stored(key, value).map(|resource| validate::resource(&resource)).unwrap_or_default();
    match found.is_empty() {
        true => vec![FieldError::new(refused.field, refused.reason)],
        false => found,
    }
}

/// As `validate` names it.
fn object_of(path: &str) -> String {
    match Key::parse(path) {
        Some(Key::Resource(key)) => key.to_string(),
        _ => path.to_owned(),
    }
}

pub fn client_version() -> String {
    format!("Client Version:    v{}\n", env!("CARGO_PKG_VERSION"))
}

/// What wrote the cluster's data.
pub async fn cluster_version(store: &dyn Datastore) -> Result<String> {
    let found = get::find(store, get::kind("clusterinformation")?, "default", "").await;
    let found = found.context("the version of the cluster is not known (--client asks for none)")?;
    let spec = found.map(|resource| resource.spec).unwrap_or_default();
    let word = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or("unknown");
    Ok(format!("Cluster Version:   {}\nCluster Type:      {}\n", word("calicoVersion"), word("clusterType")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use syncer_common::backend::config::{EtcdConfig, Secret};

    #[test]
    fn credentials_are_never_shown() {
        let config = StoreConfig::Etcd(EtcdConfig {
            endpoints: vec!["http://typha:hunter2@10.0.0.1:2379".into()],
            username: Some("typha".into()),
            password: Some(Secret::new("hunter2")),
            ..EtcdConfig::default()
        });
        let text = describe(&config);
        assert!(text.contains("http://10.0.0.1:2379") && text.contains("User:         typha"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
