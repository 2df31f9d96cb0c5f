//! Any client, at any time, from any replica: what it holds after a completed resume is what the replica holds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use prost::Message;
use proto::sync::{self, ServerMessage, server_message};
use syncer_common::model::{Key, Kind, Update, Value};

use super::*;

const KEYS: u8 = 6;

fn key(n: u8) -> Key {
    Key::GlobalConfig { name: format!("Key{n}") }
}

fn set(n: u8, value: u8) -> Update {
    Update::set(key(n), Value::Config(value.to_string()))
}

fn unset(n: u8) -> Update {
    Update::delete(key(n))
}

fn live(cache: &Cache) -> BTreeMap<String, Vec<u8>> {
    cache.iter_live().map(|(key, value)| (key.to_owned(), value.to_vec())).collect()
}

fn entries(message: &Bytes) -> Vec<sync::Entry> {
    match ServerMessage::decode(message.clone()).unwrap().message.unwrap() {
        server_message::Message::Batch(batch) => batch.entries,
        other => panic!("not a batch: {other:?}"),
    }
}

/// A client as the protocol has it.
#[derive(Clone, Default)]
struct Client {
    held: BTreeMap<String, Vec<u8>>,
    token: Option<sync::Token>,
    removed: Vec<String>,
}

impl Client {
    /// One whole stream. Returns whether it was served.
    fn follow(&mut self, cache: &Cache, most_pages: usize) -> bool {
        let kinds = KindSet::all();
        let (mut cursor, sweep, skip) = match cache.resume(self.token.as_ref(), kinds, Evidence::None) {
            Resume::Behind => return false,
            Resume::Delta { after } => (after, None, 0),
            Resume::Snapshot { sweep } => (0, Some(sweep), cache.head()),
        };
        let mut seen = Vec::new();
        for _ in 0..most_pages {
            let page = cache.entries_after(cursor, kinds, skip);
            for entry in page.message.iter().flat_map(entries) {
                if let Some(token) = &mut self.token {
                    for source in &mut token.sources {
                        source.high = source.high.max(entry.cause[0].revision);
                    }
                }
                seen.push(entry.key.clone());
                match entry.value {
                    Some(value) => drop(self.held.insert(entry.key, value.encode_to_vec())),
                    None if self.held.remove(&entry.key).is_some() => self.removed.push(entry.key),
                    None => {}
                }
            }
            cursor = page.seq;
            if !page.complete() {
                continue;
            }
            if sweep == Some(true) {
                let gone: Vec<String> = self.held.keys().filter(|key| !seen.contains(key)).cloned().collect();
                for key in gone {
                    self.held.remove(&key);
                    self.removed.push(key);
                }
            }
            if sweep != Some(false) {
                self.token = Some(cache.token(kinds));
            }
            return true;
        }
        false
    }
}

#[test]
fn equal_value_takes_no_position_and_a_value_that_came_back_takes_two() {
    let now = Instant::now();
    let mut cache = Cache::new("e", "etcd", "");
    cache.listing("h", 10);
    cache.apply_listing(10, vec![set(1, 1)], now);
    assert_eq!(
        cache.apply_revision(11, vec![set(1, 1)], 0, now),
        Applied { skipped: 1, ..Applied::default() }
    );
    assert_eq!(cache.head(), 1);
    cache.apply_revision(12, vec![set(1, 2)], 0, now);
    cache.apply_revision(13, vec![set(1, 1)], 0, now);
    assert_eq!((cache.head(), cache.revision()), (3, 13));
    let page = cache.entries_after(1, KindSet::all(), 0);
    let sent = entries(&page.message.unwrap());
    assert_eq!((sent.len(), sent[0].seq, sent[0].cause[0].revision), (1, 3, 13));
}

#[test]
fn created_and_deleted_coalesces_to_a_tombstone_and_deleted_and_created_to_one_update() {
    let now = Instant::now();
    let mut cache = Cache::new("e", "etcd", "");
    cache.listing("h", 10);
    cache.apply_listing(10, vec![set(1, 1)], now);
    cache.apply_revision(11, vec![set(2, 1)], 0, now);
    cache.apply_revision(12, vec![unset(2)], 0, now);
    cache.apply_revision(13, vec![unset(1)], 0, now);
    cache.apply_revision(14, vec![set(1, 1)], 0, now);
    let sent = entries(&cache.entries_after(1, KindSet::all(), 0).message.unwrap());
    let shape: Vec<_> = sent.iter().map(|entry| (entry.seq, entry.deleted)).collect();
    assert_eq!(shape, [(3, true), (5, false)]);
    assert_eq!((cache.tombstones(), cache.live()[&Kind::GlobalConfig]), (1, 1));
}

#[test]
fn invalid_is_a_deletion_that_says_so() {
    let now = Instant::now();
    let mut cache = Cache::new("e", "etcd", "");
    cache.listing("h", 10);
    cache.apply_listing(10, vec![set(1, 1)], now);
    let invalid = Update { key: key(1), value: Err(syncer_common::model::DeletionReason::Invalid) };
    cache.apply_revision(11, vec![invalid], 0, now);
    let sent = entries(&cache.entries_after(1, KindSet::all(), 0).message.unwrap());
    assert!(sent[0].deleted && sent[0].reason() == sync::DeletionReason::DeletionInvalid);
}

#[test]
fn cursor_of_other_kinds_moves_without_a_message() {
    let now = Instant::now();
    let mut cache = Cache::new("e", "etcd", "");
    cache.listing("h", 10);
    cache.apply_listing(10, vec![set(1, 1)], now);
    let page = cache.entries_after(0, Kind::CONFD.into_iter().collect(), 0);
    assert!(page.message.is_none() && page.complete() && page.seq == 1);
}

#[test]
fn large_state_is_paged_and_every_page_but_the_last_says_more() {
    let now = Instant::now();
    let mut cache = Cache::new("e", "etcd", "");
    cache.listing("h", 10);
    let name = |n: u32| Key::GlobalConfig { name: format!("K{n:05}") };
    let updates = (0..2_500).map(|n| Update::set(name(n), Value::Config(n.to_string()))).collect();
    cache.apply_listing(10, updates, now);
    let (mut cursor, mut sizes) = (0, Vec::new());
    loop {
        let page = cache.entries_after(cursor, KindSet::all(), 0);
        let bytes = page.message.clone().unwrap();
        let Some(server_message::Message::Batch(batch)) = ServerMessage::decode(bytes).unwrap().message
        else {
            panic!("not a batch")
        };
        assert_eq!(batch.more, !page.complete());
        sizes.push(batch.entries.len());
        cursor = page.seq;
        if page.complete() {
            break;
        }
    }
    assert_eq!(sizes, [1_000, 1_000, 500]);
}

#[test]
fn old_tombstones_go_and_the_cursors_that_needed_them_get_a_snapshot() {
    let now = Instant::now();
    let mut cache = Cache::new("e", "etcd", "");
    cache.listing("h", 10);
    cache.apply_listing(10, vec![set(1, 1), set(2, 2)], now);
    cache.proof(10, now);
    let token = cache.token(KindSet::all());
    let elsewhere = sync::Token { epoch: "other".into(), ..token.clone() };
    cache.apply_revision(11, vec![unset(1)], 0, now);
    for token in [&token, &elsewhere] {
        let verdict = cache.resume(Some(token), KindSet::all(), Evidence::None);
        assert_eq!(verdict, Resume::Delta { after: 2 });
    }
    cache.trim(now + Duration::from_secs(31 * 60));
    assert_eq!(cache.tombstones(), 0);
    for token in [&token, &elsewhere] {
        let verdict = cache.resume(Some(token), KindSet::all(), Evidence::None);
        assert_eq!(verdict, Resume::Snapshot { sweep: true });
    }
    let later = cache.token(KindSet::all());
    assert_eq!(cache.resume(Some(&later), KindSet::all(), Evidence::None), Resume::Delta { after: 3 });
}

#[test]
fn replica_that_has_seen_less_than_the_client_is_behind() {
    let now = Instant::now();
    let replica = |epoch: &str, revision| {
        let mut cache = Cache::new(epoch, "etcd", "");
        cache.listing("h", 10);
        cache.apply_listing(10, vec![set(1, 1)], now);
        cache.progressed(revision);
        cache
    };
    let (ahead, behind) = (replica("a", 20), replica("b", 19));
    let token = ahead.token(KindSet::all());
    let ask = |evidence| behind.resume(Some(&token), KindSet::all(), evidence);
    assert_eq!(ask(Evidence::None), Resume::Behind);
    assert_eq!(ask(Evidence::Newest(20)), Resume::Behind);
    // The datastore itself has less: it was restored. Absence proves nothing then.
    assert_eq!(ask(Evidence::Newest(19)), Resume::Snapshot { sweep: false });
}

#[test]
fn fork_holds_deletions_until_the_operator_accepts_the_history() {
    let now = Instant::now();
    for (accepted, held) in [("", true), ("restored", false)] {
        let mut cache = Cache::new("e", "etcd", accepted);
        cache.listing("h", 100);
        cache.apply_listing(100, vec![set(1, 1), set(2, 2)], now);
        cache.proof(100, now);
        let old = sync::Token { epoch: "other".into(), ..cache.token(KindSet::all()) };
        assert!(cache.listing("restored", 50));
        cache.apply_listing(50, vec![set(1, 9), unset(2)], now);
        assert_eq!((cache.forked(), live(&cache).len()), (held, if held { 2 } else { 1 }));
        let verdict = cache.resume(Some(&old), KindSet::all(), Evidence::None);
        assert_eq!(verdict, Resume::Snapshot { sweep: !held });
    }
}

#[test]
fn another_event_at_the_witnessed_revision_is_a_fork() {
    let now = Instant::now();
    let replica = |epoch: &str, witness| {
        let mut cache = Cache::new(epoch, "etcd", "");
        cache.listing("h", 10);
        cache.apply_listing(10, vec![set(1, 1)], now);
        cache.apply_revision(11, vec![set(2, 1)], witness, now);
        cache
    };
    let token = replica("a", 1).token(KindSet::all());
    let ask = |cache: Cache| cache.resume(Some(&token), KindSet::all(), Evidence::None);
    assert_eq!(ask(replica("b", 1)), Resume::Delta { after: 2 });
    assert_eq!(ask(replica("b", 2)), Resume::Snapshot { sweep: false });
}

#[test]
fn in_sync_and_fresh_only_when_a_read_has_been_caught_up_with() {
    let start = Instant::now();
    let mut cache = Cache::new("e", "etcd", "");
    cache.proof(20, start);
    cache.listing("h", 10);
    cache.apply_listing(10, vec![set(1, 1)], start);
    assert!(!cache.in_sync() && cache.age(start).is_none());
    cache.apply_revision(20, vec![], 0, start);
    let later = start + Duration::from_secs(3);
    assert!(cache.in_sync());
    assert_eq!(cache.age(later), Some(Duration::from_secs(3)));
    cache.proof(25, start + Duration::from_secs(2));
    assert_eq!(cache.age(later), Some(Duration::from_secs(3)), "25 is not reached");
    cache.progressed(25);
    assert_eq!(cache.age(later), Some(Duration::from_secs(1)));
}

/// One thing that happens to the world.
#[derive(Clone, Debug)]
enum Step {
    /// A transaction in the datastore.
    Write(Vec<(u8, Option<u8>)>),
    /// A replica takes in so many revisions.
    Advance(usize, usize),
    /// A replica lists again instead of watching.
    Relist(usize),
    /// A replica restarts, listing at so many revisions in the past.
    Restart(usize, u64),
    /// A replica's tombstones grow old.
    Age(usize),
    /// A client follows a replica, for so many pages.
    Follow(usize, usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0..KEYS, prop::option::of(0u8..3));
    prop_oneof![
        6 => prop::collection::vec(change, 1..3).prop_map(Step::Write),
        4 => (0usize..2, 1usize..5).prop_map(|(replica, n)| Step::Advance(replica, n)),
        1 => (0usize..2).prop_map(Step::Relist),
        1 => (0usize..2, 0u64..6).prop_map(|(replica, back)| Step::Restart(replica, back)),
        1 => (0usize..2).prop_map(Step::Age),
        6 => (0usize..2, 0usize..2, 0usize..3).prop_map(|(c, r, pages)| Step::Follow(c, r, pages)),
    ]
}

/// The datastore: every transaction since revision 1.
#[derive(Default)]
struct World {
    log: Vec<Vec<(u8, Option<u8>)>>,
}

impl World {
    fn newest(&self) -> u64 {
        self.log.len() as u64 + 1
    }

    fn state(&self, revision: u64) -> BTreeMap<u8, u8> {
        let mut state = BTreeMap::new();
        for (key, value) in self.log[..revision as usize - 1].iter().flatten() {
            match value {
                Some(value) => state.insert(*key, *value),
                None => state.remove(key),
            };
        }
        state
    }

    fn list(&self, cache: &mut Cache, revision: u64, now: Instant) {
        let state = self.state(revision);
        let updates =
            (0..KEYS).map(|key| state.get(&key).map_or_else(|| unset(key), |value| set(key, *value)));
        cache.listing("h", revision);
        cache.apply_listing(revision, updates.collect(), now);
    }

    fn advance(&self, cache: &mut Cache, revisions: usize, now: Instant) {
        for _ in 0..revisions {
            let revision = cache.revision() + 1;
            let Some(changes) = self.log.get(revision as usize - 2) else { return };
            let updates = changes.iter().map(|(k, v)| v.map_or_else(|| unset(*k), |v| set(*k, v))).collect();
            cache.apply_revision(revision, updates, revision * 7, now);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn client_that_joins_lags_and_hops_converges(steps in prop::collection::vec(step(), 1..60)) {
        let mut now = Instant::now();
        let mut world = World::default();
        let mut epochs = 0;
        let mut replica = |world: &World, back: u64, now: Instant| {
            epochs += 1;
            let mut cache = Cache::new(format!("e{epochs}"), "etcd", "");
            world.list(&mut cache, world.newest().saturating_sub(back).max(1), now);
            world.advance(&mut cache, back as usize, now);
            cache
        };
        let mut caches = [replica(&world, 0, now), replica(&world, 0, now)];
        let mut clients = [Client::default(), Client::default()];
        for step in steps {
            match step {
                Step::Write(changes) => world.log.push(changes),
                Step::Advance(n, revisions) => world.advance(&mut caches[n], revisions, now),
                Step::Relist(n) => world.list(&mut caches[n], world.newest(), now),
                Step::Restart(n, back) => caches[n] = replica(&world, back, now),
                Step::Age(n) => {
                    now += Duration::from_secs(31 * 60);
                    caches[n].trim(now);
                }
                Step::Follow(c, n, pages) => {
                    let (client, cache) = (&mut clients[c], &caches[n]);
                    client.removed.clear();
                    if client.follow(cache, pages) {
                        prop_assert_eq!(&client.held, &live(cache));
                    }
                    for key in &client.removed {
                        prop_assert!(!live(cache).contains_key(key), "false deletion of {}", key);
                    }
                }
            }
        }
        for (client, cache) in clients.iter_mut().zip(&mut caches) {
            world.advance(cache, world.log.len(), now);
            prop_assert!(client.follow(cache, 9));
            prop_assert_eq!(&client.held, &live(cache));
        }
    }
}
