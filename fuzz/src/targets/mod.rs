//! The targets, one file each.

pub mod keys;
pub mod kubernetes;
pub mod manifests;
pub mod old;
pub mod selectors;
pub mod stored;
pub mod values;
pub mod wire;

use syncer_common::apis::FieldError;
use syncer_common::model::Key;

use crate::Outcome;

/// Yields the broken property unless the condition holds. What stands before the first colon names it.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
use ensure;

/// A refusal without its details: `!field reason`.
fn refusal(field: &str, reason: &str) -> String {
    let words = |text: &str, most: usize| {
        let plain = text.chars().take_while(|c| *c != '"' && *c != '{');
        plain.filter(|c| c.is_ascii_alphabetic() || matches!(c, '.' | ' ')).take(most).collect::<String>()
    };
    format!("!{} {}", words(field, 40), words(reason, 24))
}

/// Errors say where and why.
fn told(error: &FieldError) -> Outcome {
    ensure!(!error.field.is_empty(), "an error names its field: {error:?}");
    ensure!(!error.reason.is_empty(), "an error has a reason: {error:?}");
    Ok(refusal(&error.field, &error.reason))
}

fn parse_key(path: &str) -> Option<Key> {
    Key::parse(path).or_else(|| Key::parse_block_affinity(path))
}

/// Lines of path, blank, value; without a value the object is deleted. Paths are those that a listing of the
/// datastore can hold.
fn objects(input: &[u8]) -> Vec<(&str, Option<&[u8]>)> {
    let lines = input.split(|byte| *byte == b'\n').take(12);
    lines
        .filter_map(|line| {
            let blank = line.iter().position(|byte| *byte == b' ');
            let path = std::str::from_utf8(&line[..blank.unwrap_or(line.len())]).ok()?;
            let value = blank.map(|blank| &line[blank + 1..]).filter(|value| !value.is_empty());
            path.starts_with("/calico/").then_some((path, value))
        })
        .collect()
}
