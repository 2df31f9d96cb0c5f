//! One cluster in three datastores: agents of typha are told the same, whichever it reads.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use std::sync::Arc;

use harness::process::Typha;
use harness::*;
use syncer_common::backend::Datastore;
use syncer_common::backend::config::{StoreConfig, open};
use syncer_common::kubernetes::ApiGroup;
use syncer_common::manifests::parse_manifest;
use syncer_common::testing::etcd::EtcdServer;
use syncer_common::testing::kubernetes::KubeServer;

const CALICO: &str = include_str!("manifests/calico.yaml");
const KUBERNETES: &str = include_str!("manifests/kubernetes.yaml");

/// Path and value of each of Calico's resources, as `bulrushctl` would store them.
fn resources() -> Vec<(String, Vec<u8>)> {
    let parsed = parse_manifest(CALICO).into_iter();
    let resources = parsed.map(|resource| resource.unwrap_or_else(|error| panic!("{error:?}")));
    resources.map(|resource| (resource.key_path().unwrap(), resource.to_stored())).collect()
}

/// What a replica with these settings tells a felix and a confd.
async fn told(settings: &[(&str, &str)]) -> [State; 2] {
    let typha = Typha::start(settings);
    typha.ready().await;
    let server = [typha.server.to_string()];
    let agents = [Agent::start(&server, "felix"), Agent::start(&server, "confd")];
    eventually("both agents to be in sync", || agents.iter().all(|agent| agent.look().in_sync == 1)).await;
    agents.map(|agent| agent.look().state)
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_told_the_same_whatever_the_datastore() {
    let Some(etcd) = EtcdServer::start().await else { return };
    for group in [ApiGroup::V1, ApiGroup::V3] {
        let Some(server) = KubeServer::start().await else { return };
        server.install_crds(group).await;
        server.apply_folder("crds/policy").await;
        let manifests = match group {
            ApiGroup::V1 => CALICO.replace("projectcalico.org/v3", "crd.projectcalico.org/v1"),
            ApiGroup::V3 => CALICO.to_owned(),
        };
        server.apply(KUBERNETES).await;
        server.apply(&manifests).await;

        // The others hold the same resources, and what Kubernetes holds as its own in the form in which Calico's
        // controllers and CNI plugin write it.
        let kubernetes = open(&server.config()).await.unwrap();
        let mut objects = resources();
        for kind in ["workloadendpoints", "profiles", "nodes", "kubernetesnetworkpolicies"] {
            objects.extend(stored(&kubernetes, kind).await);
        }
        for kind in ["kubernetesservice", "kubernetesendpointslices"] {
            objects.extend(stored(&kubernetes, kind).await);
        }
        let folder = tempfile::tempdir().unwrap();
        let directory = StoreConfig::directory(folder.path());
        for config in [etcd.config(), directory] {
            let store = open(&config).await.unwrap();
            for old in store.get_prefix("/calico/").await.unwrap() {
                store.delete(&old.key, None).await.unwrap();
            }
            for (path, value) in &objects {
                store.create(path, value.clone().into()).await.unwrap();
            }
        }

        let (kubeconfig, endpoint) = (server.kubeconfig().display().to_string(), etcd.endpoint());
        let path = folder.path().display().to_string();
        let from_kubernetes =
            told(&[("TYPHA_DATASTORETYPE", "kubernetes"), ("TYPHA_KUBECONFIG", &kubeconfig)]).await;
        let from_etcd = told(&[("TYPHA_ETCDENDPOINTS", &endpoint)]).await;
        let from_directory = told(&[("TYPHA_DATASTORETYPE", "directory"), ("TYPHA_DIRECTORY", &path)]).await;
        for (agent, of_agent) in ["felix", "confd"].into_iter().enumerate() {
            same(&format!("{of_agent}, {group:?}, etcd"), &from_kubernetes[agent], &from_etcd[agent]);
            same(
                &format!("{of_agent}, {group:?}, directory"),
                &from_kubernetes[agent],
                &from_directory[agent],
            );
        }
        // Endpoints of two pods, not of the one with the host's network.
        let endpoints = from_kubernetes[0].keys().filter(|key| key.path().unwrap().contains("/workload/"));
        assert_eq!(endpoints.count(), 2);
        assert!(from_kubernetes[0].len() > 30, "{}", from_kubernetes[0].len());
    }
}

async fn stored(store: &Arc<dyn Datastore>, plural: &str) -> Vec<(String, Vec<u8>)> {
    let found = store.get_prefix(&format!("/calico/resources/v3/projectcalico.org/{plural}/")).await.unwrap();
    assert!(!found.is_empty(), "{plural}");
    found.into_iter().map(|object| (object.key, object.value.to_vec())).collect()
}

fn same(what: &str, one: &State, other: &State) {
    for (key, value) in one {
        assert_eq!(Some(value), other.get(key), "{what}: {}", key.path().unwrap());
    }
    for key in other.keys() {
        assert!(one.contains_key(key), "{what}: {} is not in Kubernetes", key.path().unwrap());
    }
}
