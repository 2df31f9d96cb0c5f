//! Resources of Calico 2: what they become is of today's form, stays as it is when upgraded again, and no two
//! have one name.

use std::collections::BTreeSet;

use serde_json::Value;
use syncer_common::apis::{Resource, v1};
use syncer_common::validate;

use super::{ensure, told};
use crate::Outcome;

pub fn check(input: &[u8]) -> Outcome {
    let Ok(document) = serde_json::from_slice::<Value>(input) else { return Ok("!not JSON".into()) };
    let upgraded = v1::upgrade(document.clone());
    ensure!(upgraded == v1::upgrade(document), "the same object becomes the same: {upgraded:?}");
    let upgraded = match upgraded {
        Ok(upgraded) => upgraded,
        Err(error) => return told(&error),
    };
    let mut outcome = String::new();
    let mut ids = BTreeSet::new();
    for resource in &upgraded.resources {
        ensure!(ids.insert(resource.id()), "names differ: {}", resource.id());
        let json = serde_json::to_value(resource).map_err(|error| format!("a resource is JSON: {error}"))?;
        let read = Resource::from_json(json.clone());
        ensure!(read.as_ref() == Ok(resource), "it is of today's form: {read:?}, {resource:?}");
        let again = v1::upgrade(json).map_err(|error| format!("it can be upgraded again: {error}"))?;
        ensure!(
            again.resources.as_slice() == [resource.clone()],
            "it stays as it is: {again:?}, {resource:?}"
        );
        ensure!(again.warnings.is_empty(), "today's form needs no warning: {again:?}");
        outcome += &resource.kind;
        for error in validate::resource(resource) {
            outcome += &told(&error)?;
        }
    }
    for warning in &upgraded.warnings {
        let named = ids.iter().any(|id| warning.starts_with(&format!("{id}: ")));
        ensure!(named, "a warning names its object: {warning:?}");
    }
    Ok(format!("{outcome} {}", upgraded.warnings.len()))
}
