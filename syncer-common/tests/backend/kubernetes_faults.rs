//! What is particular to Kubernetes: pages, bookmarks, kinds that come and go, a server that is busy, slow,
//! forgetful or restored. Faults come from a server of our own (`fake_apiserver.rs`), all else from a real one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use syncer_common::backend::config::{KubernetesConfig, StoreConfig, open};
use syncer_common::backend::kubernetes::{Counters, KubernetesStore, Timing};
use syncer_common::backend::{Datastore, Error, Event, Source, WatchItem};

use crate::fake_apiserver::{self as fake, FakeServer, Fault, NODES, PODS, SETS_V1, SETS_V3};
use crate::support::{State, eventually, key, next};

const SETS: &str = "kubernetes/globalnetworksets";

/// Short enough for tests, long enough for a loaded machine where being late would change the outcome.
fn timing() -> Timing {
    Timing {
        reopen: Duration::from_millis(10),
        absent: Duration::from_millis(50),
        silence: Duration::from_secs(60),
        request: Duration::from_secs(20),
        ..Timing::default()
    }
}

/// A client of the fake: one of its sources, and what it counts.
async fn source_with(server: &FakeServer, name: &str, timing: Timing) -> (Arc<dyn Source>, Arc<Counters>) {
    let store = Arc::new(KubernetesStore::open_with(server.config(), timing).await.unwrap());
    let counters = store.counters();
    (named(store, name), counters)
}

async fn source(server: &FakeServer, name: &str) -> Arc<dyn Source> {
    source_with(server, name, timing()).await.0
}

fn named(store: Arc<dyn Datastore>, name: &str) -> Arc<dyn Source> {
    store.sources().into_iter().find(|source| source.name() == name).unwrap()
}

/// A GlobalNetworkSet as a custom resource.
fn set(name: &str, net: &str) -> Value {
    json!({
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "GlobalNetworkSet",
        "metadata": { "name": name, "uid": "3f9c9e4e-5a6f-4f0e-8a63-0d9c4d2f0001" },
        "spec": { "nets": [net] },
    })
}

fn puts(item: WatchItem) -> Vec<String> {
    match item {
        WatchItem::Events { events, .. } => events
            .into_iter()
            .map(|event| match event {
                Event::Put(item) => item.key,
                other => panic!("{other:?}"),
            })
            .collect(),
        WatchItem::Progress { .. } => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn list_is_read_in_pages_and_followed_by_the_watch() {
    let server = FakeServer::start(&[SETS_V1]).await;
    for index in 0..1_200 {
        server.put(SETS_V1, set(&format!("s{index:04}"), "10.0.0.0/24"));
    }
    let sets = source(&server, SETS).await;
    let listing = sets.list(None).await.unwrap();
    assert_eq!((listing.items.len(), listing.revision), (1_200, 1_300));
    assert_eq!(server.asked("limit=500").len(), 3);
    let mut state = State::from(listing);
    let mut watch = sets.watch(state.revision).await.unwrap();
    server.put(SETS_V1, set("s0001", "10.1.0.0/24"));
    let last = server.delete(SETS_V1, "s0002");
    state.follow(&mut watch, last).await;
    assert_eq!(state, State::from(sets.list(None).await.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn list_that_outlives_its_revision_begins_again() {
    let server = FakeServer::start(&[SETS_V1]).await;
    for index in 0..1_100 {
        server.put(SETS_V1, set(&format!("s{index:04}"), "10.0.0.0/24"));
    }
    // The server offers to go on at another revision: that would be no list.
    let mut body = fake::status(410, "Expired");
    body["metadata"] = json!({ "continue": "1:1000" });
    let refuse = Fault::Refuse { code: 410, body: body.to_string(), retry_after: None };
    server.fault("continue=", 1, refuse);
    let sets = source(&server, SETS).await;
    let listing = sets.list(None).await.unwrap();
    assert_eq!(listing.items.len(), 1_100);
    assert_eq!(server.asked("limit=2000").len(), 1, "from the start, with larger pages");

    server.refuse("continue=", 100, 410, "Expired");
    server.refuse("limit=2000", 100, 410, "Expired");
    server.refuse("limit=8000", 100, 410, "Expired");
    server.refuse("limit=32000", 100, 410, "Expired");
    assert!(matches!(sets.list(None).await, Err(Error::Compacted { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_is_told_by_watches_that_begin_and_that_run() {
    let server = FakeServer::start(&[SETS_V1]).await;
    let sets = source(&server, SETS).await;
    let start = server.put(SETS_V1, set("a", "10.0.0.0/24"));
    let mut watch = sets.watch(start).await.unwrap();
    let expired = json!({ "type": "ERROR", "object": fake::status(410, "Expired") });
    server.pass(1);
    server.send(SETS_V1, &format!("{expired}\n"));
    let error = next(&mut watch).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { compacted } if compacted == start), "{error}");

    server.forget_sent();
    server.compact();
    let error = sets.watch(start).await.err().unwrap();
    assert!(matches!(error, Error::Compacted { compacted } if compacted == start), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_an_event_is_no_event_and_comes_again() {
    let server = FakeServer::start(&[SETS_V1]).await;
    let sets = source(&server, SETS).await;
    let start = server.put(SETS_V1, set("a", "10.0.0.0/24"));
    let mut watch = sets.watch(start).await.unwrap();
    let half = async {
        server.pass(1);
        server.send(SETS_V1, r#"{"type":"ADDED","object":{"metadata":{"name":"b","resourceVersion":"9"#);
        server.end_watches();
        let second = || async { (server.asked("watch=true").len() == 2).then_some(()) };
        eventually("another watch", second).await;
        server.forget_sent();
        server.end_watches();
        server.put(SETS_V1, set("b", "10.0.0.0/24"))
    };
    let follow = async {
        loop {
            match next(&mut watch).await {
                Ok(item) => return item,
                // The server may end the second watch before it has begun: whoever follows opens a third.
                Err(Error::Unavailable { .. }) => watch = sets.watch(start).await.unwrap(),
                Err(error) => panic!("{error}"),
            }
        }
    };
    let (item, last) = tokio::join!(follow, half);
    assert!(matches!(item, WatchItem::Events { revision, .. } if revision == last), "{item:?}");
    assert_eq!(puts(item), [key("b")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmark_is_progress_and_where_the_next_watch_begins() {
    let server = FakeServer::start(&[SETS_V1]).await;
    let sets = source(&server, SETS).await;
    let start = server.put(SETS_V1, set("a", "10.0.0.0/24"));
    let mut watch = sets.watch(start).await.unwrap();
    server.pass(50);
    let marked = server.bookmark(SETS_V1);
    let item = next(&mut watch).await.unwrap();
    assert!(matches!(item, WatchItem::Progress { revision } if revision == marked), "{item:?}");
    // The end is nobody's business: the stream goes on.
    let end = async {
        server.end_watches();
        let second = || async { (server.asked("watch=true").len() == 2).then_some(()) };
        eventually("another watch", second).await;
        server.put(SETS_V1, set("b", "10.0.0.0/24"));
    };
    let (item, ()) = tokio::join!(next(&mut watch), end);
    assert_eq!(puts(item.unwrap()), [key("b")]);
    let asked = server.asked(&format!("resourceVersion={marked}"));
    assert!(asked[0].1.contains("allowWatchBookmarks=true"), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_server_is_left_alone_as_long_as_it_asks() {
    let server = FakeServer::start(&[SETS_V1]).await;
    let sets = source(&server, SETS).await;
    let body = "Too many requests, please try again later.".to_owned();
    server.fault("limit=1", 2, Fault::Refuse { code: 429, body, retry_after: Some(1) });
    sets.head().await.unwrap();
    let asked = server.asked("limit=1");
    assert_eq!(asked.len(), 3);
    for pair in asked.windows(2) {
        let between = pair[1].0.duration_since(pair[0].0);
        assert!(between >= Duration::from_millis(990), "{between:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forbidden_kind_is_named_with_verb_and_remedy() {
    let server = FakeServer::start(&[SETS_V1]).await;
    let sets = source(&server, SETS).await;
    server.refuse("globalnetworksets", 1, 403, "Forbidden");
    let error = sets.list(None).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Invalid { .. }), "{text}");
    for part in ["list of globalnetworksets.crd.projectcalico.org", "ClusterRole"] {
        assert!(text.contains(part), "{text}");
    }
    let revision = sets.list(None).await.unwrap().revision;
    server.refuse("watch=true", 1, 403, "Forbidden");
    let error = sets.watch(revision).await.err().unwrap().to_string();
    assert!(error.contains("allow watch of globalnetworksets"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_does_not_answer_is_an_error_and_not_a_hang() {
    let server = FakeServer::start(&[SETS_V1]).await;
    let patience =
        Timing { request: Duration::from_millis(200), page: Duration::from_millis(200), ..timing() };
    let (sets, _) = source_with(&server, SETS, patience).await;
    sets.list(None).await.unwrap();
    server.fault("globalnetworksets", 3, Fault::Hang);
    for result in
        [sets.head().await.map(|_| ()), sets.list(None).await.map(|_| ()), sets.watch(100).await.map(|_| ())]
    {
        assert!(matches!(&result, Err(Error::Unavailable { .. })), "{result:?}");
    }
    sets.head().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_watch_is_replaced() {
    let server = FakeServer::start(&[SETS_V1]).await;
    let patience = Timing { silence: Duration::from_millis(100), ..timing() };
    let (sets, _) = source_with(&server, SETS, patience).await;
    let start = server.put(SETS_V1, set("a", "10.0.0.0/24"));
    let mut watch = sets.watch(start).await.unwrap();
    let written = async {
        eventually("a second watch", || async { (server.asked("watch=true").len() >= 2).then_some(()) })
            .await;
        server.put(SETS_V1, set("b", "10.0.0.0/24"))
    };
    let (item, last) = tokio::join!(next(&mut watch), written);
    assert!(matches!(item.unwrap(), WatchItem::Events { revision, .. } if revision == last));
}

#[tokio::test(flavor = "multi_thread")]
async fn revision_beyond_the_newest_is_a_rewound_history_or_a_server_that_lags() {
    let server = FakeServer::start(&[SETS_V1]).await;
    let sets = source(&server, SETS).await;
    server.pass(100);
    let start = server.put(SETS_V1, set("a", "10.0.0.0/24"));
    let mut too_large = fake::status(504, "Timeout");
    too_large["details"] = json!({ "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }] });
    let line = format!("{}\n", json!({ "type": "ERROR", "object": too_large }));

    let mut watch = sets.watch(start).await.unwrap();
    server.pass(1);
    server.send(SETS_V1, &line);
    let error = next(&mut watch).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "a quorum knows of it: {error}");

    server.forget_sent();
    let mut watch = sets.watch(start).await.unwrap();
    server.pass(1);
    server.send(SETS_V1, &line);
    eventually("the error was sent", || async { (server.asked("watch=true").len() == 2).then_some(()) })
        .await;
    server.rewind(150);
    server.end_watches();
    let error = next(&mut watch).await.unwrap_err();
    assert!(matches!(error, Error::Rewound { head: 150, seen } if seen == start), "{error}");
    let error = sets.watch(start).await.err().unwrap();
    assert!(matches!(error, Error::Rewound { head: 150, seen } if seen == start), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_at_the_same_address_ends_the_watch() {
    let server = FakeServer::start(&[SETS_V1]).await;
    let slow = Timing { reopen: Duration::from_secs(6), ..timing() };
    let (sets, _) = source_with(&server, SETS, slow).await;
    let history = sets.history().await.unwrap();
    let mut watch = sets.watch(100).await.unwrap();
    server.become_another_cluster();
    server.end_watches();
    let error = next(&mut watch).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert_ne!(sets.history().await.unwrap(), history);
}

#[tokio::test(flavor = "multi_thread")]
async fn object_that_can_not_be_converted_is_a_finding_and_keeps_its_last_value() {
    let server = FakeServer::start(&[SETS_V1]).await;
    let sets = source(&server, SETS).await;
    server.put(SETS_V1, set("good", "10.0.0.0/24"));
    let mut broken = set("bad", "10.0.0.0/24");
    broken["metadata"]["annotations"] = json!({ "projectcalico.org/metadata": "no JSON" });
    server.put(SETS_V1, broken.clone());
    let listing = sets.list(None).await.unwrap();
    assert_eq!(listing.items.iter().map(|item| &item.key).collect::<Vec<_>>(), [&key("good")]);
    let [finding] = &listing.findings[..] else { panic!("{:?}", listing.findings) };
    assert_eq!(finding.key, key("bad"));
    assert!(finding.field.contains("projectcalico.org/metadata"), "{finding:?}");

    let mut watch = sets.watch(listing.revision).await.unwrap();
    broken["metadata"]["name"] = "good".into();
    let at = server.put(SETS_V1, broken);
    let WatchItem::Events { revision, events } = next(&mut watch).await.unwrap() else { panic!() };
    let [Event::Finding(finding)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((revision, &finding.key, finding.mod_revision), (at, &key("good"), at));
    // The old value again, after a bad one, is news: it ends the finding.
    server.put(SETS_V1, set("good", "10.0.0.0/24"));
    assert_eq!(puts(next(&mut watch).await.unwrap()), [key("good")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn kind_that_is_not_installed_is_empty_until_it_is() {
    let server = FakeServer::start(&[NODES]).await;
    let sets = source(&server, SETS).await;
    let listing = sets.list(None).await.unwrap();
    assert!(listing.items.is_empty() && listing.revision >= 1, "{listing:?}");
    assert!(sets.head().await.unwrap().revision <= listing.revision, "in sync");
    let mut watch = sets.watch(listing.revision).await.unwrap();
    let install = async {
        let looks = server.asked("globalnetworksets").len();
        let more = || async { (server.asked("globalnetworksets").len() > looks + 1).then_some(()) };
        eventually("more looks", more).await;
        server.serve(SETS_V1, true);
        server.put(SETS_V1, set("a", "10.0.0.0/24"))
    };
    let (item, _) = tokio::join!(next(&mut watch), install);
    let error = item.unwrap_err();
    assert!(matches!(error, Error::Compacted { .. }), "{error}");
    let installed = sets.list(None).await.unwrap();
    assert_eq!(installed.items.len(), 1);
    assert!(installed.revision > listing.revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn kind_that_vanishes_proves_no_deletion() {
    let server = FakeServer::start(&[SETS_V1]).await;
    let (sets, counters) = source_with(&server, SETS, timing()).await;
    server.put(SETS_V1, set("a", "10.0.0.0/24"));
    let listing = sets.list(None).await.unwrap();
    let mut watch = sets.watch(listing.revision).await.unwrap();
    server.serve(SETS_V1, false);
    let told = async {
        eventually("it is noticed", || async {
            (counters.vanished.load(Ordering::Relaxed) == 1).then_some(())
        })
        .await;
        assert_eq!(sets.head().await.unwrap().revision, listing.revision, "nothing newer is known");
        server.serve(SETS_V1, true);
        server.put(SETS_V1, set("b", "10.0.0.0/24"));
    };
    let (item, ()) = tokio::join!(next(&mut watch), told);
    let error = item.unwrap_err();
    assert!(matches!(error, Error::Compacted { .. }), "no event, a new list: {error}");
    drop(watch);
    server.serve(SETS_V1, false);
    let error = sets.list(None).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }) && error.to_string().contains("no proof"), "{error}");
    assert_eq!(counters.vanished.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn group_is_the_new_one_only_where_the_old_one_is_not_served() {
    let server = FakeServer::start(&[SETS_V3]).await;
    let mut modern = set("new", "10.0.0.0/24");
    modern["apiVersion"] = "projectcalico.org/v3".into();
    server.put(SETS_V3, modern);
    let sets = source(&server, SETS).await;
    assert_eq!(sets.list(None).await.unwrap().items[0].key, key("new"));
    server.serve(SETS_V1, true);
    server.put(SETS_V1, set("old", "10.0.0.0/24"));
    let both = source(&server, SETS).await;
    assert_eq!(both.list(None).await.unwrap().items[0].key, key("old"));
    assert_eq!(sets.list(None).await.unwrap().items[0].key, key("new"), "what was found stays");

    // A server that does not answer decides nothing.
    let early = source(&server, SETS).await;
    server.refuse("/apis", 1, 500, "InternalError");
    let result = early.list(None).await;
    assert!(matches!(result, Err(Error::Unavailable { .. })), "{result:?}");
    assert_eq!(early.list(None).await.unwrap().items.len(), 1);
}

fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": "3f9c9e4e-5a6f-4f0e-8a63-0d9c4d2f0002",
            "annotations": { "projectcalico.org/IPv4Address": "10.0.0.1/24" },
        },
        "spec": {},
        "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.1" }] },
    })
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "ns", "uid": "3f9c9e4e-5a6f-4f0e-8a63-0d9c4d2f0003" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c" }] },
        "status": { "phase": "Running", "podIP": "10.65.0.1", "podIPs": [{ "ip": "10.65.0.1" }] },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_updates_that_change_nothing_are_no_event() {
    let server = FakeServer::start(&[NODES, PODS]).await;
    server.put(NODES, node("n1"));
    server.put(PODS, pod("p1"));
    let store = Arc::new(KubernetesStore::open_with(server.config(), timing()).await.unwrap());
    let counters = store.counters();
    let (nodes, pods) = (named(store.clone(), "kubernetes/nodes"), named(store, "kubernetes/pods"));
    let listings = [nodes.list(None).await.unwrap(), pods.list(None).await.unwrap()];
    assert!(listings.iter().all(|listing| listing.items.len() == 1));
    let mut watches =
        [nodes.watch(listings[0].revision).await.unwrap(), pods.watch(listings[1].revision).await.unwrap()];
    for round in 0..5_000 {
        let (mut node, mut pod) = (node("n1"), pod("p1"));
        match round % 4 {
            // Heartbeats, and the kubelet's list of images.
            0 => {
                node["status"]["conditions"] = json!([{ "type": "Ready", "lastHeartbeatTime": round }]);
                pod["status"]["conditions"] = json!([{ "type": "Ready", "lastProbeTime": round }]);
            }
            1 => {
                node["status"]["images"] = json!([{ "names": [format!("image:{round}")] }]);
                pod["status"]["containerStatuses"] = json!([{ "name": "c", "restartCount": round }]);
            }
            2 => {
                node["metadata"]["managedFields"] = json!([{ "manager": "kubelet", "time": round }]);
                pod["metadata"]["managedFields"] = json!([{ "manager": "kubelet", "time": round }]);
            }
            // Nothing but the revision.
            _ => {}
        }
        server.put(NODES, node);
        server.put(PODS, pod);
    }
    let (mut changed_node, mut changed_pod) = (node("n1"), pod("p1"));
    changed_node["metadata"]["annotations"]["projectcalico.org/IPv4Address"] = "10.0.0.2/24".into();
    changed_pod["metadata"]["labels"] = json!({ "app": "web" });
    server.put(NODES, changed_node);
    server.put(PODS, changed_pod);

    let mut progress = 0;
    for watch in &mut watches {
        loop {
            match next(watch).await.unwrap() {
                WatchItem::Progress { .. } => progress += 1,
                WatchItem::Events { events, .. } => {
                    assert!(matches!(events[..], [Event::Put(_)]), "{events:?}");
                    break;
                }
            }
        }
    }
    assert_eq!(counters.skipped.load(Ordering::Relaxed), 10_000);
    assert_eq!(counters.events.load(Ordering::Relaxed), 2, "the two that changed something");
    assert!(progress < 10_000, "many at once move the position once: {progress}");
}

async fn refused(config: KubernetesConfig) -> String {
    match open(&StoreConfig::Kubernetes(config)).await {
        Err(Error::Invalid { what, reason }) => format!("{what}: {reason}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("was opened"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_can_never_work_are_refused_and_a_missing_server_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        Some(path)
    };
    let with = |kubeconfig, context: Option<&str>| KubernetesConfig {
        kubeconfig,
        context: context.map(str::to_owned),
        ..KubernetesConfig::default()
    };
    let missing = refused(with(Some(Path::new("/nowhere/kubeconfig").into()), None)).await;
    assert!(missing.contains("/nowhere/kubeconfig"), "{missing}");
    let good = file("good", &fake::kubeconfig("http://127.0.0.1:1"));
    let context = refused(with(good.clone(), Some("prod"))).await;
    assert!(context.contains("no context \"prod\"") && context.contains("test"), "{context}");
    let broken = file("broken", "users: [{name: a, user: {token: secret-token");
    let broken = refused(with(broken, None)).await;
    assert!(broken.contains("broken") && !broken.contains("secret-token"), "{broken}");

    let store = open(&StoreConfig::Kubernetes(with(good, None))).await.unwrap();
    let sets = named(store, SETS);
    let began = Instant::now();
    for result in [sets.head().await.map(|_| ()), sets.list(None).await.map(|_| ())] {
        assert!(matches!(&result, Err(Error::Unavailable { .. })), "{result:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(40));
}
