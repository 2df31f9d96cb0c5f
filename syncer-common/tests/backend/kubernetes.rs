//! A real API server: what it does to a watch when it restarts, pauses, forgets or refuses, kinds that are
//! installed late, and what is written through us. What it can not be made to do is in `kubernetes_faults.rs`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::{Value, json};
use syncer_common::backend::config::{KubernetesConfig, StoreConfig, open};
use syncer_common::backend::kubernetes::{KubernetesStore, Timing};
use syncer_common::backend::{Datastore, Error, Event, Source, Watch, WatchItem};
use syncer_common::kubernetes::ApiGroup;
use syncer_common::testing::kubernetes::KubeServer;

use crate::etcd::Followed;
use crate::support::{OneSource, State, eventually, key, next, value};

fn named(store: &Arc<impl Datastore>, name: &str) -> Arc<dyn Source> {
    let sources = store.clone().sources();
    sources.into_iter().find(|source| source.name() == name).unwrap()
}

fn config(server: &KubeServer) -> KubernetesConfig {
    KubernetesConfig { kubeconfig: Some(server.kubeconfig()), ..KubernetesConfig::default() }
}

/// Like the default, and looking for missing kinds more often.
async fn store(config: KubernetesConfig) -> Arc<KubernetesStore> {
    let timing = Timing { absent: Duration::from_millis(100), ..Timing::default() };
    Arc::new(KubernetesStore::open_with(config, timing).await.unwrap())
}

fn crd(plural: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/crds/v1/{plural}.yaml"));
    std::fs::read_to_string(path).unwrap()
}

/// The server of this test alone, with GlobalNetworkSets.
async fn own_server() -> Option<(KubeServer, Arc<KubernetesStore>)> {
    let server = KubeServer::start().await?;
    server.apply(&crd("globalnetworksets")).await;
    let store = store(config(&server)).await;
    Some((server, store))
}

/// The next events, past bookmarks.
async fn events(watch: &mut Watch) -> Vec<Event> {
    loop {
        if let WatchItem::Events { events, .. } = next(watch).await.unwrap() {
            return events;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_restarts_loses_no_event() {
    let Some((mut server, store)) = own_server().await else { return };
    store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    store.create(&key("gone"), value("gone", "10.0.0.0/24")).await.unwrap();
    let store: Arc<dyn Datastore> = store;
    let mut followed = Followed::of(vec![store.source()]);
    followed.until("first objects", |f| f.state.items.len() == 2).await;
    server.restart().await;
    eventually("reads again", || async { store.head().await.ok() }).await;
    store.create(&key("b"), value("b", "10.0.0.0/24")).await.unwrap();
    store.delete(&key("gone"), None).await.unwrap();
    followed
        .until("what was written after the restart", |f| {
            f.state.items.contains_key(&key("b")) && !f.state.items.contains_key(&key("gone"))
        })
        .await;
    assert_eq!(followed.state.items, State::from(store.list(None).await.unwrap()).items);
    assert_eq!(followed.withdrawn.iter().collect::<Vec<_>>(), [&key("gone")], "and nothing else, ever");
    // A new process has no history from before it began: it may have to be listed again, and that is all.
    assert!(followed.snapshots <= 2, "{}", followed.snapshots);
    println!("lists for one restart: {}", followed.snapshots - 1);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_while_cut_off_is_recovered_from() {
    let Some((mut server, store)) = own_server().await else { return };
    for name in ["a", "gone"] {
        store.create(&key(name), value(name, "10.0.0.0/24")).await.unwrap();
    }
    let store: Arc<dyn Datastore> = store;
    let start = store.list(None).await.unwrap();
    let mut followed = Followed::of(vec![store.source()]);
    followed.until("first objects", |f| f.state.items.len() == 2).await;
    server.stop();
    followed.until("the outage", |f| f.outages == 1).await;

    // Another API server would do this: delete an object, and go on for long enough.
    let mut etcd = etcd_client::Client::connect([server.etcd_endpoint()], None).await.unwrap();
    let path = "/registry/crd.projectcalico.org/globalnetworksets/gone";
    assert_eq!(etcd.delete(path, None).await.unwrap().deleted(), 1);
    let mut revision = 0;
    for round in 0..10 {
        revision =
            etcd.put("/elsewhere", format!("{round}"), None).await.unwrap().header().unwrap().revision();
    }
    etcd.compact(revision, None).await.unwrap();
    server.restart().await;

    followed.until("the deletion", |f| !f.state.items.contains_key(&key("gone"))).await;
    assert_eq!(followed.snapshots, 2);
    assert_eq!(followed.state.items.len(), 1);
    assert_eq!(followed.outages, 1);
    followed.stop().await;
    let lost = match store.watch(start.revision).await {
        Ok(mut watch) => next(&mut watch).await.err(),
        Err(error) => Some(error),
    };
    assert!(matches!(lost, Some(Error::Compacted { .. })), "{lost:?}");
    let past = store.list(Some(start.revision)).await;
    assert!(matches!(past, Err(Error::Compacted { .. })), "{past:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_server_is_noticed_by_reads_and_watches() {
    let Some((server, store)) = own_server().await else { return };
    let store: Arc<dyn Datastore> = store;
    let revision = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let mut watch = store.watch(revision).await.unwrap();
    let mut followed = Followed::of(vec![store.source()]);
    followed.until("the object", |f| f.state.items.len() == 1).await;
    server.pause().await;
    let began = Instant::now();
    let read = store.head().await;
    assert!(matches!(read, Err(Error::Unavailable { .. })), "{read:?}");
    let read_failed = began.elapsed();
    followed.until("the outage", |f| f.outages == 1).await;
    let outage = began.elapsed();
    // The watch alone, without reads beside it: the pings of HTTP/2 find it dead.
    let alone = loop {
        match next(&mut watch).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let watch_failed = began.elapsed();
    assert!(matches!(alone, Error::Unavailable { .. }), "{alone}");
    println!(
        "paused server: read failed after {read_failed:?}, outage after {outage:?}, watch after {watch_failed:?}"
    );
    assert!(
        read_failed < Duration::from_secs(20) && outage < Duration::from_secs(30),
        "{read_failed:?} {outage:?}"
    );
    assert!(watch_failed < Duration::from_secs(50), "{watch_failed:?}");
    server.resume();
    let last = eventually("writes", || async {
        match store.create(&key("b"), value("b", "10.0.0.0/24")).await {
            Ok(revision) => Some(revision),
            Err(Error::Conflict { .. }) => Some(store.get(&key("b")).await.ok()??.mod_revision),
            Err(_) => None,
        }
    })
    .await;
    followed.until("what came after the pause", |f| f.state.revision >= last).await;
    assert_eq!((followed.snapshots, followed.outages), (1, 1), "resumed where it was");
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kind_is_picked_up_when_it_is_installed_and_again_after_it_was_removed() {
    let Some(server) = KubeServer::start().await else { return };
    let store: Arc<dyn Datastore> = store(config(&server)).await;
    let mut followed = Followed::of(vec![store.source()]);
    followed.until("an empty list", |f| f.snapshots == 1).await;
    assert_eq!(store.get(&key("a")).await.unwrap(), None);
    let refused = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap_err();
    assert!(refused.to_string().contains("install the CRDs"), "{refused}");

    server.apply(&crd("globalnetworksets")).await;
    store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    followed.until("the first object", |f| f.state.items.len() == 1).await;

    // Removing the definition deletes its objects one by one, which the watch tells.
    let crds: Api<CustomResourceDefinition> = Api::all(server.client().await);
    crds.delete("globalnetworksets.crd.projectcalico.org", &DeleteParams::default()).await.unwrap();
    followed.until("the deletion", |f| f.state.items.is_empty()).await;
    eventually("the kind is gone", || async {
        store
            .create(&key("b"), value("b", "10.0.0.0/24"))
            .await
            .is_err_and(|e| e.to_string().contains("CRD"))
            .then_some(())
    })
    .await;
    server.apply(&crd("globalnetworksets")).await;
    store.create(&key("c"), value("c", "10.0.0.0/24")).await.unwrap();
    followed.until("an object of the new definition", |f| f.state.items.contains_key(&key("c"))).await;
    assert_eq!(followed.outages, 0);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_is_what_the_settings_say() {
    let Some(server) = KubeServer::shared().await else { return };
    server
        .apply(
            "{apiVersion: v1, kind: Namespace, metadata: {name: identity}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: reader, namespace: identity}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: identity}
rules:
- {apiGroups: [''], resources: [namespaces, pods], verbs: [list, watch]}
- {apiGroups: [''], resources: [services], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: identity}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: identity}
subjects: [{kind: ServiceAccount, name: reader, namespace: identity}]
",
        )
        .await;
    let token = server.service_account_token("identity", "reader").await;
    let with = |kubeconfig| KubernetesConfig { kubeconfig: Some(kubeconfig), ..KubernetesConfig::default() };

    // A kind that the account may not read is named; the others do not suffer.
    let reader = store(with(server.kubeconfig_for(&token))).await;
    let pods = named(&reader, "kubernetes/pods");
    let listed = pods.list(None).await.unwrap();
    pods.history().await.unwrap();
    let watch = pods.watch(listed.revision).await;
    assert!(watch.is_ok());
    let refused = named(&reader, "kubernetes/nodes").list(None).await.unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, Error::Invalid { .. }), "{text}");
    assert!(text.contains("list of nodes") && text.contains("identity:reader"), "{text}");
    let services = named(&reader, "kubernetes/services");
    let revision = services.list(None).await.unwrap().revision;
    let refused = services.watch(revision).await.err().unwrap().to_string();
    assert!(refused.contains("allow watch of services"), "{refused}");

    // A token in a file is read again when the server no longer takes the old one.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "expired").unwrap();
    let rotated = store(with(server.kubeconfig_for_file(file.path()))).await;
    let pods = named(&rotated, "kubernetes/pods");
    let refused = pods.head().await.unwrap_err().to_string();
    assert!(refused.contains("401"), "{refused}");
    std::fs::write(file.path(), &token).unwrap();
    pods.head().await.unwrap();

    let certified = store(with(server.kubeconfig_for_certificate("operator", "system:masters"))).await;
    named(&certified, "kubernetes/nodes").list(None).await.unwrap();
    let stranger = store(with(server.kubeconfig_for_certificate("stranger", "nobody"))).await;
    let refused = named(&stranger, "kubernetes/nodes").list(None).await.unwrap_err().to_string();
    assert!(refused.contains("stranger"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_of_a_real_server_is_no_event() {
    let Some(server) = KubeServer::shared().await else { return };
    server
        .apply(
            "{apiVersion: v1, kind: Namespace, metadata: {name: noise}}
---
apiVersion: v1
kind: Node
metadata: {name: noise-node, annotations: {projectcalico.org/IPv4Address: 192.0.2.1/24}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: noise-pod, namespace: noise}
spec: {nodeName: noise-node, containers: [{name: c, image: none}]}
status: {phase: Running, podIP: 10.65.0.9, podIPs: [{ip: 10.65.0.9}]}
---
apiVersion: v1
kind: Service
metadata: {name: noise-service, namespace: noise}
spec: {ports: [{port: 80}]}
",
        )
        .await;
    let store = store(config(&server)).await;
    let kinds = ["kubernetes/nodes", "kubernetes/pods", "kubernetes/services"];
    let mut watches = Vec::new();
    for kind in kinds {
        let source = named(&store, kind);
        let revision = source.list(None).await.unwrap().revision;
        watches.push(source.watch(revision).await.unwrap());
    }
    let client = server.client().await;
    let (nodes, pods) = (Api::<Node>::all(client.clone()), Api::<Pod>::namespaced(client.clone(), "noise"));
    let services = Api::<Service>::namespaced(client, "noise");
    let params = PatchParams::default();
    for round in 0..20 {
        let time = format!("2026-01-01T00:00:{round:02}Z");
        let ready = json!({ "status": { "conditions": [{
            "type": "Ready", "status": "True", "lastHeartbeatTime": time, "lastTransitionTime": time,
        }] } });
        nodes.patch_status("noise-node", &params, &Patch::Merge(&ready)).await.unwrap();
        let probed = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True", "lastProbeTime": time }] } });
        pods.patch_status("noise-pod", &params, &Patch::Merge(&probed)).await.unwrap();
        // Another owner of the same field: only the server's bookkeeping changes.
        let same = json!({ "apiVersion": "v1", "kind": "Service", "spec": { "ports": [{ "port": 80, "protocol": "TCP" }] } });
        let owner = PatchParams::apply(&format!("owner-{round}"));
        services.patch("noise-service", &owner, &Patch::Apply(&same)).await.unwrap();
    }
    let label = json!({ "metadata": { "labels": { "noise": "over" } } });
    nodes.patch("noise-node", &params, &Patch::Merge(&label)).await.unwrap();
    pods.patch("noise-pod", &params, &Patch::Merge(&label)).await.unwrap();
    services.patch("noise-service", &params, &Patch::Merge(&label)).await.unwrap();
    for (kind, watch) in kinds.iter().zip(&mut watches) {
        loop {
            let found = events(watch).await;
            // Other tests write to this server too.
            if let [Event::Put(item)] = &found[..]
                && item.key.contains("noise")
            {
                let text = String::from_utf8_lossy(&item.value);
                assert!(text.contains("over"), "{kind}: {text}");
                break;
            }
        }
    }
    assert!(store.counters().skipped.load(Ordering::Relaxed) >= 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_every_form_are_written_and_read_by_their_paths() {
    let Some(server) = KubeServer::start().await else { return };
    server.install_crds(ApiGroup::V1).await;
    server
        .apply(
            "{apiVersion: v1, kind: Namespace, metadata: {name: crud, labels: {a: b}}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: crud}
spec: {nodeName: node-a, containers: [{name: c, image: none}]}
status: {phase: Running, podIP: 10.65.0.9, podIPs: [{ip: 10.65.0.9}]}
",
        )
        .await;
    let store: Arc<dyn Datastore> = store(config(&server)).await;

    let root = "/calico/resources/v3/projectcalico.org";
    let policy = format!("{root}/networkpolicies/crud/allow");
    let mut object = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "NetworkPolicy",
        "metadata": { "name": "allow", "namespace": "crud", "labels": { "a": "b" } },
        "spec": { "tier": "default", "selector": "all()", "types": ["Ingress"], "ingress": [{ "action": "Allow" }] },
    });
    let created = store.create(&policy, Bytes::from(object.to_string())).await.unwrap();
    let found = store.get(&policy).await.unwrap().unwrap();
    assert_eq!((&found.key, found.mod_revision), (&policy, created));
    let read: Value = serde_json::from_slice(&found.value).unwrap();
    assert_eq!((&read["spec"], &read["metadata"]["labels"]["a"]), (&object["spec"], &json!("b")));

    object["spec"]["ingress"][0]["action"] = "Perhaps".into();
    let error = store.replace(&policy, Bytes::from(object.to_string()), created).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid { what, .. } if *what == policy), "{error}");
    assert!(error.to_string().contains("action"), "names the field: {error}");
    let nowhere = format!("{root}/networkpolicies/nowhere/allow");
    object["spec"]["ingress"][0]["action"] = "Deny".into();
    object["metadata"]["namespace"] = "nowhere".into();
    let error = store.create(&nowhere, Bytes::from(object.to_string())).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid { .. }) && error.to_string().contains("namespace"), "{error}");

    // IPAM's objects have paths of their own, and are deleted in two steps.
    let block = "/calico/ipam/v2/assignment/ipv4/block/10.65.0.0-26";
    let affinity = "/calico/ipam/v2/host/node-a/ipv4/block/10.65.0.0-26";
    let content = json!({
        "cidr": "10.65.0.0/26", "affinity": "host:node-a", "allocations": vec![Value::Null; 64],
        "unallocated": (0..64).collect::<Vec<_>>(), "attributes": [], "deleted": false,
    });
    store.create(block, Bytes::from(content.to_string())).await.unwrap();
    let made = store.create(affinity, Bytes::from_static(b"{\"state\":\"confirmed\"}")).await.unwrap();
    let items = store.get_prefix("/calico/ipam/v2/").await.unwrap();
    assert_eq!(items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), [block, affinity]);
    let stale = store.delete(affinity, Some(made - 1)).await;
    assert!(matches!(stale, Err(Error::Conflict { .. })), "{stale:?}");
    let deleted = store.delete(affinity, Some(made)).await.unwrap();
    assert!(deleted > made);
    assert_eq!(store.get(affinity).await.unwrap(), None);

    // A deletion that somebody else began is ended by whoever sees it.
    let blocks = GroupVersionKind::gvk("crd.projectcalico.org", "v1", "IPAMBlock");
    let blocks = ApiResource::from_gvk(&blocks);
    let blocks: Api<DynamicObject> = Api::all_with(server.client().await, &blocks);
    let marked = json!({ "spec": { "deleted": true } });
    blocks.patch("10-65-0-0-26", &PatchParams::default(), &Patch::Merge(&marked)).await.unwrap();
    assert_eq!(store.get(block).await.unwrap(), None);
    assert!(blocks.get_opt("10-65-0-0-26").await.unwrap().is_none());

    // What Kubernetes makes is read, and not written.
    let endpoint = format!("{root}/workloadendpoints/crud/node--a-k8s-web-eth0");
    let profile = format!("{root}/profiles/kns.crud");
    let pod = store.get(&endpoint).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&pod.value).contains("10.65.0.9"));
    assert!(
        store.get(&format!("{root}/workloadendpoints/crud/node--b-k8s-web-eth0")).await.unwrap().is_none()
    );
    for path in [&endpoint, &profile] {
        let found = store.get(path).await.unwrap().unwrap();
        for refused in [
            store.replace(path, found.value.clone(), found.mod_revision).await.unwrap_err(),
            store.delete(path, None).await.unwrap_err(),
        ] {
            assert!(matches!(&refused, Error::Invalid { what, .. } if what == path), "{refused}");
        }
    }
    let profiles = store.get_prefix(&format!("{root}/profiles/")).await.unwrap();
    assert!(profiles.iter().any(|item| item.key == profile));

    // More than a page, written side by side.
    let names: Vec<String> = (0..620).map(|n| format!("s{n:03}")).collect();
    let written = futures::stream::iter(&names)
        .map(|name| {
            let store = store.clone();
            async move { store.create(&key(name), value(name, "10.0.0.0/24")).await }
        })
        .buffer_unordered(32)
        .filter(|result| std::future::ready(result.is_ok()))
        .count();
    assert_eq!(written.await, 620);
    let listing = store.list(None).await.unwrap();
    assert_eq!(listing.items.len(), 620);
    assert_eq!(store.get_prefix(&key("")).await.unwrap(), listing.items);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_group_is_found_where_it_alone_is_installed() {
    let Some(server) = KubeServer::start().await else { return };
    server.install_crds(ApiGroup::V3).await;
    let store = open(&StoreConfig::Kubernetes(config(&server))).await.unwrap();
    let created = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let listing = store.list(None).await.unwrap();
    assert_eq!((listing.items.len(), listing.items[0].mod_revision), (1, created));
    let mut watch = store.watch(listing.revision).await.unwrap();
    let deleted = store.delete(&key("a"), Some(created)).await.unwrap();
    assert_eq!(events(&mut watch).await, [Event::Delete { key: key("a"), mod_revision: deleted }]);
    // Every kind is served.
    for source in store.sources() {
        source.list(None).await.unwrap_or_else(|error| panic!("{}: {error}", source.name()));
    }
}
