//! A map that remembers what changed since it was last asked, and forgets changes that were taken back.
//!
//! One pending entry per object, whatever happens to it in between: this bounds what a slow reader can
//! pile up. A value set again to what the reader already has is no change.

use std::collections::BTreeMap;

pub(crate) struct DeltaMap<K, V> {
    current: BTreeMap<K, V>,
    /// What the reader holds for the keys touched since it last asked.
    before: BTreeMap<K, Option<V>>,
}

impl<K, V> Default for DeltaMap<K, V> {
    fn default() -> Self {
        DeltaMap { current: BTreeMap::new(), before: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> DeltaMap<K, V> {
    /// Sets or, with `None`, removes.
    pub fn set(&mut self, key: K, value: Option<V>) {
        let old = match value {
            Some(value) => self.current.insert(key.clone(), value),
            None => self.current.remove(&key),
        };
        self.before.entry(key).or_insert(old);
    }

    pub fn len(&self) -> usize {
        self.current.len()
    }

    /// The net changes, in key order: the new value, or `None` for a removal.
    pub fn take(&mut self) -> Vec<(K, Option<V>)> {
        std::mem::take(&mut self.before)
            .into_iter()
            .filter_map(|(key, before)| {
                let now = self.current.get(&key);
                (now != before.as_ref()).then(|| (key.clone(), now.cloned()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_taken_back_are_not_reported() {
        let mut map = DeltaMap::default();
        map.set("a", Some(1));
        map.set("b", Some(1));
        assert_eq!(map.take(), vec![("a", Some(1)), ("b", Some(1))]);

        map.set("a", None);
        map.set("a", Some(1));
        map.set("b", Some(2));
        map.set("b", None);
        map.set("c", Some(3));
        map.set("c", None);
        assert_eq!(map.take(), vec![("b", None)]);
        assert_eq!(map.take(), vec![]);
    }
}
