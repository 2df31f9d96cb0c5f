//! For programs that run thousands of clients: entries as they came, and keys that all clients share.
//!
//! An agent reads every value and owns its keys. A simulated node needs neither: the hash says what it holds, and the
//! text of a key is the same for all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use syncer_common::model::{Key, Kind};

/// One change, not read.
#[derive(Clone, Debug, PartialEq)]
pub struct RawUpdate {
    pub key: Arc<str>,
    /// The encoded value and its hash with the key (`syncer_common::digest::hash`). Nothing: it was deleted.
    pub value: Option<(Bytes, u64)>,
}

/// Keys that were seen by any of the clients that share it; clones are handles. It only grows.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Mutex<HashMap<Arc<str>, Kind>>>);

impl Names {
    /// The shared text and the kind; nothing for a key that agents do not know.
    pub(crate) fn get(&self, key: &str) -> Option<(Arc<str>, Kind)> {
        // Between two plain calls of the map nothing can panic.
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((shared, kind)) = names.get_key_value(key) {
            return Some((shared.clone(), *kind));
        }
        let kind = Kind::of(&Key::parse(key)?)?;
        let shared: Arc<str> = key.into();
        names.insert(shared.clone(), kind);
        Some((shared, kind))
    }
}
