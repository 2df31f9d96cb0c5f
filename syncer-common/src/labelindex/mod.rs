//! Which selectors match which labelled items, kept up to date as either side changes.
//!
//! Items inherit the labels of their parents (endpoints those of their profiles): an item's own label
//! shadows any parent's, an earlier parent a later one. A parent may be named before it is known and counts
//! as having no labels until then.
//!
//! Every change returns what started and what stopped matching because of it, and nothing else: a pair
//! is started once, then stopped once, whatever the changes in between. Stopped pairs come first. The order
//! among them is that of arrival and carries no meaning.
//!
//! Work is proportional to what may be affected: an item meets the selectors filed under its labels
//! (`anchor.rs`), a selector the items that have its rarest required label.

mod anchor;
mod postings;
mod slots;
mod slotset;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;

use crate::selector::{LabelRestriction, Labels, Selector};

use anchor::{Anchor, Anchors, is_impossible};
use postings::{Pair, Postings};
use slots::{Slot, Slots};
use slotset::SlotSet;

/// A pair that has begun or ceased to match.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MatchEvent<I, S> {
    Started { item: I, selector: S },
    Stopped { item: I, selector: S },
}

/// Items × selectors.
#[derive(Debug)]
pub struct LabelIndex<I, S> {
    items: Slots<I, Item>,
    parents: Slots<String, Parent>,
    selectors: Slots<S, Filed>,
    item_labels: Postings,
    parent_labels: Postings,
    anchors: Anchors,
    evaluations: u64,
}

/// Small, because there is one for every endpoint of the cluster.
#[derive(Debug, Default)]
struct Item {
    /// By label; the texts are shared with `item_labels`.
    labels: Box<[Pair]>,
    parents: Box<[Slot]>,
    /// In order: most match a few.
    matches: Box<[Slot]>,
}

/// Kept while it has labels or an item names it.
#[derive(Debug, Default)]
struct Parent {
    labels: BTreeMap<String, String>,
    items: SlotSet,
}

#[derive(Debug)]
struct Filed {
    selector: Selector,
    anchor: Anchor,
    matches: SlotSet,
}

impl<I, S> Default for LabelIndex<I, S> {
    fn default() -> Self {
        LabelIndex {
            items: Slots::default(),
            parents: Slots::default(),
            selectors: Slots::default(),
            item_labels: Postings::default(),
            parent_labels: Postings::default(),
            anchors: Anchors::default(),
            evaluations: 0,
        }
    }
}

impl<I: Clone + Eq + Hash, S: Clone + Eq + Hash> LabelIndex<I, S> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an item, or replaces its labels and parents.
    pub fn update_item(
        &mut self,
        id: I,
        labels: BTreeMap<String, String>,
        parents: Vec<String>,
    ) -> Vec<MatchEvent<I, S>> {
        let known = self.items.find(&id);
        if known.is_some_and(|slot| {
            let item = self.items.get(slot);
            let same = |(pair, (new, new_value)): (&Pair, (&String, &String))| {
                *pair.0 == **new && *pair.1 == **new_value
            };
            item.labels.len() == labels.len()
                && item.labels.iter().zip(&labels).all(same)
                && item.parents.iter().map(|parent| self.parents.key(*parent)).eq(&parents)
        }) {
            return Vec::new();
        }
        let slot = known.unwrap_or_else(|| self.items.find_or_insert(id, Item::default));
        // The new parents are linked first, so that those in both lists are not dropped between.
        let parent_slots: Box<[Slot]> = parents
            .iter()
            .map(|name| match self.parents.find(name) {
                Some(parent) => parent,
                None => self.parents.find_or_insert(name.clone(), Parent::default),
            })
            .collect();
        for parent in &parent_slots {
            self.parents.get_mut(*parent).items.insert(slot);
        }
        let labels: Box<[Pair]> =
            labels.iter().map(|(label, value)| self.item_labels.insert(label, value, slot)).collect();
        let item = self.items.get_mut(slot);
        let old_labels = std::mem::replace(&mut item.labels, labels);
        let old_parents = std::mem::replace(&mut item.parents, parent_slots);
        for (label, value) in old_labels.iter().map(|pair| &**pair) {
            if own(&self.items.get(slot).labels, label) != Some(&**value) {
                self.item_labels.remove(label, value, slot);
            }
        }
        // A name may be listed twice, but is let go once.
        for parent in BTreeSet::from_iter(old_parents) {
            if !self.items.get(slot).parents.contains(&parent) {
                self.unlink(parent, slot);
            }
        }
        let mut events = Vec::new();
        self.evaluate_item(slot, &mut events);
        stopped_first(events)
    }

    /// Removes an item. Unknown ones are no error.
    pub fn delete_item(&mut self, id: &I) -> Vec<MatchEvent<I, S>> {
        let Some(slot) = self.items.find(id) else { return Vec::new() };
        let (id, item) = self.items.remove(slot);
        for (label, value) in item.labels.iter().map(|pair| &**pair) {
            self.item_labels.remove(label, value, slot);
        }
        for parent in BTreeSet::from_iter(item.parents) {
            self.unlink(parent, slot);
        }
        item.matches
            .into_iter()
            .map(|selector| {
                self.selectors.get_mut(selector).matches.remove(slot);
                MatchEvent::Stopped { item: id.clone(), selector: self.selectors.key(selector).clone() }
            })
            .collect()
    }

    /// Sets the labels that items inherit from the parent of this name.
    pub fn update_parent(&mut self, name: &str, labels: BTreeMap<String, String>) -> Vec<MatchEvent<I, S>> {
        let slot = match self.parents.find(name) {
            Some(slot) => slot,
            None if labels.is_empty() => return Vec::new(),
            None => self.parents.find_or_insert(name.to_owned(), Parent::default),
        };
        let parent = self.parents.get_mut(slot);
        if parent.labels == labels {
            return Vec::new();
        }
        let old = std::mem::replace(&mut parent.labels, labels);
        let affected = parent.items.clone();
        for (label, value) in &old {
            self.parent_labels.remove(label, value, slot);
        }
        let parent = self.parents.get(slot);
        for (label, value) in &parent.labels {
            self.parent_labels.insert(label, value, slot);
        }
        self.drop_if_unused(slot);
        let mut events = Vec::new();
        for item in affected.iter() {
            self.evaluate_item(item, &mut events);
        }
        stopped_first(events)
    }

    /// Takes the parent's labels away. Items that name it keep doing so.
    pub fn delete_parent(&mut self, name: &str) -> Vec<MatchEvent<I, S>> {
        self.update_parent(name, BTreeMap::new())
    }

    /// Adds a selector, or replaces it under the same id.
    pub fn update_selector(&mut self, id: S, selector: Selector) -> Vec<MatchEvent<I, S>> {
        let known = self.selectors.find(&id);
        if known.is_some_and(|slot| self.selectors.get(slot).selector == selector) {
            return Vec::new();
        }
        if let Some(slot) = known {
            self.anchors.remove(&self.selectors.get(slot).anchor, slot);
        }
        let restrictions = selector.restrictions();
        let anchor = self.anchors.choose(&restrictions);
        let slot = self.selectors.find_or_insert(id, || Filed {
            selector: selector.clone(),
            anchor: Anchor::Nowhere,
            matches: SlotSet::default(),
        });
        self.anchors.file(&anchor, slot);
        let filed = self.selectors.get_mut(slot);
        filed.anchor = anchor;
        filed.selector = selector;

        let candidates = self.candidate_items(&restrictions);
        self.evaluations += candidates.len() as u64;
        let filed = self.selectors.get(slot);
        let matches: SlotSet =
            candidates.iter().filter(|item| filed.selector.matches(&self.view(*item))).collect();
        let stopped: Vec<Slot> = filed.matches.iter().filter(|item| !matches.contains(*item)).collect();
        let started: Vec<Slot> = matches.iter().filter(|item| !filed.matches.contains(*item)).collect();
        let mut events = Vec::with_capacity(stopped.len() + started.len());
        for item in stopped {
            events.push(self.stop(item, slot));
        }
        for item in started {
            events.push(self.start(item, slot));
        }
        events
    }

    /// Removes a selector. Unknown ones are no error.
    pub fn delete_selector(&mut self, id: &S) -> Vec<MatchEvent<I, S>> {
        let Some(slot) = self.selectors.find(id) else { return Vec::new() };
        let (id, filed) = self.selectors.remove(slot);
        self.anchors.remove(&filed.anchor, slot);
        filed
            .matches
            .iter()
            .map(|item| {
                remove(&mut self.items.get_mut(item).matches, slot);
                MatchEvent::Stopped { item: self.items.key(item).clone(), selector: id.clone() }
            })
            .collect()
    }

    /// The selectors that match an item.
    pub fn selectors_matching<'a>(&'a self, item: &I) -> impl Iterator<Item = &'a S> + use<'a, I, S> {
        let matches = self.items.find(item).map(|slot| &self.items.get(slot).matches);
        matches.into_iter().flat_map(|slots| slots.iter()).map(|slot| self.selectors.key(*slot))
    }

    /// The items that a selector matches.
    pub fn items_matching<'a>(&'a self, selector: &S) -> impl Iterator<Item = &'a I> + use<'a, I, S> {
        let matches = self.selectors.find(selector).map(|slot| &self.selectors.get(slot).matches);
        matches.into_iter().flat_map(SlotSet::iter).map(|slot| self.items.key(slot))
    }

    /// How many selectors were evaluated against an item so far: the work done.
    pub fn evaluations(&self) -> u64 {
        self.evaluations
    }

    /// Nothing is held: no item, parent or selector, and no trace of former ones.
    pub fn is_empty(&self) -> bool {
        self.items.len() + self.parents.len() + self.selectors.len() == 0
            && self.item_labels.is_empty()
            && self.parent_labels.is_empty()
            && self.anchors.is_empty()
    }

    fn view(&self, item: Slot) -> Inherited<'_> {
        let item = self.items.get(item);
        Inherited {
            own: &item.labels,
            parents: item.parents.iter().map(|parent| &self.parents.get(*parent).labels).collect(),
        }
    }

    fn evaluate_item(&mut self, slot: Slot, events: &mut Vec<MatchEvent<I, S>>) {
        let view = self.view(slot);
        let candidates = self.anchors.candidates(view.iter());
        let evaluated = candidates.len() as u64;
        let matches: BTreeSet<Slot> = candidates
            .into_iter()
            .filter(|selector| self.selectors.get(*selector).selector.matches(&view))
            .collect();
        let before = &self.items.get(slot).matches;
        let stopped: Vec<Slot> = before.iter().filter(|slot| !matches.contains(slot)).copied().collect();
        let started: Vec<Slot> =
            matches.into_iter().filter(|slot| before.binary_search(slot).is_err()).collect();
        self.evaluations += evaluated;
        for selector in stopped {
            let event = self.stop(slot, selector);
            events.push(event);
        }
        for selector in started {
            let event = self.start(slot, selector);
            events.push(event);
        }
    }

    fn start(&mut self, item: Slot, selector: Slot) -> MatchEvent<I, S> {
        let matches = &mut self.items.get_mut(item).matches;
        if let Err(at) = matches.binary_search(&selector) {
            *matches = [&matches[..at], &[selector], &matches[at..]].concat().into();
        }
        self.selectors.get_mut(selector).matches.insert(item);
        MatchEvent::Started {
            item: self.items.key(item).clone(),
            selector: self.selectors.key(selector).clone(),
        }
    }

    fn stop(&mut self, item: Slot, selector: Slot) -> MatchEvent<I, S> {
        remove(&mut self.items.get_mut(item).matches, selector);
        self.selectors.get_mut(selector).matches.remove(item);
        MatchEvent::Stopped {
            item: self.items.key(item).clone(),
            selector: self.selectors.key(selector).clone(),
        }
    }

    /// The items that may match a selector with these restrictions: those with its rarest required label,
    /// or all of them when it requires none.
    fn candidate_items(&self, restrictions: &BTreeMap<String, LabelRestriction>) -> SlotSet {
        if restrictions.values().any(is_impossible) {
            return SlotSet::default();
        }
        let rarest = restrictions
            .iter()
            .filter(|(_, restriction)| restriction.must_be_present)
            .map(|(label, restriction)| (self.count_items(label, restriction), label, restriction))
            .min_by_key(|(count, ..)| *count);
        match rarest {
            Some((_, label, LabelRestriction { one_of: Some(values), .. })) => {
                values.iter().flat_map(|value| self.items_with_value(label, value)).collect()
            }
            Some((_, label, _)) => self.items_with_label(label).collect(),
            None => self.items.iter().collect(),
        }
    }

    fn count_items(&self, label: &str, restriction: &LabelRestriction) -> usize {
        let inherited = |parents: &mut dyn Iterator<Item = Slot>| -> usize {
            parents.map(|parent| self.parents.get(parent).items.len()).sum()
        };
        match &restriction.one_of {
            Some(values) => values
                .iter()
                .map(|value| {
                    self.item_labels.count_value(label, value)
                        + inherited(&mut self.parent_labels.with_value(label, value))
                })
                .sum(),
            None => {
                self.item_labels.count_label(label) + inherited(&mut self.parent_labels.with_label(label))
            }
        }
    }

    fn items_with_value(&self, label: &str, value: &str) -> impl Iterator<Item = Slot> + '_ {
        let inherited = self.parent_labels.with_value(label, value);
        self.item_labels.with_value(label, value).chain(self.items_of(inherited))
    }

    fn items_with_label(&self, label: &str) -> impl Iterator<Item = Slot> + '_ {
        let inherited = self.parent_labels.with_label(label);
        self.item_labels.with_label(label).chain(self.items_of(inherited))
    }

    fn items_of<'a>(&'a self, parents: impl Iterator<Item = Slot> + 'a) -> impl Iterator<Item = Slot> + 'a {
        parents.flat_map(|parent| self.parents.get(parent).items.iter())
    }

    fn unlink(&mut self, parent: Slot, item: Slot) {
        self.parents.get_mut(parent).items.remove(item);
        self.drop_if_unused(parent);
    }

    fn drop_if_unused(&mut self, parent: Slot) {
        let Parent { labels, items } = self.parents.get(parent);
        if labels.is_empty() && items.is_empty() {
            self.parents.remove(parent);
        }
    }
}

/// Across several items: a pair that stops makes room before another starts.
fn stopped_first<I, S>(mut events: Vec<MatchEvent<I, S>>) -> Vec<MatchEvent<I, S>> {
    events.sort_by_key(|event| matches!(event, MatchEvent::Started { .. }));
    events
}

/// The labels of an item as selectors see them.
struct Inherited<'a> {
    own: &'a [Pair],
    parents: Vec<&'a BTreeMap<String, String>>,
}

impl Inherited<'_> {
    /// Every label and value that may be visible. Shadowed ones are included: they cost an evaluation,
    /// finding them out would cost more.
    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let own = self.own.iter().map(|pair| (&*pair.0, &*pair.1));
        let inherited = self.parents.iter().copied().flatten();
        own.chain(inherited.map(|(label, value)| (label.as_str(), value.as_str())))
    }
}

/// The value of one of an item's own labels, which are in order.
fn own<'a>(labels: &'a [Pair], name: &str) -> Option<&'a str> {
    labels.binary_search_by(|pair| (*pair.0).cmp(name)).ok().map(|at| &*labels[at].1)
}

fn remove(slots: &mut Box<[Slot]>, slot: Slot) {
    if let Ok(at) = slots.binary_search(&slot) {
        *slots = [&slots[..at], &slots[at + 1..]].concat().into();
    }
}

impl Labels for Inherited<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        own(self.own, name)
            .or_else(|| self.parents.iter().find_map(|labels| labels.get(name)).map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Index = LabelIndex<&'static str, &'static str>;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn selector(text: &str) -> Selector {
        Selector::parse(text).unwrap()
    }

    fn started(item: &'static str, selector: &'static str) -> MatchEvent<&'static str, &'static str> {
        MatchEvent::Started { item, selector }
    }

    fn stopped(item: &'static str, selector: &'static str) -> MatchEvent<&'static str, &'static str> {
        MatchEvent::Stopped { item, selector }
    }

    #[test]
    fn own_labels_shadow_those_of_parents_and_earlier_parents_later_ones() {
        let mut index = Index::new();
        index.update_selector("red", selector("colour == 'red'"));
        index.update_parent("p1", labels(&[("colour", "red")]));
        index.update_parent("p2", labels(&[("colour", "blue")]));
        let parents = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(index.update_item("i", labels(&[]), parents(&["p1", "p2"])), [started("i", "red")]);
        assert_eq!(index.update_item("i", labels(&[]), parents(&["p2", "p1"])), [stopped("i", "red")]);
        assert_eq!(
            index.update_item("i", labels(&[("colour", "red")]), parents(&["p2"])),
            [started("i", "red")]
        );
        assert_eq!(
            index.update_item("i", labels(&[("colour", "green")]), parents(&["p1"])),
            [stopped("i", "red")]
        );
    }

    #[test]
    fn parent_known_later_takes_effect_then() {
        let mut index = Index::new();
        index.update_selector("s", selector("has(a)"));
        assert_eq!(index.update_item("i", labels(&[]), vec!["p".to_owned()]), []);
        assert_eq!(index.update_parent("p", labels(&[("a", "1")])), [started("i", "s")]);
        assert_eq!(index.delete_parent("p"), [stopped("i", "s")]);
        assert_eq!(index.update_parent("p", labels(&[("a", "2")])), [started("i", "s")]);
    }

    #[test]
    fn unchanged_input_does_no_work() {
        let mut index = Index::new();
        index.update_selector("s", selector("all()"));
        index.update_item("i", labels(&[("a", "1")]), vec!["p".to_owned()]);
        let work = index.evaluations();
        assert_eq!(index.update_item("i", labels(&[("a", "1")]), vec!["p".to_owned()]), []);
        assert_eq!(index.update_selector("s", selector(" all( ) ")), []);
        assert_eq!(index.update_parent("p", labels(&[])), []);
        assert_eq!(index.evaluations(), work);
    }

    #[test]
    fn items_meet_only_the_selectors_of_their_namespace() {
        let mut index: LabelIndex<usize, usize> = LabelIndex::new();
        for id in 0..1000 {
            let text = format!("orchestrator == 'k8s' && namespace == 'n{}' && app == 'a'", id % 100);
            index.update_selector(id, selector(&text));
        }
        for id in 0..100 {
            let namespace = format!("n{id}");
            let own = labels(&[("orchestrator", "k8s"), ("namespace", &namespace), ("app", "b")]);
            assert_eq!(index.update_item(id, own, Vec::new()), []);
        }
        // Ten selectors are of the item's namespace; a full scan would be 1000 for each of the items.
        assert!(index.evaluations() < 100 * 40, "{} evaluations", index.evaluations());
    }

    #[test]
    fn selectors_meet_only_items_with_their_rarest_label() {
        let mut index: LabelIndex<usize, usize> = LabelIndex::new();
        for id in 0..1000 {
            let value = (id % 500).to_string();
            index.update_item(id, labels(&[("orchestrator", "k8s"), ("app", &value)]), Vec::new());
        }
        let events = index.update_selector(0, selector("orchestrator == 'k8s' && app == '7'"));
        assert_eq!(events.len(), 2);
        assert_eq!(index.evaluations(), 2);
    }

    #[test]
    fn nothing_is_left_when_everything_is_deleted() {
        let mut index = Index::new();
        index.update_selector("s", selector("a == '1' || has(b)"));
        index.update_selector("t", selector("has(b)"));
        index.update_item("i", labels(&[("a", "1"), ("b", "2")]), vec!["p".to_owned(), "p".to_owned()]);
        index.update_parent("p", labels(&[("b", "1")]));
        index.delete_parent("p");
        index.delete_selector(&"s");
        index.delete_selector(&"t");
        assert_eq!(index.delete_item(&"i"), []);
        assert!(index.is_empty());
    }
}
