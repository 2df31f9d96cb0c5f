//! Scenarios: named states of the whole datastore, each with what the dataplane must then hold.
//!
//! The calculation promises that only the current state counts. So every scenario runs in all combinations
//! of: keys in order or reversed; states in order or reversed; straight from state to state or through an
//! empty datastore; a flush per state, per update, or none before the state that is looked at; each update
//! once or twice; in-sync known from the start or only after the first state. At each state the dataplane
//! must hold what the scenario says, and down to the last field what a new calculation fed this state gives.

use std::collections::BTreeSet;

use syncer_common::model::{Key, Update};

use super::{Entry, Recorder};
use crate::Graph;

/// The node that scenarios calculate for.
pub const NODE: &str = "here";

/// A whole datastore, and what follows from it.
#[derive(Clone, Debug)]
pub struct State {
    name: &'static str,
    entries: Vec<Entry>,
    expected: BTreeSet<String>,
}

impl State {
    pub fn new(name: &'static str) -> Self {
        State { name, entries: Vec::new(), expected: BTreeSet::new() }
    }

    /// A state that begins as a copy of this one; what it expects has to be said again.
    pub fn then(&self, name: &'static str) -> Self {
        State { name, entries: self.entries.clone(), expected: BTreeSet::new() }
    }

    /// Adds an entry, or replaces the one with its key.
    pub fn with(mut self, entry: Entry) -> Self {
        match self.entries.iter_mut().find(|old| old.key == entry.key) {
            Some(old) => *old = entry,
            None => self.entries.push(entry),
        }
        self
    }

    pub fn without(mut self, entry: &Entry) -> Self {
        self.entries.retain(|old| old.key != entry.key);
        self
    }

    /// All lines of [`Recorder::lines`] that must be there, and no others.
    pub fn expect<L: Into<String>>(mut self, lines: impl IntoIterator<Item = L>) -> Self {
        self.expected.extend(lines.into_iter().map(Into::into));
        self
    }

    fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == *key)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Flush {
    PerState,
    PerUpdate,
    /// A fresh run up to each state, which flushes only there.
    Squashed,
}

#[derive(Clone, Copy, Debug)]
struct Variant {
    keys_reversed: bool,
    states_reversed: bool,
    empty_between: bool,
    flush: Flush,
    repeated: bool,
    late_in_sync: bool,
}

/// Runs the states, in all variants.
pub fn run(states: &[State]) {
    let references: Vec<Recorder> = states.iter().map(from_scratch).collect();
    for (state, reference) in states.iter().zip(&references) {
        assert_eq!(reference.lines(), state.expected, "state {:?}", state.name);
    }
    for variant in variants() {
        let empty = State::new("empty");
        let mut sequence: Vec<(&State, Option<&Recorder>)> =
            states.iter().zip(references.iter().map(Some)).collect();
        if variant.states_reversed {
            sequence.reverse();
        }
        if variant.empty_between {
            sequence = sequence.into_iter().flat_map(|step| [step, (&empty, None)]).collect();
        }
        if variant.flush == Flush::Squashed {
            (1..=sequence.len()).for_each(|end| run_variant(variant, &sequence[..end]));
        } else {
            run_variant(variant, &sequence);
        }
    }
}

/// What a new calculation makes of a state.
fn from_scratch(state: &State) -> Recorder {
    let mut graph = Graph::new(NODE);
    for Entry { key, value } in state.entries.clone() {
        graph.on_update(Update::set(key, value));
    }
    graph.on_in_sync();
    let mut recorder = Recorder::default();
    recorder.apply(graph.flush());
    recorder
}

fn run_variant(variant: Variant, sequence: &[(&State, Option<&Recorder>)]) {
    let (mut graph, mut recorder) = (Graph::new(NODE), Recorder::default());
    if !variant.late_in_sync {
        graph.on_in_sync();
    }
    let mut before = State::new("start");
    for (position, (state, reference)) in sequence.iter().enumerate() {
        let mut updates = difference(&before, state);
        if variant.keys_reversed {
            updates.reverse();
        }
        for update in updates {
            if variant.repeated {
                graph.on_update(update.clone());
            }
            graph.on_update(update);
            if variant.flush == Flush::PerUpdate {
                recorder.apply(graph.flush());
            }
        }
        graph.on_in_sync();
        if variant.flush != Flush::Squashed || position + 1 == sequence.len() {
            recorder.apply(graph.flush());
            let expected = reference.cloned().unwrap_or_else(|| from_scratch(state));
            assert_eq!(recorder, expected, "state {:?} in {variant:?}", state.name);
            assert_eq!(graph.flush(), [], "flush without a change, state {:?} in {variant:?}", state.name);
        }
        before = (*state).clone();
    }
}

fn difference(from: &State, to: &State) -> Vec<Update> {
    let gone = from.entries.iter().filter(|entry| to.get(&entry.key).is_none());
    let changed = to.entries.iter().filter(|entry| from.get(&entry.key) != Some(entry));
    changed
        .map(|entry| Update::set(entry.key.clone(), entry.value.clone()))
        .chain(gone.map(|entry| Update::delete(entry.key.clone())))
        .collect()
}

fn variants() -> impl Iterator<Item = Variant> {
    let flushes = [Flush::PerState, Flush::PerUpdate, Flush::Squashed];
    flushes.into_iter().flat_map(|flush| {
        (0..32).map(move |bits| Variant {
            keys_reversed: bits & 1 != 0,
            states_reversed: bits & 2 != 0,
            empty_between: bits & 4 != 0,
            repeated: bits & 8 != 0,
            late_in_sync: bits & 16 != 0,
            flush,
        })
    })
}
