//! Objects of different names that claim one key: the lexically lowest name counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::model::{DeletionReason, Key, Update, Value};

#[derive(Debug, Default)]
pub(super) struct ConflictCache {
    by_name: HashMap<String, (Key, Value)>,
    by_key: BTreeMap<Key, BTreeSet<String>>,
}

impl ConflictCache {
    pub fn put(&mut self, name: &str, key: Key, value: Value) -> Vec<Update> {
        let mut updates = Vec::new();
        if self.by_name.get(name).is_some_and(|(old, _)| *old != key) {
            updates.extend(self.remove(name, DeletionReason::Deleted).unwrap_or_default());
        }
        self.by_key.entry(key.clone()).or_default().insert(name.to_owned());
        self.by_name.insert(name.to_owned(), (key.clone(), value.clone()));
        if self.winner(&key) == Some(name) {
            updates.push(Update::set(key, value));
        }
        updates
    }

    /// Nothing when the name is not known.
    pub fn remove(&mut self, name: &str, reason: DeletionReason) -> Option<Vec<Update>> {
        let (key, _) = self.by_name.remove(name)?;
        let counted = self.winner(&key) == Some(name);
        if let Some(names) = self.by_key.get_mut(&key) {
            names.remove(name);
            if names.is_empty() {
                self.by_key.remove(&key);
            }
        }
        if !counted {
            return Some(Vec::new());
        }
        let next = self.winner(&key).and_then(|next| self.by_name.get(next));
        Some(vec![match next {
            Some((_, value)) => Update::set(key, value.clone()),
            None => Update { key, value: Err(reason) },
        }])
    }

    fn winner(&self, key: &Key) -> Option<&str> {
        self.by_key.get(key)?.first().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::NetworkSet { name: name.into() }
    }

    fn value(text: &str) -> Value {
        Value::Config(text.into())
    }

    #[test]
    fn lowest_name_counts_whatever_the_order() {
        let mut cache = ConflictCache::default();
        assert_eq!(cache.put("b", key("k"), value("b")), [Update::set(key("k"), value("b"))]);
        assert_eq!(cache.put("c", key("k"), value("c")), []);
        assert_eq!(cache.put("a", key("k"), value("a")), [Update::set(key("k"), value("a"))]);
    }

    #[test]
    fn deleting_lowest_name_exposes_next() {
        let mut cache = ConflictCache::default();
        cache.put("a", key("k"), value("a"));
        cache.put("b", key("k"), value("b"));
        let deleted = |cache: &mut ConflictCache, name| cache.remove(name, DeletionReason::Deleted);
        assert_eq!(deleted(&mut cache, "a"), Some(vec![Update::set(key("k"), value("b"))]));
        assert_eq!(deleted(&mut cache, "b"), Some(vec![Update::delete(key("k"))]));
        assert_eq!(deleted(&mut cache, "b"), None);
    }

    #[test]
    fn moving_to_another_key_frees_the_old_one() {
        let mut cache = ConflictCache::default();
        cache.put("a", key("k"), value("a"));
        cache.put("b", key("k"), value("b"));
        let moved = cache.put("a", key("l"), value("a"));
        assert_eq!(moved, [Update::set(key("k"), value("b")), Update::set(key("l"), value("a"))]);
    }
}
