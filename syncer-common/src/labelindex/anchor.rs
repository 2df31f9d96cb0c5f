//! Where a selector is filed, so that an item meets only selectors that may match it.
//!
//! An anchor is one necessary condition of the selector. Among several, the one that the fewest selectors
//! share is taken: in `orchestrator == "k8s" && namespace == "a"` every selector has the first, so that the
//! second ends up as the anchor without anyone telling the index which labels are telling.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::selector::LabelRestriction;

use super::postings::Postings;
use super::slots::Slot;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    /// The label has one of these values.
    OneOf { label: String, values: BTreeSet<String> },
    /// The label is there.
    Present { label: String },
    /// No label is required.
    Anywhere,
    /// The conditions contradict each other.
    Nowhere,
}

/// Whether what the selector requires of one label cannot be.
pub(super) fn is_impossible(restriction: &LabelRestriction) -> bool {
    (restriction.must_be_present && restriction.must_be_absent)
        || restriction.one_of.as_ref().is_some_and(BTreeSet::is_empty)
}

/// Selectors by anchor.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    by_value: Postings,
    by_label: HashMap<String, BTreeSet<Slot>>,
    anywhere: BTreeSet<Slot>,
}

impl Anchors {
    /// The best anchor for a selector that says this of its labels.
    pub(super) fn choose(&self, restrictions: &BTreeMap<String, LabelRestriction>) -> Anchor {
        if restrictions.values().any(is_impossible) {
            return Anchor::Nowhere;
        }
        let by_value = restrictions
            .iter()
            .filter_map(|(label, restriction)| Some((label, restriction.one_of.as_ref()?)))
            .min_by_key(|(label, values)| -> usize {
                values.iter().map(|value| self.by_value.count_value(label, value)).sum()
            });
        if let Some((label, values)) = by_value {
            return Anchor::OneOf { label: label.clone(), values: values.clone() };
        }
        let by_label = restrictions
            .iter()
            .filter(|(_, restriction)| restriction.must_be_present)
            .map(|(label, _)| label)
            .min_by_key(|label| self.by_label.get(*label).map_or(0, BTreeSet::len));
        by_label.map_or(Anchor::Anywhere, |label| Anchor::Present { label: label.clone() })
    }

    pub(super) fn file(&mut self, anchor: &Anchor, selector: Slot) {
        match anchor {
            Anchor::OneOf { label, values } => {
                for value in values {
                    self.by_value.insert(label, value, selector);
                }
            }
            Anchor::Present { label } => {
                self.by_label.entry(label.clone()).or_default().insert(selector);
            }
            Anchor::Anywhere => {
                self.anywhere.insert(selector);
            }
            Anchor::Nowhere => {}
        }
    }

    pub(super) fn remove(&mut self, anchor: &Anchor, selector: Slot) {
        match anchor {
            Anchor::OneOf { label, values } => {
                values.iter().for_each(|value| self.by_value.remove(label, value, selector));
            }
            Anchor::Present { label } => {
                if let Some(selectors) = self.by_label.get_mut(label) {
                    selectors.remove(&selector);
                    if selectors.is_empty() {
                        self.by_label.remove(label);
                    }
                }
            }
            Anchor::Anywhere => {
                self.anywhere.remove(&selector);
            }
            Anchor::Nowhere => {}
        }
    }

    /// The selectors that something with these labels may match.
    pub(super) fn candidates<'a>(&self, labels: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeSet<Slot> {
        let mut found = self.anywhere.clone();
        for (label, value) in labels {
            found.extend(self.by_value.with_value(label, value));
            found.extend(self.by_label.get(label).into_iter().flatten());
        }
        found
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_value.is_empty() && self.by_label.is_empty() && self.anywhere.is_empty()
    }
}
