//! `label`: sets and removes labels of one stored object.

use std::cell::RefCell;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use syncer_common::apis::{FieldError, Resource};
use syncer_common::backend::Datastore;

use crate::{get, write};

/// Longer names are none in a selector either.
const MAX_NAME: usize = 512;
const MAX_VALUE: usize = 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Labels that are not there yet.
    Set,
    /// These, too, if they are there with another value.
    Overwrite,
    Remove,
}

#[derive(Clone, Copy)]
enum Done {
    Set,
    Updated,
    Removed,
}

pub async fn run(
    store: &dyn Datastore,
    kind: &str,
    name: &str,
    namespace: &str,
    labels: &[String],
    mode: Mode,
) -> Result<String> {
    let api_kind = get::kind(kind)?;
    let wanted = labels.iter().map(|label| parse(label, mode)).collect::<Result<Vec<_>>>()?;
    let outcome = RefCell::new(Vec::new());
    let labelled = |old: &Resource| {
        let mut new = old.clone();
        *outcome.borrow_mut() = change(&mut new, &wanted, mode)?;
        Ok(new)
    };
    write::edit(store, api_kind, name, namespace, &labelled)
        .await
        .with_context(|| format!("failed to label {kind} {name}"))?;
    let mut text = String::new();
    for ((key, _), done) in wanted.iter().zip(outcome.take()) {
        match done {
            Done::Set => writeln!(text, "Successfully set label {key} on {kind} {name}")?,
            Done::Updated => writeln!(text, "Successfully updated label {key} on {kind} {name}")?,
            Done::Removed => writeln!(text, "Successfully removed label {key} from {kind} {name}")?,
        }
    }
    Ok(text)
}

/// All of them or none.
fn change(
    resource: &mut Resource,
    wanted: &[(&str, &str)],
    mode: Mode,
) -> std::result::Result<Vec<Done>, FieldError> {
    let labels = &mut resource.metadata.labels;
    let mut done = Vec::new();
    for (key, value) in wanted {
        let field = || format!("metadata.labels[{key}]");
        let before = match mode {
            Mode::Remove => labels.remove(*key),
            Mode::Set | Mode::Overwrite => labels.insert((*key).to_owned(), (*value).to_owned()),
        };
        done.push(match (mode, before) {
            (Mode::Remove, Some(_)) => Done::Removed,
            (Mode::Remove, None) => {
                return Err(FieldError::new(field(), "there is no such label to remove"));
            }
            (Mode::Set, Some(before)) if before != *value => {
                let reason =
                    format!("is already present as {before:?}: use --overwrite to set another value");
                return Err(FieldError::new(field(), reason));
            }
            (_, Some(_)) => Done::Updated,
            (_, None) => Done::Set,
        });
    }
    Ok(done)
}

/// `key=value`, or a key alone when it is to be removed.
fn parse(label: &str, mode: Mode) -> Result<(&str, &str)> {
    let (key, value) = match (label.split_once('='), mode) {
        (Some((key, _)), Mode::Remove) => {
            bail!("invalid label {label}: to remove it, give its key alone: {key}")
        }
        (None, Mode::Remove) => (label, ""),
        (Some(pair), _) => pair,
        (None, _) => bail!("invalid label {label}: write key=value, or use --remove"),
    };
    let in_key = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
    if key.is_empty() || key.len() > MAX_NAME || !key.chars().all(in_key) {
        bail!("invalid label {label}: the key must be letters, digits and _./- only, at most {MAX_NAME}");
    }
    let in_value = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let ends = |c: char| c.is_ascii_alphanumeric();
    if value.len() > MAX_VALUE
        || !value.chars().all(in_value)
        || !(value.is_empty() || value.starts_with(ends) && value.ends_with(ends))
    {
        bail!(
            "invalid label {label}: the value must be letters, digits and _.- only, begin and end with a letter or \
             digit, and have at most {MAX_VALUE} characters"
        );
    }
    Ok((key, value))
}
