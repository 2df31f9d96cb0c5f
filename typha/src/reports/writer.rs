//! From the inbox to the datastore, one write at a time, no faster than allowed.
//!
//! Writes are compare-and-swap on what was read just before: a status that is right already is not written, and
//! a write that another replica got in between is looked at again. A datastore that does not answer is tried
//! again with growing waits; what is refused for good is said once, counted and left out.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use daemon::Backoff;
use serde_json::json;
use syncer_common::backend::{Datastore, Error, Result};
use syncer_common::model::Key;

use super::inbox::{Inbox, NO_REGION, PROCESS_EVERY, Task};
use super::node_status;
use crate::metrics::Metrics;

/// The status of a process outlives its last writing by this much.
const PROCESS_LIFETIME: Duration = Duration::from_secs(90);
/// How often the objects that show BGP sessions are looked at.
const NODE_STATUS_EVERY: Duration = Duration::from_secs(10);
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Other replicas' writes that come in between.
const RACES: usize = 3;

/// Writes what agents report until the future is dropped. `keys`: the datastore has Calico's status keys (etcd);
/// elsewhere only objects are written.
pub async fn write(
    inbox: Arc<Inbox>,
    store: Arc<dyn Datastore>,
    keys: bool,
    per_second: f64,
    metrics: Metrics,
) {
    let pace = Duration::from_secs_f64(1.0 / per_second.max(0.001));
    let mut writer = Writer { inbox, store, keys, pace, metrics, compared: HashSet::new() };
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut away = false;
    loop {
        let task = writer.inbox.next().await;
        match writer.perform(&task).await {
            Ok(()) => {
                if std::mem::take(&mut away) {
                    tracing::info!("status reports are written again");
                }
                backoff.reset();
            }
            Err(error @ (Error::Unavailable { .. } | Error::Conflict { .. })) => {
                writer.metrics.report_writes_failed.increment(1);
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!(%error, "status reports cannot be written, trying again");
                }
                let wait = backoff.next_wait();
                writer.inbox.later(task, Instant::now() + wait);
                tokio::time::sleep(wait).await;
            }
            Err(error) => {
                writer.metrics.report_writes_failed.increment(1);
                tracing::error!(%error, ?task, "status report refused by the datastore; may typha's account write it?");
            }
        }
    }
}

struct Writer {
    inbox: Arc<Inbox>,
    store: Arc<dyn Datastore>,
    keys: bool,
    pace: Duration,
    metrics: Metrics,
    /// Streams whose keys were compared once.
    compared: HashSet<u64>,
}

impl Writer {
    async fn perform(&mut self, task: &Task) -> Result<()> {
        match task {
            Task::NodeStatus => return self.node_status().await,
            _ if !self.keys => return Ok(()),
            Task::Endpoint { stream, path } => {
                let Some(wanted) = self.inbox.wanted(*stream, path) else { return Ok(()) };
                self.reconcile(path, wanted).await?;
                self.inbox.wrote(*stream, path, wanted, Instant::now());
            }
            Task::Compare { stream } => self.compare(*stream).await?,
            Task::Process { stream } => self.process(*stream).await?,
        }
        Ok(())
    }

    /// Makes the key say what is wanted; nothing: makes it go.
    async fn reconcile(&self, path: &str, wanted: Option<&'static str>) -> Result<()> {
        let value = wanted.map(|status| Bytes::from(json!({ "status": status }).to_string()));
        for race in 0.. {
            let held = self.store.get(path).await?;
            let done = match (held, &value) {
                (None, None) => return Ok(()),
                (Some(held), Some(value)) if same(&held.value, value) => return Ok(()),
                (None, Some(value)) => self.store.create(path, value.clone()).await,
                (Some(held), Some(value)) => self.store.replace(path, value.clone(), held.mod_revision).await,
                (Some(held), None) => self.store.delete(path, Some(held.mod_revision)).await,
            };
            match done {
                Err(Error::Conflict { .. } | Error::NotFound { .. }) if race < RACES => {}
                done => {
                    self.written().await;
                    return done.map(drop);
                }
            }
        }
        Ok(())
    }

    /// Deletes what no endpoint of the node stands for, and writes what differs.
    async fn compare(&mut self, stream: u64) -> Result<()> {
        let Some((node, endpoints)) = self.inbox.complete(stream) else { return Ok(()) };
        let root = Key::ActiveStatusReport { region: NO_REGION.into(), host: node.clone() }.path();
        let Some(root) = root.ok().and_then(|path| Some(path.strip_suffix("status")?.to_owned())) else {
            return Ok(());
        };
        let hosts = format!("/calico/felix/v1/host/{node}/endpoint/");
        for prefix in [format!("{root}workload/"), hosts] {
            for held in self.store.get_prefix(&prefix).await? {
                let known = endpoints.get(&held.key).copied().flatten();
                // What has changed since the list was made has a task of its own.
                let unchanged = self.inbox.wanted(stream, &held.key).unwrap_or_default() == known;
                if unchanged && self.inbox.has(stream) {
                    self.reconcile_held(&held.key, &held.value, known).await?;
                }
            }
        }
        for (path, status) in endpoints {
            if status.is_some() && self.inbox.wanted(stream, &path) == Some(status) {
                self.reconcile(&path, status).await?;
            }
        }
        self.compared.retain(|stream| self.inbox.has(*stream));
        let first = self.compared.insert(stream);
        self.inbox.compared(stream, first, Instant::now());
        Ok(())
    }

    async fn reconcile_held(&self, path: &str, held: &[u8], wanted: Option<&'static str>) -> Result<()> {
        let right =
            wanted.is_some_and(|status| same(held, json!({ "status": status }).to_string().as_bytes()));
        if right { Ok(()) } else { self.reconcile(path, wanted).await }
    }

    async fn process(&self, stream: u64) -> Result<()> {
        let Some((node, report, at)) = self.inbox.process(stream) else { return Ok(()) };
        let uptime = report.uptime_seconds + at.elapsed().as_secs_f64();
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let value = json!({ "time": time, "uptime": uptime, "first_update": report.first_update });
        let value = Bytes::from(value.to_string());
        let (region, host) = (NO_REGION.to_owned(), node);
        let active = Key::ActiveStatusReport { region: region.clone(), host: host.clone() }.path();
        let last = Key::LastStatusReport { region, host }.path();
        if let (Ok(active), Ok(last)) = (active, last) {
            self.store.put_expiring(&active, value.clone(), PROCESS_LIFETIME).await?;
            self.written().await;
            self.put(&last, value).await?;
        }
        self.inbox.later(Task::Process { stream }, Instant::now() + PROCESS_EVERY);
        Ok(())
    }

    /// Writes it whatever was there.
    async fn put(&self, path: &str, value: Bytes) -> Result<()> {
        for race in 0.. {
            let done = match self.store.get(path).await? {
                Some(held) => self.store.replace(path, value.clone(), held.mod_revision).await,
                None => self.store.create(path, value.clone()).await,
            };
            match done {
                Err(Error::Conflict { .. } | Error::NotFound { .. }) if race < RACES => {}
                done => {
                    self.written().await;
                    return done.map(drop);
                }
            }
        }
        Ok(())
    }

    async fn node_status(&self) -> Result<()> {
        let reports = self.inbox.bgp();
        if reports.is_empty() {
            return Ok(());
        }
        for held in self.store.get_prefix(node_status::PREFIX).await? {
            let now = SystemTime::now();
            let Some(value) = node_status::updated(&held.value, &reports, now) else { continue };
            match self.store.replace(&held.key, value, held.mod_revision).await {
                // Somebody edits it: the next turn will do.
                Ok(_) | Err(Error::Conflict { .. } | Error::NotFound { .. }) => self.written().await,
                Err(error) => return Err(error),
            }
        }
        self.inbox.later(Task::NodeStatus, Instant::now() + NODE_STATUS_EVERY);
        Ok(())
    }

    async fn written(&self) {
        self.metrics.report_writes.increment(1);
        tokio::time::sleep(self.pace).await;
    }
}

/// Equal as JSON: another writer's spaces are no difference.
fn same(one: &[u8], other: &[u8]) -> bool {
    let read = |bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    one == other || read(one).is_some_and(|one| Some(one) == read(other))
}
