//! Conversion of Kubernetes' objects against the shared vectors: key, value and revision of every case.
//!
//! Where the original lets something through that it cannot read, the expectation is corrected; such cases are in
//! `CORRECTED`, with the reason.

use std::path::PathBuf;

use serde_json::{Value, json};
use syncer_common::apis::FieldError;
use syncer_common::kubernetes::{self, ApiResource, Options, Read};

/// (case, JSON pointer below the value, what is expected there instead, why)
const CORRECTED: [(&str, &str, &str, &str); 1] = [(
    "networkpolicy-046",
    "/spec/ingress",
    "null",
    "a peer whose CIDR does not read is left out; upstream it is everybody",
)];

/// Cases that upstream calls conversion errors and that we know to be none of ours: the object takes no part, so
/// whatever was there is deleted.
fn takes_no_part(case: &Value) -> bool {
    case["is_valid_wep"] == false
}

fn vectors() -> Option<Value> {
    let folder = std::env::var_os("BULRUSH_CONFORMANCE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance"),
        PathBuf::from,
    );
    let file = folder.join("k8s_conversion.json");
    match std::fs::read(&file) {
        Ok(text) => Some(serde_json::from_slice(&text).expect("vectors are JSON")),
        Err(error) if std::env::var("BULRUSH_REQUIRE").is_ok_and(|value| value == "1") => {
            panic!("{}: {error}", file.display())
        }
        Err(_) => {
            println!("SKIPPED: no conformance folder");
            None
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn options(case: &Value) -> Options {
    Options { use_pod_cidr: case["use_pod_cidr"] == true, ..Options::default() }
}

/// The watched resource that a type of cases is about.
fn resource(case_type: &str) -> Option<ApiResource> {
    let plural = match case_type {
        "pod" => "pods",
        "namespace" => "namespaces",
        "serviceaccount" => "serviceaccounts",
        "node" => "nodes",
        "networkpolicy" => "networkpolicies",
        "clusternetworkpolicy" => "clusternetworkpolicies",
        _ => return None,
    };
    let ours =
        |resource: &ApiResource| resource.plural == plural && !resource.group.ends_with("projectcalico.org");
    kubernetes::watched(&Options::default()).into_iter().find(ours)
}

/// Upstream joins the revisions of the two halves of a profile; here each half has its own history.
fn revision(case_type: &str, read: &Read) -> String {
    match case_type {
        "namespace" => format!("{}/", read.resource_version),
        "serviceaccount" => format!("/{}", read.resource_version),
        _ => read.resource_version.clone(),
    }
}

/// Without what says nothing: absent, null and empty are the same. Numbers compare by value.
fn comparable(value: &Value) -> Value {
    let says = |value: &Value| !(value.is_null() || value.as_array().is_some_and(Vec::is_empty));
    match value {
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| (name.clone(), comparable(value)))
            .filter(|(_, value)| says(value))
            .collect(),
        Value::Array(items) => items.iter().map(comparable).collect(),
        Value::Number(number) => json!(number.as_f64()),
        other => other.clone(),
    }
}

/// The expected value as the datastore holds it: the revision is beside it, corrections are made.
fn expected_value(case: &Value) -> Value {
    let mut value = case["output"]["value"].clone();
    if let Some(revision) = value.pointer_mut("/metadata/resourceVersion").map(Value::take) {
        assert_eq!(revision, case["output"]["revision"], "{}", case["id"]);
    }
    for (id, pointer, instead, _) in CORRECTED {
        if case["id"] == id {
            *value.pointer_mut(pointer).expect("the correction has its place") =
                serde_json::from_str(instead).expect("corrections are JSON");
        }
    }
    comparable(&value)
}

fn stored(read: &Read) -> Value {
    read.value.as_ref().map_or(Value::Null, |value| serde_json::from_slice(value).expect("values are JSON"))
}

fn check(case: &Value, resource: &ApiResource) -> Result<(), String> {
    let options = options(case);
    let object = case["input"].to_string();
    let result: Result<Read, FieldError> = kubernetes::read(resource, &options, object.as_bytes());
    let output = &case["output"];
    let read = match result {
        Err(error) if output.is_null() => {
            let named = !error.field.is_empty() && !error.reason.is_empty();
            return if named { Ok(()) } else { Err(format!("says little: {error}")) };
        }
        Err(error) => return Err(format!("does not read: {error}")),
        Ok(read) if output.is_null() && takes_no_part(case) && read.value.is_none() => return Ok(()),
        Ok(read) if output.is_null() => return Err(format!("an error is expected, not {read:?}")),
        Ok(read) => read,
    };
    if read.path != text(&output["key"]["path"]) {
        return Err(format!("path {}", read.path));
    }
    if kubernetes::path(resource, &options, object.as_bytes()).as_deref() != Some(&read.path) {
        return Err("another path for deletion".to_owned());
    }
    if revision(text(&case["type"]), &read) != text(&output["revision"]) {
        return Err(format!("revision {}", read.resource_version));
    }
    let (expected, actual) = (expected_value(case), comparable(&stored(&read)));
    if expected != actual {
        return Err(format!("expected {expected:#}\nactual {actual:#}\n{:?}", read.findings));
    }
    if case["error"] == true && read.findings.is_empty() {
        return Err("left something out and said nothing".to_owned());
    }
    // Whatever an agent would get from it, the path leads back to the object.
    let located = kubernetes::locate(&read.path, &options).ok_or("the path leads nowhere")?;
    let name = text(&case["input"]["metadata"]["name"]);
    if (&located.resource, located.name.as_str()) != (resource, name) {
        return Err(format!("the path leads to {located:?}"));
    }
    Ok(())
}

#[test]
fn objects_agree_with_the_vectors() {
    let Some(vectors) = vectors() else { return };
    let cases = vectors["cases"].as_array().expect("a list of cases");
    let mut compared = std::collections::BTreeMap::<&str, usize>::new();
    let mut failures = Vec::new();
    for case in cases {
        let case_type = text(&case["type"]);
        let Some(resource) = resource(case_type) else { continue };
        *compared.entry(case_type).or_default() += 1;
        if let Err(reason) = check(case, &resource) {
            failures.push(format!("{}: {reason}", text(&case["id"])));
        }
    }
    println!("compared {compared:?}");
    for (id, .., why) in CORRECTED {
        assert!(cases.iter().any(|case| case["id"] == id), "{id} is no case any more");
        println!("corrected {id}: {why}");
    }
    assert_eq!(compared.len(), 6, "{compared:?}");
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

/// Names of host ends of interfaces are what the CNI plugin makes them, whatever becomes of the pod.
#[test]
fn interfaces_have_the_plugins_names() {
    let Some(vectors) = vectors() else { return };
    let mut compared = 0;
    for case in vectors["cases"].as_array().expect("a list of cases") {
        let Some(veth) = case["veth_name"].as_str() else { continue };
        let metadata = &case["input"]["metadata"];
        let name = kubernetes::interface_name("cali", text(&metadata["namespace"]), text(&metadata["name"]));
        assert_eq!(name, veth, "{}", case["id"]);
        compared += 1;
    }
    assert!(compared > 0);
}
