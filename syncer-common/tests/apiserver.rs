//! The real API server that other tests stand on does what they need of it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use futures::{Stream, TryStreamExt};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, Error, ResourceExt};
use syncer_common::testing::kubernetes::KubeServer;

const DEADLINE: Duration = Duration::from_secs(60);

fn pod(namespace: &str, name: &str, ip: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{app: web}}}},
          spec: {{nodeName: node-a, containers: [{{name: main, image: none}}]}},
          status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}]}}}}\n---\n"
    )
}

fn namespace(name: &str) -> String {
    format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n---\n")
}

async fn next<K>(events: &mut (impl Stream<Item = kube::Result<WatchEvent<K>>> + Unpin)) -> WatchEvent<K> {
    tokio::time::timeout(DEADLINE, events.try_next()).await.unwrap().unwrap().unwrap()
}

async fn may(client: Client, verb: &str, resource: &str) -> bool {
    let mut review = SelfSubjectAccessReview::default();
    review.spec.resource_attributes = Some(ResourceAttributes {
        verb: Some(verb.into()),
        resource: Some(resource.into()),
        ..ResourceAttributes::default()
    });
    let answer = Api::all(client).create(&PostParams::default(), &review).await.unwrap();
    answer.status.unwrap().allowed
}

#[tokio::test(flavor = "multi_thread")]
async fn applied_objects_are_there_with_their_status() {
    let Some(server) = KubeServer::shared().await else { return };
    let objects = [
        namespace("applied"),
        pod("applied", "web", "10.65.0.2"),
        "apiVersion: v1
kind: Node
metadata: {name: applied-node, annotations: {projectcalico.org/IPv4Address: 192.0.2.1/24}}
spec: {podCIDR: 10.65.0.0/24, podCIDRs: [10.65.0.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: applied}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
"
        .to_owned(),
    ];
    server.apply(&objects.concat()).await;

    let client = server.client().await;
    let pod = Api::<Pod>::namespaced(client.clone(), "applied").get("web").await.unwrap();
    assert_eq!(pod.status.unwrap().pod_ip.as_deref(), Some("10.65.0.2"));
    let node = Api::<Node>::all(client.clone()).get("applied-node").await.unwrap();
    assert_eq!(node.status.unwrap().addresses.unwrap()[0].address, "192.0.2.1");
    let policies = Api::<NetworkPolicy>::namespaced(client, "applied");
    assert_eq!(policies.list(&ListParams::default()).await.unwrap().items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_are_refused() {
    let Some(server) = KubeServer::shared().await else { return };
    let misspelt = "{apiVersion: v1, kind: Namespace, metadata: {name: misspelt, lables: {a: b}}}";
    let refused = server.try_apply(misspelt).await.unwrap_err();
    assert!(refused.to_string().contains("lables"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lists_come_in_pages_of_one_revision() {
    let Some(server) = KubeServer::shared().await else { return };
    let pods: String = (0..25).map(|i| pod("paged", &format!("p{i:02}"), "10.65.0.9")).collect();
    server.apply(&(namespace("paged") + &pods)).await;
    let pods = Api::<Pod>::namespaced(server.client().await, "paged");
    let mut params = ListParams::default().limit(10);
    let (mut names, mut revisions) = (Vec::new(), Vec::new());
    loop {
        let page = pods.list(&params).await.unwrap();
        revisions.push(page.metadata.resource_version.clone().unwrap());
        names.extend(page.items.iter().map(ResourceExt::name_any));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = ListParams::default().limit(10).continue_token(&token),
            None => break,
        }
    }
    assert_eq!(names, (0..25).map(|i| format!("p{i:02}")).collect::<Vec<_>>());
    assert_eq!(revisions.len(), 3);
    assert!(revisions.iter().all(|revision| *revision == revisions[0]), "{revisions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_tells_changes_in_order() {
    let Some(server) = KubeServer::shared().await else { return };
    server.apply(&namespace("watched")).await;
    let pods = Api::<Pod>::namespaced(server.client().await, "watched");
    let start = pods.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let watch = pods.watch(&WatchParams::default(), &start).await.unwrap();
    let mut watch = std::pin::pin!(watch);

    server.apply(&pod("watched", "web", "10.65.0.3")).await;
    pods.delete("web", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::Added(pod) if pod.name_any() == "web"));
    let status = next(&mut watch).await;
    assert!(
        matches!(&status, WatchEvent::Modified(pod)
        if pod.status.as_ref().unwrap().pod_ip.as_deref() == Some("10.65.0.3")),
        "{status:?}"
    );
    // A pod of a node is first marked as leaving, then goes.
    let leaving = next(&mut watch).await;
    assert!(
        matches!(&leaving, WatchEvent::Modified(pod)
        if pod.metadata.deletion_timestamp.is_some()),
        "{leaving:?}"
    );
    assert!(matches!(next(&mut watch).await, WatchEvent::Deleted(pod) if pod.name_any() == "web"));
}

#[tokio::test(flavor = "multi_thread")]
async fn identities_have_the_rights_that_rbac_gives_them() {
    let Some(server) = KubeServer::shared().await else { return };
    server
        .apply(
            "apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [''], resources: [pods], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects:
- {kind: ServiceAccount, name: reader, namespace: default}
- {kind: Group, apiGroup: rbac.authorization.k8s.io, name: readers}
",
        )
        .await;
    let token = server.service_account_token("default", "reader").await;
    let certificate = server.kubeconfig_for_certificate("jane", "readers");
    for client in [server.client_for(&token).await, server.client_of(&certificate).await] {
        assert!(may(client.clone(), "list", "pods").await);
        assert!(!may(client, "list", "secrets").await);
    }
    assert!(may(server.client().await, "list", "secrets").await);
    let stranger = server.client_for("not-a-token").await;
    let refused = Api::<Namespace>::all(stranger).list(&ListParams::default()).await;
    assert!(matches!(&refused, Err(Error::Api(status)) if status.code == 401), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_outlives_a_restart_and_not_a_new_etcd() {
    let Some(mut server) = KubeServer::start().await else { return };
    server.apply(&namespace("kept")).await;
    let namespaces = Api::<Namespace>::all(server.client().await);
    server.restart().await;
    assert!(namespaces.get_opt("kept").await.unwrap().is_some());

    server.pause().await;
    let silent = tokio::time::timeout(Duration::from_millis(200), namespaces.get("kept")).await;
    assert!(silent.is_err(), "a stopped server answered: {silent:?}");
    server.resume();
    assert!(namespaces.get_opt("kept").await.unwrap().is_some());

    server.kill();
    assert!(namespaces.get("kept").await.is_err());
    server.restart_empty().await;
    assert!(namespaces.get_opt("kept").await.unwrap().is_none());
}
