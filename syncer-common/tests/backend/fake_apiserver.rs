//! An API server for what a real one can not be made to do: a few kinds with lists, pages, watches and
//! bookmarks, and faults on order.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};
use syncer_common::backend::config::KubernetesConfig;
use tokio::sync::watch;

/// Paths of collections.
pub const NODES: &str = "/api/v1/nodes";
pub const PODS: &str = "/api/v1/pods";
pub const SETS_V1: &str = "/apis/crd.projectcalico.org/v1/globalnetworksets";
pub const SETS_V3: &str = "/apis/projectcalico.org/v3/globalnetworksets";

#[derive(Clone)]
pub struct FakeServer {
    shared: Arc<Shared>,
    url: String,
    dir: Arc<tempfile::TempDir>,
}

struct Shared {
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

#[derive(Clone)]
pub enum Fault {
    Refuse {
        code: u16,
        body: String,
        retry_after: Option<u64>,
    },
    /// Never answers.
    Hang,
}

struct Rule {
    part: String,
    fault: Fault,
    times: usize,
}

struct Inner {
    revision: u64,
    /// Watches from before it are refused.
    oldest: u64,
    cluster: String,
    served: BTreeSet<String>,
    objects: BTreeMap<(String, String), Value>,
    /// Revision, collection, line.
    log: Vec<(u64, String, String)>,
    rules: Vec<Rule>,
    /// Watches of an older one end.
    watches: u64,
    requests: Vec<(Instant, String)>,
}

impl FakeServer {
    /// Serves these collections, besides namespaces.
    pub async fn start(served: &[&str]) -> Self {
        let inner = Inner {
            revision: 100,
            oldest: 0,
            cluster: "11111111-2222-3333-4444-555555555555".into(),
            served: served.iter().map(|path| (*path).to_owned()).collect(),
            objects: BTreeMap::new(),
            log: Vec::new(),
            rules: Vec::new(),
            watches: 0,
            requests: Vec::new(),
        };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), changed: watch::Sender::new(()) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { shared, url, dir: Arc::new(tempfile::tempdir().unwrap()) }
    }

    pub fn config(&self) -> KubernetesConfig {
        KubernetesConfig { kubeconfig: Some(self.kubeconfig(&self.url)), ..KubernetesConfig::default() }
    }

    fn kubeconfig(&self, url: &str) -> PathBuf {
        let path = self.dir.path().join("kubeconfig");
        std::fs::write(&path, kubeconfig(url)).unwrap();
        path
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let result = change(&mut self.inner());
        self.shared.changed.send_replace(());
        result
    }

    /// Writes an object; returns its revision.
    pub fn put(&self, collection: &str, mut object: Value) -> u64 {
        self.change(|inner| {
            inner.revision += 1;
            object["metadata"]["resourceVersion"] = inner.revision.to_string().into();
            let old = inner.objects.insert((collection.to_owned(), name(&object)), object.clone());
            let event = if old.is_some() { "MODIFIED" } else { "ADDED" };
            inner.say(collection, event, &object);
            inner.revision
        })
    }

    pub fn delete(&self, collection: &str, object: &str) -> u64 {
        self.change(|inner| {
            inner.revision += 1;
            let mut object = inner.objects.remove(&(collection.to_owned(), object.to_owned())).unwrap();
            object["metadata"]["resourceVersion"] = inner.revision.to_string().into();
            inner.say(collection, "DELETED", &object);
            inner.revision
        })
    }

    /// Tells the watches of a collection that nothing else happened.
    pub fn bookmark(&self, collection: &str) -> u64 {
        self.change(|inner| {
            inner.revision += 1;
            let bookmark = json!({ "metadata": { "resourceVersion": inner.revision.to_string() } });
            inner.say(collection, "BOOKMARK", &bookmark);
            inner.revision
        })
    }

    /// Something else is written somewhere.
    pub fn pass(&self, revisions: u64) {
        self.change(|inner| inner.revision += revisions);
    }

    /// Sends a text to the watches that run.
    pub fn send(&self, collection: &str, text: &str) {
        self.change(|inner| {
            let revision = inner.revision;
            inner.log.push((revision, collection.to_owned(), text.to_owned()));
        });
    }

    /// What was sent by `send` is not sent again.
    pub fn forget_sent(&self) {
        self.change(|inner| inner.log.retain(|(_, _, line)| line.ends_with("\n") && !line.contains("ERROR")));
    }

    /// All watches end.
    pub fn end_watches(&self) {
        self.change(|inner| inner.watches += 1);
    }

    pub fn compact(&self) {
        self.change(|inner| inner.oldest = inner.revision);
    }

    /// The server is restored from a backup.
    pub fn rewind(&self, revision: u64) {
        self.change(|inner| {
            inner.revision = revision;
            inner.log.retain(|(at, ..)| *at <= revision);
        });
    }

    pub fn become_another_cluster(&self) {
        self.change(|inner| inner.cluster = "99999999-2222-3333-4444-555555555555".into());
    }

    /// Serves a collection, or no longer. Its objects are gone without a word, and so are its watches.
    pub fn serve(&self, collection: &str, served: bool) {
        self.change(|inner| {
            inner.objects.retain(|(of, _), _| of != collection);
            if served {
                inner.served.insert(collection.to_owned());
            } else {
                inner.served.remove(collection);
                inner.watches += 1;
            }
        });
    }

    /// The next requests whose path and query contain `part` end badly.
    pub fn fault(&self, part: &str, times: usize, fault: Fault) {
        self.inner().rules.push(Rule { part: part.into(), fault, times });
    }

    pub fn refuse(&self, part: &str, times: usize, code: u16, reason: &str) {
        let body = status(code, reason).to_string();
        self.fault(part, times, Fault::Refuse { code, body, retry_after: None });
    }

    /// When requests with that part came.
    pub fn asked(&self, part: &str) -> Vec<(Instant, String)> {
        self.inner().requests.iter().filter(|(_, path)| path.contains(part)).cloned().collect()
    }
}

pub fn kubeconfig(url: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "test", "cluster": { "server": url } }],
        "users": [{ "name": "test", "user": { "token": "secret-token" } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        "current-context": "test",
    })
    .to_string()
}

pub fn status(code: u16, reason: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": format!("the fake says {reason}"),
        "metadata": {},
    })
}

impl Inner {
    fn say(&mut self, collection: &str, event: &str, object: &Value) {
        let line = format!("{}\n", json!({ "type": event, "object": object }));
        self.log.push((self.revision, collection.to_owned(), line));
    }
}

fn name(object: &Value) -> String {
    let part = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    match part("namespace").as_str() {
        "" => part("name"),
        namespace => format!("{namespace}/{}", part("name")),
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let uri = request.uri().clone();
    let fault = {
        let mut inner = shared.inner.lock().unwrap();
        inner.requests.push((Instant::now(), uri.to_string()));
        let found =
            inner.rules.iter_mut().find(|rule| rule.times > 0 && uri.to_string().contains(&rule.part));
        found.map(|rule| {
            rule.times -= 1;
            rule.fault.clone()
        })
    };
    match fault {
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Refuse { code, body, retry_after }) => {
            let mut response = (StatusCode::from_u16(code).unwrap(), body).into_response();
            if let Some(seconds) = retry_after {
                response.headers_mut().insert("retry-after", seconds.into());
            }
            return response;
        }
        None => {}
    }
    let query: BTreeMap<String, String> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace("%3D", "=").replace("%3A", ":")))
        .collect();
    let inner = shared.inner.lock().unwrap();
    match uri.path() {
        "/apis" => {
            let groups: BTreeSet<&str> =
                inner.served.iter().filter_map(|path| path.split('/').nth(2)).collect();
            let groups: Vec<Value> = groups.into_iter().map(|name| json!({ "name": name })).collect();
            json_response(StatusCode::OK, &json!({ "groups": groups }))
        }
        "/api/v1/namespaces" if query.contains_key("fieldSelector") => {
            let namespace = json!({ "metadata": { "name": "kube-system", "uid": inner.cluster } });
            let meta = json!({ "resourceVersion": inner.revision.to_string() });
            json_response(StatusCode::OK, &json!({ "metadata": meta, "items": [namespace] }))
        }
        path if !inner.served.contains(path) => (StatusCode::NOT_FOUND, "404 page not found").into_response(),
        path if query.contains_key("watch") => {
            let after: u64 = query["resourceVersion"].parse().unwrap();
            if after < inner.oldest {
                return json_response(StatusCode::GONE, &status(410, "Expired"));
            }
            let generation = inner.watches;
            let path = path.to_owned();
            drop(inner);
            let lines = watch_lines(shared, path, after, generation);
            Body::from_stream(lines).into_response()
        }
        path => list(&inner, path, &query),
    }
}

fn list(inner: &Inner, path: &str, query: &BTreeMap<String, String>) -> Response {
    let limit: usize = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
    let (revision, start) = match query.get("continue") {
        None => (inner.revision.to_string(), 0),
        Some(token) => {
            let (revision, start) = token.split_once(':').unwrap();
            (revision.to_owned(), start.parse().unwrap())
        }
    };
    let all: Vec<&Value> =
        inner.objects.iter().filter(|((of, _), _)| of == path).map(|(_, object)| object).collect();
    let items: Vec<&Value> = all.iter().skip(start).take(limit).copied().collect();
    let mut meta = json!({ "resourceVersion": revision });
    if start + items.len() < all.len() {
        meta["continue"] = format!("{revision}:{}", start + items.len()).into();
    }
    json_response(StatusCode::OK, &json!({ "metadata": meta, "items": items }))
}

fn json_response(code: StatusCode, body: &Value) -> Response {
    (code, body.to_string()).into_response()
}

fn watch_lines(
    shared: Arc<Shared>,
    path: String,
    after: u64,
    generation: u64,
) -> impl futures::Stream<Item = Result<Bytes, Infallible>> + Send {
    let changes = shared.changed.subscribe();
    futures::stream::unfold((shared, changes, path, 0, after), move |state| async move {
        let (shared, mut changes, path, mut sent, after) = state;
        loop {
            {
                let inner = shared.inner.lock().unwrap();
                let lines: String = inner.log[sent.min(inner.log.len())..]
                    .iter()
                    .filter(|(revision, of, _)| *of == path && *revision > after)
                    .map(|(.., line)| line.as_str())
                    .collect();
                sent = inner.log.len();
                let over = inner.watches != generation;
                drop(inner);
                if !lines.is_empty() {
                    return Some((Ok(Bytes::from(lines)), (shared, changes, path, sent, after)));
                }
                if over {
                    return None;
                }
            }
            changes.changed().await.ok()?;
        }
    })
}
