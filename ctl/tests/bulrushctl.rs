//! The built program, on a folder of manifests and on a real etcd.

mod kinds;
mod support;

use std::path::Path;

use support::{Ctl, Ended};
use syncer_common::testing::etcd::{EtcdServer, free_port};

const POOL: &str =
    "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: main}\nspec: {cidr: 10.65.0.0/16}\n";

fn directory(path: &Path) -> Ctl {
    let path = path.to_str().expect("a path in UTF-8");
    Ctl::new(&[("DATASTORE_TYPE", "directory"), ("BULRUSH_DIRECTORY", path)])
}

fn etcd_at(endpoint: &str) -> Ctl {
    Ctl::new(&[("DATASTORE_TYPE", "etcdv3"), ("ETCD_ENDPOINTS", endpoint)])
}

fn folder() -> (tempfile::TempDir, Ctl) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let ctl = directory(dir.path());
    (dir, ctl)
}

#[test]
fn every_kind_lives_in_a_folder() {
    let (_dir, ctl) = folder();
    kinds::all_kinds(&ctl, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_lives_in_etcd() {
    let Some(etcd) = EtcdServer::start().await else { return };
    kinds::all_kinds(&etcd_at(&etcd.endpoint()), &[]);
}

#[test]
fn every_manifest_of_a_kind_passes_validation() {
    let all: Vec<String> = kinds::CASES.iter().map(kinds::manifest).collect();
    let Ended { code, out, err } = Ctl::new(&[]).run_with(&["validate", "-f", "-"], &all.join("---\n"));
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert_eq!(out, "Successfully validated 26 resource(s)\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_at_the_same_time_lose_nothing() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let ctl = etcd_at(&etcd.endpoint());
    ctl.apply(POOL);
    let labels: Vec<String> = (0..8).map(|i| format!("writer-{i}=was-here")).collect();
    let running: Vec<_> =
        labels.iter().map(|label| ctl.start(&["label", "ippool", "main", label], "")).collect();
    for writer in running {
        let ended = writer.end();
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    let pool = ctl.ok(&["get", "ippool", "main", "-o", "yaml"]);
    for label in labels {
        assert!(pool.contains(&label.replace('=', ": ")), "{label} is missing: {pool}");
    }
}

#[test]
fn validation_names_every_mistake_and_needs_no_datastore() {
    let dir = tempfile::tempdir().unwrap();
    let bad = "---\n# the second\napiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {name: h}\nspec: {expectedIPs: [10.0.0.300]}\n";
    std::fs::write(dir.path().join("a.yaml"), format!("{POOL}{bad}")).unwrap();
    std::fs::write(dir.path().join("b.yml"), "kind: [\n").unwrap();
    let path = dir.path().to_str().unwrap();
    // Nobody listens there.
    let ctl = etcd_at("http://127.0.0.1:1");
    let ended = ctl.run(&["validate", "-f", path]);
    assert_eq!(ended.code, 1, "{ended:?}");
    for part in [
        "b.yml:2: document 1: the document: ",
        "a.yaml:7: document 2 (HostEndpoint(h)): spec.node: missing",
        "a.yaml:7: document 2 (HostEndpoint(h)): spec.expectedIPs[0]: ",
        "3 mistake(s) in 2 of 3 resource(s)",
    ] {
        assert!(ended.out.contains(part), "{part} is missing: {ended:?}");
    }
    // And `apply` does nothing with such files.
    let (_dir, folder) = folder();
    let applied = folder.run(&["apply", "-f", path]);
    assert_eq!(applied.code, 1, "{applied:?}");
    assert!(applied.err.contains("Nothing was done"), "{applied:?}");
    assert_eq!(folder.ok(&["get", "ippool", "-o", "name"]), "");
}

#[test]
fn old_forms_are_converted_and_applied() {
    let old = "- apiVersion: v1\n  kind: ipPool\n  metadata: {cidr: 10.1.0.0/16}\n  spec: {nat-outgoing: true, ipip: {enabled: true}}\n\
               - apiVersion: v1\n  kind: profile\n  metadata: {name: web, tags: [front]}\n  spec: {}\n";
    let converted = Ctl::new(&[]).run_with(&["convert", "-f", "-"], old);
    assert_eq!(converted.code, 0, "{converted:?}");
    assert!(converted.err.starts_with("warning: standard input:1: document 1, item 2: "), "{converted:?}");
    let (_one, by_hand) = folder();
    by_hand.apply(&converted.out);
    let (_two, at_once) = folder();
    let applied = at_once.run_with(&["apply", "-f", "-"], old);
    assert_eq!((applied.code, &applied.err), (0, &converted.err), "{applied:?}");
    let spec = |ctl: &Ctl| {
        let text = ctl.ok(&["get", "ippool", "-o", "yaml"]);
        text.lines().skip_while(|line| *line != "  spec:").map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(!spec(&by_hand).is_empty());
    assert_eq!(spec(&by_hand), spec(&at_once));
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_shown_and_released_with_their_node() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let ctl = etcd_at(&etcd.endpoint());
    let kinds =
        ["IPPool", "IPAMBlock", "BlockAffinity", "IPAMHandle", "Node", "WorkloadEndpoint", "HostEndpoint"];
    let all: Vec<String> =
        kinds::CASES.iter().filter(|case| kinds.contains(&case.0)).map(kinds::manifest).collect();
    ctl.apply(&all.join("---\n"));
    let table = ctl.ok(&["ipam", "show", "--show-blocks"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[1], "| GROUPING | CIDR         | IPS TOTAL | IPS IN USE |     IPS FREE |");
    assert_eq!(lines[3], "| IP Pool  | 10.65.0.0/16 |     65536 |     1 (0%) | 65535 (100%) |");
    assert_eq!(lines[4], "| Block    | 10.65.0.0/26 |        64 |     1 (2%) |     63 (98%) |");
    let owner = ctl.ok(&["ipam", "show", "--ip=10.65.0.0"]);
    assert!(owner.starts_with("IP 10.65.0.0 is in use\nHandle ID: net.web\n"), "{owner}");
    assert!(owner.contains("  pod: web\n"), "{owner}");

    let deleted = ctl.ok(&["delete", "node", "n1"]);
    assert!(
        deleted.contains(
            "Released with Node(n1): 1 HostEndpoint, 1 WorkloadEndpoint, 1 address(es), 1 block(s)"
        )
    );
    assert_eq!(ctl.ok(&["ipam", "show", "--ip=10.65.0.0"]), "10.65.0.0 is not assigned\n");
    for kind in ["ipamblock", "blockaffinity", "ipamhandle", "wep", "hep", "node"] {
        assert_eq!(ctl.ok(&["get", kind, "-A", "-o", "name"]), "", "{kind}");
    }
    assert!(ctl.ok(&["ipam", "show"]).contains("|     0 (0%) | 65536 (100%) |"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datastore_describes_itself_and_what_it_refuses() {
    let Some(mut etcd) = EtcdServer::start().await else { return };
    let ctl = etcd_at(&etcd.endpoint());
    let all: Vec<String> = kinds::CASES.iter().map(kinds::manifest).collect();
    ctl.apply(&all.join("---\n"));
    // By somebody who does not check.
    let store = syncer_common::backend::config::open(&etcd.config()).await.unwrap();
    let key = "/calico/resources/v3/projectcalico.org/globalnetworkpolicies/broken";
    let value = r#"{"kind":"GlobalNetworkPolicy","metadata":{"name":"broken"},"spec":{"selector":"app =="}}"#;
    store.create(key, value.into()).await.unwrap();
    let info = ctl.ok(&["datastore", "info"]);
    for part in [
        "Datastore:    etcdv3\n",
        &format!("Endpoints:    {}\n", etcd.endpoint()),
        "Reachable:    yes, answered in ",
        "History:      ",
        "Cluster:      GUID 0f0f, type k8s,bgp\n",
        "Calico:       v3.32.0\n",
        "Ready:        no: datastoreReady is false",
        "  etcd   revision ",
        "  IPPool                          1\n",
        "  IPAMConfig                      1\n",
        "Refused, or used in part:\n  GlobalNetworkPolicy(broken): spec.selector: ",
    ] {
        assert!(info.contains(part), "{part} is missing: {info}");
    }
    assert_eq!(info.matches("spec.").count(), 1, "nothing else is refused: {info}");
    let version = ctl.ok(&["version"]);
    assert!(version.contains("Cluster Version:   v3.32.0\nCluster Type:      k8s,bgp\n"), "{version}");

    etcd.stop();
    let info = ctl.run(&["datastore", "info"]);
    assert_eq!(info.code, 1, "{info:?}");
    assert!(
        info.out.contains("Reachable:    no\n") && info.out.contains("Check that the address is right"),
        "{info:?}"
    );
    let version = ctl.run(&["version"]);
    assert_eq!(version.code, 1, "{version:?}");
    assert!(
        version.out.starts_with("Client Version:    v") && version.err.contains("--client"),
        "{version:?}"
    );
    assert_eq!(ctl.run(&["version", "--client"]).code, 0);
}

#[test]
fn a_folder_describes_itself() {
    let (_dir, ctl) = folder();
    ctl.apply(POOL);
    let info = ctl.ok(&["datastore", "info"]);
    for part in [
        "Datastore:    directory\n",
        "  directory   revision ",
        ", 1 object(s)\n",
        "  IPPool   1\n",
        "Ready:        not known",
    ] {
        assert!(info.contains(part), "{part} is missing: {info}");
    }
}

#[test]
fn an_etcd_that_is_not_there_is_named_with_what_was_tried() {
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let ended = etcd_at(&endpoint).run(&["get", "ippool"]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""), "{ended:?}");
    assert!(ended.err.contains(&format!("Datastore: etcdv3, Endpoints: {endpoint}; ")), "{ended:?}");
}

#[test]
fn the_settings_file_leads_to_the_datastore() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    for (version, kind) in [("projectcalico.org/v3", "CalicoAPIConfig"), ("v1", "calicoApiConfig")] {
        let config = format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata:\nspec: {{datastoreType: directory, directory: {path}}}\n"
        );
        Ctl { config, ..Ctl::new(&[]) }.apply(POOL);
        assert_eq!(directory(dir.path()).ok(&["get", "ippool", "-o", "name"]), "ippool/main\n");
    }
}

#[test]
fn usage_is_explained_with_examples() {
    let ctl = Ctl::new(&[]);
    for command in [
        vec!["apply"],
        vec!["create"],
        vec!["replace"],
        vec!["delete"],
        vec!["get"],
        vec!["patch"],
        vec!["label"],
        vec!["validate"],
        vec!["convert"],
        vec!["ipam", "show"],
        vec!["datastore", "info"],
        vec!["version"],
    ] {
        let mut help = command.clone();
        help.push("--help");
        let text = ctl.ok(&help);
        assert!(text.contains("Examples:\n  "), "{command:?}: {text}");
        assert!(text.contains(&format!("bulrushctl {}", command.join(" "))), "{command:?}: {text}");
    }
    assert!(ctl.ok(&["--help"]).contains("Exit status:"));
    for wrong in [
        vec!["frobnicate"],
        vec!["apply"],
        vec!["label", "node", "n1"],
        vec!["patch", "node", "n1"],
        vec!["ipam", "show", "--show-blocks", "--show-borrowed"],
        vec!["get", "node", "-o", "xml"],
    ] {
        let ended = ctl.run(&wrong);
        assert_eq!(ended.code, 2, "{wrong:?}: {ended:?}");
        assert!(!ended.err.is_empty(), "{wrong:?}");
    }
}
