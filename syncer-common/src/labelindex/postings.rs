//! Label → value → who has it.

use std::collections::{BTreeSet, HashMap};

use super::slots::Slot;

/// For each label and value, the slots filed under it.
#[derive(Debug, Default)]
pub(super) struct Postings {
    labels: HashMap<String, HashMap<String, BTreeSet<Slot>>>,
}

impl Postings {
    pub(super) fn insert(&mut self, label: &str, value: &str, slot: Slot) {
        let values = match self.labels.get_mut(label) {
            Some(values) => values,
            None => self.labels.entry(label.to_owned()).or_default(),
        };
        match values.get_mut(value) {
            Some(slots) => slots.insert(slot),
            None => values.entry(value.to_owned()).or_default().insert(slot),
        };
    }

    /// Leaves nothing behind: labels come and go without end.
    pub(super) fn remove(&mut self, label: &str, value: &str, slot: Slot) {
        let Some(values) = self.labels.get_mut(label) else { return };
        if let Some(slots) = values.get_mut(value) {
            slots.remove(&slot);
            if slots.is_empty() {
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
        self.labels.get(label).into_iter().flat_map(HashMap::values).flatten().copied()
    }

    pub(super) fn count_value(&self, label: &str, value: &str) -> usize {
        self.slots(label, value).map_or(0, BTreeSet::len)
    }

    pub(super) fn count_label(&self, label: &str) -> usize {
        self.labels.get(label).map_or(0, |values| values.values().map(BTreeSet::len).sum())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    fn slots(&self, label: &str, value: &str) -> Option<&BTreeSet<Slot>> {
        self.labels.get(label)?.get(value)
    }
}
