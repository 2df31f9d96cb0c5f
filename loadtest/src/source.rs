//! The datastore under test: filled, changed, and read back as the truth that every node has to end with.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use syncer_common::backend::config::{StoreConfig, open};
use syncer_common::backend::{Datastore, Error};
use syncer_common::kubernetes::Located;
use syncer_common::model::{Kind, Update};
use syncer_common::processors::Processors;

use crate::cluster::{Change, Object};
use crate::incumbent::values;
use crate::kubernetes::{self, Kubernetes};
use crate::node::{Keys, State};

/// Writes under way at once.
const WRITERS: usize = 64;
const PREFIX: &str = "/calico/";

/// What has to be there before the next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Namespaces,
    ServiceAccounts,
    Rest,
}

impl Layer {
    fn of(key: &str) -> Layer {
        match kubernetes::own(key).map(|object| object.resource.kind) {
            Some("Namespace") => Layer::Namespaces,
            Some("ServiceAccount") => Layer::ServiceAccounts,
            _ => Layer::Rest,
        }
    }
}

/// Ends all of them, and returns the first error.
async fn all(writes: impl Iterator<Item = impl Future<Output = Result<()>>>) -> Result<()> {
    stream::iter(writes).buffer_unordered(WRITERS).collect::<Vec<_>>().await.into_iter().collect()
}

pub struct Source {
    store: Arc<dyn Datastore>,
    /// The store, where it is the Kubernetes API: what Kubernetes keeps in objects of its own is written there.
    kubernetes: Option<Kubernetes>,
    /// What is compared is in the form of Calico's Typha.
    calico: bool,
    /// Told of each deletion before it is made.
    keys: Keys,
    /// Objects of ours and their revisions.
    held: Mutex<HashMap<String, u64>>,
    /// Revision of the newest change of ours.
    newest: AtomicU64,
}

impl Source {
    pub async fn open(config: &StoreConfig, calico: bool, keys: Keys) -> Result<Self> {
        let (store, kubernetes): (Arc<dyn Datastore>, _) = match config {
            StoreConfig::Kubernetes(config) => {
                let kubernetes = Kubernetes::open(config.clone()).await?;
                (kubernetes.store(), Some(kubernetes))
            }
            config => (open(config).await?, None),
        };
        Ok(Source { store, kubernetes, calico, keys, held: Mutex::default(), newest: AtomicU64::new(0) })
    }

    /// Puts a cluster into an empty datastore.
    pub async fn fill(&self, objects: Vec<Object>) -> Result<()> {
        let mut there = self.store.get_prefix(PREFIX).await.context("reading the datastore")?;
        if self.kubernetes.is_some() {
            there.retain(|object| !kubernetes::is_system(&object.key));
        }
        if let Some(first) = there.first() {
            let first = match self.kubernetes {
                Some(_) => kubernetes::name(&first.key),
                None => first.key.clone(),
            };
            bail!(
                "the datastore holds {} objects already (the first: {first}): a synthetic cluster needs an empty one; to \
                 follow what is there without writing, leave the datastore's flags out",
                there.len(),
            );
        }
        if let Err(error) = self.write_all(objects).await {
            self.clear().await.context("removing what was written")?;
            return Err(error);
        }
        Ok(())
    }

    /// Up to the first that can not be written. What is under way then is waited for, else nobody knows whether it
    /// is there.
    async fn write_all(&self, objects: Vec<Object>) -> Result<()> {
        let mut by_layer = BTreeMap::<Layer, Vec<Object>>::new();
        for object in objects {
            by_layer.entry(Layer::of(&object.key)).or_default().push(object);
        }
        let failed = AtomicBool::new(false);
        for objects in by_layer.into_values() {
            let writes = objects.into_iter().map(async |object| {
                if failed.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let written = self.write(Change::Put(object)).await;
                failed.fetch_or(written.is_err(), Ordering::Relaxed);
                written
            });
            all(writes).await?;
        }
        Ok(())
    }

    /// One change; two of one key have to follow one another.
    pub async fn write(&self, change: Change) -> Result<()> {
        match change {
            Change::Put(Object { key, value }) => {
                // Held from now on, since an answer may be lost.
                let known = self.known(&key);
                let revision = self.put(&key, value, known).await;
                let revision = revision.with_context(|| format!("writing {key}"))?;
                self.newest.fetch_max(revision, Ordering::Relaxed);
                self.held().insert(key, revision);
            }
            Change::Delete(key) => {
                self.keys.delete(&Processors::new().delete(&key).updates);
                let deleted = self.delete(&key).await;
                let revision = deleted.with_context(|| format!("deleting {key}"))?;
                self.newest.fetch_max(revision, Ordering::Relaxed);
                self.held().remove(&key);
            }
        }
        Ok(())
    }

    /// The revision of the newest change that was written.
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::Relaxed)
    }

    /// The revision at which an object was written last.
    pub fn revision(&self, key: &str) -> Option<u64> {
        self.held().get(key).copied().filter(|revision| *revision > 0)
    }

    /// The name of what those revisions count.
    pub fn name(&self) -> String {
        self.store.clone().sources().first().map(|source| source.name().to_owned()).unwrap_or_default()
    }

    /// Of an object of ours; from now on it is one.
    fn known(&self, key: &str) -> Option<u64> {
        let mut held = self.held();
        let known = held.get(key).copied();
        held.entry(key.to_owned()).or_insert(0);
        known
    }

    /// `known`: the revision of what is replaced. Objects of Kubernetes' own need none.
    async fn put(&self, key: &str, value: Vec<u8>, known: Option<u64>) -> Result<u64> {
        if let Some((kubernetes, own)) = self.own(key) {
            kubernetes.put(&own, &value, known.is_none()).await?;
            return Ok(0);
        }
        let value = Bytes::from(value);
        Ok(match known {
            None => self.store.create(key, value).await?,
            Some(revision) => self.store.replace(key, value, revision).await?,
        })
    }

    /// The revision of the deletion, where there is one.
    async fn delete(&self, key: &str) -> Result<u64> {
        if let Some((kubernetes, own)) = self.own(key) {
            kubernetes.delete(&own).await?;
            return Ok(0);
        }
        match self.store.delete(key, None).await {
            // Went with its namespace.
            Err(Error::NotFound { .. }) if self.kubernetes.is_some() => Ok(0),
            deleted => Ok(deleted?),
        }
    }

    fn own(&self, key: &str) -> Option<(&Kubernetes, Located)> {
        self.kubernetes.as_ref().zip(kubernetes::own(key))
    }

    /// Removes what was written, as far as it is still there.
    pub async fn clear(&self) -> Result<()> {
        let mut by_layer = BTreeMap::<Layer, Vec<String>>::new();
        for (key, _) in self.held().drain() {
            by_layer.entry(Layer::of(&key)).or_default().push(key);
        }
        for keys in by_layer.into_values().rev() {
            let deletions = keys.into_iter().map(|key| async move {
                match self.delete(&key).await {
                    Err(error) if matches!(error.downcast_ref(), Some(Error::NotFound { .. })) => Ok(()),
                    deleted => deleted.map(drop).with_context(|| format!("deleting {key}")),
                }
            });
            all(deletions).await?;
        }
        Ok(())
    }

    /// What felix has to hold of it.
    pub async fn truth(&self) -> Result<State> {
        let objects = self.store.get_prefix(PREFIX).await.context("reading the datastore")?;
        // Calico's own conversion leaves out our checks and canonical forms.
        let mut processors = if self.calico { Processors::verbatim() } else { Processors::new() };
        let mut state = State::default();
        let mut apply = |updates: Vec<Update>| {
            for update in updates {
                if self.calico {
                    let Ok(path) = update.key.path() else { continue };
                    let value = update.live().and_then(|value| values::hash(&update.key, &path, value));
                    state.put(&self.keys, &path.into(), value.unwrap_or(0));
                } else if Kind::of(&update.key).is_some_and(|kind| Kind::FELIX.contains(&kind)) {
                    state.apply(&self.keys, update);
                }
            }
        };
        apply(processors.initial());
        for object in objects {
            apply(processors.put(&object.key, &object.value).updates);
        }
        Ok(state)
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
