//! The datastore under test: filled, changed, and read back as the truth that every node has to end with.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use syncer_common::backend::{Datastore, Error};
use syncer_common::model::{Kind, Update};
use syncer_common::processors::Processors;

use crate::cluster::{Change, Object};
use crate::incumbent::values;
use crate::node::{Keys, State};

/// Writes under way at once.
const WRITERS: usize = 64;
const PREFIX: &str = "/calico/";

pub struct Source {
    store: Arc<dyn Datastore>,
    /// What is compared is in the form of Calico's Typha.
    calico: bool,
    /// Told of each deletion before it is made.
    keys: Keys,
    /// Objects of ours and their revisions.
    held: Mutex<HashMap<String, u64>>,
}

impl Source {
    pub fn new(store: Arc<dyn Datastore>, calico: bool, keys: Keys) -> Self {
        Source { store, calico, keys, held: Mutex::default() }
    }

    /// Puts a cluster into an empty datastore.
    pub async fn fill(&self, objects: Vec<Object>) -> Result<()> {
        let there = self.store.get_prefix(PREFIX).await.context("reading the datastore")?;
        if let Some(first) = there.first() {
            bail!(
                "the datastore holds {} objects already (the first: {}): a synthetic cluster needs an empty one; to \
                 follow what is there without writing, leave the datastore's flags out",
                there.len(),
                first.key
            );
        }
        let writes = objects.into_iter().map(|object| self.write(Change::Put(object)));
        stream::iter(writes).buffer_unordered(WRITERS).try_collect::<()>().await
    }

    /// One change; two of one key have to follow one another.
    pub async fn write(&self, change: Change) -> Result<()> {
        match change {
            Change::Put(Object { key, value }) => {
                let value = Bytes::from(value);
                let known = self.held().get(&key).copied();
                let revision = match known {
                    None => self.store.create(&key, value).await,
                    Some(revision) => self.store.replace(&key, value, revision).await,
                };
                let revision = revision.with_context(|| format!("writing {key}"))?;
                self.held().insert(key, revision);
            }
            Change::Delete(key) => {
                self.keys.delete(&Processors::new().delete(&key).updates);
                let deleted = self.store.delete(&key, None).await;
                deleted.with_context(|| format!("deleting {key}"))?;
                self.held().remove(&key);
            }
        }
        Ok(())
    }

    /// Removes what was written, as far as it is still there.
    pub async fn clear(&self) -> Result<()> {
        let keys: Vec<String> = self.held().drain().map(|(key, _)| key).collect();
        let deletions = keys.into_iter().map(|key| async move {
            match self.store.delete(&key, None).await {
                Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(anyhow::Error::new(error).context(format!("deleting {key}"))),
            }
        });
        stream::iter(deletions).buffer_unordered(WRITERS).try_collect::<()>().await
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
