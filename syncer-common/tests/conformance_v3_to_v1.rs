//! Conversion of v3 objects against the shared vectors, as far as our messages carry what they say.
//!
//! The bare conversion has to agree in every case, with the corrections of `HTTP`. What agents
//! get has to agree as well, selectors in canonical form, except where `REFUSED` says by id that we refuse what
//! the original lets pass; there the object must be refused, whole and with a reason. `docs/differences.md`
//! lists the same ids. Fields that no agent reads are not in our messages and are left out of the comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Value as Json, json};
use syncer_common::kubernetes::{self, Options, Read};
use syncer_common::model::{DeletionReason, Key, Kind, ResourceKind, Update, calico_json, carried};
use syncer_common::processors::{Converted, Processors};
use syncer_common::selector::normalise;

fn vectors() -> Option<Json> {
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

fn cases<'a>(vectors: &'a Json, kind: &str) -> impl Iterator<Item = &'a Json> {
    vectors["cases"].as_array().expect("a list of cases").iter().filter(move |case| case["type"] == kind)
}

/// Rules that match inside HTTP: the original hands them to an agent that does not look at the requests, so that
/// an allow rule allows them all. The corrected expectation is a policy without the rule.
const HTTP: &[&str] = &["rule-001"];

/// Objects of the API server whose entries are others than the original's, and why.
const OBJECTS: [(&str, &str); 3] = [
    ("networkpolicy-046", "a peer whose CIDR does not read is left out; to the original it is everybody"),
    ("node-011", "what is no WireGuard key is left out and reported"),
    (
        "clusternetworkpolicy-011",
        "a port's name made of digits is a port, as to whoever reads the original's entry",
    ),
];

/// What agents do not get though the original's converters let it pass, by reason.
const REFUSED: &[(&str, &[&str])] = &[
    (
        "an ICMP type without protocol ICMP: no kernel takes such a rule, and with it the whole table",
        &[
            "v3-GlobalNetworkPolicy-003",
            "v3-GlobalNetworkPolicy-006",
            "v3-GlobalNetworkPolicy-008",
            "v3-GlobalNetworkPolicy-009",
            "v3-GlobalNetworkPolicy-010",
            "v3-GlobalNetworkPolicy-012",
            "v3-NetworkPolicy-005",
            "v3-NetworkPolicy-006",
            "v3-NetworkPolicy-008",
            "v3-NetworkPolicy-023",
            "v3-Profile-001",
        ],
    ),
    (
        "a selector that does not read: without it the policy would apply to more than it says",
        &["v3-GlobalNetworkPolicy-004", "v3-GlobalNetworkPolicy-019", "v3-NetworkPolicy-007"],
    ),
    ("an endpoint without an interface", &["v3-WorkloadEndpoint-013"]),
];

fn text(value: &Json) -> &str {
    value.as_str().unwrap_or_default()
}

fn path(kind: &str, namespace: &str, name: &str) -> String {
    let plural = ResourceKind::by_kind(kind).expect("a stored kind").plural;
    let middle = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    format!("/calico/resources/v3/projectcalico.org/{plural}/{middle}{name}")
}

/// What each key has become, in the order of the keys.
type Outcome = BTreeMap<String, Option<Json>>;

fn expected(step: &Json) -> Outcome {
    let mut outcome = Outcome::new();
    for output in step["output"].as_array().into_iter().flatten() {
        let path = text(&output["key"]["path"]);
        let Some(key) = Key::parse(path) else { panic!("{path} does not parse") };
        if Kind::of(&key).is_none() {
            continue;
        }
        let mut value = Some(&output["value"]).filter(|value| !value.is_null()).map(carried);
        if matches!(key, Key::Resource(_)) {
            value = value.map(|_| json!("as it is"));
        }
        if path.ends_with("/KubeNodePortRanges") {
            // The text that the original writes is one that its own reader rejects.
            value = Some(json!("30000:32767,40000"));
        }
        outcome.insert(path.to_owned(), value);
    }
    outcome
}

fn actual(updates: &[Update]) -> Outcome {
    let mut outcome = Outcome::new();
    for update in updates {
        // The vectors are of felix's stream: what the other agent gets from pod CIDRs is not in them.
        if matches!(update.key, Key::BlockAffinity(_)) {
            continue;
        }
        let path = update.key.path().expect("keys of updates have paths");
        let value = update.live().map(|value| match &update.key {
            Key::Resource(_) => json!("as it is"),
            _ => carried(&calico_json(value).expect("vectors have such values")),
        });
        outcome.insert(path, value);
    }
    outcome
}

/// Feeds the steps of a case, and hands out each with what came of it.
fn replay(case: &Json, processors: Processors, mut seen: impl FnMut(usize, &Json, Converted)) {
    let mut processors = processors.use_pod_cidr(case["use_pod_cidr"] == true);
    for (number, step) in case["steps"].as_array().into_iter().flatten().enumerate() {
        if step["resync"] == true {
            processors.clear();
            continue;
        }
        let path = path(text(&case["kind"]), text(&step["namespace"]), text(&step["name"]));
        let converted = if step["value"].is_null() {
            processors.delete(&path)
        } else {
            processors.put(&path, step["value"].to_string().as_bytes())
        };
        seen(number, step, converted);
    }
}

/// Both sides of a comparison. Some vectors do not name the keys that are deleted.
fn outcomes(step: &Json, converted: &Converted) -> (Outcome, Outcome) {
    let (mut expected, mut actual) = (expected(step), actual(&converted.updates));
    if step.get("deleted_key_count").is_some() {
        expected.retain(|_, value| value.is_some());
        actual.retain(|_, value| value.is_some());
    }
    (expected, actual)
}

#[test]
fn conversion_agrees_with_the_vectors() {
    let Some(vectors) = vectors() else { return };
    let mut compared = 0;
    let mut failures = Vec::new();
    for case in cases(&vectors, "v3_to_v1") {
        compared += 1;
        replay(case, Processors::verbatim(), |number, step, converted| {
            let (expected, actual) = outcomes(step, &converted);
            if expected != actual {
                let shown = format!("expected {expected:#?}\nactual {actual:#?}\n{:?}", converted.error);
                failures.push(format!("{} step {number}: {shown}", text(&case["id"])));
            }
            // We report more than the original does, never less. It calls the deletion of something
            // unparseable an error; for us there is nothing to delete.
            if step["error"] == true && converted.error.is_none() && !step["value"].is_null() {
                failures.push(format!("{} step {number}: an error is expected", text(&case["id"])));
            }
        });
    }
    println!("{compared} of {compared} cases compared");
    assert!(compared > 0, "the vectors hold no case");
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

/// Selectors as agents get them.
fn canonical(value: &Json) -> Json {
    match value {
        Json::Object(members) => members
            .iter()
            .map(|(name, value)| match value.as_str() {
                Some(text) if name.ends_with("selector") => (name.clone(), json!(normalise(text))),
                _ => (name.clone(), canonical(value)),
            })
            .collect(),
        Json::Array(items) => items.iter().map(canonical).collect(),
        other => other.clone(),
    }
}

#[test]
fn agents_get_what_the_vectors_say_or_nothing() {
    let Some(vectors) = vectors() else { return };
    let listed: BTreeMap<&str, &str> =
        REFUSED.iter().flat_map(|(why, ids)| ids.iter().map(move |id| (*id, *why))).collect();
    let (mut equal, mut refused, mut failures) = (0, BTreeSet::new(), Vec::new());
    for case in cases(&vectors, "v3_to_v1") {
        let id = text(&case["id"]);
        replay(case, Processors::new(), |number, step, converted| {
            let (mut expected, actual) = outcomes(step, &converted);
            let policy = |path: &str| path.starts_with("/calico/v1/policy/") && !path.contains("/profile/");
            for (path, value) in &mut expected {
                if let Some(value) = value {
                    // A policy that selects everything says so.
                    if policy(path) && !path.contains("/tier/") && value.get("selector").is_none() {
                        value["selector"] = json!("");
                    }
                    // Defaults that writers of one datastore fill in and those of another do not.
                    if path.contains("/pool/") && value.get("allowed_uses").is_none() {
                        value["allowed_uses"] = json!(["Workload", "Tunnel"]);
                    }
                    if path.starts_with("/calico/v1/policy/Staged") && value.get("staged_action").is_none() {
                        value["staged_action"] = json!("Set");
                    }
                    *value = canonical(value);
                }
            }
            if expected == actual {
                equal += 1;
                return;
            }
            // What differs is refused, with a reason; the labels of a profile do not go with its rules.
            let refusal = |path: &String| {
                converted.updates.iter().any(|update| {
                    update.key.path().as_ref() == Ok(path) && update.value == Err(DeletionReason::Invalid)
                })
            };
            let mut differing =
                expected.keys().chain(actual.keys()).filter(|path| expected.get(*path) != actual.get(*path));
            let whole = differing.all(refusal) && converted.error.is_some();
            if whole && listed.contains_key(id) {
                refused.insert(id.to_owned());
            } else {
                let shown = format!("expected {expected:#?}\nactual {actual:#?}\n{:?}", converted.error);
                failures.push(format!("{id} step {number}: {shown}"));
            }
        });
    }
    for (id, why) in &listed {
        if !refused.contains(*id) {
            failures.push(format!("{id} is no longer refused ({why}): take it off the list"));
        }
    }
    println!("{equal} steps are equal; cases refused on purpose: {refused:?}");
    assert!(equal > 0, "the vectors hold no case");
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn rules_agree_with_the_vectors() {
    let Some(vectors) = vectors() else { return };
    let (mut compared, mut failures) = (0, Vec::new());
    for case in cases(&vectors, "rule_v3_to_v1") {
        compared += 1;
        let namespace = text(&case["namespace"]);
        let kind = if namespace.is_empty() { "GlobalNetworkPolicy" } else { "NetworkPolicy" };
        let policy = json!({ "kind": kind, "spec": { "ingress": [case["input"]] } });
        let converted =
            Processors::verbatim().put(&path(kind, namespace, "p"), policy.to_string().as_bytes());
        let Some(policy) = converted.updates.first().and_then(Update::live).and_then(calico_json) else {
            failures.push(format!("{}: no policy", text(&case["id"])));
            continue;
        };
        let actual = carried(&policy["inbound_rules"]);
        let corrected = HTTP.contains(&text(&case["id"]));
        let expected = if corrected { json!([]) } else { carried(&json!([case["output"]])) };
        if actual != expected {
            failures.push(format!("{}: expected {expected:#}\nactual {actual:#}", text(&case["id"])));
        }
        if corrected && converted.error.is_none() {
            failures.push(format!("{}: the rule is left out without a word", text(&case["id"])));
        }
    }
    println!("{compared} of {compared} rules compared, {} of them corrected", HTTP.len());
    assert!(compared > 0, "the vectors hold no rule");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Makes the correction of `OBJECTS` in an expected value.
fn correct(id: &str, value: &mut Json) {
    match (id, value) {
        ("networkpolicy-046", Json::Object(policy)) => {
            policy.remove("inbound_rules").expect("the rule is in the vector");
        }
        ("node-011", Json::Object(wireguard)) => {
            wireguard.remove("publicKey").expect("the key is in the vector");
        }
        ("clusternetworkpolicy-011", Json::Object(policy)) => {
            for list in ["inbound_rules", "outbound_rules"] {
                for rule in policy[list].as_array_mut().expect("a list of rules") {
                    for port in rule["dst_ports"].as_array_mut().expect("every rule has ports") {
                        if *port == "8080" {
                            *port = json!(8080.0);
                        }
                    }
                }
            }
        }
        // The other entries of the object.
        _ => {}
    }
}

/// Objects of the API server become the entries that the vectors list; `conformance_kubernetes` compares what is
/// between the two.
#[test]
fn kubernetes_objects_become_the_listed_entries() {
    let Some(vectors) = vectors() else { return };
    let (mut compared, mut corrected, mut failures) = (0, 0, Vec::new());
    for resource in kubernetes::watched(&Options::default()) {
        let case_type = resource.kind.to_ascii_lowercase();
        if resource.group.ends_with("projectcalico.org") {
            continue;
        }
        for case in cases(&vectors, &case_type).filter(|case| case["v1"].is_array()) {
            let use_pod_cidr = case["use_pod_cidr"] == true;
            let options = Options { use_pod_cidr, ..Options::default() };
            let read = kubernetes::read(&resource, &options, case["input"].to_string().as_bytes());
            let Ok(Read { path, value, .. }) = read else {
                failures.push(format!("{}: does not read: {read:?}", text(&case["id"])));
                continue;
            };
            let mut processors = Processors::verbatim().use_pod_cidr(use_pod_cidr);
            let converted = match value {
                Some(value) => processors.put(&path, &value),
                None => processors.delete(&path),
            };
            let (mut expected, actual) = outcomes(&json!({ "output": case["v1"] }), &converted);
            if OBJECTS.iter().any(|(id, _)| case["id"] == *id) {
                corrected += 1;
                expected.values_mut().flatten().for_each(|value| correct(text(&case["id"]), value));
            }
            // What a pod is made of and what its annotations say travels nowhere.
            for value in expected.values_mut().flatten().filter_map(Json::as_object_mut) {
                value.retain(|name, _| !matches!(name.as_str(), "generate_name" | "annotations"));
            }
            compared += 1;
            if expected != actual {
                let shown = format!("expected {expected:#?}\nactual {actual:#?}\n{:?}", converted.error);
                failures.push(format!("{}: {shown}", text(&case["id"])));
            }
        }
    }
    println!("{compared} objects compared, {corrected} of them corrected");
    assert!(compared > 0, "the vectors hold no object");
    assert_eq!(corrected, OBJECTS.len());
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}
