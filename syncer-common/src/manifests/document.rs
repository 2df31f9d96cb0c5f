//! Documents of a text, cut at the markers before anything is parsed: a mistake in one cannot hide the
//! next.

use serde_json::Value;

use super::to_json;
use crate::apis::FieldError;

/// One document of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// Counted from 1.
    pub number: usize,
    pub text: &'a str,
}

/// A line that ends a document and begins the next.
fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Cuts a text at its `---` lines. Documents with nothing but blanks and comments are left out, but
/// counted only if something comes before them.
pub fn split_documents(text: &str) -> Vec<Document<'_>> {
    let mut documents: Vec<Document<'_>> = Vec::new();
    let mut start = 0;
    let mut offset = 0;
    let mut push = |piece: &'_ str, range: std::ops::Range<usize>| {
        let blank = piece.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || is_marker(line) || line == "..."
        });
        if !blank {
            documents.push(Document { number: documents.len() + 1, text: &text[range] });
        }
    };
    for line in text.split_inclusive('\n') {
        if is_marker(line) && offset > start {
            push(&text[start..offset], start..offset);
            start = offset;
        }
        offset += line.len();
    }
    push(&text[start..], start..text.len());
    documents
}

impl Document<'_> {
    /// Its content; nothing when it is `null`.
    pub(super) fn value(&self) -> Result<Option<Value>, FieldError> {
        let text = self.text.trim_start_matches('\u{feff}');
        let value = if text.trim_start().starts_with('{')
            && let Ok(value) = serde_json::from_str(text)
        {
            value
        } else {
            let value = serde_yaml_ng::from_str::<serde_yaml_ng::Value>(text)
                .map_err(|error| FieldError::new("the document", error.to_string()))?;
            to_json(value, "")?
        };
        Ok((!value.is_null()).then_some(value))
    }
}
