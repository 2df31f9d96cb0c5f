//! What Calico's Typha sends, and what the datastore holds, in one form: hashes that are equal when the two say the
//! same. Pure.
//!
//! The form is Calico's own v1 JSON, without what our model does not carry (`model::carried`); the shared vectors hold
//! our conversion against Calico's in that form. Objects that travel as they are (nodes, BGP settings, blocks) are
//! converted as ours.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message as _;
use serde_json::Value as Json;
use syncer_common::digest;
use syncer_common::model::{Key, Kind, Value, calico_json, carried};
use syncer_common::processors::{DEFAULT_ALLOW_PROFILE, Processors};

/// Entries remembered; then all are forgotten, and read again as they come.
const REMEMBERED: usize = 1_000_000;

/// Of an entry that travels to felix; nothing for others. Never 0.
pub fn hash(key: &Key, path: &str, value: &Value) -> Option<u64> {
    if !compared(key) {
        return None;
    }
    let json = if as_it_is(key) { None } else { calico_json(value) };
    let bytes = match (value, json) {
        (Value::Config(text), _) => text.clone().into_bytes(),
        (Value::Ready(ready), _) => ready.to_string().into_bytes(),
        (_, Some(json)) => carried(&json).to_string().into_bytes(),
        (_, None) => proto::model::Value { kind: Some(value.clone()) }.encode_to_vec(),
    };
    Some(digest::hash(path, &bytes).max(1))
}

/// The same of what the server sent. A value that does not read has a hash that no value of the datastore has.
fn hash_of_raw(key: &Key, path: &str, raw: &[u8]) -> u64 {
    let bytes = match key {
        Key::GlobalConfig { .. } | Key::HostConfig { .. } | Key::ReadyFlag => Some(raw.to_vec()),
        key if as_it_is(key) => {
            let converted = Processors::verbatim().put(path, raw);
            let own = converted.updates.into_iter().find(|update| update.key == *key);
            let value = own.and_then(|update| update.value.ok());
            value.map(|value| proto::model::Value { kind: Some(value) }.encode_to_vec())
        }
        _ => serde_json::from_slice::<Json>(raw).ok().map(|json| carried(&json).to_string().into_bytes()),
    };
    digest::hash(path, &bytes.unwrap_or_else(|| [b"unreadable ", raw].concat())).max(1)
}

/// Sent as in the datastore, and reduced by the reader.
fn as_it_is(key: &Key) -> bool {
    matches!(key, Key::Resource(_) | Key::Block { .. })
}

/// Which entries both sides have. The profile that allows everything is in no datastore: whether a server sends it is
/// its own matter.
fn compared(key: &Key) -> bool {
    let default_allow = match key {
        Key::ProfileRules { name } | Key::ProfileLabels { name } => name == DEFAULT_ALLOW_PROFILE,
        _ => false,
    };
    !default_allow && Kind::of(key).is_some_and(|kind| Kind::FELIX.contains(&kind))
}

/// Shared by all nodes: each text of a key once, and each value read once, as all are sent the same.
#[derive(Clone, Default)]
pub struct Known(Arc<Mutex<Tables>>);

#[derive(Default)]
struct Tables {
    /// Nothing: an entry that is not compared.
    paths: HashMap<Arc<str>, Option<Arc<Key>>>,
    /// By the hash of an entry's bytes as they came.
    values: HashMap<u64, u64>,
}

impl Known {
    /// The shared text of a key; nothing for entries that are not compared.
    pub fn path(&self, path: &str) -> Option<Arc<str>> {
        let mut tables = self.tables();
        if let Some((shared, key)) = tables.paths.get_key_value(path) {
            return key.is_some().then(|| shared.clone());
        }
        let key = Key::parse(path).filter(compared).map(Arc::new);
        let (shared, known): (Arc<str>, _) = (path.into(), key.is_some());
        tables.paths.insert(shared.clone(), key);
        known.then_some(shared)
    }

    /// The hash of a value. `anew`: read even if others were sent the same.
    pub fn hash(&self, path: &Arc<str>, raw: &[u8], anew: bool) -> u64 {
        let as_it_came = digest::hash(path, raw);
        let key = {
            let tables = self.tables();
            if let (Some(hash), false) = (tables.values.get(&as_it_came), anew) {
                return *hash;
            }
            tables.paths.get(path).cloned().flatten()
        };
        let hash = key.map_or(1, |key| hash_of_raw(&key, path, raw));
        let mut tables = self.tables();
        if tables.values.len() >= REMEMBERED {
            tables.values.clear();
        }
        tables.values.insert(as_it_came, hash);
        hash
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Cluster;
    use crate::shape::Shape;

    /// What Calico's Typha would send of an entry.
    fn sent(key: &Key, value: &Value, object: &[u8]) -> Vec<u8> {
        match (value, calico_json(value)) {
            (Value::Config(text), _) => text.clone().into_bytes(),
            (Value::Ready(ready), _) => ready.to_string().into_bytes(),
            (_, Some(json)) if !as_it_is(key) => json.to_string().into_bytes(),
            _ => object.to_vec(),
        }
    }

    #[test]
    fn both_forms_of_every_entry_of_a_cluster_have_one_hash_and_another_value_has_another() {
        let shape =
            Shape { nodes: 3, pods: 9, namespaces: 2, policies: 2, global_policies: 3, network_sets: 2 };
        let (known, mut processors, mut kinds) = (Known::default(), Processors::verbatim(), Vec::new());
        for object in Cluster::new(shape, 1).objects() {
            for update in processors.put(&object.key, &object.value).updates {
                let (path, Ok(value)) = (update.key.path().unwrap(), &update.value) else { continue };
                let Some(hash) = hash(&update.key, &path, value) else { continue };
                let shared = known.path(&path).unwrap();
                let raw = sent(&update.key, value, &object.value);
                assert_eq!(known.hash(&shared, &raw, false), hash, "{path}");
                assert_eq!(known.hash(&shared, &raw, true), hash, "{path}");
                assert_ne!(
                    known.hash(&shared, &[&raw[..raw.len() / 2], b"!"].concat(), false),
                    hash,
                    "{path}"
                );
                kinds.push(Kind::of(&update.key).unwrap());
            }
        }
        kinds.sort();
        kinds.dedup();
        assert!(kinds.len() >= 8, "{kinds:?}");
    }

    #[test]
    fn spelling_does_not_count_and_what_is_not_compared_has_no_path() {
        let known = Known::default();
        let path = known.path("/calico/v1/policy/tier/a/metadata").unwrap();
        let hash = |raw: &str| known.hash(&path, raw.as_bytes(), false);
        assert_eq!(
            hash(r#"{"order":10,"defaultAction":"Deny"}"#),
            hash(r#"{ "defaultAction": "Deny", "order": 10.0 }"#)
        );
        assert_ne!(hash(r#"{"order":10}"#), hash(r#"{"order":11}"#));
        assert_ne!(hash("{"), hash("}"));
        for path in [
            "/calico/v1/policy/profile/projectcalico-default-allow/rules",
            "/calico/resources/v3/projectcalico.org/profiles/kns.a",
            "/something/else",
        ] {
            assert_eq!(known.path(path), None, "{path}");
        }
    }
}
