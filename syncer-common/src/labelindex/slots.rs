//! Dense numbers for things of any identity, so that sets of them are small and quick.

use std::collections::HashMap;
use std::hash::Hash;

/// A number that stands for one thing while it is in its table. Numbers are used again.
pub(super) type Slot = u32;

/// A table of things by identity and by number.
#[derive(Debug)]
pub(super) struct Slots<K, V> {
    by_key: HashMap<K, Slot>,
    entries: Vec<Option<(K, V)>>,
    free: Vec<Slot>,
}

impl<K, V> Default for Slots<K, V> {
    fn default() -> Self {
        Slots { by_key: HashMap::new(), entries: Vec::new(), free: Vec::new() }
    }
}

impl<K: Clone + Eq + Hash, V> Slots<K, V> {
    pub(super) fn find<Q>(&self, key: &Q) -> Option<Slot>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.by_key.get(key).copied()
    }

    /// The slot of `key`, with a new value if it is not there yet.
    pub(super) fn find_or_insert(&mut self, key: K, new: impl FnOnce() -> V) -> Slot {
        if let Some(slot) = self.by_key.get(&key) {
            return *slot;
        }
        let entry = Some((key.clone(), new()));
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = entry;
                slot
            }
            None => {
                self.entries.push(entry);
                Slot::try_from(self.entries.len() - 1).expect("fewer than 2^32 things are alive")
            }
        };
        self.by_key.insert(key, slot);
        slot
    }

    pub(super) fn remove(&mut self, slot: Slot) -> (K, V) {
        let (key, value) = self.entries[slot as usize].take().expect("the slot is in use");
        self.by_key.remove(&key);
        self.free.push(slot);
        (key, value)
    }

    pub(super) fn key(&self, slot: Slot) -> &K {
        &self.entry(slot).0
    }

    pub(super) fn get(&self, slot: Slot) -> &V {
        &self.entry(slot).1
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> &mut V {
        let entry = self.entries[slot as usize].as_mut().expect("the slot is in use");
        &mut entry.1
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.by_key.values().copied()
    }

    fn entry(&self, slot: Slot) -> &(K, V) {
        self.entries[slot as usize].as_ref().expect("the slot is in use")
    }
}
