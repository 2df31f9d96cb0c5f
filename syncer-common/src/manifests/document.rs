//! Documents of a text, cut at the markers before anything is parsed: a mistake in one cannot hide the
//! next.

use serde_json::Value;

use super::content;
use crate::apis::FieldError;

/// One document of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// Counted from 1.
    pub number: usize,
    /// Where its content begins, after markers, comments and blank lines. Counted from 1.
    pub line: usize,
    pub text: &'a str,
    /// Where its text begins.
    first_line: usize,
}

/// A line that ends a document and begins the next.
fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line == "..." || is_marker(line) && line.len() == 3
}

/// Cuts a text at its `---` lines. Documents with nothing but blanks and comments are left out, but
/// counted only if something comes before them.
pub fn split_documents(text: &str) -> Vec<Document<'_>> {
    let mut documents: Vec<Document<'_>> = Vec::new();
    let mut push = |piece: std::ops::Range<usize>, first_line: usize| {
        let text = &text[piece];
        // What stands behind a marker is content, unless it is a comment.
        let content = |line: &str| {
            let line = if is_marker(line) { &line[3..] } else { line };
            !is_blank(line)
        };
        if let Some(index) = text.lines().position(content) {
            documents.push(Document {
                number: documents.len() + 1,
                line: first_line + index,
                text,
                first_line,
            });
        }
    };
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line) && offset > start {
            push(start..offset, start_line);
            (start, start_line) = (offset, index + 1);
        }
        offset += line.len();
    }
    push(start..text.len(), start_line);
    documents
}

impl Document<'_> {
    /// Its content; nothing when it is `null`. A mistake comes with its line.
    pub(super) fn value(&self) -> Result<Option<Value>, (FieldError, usize)> {
        match content::value(self.text.trim_start_matches('\u{feff}')) {
            Ok(value) => Ok((!value.is_null()).then_some(value)),
            Err((error, line)) => {
                let reason = content::absolute_lines(&error.reason, self.first_line);
                let line = line.map_or(self.line, |line| self.first_line + line - 1);
                let field = if error.field.is_empty() { "the document".to_owned() } else { error.field };
                Err((FieldError::new(field, reason), line))
            }
        }
    }
}
