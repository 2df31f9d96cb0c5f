//! Passwords of BGP sessions, for the nodes that use them and for nobody else.
//!
//! ```text
//! pipeline ──(Node, BGPPeer, BGPConfiguration)──> Usage: which node uses which ─┐
//! reader   ──(only the Secrets that some object names)──> values ───────────────┴─> Feed, one for each stream
//! ```
//!
//! They are in no cache, snapshot, digest or log: a stream whose certificate is its node's gets them as a message of
//! its own, complete each time.

mod reader;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::sync::{Secret, Secrets as Message};
use syncer_common::model::Update;
use tokio::sync::watch;

pub use reader::read;
use usage::{Reference, Usage};

/// Who uses what, and what it is.
#[derive(Default)]
pub struct Secrets {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    usage: Usage,
    /// What is named, as last read; nothing: it is not there. What was not read yet is not in here.
    values: BTreeMap<Reference, Option<String>>,
}

impl Secrets {
    /// Sees what the datastore says of nodes and peerings.
    pub fn observe(&self, updates: &[Update]) {
        let mut state = self.lock();
        let mut changed = false;
        for update in updates {
            changed |= state.usage.on_update(update);
        }
        if changed {
            let State { usage, values } = &mut *state;
            let named = usage.all();
            values.retain(|reference, _| named.contains(reference));
            drop(state);
            self.changed.send_replace(());
        }
    }

    /// What any object names.
    fn named(&self) -> BTreeSet<Reference> {
        self.lock().usage.all().into_iter().cloned().collect()
    }

    /// What a Secret holds now: of it, only what is named is kept.
    fn answer(&self, name: &str, texts: Option<&BTreeMap<String, String>>) {
        let mut state = self.lock();
        let named: Vec<Reference> =
            state.usage.all().into_iter().filter(|(secret, _)| secret == name).cloned().collect();
        let mut changed = false;
        for reference in named {
            let value = texts.and_then(|texts| texts.get(&reference.1)).cloned();
            changed |= state.values.insert(reference, value.clone()) != Some(value);
        }
        drop(state);
        if changed {
            self.changed.send_replace(());
        }
    }

    /// Everything that a node uses; nothing while some of it was not read yet.
    fn of(&self, node: &str) -> Option<Message> {
        let state = self.lock();
        let mut secrets = Vec::new();
        for reference in state.usage.of(node) {
            if let Some(value) = state.values.get(reference)? {
                let (name, key) = reference.clone();
                secrets.push(Secret { name, key, value: value.clone() });
            }
        }
        Some(Message { secrets })
    }

    /// For the stream of a node.
    pub fn feed(self: &Arc<Self>, node: &str) -> Feed {
        Feed {
            changed: self.changed.subscribe(),
            secrets: self.clone(),
            node: node.to_owned(),
            due: true,
            sent: None,
        }
    }

    // A poisoned lock only means that a stream panicked between two plain assignments.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one node is sent.
pub struct Feed {
    secrets: Arc<Secrets>,
    node: String,
    changed: watch::Receiver<()>,
    due: bool,
    sent: Option<Message>,
}

impl Feed {
    /// All passwords of the node, if they are others than were sent.
    pub fn news(&mut self) -> Option<Message> {
        let changed = self.changed.has_changed().unwrap_or(false);
        self.changed.mark_unchanged();
        if !(std::mem::take(&mut self.due) || changed) {
            return None;
        }
        let now = self.secrets.of(&self.node)?;
        if self.sent.as_ref() == Some(&now) {
            return None;
        }
        self.sent = Some(now.clone());
        Some(now)
    }

    /// Tells when it is worth asking for news.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.clone()
    }
}
