//! The selector language: which labelled things a rule, a policy or a pool talks about.
//!
//! `Selector` is the parsed form. Parsing is total (an error names the byte offset and the reason) and
//! bounded in depth; everything else cannot fail. The canonical text identifies a selector: equality,
//! ordering and hashing are its own, and `uid` is a digest of it.
//!
//! One wart is kept for the sake of identical ids: `!(!(x))` has the canonical form `!!x`, which reads
//! back as `x`.

mod expression;
mod lexer;
mod parser;
mod restrictions;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha224};

use expression::Expression;
pub use restrictions::LabelRestriction;

/// Why a text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad selector at byte {offset}: {reason}")]
pub struct ParseError {
    pub offset: usize,
    pub reason: String,
}

impl ParseError {
    fn new(offset: usize, reason: impl Into<String>) -> Self {
        ParseError { offset, reason: reason.into() }
    }
}

/// Something with labels.
pub trait Labels {
    fn get(&self, name: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        BTreeMap::get(self, name).map(String::as_str)
    }
}

/// A parsed selector; cloning it copies a pointer.
#[derive(Clone)]
pub struct Selector {
    inner: Arc<Inner>,
}

struct Inner {
    expression: Expression,
    canonical: String,
}

impl Selector {
    /// Parses a selector. Empty text selects everything.
    pub fn parse(text: &str) -> Result<Selector, ParseError> {
        parser::parse(text).map(Selector::from_expression)
    }

    fn from_expression(expression: Expression) -> Selector {
        let canonical = expression.to_string();
        Selector { inner: Arc::new(Inner { expression, canonical }) }
    }

    /// The one spelling that all equivalent spellings (quotes, blanks, order in sets) share.
    pub fn canonical(&self) -> &str {
        &self.inner.canonical
    }

    /// Short unique id: `s:` and a digest of the canonical text.
    pub fn uid(&self) -> String {
        let digest = Sha224::new().chain_update("s:").chain_update(self.canonical()).finalize();
        format!("s:{}", URL_SAFE_NO_PAD.encode(digest))
    }

    pub fn matches(&self, labels: &dyn Labels) -> bool {
        self.inner.expression.matches(labels)
    }

    /// What the labels of anything that matches must look like, label by label.
    pub fn restrictions(&self) -> BTreeMap<String, LabelRestriction> {
        restrictions::restrictions(&self.inner.expression)
    }

    /// The same selector over labels whose names start with `prefix`.
    pub fn prefixed(&self, prefix: &str) -> Selector {
        Selector::from_expression(self.inner.expression.prefixed(prefix))
    }
}

/// The canonical form, or the text itself without surrounding white space when it is not a selector.
pub fn normalise(text: &str) -> String {
    match Selector::parse(text) {
        Ok(selector) => selector.canonical().to_owned(),
        Err(_) => text.trim().to_owned(),
    }
}

impl FromStr for Selector {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Selector::parse(text)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.canonical())
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({})", self.canonical())
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        self.canonical() == other.canonical()
    }
}

impl Eq for Selector {}

impl PartialOrd for Selector {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Selector {
    fn cmp(&self, other: &Self) -> Ordering {
        self.canonical().cmp(other.canonical())
    }
}

impl Hash for Selector {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.canonical().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_offset_and_reason() {
        let error = Selector::parse("a == \"x\" && b ~ \"y\"").unwrap_err();
        assert_eq!(error.offset, 14);
        assert_eq!(error.to_string(), "bad selector at byte 14: unexpected character");
        let error = Selector::parse("a == b").unwrap_err();
        assert_eq!(error.to_string(), "bad selector at byte 5: expected a quoted string, found a label");
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let deep = |depth: usize| format!("{}has(a){}", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(Selector::parse(&deep(parser::MAX_DEPTH)).unwrap().canonical(), "has(a)");
        assert_eq!(Selector::parse(&deep(parser::MAX_DEPTH + 1)).unwrap_err().offset, parser::MAX_DEPTH);
        assert!(Selector::parse(&deep(1_000_000)).is_err());
        assert!(Selector::parse(&format!("{}has(a)", "!".repeat(1_000_001))).is_ok());
    }

    #[test]
    fn deepest_accepted_expression_reads_back() {
        let mut deepest = String::from("has(a)");
        let mut last = None;
        while let Ok(selector) = Selector::parse(&deepest) {
            assert_eq!(Selector::parse(selector.canonical()).unwrap(), selector);
            last = Some(selector);
            deepest = format!("a == \"x\" && b == \"y\" || ({deepest})");
        }
        assert!(last.is_some());
    }

    #[test]
    fn equal_canonical_text_means_equal_selectors() {
        let left = Selector::parse("a in {'y','x'}").unwrap();
        let right = Selector::parse(" a  in {\"x\", \"y\",}").unwrap();
        assert_eq!(left, right);
        assert_eq!(left.uid(), right.uid());
    }
}
