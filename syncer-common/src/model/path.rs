//! Canonical paths: `Key` ⇄ `/calico/…` (etcd's own layout, also the key of an entry on the wire).

use super::{Key, KeyError};

impl Key {
    /// The canonical path, or which field is missing.
    pub fn path(&self) -> Result<String, KeyError> {
        Err(KeyError { kind: "any", field: "everything" })
    }

    /// Reads a path; `None` when it is not a key of this model.
    pub fn parse(_path: &str) -> Option<Key> {
        None
    }
}
