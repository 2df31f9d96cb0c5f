//! Manifests: objects that read are written back as themselves, in YAML and as stored; a mistake in one document
//! hides no other.

use syncer_common::apis::Resource;
use syncer_common::manifests::{DocumentError, parse_manifest, to_yaml};
use syncer_common::validate;

use super::{ensure, refusal, told};
use crate::Outcome;

const GOOD: &str = "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: fuzz}\nspec: {order: 7}\n";

pub fn check(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    let read = parse_manifest(&text);
    ensure!(parse_manifest(&text) == read, "the same text gives the same objects: {read:?}");
    let mut outcomes = Vec::new();
    for object in &read {
        outcomes.push(match object {
            Ok(resource) => good(resource)?,
            Err(error) => bad(error)?,
        });
    }
    let good = parse_manifest(GOOD);
    let before = parse_manifest(&format!("{GOOD}---\n{text}"));
    ensure!(before.first() == good.first(), "an object before is read: {before:?}");
    let after = parse_manifest(&format!("{text}\n---\n{GOOD}"));
    ensure!(after.last() == good.first(), "an object after is read: {after:?}");
    ensure!(after.len() == read.len() + 1, "an object after changes nothing: {after:?}, {read:?}");
    Ok(outcomes.join("\n"))
}

fn good(resource: &Resource) -> Outcome {
    let yaml = to_yaml(resource);
    let again = parse_manifest(&yaml);
    ensure!(
        again.as_slice() == [Ok(resource.clone())],
        "an object survives YAML: {resource:?}, {again:?}\n{yaml}"
    );
    let mut outcome = resource.kind.clone();
    let errors = validate::resource(resource);
    for error in &errors {
        outcome += &told(error)?;
    }
    match resource.key_path() {
        Err(error) => outcome += &told(&error)?,
        // Nobody writes what is not valid.
        Ok(_) if !errors.is_empty() => {}
        Ok(path) => {
            let stored = resource.to_stored();
            let found = Resource::from_stored(&path, &stored)
                .map_err(|error| format!("what is stored can be read: {path:?}, {error}, {resource:?}"))?;
            ensure!(found.kind == resource.kind, "the kind is kept: {found:?}, {resource:?}");
            let again = found.to_stored();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            ensure!(
                again == stored,
                "what is stored stays as it is: {path:?}, {}, {}",
                text(&stored),
                text(&again)
            );
        }
    }
    Ok(outcome)
}

fn bad(error: &DocumentError) -> Outcome {
    ensure!(error.document > 0, "an error names its document: {error:?}");
    ensure!(!error.field.is_empty() && !error.reason.is_empty(), "an error says where and why: {error:?}");
    Ok(refusal(&error.field, &error.reason))
}
