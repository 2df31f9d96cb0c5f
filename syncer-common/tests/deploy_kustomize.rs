//! `deploy/kustomize/base` on a real API server: it is accepted as it is, and typha's account may do what
//! typha must and nothing else.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use k8s_openapi::api::authorization::v1::SelfSubjectRulesReview;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::{Client, Error};
use serde::Deserialize;
use serde_json::{Value, json};
use syncer_common::backend::config::{self, KubernetesConfig, StoreConfig};
use syncer_common::kubernetes::{self, ApiGroup, Options};
use syncer_common::testing::kubernetes::KubeServer;

const KUBEVIRT: &str = include_str!("manifests/kubevirt.yaml");
const NAMESPACE: &str = "bulrush-system";
const GROUPS: [ApiGroup; 2] = [ApiGroup::V1, ApiGroup::V3];
/// What everybody may ask about themselves.
const OF_EVERYBODY: [&str; 2] = ["authentication.k8s.io", "authorization.k8s.io"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn base() -> PathBuf {
    root().join("deploy/kustomize/base")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(base().join(file)).unwrap()
}

fn kustomization() -> Value {
    serde_yaml_ng::from_str(&read("kustomization.yaml")).unwrap()
}

fn strings(list: &Value) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// The text of everything that the kustomization lists.
fn manifests() -> String {
    let files = kustomization()["resources"].clone();
    strings(&files).iter().map(|file| read(file)).collect::<Vec<_>>().join("\n---\n")
}

fn documents() -> Vec<Value> {
    let text = manifests();
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

fn find(kind: &str, name: &str) -> Value {
    let found = |document: &Value| document["kind"] == kind && document["metadata"]["name"] == name;
    documents().into_iter().find(found).unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn containers() -> Vec<Value> {
    let agents = ["bulrush-node", "bulrush-node-init"].map(|name| find("DaemonSet", name));
    std::iter::once(find("Deployment", "bulrush-typha"))
        .chain(agents)
        .flat_map(|workload| workload["spec"]["template"]["spec"]["containers"].as_array().unwrap().clone())
        .collect()
}

/// (group, resource, verb) of all that an account may do in its own namespace, except what everybody may.
async fn rights(client: &Client) -> BTreeSet<(String, String, String)> {
    let mut review = SelfSubjectRulesReview::default();
    review.spec.namespace = Some(NAMESPACE.to_owned());
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await.unwrap();
    let status = answer.status.unwrap();
    assert!(!status.incomplete, "{status:?}");
    let mut rights = BTreeSet::new();
    for rule in status.resource_rules {
        let groups = rule.api_groups.unwrap_or_default();
        for group in groups.iter().filter(|group| !OF_EVERYBODY.contains(&group.as_str())) {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    rights.insert((group.clone(), resource.clone(), verb.clone()));
                }
            }
        }
    }
    rights
}

fn is_forbidden<T: std::fmt::Debug>(result: &kube::Result<T>) -> bool {
    matches!(result, Err(Error::Api(status)) if status.code == 403)
}

fn watched(group: ApiGroup) -> Vec<kubernetes::ApiResource> {
    kubernetes::watched(&Options { group, ..Options::default() })
}

fn dynamic(client: &Client, resource: &kubernetes::ApiResource) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk(resource.group, resource.version, resource.kind);
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&gvk, resource.plural))
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_may_do_what_they_must_and_nothing_else() {
    let Some(server) = KubeServer::shared().await else { return };
    for group in GROUPS {
        server.install_crds(group).await;
    }
    server.apply_folder("crds/policy").await;
    server.apply(KUBEVIRT).await;
    server.apply(&manifests()).await;
    let token = server.service_account_token(NAMESPACE, "bulrush-typha").await;
    let typha = server.client_for(&token).await;

    let mut needed = BTreeSet::new();
    for resource in GROUPS.into_iter().flat_map(watched) {
        for verb in ["get", "list", "watch"] {
            needed.insert((resource.group.to_owned(), resource.plural.to_owned(), verb.to_owned()));
        }
    }
    for group in ["crd.projectcalico.org", "projectcalico.org"] {
        for resource in ["caliconodestatuses", "caliconodestatuses/status"] {
            needed.insert((group.to_owned(), resource.to_owned(), "update".to_owned()));
        }
    }
    assert_eq!(rights(&typha).await, needed);

    // The same by doing it.
    for resource in GROUPS.into_iter().flat_map(watched) {
        let listed = dynamic(&typha, &resource).list(&ListParams::default().limit(1)).await;
        assert!(listed.is_ok(), "{resource:?}: {listed:?}");
    }
    server
        .apply(
            "{apiVersion: crd.projectcalico.org/v1, kind: CalicoNodeStatus, metadata: {name: reported},
              spec: {node: n1, classes: [BGP]}}",
        )
        .await;
    let statuses = watched(ApiGroup::V1).into_iter().find(|resource| resource.kind == "CalicoNodeStatus");
    let statuses = dynamic(&typha, &statuses.unwrap());
    let mut reported = statuses.get("reported").await.unwrap();
    reported.data["status"] = json!({ "bgp": { "numberEstablishedV4": 3 } });
    statuses.replace("reported", &PostParams::default(), &reported).await.unwrap();
    let reported = statuses.get("reported").await.unwrap();
    assert_eq!(reported.data["status"]["bgp"]["numberEstablishedV4"], 3);

    let pods = Api::<Pod>::namespaced(typha.clone(), "default");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "intruder" }, "spec": { "containers": [{ "name": "main", "image": "none" }] }
    }))
    .unwrap();
    assert!(is_forbidden(&pods.create(&PostParams::default(), &pod).await));
    let secrets = Api::<Secret>::namespaced(typha.clone(), NAMESPACE);
    assert!(is_forbidden(&secrets.list(&ListParams::default()).await));
    let policies = Api::<NetworkPolicy>::namespaced(typha, "default");
    assert!(is_forbidden(&policies.delete("any", &DeleteParams::default()).await));

    let token = server.service_account_token(NAMESPACE, "bulrush-node").await;
    assert_eq!(rights(&server.client_for(&token).await).await, BTreeSet::new());

    // That it may do enough, `node init` shows under this account (ctl/tests/node_init.rs).
    let token = server.service_account_token(NAMESPACE, "bulrush-node-init").await;
    let written: BTreeSet<_> = rights(&server.client_for(&token).await)
        .await
        .into_iter()
        .filter(|(_, _, verb)| !["get", "list"].contains(&verb.as_str()))
        .map(|(_, resource, verb)| format!("{verb} {resource}"))
        .collect();
    let mut needed = BTreeSet::from(["patch nodes/status".to_owned()]);
    for kind in ["bgpconfigurations", "clusterinformations", "felixconfigurations", "ippools"] {
        needed.insert(format!("create {kind}"));
    }
    for kind in ["blockaffinities", "ipamblocks", "ipamhandles"] {
        needed.extend(["create", "update", "delete"].map(|verb| format!("{verb} {kind}")));
    }
    assert_eq!(written, needed);
}

/// The client itself, as typha runs it: each source is read and followed, and none asks for more than it may.
#[tokio::test(flavor = "multi_thread")]
async fn the_datastore_opens_under_the_account_of_typha() {
    let Some(server) = KubeServer::shared().await else { return };
    for group in GROUPS {
        server.install_crds(group).await;
    }
    server.apply_folder("crds/policy").await;
    server.apply(KUBEVIRT).await;
    server.apply(&manifests()).await;
    let token = server.service_account_token(NAMESPACE, "bulrush-typha").await;
    for group in GROUPS {
        let store = config::open(&StoreConfig::Kubernetes(KubernetesConfig {
            kubeconfig: Some(server.kubeconfig_for(&token)),
            group: Some(group),
            ..KubernetesConfig::default()
        }))
        .await
        .unwrap();
        let sources = store.clone().sources();
        assert_eq!(sources.len(), watched(group).len(), "{group:?}");
        for source in sources {
            let name = source.name().to_owned();
            let listing = source.list(None).await;
            let listing = listing.unwrap_or_else(|error| panic!("{group:?} {name}: {error}"));
            source.head().await.unwrap_or_else(|error| panic!("{group:?} {name}: {error}"));
            let watch = source.watch(listing.revision).await;
            assert!(watch.is_ok(), "{group:?} {name}: {:?}", watch.err());
        }
        // A path of a kind that typha reads, and may not write.
        let key = "/calico/resources/v3/projectcalico.org/tiers/intruder";
        let tier = br#"{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"intruder"},"spec":{}}"#;
        assert_eq!(store.get(key).await.unwrap(), None);
        let refused = store.create(key, Bytes::from_static(tier)).await;
        assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("forbidden")), "{refused:?}");
    }
}

#[test]
fn every_file_of_the_base_is_listed() {
    let there = std::fs::read_dir(base()).unwrap();
    let there = there.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let there: BTreeSet<String> = there.filter(|name| name != "kustomization.yaml").collect();
    assert_eq!(strings(&kustomization()["resources"]), there);
}

#[test]
fn images_are_those_that_the_kustomization_names() {
    let named: BTreeSet<String> = kustomization()["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["name"].as_str().unwrap().to_owned())
        .collect();
    let used = containers().iter().map(|container| container["image"].as_str().unwrap().to_owned()).collect();
    assert_eq!(named, used);
}

/// A misspelt variable would be passed over in silence.
#[test]
fn daemons_know_the_settings_they_are_given() {
    let mut checked = 0;
    for container in containers() {
        let daemon = container["name"].as_str().unwrap();
        if daemon == "node-init" {
            let table = std::fs::read_to_string(root().join("ctl/src/init/options.rs")).unwrap();
            for variable in container["env"].as_array().unwrap() {
                let name = variable["name"].as_str().unwrap();
                assert!(table.contains(&format!("env = \"{name}\"")), "node init knows no {name}");
            }
            continue;
        }
        for variable in container["env"].as_array().into_iter().flatten() {
            let variable = variable["name"].as_str().unwrap();
            let prefix = format!("{}_", daemon.to_uppercase());
            let setting = variable.strip_prefix(&prefix);
            let setting = setting.unwrap_or_else(|| panic!("{variable} is not for {daemon}")).to_lowercase();
            let table = std::fs::read_to_string(root().join(daemon).join("src/config.rs")).unwrap();
            let known = table.to_lowercase().contains(&format!("\"{setting}\""));
            assert!(known, "{daemon} knows no {variable}");
            checked += 1;
        }
    }
    assert!(checked > 8, "{checked} settings");
}

#[test]
fn selectors_find_the_pods_they_are_for() {
    let labels = find("Deployment", "bulrush-typha")["spec"]["template"]["metadata"]["labels"].clone();
    assert_eq!(find("Service", "bulrush-typha")["spec"]["selector"], labels);
    assert_eq!(find("PodDisruptionBudget", "bulrush-typha")["spec"]["selector"]["matchLabels"], labels);
    let template = find("Deployment", "bulrush-typha")["spec"]["template"]["spec"].clone();
    for constraint in template["topologySpreadConstraints"].as_array().unwrap() {
        assert_eq!(constraint["labelSelector"]["matchLabels"], labels);
    }
    // What the kubelet makes of the Service's name is where the agents look for typha.
    for container in containers().iter().filter(|container| container["name"] != "typha") {
        for variable in container["env"].as_array().into_iter().flatten() {
            if variable["name"].as_str().unwrap().ends_with("_TYPHAADDR") {
                let address = "$(BULRUSH_TYPHA_SERVICE_HOST):$(BULRUSH_TYPHA_SERVICE_PORT)";
                assert_eq!(variable["value"], address);
            }
        }
    }
}
