//! Reading manifests: every object for itself, whatever its neighbours look like.
#![cfg(any(feature = "manifests", feature = "datastore"))]

use std::fs;

use syncer_common::apis::Resource;
use syncer_common::manifests::{load_updates, parse_manifest, read_path, to_yaml};
use syncer_common::model::{Key, Value};

fn names(text: &str) -> Vec<Result<String, String>> {
    parse_manifest(text)
        .into_iter()
        .map(|result| result.map(|resource| resource.id()).map_err(|error| error.to_string()))
        .collect()
}

const TIER: &str =
    "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: security}\nspec: {order: 100}\n";

#[test]
fn a_broken_document_does_not_hide_the_next() {
    let text = format!("{TIER}---\nkind: [\n---\n{TIER}");
    let names = names(&text);
    assert_eq!(names.len(), 3);
    assert_eq!(names[0], Ok("Tier(security)".into()));
    assert!(names[1].as_ref().unwrap_err().starts_with("document 2: the document: "), "{:?}", names[1]);
    assert_eq!(names[2], Ok("Tier(security)".into()));
}

#[test]
fn typed_lists_hold_items_of_their_kind() {
    let text = "apiVersion: projectcalico.org/v3\nitems:\n- metadata: {name: a}\n  spec: {cidr: 10.0.0.0/16}\n\
                - apiVersion: projectcalico.org/v3\n  kind: IPPool\n  metadata: {creationTimestamp: null, name: b}\n\
                - kind: IPPool\n  metadata: {name: 7}\nkind: IPPoolList\nmetadata: {resourceVersion: \"13426\"}\n";
    let names = names(text);
    assert_eq!(names[..2], [Ok("IPPool(a)".into()), Ok("IPPool(b)".into())]);
    let error = names[2].as_ref().unwrap_err();
    assert!(error.starts_with("document 1, item 3 (IPPool): metadata.name: invalid type"), "{error}");
}

#[test]
fn selectors_that_yaml_takes_for_tags_are_refused_with_a_hint() {
    let text = "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: p}\nspec:\n  nodeSelector: !has(rr)\n";
    let names = names(text);
    let error = names[0].as_ref().unwrap_err();
    assert_eq!(
        error,
        "document 1: spec.nodeSelector: YAML reads !has(rr) as a tag, not as a value: put it in quotes"
    );
}

#[test]
fn unknown_kinds_versions_and_missing_names_are_named() {
    for (text, error) in [
        (
            "kind: Tier\nmetadata: {name: a}",
            "document 1 (Tier a): apiVersion: missing: write projectcalico.org/v3",
        ),
        (
            "apiVersion: projectcalico.org/v3\nkind: Pod\nmetadata: {name: a}",
            "document 1 (Pod a): kind: unknown kind Pod",
        ),
        ("apiVersion: projectcalico.org/v3\nkind: Tier", "document 1 (Tier): metadata.name: missing"),
        ("hello", "document 1: the document: not an object"),
    ] {
        assert_eq!(names(text), [Err(error.to_owned())]);
    }
}

#[test]
fn half_written_files_are_errors_never_panics() {
    let text = format!("{TIER}---\n{TIER}");
    for end in 0..text.len() {
        let objects = parse_manifest(&text[..end]);
        assert!(objects.len() <= 2);
    }
    for junk in
        ["\u{0}", "---\n---\n", "%YAML 9.9\n---\n", "&a [*a]", "{", "\t- x", "? {a: b} : c", "- - -\n...\n"]
    {
        parse_manifest(junk);
    }
}

#[test]
fn mistakes_are_named_by_the_line_of_the_file() {
    let text = format!("# comment\n{TIER}---\n\n# another\nkind: Tier\nmetadata: {{name: a\n---\n{TIER}");
    let broken = parse_manifest(&text).remove(1).unwrap_err();
    assert_eq!(broken.document, 2);
    assert!((9..=11).contains(&broken.line), "{broken:?}");
    assert!(broken.reason.contains(&format!("at line {} column", broken.line)), "{broken}");
    let unknown = parse_manifest(&text.replace("{name: a", "{name: a}")).remove(1).unwrap_err();
    assert_eq!((unknown.line, unknown.field.as_str()), (9, "apiVersion"));
}

#[test]
fn members_given_twice_are_refused() {
    let yaml =
        "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: a}\nspec:\n  order: 1\n  order: 2\n";
    let json = r#"{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"a"},"spec":{"order":1,"order":2}}"#;
    for text in [yaml, json] {
        assert_eq!(
            names(text),
            [Err("document 1: spec.order: is given twice: remove one of the two".to_owned())]
        );
    }
}

#[test]
fn anchors_and_merge_keys_mean_what_they_stand_for() {
    let text = "apiVersion: projectcalico.org/v3\nkind: List\nitems:\n\
                - &base {apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: a}, spec: &spec {order: 1}}\n\
                - {<<: *base, metadata: {name: b}}\n- {<<: *base, metadata: {name: c}, spec: {<<: *spec, defaultAction: Pass}}\n";
    let read: Vec<_> = parse_manifest(text).into_iter().map(Result::unwrap).collect();
    let seen: Vec<_> = read.iter().map(|r| (r.metadata.name.as_str(), r.spec.to_string())).collect();
    assert_eq!(
        seen,
        [
            ("a", r#"{"order":1}"#.to_owned()),
            ("b", r#"{"order":1}"#.to_owned()),
            ("c", r#"{"defaultAction":"Pass","order":1}"#.to_owned())
        ]
    );
}

#[test]
fn aliases_cannot_fill_the_memory() {
    // Every level ten times the one before.
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs += &format!("a{level}: &a{level} [{below}]\n");
    }
    // One large list, many times.
    let flat = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(100_000), "*a,".repeat(100_000));
    // One large text, many times.
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a,".repeat(100_000));
    for bomb in [laughs, flat, long] {
        let errors = names(&format!("{bomb}---\n{TIER}"));
        let error = errors[0].as_ref().unwrap_err();
        assert!(error.contains("many times larger") || error.contains("repetition limit"), "{error}");
        assert_eq!(errors[1], Ok("Tier(security)".into()));
    }
}

#[test]
fn what_holds_itself_is_named_by_its_line() {
    let text = format!("{TIER}---\nkind: Tier\nspec: &a\n  x: *a\n");
    let error = parse_manifest(&text).remove(1).unwrap_err();
    assert!(error.reason.contains("recursion limit exceeded at line"), "{error}");
    assert!(error.line > 5, "{error:?}");
}

#[test]
fn json_and_yaml_read_alike() {
    let yaml = parse_manifest(TIER);
    let json = parse_manifest(
        r#"{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"security"},"spec":{"order":100}}"#,
    );
    assert_eq!(yaml, json);
}

#[test]
fn directories_are_read_in_order_and_other_files_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("b/c")).unwrap();
    fs::create_dir_all(root.join(".hidden")).unwrap();
    let tier = |name: &str| TIER.replace("security", name);
    fs::write(root.join("z.yaml"), tier("last")).unwrap();
    fs::write(root.join("a.yml"), tier("first")).unwrap();
    fs::write(root.join("b/c/x.json"), "{").unwrap();
    fs::write(root.join("b/notes.txt"), "not a manifest").unwrap();
    fs::write(root.join(".hidden/x.yaml"), tier("hidden")).unwrap();
    fs::write(root.join("bad.yaml"), [0xff, 0xfe]).unwrap();
    let objects = read_path(root);
    let seen: Vec<String> = objects
        .iter()
        .map(|object| match object {
            Ok(located) => located.resource.id(),
            Err(error) => error.to_string().replace(&root.display().to_string(), "DIR"),
        })
        .collect();
    assert_eq!(seen.len(), 4, "{seen:?}");
    assert_eq!(seen[0], "Tier(first)");
    assert!(seen[1].starts_with("DIR/b/c/x.json:2: document 1: "), "{}", seen[1]);
    assert!(seen[2].starts_with("DIR/bad.yaml: not UTF-8"), "{}", seen[2]);
    assert_eq!(seen[3], "Tier(last)");
}

#[test]
fn stored_form_reads_back_as_the_manifest() {
    let text = "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\n\
                spec: {tier: default, selector: app == 'web', types: [Ingress], future: {x: 1}}\n---\n\
                apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {name: n1-10-65-0-0-26}\n\
                spec: {cidr: 10.65.0.0/26, node: n1, type: host, state: confirmed, deleted: \"false\"}\n---\n\
                apiVersion: projectcalico.org/v3\nkind: IPAMBlock\nmetadata: {name: 10-65-0-0-26}\n\
                spec: {cidr: 10.65.0.0/26, affinity: \"host:n1\", affinityClaimTime: x, allocations: [null, 0],\n\
                       attributes: [{handle_id: h}], unallocated: [0], deleted: false}\n";
    for resource in parse_manifest(text) {
        let mut resource = resource.unwrap();
        let path = resource.key_path().unwrap();
        let back = Resource::from_stored(&path, &resource.to_stored()).unwrap();
        resource.fill_defaults();
        assert_eq!(back, resource, "{path}");
        assert_eq!(parse_manifest(&to_yaml(&back)), [Ok(resource)]);
    }
}

#[test]
fn policies_keep_their_stored_name_in_the_key() {
    let path = "/calico/resources/v3/projectcalico.org/networkpolicies/shop/default.web";
    let stored =
        br#"{"kind":"NetworkPolicy","metadata":{"name":"default.web","namespace":"shop"},"spec":{}}"#;
    let resource = Resource::from_stored(path, stored).unwrap();
    assert_eq!(resource.metadata.name, "web");
    assert_eq!(resource.key_path().unwrap(), path);
    let again = Resource::from_stored(path, &resource.to_stored()).unwrap();
    assert_eq!((again.metadata.name.as_str(), again.stored_name()), ("web", "default.web"));
}

#[test]
fn a_directory_becomes_updates_and_errors_with_their_file() {
    let dir = tempfile::tempdir().unwrap();
    let pool =
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\nspec: {cidr: nonsense}\n";
    fs::write(dir.path().join("a.yaml"), format!("{TIER}---\n{pool}")).unwrap();
    let (updates, errors) = load_updates(dir.path());
    let tier = updates.iter().find(|update| update.key == Key::Tier { name: "security".into() }).unwrap();
    assert!(matches!(tier.live(), Some(Value::Tier(tier)) if tier.order == Some(100.0)));
    assert!(
        updates.iter().any(|update| matches!(update.key, Key::ProfileRules { .. })),
        "the default profile"
    );
    assert_eq!(errors.len(), 1);
    let error = errors[0].to_string();
    assert!(error.contains("a.yaml:6: document 2: ") && error.contains("spec.cidr"), "{error}");
}

#[test]
fn mistake_at_the_top_of_a_document_is_named_too() {
    for text in ["? [a]\n: b\n", "!tag {}\n", "{\"\": !tag x}\n"] {
        let read = parse_manifest(text);
        let [Err(error)] = read.as_slice() else { panic!("{read:?}") };
        assert_eq!(error.field, "the document", "{text}");
    }
}
