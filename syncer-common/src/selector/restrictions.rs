//! What a selector says for certain about single labels, so that an index can look up candidates.
//!
//! A restriction is necessary, never sufficient: whatever matches the selector satisfies all of them.

use std::collections::{BTreeMap, BTreeSet};

use super::expression::{Expression, Operator};

/// What must hold of one label for the selector to match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelRestriction {
    pub must_be_present: bool,
    pub must_be_absent: bool,
    /// The value is one of these; an empty set means that nothing can match.
    pub one_of: Option<BTreeSet<String>>,
}

impl LabelRestriction {
    fn present() -> Self {
        LabelRestriction { must_be_present: true, ..Self::default() }
    }

    fn says_nothing(&self) -> bool {
        !self.must_be_present && !self.must_be_absent && self.one_of.is_none()
    }
}

pub(super) type Restrictions = BTreeMap<String, LabelRestriction>;

pub(super) fn restrictions(expression: &Expression) -> Restrictions {
    match expression {
        Expression::All | Expression::Global | Expression::NotIn { .. } => Restrictions::new(),
        Expression::Has(label) => one(label, LabelRestriction::present()),
        Expression::Compare { operator: Operator::NotEqual, .. } => Restrictions::new(),
        Expression::Compare { label, operator, value } => {
            let one_of = (*operator == Operator::Equal).then(|| BTreeSet::from([value.clone()]));
            one(label, LabelRestriction { one_of, ..LabelRestriction::present() })
        }
        Expression::In { label, values } => {
            // The reference leaves an empty list unrestricted; necessary conditions may be weaker.
            let one_of = (!values.is_empty()).then(|| values.iter().cloned().collect());
            one(label, LabelRestriction { one_of, ..LabelRestriction::present() })
        }
        Expression::Not(inner) => match &**inner {
            Expression::Has(label) => {
                one(label, LabelRestriction { must_be_absent: true, ..Default::default() })
            }
            _ => Restrictions::new(),
        },
        Expression::And(members) => members.iter().map(restrictions).fold(Restrictions::new(), both),
        Expression::Or(members) => members.iter().map(restrictions).reduce(either).unwrap_or_default(),
    }
}

fn one(label: &str, restriction: LabelRestriction) -> Restrictions {
    Restrictions::from([(label.to_owned(), restriction)])
}

fn both(mut merged: Restrictions, other: Restrictions) -> Restrictions {
    for (label, restriction) in other {
        let entry = merged.entry(label).or_default();
        entry.must_be_present |= restriction.must_be_present;
        entry.must_be_absent |= restriction.must_be_absent;
        entry.one_of = match (entry.one_of.take(), restriction.one_of) {
            (Some(left), Some(right)) => Some(left.intersection(&right).cloned().collect()),
            (left, right) => left.or(right),
        };
    }
    merged
}

/// Only what every branch says survives.
fn either(mut merged: Restrictions, mut other: Restrictions) -> Restrictions {
    merged.retain(|label, entry| {
        let Some(restriction) = other.remove(label) else { return false };
        entry.must_be_present &= restriction.must_be_present;
        entry.must_be_absent &= restriction.must_be_absent;
        entry.one_of = match (entry.one_of.take(), restriction.one_of) {
            (Some(left), Some(right)) => Some(left.into_iter().chain(right).collect()),
            _ => None,
        };
        !entry.says_nothing()
    });
    merged
}
