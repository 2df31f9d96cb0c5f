//! Commands on a datastore in memory: what is stored, and what the operator reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use syncer_common::backend::{Datastore, Error, KeyValue, Result as StoreResult, Revision, Source};

use crate::output::Output;
use crate::write::Verb;
use crate::{get, write};

mod crud;
mod edit;
mod ipam;
mod node;

/// A datastore with the revisions of etcd and none of its history.
#[derive(Default)]
struct Memory {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    revision: Revision,
    items: BTreeMap<String, KeyValue>,
    /// Writes by somebody else, one ahead of each replacement.
    interference: Vec<(String, Bytes)>,
}

impl State {
    fn put(&mut self, key: &str, value: Bytes) -> Revision {
        self.revision += 1;
        let created = self.items.get(key).map_or(self.revision, |old| old.create_revision);
        let item = KeyValue { key: key.into(), value, create_revision: created, mod_revision: self.revision };
        self.items.insert(key.into(), item);
        self.revision
    }

    fn expect(&self, key: &str, expected: Option<Revision>) -> StoreResult<()> {
        let Some(item) = self.items.get(key) else { return Err(Error::NotFound { key: key.into() }) };
        match expected {
            Some(expected) if expected != item.mod_revision => {
                Err(Error::Conflict { key: key.into(), reason: "changed".into() })
            }
            _ => Ok(()),
        }
    }
}

impl Memory {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().expect("no test panics while it holds the lock"))
    }

    fn stored(&self, key: &str) -> Value {
        self.with(|state| serde_json::from_slice(&state.items[key].value).expect("resources are JSON"))
    }

    fn keys(&self) -> Vec<String> {
        self.with(|state| state.items.keys().cloned().collect())
    }

    fn revision(&self) -> Revision {
        self.with(|state| state.revision)
    }
}

#[async_trait]
impl Datastore for Memory {
    fn sources(self: Arc<Self>) -> Vec<Arc<dyn Source>> {
        Vec::new()
    }
    async fn get(&self, key: &str) -> StoreResult<Option<KeyValue>> {
        Ok(self.with(|state| state.items.get(key).cloned()))
    }
    async fn get_prefix(&self, prefix: &str) -> StoreResult<Vec<KeyValue>> {
        Ok(self.with(|state| {
            state.items.values().filter(|item| item.key.starts_with(prefix)).cloned().collect()
        }))
    }
    async fn create(&self, key: &str, value: Bytes) -> StoreResult<Revision> {
        self.with(|state| match state.items.contains_key(key) {
            true => Err(Error::Conflict { key: key.into(), reason: "exists".into() }),
            false => Ok(state.put(key, value)),
        })
    }
    async fn replace(&self, key: &str, value: Bytes, expected: Revision) -> StoreResult<Revision> {
        self.with(|state| {
            if let Some((other, value)) = state.interference.pop() {
                state.put(&other, value);
            }
            state.expect(key, Some(expected))?;
            Ok(state.put(key, value))
        })
    }
    async fn delete(&self, key: &str, expected: Option<Revision>) -> StoreResult<Revision> {
        self.with(|state| {
            state.expect(key, expected)?;
            state.items.remove(key);
            state.revision += 1;
            Ok(state.revision)
        })
    }
}

const POOL_KEY: &str = "/calico/resources/v3/projectcalico.org/ippools/default-ipv4-ippool";
const POOL: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: default-ipv4-ippool}\n\
                    spec: {cidr: 10.244.0.0/16, ipipMode: Always, natOutgoing: true}\n";

/// A command's answer, or its error as it is printed.
async fn run(store: &Memory, verb: Verb, text: &str) -> Result<String, String> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("file.yaml");
    std::fs::write(&file, text).expect("a temporary file");
    let done = write::from_files(store, verb, &[file], "default", false).await;
    done.map(|report| report.text)
        .map_err(|error| format!("{error:#}").replace(&dir.path().display().to_string(), "DIR"))
}

async fn get(store: &Memory, kind: &str, names: &[&str], output: Output) -> Result<String, String> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    get::by_name(store, kind, &names, Some("default"), &output).await.map_err(|error| format!("{error:#}"))
}

async fn delete(store: &Memory, kind: &str, name: &str) -> Result<String, String> {
    let done = write::delete_named(store, DELETE, kind, &[name.to_owned()], "default").await;
    done.map_err(|error| format!("{error:#}"))
}

const DELETE: Verb = Verb::Delete { skip_not_exists: false, release: true };
const CREATE: Verb = Verb::Create { skip_exists: false };
