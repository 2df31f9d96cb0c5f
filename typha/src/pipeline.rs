//! From datastore events to the cache: convert, validate, compare. The one writer of the cache.
//!
//! Order is that of each source: a revision is applied whole before the next one, and the cache's revision of
//! the source moves only with it. A listing is compared with the objects known before: what is missing from it is deleted, at
//! the listing's revision.
//!
//! Three things are never taken for a deletion: an object too large to be carried (the backend reports a
//! finding), an object that is not JSON, and, after a change of the datastore's history, absence itself. The
//! first two keep their last good entry. An object that is JSON but does not pass validation loses its entry
//! with reason INVALID. Each is logged once per key and reason, and counted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use metrics::Gauge;
use syncer_common::backend::{Event, Finding, Listing};
use syncer_common::model::{Key, Update};
use syncer_common::processors::{ConversionError, Processors};
use syncer_common::syncer::SyncEvent;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::secrets::Secrets;
use crate::snapcache::{Applied, Changes, Shared, event_hash};
use crate::traces::{Revision, Traces};

/// What operators are told of the datastore's state.
#[derive(Debug, Default)]
pub struct Intake {
    /// Values refused since start.
    pub invalid: std::sync::atomic::AtomicU64,
}

pub struct Pipeline {
    cache: Arc<Shared>,
    intake: Arc<Intake>,
    metrics: Metrics,
    processors: Processors,
    secrets: Arc<Secrets>,
    traces: Option<Arc<Traces>>,
    sources: Vec<Source>,
    /// What was last reported of a key, so that it is reported once.
    reported: HashMap<String, String>,
}

struct Source {
    /// Its objects: path to the revision of the last change that was converted.
    objects: BTreeMap<String, u64>,
    connected: bool,
    revision: Gauge,
}

impl Pipeline {
    pub fn new(cache: Arc<Shared>, intake: Arc<Intake>, metrics: Metrics) -> Self {
        Pipeline {
            cache,
            intake,
            metrics,
            processors: Processors::new(),
            secrets: Arc::default(),
            traces: None,
            sources: Vec::new(),
            reported: HashMap::new(),
        }
    }

    /// Blocks come from the nodes' pod CIDRs instead of Calico's IPAM.
    pub fn use_pod_cidr(mut self, use_pod_cidr: bool) -> Self {
        self.processors = self.processors.use_pod_cidr(use_pod_cidr);
        self
    }

    /// Who learns which nodes use which passwords.
    pub fn secrets(mut self, secrets: Arc<Secrets>) -> Self {
        self.secrets = secrets;
        self
    }

    /// Who follows sampled revisions.
    pub fn traces(mut self, traces: Option<Arc<Traces>>) -> Self {
        self.traces = traces;
        self
    }

    /// The sources whose events will come, by name. Returns the wishes for reads of them.
    pub fn follow(&mut self, names: &[&str]) -> mpsc::Receiver<usize> {
        self.sources = names
            .iter()
            .map(|name| Source {
                objects: BTreeMap::new(),
                connected: false,
                revision: Metrics::revision(name),
            })
            .collect();
        self.cache.update(|cache| {
            cache.follow(names.iter().copied());
            // What is in no datastore belongs to the first source.
            let initial = self.processors.initial();
            cache.apply_initial(initial);
        });
        self.cache.asks().expect("the datastore is opened once")
    }

    /// Applies events until their source ends.
    pub async fn run(mut self, mut events: mpsc::Receiver<(usize, SyncEvent)>) {
        while let Some((source, event)) = events.recv().await {
            self.on_event(source, event, Instant::now());
            // A long listing is applied in one piece; let the streams have their turn.
            tokio::task::yield_now().await;
        }
    }

    pub fn on_event(&mut self, source: usize, event: SyncEvent, now: Instant) {
        // A read beside the watch says nothing about the watch.
        if !matches!(event, SyncEvent::Proof(_)) {
            self.sources[source].connected = !matches!(event, SyncEvent::Disconnected { .. });
        }
        match event {
            SyncEvent::Snapshot { listing, history } => self.on_listing(source, listing, &history, now),
            SyncEvent::Events { revision, events } => self.on_events(source, revision, events, now),
            SyncEvent::Progress { revision } => {
                self.cache.update(|cache| cache.progressed(source, revision, now));
            }
            SyncEvent::Proof(head) => self.cache.update(|cache| {
                cache.proof(source, head.revision, head.started);
                cache.trim(now);
            }),
            SyncEvent::Disconnected { reason } => {
                tracing::debug!(reason, "datastore does not answer, serving what is known");
            }
        }
        self.measure(source, now);
    }

    fn on_listing(&mut self, source: usize, listing: Listing, history: &str, now: Instant) {
        self.metrics.listings.increment(1);
        let other = self.cache.update(|cache| cache.listing(source, history, listing.revision));
        if other {
            let held = self.cache.read().forked();
            tracing::error!(
                history,
                revision = listing.revision,
                deletions_held = held,
                "datastore has another history than before; set AcceptHistory to this history to believe its deletions"
            );
        }
        let mut changes = Changes::default();
        let mut updates = Vec::new();
        let mut before = std::mem::take(&mut self.sources[source].objects);
        let mut objects = BTreeMap::new();
        for item in listing.items {
            // Revisions of another history say nothing about equality.
            let unchanged = before.remove(&item.key) == Some(item.mod_revision) && !other;
            if !unchanged {
                self.put(&item.key, &item.value, &mut updates);
                self.secrets.observe(&updates);
                changes.extend(updates.drain(..));
            }
            objects.insert(item.key, item.mod_revision);
        }
        for Finding { key, mod_revision, field, reason } in listing.findings {
            before.remove(&key);
            self.refuse(&key, &field, &reason);
            objects.insert(key, mod_revision);
        }
        for gone in before.into_keys() {
            self.delete(&gone, &mut updates);
        }
        self.secrets.observe(&updates);
        changes.extend(updates);
        let count = objects.len();
        self.sources[source].objects = objects;
        let applied = self.cache.update(|cache| cache.apply_listing(source, listing.revision, changes, now));
        tracing::debug!(
            revision = listing.revision,
            objects = count,
            changed = applied.changed,
            "listing applied"
        );
        self.count(applied);
    }

    /// Splits the events into the revisions they belong to.
    fn on_events(&mut self, source: usize, revision: u64, events: Vec<Event>, now: Instant) {
        let mut events = events.into_iter().peekable();
        while let Some(first) = events.next() {
            let at = first.revision();
            let mut of_revision = vec![first];
            while let Some(event) = events.next_if(|event| event.revision() == at) {
                of_revision.push(event);
            }
            let witness = event_hash(of_revision.iter().map(|event| match event {
                Event::Put(object) => (object.key.as_str(), Some(&object.value[..])),
                Event::Delete { key, .. } => (key.as_str(), None),
                Event::Finding(finding) => (finding.key.as_str(), Some(&b""[..])),
            }));
            let mut updates = Vec::new();
            for event in of_revision {
                match event {
                    Event::Put(object) => {
                        self.put(&object.key, &object.value, &mut updates);
                        self.sources[source].objects.insert(object.key, object.mod_revision);
                    }
                    Event::Delete { key, .. } => {
                        self.sources[source].objects.remove(&key);
                        self.delete(&key, &mut updates);
                    }
                    Event::Finding(Finding { key, mod_revision, field, reason }) => {
                        self.refuse(&key, &field, &reason);
                        self.sources[source].objects.insert(key, mod_revision);
                    }
                }
            }
            self.secrets.observe(&updates);
            let traces = self.traces.as_deref();
            let applied = self.cache.update(|cache| {
                let applied = cache.apply_revision(source, at, updates, witness, now);
                if let Some(traces) = traces.filter(|_| applied.changed > 0) {
                    let of = Revision {
                        history: cache.history(),
                        source: cache.source_name(source),
                        revision: at,
                    };
                    traces.applied(of, applied.changed, cache.head(), SystemTime::now() - now.elapsed());
                }
                applied
            });
            tracing::debug!(
                revision = at,
                changed = applied.changed,
                skipped = applied.skipped,
                "revision applied"
            );
            self.count(applied);
        }
        self.cache.update(|cache| cache.progressed(source, revision, now));
    }

    fn put(&mut self, path: &str, value: &[u8], updates: &mut Vec<Update>) {
        if let Err(reason) = readable(path, value) {
            let reason = format!("not JSON ({reason}); the last good value stays in force");
            self.refuse(path, "value", &reason);
            return;
        }
        let converted = self.processors.put(path, value);
        updates.extend(converted.updates);
        match converted.error {
            None => drop(self.reported.remove(path)),
            Some(ConversionError { key, field, reason }) => self.refuse(&key, &field, &reason),
        }
    }

    fn delete(&mut self, path: &str, updates: &mut Vec<Update>) {
        let converted = self.processors.delete(path);
        updates.extend(converted.updates);
        self.reported.remove(path);
    }

    /// Says, once, why an object does not count.
    fn refuse(&mut self, key: &str, field: &str, reason: &str) {
        self.metrics.updates_invalid.increment(1);
        self.intake.invalid.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let finding = format!("{field}: {reason}");
        if self.reported.get(key) == Some(&finding) {
            return;
        }
        tracing::warn!(key, field, reason, "datastore value refused");
        self.reported.insert(key.to_owned(), finding);
    }

    fn count(&mut self, applied: Applied) {
        self.metrics.updates.increment(applied.changed);
        self.metrics.updates_skipped.increment(applied.skipped);
        for key in applied.oversize {
            self.refuse(
                &key,
                "value",
                "its entry is too large for a message; the last good value stays in force",
            );
        }
    }

    fn measure(&self, source: usize, now: Instant) {
        let cache = self.cache.read();
        self.metrics.cache_size.set(cache.live().values().sum::<u64>() as f64);
        self.metrics.tombstones.set(cache.tombstones() as f64);
        self.metrics.seq.set(cache.head() as f64);
        let connected = self.sources.iter().all(|source| source.connected);
        self.metrics.datastore_connected.set(if connected { 1.0 } else { 0.0 });
        self.sources[source].revision.set(cache.revision(source) as f64);
        self.metrics.age.set(cache.age(now).map_or(-1.0, |age| age.as_secs_f64()));
    }
}

/// Whether an object that is stored as JSON is JSON at all. Keys of old releases hold other things; the
/// processors know which of them to ignore.
fn readable(path: &str, value: &[u8]) -> Result<(), serde_json::Error> {
    match Key::parse(path) {
        Some(Key::Resource(_) | Key::Block { .. } | Key::BlockAffinity(_)) => {
            serde_json::from_slice::<serde::de::IgnoredAny>(value).map(drop)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use syncer_common::backend::{Head, KeyValue};

    use super::*;
    use crate::snapcache::Cache;

    const POOL: &str = "/calico/resources/v3/projectcalico.org/ippools/pool";
    const INFO: &str = "/calico/resources/v3/projectcalico.org/clusterinformations/default";
    const ENTRY: &str = "/calico/v1/ipam/v4/pool/10.65.0.0-16";

    fn object(key: &str, value: &str, mod_revision: u64) -> KeyValue {
        KeyValue { key: key.into(), value: Bytes::from(value.to_owned()), create_revision: 1, mod_revision }
    }

    fn pool(cidr: &str) -> String {
        format!(
            r#"{{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{{"name":"pool"}},"spec":{{"cidr":"{cidr}"}}}}"#
        )
    }

    fn pipeline() -> (Pipeline, Arc<Shared>, Arc<Intake>) {
        let cache = Shared::new(Cache::new("e", ""));
        let intake = Arc::new(Intake::default());
        let mut pipeline = Pipeline::new(cache.clone(), intake.clone(), Metrics::new());
        pipeline.follow(&["etcd"]);
        (pipeline, cache, intake)
    }

    fn listing(revision: u64, items: Vec<KeyValue>) -> SyncEvent {
        SyncEvent::Snapshot {
            listing: Listing { revision, items, findings: Vec::new() },
            history: "h".into(),
        }
    }

    fn has(cache: &Shared, key: &str) -> bool {
        cache.read().iter_live().any(|(path, _)| path == key)
    }

    fn invalid(intake: &Intake) -> u64 {
        intake.invalid.load(std::sync::atomic::Ordering::Relaxed)
    }

    #[test]
    fn unreadable_object_keeps_its_last_good_entry_and_is_counted() {
        let (mut pipeline, cache, intake) = pipeline();
        let now = Instant::now();
        pipeline.on_event(0, listing(10, vec![object(POOL, &pool("10.65.0.0/16"), 5)]), now);
        assert!(has(&cache, ENTRY));
        let broken = Event::Put(object(POOL, "{\"kind\":", 11));
        pipeline.on_event(0, SyncEvent::Events { revision: 11, events: vec![broken] }, now);
        assert!(has(&cache, ENTRY));
        assert_eq!((invalid(&intake), cache.read().revision(0)), (1, 11));
        // Listing it again, still broken, changes nothing either.
        pipeline.on_event(0, listing(12, vec![object(POOL, "{\"kind\":", 11)]), now);
        assert!(has(&cache, ENTRY));
    }

    #[test]
    fn object_missing_from_a_listing_is_deleted_at_the_listings_revision() {
        let (mut pipeline, cache, _) = pipeline();
        let now = Instant::now();
        pipeline.on_event(0, listing(10, vec![object(POOL, &pool("10.65.0.0/16"), 5)]), now);
        pipeline.on_event(0, listing(20, vec![]), now);
        assert!(!has(&cache, ENTRY));
        assert_eq!((cache.read().tombstones(), cache.read().revision(0)), (1, 20));
    }

    #[test]
    fn oversize_object_is_not_taken_for_deleted() {
        let (mut pipeline, cache, intake) = pipeline();
        let now = Instant::now();
        pipeline.on_event(0, listing(10, vec![object(POOL, &pool("10.65.0.0/16"), 5)]), now);
        let findings = vec![Finding {
            key: POOL.into(),
            mod_revision: 15,
            field: "the value".into(),
            reason: "too large".into(),
        }];
        let relisted = Listing { revision: 20, items: vec![], findings };
        pipeline.on_event(0, SyncEvent::Snapshot { listing: relisted, history: "h".into() }, now);
        assert!(has(&cache, ENTRY));
        assert_eq!(invalid(&intake), 1);
    }

    #[test]
    fn events_are_applied_revision_by_revision() {
        let (mut pipeline, cache, _) = pipeline();
        let now = Instant::now();
        pipeline.on_event(0, listing(10, vec![object(POOL, &pool("10.65.0.0/16"), 5)]), now);
        let head = cache.read().head();
        let events = vec![
            Event::Put(object(POOL, &pool("10.66.0.0/16"), 11)),
            Event::Put(object(POOL, &pool("10.65.0.0/16"), 12)),
        ];
        pipeline.on_event(0, SyncEvent::Events { revision: 14, events }, now);
        assert!(has(&cache, ENTRY) && cache.read().head() > head + 1, "each revision was compared by itself");
        assert_eq!(cache.read().revision(0), 14);
        pipeline.on_event(0, SyncEvent::Proof(Head { revision: 14, started: now }), now);
        assert!(cache.read().in_sync());
    }

    #[test]
    fn deletions_are_held_when_the_datastore_was_restored() {
        let (mut pipeline, cache, _) = pipeline();
        let now = Instant::now();
        let info = r#"{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"datastoreReady":true}}"#;
        pipeline.on_event(0, listing(30, vec![object(POOL, &pool("10.65.0.0/16"), 5)]), now);
        pipeline.on_event(0, listing(20, vec![object(INFO, info, 7)]), now);
        assert!(cache.read().forked() && has(&cache, ENTRY));
        assert!(has(&cache, "/calico/v1/Ready"), "updates flow");
    }
}
