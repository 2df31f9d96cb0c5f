//! The Kubernetes API as a datastore: one list and one watch per kind.
//!
//! ```text
//! KubernetesStore ── Kind (a Source) per watched kind ── list, watch ──┐
//!        └───────── reads and writes of single objects ────────────────┴── Api ── one HTTP/2 connection
//! ```
//!
//! Objects are converted at this edge (`crate::kubernetes`, pure): what comes out has Calico's paths and values,
//! as if it came from etcd. An object that can not be converted is a finding; its last good value stands. What
//! Kubernetes itself makes (WorkloadEndpoints of pods, Profiles of namespaces and service accounts) can be read
//! here and not written.
//!
//! Particular to this datastore: `create_revision` is 0, because Kubernetes does not keep it; revisions of
//! different kinds can not be compared; and only paths that stand for some kind of object can be stored.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::config::KubernetesConfig;
use super::{Datastore, KeyValue, Result, Revision, Source};
use crate::kubernetes::{self as conversion, ApiGroup, ApiResource};

mod api;
mod connection;
pub mod discovery;
mod failure;
mod kind;
mod known;
mod object;
mod own;
mod watch;
mod write;

use api::{Api, Call};
use failure::full_name;
use kind::{Kind, KindSource};

/// How long to wait for what. The defaults are right but for tests.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For the answer to a request, and for the beginning of a watch.
    pub request: Duration,
    /// For a page of a list.
    pub page: Duration,
    /// A watch that has said nothing for so long, not even a bookmark (one comes every minute), is given up.
    pub silence: Duration,
    /// Between the beginnings of two watches of one kind.
    pub reopen: Duration,
    /// Between looks at a kind that the API server does not know.
    pub absent: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            request: Duration::from_secs(3),
            page: Duration::from_secs(30),
            silence: Duration::from_secs(75),
            reopen: Duration::from_millis(500),
            absent: Duration::from_secs(10),
        }
    }
}

/// Behind it the name of an interface has 11 characters, and Linux gives it 15 (IFNAMSIZ, with a zero).
const MAX_INTERFACE_PREFIX: usize = 4;

/// What the watches have seen, of all kinds together.
#[derive(Debug, Default)]
pub struct Counters {
    /// Events passed on.
    pub events: AtomicU64,
    /// Events that changed nothing of ours and were not: heartbeats of nodes, most of a pod's status.
    pub skipped: AtomicU64,
    /// Objects, or parts of them, that could not be used, in lists and in watches.
    pub findings: AtomicU64,
    /// Times that a kind with objects was no longer known to the API server.
    pub vanished: AtomicU64,
}

/// A cluster.
pub struct KubernetesStore {
    api: Arc<Api>,
    kinds: Vec<Arc<Kind>>,
    counters: Arc<Counters>,
}

impl KubernetesStore {
    /// Does not connect. Fails for settings that can never work.
    pub async fn open(config: KubernetesConfig) -> Result<Self> {
        Self::open_with(config, Timing::default()).await
    }

    pub async fn open_with(config: KubernetesConfig, timing: Timing) -> Result<Self> {
        if let Some(prefix) = &config.interface_prefix
            && !(1..=MAX_INTERFACE_PREFIX).contains(&prefix.len())
        {
            return Err(super::Error::Invalid {
                what: "interface prefix".into(),
                reason: format!("{prefix:?} does not have 1 to {MAX_INTERFACE_PREFIX} characters"),
            });
        }
        let client = match connection::connect(&config).await {
            Ok(client) => Some(client),
            Err(error @ super::Error::Invalid { .. }) => return Err(error),
            // Tried again when it is needed.
            Err(_) => None,
        };
        let api = Arc::new(Api::new(config, timing, client));
        let counters = Arc::new(Counters::default());
        let kinds = kinds(&api, &counters);
        Ok(Self { api, kinds, counters })
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}

/// One for each kind that anybody reads. Where two groups have a plural in common its group is in its name;
/// the name of a kind of Calico's does not tell which of its groups serves it.
fn kinds(api: &Arc<Api>, counters: &Arc<Counters>) -> Vec<Arc<Kind>> {
    let old = conversion::watched(&api.options(ApiGroup::V1));
    let new = conversion::watched(&api.options(ApiGroup::V3));
    let mut plurals: HashMap<&str, usize> = HashMap::new();
    for resource in &old {
        *plurals.entry(resource.plural).or_default() += 1;
    }
    let kind = |old: ApiResource| {
        let new = new
            .iter()
            .find(|new| new.plural == old.plural && is_calico(new) == is_calico(&old))
            .unwrap_or(&old)
            .clone();
        let name = match plurals[old.plural] {
            1 => old.plural.to_owned(),
            _ if is_calico(&old) => format!("{}.projectcalico.org", old.plural),
            _ => full_name(&old),
        };
        let name = format!("kubernetes/{name}");
        Arc::new(Kind::new(api.clone(), counters.clone(), name, [old, new]))
    };
    old.iter().cloned().map(kind).collect()
}

fn is_calico(resource: &ApiResource) -> bool {
    matches!(resource.group, "crd.projectcalico.org" | "projectcalico.org")
}

const NAMESPACES: ApiResource =
    ApiResource { group: "", version: "v1", plural: "namespaces", kind: "Namespace", namespaced: false };

const SECRETS: ApiResource =
    ApiResource { group: "", version: "v1", plural: "secrets", kind: "Secret", namespaced: true };

/// For errors about finding out which groups are served.
const GROUPS: ApiResource =
    ApiResource { group: "", version: "", plural: "API groups", kind: "APIGroupList", namespaced: false };

/// Path of a collection: of a namespace, or of all of them.
fn collection(resource: &ApiResource, namespace: &str) -> String {
    let ApiResource { group, version, plural, .. } = resource;
    let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    match namespace {
        "" => format!("{root}/{plural}"),
        namespace => format!("{root}/namespaces/{}/{plural}", kind::escaped(namespace)),
    }
}

#[async_trait]
impl Datastore for KubernetesStore {
    fn sources(self: Arc<Self>) -> Vec<Arc<dyn Source>> {
        self.kinds.iter().map(|kind| Arc::new(KindSource(kind.clone())) as Arc<dyn Source>).collect()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { events, skipped, findings, vanished } = &*self.counters;
        let all = [("event", events), ("skipped", skipped), ("finding", findings), ("vanished", vanished)];
        all.map(|(name, counter)| (name, counter.load(Ordering::Relaxed))).to_vec()
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, String>>> {
        let path = format!("{}/{}", collection(&SECRETS, namespace), kind::escaped(name));
        match self.api.read(&Call::get(path, self.api.timing.request)).await {
            Ok(object) => Ok(Some(conversion::secret_texts(&object).texts)),
            Err(failure) if failure.missing() => Ok(None),
            Err(failure) => Err(failure.into_error("get", &SECRETS, 0)),
        }
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        write::get(&self.api, key).await
    }

    /// In order of the keys. Objects that can not be converted are left out, as they are from listings.
    async fn get_prefix(&self, prefix: &str) -> Result<Vec<KeyValue>> {
        write::get_prefix(&self.api, prefix).await
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<Revision> {
        write::create(&self.api, key, &value).await
    }

    async fn replace(&self, key: &str, value: Bytes, expected: Revision) -> Result<Revision> {
        write::replace(&self.api, key, &value, expected).await
    }

    async fn set_network_available(&self, node: &str) -> Result<()> {
        write::set_network_available(&self.api, node).await
    }

    async fn delete(&self, key: &str, expected: Option<Revision>) -> Result<Revision> {
        write::delete(&self.api, key, expected).await
    }
}
