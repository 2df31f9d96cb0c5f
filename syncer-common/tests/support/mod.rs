//! Datastores under test, and ways to look at what they say.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use syncer_common::backend::config::{StoreConfig, open};
use syncer_common::backend::{
    Datastore, Error, Event, Head, KeyValue, Listing, Result, Revision, Source, Watch, WatchItem,
};
use syncer_common::testing::etcd::EtcdServer;
use syncer_common::testing::kubernetes::KubeServer;
use tokio::sync::Mutex;

/// Long enough for a loaded machine; nothing waits for it unless it fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What the one source of a datastore says, asked of the datastore. Kubernetes has many: the one of the kind that
/// the tests write.
pub trait OneSource {
    fn source(&self) -> Arc<dyn Source>;
    fn head(&self) -> impl Future<Output = Result<Head>> + Send {
        let source = self.source();
        async move { source.head().await }
    }
    fn history(&self) -> impl Future<Output = Result<String>> + Send {
        let source = self.source();
        async move { source.history().await }
    }
    fn list(&self, at: Option<Revision>) -> impl Future<Output = Result<Listing>> + Send {
        let source = self.source();
        async move { source.list(at).await }
    }
    fn watch(&self, after: Revision) -> impl Future<Output = Result<Watch>> + Send {
        let source = self.source();
        async move { source.watch(after).await }
    }
}

impl OneSource for Arc<dyn Datastore> {
    fn source(&self) -> Arc<dyn Source> {
        let mut sources = self.clone().sources();
        if sources.len() > 1 {
            sources.retain(|source| source.name() == "kubernetes/globalnetworksets");
        }
        let [source] = <[_; 1]>::try_from(sources).ok().expect("one source");
        source
    }
}

/// One datastore with two clients, as two replicas have it.
pub struct Subject {
    pub name: &'static str,
    pub store: Arc<dyn Datastore>,
    pub second: Arc<dyn Datastore>,
    /// Others write to it too, where no test looks: revisions move on without us.
    pub is_shared: bool,
    /// It says at which revision an object was created.
    pub knows_creation: bool,
    config: StoreConfig,
    _keep: Box<dyn Any + Send>,
}

impl Subject {
    /// A client of a process that has just started.
    pub async fn fresh(&self) -> Arc<dyn Datastore> {
        open(&self.config).await.unwrap()
    }

    /// What an object that was created at `revision` says of it.
    pub fn created(&self, revision: Revision) -> Revision {
        if self.knows_creation { revision } else { 0 }
    }

    /// Both are the same state, `later` perhaps at a later revision.
    pub fn assert_same(&self, later: &State, state: &State, when: &str) {
        assert_eq!(later.items, state.items, "{}{when}", self.name);
        let same =
            if self.is_shared { later.revision >= state.revision } else { later.revision == state.revision };
        assert!(same, "{}{when}: {} and {}", self.name, later.revision, state.revision);
    }
}

pub async fn etcd(extra: &[&str]) -> Option<(EtcdServer, Arc<dyn Datastore>)> {
    let server = EtcdServer::start_with(extra).await?;
    let store = open(&server.config()).await.unwrap();
    Some((server, store))
}

/// Every kind of datastore that this machine can run.
pub async fn subjects() -> Vec<Subject> {
    let mut subjects = Vec::new();
    if let Some(server) = EtcdServer::start().await {
        subjects.push(subject("etcd", server.config(), Box::new(server)).await);
    }
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig::directory(dir.path());
    subjects.push(subject("directory", config, Box::new(dir)).await);
    subjects.extend(kubernetes().await);
    subjects
}

async fn subject(name: &'static str, config: StoreConfig, keep: Box<dyn Any + Send>) -> Subject {
    let (store, second) = (open(&config).await.unwrap(), open(&config).await.unwrap());
    let (is_shared, knows_creation) = (false, true);
    Subject { name, store, second, is_shared, knows_creation, config, _keep: keep }
}

/// The tests of all datastores take turns with one API server: each begins without objects.
async fn kubernetes() -> Option<Subject> {
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    let server = KubeServer::shared().await?;
    let crd = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds/v1/globalnetworksets.yaml");
    server.apply(&std::fs::read_to_string(crd).unwrap()).await;
    let config = server.config();
    let subject = subject("kubernetes", config, Box::new((turn, server))).await;
    for item in subject.store.get_prefix(&key("")).await.unwrap() {
        subject.store.delete(&item.key, None).await.unwrap();
    }
    Some(Subject { is_shared: true, knows_creation: false, ..subject })
}

pub fn key(name: &str) -> String {
    format!("/calico/resources/v3/projectcalico.org/globalnetworksets/{name}")
}

pub fn value(name: &str, net: &str) -> Bytes {
    let value = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkSet",
        "metadata": { "name": name, "uid": "3f9c9e4e-5a6f-4f0e-8a63-0d9c4d2f0001" },
        "spec": { "nets": [net] },
    });
    Bytes::from(value.to_string())
}

/// The one net of an object made by `value`.
pub fn net(item: &KeyValue) -> String {
    let value: Value = serde_json::from_slice(&item.value).unwrap();
    value["spec"]["nets"][0].as_str().unwrap().to_owned()
}

/// State as the consumer of a watch builds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub revision: Revision,
    pub items: BTreeMap<String, KeyValue>,
}

impl From<Listing> for State {
    fn from(listing: Listing) -> Self {
        assert!(listing.items.is_sorted_by(|a, b| a.key < b.key), "listings are in order, without repeats");
        let items = listing.items.into_iter().map(|item| (item.key.clone(), item)).collect();
        Self { revision: listing.revision, items }
    }
}

impl State {
    /// Applies an item, and checks the promises of the trait on the way.
    pub fn apply(&mut self, item: WatchItem) {
        let (revision, events) = match item {
            WatchItem::Progress { revision } => (revision, Vec::new()),
            WatchItem::Events { revision, events } => (revision, events),
        };
        assert!(revision > self.revision, "revisions grow: {} then {revision}", self.revision);
        let mut last = self.revision;
        for event in events {
            let at = match event {
                Event::Put(item) => {
                    let at = item.mod_revision;
                    self.items.insert(item.key.clone(), item);
                    at
                }
                Event::Delete { key, mod_revision } => {
                    self.items.remove(&key);
                    mod_revision
                }
                Event::Finding(finding) => finding.mod_revision,
            };
            assert!(at > self.revision && at >= last && at <= revision, "events are in order");
            last = at;
        }
        self.revision = revision;
    }

    /// Follows `watch` until `revision` is reached.
    pub async fn follow(&mut self, watch: &mut Watch, revision: Revision) {
        while self.revision < revision {
            self.apply(next(watch).await.unwrap());
        }
    }
}

pub async fn next(watch: &mut Watch) -> std::result::Result<WatchItem, Error> {
    let item = tokio::time::timeout(DEADLINE, watch.next()).await.expect("the watch says something");
    item.expect("a watch ends only with an error")
}

/// Polls until `check` yields something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, check: impl Fn() -> F) -> T {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
