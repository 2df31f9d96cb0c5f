//! The selector vectors: validity, canonical form, ids, renaming, restrictions and evaluation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;
use syncer_common::selector::{LabelRestriction, Selector, normalise};

fn vectors(file: &str) -> Option<Value> {
    let folder = std::env::var_os("BULRUSH_CONFORMANCE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance"),
        PathBuf::from,
    );
    match std::fs::read(folder.join(file)) {
        Ok(text) => Some(serde_json::from_slice(&text).expect("vectors are JSON")),
        Err(error) => {
            assert!(
                std::env::var("BULRUSH_REQUIRE").as_deref() != Ok("1"),
                "cannot read {file} in the conformance folder: {error}"
            );
            println!("SKIPPED: no conformance folder");
            None
        }
    }
}

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_else(|| panic!("{}: no {field}", case["id"]))
}

fn expected_restrictions(case: &Value) -> BTreeMap<String, LabelRestriction> {
    let Some(labels) = case["restrictions"].as_object() else { return BTreeMap::new() };
    let read = |restriction: &Value| LabelRestriction {
        must_be_present: restriction["must_be_present"].as_bool().expect("must_be_present is a bool"),
        must_be_absent: restriction["must_be_absent"].as_bool().expect("must_be_absent is a bool"),
        one_of: restriction["one_of"].as_array().map(|values| {
            let value = |v: &Value| v.as_str().expect("one_of holds strings").to_owned();
            values.iter().map(value).collect::<BTreeSet<_>>()
        }),
    };
    labels.iter().map(|(label, restriction)| (label.clone(), read(restriction))).collect()
}

fn check(case: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut compare = |what: &str, got: &str, want: &str| {
        if got != want {
            wrong.push(format!("{what}: got {got:?}, want {want:?}"));
        }
    };
    let input = text(case, "selector");
    let valid = case["valid"].as_bool().expect("valid is a bool");
    let parsed = Selector::parse(input);
    compare("valid", &parsed.is_ok().to_string(), &valid.to_string());
    let normalised = case["normalised"].as_str().or(case["canonical"].as_str()).unwrap_or_default();
    compare("normalised", &normalise(input), normalised);
    let Ok(selector) = parsed else { return wrong };
    if !valid {
        return wrong;
    }
    compare("canonical", selector.canonical(), text(case, "canonical"));
    compare("uid", &selector.uid(), text(case, "uid"));
    compare("prefixed", selector.prefixed("pcns.").canonical(), text(case, "prefixed_pcns"));
    compare(
        "restrictions",
        &format!("{:?}", selector.restrictions()),
        &format!("{:?}", expected_restrictions(case)),
    );
    for sample in case["matches"].as_array().expect("matches is a list") {
        let labels: BTreeMap<String, String> =
            serde_json::from_value(sample["labels"].clone()).expect("labels are a map");
        compare(
            &format!("matches {labels:?}"),
            &selector.matches(&labels).to_string(),
            &sample["expect"].as_bool().expect("expect is a bool").to_string(),
        );
    }
    wrong
}

#[test]
fn selectors_agree_with_the_vectors() {
    let Some(vectors) = vectors("selectors.json") else { return };
    let cases = vectors["cases"].as_array().expect("cases is a list");
    assert!(!cases.is_empty(), "the vectors have no cases");
    let mut failures = Vec::new();
    for case in cases {
        for wrong in check(case) {
            failures.push(format!("{}: {wrong}", case["id"]));
        }
    }
    println!("{} cases, {} disagreements", cases.len(), failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
