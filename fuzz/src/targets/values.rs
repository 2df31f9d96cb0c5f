//! Objects that are written and deleted, and what becomes of them for agents.
//!
//! - The same objects give the same updates and errors, and written twice nothing changes.
//! - What agents have in the end depends on what is stored in the end, not on the way there.
//!   So nothing is withdrawn that another object still gives.
//! - An error names the object, the field and a reason. What is withdrawn as invalid has an error.
//! - What is sent is valid, has a key that survives its path, and survives the wire.

use std::collections::BTreeMap;

use prost::Message;
use proto::model as v1;
use syncer_common::model::{DeletionReason, Key, Kind, Value};
use syncer_common::processors::{Converted, Processors};
use syncer_common::validate;

use super::{ensure, objects, parse_key, refusal};
use crate::Outcome;

type State = BTreeMap<Key, Value>;

pub fn check(input: &[u8]) -> Outcome {
    holds(&objects(input))
}

pub(super) fn holds(objects: &[(&str, Option<&[u8]>)]) -> Outcome {
    let (state, outcome, transcript) = replay(objects)?;
    let (_, _, again) = replay(objects)?;
    ensure!(transcript == again, "the same objects give the same updates: {transcript:?}, {again:?}");
    let twice: Vec<_> = objects.iter().flat_map(|object| [*object; 2]).collect();
    ensure!(replay(&twice)?.0 == state, "writing an object twice changes nothing: {state:?}");

    // Where two paths mean one object, the order decides.
    let canonical = |path: &str| parse_key(path).is_none_or(|key| key.path().as_deref() == Ok(path));
    if objects.iter().all(|(path, _)| canonical(path)) {
        let stored: BTreeMap<_, _> = objects.iter().copied().collect();
        let stored: Vec<_> = stored.into_iter().filter(|(_, value)| value.is_some()).collect();
        let listed = replay(&stored)?.0;
        ensure!(listed == state, "the way there does not matter: followed {state:?}, listed {listed:?}");
    }
    Ok(outcome)
}

/// What agents have in the end; what happened, in short; everything that was said.
fn replay(objects: &[(&str, Option<&[u8]>)]) -> Result<(State, String, Vec<String>), String> {
    let mut processors = Processors::new();
    let (mut state, mut outcomes, mut transcript) = (State::new(), Vec::new(), Vec::new());
    for (path, value) in objects {
        let converted = match value {
            Some(value) => processors.put(path, value),
            None => processors.delete(path),
        };
        outcomes.push(apply(path, &converted, &mut state)?);
        transcript.push(format!("{converted:?}"));
    }
    Ok((state, outcomes.join("\n"), transcript))
}

fn apply(path: &str, converted: &Converted, state: &mut State) -> Outcome {
    let mut outcome = path.split('/').nth(5).unwrap_or_default().chars().take(12).collect::<String>();
    if let Some(error) = &converted.error {
        ensure!(error.key == path, "an error names its object: {error:?}, {path:?}");
        ensure!(
            !error.field.is_empty() && !error.reason.is_empty(),
            "an error says where and why: {error:?}"
        );
        outcome += &refusal(&error.field, &error.reason);
    }
    for update in &converted.updates {
        let key = &update.key;
        ensure!(Kind::of(key).is_some(), "what is sent is of a kind that travels: {key:?}");
        let key_path = key.path().map_err(|error| format!("an entry has a path: {key:?}: {error}"))?;
        let survives = key_path.contains('%') || parse_key(&key_path).as_ref() == Some(key);
        ensure!(survives, "an entry's key survives its path: {key:?}");
        match &update.value {
            Ok(value) => {
                let errors = validate::value(key, value);
                ensure!(errors.is_empty(), "what is sent is valid: {key:?}, {errors:?}");
                let sent = v1::Value { kind: Some(value.clone()) };
                let received = v1::Value::decode(sent.encode_to_vec().as_slice());
                ensure!(received.as_ref() == Ok(&sent), "a value survives the wire: {sent:?}, {received:?}");
                state.insert(key.clone(), value.clone());
                outcome.push('+');
            }
            Err(reason) => {
                state.remove(key);
                let said = *reason != DeletionReason::Invalid || converted.error.is_some();
                ensure!(said, "what is invalid has an error: {key:?}, {path:?}");
                outcome.push('-');
            }
        }
    }
    Ok(outcome)
}
