//! A change to one entry, as it flows from the datastore through typha to the agents.

use super::{Key, Value};

/// Where in a source's history something happened. `revision` counts that source's events.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp {
    pub source: &'static str,
    pub revision: u64,
}

/// Why an entry is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletionReason {
    /// Proven gone from the datastore.
    Deleted,
    /// Still there, but it does not pass validation.
    Invalid,
    /// Still there, but outside the stream's scope.
    OutOfScope,
}

/// The new content of an entry, or its deletion.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    pub key: Key,
    pub value: Result<Value, DeletionReason>,
}

impl Update {
    pub fn set(key: Key, value: Value) -> Self {
        Update { key, value: Ok(value) }
    }

    pub fn delete(key: Key) -> Self {
        Update { key, value: Err(DeletionReason::Deleted) }
    }

    /// The value, or nothing when the entry is gone.
    pub fn live(&self) -> Option<&Value> {
        self.value.as_ref().ok()
    }
}
