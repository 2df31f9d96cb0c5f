//! `patch`: changes some fields of one stored object.

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde_json::Value;
use syncer_common::apis::{FieldError, Resource};
use syncer_common::backend::{Datastore, MAX_VALUE_BYTES};

use crate::{get, write};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// As `merge`: the lists of these kinds have no keys to merge by, and are replaced whole.
    Strategic,
    /// JSON merge patch (RFC 7386): members that are given replace, `null` removes.
    Merge,
    /// JSON patch (RFC 6902): a list of add, remove, replace, move, copy and test.
    Json,
}

enum Change {
    Merge(Value),
    Operations(Vec<json_patch::PatchOperation>),
}

pub async fn run(
    store: &dyn Datastore,
    kind: &str,
    name: &str,
    namespace: &str,
    patch: &str,
    patch_kind: Kind,
) -> Result<String> {
    let kind = get::kind(kind)?;
    let change = parse(patch, patch_kind)?;
    let patched = |old: &Resource| apply(old, &change);
    write::edit(store, kind, name, namespace, &patched)
        .await
        .with_context(|| format!("Failed to patch '{}' resource", kind.kind))?;
    Ok(format!("Successfully patched 1 '{}' resource\n", kind.kind))
}

fn parse(patch: &str, kind: Kind) -> Result<Change> {
    // YAML is a superset of JSON.
    let value: Value = serde_yaml_ng::from_str(patch).context("the patch is neither JSON nor YAML")?;
    if kind == Kind::Json {
        let operations = serde_json::from_value(value).context(
            "the patch is not a list of operations such as [{\"op\": \"replace\", \"path\": \"/spec/order\", \
             \"value\": 10}]",
        )?;
        return Ok(Change::Operations(operations));
    }
    anyhow::ensure!(
        value.is_object(),
        "the patch is not an object such as {{\"spec\": {{\"order\": 10}}}}; a list of operations needs --type json"
    );
    if let Some(directive) = directive(&value) {
        anyhow::bail!(
            "{directive}: directives of strategic patches do nothing here: give the whole list, or use --type json"
        );
    }
    Ok(Change::Merge(value))
}

/// `$patch`, `$retainKeys`, …: taken for names of fields they would be lost without a word.
fn directive(value: &Value) -> Option<&str> {
    match value {
        Value::Object(members) => members.iter().find_map(|(name, member)| {
            if name.starts_with('$') { Some(name.as_str()) } else { directive(member) }
        }),
        Value::Array(items) => items.iter().find_map(directive),
        _ => None,
    }
}

fn apply(old: &Resource, change: &Change) -> std::result::Result<Resource, FieldError> {
    let mut document = serde_json::to_value(old).expect("a resource has string keys only");
    match change {
        Change::Merge(patch) => json_patch::merge(&mut document, patch),
        Change::Operations(operations) => {
            for operation in operations {
                // The document is a copy: what fails half way is dropped.
                json_patch::patch_unsafe(&mut document, std::slice::from_ref(operation))
                    .map_err(|error| failed(operation, &error.kind))?;
                let copied = matches!(operation, json_patch::PatchOperation::Copy(_));
                if copied && document.to_string().len() > MAX_VALUE_BYTES {
                    return Err(FieldError::new(
                        operation.path().to_string(),
                        "copies make it larger than any object",
                    ));
                }
            }
        }
    }
    Resource::from_json_in(document, &old.metadata.namespace)
}

fn failed(operation: &json_patch::PatchOperation, kind: &json_patch::PatchErrorKind) -> FieldError {
    use json_patch::PatchErrorKind::{
        CannotMoveInsideItself, InvalidFromPointer, InvalidPointer, TestFailed,
    };
    let reason = match kind {
        TestFailed => "is not what the patch expects: nothing was changed; get the object and look",
        InvalidPointer => "there is nothing at this path: get the object and look",
        InvalidFromPointer => "there is nothing at the path in from: get the object and look",
        CannotMoveInsideItself => "cannot be moved inside itself",
        _ => "the operation cannot be done",
    };
    FieldError::new(operation.path().to_string(), reason)
}
