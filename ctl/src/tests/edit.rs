//! `patch` and `label`.

use super::*;
use crate::label::{self, Mode};
use crate::patch::{self, Kind};

async fn patch(store: &Memory, kind: Kind, patch: &str) -> Result<String, String> {
    let done = patch::run(store, "ippool", "default-ipv4-ippool", "default", patch, kind).await;
    done.map_err(|error| format!("{error:#}"))
}

async fn label(store: &Memory, labels: &[&str], mode: Mode) -> Result<String, String> {
    let labels: Vec<String> = labels.iter().map(ToString::to_string).collect();
    let done = label::run(store, "ippools", "default-ipv4-ippool", "default", &labels, mode).await;
    done.map_err(|error| format!("{error:#}"))
}

async fn with_pool() -> Memory {
    let store = Memory::default();
    run(&store, Verb::Apply, POOL).await.unwrap();
    store
}

#[tokio::test]
async fn merging_replaces_what_is_given_and_removes_what_is_null() {
    let store = with_pool().await;
    let before = store.stored(POOL_KEY);
    for (kind, text) in [
        (Kind::Strategic, r#"{"spec": {"natOutgoing": null, "disabled": true}}"#),
        (Kind::Merge, "spec:\n  nodeSelector: rack == 'a7'\n"),
    ] {
        assert_eq!(patch(&store, kind, text).await.unwrap(), "Successfully patched 1 'IPPool' resource\n");
    }
    let after = store.stored(POOL_KEY);
    assert_eq!(after["spec"].get("natOutgoing"), None);
    assert_eq!(
        (&after["spec"]["disabled"], &after["spec"]["nodeSelector"]),
        (&true.into(), &"rack == 'a7'".into())
    );
    assert_eq!(after["spec"]["cidr"], before["spec"]["cidr"]);
    assert_eq!(after["metadata"], before["metadata"]);
}

#[tokio::test]
async fn operations_are_done_all_or_none() {
    let store = with_pool().await;
    let good = r#"[{"op": "test", "path": "/spec/ipipMode", "value": "Always"},
                   {"op": "replace", "path": "/spec/ipipMode", "value": "Never"},
                   {"op": "add", "path": "/spec/disabled", "value": true}]"#;
    patch(&store, Kind::Json, good).await.unwrap();
    let before = store.stored(POOL_KEY);
    assert_eq!((&before["spec"]["ipipMode"], &before["spec"]["disabled"]), (&"Never".into(), &true.into()));
    // The mode is another one by now.
    let error = patch(&store, Kind::Json, good).await.unwrap_err();
    assert!(
        error.starts_with("Failed to patch 'IPPool' resource: IPPool(default-ipv4-ippool): /spec/ipipMode: is not what the patch expects"),
        "{error}"
    );
    let half = r#"[{"op": "remove", "path": "/spec/disabled"}, {"op": "remove", "path": "/spec/nothing"}]"#;
    let error = patch(&store, Kind::Json, half).await.unwrap_err();
    assert!(error.contains("/spec/nothing: there is nothing at this path"), "{error}");
    assert_eq!(store.stored(POOL_KEY), before);
}

#[tokio::test]
async fn what_would_not_be_valid_is_refused_by_field() {
    let store = with_pool().await;
    let before = store.revision();
    for (text, part) in [
        (r#"{"spec": {"cidr": "10.9.0.0/16"}}"#, "IPPool(default-ipv4-ippool): spec.cidr: cannot be changed"),
        (
            r#"{"spec": {"vxlanMode": "Always"}}"#,
            "IPPool(default-ipv4-ippool): spec.vxlanMode: a pool has one encapsulation",
        ),
        (r#"{"spec": {"ipipMode": 7}}"#, "IPPool(default-ipv4-ippool): spec.ipipMode: "),
        (
            r#"{"metadata": {"name": "other"}}"#,
            "IPPool(default-ipv4-ippool): metadata.name: cannot be changed",
        ),
        (r#"{"kind": "Tier"}"#, "IPPool(default-ipv4-ippool): kind: cannot be changed"),
        (r#"{"spec": []}"#, "IPPool(default-ipv4-ippool): spec: not an object"),
        (r#"{"spec": {"$patch": "replace"}}"#, "$patch: directives"),
        ("[]", "--type json"),
        ("{", "neither JSON nor YAML"),
    ] {
        let error = patch(&store, Kind::Strategic, text).await.unwrap_err();
        assert!(error.contains(part), "{part} is missing: {error}");
    }
    let error = patch(&store, Kind::Json, r#"{"spec": {}}"#).await.unwrap_err();
    assert!(error.contains("not a list of operations"), "{error}");
    assert_eq!(store.revision(), before);
}

#[tokio::test]
async fn copies_cannot_make_an_object_enormous() {
    let store = with_pool().await;
    let doubled = |i| format!(r#"{{"op": "copy", "from": "/spec", "path": "/spec/x{i}"}}"#);
    let doubled: Vec<String> = (0..60).map(doubled).collect();
    let error = patch(&store, Kind::Json, &format!("[{}]", doubled.join(","))).await.unwrap_err();
    assert!(error.contains(": copies make it larger than any object"), "{error}");
}

#[tokio::test]
async fn a_patch_is_applied_again_to_what_somebody_else_wrote() {
    let store = with_pool().await;
    let theirs = store.with(|state| {
        let text = String::from_utf8(state.items[POOL_KEY].value.to_vec()).unwrap();
        Bytes::from(text.replace("\"ipipMode\":\"Always\"", "\"ipipMode\":\"CrossSubnet\""))
    });
    store.with(|state| state.interference.push((POOL_KEY.into(), theirs)));
    patch(&store, Kind::Merge, "{spec: {disabled: true}}").await.unwrap();
    let spec = &store.stored(POOL_KEY)["spec"];
    assert_eq!((&spec["ipipMode"], &spec["disabled"]), (&"CrossSubnet".into(), &true.into()));
}

#[tokio::test]
async fn a_patch_of_nothing_writes_nothing_and_one_of_nobody_says_so() {
    let store = with_pool().await;
    let before = store.revision();
    patch(&store, Kind::Merge, "{spec: {ipipMode: Always}}").await.unwrap();
    assert_eq!(store.revision(), before);
    let nobody = patch::run(&store, "np", "web", "shop", "{}", Kind::Merge).await.unwrap_err();
    assert_eq!(
        format!("{nobody:#}"),
        "Failed to patch 'NetworkPolicy' resource: resource does not exist: NetworkPolicy(shop/web)"
    );
}

#[tokio::test]
async fn labels_are_set_overwritten_and_removed_as_calicoctl_says_it() {
    let store = with_pool().await;
    assert_eq!(
        label(&store, &["rack=a7", "zone=west"], Mode::Set).await.unwrap(),
        "Successfully set label rack on ippools default-ipv4-ippool\n\
         Successfully set label zone on ippools default-ipv4-ippool\n"
    );
    let error = label(&store, &["new=1", "rack=a8"], Mode::Set).await.unwrap_err();
    assert_eq!(
        error,
        "failed to label ippools default-ipv4-ippool: IPPool(default-ipv4-ippool): metadata.labels[rack]: is already \
         present as \"a7\": use --overwrite to set another value"
    );
    assert_eq!(
        label(&store, &["rack=a8"], Mode::Overwrite).await.unwrap(),
        "Successfully updated label rack on ippools default-ipv4-ippool\n"
    );
    // All or none: `new` was not set above.
    assert_eq!(
        store.stored(POOL_KEY)["metadata"]["labels"],
        serde_json::json!({"rack": "a8", "zone": "west"})
    );
    assert_eq!(
        label(&store, &["rack", "zone"], Mode::Remove).await.unwrap(),
        "Successfully removed label rack from ippools default-ipv4-ippool\n\
         Successfully removed label zone from ippools default-ipv4-ippool\n"
    );
    let error = label(&store, &["rack"], Mode::Remove).await.unwrap_err();
    assert!(error.contains("metadata.labels[rack]: there is no such label to remove"), "{error}");
    assert_eq!(store.stored(POOL_KEY)["metadata"].get("labels"), None);
}

#[tokio::test]
async fn labels_that_no_selector_could_match_are_refused() {
    let store = with_pool().await;
    let long = format!("a={}", "x".repeat(64));
    for bad in ["rack", "=a7", "ra ck=a7", "rack=a 7", "rack=-a7", "rack='a7'", &long] {
        let error = label(&store, &[bad], Mode::Set).await.unwrap_err();
        assert!(error.contains(&format!("invalid label {bad}")), "{error}");
    }
    let error = label(&store, &["rack=a7"], Mode::Remove).await.unwrap_err();
    assert!(error.contains("give its key alone: rack"), "{error}");
}
