//! What is particular to etcd: transactions, compaction, sizes, members that pause, restart or come back
//! with another history.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Client, Txn, TxnOp};
use syncer_common::backend::config::{EtcdConfig, StoreConfig, open};
use syncer_common::backend::{Datastore, Error, Event, Finding, Source, WatchItem};
use syncer_common::syncer::{self, SyncEvent};
use syncer_common::testing::etcd::{EtcdServer, TlsFiles, free_port};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::support::{DEADLINE, OneSource, State, etcd, eventually, key, next, value};

pub async fn raw(server: &EtcdServer) -> Client {
    Client::connect([server.endpoint()], None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_comes_in_one_item_even_in_fragments() {
    let Some((server, store)) = etcd(&["--max-txn-ops=4096"]).await else { return };
    let start = store.head().await.unwrap().revision;
    let mut watch = store.watch(start).await.unwrap();
    let mut client = raw(&server).await;
    // 60 MB of history in transactions near the limit of a request, read late: etcd sends fragments.
    let padding = "x".repeat(10_000);
    for round in 0..40 {
        let puts: Vec<TxnOp> =
            (0..140).map(|n| TxnOp::put(format!("/calico/t/{round}/{n}"), padding.as_str(), None)).collect();
        client.txn(Txn::new().and_then(puts)).await.unwrap();
    }
    let mut late = store.watch(start).await.unwrap();
    for watch in [&mut watch, &mut late] {
        let (mut revision, mut total) = (start, 0);
        while revision < start + 40 {
            let WatchItem::Events { revision: upto, events } = next(watch).await.unwrap() else { continue };
            let whole = (upto - revision) as usize * 140;
            assert_eq!(events.len(), whole, "an item holds whole transactions");
            total += events.len();
            revision = upto;
        }
        assert_eq!(total, 40 * 140);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_is_told_by_list_and_watch() {
    let Some((server, store)) = etcd(&[]).await else { return };
    let first = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let mut revision = first;
    for round in 0..5 {
        revision =
            store.replace(&key("a"), value("a", &format!("10.{round}.0.0/24")), revision).await.unwrap();
    }
    raw(&server).await.compact(revision as i64, None).await.unwrap();
    let listed = store.list(Some(first)).await;
    assert!(matches!(listed, Err(Error::Compacted { .. })), "{listed:?}");
    let outcome = match store.watch(first).await {
        Ok(mut watch) => next(&mut watch).await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(matches!(outcome, Err(Error::Compacted { compacted }) if compacted > first), "{outcome:?}");
    assert_eq!(store.list(Some(revision)).await.unwrap().items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn listing_pages_by_size_at_one_revision() {
    let Some((server, store)) = etcd(&[]).await else { return };
    let mut client = raw(&server).await;
    for size in [10usize, 100_000, 20] {
        let padding = "y".repeat(size);
        for chunk in 0..4 {
            let puts: Vec<TxnOp> = (0..if size > 1_000 { 10 } else { 100 })
                .map(|n| TxnOp::put(format!("/calico/p/{size:06}/{chunk}/{n:03}"), padding.as_str(), None))
                .collect();
            client.txn(Txn::new().and_then(puts)).await.unwrap();
        }
    }
    client.put("/calicoish", "not ours", None).await.unwrap();
    client.put("/calicp", "not ours either", None).await.unwrap();
    let listing = store.list(None).await.unwrap();
    assert_eq!(listing.items.len(), 840);
    let state = State::from(listing);
    assert!(state.items.keys().all(|key| key.starts_with("/calico/")));
}

#[tokio::test(flavor = "multi_thread")]
async fn oversize_value_is_named_and_the_rest_is_listed() {
    let Some((server, store)) = etcd(&["--max-request-bytes=33554432"]).await else { return };
    store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    store.create(&key("z"), value("z", "10.0.0.0/24")).await.unwrap();
    let start = store.head().await.unwrap().revision;
    let mut watch = store.watch(start).await.unwrap();
    let mut grpc = Client::connect([server.endpoint()], None).await.unwrap().kv_client();
    let mut keys = Vec::new();
    for (name, size) in [("m-5mb", 5_000_000), ("n-20mb", 20_000_000)] {
        grpc = grpc.max_encoding_message_size(64 << 20);
        grpc.put(key(name), vec![b'x'; size], None).await.unwrap();
        keys.push(key(name));
    }
    let last = store.create(&key("zz"), value("zz", "10.0.0.0/24")).await.unwrap();

    let listing = store.list(None).await.unwrap();
    let oversize: Vec<_> = listing.findings.iter().map(|large| large.key.clone()).collect();
    assert_eq!(oversize, keys);
    assert_eq!(State::from(listing).items.into_keys().collect::<Vec<_>>(), [key("a"), key("z"), key("zz")]);

    let (mut revision, mut seen) = (start, Vec::new());
    let mut attempts = 0;
    while revision < last {
        match next(&mut watch).await {
            Ok(WatchItem::Events { revision: upto, events }) => {
                revision = upto;
                seen.extend(events.into_iter().filter_map(|event| match event {
                    Event::Put(item) => Some(item.key),
                    Event::Delete { key, .. } => Some(key),
                    Event::Finding(_) => None,
                }));
            }
            Ok(WatchItem::Progress { revision: upto }) => revision = upto,
            Err(error) => {
                attempts += 1;
                assert!(attempts < 10, "{error}");
                watch = store.watch(revision).await.unwrap();
            }
        }
    }
    assert_eq!(seen, [key("zz")], "the large events are left out, and the watch goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_server_is_an_error_and_not_a_hang() {
    let Some((server, store)) = etcd(&[]).await else { return };
    let revision = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let mut watch = store.watch(revision).await.unwrap();
    server.pause().await;
    let began = Instant::now();
    let (a, b) = (key("a"), key("b"));
    let (head, write, read, watched) = tokio::join!(
        store.head(),
        store.create(&b, value("b", "10.0.0.0/24")),
        store.get(&a),
        next(&mut watch)
    );
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(matches!(head, Err(Error::Unavailable { .. })), "{head:?}");
    assert!(matches!(write, Err(Error::Unavailable { .. })), "{write:?}");
    assert!(matches!(read, Err(Error::Unavailable { .. })), "{read:?}");
    assert!(matches!(watched, Err(Error::Unavailable { .. })), "{watched:?}");
    server.resume();
    eventually("reads after the pause", || async { store.head().await.ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_endpoint_is_passed_over() {
    let Some((server, _)) = etcd(&[]).await else { return };
    let dead = format!("http://127.0.0.1:{}", free_port());
    let store = open(&StoreConfig::etcd([dead, server.endpoint()])).await.unwrap();
    let revision = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    assert_eq!(store.list(None).await.unwrap().revision, revision);
    assert!(store.watch(revision).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_server_is_unavailable() {
    let store = open(&StoreConfig::etcd([format!("http://127.0.0.1:{}", free_port())])).await.unwrap();
    assert!(matches!(store.head().await, Err(Error::Unavailable { .. })));
    assert!(matches!(store.watch(1).await, Err(Error::Unavailable { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_certificate_is_named() {
    let config = EtcdConfig {
        endpoints: vec!["https://127.0.0.1:1".into()],
        ca_file: Some("no-such-ca.pem".into()),
        ..EtcdConfig::default()
    };
    let store = open(&StoreConfig::Etcd(config)).await.unwrap();
    let error = store.head().await.unwrap_err();
    assert!(
        matches!(error, Error::Invalid { .. }) && error.to_string().contains("no-such-ca.pem"),
        "{error}"
    );
}

/// What a consumer of the syncer has learnt.
pub struct Followed {
    pub state: State,
    pub history: String,
    pub snapshots: usize,
    pub outages: usize,
    pub findings: Vec<Finding>,
    /// Objects that were deleted, or missing from a later listing.
    pub withdrawn: BTreeSet<String>,
    events: mpsc::Receiver<(usize, SyncEvent)>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Followed {
    pub fn start(store: Arc<dyn Datastore>) -> Self {
        Self::of(store.sources())
    }

    pub fn of(sources: Vec<Arc<dyn Source>>) -> Self {
        let (out, events) = mpsc::channel(64);
        let cancel = CancellationToken::new();
        let task = tokio::spawn(syncer::run(sources, out, mpsc::channel(1).1, cancel.clone()));
        Self {
            state: State::default(),
            history: String::new(),
            snapshots: 0,
            outages: 0,
            findings: Vec::new(),
            withdrawn: BTreeSet::new(),
            events,
            cancel,
            task,
        }
    }

    pub async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !done(self) {
            let event = tokio::time::timeout_at(deadline, self.events.recv()).await;
            let event = event.unwrap_or_else(|_| {
                let keys: Vec<_> = self.state.items.keys().collect();
                panic!("{what}: at {}, {keys:?}", self.state.revision)
            });
            match event.unwrap().1 {
                SyncEvent::Snapshot { mut listing, history } => {
                    let before = std::mem::take(&mut self.state).items;
                    self.findings = std::mem::take(&mut listing.findings);
                    self.state = State::from(listing);
                    let kept = |key: &String| {
                        self.state.items.contains_key(key) || self.findings.iter().any(|f| f.key == *key)
                    };
                    self.withdrawn.extend(before.into_keys().filter(|key| !kept(key)));
                    self.history = history;
                    self.snapshots += 1;
                }
                SyncEvent::Events { revision, events } => {
                    self.withdrawn.extend(events.iter().filter_map(|event| match event {
                        Event::Delete { key, .. } => Some(key.clone()),
                        _ => None,
                    }));
                    self.state.apply(WatchItem::Events { revision, events });
                }
                SyncEvent::Progress { revision } => self.state.apply(WatchItem::Progress { revision }),
                SyncEvent::Disconnected { .. } => self.outages += 1,
                SyncEvent::Proof(_) => {}
            }
        }
    }

    pub async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_of_the_server_loses_nothing_and_lists_nothing() {
    let Some((mut server, store)) = etcd(&[]).await else { return };
    store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let mut followed = Followed::start(store.clone());
    followed.until("first object", |f| f.state.items.contains_key(&key("a"))).await;
    server.restart().await;
    let last = eventually("writes again", || async {
        match store.create(&key("b"), value("b", "10.0.0.0/24")).await {
            Ok(revision) => Some(revision),
            Err(Error::Conflict { .. }) => Some(store.get(&key("b")).await.ok()??.mod_revision),
            Err(_) => None,
        }
    })
    .await;
    followed.until("what was written after the restart", |f| f.state.revision >= last).await;
    assert_eq!(followed.state, State::from(store.list(None).await.unwrap()));
    assert_eq!((followed.snapshots, followed.outages), (1, 1));
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_history_on_the_same_address_is_listed_anew() {
    let Some((mut server, store)) = etcd(&[]).await else { return };
    store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let mut followed = Followed::start(store.clone());
    followed.until("first object", |f| f.state.items.contains_key(&key("a"))).await;
    let before = followed.history.clone();
    server.restart_empty().await;
    followed.until("another snapshot", |f| f.snapshots == 2).await;
    assert_ne!(followed.history, before);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_beyond_the_history_is_told_apart_from_silence() {
    let Some((_server, store)) = etcd(&[]).await else { return };
    let head = store.head().await.unwrap().revision;
    let rewound = store.watch(head + 100).await.err();
    assert!(matches!(rewound, Some(Error::Rewound { seen, .. }) if seen == head + 100), "{rewound:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn change_too_large_for_the_watch_is_listed_and_named() {
    let Some((server, store)) = etcd(&["--max-request-bytes=134217728"]).await else { return };
    store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let mut followed = Followed::start(store.clone());
    followed.until("first object", |f| f.state.items.contains_key(&key("a"))).await;
    let mut grpc = raw(&server).await.kv_client().max_encoding_message_size(128 << 20);
    grpc.put(key("m"), vec![b'x'; 70_000_000], None).await.unwrap();
    followed.until("a listing that names it", |f| f.findings.iter().any(|f| f.key == key("m"))).await;
    let last = store.create(&key("z"), value("z", "10.0.0.0/24")).await.unwrap();
    followed.until("what was written after it", |f| f.state.revision >= last).await;
    assert_eq!(followed.snapshots, 2);
    assert_eq!(followed.state.items.keys().collect::<Vec<_>>(), [&key("a"), &key("z")]);
    assert!(followed.withdrawn.is_empty(), "{:?}", followed.withdrawn);
    followed.stop().await;
}

/// A CA, and a server and a client that it vouches for.
fn certificates(dir: &std::path::Path) -> Option<TlsFiles> {
    let openssl = syncer_common::testing::require::program("openssl")?;
    std::fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let run = |arguments: &str| {
        let mut command = std::process::Command::new(&openssl);
        let output = command.current_dir(dir).args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem");
    for name in ["server", "client"] {
        run(&format!("req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        run(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out {name}.pem"
        ));
    }
    let file = |name: &str| dir.join(name);
    Some(TlsFiles {
        ca: file("ca.pem"),
        server_cert: file("server.pem"),
        server_key: file("server.key"),
        client_cert: file("client.pem"),
        client_key: file("client.key"),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_prove_themselves_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let Some(files) = certificates(dir.path()) else { return };
    let Some(server) = EtcdServer::start_tls(files.clone()).await else { return };
    let store = open(&server.config()).await.unwrap();
    let revision = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let mut watch = store.watch(revision).await.unwrap();
    store.delete(&key("a"), None).await.unwrap();
    assert!(next(&mut watch).await.is_ok());

    let anonymous = EtcdConfig {
        endpoints: vec![server.endpoint()],
        ca_file: Some(files.ca.clone()),
        ..EtcdConfig::default()
    };
    let refused = open(&StoreConfig::Etcd(anonymous.clone())).await.unwrap().head().await;
    assert!(refused.is_err(), "{refused:?}");
    let other = tempfile::tempdir().unwrap();
    let Some(strangers) = certificates(other.path()) else { return };
    let deceived = EtcdConfig {
        ca_file: Some(strangers.ca),
        cert_file: Some(files.client_cert),
        key_file: Some(files.client_key),
        ..anonymous
    };
    let refused = open(&StoreConfig::Etcd(deceived)).await.unwrap().head().await;
    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_endpoint_is_passed_over() {
    let Some((paused, _)) = etcd(&[]).await else { return };
    let Some((server, _)) = etcd(&[]).await else { return };
    let store = open(&StoreConfig::etcd([paused.endpoint(), server.endpoint()])).await.unwrap();
    store.head().await.unwrap();
    paused.pause().await;
    store.head().await.unwrap();
    store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let other = open(&server.config()).await.unwrap();
    assert!(other.get(&key("a")).await.unwrap().is_some());
}
