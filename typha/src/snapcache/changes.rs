//! What one revision, or a listing, changes: encoded as it comes.
//!
//! A listing may be of the whole datastore. As entries it is a fifth of what it is as values, and they are made outside
//! the cache's lock.

use std::collections::BTreeMap;

use prost::Message;
use proto::model;
use syncer_common::model::{DeletionReason, Kind, Update};

/// By path: a revision is atomic, so of several updates to one key within it the last one counts.
#[derive(Default)]
pub struct Changes {
    pub(super) last: BTreeMap<String, (Kind, Result<Vec<u8>, DeletionReason>)>,
    /// Came to nothing.
    pub(super) skipped: u64,
}

impl Extend<Update> for Changes {
    fn extend<T: IntoIterator<Item = Update>>(&mut self, updates: T) {
        for Update { key, value } in updates {
            let (Some(kind), Ok(path)) = (Kind::of(&key), key.path()) else {
                self.skipped += 1;
                continue;
            };
            let value = value.map(|value| model::Value { kind: Some(value) }.encode_to_vec());
            if self.last.insert(path, (kind, value)).is_some() {
                self.skipped += 1;
            }
        }
    }
}

impl From<Vec<Update>> for Changes {
    fn from(updates: Vec<Update>) -> Changes {
        let mut changes = Changes::default();
        changes.extend(updates);
        changes
    }
}
