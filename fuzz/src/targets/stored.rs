//! Values of the v1 model: their canonical text reads back as itself.

use syncer_common::model::{Key, canonical_value};

use super::{ensure, objects};
use crate::Outcome;

pub fn check(input: &[u8]) -> Outcome {
    let mut outcomes = Vec::new();
    for (path, value) in objects(input) {
        let Some(key) = Key::parse(path) else {
            outcomes.push("!no key".to_owned());
            continue;
        };
        let name = format!("{key:?}").split([' ', '(']).next().unwrap_or_default().to_owned();
        let Some(canonical) = canonical_value(&key, value.unwrap_or_default()) else {
            outcomes.push(format!("!{name}"));
            continue;
        };
        let again = canonical_value(&key, canonical.as_bytes());
        // Of a policy's name one `default.` is taken off, each time.
        let shortened = canonical.contains(r#""name":"default."#);
        ensure!(
            shortened || again.as_ref() == Some(&canonical),
            "canonical text is its own: {canonical}, {again:?}"
        );
        outcomes.push(format!("{name} {}", canonical.matches(':').count().min(20)));
    }
    Ok(outcomes.join("\n"))
}
