//! One event log, two replicas that list it at different times: the same state in the end, with stamps that agree
//! wherever both saw the event [A2–A4].

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use proto::sync::{self, ServerMessage, server_message};
use syncer_common::backend::{Event, Head, KeyValue, Listing};
use syncer_common::syncer::SyncEvent;
use typha::metrics::Metrics;
use typha::pipeline::{Intake, Pipeline};
use typha::snapcache::{Cache, KindSet, Shared};

/// A write of the log. Names collide on purpose: two pools may have one CIDR, two host endpoints one key.
#[derive(Clone, Debug)]
enum Write {
    Pool { name: u8, cidr: u8, valid: bool },
    HostEndpoint { name: u8, interface: u8 },
    Policy { name: u8, order: u8, valid: bool },
    Profile { name: u8, label: bool },
    Delete { kind: u8, name: u8 },
}

const PLURALS: [&str; 4] = ["ippools", "hostendpoints", "globalnetworkpolicies", "profiles"];

fn path(kind: usize, name: u8) -> String {
    format!("/calico/resources/v3/projectcalico.org/{}/n{name}", PLURALS[kind])
}

impl Write {
    fn key_value(&self) -> (String, Option<String>) {
        let object = |kind: &str, name: u8, spec: String| {
            format!(
                r#"{{"apiVersion":"projectcalico.org/v3","kind":"{kind}","metadata":{{"name":"n{name}"}},"spec":{spec}}}"#
            )
        };
        match self {
            Write::Pool { name, cidr, valid } => {
                let cidr = if *valid { format!("10.{cidr}.0.0/16") } else { "10.0.0.0/99".into() };
                (path(0, *name), Some(object("IPPool", *name, format!(r#"{{"cidr":"{cidr}"}}"#))))
            }
            Write::HostEndpoint { name, interface } => {
                let spec = format!(r#"{{"node":"a","interfaceName":"eth{interface}"}}"#);
                (path(1, *name), Some(object("HostEndpoint", *name, spec)))
            }
            Write::Policy { name, order, valid } => {
                let selector = if *valid { "a == 'b'" } else { "a ==" };
                let spec = format!(r#"{{"selector":"{selector}","order":{order},"types":["Ingress"]}}"#);
                (path(2, *name), Some(object("GlobalNetworkPolicy", *name, spec)))
            }
            Write::Profile { name, label } => {
                let labels = if *label { r#"{"x":"y"}"# } else { "{}" };
                (path(3, *name), Some(object("Profile", *name, format!(r#"{{"labelsToApply":{labels}}}"#))))
            }
            Write::Delete { kind, name } => (path(usize::from(*kind), *name), None),
        }
    }
}

fn write() -> impl Strategy<Value = Write> {
    let name = || 0u8..4;
    prop_oneof![
        3 => (name(), 0u8..3, prop::bool::weighted(0.8))
            .prop_map(|(name, cidr, valid)| Write::Pool { name, cidr, valid }),
        2 => (name(), 0u8..2).prop_map(|(name, interface)| Write::HostEndpoint { name, interface }),
        2 => (name(), 0u8..2, prop::bool::weighted(0.8))
            .prop_map(|(name, order, valid)| Write::Policy { name, order, valid }),
        1 => (name(), any::<bool>()).prop_map(|(name, label)| Write::Profile { name, label }),
        3 => (0u8..4, name()).prop_map(|(kind, name)| Write::Delete { kind, name }),
    ]
}

/// The datastore's history: transactions of one or two writes. Deletions of what is not there are no writes.
struct Log {
    revisions: Vec<Vec<(String, Option<String>)>>,
}

impl Log {
    fn new(transactions: Vec<Vec<Write>>) -> Self {
        let mut live = BTreeMap::new();
        let mut revisions = Vec::new();
        for writes in transactions {
            let mut revision = BTreeMap::new();
            for (key, value) in writes.iter().map(Write::key_value) {
                if value.is_some() || live.contains_key(&key) {
                    revision.insert(key, value);
                }
            }
            for (key, value) in &revision {
                match value {
                    Some(_) => drop(live.insert(key.clone(), ())),
                    None => drop(live.remove(key)),
                }
            }
            revisions.push(revision.into_iter().collect());
        }
        Log { revisions }
    }

    fn listing(&self, at: u64) -> Listing {
        let mut objects = BTreeMap::new();
        for (index, writes) in self.revisions[..at as usize].iter().enumerate() {
            for (key, value) in writes {
                match value {
                    Some(value) => drop(objects.insert(key.clone(), (value.clone(), index as u64 + 1))),
                    None => drop(objects.remove(key)),
                }
            }
        }
        let items = objects.into_iter().map(|(key, (value, revision))| object(key, value, revision));
        Listing { revision: at, items: items.collect(), ..Listing::default() }
    }

    fn events(&self, revision: u64) -> SyncEvent {
        let event = |(key, value): &(String, Option<String>)| match value {
            Some(value) => Event::Put(object(key.clone(), value.clone(), revision)),
            None => Event::Delete { key: key.clone(), mod_revision: revision },
        };
        let events = self.revisions[revision as usize - 1].iter().map(event).collect();
        SyncEvent::Events { revision, events }
    }
}

fn object(key: String, value: String, mod_revision: u64) -> KeyValue {
    KeyValue { key, value: Bytes::from(value), create_revision: 1, mod_revision }
}

/// A replica that lists at `listed` (and again at each of `relisted`) and has seen all of the log.
fn replica(log: &Log, listed: u64, relisted: &[u64]) -> Arc<Shared> {
    let cache = Shared::new(Cache::new("e", ""));
    let mut pipeline = Pipeline::new(cache.clone(), Arc::new(Intake::default()), Metrics::new());
    pipeline.follow(&["etcd"]);
    let now = Instant::now();
    let snapshot = |at| SyncEvent::Snapshot { listing: log.listing(at), history: "h".into() };
    pipeline.on_event(0, snapshot(listed), now);
    for revision in listed + 1..=log.revisions.len() as u64 {
        match relisted.contains(&revision) {
            true => pipeline.on_event(0, snapshot(revision), now),
            false => pipeline.on_event(0, log.events(revision), now),
        }
    }
    let newest = log.revisions.len() as u64;
    pipeline.on_event(0, SyncEvent::Proof(Head { revision: newest, started: now }), now);
    assert!(cache.read().in_sync());
    cache
}

/// Every entry and tombstone, by key.
fn entries(cache: &Shared) -> BTreeMap<String, sync::Entry> {
    let mut all = BTreeMap::new();
    let mut after = 0;
    loop {
        let page = cache.read().entries_after(after, KindSet::all(), 0);
        if let Some(message) = page.message.as_ref().map(|message| message.payload()) {
            let Some(server_message::Message::Batch(batch)) = ServerMessage::decode(message).unwrap().message
            else {
                panic!("not a batch")
            };
            all.extend(batch.entries.into_iter().map(|entry| (entry.key.clone(), entry)));
        }
        after = page.seq;
        if page.complete() {
            return all;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn replicas_that_list_at_different_times_agree(
        transactions in prop::collection::vec(prop::collection::vec(write(), 1..3), 1..40),
        first in 0.0f64..1.0,
        second in 0.0f64..1.0,
    ) {
        let log = Log::new(transactions);
        let newest = log.revisions.len() as u64;
        let at = |part: f64| ((newest as f64 * part) as u64).max(1);
        let (early, late) = (at(first.min(second)), at(first.max(second)));
        let [a, b] = [replica(&log, early, &[]), replica(&log, late, &[])].map(|cache| entries(&cache));
        let live = |entries: &BTreeMap<String, sync::Entry>| {
            let live = entries.values().filter(|entry| !entry.deleted);
            live.map(|entry| (entry.key.clone(), entry.value.clone())).collect::<BTreeMap<_, _>>()
        };
        prop_assert_eq!(live(&a), live(&b));
        for (key, entry) in a.iter().filter(|(_, entry)| entry.cause[0].revision > late) {
            let other = b.get(key);
            prop_assert_eq!(other.map(|other| (&other.cause, other.deleted, other.reason)),
                Some((&entry.cause, entry.deleted, entry.reason)), "{} is news to both", key);
        }
        for (key, entry) in b {
            let revision = entry.cause[0].revision;
            prop_assert!(revision == 0 || revision >= late, "nothing is older than the listing: {} at {}", key, revision);
            if revision > late {
                prop_assert_eq!(a[&key].cause[0].revision, revision, "{}", key);
            }
        }
    }

    /// A listing instead of events loses nothing either, and leaves stamps no later than its own.
    #[test]
    fn replica_that_listed_again_agrees_with_one_that_watched(
        transactions in prop::collection::vec(prop::collection::vec(write(), 1..3), 2..40),
        relisted in prop::collection::vec(2u64..40, 0..4),
    ) {
        let log = Log::new(transactions);
        let (watched, relisted) = (replica(&log, 1, &[]), replica(&log, 1, &relisted));
        let state = |cache: &Shared| {
            cache.read().iter_live().map(|(key, value)| (key.to_owned(), value.to_vec())).collect::<BTreeMap<_, _>>()
        };
        prop_assert_eq!(state(&watched), state(&relisted));
        let (watched, relisted) = (entries(&watched), entries(&relisted));
        for (key, entry) in relisted {
            let before = watched.get(&key).map_or(0, |other| other.cause[0].revision);
            prop_assert!(entry.cause[0].revision >= before || watched[&key].value == entry.value, "{}", key);
        }
    }
}
