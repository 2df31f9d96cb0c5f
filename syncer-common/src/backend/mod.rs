//! Datastores behind two traits: etcd, the Kubernetes API, and a directory of manifests.
//!
//! Whatever the datastore, its objects have Calico's etcd v3 paths under `/calico/` and JSON values. A
//! [`Source`] is one ordered history of revisions: a listing at a revision, every change after it in order,
//! a linearizable read. etcd and a directory are one source each; Kubernetes is one per watched kind, because
//! revisions of different kinds there cannot be compared. A [`Datastore`] is its sources together with reads
//! and compare-and-swap writes of single objects. One conformance suite (`tests/backend.rs`) runs on every
//! implementation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub mod config;
pub mod directory;
pub mod etcd;
pub mod kubernetes;

/// Position in the datastore's history; 0 is before everything.
pub type Revision = u64;

/// One stored object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// Path, e.g. `/calico/resources/v3/projectcalico.org/ippools/default-ipv4-ippool`.
    pub key: String,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Put(KeyValue),
    Delete {
        key: String,
        mod_revision: Revision,
    },
    /// Reported. The object exists: if no `Put` of the same revision comes with it, its last good value stands.
    Finding(Finding),
}

impl Event {
    pub fn revision(&self) -> Revision {
        match self {
            Event::Put(object) => object.mod_revision,
            Event::Delete { mod_revision, .. } => *mod_revision,
            Event::Finding(finding) => finding.mod_revision,
        }
    }
}

/// Everything in a source at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub revision: Revision,
    pub items: Vec<KeyValue>,
    /// About objects that exist: whoever sweeps by a listing keeps the last good value of these keys.
    pub findings: Vec<Finding>,
}

/// What is wrong with a stored object, or with a part of it, that the datastore's client could not or would
/// not carry as it is: too large, or not convertible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub key: String,
    pub mod_revision: Revision,
    pub field: String,
    pub reason: String,
}

/// Larger values are reported and left out of listings and events: no message of the sync protocol could
/// carry them (hard limit 4 MiB).
pub const MAX_VALUE_BYTES: usize = 4 << 20;

/// What the key space of the datastore begins with.
pub const PREFIX: &str = "/calico/";

/// What a watch yields, in order.
#[derive(Clone, Debug)]
pub enum WatchItem {
    /// All events of the revisions up to and including `revision` that were not yielded before. A
    /// transaction (one revision) is never split.
    Events { revision: Revision, events: Vec<Event> },
    /// Nothing happened up to and including `revision`.
    Progress { revision: Revision },
}

/// A linearizable read: the newest revision at some moment after `started`.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub revision: Revision,
    pub started: Instant,
}

/// What the caller is to do about an error decides its variant.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// History before `compacted` is gone: list again.
    #[error("revision compacted: history before {compacted} is gone")]
    Compacted { compacted: Revision },
    /// The newest revision is below one that was seen before: the datastore was restored from a backup.
    #[error("history went back: revision {head} is below {seen}, which was seen before")]
    Rewound { head: Revision, seen: Revision },
    /// Try again later; the datastore is not reachable or not ready.
    #[error("{what}: {reason}")]
    Unavailable { what: String, reason: String },
    /// The object exists already (create), or not with that revision (replace, delete).
    #[error("{key}: {reason}")]
    Conflict { key: String, reason: String },
    #[error("{key}: no such object")]
    NotFound { key: String },
    /// The request can not succeed as it is: bad address, bad credentials, an object too large.
    #[error("{what}: {reason}")]
    Invalid { what: String, reason: String },
}

pub type Result<T> = std::result::Result<T, Error>;
pub type Watch = BoxStream<'static, Result<WatchItem>>;

/// One history of revisions.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Name of the revision space, as stamps carry it: `etcd`, `directory`, `kubernetes/pods`.
    fn name(&self) -> &str;

    /// Whether `list` can be asked for an older revision.
    fn lists_the_past(&self) -> bool {
        true
    }

    /// Identity of the history (etcd: cluster id; directory: id in the journal; Kubernetes: uid of the
    /// namespace kube-system). Differs between datastores.
    async fn history(&self) -> Result<String>;

    /// A linearizable read of the newest revision.
    async fn head(&self) -> Result<Head>;

    /// Lists everything, at `at` (an older revision still held) or at the newest.
    async fn list(&self, at: Option<Revision>) -> Result<Listing>;

    /// Every change after `after`. The stream ends only with an error.
    async fn watch(&self, after: Revision) -> Result<Watch>;
}

/// A datastore.
#[async_trait]
pub trait Datastore: Send + Sync + 'static {
    /// What is to be listed and watched. Their key spaces do not overlap.
    fn sources(self: Arc<Self>) -> Vec<Arc<dyn Source>>;

    /// What its client has counted since it was opened, by name.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// The texts in a Secret of Kubernetes; nothing where there is no such Secret. Calico keeps none in etcd.
    async fn secret(&self, _namespace: &str, _name: &str) -> Result<Option<BTreeMap<String, String>>> {
        Ok(None)
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>>;

    /// Objects whose key starts with `prefix`.
    async fn get_prefix(&self, prefix: &str) -> Result<Vec<KeyValue>>;

    /// Creates the object; `Conflict` when it exists. Returns the new revision.
    async fn create(&self, key: &str, value: Bytes) -> Result<Revision>;

    /// Replaces the object if its `mod_revision` is `expected`. Returns the new revision.
    async fn replace(&self, key: &str, value: Bytes, expected: Revision) -> Result<Revision>;

    /// Writes a value that goes by itself when it has not been written again for `lifetime`. Only etcd has this.
    async fn put_expiring(&self, key: &str, _value: Bytes, _lifetime: Duration) -> Result<Revision> {
        let reason = "this datastore has no values that expire".into();
        Err(Error::Invalid { what: key.into(), reason })
    }

    /// Tells the scheduler that pods may come to this node. Only Kubernetes has one to tell.
    async fn set_network_available(&self, _node: &str) -> Result<()> {
        Ok(())
    }

    /// Deletes the object, if `expected` is given only at that `mod_revision`. Returns the new revision.
    async fn delete(&self, key: &str, expected: Option<Revision>) -> Result<Revision>;
}
