//! The program on a real API server, under the account that `deploy/kustomize` gives it.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use harness::process::Typha;
use harness::*;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;
use syncer_common::backend::config::{KubernetesConfig, StoreConfig, open};
use syncer_common::kubernetes::ApiGroup;
use syncer_common::model::{Key, Value};
use syncer_common::testing::kubernetes::KubeServer;

const CALICO: &str = include_str!("manifests/calico.yaml");
const KUBERNETES: &str = include_str!("manifests/kubernetes.yaml");

const SECRETS: &str = "
apiVersion: v1
kind: Secret
metadata: {name: bgp-passwords, namespace: bulrush-system}
stringData: {rack: hunter2}
---
apiVersion: v1
kind: Secret
metadata: {name: other, namespace: bulrush-system}
stringData: {rack: hunter3}
";
/// As `deploy/kustomize/base/rbac.yaml` advises.
const PASSWORDS_ROLE: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: bulrush-bgp-passwords, namespace: bulrush-system}
rules:
  - apiGroups: ['']
    resources: [secrets]
    resourceNames: [bgp-passwords]
    verbs: [get]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: bulrush-bgp-passwords, namespace: bulrush-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: bulrush-bgp-passwords}
subjects: [{kind: ServiceAccount, name: bulrush-typha, namespace: bulrush-system}]
";

fn labels(agent: &Agent, pod: &str) -> Option<Vec<(String, String)>> {
    agent.look().state.iter().find_map(|(key, value)| match (key, value) {
        (Key::WorkloadEndpoint(endpoint), Value::WorkloadEndpoint(value))
            if endpoint.workload == format!("shop/{pod}") =>
        {
            Some(value.labels.clone().into_iter().collect())
        }
        _ => None,
    })
}

/// The files of a service account, as a pod has them.
fn account(server: &KubeServer, token: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), token).unwrap();
    std::fs::write(folder.path().join("namespace"), "bulrush-system").unwrap();
    std::fs::copy(server.ca_file(), folder.path().join("ca.crt")).unwrap();
    folder
}

fn owned((host, port): (&str, &str)) -> (String, String) {
    (host.to_owned(), port.to_owned())
}

fn resumed_by_delta(typha: &Typha) -> bool {
    let counted = |text: String| text.lines().any(|line| line == "typha_resumes_total{verdict=\"delta\"} 1");
    typha.get("/metrics").is_some_and(counted)
}

/// What agents hold survives the API server's restart and their typha's end, and then changes with the cluster.
#[tokio::test(flavor = "multi_thread")]
async fn agents_keep_what_they_hold_and_follow_the_cluster() {
    let Some(mut server) = KubeServer::start().await else { return };
    server.install_crds(ApiGroup::V3).await;
    server.apply_folder("crds/policy").await;
    server.apply(KUBERNETES).await;
    server.apply(CALICO).await;
    server.apply_folder("kustomize/base").await;
    let token = server.service_account_token("bulrush-system", "bulrush-typha").await;
    let kubeconfig = server.kubeconfig_for(&token).display().to_string();
    let settings = [("TYPHA_DATASTORETYPE", "kubernetes"), ("TYPHA_KUBECONFIG", kubeconfig.as_str())];
    // One is given a kubeconfig, the other runs as in a pod.
    let account = account(&server, &token);
    let (host, port) = server.url().strip_prefix("https://").unwrap().rsplit_once(':').map(owned).unwrap();
    let in_pod = [
        ("TYPHA_DATASTORETYPE", "kubernetes"),
        ("KUBERNETES_SERVICE_HOST", host.as_str()),
        ("KUBERNETES_SERVICE_PORT", port.as_str()),
    ];
    let mut replicas = [Typha::start(&settings), Typha::start_in_pod(account.path(), &in_pod)];
    for replica in &replicas {
        replica.ready().await;
    }
    let servers: Vec<String> = replicas.iter().map(|replica| replica.server.to_string()).collect();
    for replica in &replicas {
        let metrics = replica.get("/metrics").unwrap();
        let events =
            metrics.lines().any(|line| line.starts_with("typha_datastore_client_events_total{event="));
        assert!(events, "{metrics}");
    }
    let agent = Agent::start(&servers, "felix");
    eventually("the agent to be in sync", || agent.look().in_sync == 1).await;
    assert!(labels(&agent, "api-1").is_some());

    server.restart().await;
    let pods = Api::<Pod>::namespaced(server.client().await, "shop");
    let relabel = json!({ "metadata": { "labels": { "app": "moved" } } });
    pods.patch("api-1", &PatchParams::default(), &Patch::Merge(&relabel)).await.unwrap();
    let moved = || {
        labels(&agent, "api-1").is_some_and(|labels| labels.contains(&("app".to_owned(), "moved".to_owned())))
    };
    eventually("the label", moved).await;
    let updates = agent.look().updates;

    let connected = agent.look().connected.last().cloned().unwrap();
    let left = servers.iter().position(|server| *server == connected).unwrap();
    assert!(replicas[left].process.terminate().success());
    eventually("the agent at the other replica", || agent.look().connected.len() == 2).await;
    eventually("what it was told since it left", || resumed_by_delta(&replicas[1 - left])).await;
    assert_eq!((agent.look().updates, agent.look().deletions), (updates, vec![]));

    pods.delete("api-1", &DeleteParams::default().grace_period(0)).await.unwrap();
    eventually("the deletion", || labels(&agent, "api-1").is_none()).await;
    let account = agent.look();
    assert_eq!((account.deletions.len(), account.in_sync), (1, 1));
    assert!(account.spurious.is_empty(), "{:?}", account.spurious);

    // Typha's account reads no Secret but those that it is allowed to read by name.
    server.apply(SECRETS).await;
    let config = KubernetesConfig { kubeconfig: Some(kubeconfig.into()), ..Default::default() };
    let store = open(&StoreConfig::Kubernetes(config)).await.unwrap();
    let secret = async |name: &str| store.secret("bulrush-system", name).await;
    assert!(secret("bgp-passwords").await.unwrap_err().to_string().contains("forbidden"));
    server.apply(PASSWORDS_ROLE).await;
    eventually_async("the role to be in force", async || secret("bgp-passwords").await.is_ok()).await;
    let texts = secret("bgp-passwords").await.unwrap().unwrap();
    assert_eq!(texts.get("rack").map(String::as_str), Some("hunter2"));
    let refused = secret("other").await.unwrap_err().to_string();
    assert!(refused.contains("forbidden"), "{refused}");
}
