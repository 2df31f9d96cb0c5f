//! The label index against the definition: every item × every selector, after every change.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use syncer_common::labelindex::{LabelIndex, MatchEvent};
use syncer_common::selector::Selector;

type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug)]
enum Change {
    Item(u8, Labels, Vec<String>),
    DeleteItem(u8),
    Parent(String, Labels),
    DeleteParent(String),
    Selector(u8, String),
    DeleteSelector(u8),
}

/// What the index must agree with: all input, nothing derived.
#[derive(Default)]
struct Definition {
    items: BTreeMap<u8, (Labels, Vec<String>)>,
    parents: BTreeMap<String, Labels>,
    selectors: BTreeMap<u8, Selector>,
}

impl Definition {
    fn matches(&self) -> BTreeSet<(u8, u8)> {
        let mut matches = BTreeSet::new();
        for (item, (own, parents)) in &self.items {
            let mut visible = Labels::new();
            for inherited in parents.iter().rev().filter_map(|name| self.parents.get(name)) {
                visible.extend(inherited.clone());
            }
            visible.extend(own.clone());
            for (id, selector) in &self.selectors {
                if selector.matches(&visible) {
                    matches.insert((*item, *id));
                }
            }
        }
        matches
    }
}

fn apply(
    change: Change,
    index: &mut LabelIndex<u8, u8>,
    definition: &mut Definition,
) -> Vec<MatchEvent<u8, u8>> {
    match change {
        Change::Item(id, labels, parents) => {
            definition.items.insert(id, (labels.clone(), parents.clone()));
            index.update_item(id, labels, parents)
        }
        Change::DeleteItem(id) => {
            definition.items.remove(&id);
            index.delete_item(&id)
        }
        Change::Parent(name, labels) => {
            definition.parents.insert(name.clone(), labels.clone());
            index.update_parent(&name, labels)
        }
        Change::DeleteParent(name) => {
            definition.parents.remove(&name);
            index.delete_parent(&name)
        }
        Change::Selector(id, text) => {
            let selector = Selector::parse(&text).expect("generated selectors are well formed");
            definition.selectors.insert(id, selector.clone());
            index.update_selector(id, selector)
        }
        Change::DeleteSelector(id) => {
            definition.selectors.remove(&id);
            index.delete_selector(&id)
        }
    }
}

fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map("[abc]", "[xyz]", 0..4)
}

fn selector() -> impl Strategy<Value = String> {
    let term = prop_oneof![
        Just("all()".to_owned()),
        "[abc]".prop_map(|label| format!("has({label})")),
        "[abc]".prop_map(|label| format!("!has({label})")),
        ("[abc]", "[xyz]").prop_map(|(label, value)| format!("{label} == '{value}'")),
        ("[abc]", "[xyz]").prop_map(|(label, value)| format!("{label} != '{value}'")),
        ("[abc]", "[xyz]").prop_map(|(label, value)| format!("{label} starts with '{value}'")),
        ("[abc]", "[xyz]", "[xyz]").prop_map(|(label, one, two)| format!("{label} in {{'{one}', '{two}'}}")),
        ("[abc]", "[xyz]").prop_map(|(label, value)| format!("{label} not in {{'{value}'}}")),
        "[abc]".prop_map(|label| format!("{label} in {{}}")),
    ];
    term.prop_recursive(3, 8, 3, |inner| {
        let group =
            |operator: &'static str| move |members: Vec<String>| format!("({})", members.join(operator));
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(group(" && ")),
            prop::collection::vec(inner.clone(), 1..4).prop_map(group(" || ")),
            inner.prop_map(|inner| format!("!({inner})")),
        ]
    })
}

fn change() -> impl Strategy<Value = Change> {
    let parents = prop::collection::vec("[pqr]", 0..4);
    prop_oneof![
        4 => (0..6u8, labels(), parents).prop_map(|(id, labels, parents)| Change::Item(id, labels, parents)),
        1 => (0..6u8).prop_map(Change::DeleteItem),
        2 => ("[pqr]", labels()).prop_map(|(name, labels)| Change::Parent(name, labels)),
        1 => "[pqr]".prop_map(Change::DeleteParent),
        4 => (0..6u8, selector()).prop_map(|(id, text)| Change::Selector(id, text)),
        1 => (0..6u8).prop_map(Change::DeleteSelector),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn index_equals_full_evaluation_after_every_change(changes in prop::collection::vec(change(), 1..60)) {
        let mut index = LabelIndex::new();
        let mut definition = Definition::default();
        let mut matching = BTreeSet::new();
        for change in changes {
            let told = format!("{change:?}");
            let mut any_started = false;
            for event in apply(change, &mut index, &mut definition) {
                match event {
                    MatchEvent::Started { item, selector } => {
                        any_started = true;
                        prop_assert!(matching.insert((item, selector)), "started twice by {}", told);
                    }
                    MatchEvent::Stopped { item, selector } => {
                        prop_assert!(!any_started, "stopped after started by {}", told);
                        prop_assert!(matching.remove(&(item, selector)), "stopped unstarted by {}", told);
                    }
                }
            }
            prop_assert_eq!(&matching, &definition.matches(), "after {}", told);
            let of_items = (0..6).flat_map(|id| index.selectors_matching(&id).map(move |selector| (id, *selector)));
            prop_assert_eq!(&of_items.collect::<BTreeSet<_>>(), &matching, "by item after {}", told);
            let of_selectors = (0..6).flat_map(|id| index.items_matching(&id).map(move |item| (*item, id)));
            prop_assert_eq!(&of_selectors.collect::<BTreeSet<_>>(), &matching, "by selector after {}", told);
        }
        for id in 0..6 {
            index.delete_item(&id);
            index.delete_selector(&id);
        }
        for name in ["p", "q", "r"] {
            index.delete_parent(name);
        }
        prop_assert!(index.is_empty(), "traces are left of what was deleted");
    }
}
