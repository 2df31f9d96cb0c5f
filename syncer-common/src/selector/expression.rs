//! The parsed form of a selector: evaluation, canonical text, renaming of labels.

use std::fmt;

use super::Labels;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    All,
    /// True like `all()`; conversion rewrites it where it has a meaning (namespace selectors).
    Global,
    Has(String),
    Compare {
        label: String,
        operator: Operator,
        value: String,
    },
    /// Values sorted, without duplicates.
    In {
        label: String,
        values: Vec<String>,
    },
    NotIn {
        label: String,
        values: Vec<String>,
    },
    Not(Box<Expression>),
    /// At least two members.
    And(Vec<Expression>),
    /// At least two members.
    Or(Vec<Expression>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Contains,
    StartsWith,
    EndsWith,
}

impl Operator {
    fn text(self) -> &'static str {
        match self {
            Operator::Equal => "==",
            Operator::NotEqual => "!=",
            Operator::Contains => "contains",
            Operator::StartsWith => "starts with",
            Operator::EndsWith => "ends with",
        }
    }

    fn holds(self, actual: Option<&str>, value: &str) -> bool {
        match (self, actual) {
            (Operator::NotEqual, actual) => actual != Some(value),
            (_, None) => false,
            (Operator::Equal, Some(actual)) => actual == value,
            (Operator::Contains, Some(actual)) => actual.contains(value),
            (Operator::StartsWith, Some(actual)) => actual.starts_with(value),
            (Operator::EndsWith, Some(actual)) => actual.ends_with(value),
        }
    }
}

impl Expression {
    pub(super) fn matches(&self, labels: &dyn Labels) -> bool {
        match self {
            Expression::All | Expression::Global => true,
            Expression::Has(label) => labels.get(label).is_some(),
            Expression::Compare { label, operator, value } => operator.holds(labels.get(label), value),
            Expression::In { label, values } => {
                labels.get(label).is_some_and(|actual| holds_value(values, actual))
            }
            Expression::NotIn { label, values } => {
                !labels.get(label).is_some_and(|actual| holds_value(values, actual))
            }
            Expression::Not(inner) => !inner.matches(labels),
            Expression::And(members) => members.iter().all(|member| member.matches(labels)),
            Expression::Or(members) => members.iter().any(|member| member.matches(labels)),
        }
    }

    /// The same expression with `prefix` before every label name.
    pub(super) fn prefixed(&self, prefix: &str) -> Expression {
        let rename = |label: &String| format!("{prefix}{label}");
        let inside = |members: &[Expression]| -> Vec<Expression> {
            members.iter().map(|member| member.prefixed(prefix)).collect()
        };
        match self {
            Expression::All => Expression::All,
            Expression::Global => Expression::Global,
            Expression::Has(label) => Expression::Has(rename(label)),
            Expression::Compare { label, operator, value } => {
                Expression::Compare { label: rename(label), operator: *operator, value: value.clone() }
            }
            Expression::In { label, values } => {
                Expression::In { label: rename(label), values: values.clone() }
            }
            Expression::NotIn { label, values } => {
                Expression::NotIn { label: rename(label), values: values.clone() }
            }
            Expression::Not(inner) => Expression::Not(Box::new(inner.prefixed(prefix))),
            Expression::And(members) => Expression::And(inside(members)),
            Expression::Or(members) => Expression::Or(inside(members)),
        }
    }
}

fn holds_value(sorted: &[String], actual: &str) -> bool {
    sorted.binary_search_by(|value| value.as_str().cmp(actual)).is_ok()
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expression::All => f.write_str("all()"),
            Expression::Global => f.write_str("global()"),
            Expression::Has(label) => write!(f, "has({label})"),
            Expression::Compare { label, operator, value } => {
                write!(f, "{label} {} {}", operator.text(), Quoted(value))
            }
            Expression::In { label, values } => write_set(f, label, "in", values),
            Expression::NotIn { label, values } => write_set(f, label, "not in", values),
            Expression::Not(inner) => write!(f, "!{inner}"),
            Expression::And(members) => write_group(f, members, " && "),
            Expression::Or(members) => write_group(f, members, " || "),
        }
    }
}

/// A string literal. The language has no escapes: a value holds at most one sort of quote.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.contains('"') { '\'' } else { '"' };
        write!(f, "{quote}{}{quote}", self.0)
    }
}

fn write_set(f: &mut fmt::Formatter<'_>, label: &str, operator: &str, values: &[String]) -> fmt::Result {
    write!(f, "{label} {operator} {{")?;
    for (index, value) in values.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        write!(f, "{separator}{}", Quoted(value))?;
    }
    f.write_str("}")
}

fn write_group(f: &mut fmt::Formatter<'_>, members: &[Expression], separator: &str) -> fmt::Result {
    f.write_str("(")?;
    for (index, member) in members.iter().enumerate() {
        if index > 0 {
            f.write_str(separator)?;
        }
        write!(f, "{member}")?;
    }
    f.write_str(")")
}
