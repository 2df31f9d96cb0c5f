//! A selector: its canonical text reads back as itself and means the same; what it says about single labels is
//! true of everything it matches; the label index agrees with it.

use std::collections::{BTreeMap, BTreeSet};

use syncer_common::labelindex::{LabelIndex, MatchEvent};
use syncer_common::selector::{Selector, normalise};

use super::{ensure, refusal};
use crate::Outcome;

type Labels = BTreeMap<String, String>;

const OPERATORS: [&str; 12] =
    ["==", "!=", " in ", " not in ", "contains", "starts", "ends", "has(", "&&", "||", "all()", "global()"];

pub fn check(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    let selector = match Selector::parse(&text) {
        Ok(selector) => selector,
        Err(error) => {
            ensure!(text.is_char_boundary(error.offset), "an error lies between characters: {error:?}");
            ensure!(!error.reason.is_empty(), "an error has a reason: {error:?}");
            return Ok(refusal("", &error.reason));
        }
    };
    let canonical = selector.canonical();
    let again =
        Selector::parse(canonical).map_err(|error| format!("canonical text is a selector: {error}"))?;
    // `!(!(x))` is written `!!x`, which reads back as `x`.
    if !canonical.contains("!!") {
        ensure!(again.canonical() == canonical, "canonical text is its own: {canonical:?}, {again:?}");
        ensure!(again.uid() == selector.uid(), "one canonical text, one id: {canonical:?}");
        ensure!(normalise(&text) == normalise(canonical), "normalising is done once: {canonical:?}");
    }
    let prefixed = selector.prefixed("p.");
    let worlds = worlds(&text);
    let mut matching = BTreeSet::new();
    for (item, labels) in worlds.iter().enumerate() {
        let matches = selector.matches(labels);
        ensure!(again.matches(labels) == matches, "canonical text means the same: {canonical:?}, {labels:?}");
        let under: Labels = labels.iter().map(|(name, value)| (format!("p.{name}"), value.clone())).collect();
        ensure!(
            prefixed.matches(&under) == matches,
            "a prefix changes names only: {canonical:?}, {labels:?}"
        );
        if matches {
            matching.insert(item);
            restrictions_hold(&selector, labels)?;
        }
    }
    for selector_first in [false, true] {
        let indexed = indexed(&selector, &worlds, selector_first);
        ensure!(
            indexed == matching,
            "the index agrees: {canonical:?}, {indexed:?}, {matching:?}, {worlds:?}"
        );
    }
    let used: Vec<String> =
        OPERATORS.iter().map(|operator| canonical.matches(operator).count().min(3).to_string()).collect();
    Ok(format!("{} {}", used.join(""), matching.len()))
}

fn restrictions_hold(selector: &Selector, labels: &Labels) -> Result<(), String> {
    for (label, restriction) in selector.restrictions() {
        let value = labels.get(&label);
        let holds = (value.is_some() || !restriction.must_be_present)
            && (value.is_none() || !restriction.must_be_absent)
            && restriction.one_of.as_ref().is_none_or(|of| value.is_some_and(|value| of.contains(value)));
        ensure!(holds, "restrictions are necessary: {selector:?}, {labels:?}, {label:?} {restriction:?}");
    }
    Ok(())
}

/// Items that match the selector, as the index says. Half of their labels are a parent's.
fn indexed(selector: &Selector, worlds: &[Labels], selector_first: bool) -> BTreeSet<usize> {
    let mut index = LabelIndex::new();
    let mut events = Vec::new();
    if selector_first {
        events.extend(index.update_selector("s", selector.clone()));
    }
    for (item, labels) in worlds.iter().enumerate() {
        let mut own = labels.clone();
        let middle = labels.keys().nth(labels.len() / 2);
        let inherited = middle.map(|middle| own.split_off(middle)).unwrap_or_default();
        let parent = format!("parent {item}");
        events.extend(index.update_item(item, own, vec![parent.clone()]));
        events.extend(index.update_parent(&parent, inherited));
    }
    if !selector_first {
        events.extend(index.update_selector("s", selector.clone()));
    }
    let mut matching = BTreeSet::new();
    for event in events {
        match event {
            MatchEvent::Started { item, .. } => matching.insert(item),
            MatchEvent::Stopped { item, .. } => matching.remove(&item),
        };
    }
    matching
}

/// Labels of some items, made of the names and values in the text, always the same ones.
fn worlds(text: &str) -> Vec<Labels> {
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '_' | '-');
    let names: Vec<&str> = text.split(|c| !name(c)).filter(|word| !word.is_empty()).take(16).collect();
    let mut values: Vec<&str> = text.split(['\'', '"']).filter(|value| value.len() < 40).take(16).collect();
    values.extend(["", "a"]);
    let mut state = text.bytes().fold(1u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let mut below = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    (0..8)
        .map(|_| {
            let mut labels = Labels::new();
            for name in &names {
                if below(2) == 0 {
                    labels.insert((*name).to_owned(), values[below(values.len())].to_owned());
                }
            }
            labels
        })
        .collect()
}
