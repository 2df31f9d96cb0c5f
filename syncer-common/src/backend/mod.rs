//! Datastores behind one trait: etcd, and a directory of manifests.
//!
//! A datastore is an ordered history of revisions over one key space (Calico's etcd v3 layout under
//! `/calico/`; values are JSON). The trait gives exactly what the syncer and `bulrushctl` need: one listing
//! at a revision, every change after it in order, a linearizable read, and compare-and-swap writes. One
//! conformance suite (`tests/backend.rs`) runs on every implementation.

use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub mod config;
pub mod directory;
pub mod etcd;

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
    Delete { key: String, mod_revision: Revision },
}

/// Everything under `/calico/` at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub revision: Revision,
    pub items: Vec<KeyValue>,
    /// Objects that exist but are not carried (see `MAX_VALUE_BYTES`). They are not deleted: whoever
    /// sweeps by a listing keeps the last good value of these keys.
    pub oversize: Vec<Oversize>,
}

/// A stored object larger than anything Bulrush can carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oversize {
    pub key: String,
    pub mod_revision: Revision,
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

/// A datastore.
#[async_trait]
pub trait Datastore: Send + Sync + 'static {
    /// Name of the revision space, as stamps carry it: `etcd`, `directory`.
    fn source(&self) -> &'static str;

    /// Identity of the history (etcd: cluster id; directory: id in the journal). Differs between datastores.
    async fn history(&self) -> Result<String>;

    /// A linearizable read of the newest revision.
    async fn head(&self) -> Result<Head>;

    /// Lists everything under `/calico/`, at `at` (an older revision still held) or at the newest.
    async fn list(&self, at: Option<Revision>) -> Result<Listing>;

    /// Every change after `after`. The stream ends only with an error. Events of oversize objects are
    /// reported and left out: the last good value stands.
    async fn watch(&self, after: Revision) -> Result<Watch>;

    async fn get(&self, key: &str) -> Result<Option<KeyValue>>;

    /// Objects whose key starts with `prefix`.
    async fn get_prefix(&self, prefix: &str) -> Result<Vec<KeyValue>>;

    /// Creates the object; `Conflict` when it exists. Returns the new revision.
    async fn create(&self, key: &str, value: Bytes) -> Result<Revision>;

    /// Replaces the object if its `mod_revision` is `expected`. Returns the new revision.
    async fn replace(&self, key: &str, value: Bytes, expected: Revision) -> Result<Revision>;

    /// Deletes the object, if `expected` is given only at that `mod_revision`. Returns the new revision.
    async fn delete(&self, key: &str, expected: Option<Revision>) -> Result<Revision>;
}
