//! Ids of IP sets, against vectors made by the system that we replace.

use std::path::PathBuf;

use felix_calc::ip_set::{IpSetDef, PortProtocol};
use serde_json::Value;
use syncer_common::selector::Selector;

fn vectors() -> Option<Value> {
    let folder = std::env::var_os("BULRUSH_CONFORMANCE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance"),
        PathBuf::from,
    );
    if !folder.is_dir() {
        assert!(std::env::var("BULRUSH_REQUIRE").as_deref() != Ok("1"), "no conformance folder");
        println!("SKIPPED: no conformance folder");
        return None;
    }
    let text = std::fs::read_to_string(folder.join("ipset_ids.json")).expect("the vectors can be read");
    Some(serde_json::from_str(&text).expect("the vectors are JSON"))
}

fn cases<'a>(vectors: &'a Value, name: &str) -> &'a [Value] {
    let cases = vectors[name].as_array().map(Vec::as_slice).unwrap_or_default();
    assert!(!cases.is_empty(), "no {name} in the vectors");
    cases
}

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_else(|| panic!("no {field} in {case}"))
}

fn selector(case: &Value) -> Selector {
    Selector::parse(text(case, "selector")).unwrap_or_else(|error| panic!("{error}: {case}"))
}

#[test]
fn selector_set_ids_are_those_of_the_vectors() {
    let Some(vectors) = vectors() else { return };
    for case in cases(&vectors, "selector_sets") {
        assert_eq!(IpSetDef::selector(selector(case)).id, text(case, "id"), "{case}");
    }
}

#[test]
fn named_port_set_ids_are_those_of_the_vectors() {
    let Some(vectors) = vectors() else { return };
    for case in cases(&vectors, "named_port_sets") {
        let protocol = PortProtocol::named(text(case, "protocol"));
        let def = IpSetDef::named_port(selector(case), protocol, text(case, "named_port"));
        assert_eq!(def.id, text(case, "id"), "{case}");
    }
}

#[test]
fn service_set_ids_are_those_of_the_vectors() {
    let Some(vectors) = vectors() else { return };
    for case in cases(&vectors, "service_sets") {
        let (namespace, name) = text(case, "service").split_once('/').expect("namespace/name");
        let with_ports = case["include_ports"].as_bool().expect("include_ports is a flag");
        assert_eq!(IpSetDef::service(namespace, name, with_ports).id, text(case, "id"), "{case}");
    }
}
