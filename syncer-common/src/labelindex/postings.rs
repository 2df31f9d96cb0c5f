//! Label → value → who has it. The texts are held once; who needs them shares them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::slots::Slot;

/// For each label and value, the slots filed under it.
#[derive(Debug, Default)]
pub(super) struct Postings {
    labels: HashMap<Arc<str>, HashMap<Arc<str>, Posting>>,
}

#[derive(Debug)]
struct Posting {
    pair: Pair,
    slots: BTreeSet<Slot>,
}

/// A label and its value. One pointer, because every endpoint of the cluster has several.
pub(super) type Pair = Arc<(Arc<str>, Arc<str>)>;

impl Postings {
    /// Returns the texts to share.
    pub(super) fn insert(&mut self, label: &str, value: &str, slot: Slot) -> Pair {
        let label = self.labels.get_key_value(label).map_or_else(|| label.into(), |(held, _)| held.clone());
        let values = self.labels.entry(label.clone()).or_default();
        if let Some(posting) = values.get_mut(value) {
            posting.slots.insert(slot);
            return posting.pair.clone();
        }
        let value: Arc<str> = value.into();
        let pair = Arc::new((label, value.clone()));
        values.insert(value, Posting { pair: pair.clone(), slots: BTreeSet::from([slot]) });
        pair
    }

    /// Leaves nothing behind: labels come and go without end.
    pub(super) fn remove(&mut self, label: &str, value: &str, slot: Slot) {
        let Some(values) = self.labels.get_mut(label) else { return };
        if let Some(posting) = values.get_mut(value) {
            posting.slots.remove(&slot);
            if posting.slots.is_empty() {
                values.remove(value);
            }
        }
        if values.is_empty() {
            self.labels.remove(label);
        }
    }

    pub(super) fn with_value(&self, label: &str, value: &str) -> impl Iterator<Item = Slot> + '_ {
        self.slots(label, value).into_iter().flatten().copied()
    }

    pub(super) fn with_label(&self, label: &str) -> impl Iterator<Item = Slot> + '_ {
        self.labels
            .get(label)
            .into_iter()
            .flat_map(HashMap::values)
            .flat_map(|posting| &posting.slots)
            .copied()
    }

    pub(super) fn count_value(&self, label: &str, value: &str) -> usize {
        self.slots(label, value).map_or(0, BTreeSet::len)
    }

    pub(super) fn count_label(&self, label: &str) -> usize {
        self.labels.get(label).map_or(0, |values| values.values().map(|posting| posting.slots.len()).sum())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    fn slots(&self, label: &str, value: &str) -> Option<&BTreeSet<Slot>> {
        self.labels.get(label)?.get(value).map(|posting| &posting.slots)
    }
}
