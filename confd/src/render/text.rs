//! Text that grows by lines.

use std::fmt::Write;

#[derive(Default)]
pub struct Text(pub String);

impl Text {
    pub fn line(&mut self, line: impl std::fmt::Display) {
        push(&mut self.0, format_args!("{line}\n"));
    }
}

pub fn push(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more).expect("writing to a string cannot fail");
}

/// Text from the datastore inside a comment: it must not end the line.
pub fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
