//! Kubernetes' label selectors in Calico's selector language.
//!
//! A selector that cannot be said exactly is an error: leaving a requirement out would select more. Calico
//! itself leaves out unknown operators.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::object::{error, or_default};
use crate::apis::FieldError;

/// What every endpoint that is a pod has.
pub const IS_POD: &str = "projectcalico.org/orchestrator == 'k8s'";
const EVERYTHING: &str = "all()";

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    #[serde(deserialize_with = "or_default")]
    match_labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    match_expressions: Vec<Requirement>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Requirement {
    key: String,
    operator: String,
    #[serde(deserialize_with = "or_default")]
    values: Vec<String>,
}

/// Pods with these labels.
pub fn pods(selector: Option<&LabelSelector>, field: &str) -> Result<String, FieldError> {
    let mut all = vec![IS_POD.to_owned()];
    if let Some(selector) = selector {
        terms(selector, field, &mut all)?;
    }
    Ok(all.join(" && "))
}

/// Namespaces with these labels: `all()` when it asks for none, empty when there is no selector.
pub fn namespaces(selector: Option<&LabelSelector>, field: &str) -> Result<String, FieldError> {
    let Some(selector) = selector else { return Ok(String::new()) };
    let mut all = Vec::new();
    terms(selector, field, &mut all)?;
    Ok(if all.is_empty() { EVERYTHING.to_owned() } else { all.join(" && ") })
}

fn terms(selector: &LabelSelector, field: &str, terms: &mut Vec<String>) -> Result<(), FieldError> {
    for (label, value) in &selector.match_labels {
        let field = || format!("{field}.matchLabels[{label}]");
        check(label, field)?;
        terms.push(format!("{label} == {}", quoted(value, field)?));
    }
    for (index, Requirement { key, operator, values }) in selector.match_expressions.iter().enumerate() {
        let field = |member: &str| format!("{field}.matchExpressions[{index}].{member}");
        check(key, || field("key"))?;
        let set = || {
            // An empty list, which Kubernetes refuses, has always been the empty value.
            let values = if values.is_empty() { &[String::new()] } else { values.as_slice() };
            let quoted: Result<Vec<String>, _> =
                values.iter().map(|value| quoted(value, || field("values"))).collect();
            quoted.map(|values| values.join(", "))
        };
        terms.push(match operator.as_str() {
            "In" => format!("{key} in {{ {} }}", set()?),
            "NotIn" => format!("{key} not in {{ {} }}", set()?),
            "Exists" => format!("has({key})"),
            "DoesNotExist" => format!("! has({key})"),
            other => {
                let known = "In, NotIn, Exists, DoesNotExist";
                return Err(error(field("operator"), format!("{other:?} is none of {known}")));
            }
        });
    }
    Ok(())
}

/// Anything else in the place of a label would change the meaning of the whole text.
fn check(label: &str, field: impl Fn() -> String) -> Result<(), FieldError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_./-".contains(&byte);
    if label.is_empty() || label.len() > 512 || !label.bytes().all(allowed) {
        return Err(error(field(), format!("{label:?} is not the name of a label")));
    }
    Ok(())
}

fn quoted(value: &str, field: impl Fn() -> String) -> Result<String, FieldError> {
    match (value.contains('\''), value.contains('"')) {
        (false, _) => Ok(format!("'{value}'")),
        (true, false) => Ok(format!("\"{value}\"")),
        (true, true) => Err(error(field(), format!("{value:?} has both kinds of quotes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selector::Selector;

    fn read(json: &str) -> LabelSelector {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn requirements_keep_their_order() {
        let selector = read(
            r#"{"matchLabels":{"b":"2","a":"1"},"matchExpressions":[{"key":"t","operator":"In","values":["x","y"]},
                {"key":"u","operator":"NotIn","values":["z"]},{"key":"v","operator":"Exists","values":null},
                {"key":"w","operator":"DoesNotExist"}]}"#,
        );
        let text = "a == '1' && b == '2' && t in { 'x', 'y' } && u not in { 'z' } && has(v) && ! has(w)";
        assert_eq!(namespaces(Some(&selector), "spec").unwrap(), text);
        assert_eq!(pods(Some(&selector), "spec").unwrap(), format!("{IS_POD} && {text}"));
        Selector::parse(text).unwrap();
    }

    #[test]
    fn no_selector_and_an_empty_one_differ_for_namespaces() {
        assert_eq!(namespaces(None, "spec").unwrap(), "");
        assert_eq!(namespaces(Some(&read("{}")), "spec").unwrap(), "all()");
        assert_eq!(pods(None, "spec").unwrap(), pods(Some(&read("{}")), "spec").unwrap());
    }

    #[test]
    fn nothing_is_smuggled_in() {
        let value = read(r#"{"matchLabels":{"a":"x' || has(b) || c == 'y"}}"#);
        let text = namespaces(Some(&value), "spec").unwrap();
        assert_eq!(Selector::parse(&text).unwrap().canonical(), r#"a == "x' || has(b) || c == 'y""#);
        for bad in [
            r#"{"matchLabels":{"a":"'\""}}"#,
            r#"{"matchLabels":{"a == 'x' || b":"y"}}"#,
            r#"{"matchExpressions":[{"key":"a) || has(b","operator":"Exists"}]}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"Gt","values":["1"]}]}"#,
        ] {
            let error = pods(Some(&read(bad)), "spec.podSelector").unwrap_err();
            assert!(error.field.starts_with("spec.podSelector.match"), "{error}");
        }
    }
}
