//! Label → value → who has it. The texts are held once; who needs them shares them.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::slots::Slot;
use super::slotset::SlotSet;

/// For each label and value, the slots filed under it.
#[derive(Debug, Default)]
pub(super) struct Postings {
    labels: HashMap<Arc<str>, HashMap<ByValue, SlotSet>>,
}

/// A label and its value. One pointer, because every endpoint of the cluster has several.
pub(super) type Pair = Arc<(Arc<str>, Box<str>)>;

/// A pair that is found by its value.
#[derive(Debug)]
struct ByValue(Pair);

impl Borrow<str> for ByValue {
    fn borrow(&self) -> &str {
        &self.0.1
    }
}

impl Hash for ByValue {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.1.hash(state);
    }
}

impl PartialEq for ByValue {
    fn eq(&self, other: &Self) -> bool {
        self.0.1 == other.0.1
    }
}

impl Eq for ByValue {}

impl Postings {
    /// Returns the texts to share.
    pub(super) fn insert(&mut self, label: &str, value: &str, slot: Slot) -> Pair {
        let label = self.labels.get_key_value(label).map_or_else(|| label.into(), |(held, _)| held.clone());
        let values = self.labels.entry(label.clone()).or_default();
        let held = values.get_key_value(value).map(|(ByValue(pair), _)| pair.clone());
        let pair = held.unwrap_or_else(|| Arc::new((label, value.into())));
        values.entry(ByValue(pair.clone())).or_default().insert(slot);
        pair
    }

    /// Leaves nothing behind: labels come and go without end.
    pub(super) fn remove(&mut self, label: &str, value: &str, slot: Slot) {
        let Some(values) = self.labels.get_mut(label) else { return };
        if let Some(slots) = values.get_mut(value) {
            slots.remove(slot);
            if slots.is_empty() {
                values.remove(value);
            }
        }
        if values.is_empty() {
            self.labels.remove(label);
        }
    }

    pub(super) fn with_value(&self, label: &str, value: &str) -> impl Iterator<Item = Slot> + '_ {
        self.slots(label, value).into_iter().flat_map(SlotSet::iter)
    }

    pub(super) fn with_label(&self, label: &str) -> impl Iterator<Item = Slot> + '_ {
        self.labels.get(label).into_iter().flat_map(HashMap::values).flat_map(SlotSet::iter)
    }

    pub(super) fn count_value(&self, label: &str, value: &str) -> usize {
        self.slots(label, value).map_or(0, SlotSet::len)
    }

    pub(super) fn count_label(&self, label: &str) -> usize {
        self.labels.get(label).map_or(0, |values| values.values().map(SlotSet::len).sum())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    fn slots(&self, label: &str, value: &str) -> Option<&SlotSet> {
        self.labels.get(label)?.get(value)
    }
}
