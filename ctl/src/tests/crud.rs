//! `apply`, `create`, `replace`, `delete` and `get`.

use std::path::PathBuf;

use super::*;

#[tokio::test]
async fn applying_creates_and_then_replaces_with_one_identity() {
    let store = Memory::default();
    let success = Ok("Successfully applied 1 'IPPool' resource(s)\n".to_owned());
    assert_eq!(run(&store, Verb::Apply, POOL).await, success);
    let created = store.stored(POOL_KEY);
    assert_eq!(created["spec"]["blockSize"], 26, "writers fill in defaults");
    assert!(created["metadata"]["uid"].as_str().is_some_and(|uid| uid.len() == 36));
    assert!(created["metadata"]["creationTimestamp"].as_str().is_some_and(|time| time.ends_with('Z')));
    assert_eq!(run(&store, Verb::Apply, &POOL.replace("Always", "Never")).await, success);
    let replaced = store.stored(POOL_KEY);
    assert_eq!(replaced["spec"]["ipipMode"], "Never");
    assert_eq!(replaced["metadata"], created["metadata"]);
}

#[tokio::test]
async fn applying_what_is_there_already_writes_nothing() {
    let store = Memory::default();
    run(&store, Verb::Apply, POOL).await.unwrap();
    let before = store.revision();
    run(&store, Verb::Apply, POOL).await.unwrap();
    assert_eq!(store.revision(), before);
}

#[tokio::test]
async fn what_was_printed_can_be_edited_and_applied() {
    let store = Memory::default();
    run(&store, Verb::Apply, POOL).await.unwrap();
    let list = get(&store, "ippool", &[], Output::Yaml).await.unwrap();
    assert!(list.contains("kind: IPPoolList"), "{list}");
    let edited = list.replace("ipipMode: Always", "ipipMode: CrossSubnet");
    assert_eq!(
        run(&store, Verb::Apply, &edited).await.unwrap(),
        "Successfully applied 1 'IPPool' resource(s)\n"
    );
    assert_eq!(store.stored(POOL_KEY)["spec"]["ipipMode"], "CrossSubnet");
    // The revision in the file is an old one by now.
    let error = run(&store, Verb::Replace, &edited).await.unwrap_err();
    assert!(error.contains("update conflict: IPPool(default-ipv4-ippool)"), "{error}");
}

#[tokio::test]
async fn a_race_with_another_writer_is_run_again() {
    let store = Memory::default();
    run(&store, Verb::Apply, POOL).await.unwrap();
    let other = store.with(|state| state.items[POOL_KEY].value.clone());
    store.with(|state| state.interference.push((POOL_KEY.into(), other)));
    run(&store, Verb::Apply, &POOL.replace("Always", "Never")).await.unwrap();
    assert_eq!(store.stored(POOL_KEY)["spec"]["ipipMode"], "Never");
}

#[tokio::test]
async fn existing_and_missing_objects_are_named_as_calicoctl_names_them() {
    let store = Memory::default();
    assert_eq!(
        run(&store, Verb::Replace, POOL).await.unwrap_err(),
        "Failed to replace 'IPPool' resource: [resource does not exist: IPPool(default-ipv4-ippool)]"
    );
    assert_eq!(run(&store, CREATE, POOL).await.unwrap(), "Successfully created 1 'IPPool' resource(s)\n");
    assert_eq!(
        run(&store, CREATE, POOL).await.unwrap_err(),
        "Failed to create 'IPPool' resource: [resource already exists: IPPool(default-ipv4-ippool)]"
    );
    run(&store, Verb::Create { skip_exists: true }, POOL).await.unwrap();
    assert_eq!(
        get(&store, "pool", &["none"], Output::Ps).await.unwrap_err(),
        "resource does not exist: IPPool(none)"
    );
    assert_eq!(
        delete(&store, "pool", "default-ipv4-ippool").await.unwrap(),
        "Successfully deleted 1 'IPPool' resource(s)\n"
    );
    let error = delete(&store, "pool", "default-ipv4-ippool").await.unwrap_err();
    assert!(error.contains("resource does not exist: IPPool(default-ipv4-ippool)"), "{error}");
    assert_eq!(store.keys(), [""; 0]);
}

#[tokio::test]
async fn success_in_part_says_how_far_it_came() {
    let store = Memory::default();
    run(&store, CREATE, POOL).await.unwrap();
    let other = POOL.replace("default-ipv4-ippool", "other").replace("10.244", "10.245");
    let error = run(&store, CREATE, &format!("{other}---\n{POOL}")).await.unwrap_err();
    assert_eq!(
        error,
        "Partial success: created the first 1 out of 2 'IPPool' resources:\n\
         Hit error: resource already exists: IPPool(default-ipv4-ippool)"
    );
}

#[tokio::test]
async fn a_mistake_anywhere_leaves_the_datastore_alone() {
    let store = Memory::default();
    let bad = POOL.replace("default-ipv4-ippool", "other").replace("10.244.0.0/16", "10.244.0.0/33");
    let error = run(&store, Verb::Apply, &format!("{POOL}---\n{bad}")).await.unwrap_err();
    assert!(error.starts_with("DIR/file.yaml:6: document 2 (IPPool(other)): spec.cidr: "), "{error}");
    assert_eq!(store.revision(), 0);
}

#[tokio::test]
async fn a_pool_keeps_its_cidr() {
    let store = Memory::default();
    run(&store, Verb::Apply, POOL).await.unwrap();
    let error = run(&store, Verb::Apply, &POOL.replace("10.244", "10.245")).await.unwrap_err();
    assert!(error.contains("IPPool(default-ipv4-ippool): spec.cidr: cannot be changed"), "{error}");
}

#[tokio::test]
async fn policies_stored_under_their_old_name_are_found_and_stay_there() {
    let store = Memory::default();
    let key = "/calico/resources/v3/projectcalico.org/networkpolicies/default/default.web";
    let old = r#"{"kind":"NetworkPolicy","metadata":{"name":"default.web","namespace":"default"},"spec":{"selector":"all()"}}"#;
    store.with(|state| state.put(key, Bytes::from(old)));
    let policy = "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: web}\nspec: {selector: app == 'web'}\n";
    run(&store, Verb::Apply, policy).await.unwrap();
    assert_eq!(store.keys(), [key]);
    assert_eq!(store.stored(key)["spec"]["selector"], "app == 'web'");
    assert_eq!(get(&store, "np", &["web"], Output::Name).await.unwrap(), "networkpolicy/web\n");
    delete(&store, "policy", "web").await.unwrap();
    assert_eq!(store.keys(), [""; 0]);
}

#[tokio::test]
async fn ipam_objects_live_under_their_old_paths() {
    let store = Memory::default();
    let text = "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {name: n1-10-244-0-0-26}\n\
                spec: {state: confirmed, node: n1, cidr: 10.244.0.0/26, deleted: \"false\"}\n---\n\
                apiVersion: projectcalico.org/v3\nkind: IPAMBlock\nmetadata: {name: 10-244-0-0-26}\n\
                spec: {cidr: 10.244.0.0/26, affinity: \"host:n1\", allocations: [], unallocated: [], attributes: [], deleted: false}\n";
    assert_eq!(run(&store, Verb::Apply, text).await.unwrap(), "Successfully applied 2 resource(s)\n");
    let paths = [
        "/calico/ipam/v2/assignment/ipv4/block/10.244.0.0-26",
        "/calico/ipam/v2/host/n1/ipv4/block/10.244.0.0-26",
    ];
    assert_eq!(store.keys(), paths);
    assert_eq!(store.stored(paths[0])["affinity"], "host:n1");
    assert_eq!(
        get(&store, "blockaffinities", &[], Output::Ps).await.unwrap(),
        "NAME               CIDR            NODE   STATE\nn1-10-244-0-0-26   10.244.0.0/26   n1     confirmed\n"
    );
    assert_eq!(run(&store, DELETE, text).await.unwrap(), "Successfully deleted 2 resource(s)\n");
    assert_eq!(store.keys(), [""; 0]);
}

#[tokio::test]
async fn the_profile_that_allows_everything_is_listed_and_cannot_be_written() {
    let store = Memory::default();
    assert_eq!(get(&store, "profile", &[], Output::Ps).await.unwrap(), "NAME\nprojectcalico-default-allow\n");
    let text = "apiVersion: projectcalico.org/v3\nkind: Profile\nmetadata: {name: projectcalico-default-allow}\nspec: {}\n";
    let error = run(&store, Verb::Apply, text).await.unwrap_err();
    assert!(error.contains("metadata.name: this profile is built in"), "{error}");
}

#[tokio::test]
async fn objects_that_cannot_be_read_do_not_hide_the_others() {
    let store = Memory::default();
    run(&store, Verb::Apply, POOL).await.unwrap();
    store.with(|state| {
        state.put("/calico/resources/v3/projectcalico.org/ippools/bad", Bytes::from_static(b"{"))
    });
    let list = get(&store, "ippool", &[], Output::Name).await.unwrap();
    assert_eq!(list, "ippool/default-ipv4-ippool\n");
}

#[tokio::test]
async fn one_resource_prints_alone_and_in_order() {
    let store = Memory::default();
    run(&store, Verb::Apply, POOL).await.unwrap();
    let yaml = get(&store, "ippool", &["default-ipv4-ippool"], Output::Yaml).await.unwrap();
    let lines: Vec<&str> = yaml.lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(lines, ["apiVersion: projectcalico.org/v3", "kind: IPPool", "metadata:", "spec:"]);
    assert!(yaml.contains("  resourceVersion: '1'\n"), "{yaml}");
    let json = get(&store, "ippool", &[], Output::Json).await.unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["items"][0]["kind"], "IPPool");
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let store = Memory::default();
    let missing = PathBuf::from("/nonexistent/policies.yaml");
    let error = write::from_files(&store, Verb::Apply, &[missing], "default", false).await.unwrap_err();
    assert!(format!("{error:#}").starts_with("/nonexistent/policies.yaml: No such file"), "{error:#}");
}

#[tokio::test]
async fn nodes_without_an_as_number_show_the_clusters() {
    let store = Memory::default();
    let node = "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {name: n1}\nspec: {bgp: {ipv4Address: 10.0.0.1/24}}\n";
    run(&store, Verb::Apply, node).await.unwrap();
    let wide = |asn: &str| {
        let pad = " ".repeat(asn.len() - 3);
        format!("NAME   ASN{pad}   IPV4          IPV6\nn1     {asn}   10.0.0.1/24\n")
    };
    assert_eq!(get(&store, "node", &[], Output::Wide).await.unwrap(), wide("(64512)"));
    let bgp = "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: default}\nspec: {asNumber: 63400}\n";
    run(&store, Verb::Apply, bgp).await.unwrap();
    assert_eq!(get(&store, "node", &["n1"], Output::Wide).await.unwrap(), wide("(63400)"));
}

#[tokio::test]
async fn columns_can_be_chosen() {
    let store = Memory::default();
    run(&store, Verb::Apply, POOL).await.unwrap();
    let columns = |headings: &str| format!("custom-columns={headings}").parse::<Output>().unwrap();
    assert_eq!(
        get(&store, "ippool", &[], columns("name,NAT")).await.unwrap(),
        "NAME                  NAT\ndefault-ipv4-ippool   true\n"
    );
    let error = get(&store, "ippool", &[], columns("ASN")).await.unwrap_err();
    assert_eq!(
        error,
        "IPPool has no column ASN: choose from NAME,CIDR,NAT,IPIPMODE,VXLANMODE,DISABLED,SELECTOR"
    );
}

#[tokio::test]
async fn resources_of_calico_2_are_applied_as_what_they_are_called_today() {
    let store = Memory::default();
    let old = "apiVersion: v1\nkind: ipPool\nmetadata: {cidr: 10.1.0.0/16}\nspec: {nat-outgoing: true, ipip: {enabled: true, mode: cross-subnet}}\n";
    assert_eq!(run(&store, Verb::Apply, old).await.unwrap(), "Successfully applied 1 'IPPool' resource(s)\n");
    let keys = store.keys();
    assert_eq!(keys.len(), 1);
    let stored = store.stored(&keys[0]);
    assert_eq!(stored["apiVersion"], "projectcalico.org/v3");
    assert_eq!(
        (&stored["spec"]["cidr"], &stored["spec"]["ipipMode"]),
        (&"10.1.0.0/16".into(), &"CrossSubnet".into())
    );
}

#[tokio::test]
async fn files_without_resources_are_an_error_unless_they_may_be_empty() {
    let store = Memory::default();
    assert_eq!(run(&store, Verb::Apply, "# nothing\n").await.unwrap_err(), "No resources specified");
    let dir = tempfile::tempdir().unwrap();
    let done = write::from_files(&store, Verb::Apply, &[dir.path().into()], "default", true).await.unwrap();
    assert!(done.complete);
}
