//! Any client, at any time, from any replica: what it holds after a completed resume is what the replica holds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use prost::Message;
use proto::Position;
use proto::sync::{self, ServerMessage, server_message};
use syncer_common::digest;
use syncer_common::model::{Key, Kind, Update, Value};

use super::*;
use crate::syncserver::compare::Compare;

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

/// With one source.
fn cache(epoch: &str, accepted: &str) -> Cache {
    let mut cache = Cache::new(epoch, accepted);
    cache.follow(["etcd"]);
    cache
}

fn live(cache: &Cache) -> BTreeMap<String, Vec<u8>> {
    cache.iter_live().map(|(key, value)| (key.to_owned(), value.to_vec())).collect()
}

/// The message without its frame.
fn message_of(framed: &Bytes) -> ServerMessage {
    let payload = &framed[5..];
    match framed[0] {
        0 => ServerMessage::decode(payload).unwrap(),
        _ => ServerMessage::decode(&*zstd::bulk::decompress(payload, 4 << 20).unwrap()).unwrap(),
    }
}

fn entries_of(framed: &Bytes) -> Vec<sync::Entry> {
    match message_of(framed).message.unwrap() {
        server_message::Message::Batch(batch) => batch.entries,
        other => panic!("not a batch: {other:?}"),
    }
}

fn entries(message: &frame::Framed) -> Vec<sync::Entry> {
    entries_of(message.bytes(true))
}

/// A client as the protocol has it.
#[derive(Clone, Default)]
struct Client {
    held: BTreeMap<String, Vec<u8>>,
    token: Option<sync::Token>,
    /// Of the token, and what came since.
    positions: Vec<Position>,
    removed: Vec<String>,
}

impl Client {
    fn take(&mut self, entry: sync::Entry) {
        for cause in &entry.cause {
            let held = self.positions.iter_mut().filter(|held| held.source == cause.source);
            held.for_each(|held| held.high = held.high.max(cause.revision));
        }
        match entry.value {
            Some(value) => drop(self.held.insert(entry.key, value.encode_to_vec())),
            None if self.held.remove(&entry.key).is_some() => self.removed.push(entry.key),
            None => {}
        }
    }

    fn hashes(&self, kind: &str, among: impl Fn(u16) -> bool) -> Vec<u64> {
        let of_kind = |path: &str| Kind::of(&Key::parse(path).unwrap()).unwrap().name() == kind;
        let held = self.held.iter().filter(|(path, _)| of_kind(path) && among(digest::leaf(path)));
        held.map(|(path, value)| digest::hash(path, value)).collect()
    }

    fn sum(&self, kind: &str, among: impl Fn(u16) -> bool) -> u64 {
        self.hashes(kind, among).into_iter().fold(0, u64::wrapping_add)
    }

    /// Digests as the protocol has them, written down a second time: nothing is kept, everything is counted anew.
    fn compare(
        &mut self,
        shared: &Shared,
        few: u64,
        meanwhile: &mut impl FnMut(&Shared),
        seen: &mut Vec<String>,
        gone_at_cut: &mut Vec<String>,
    ) -> KindSet {
        let mut compare = Compare::with_few(KindSet::all(), few);
        let before = self.clone();
        let roots = KindSet::all().iter().flat_map(|kind| {
            let leaves: BTreeSet<u16> = before.held.keys().map(|path| digest::leaf(path)).collect();
            let sums = leaves.into_iter().map(|n| (n, before.sum(kind.name(), |leaf| leaf == n)));
            digest::root(sums.filter(|(_, sum)| *sum != 0).collect::<Vec<_>>().into_iter())
        });
        let mut answers =
            VecDeque::from([sync::DigestAnswer { sums: roots.collect(), ..Default::default() }]);
        while let Some(answer) = answers.pop_front() {
            meanwhile(shared);
            let messages = compare.on_answer(answer, &shared.read()).unwrap();
            for message in messages {
                match message_of(&message).message.unwrap() {
                    server_message::Message::Batch(batch) => {
                        for entry in batch.entries {
                            seen.push(entry.key.clone());
                            self.take(entry);
                        }
                    }
                    server_message::Message::Gone(gone) => {
                        let gone =
                            |path: &String, value: &Vec<u8>| gone.hashes.contains(&digest::hash(path, value));
                        let keys: Vec<String> = (self.held.iter())
                            .filter(|(path, value)| gone(path, value))
                            .map(|(path, _)| path.clone())
                            .collect();
                        gone_at_cut.extend(keys);
                    }
                    server_message::Message::Digest(request) => {
                        let (kind, asked) = (request.kind, request.buckets);
                        let sum = |n: u16, of: u16| before.sum(&kind, |leaf| leaf / of == n);
                        let (mut sums, mut hashes) = (Vec::new(), Vec::new());
                        match request.depth {
                            1 => sums.extend((0..64).map(|branch| sum(branch, 64))),
                            2 => sums.extend(
                                asked.iter().flat_map(|n| n * 64..n * 64 + 64).map(|n| sum(n as u16, 1)),
                            ),
                            _ => {
                                hashes = before.hashes(&kind, |leaf| {
                                    asked.is_empty() || asked.contains(&u32::from(leaf))
                                })
                            }
                        }
                        let depth = request.depth;
                        answers.push_back(sync::DigestAnswer { kind, depth, sums, hashes, last: true });
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(compare.done());
        compare.whole
    }

    /// One whole stream, while the cache goes on. Returns whether it was served.
    fn follow(
        &mut self,
        shared: &Shared,
        now: Instant,
        most_pages: usize,
        few: u64,
        mut meanwhile: impl FnMut(&Shared),
    ) -> bool {
        let kinds = KindSet::all();
        let positions = Some(self.positions.iter().copied().collect());
        let offered = self.token.clone().map(|token| sync::Token { positions, ..token });
        let verdict = shared.read().resume(offered.as_ref(), kinds, now);
        let (mut seen, mut gone_at_cut) = (Vec::new(), Vec::new());
        let trimmed = shared.read().trimmed_seq();
        let head = shared.read().head();
        let nothing = KindSet::default();
        let (mut cursor, sweep, whole, mut settled) = match verdict {
            Resume::Behind => return false,
            Resume::Delta { after } => (after, None, nothing, after.max(trimmed)),
            Resume::Snapshot { sweep } => {
                let base = shared.base();
                (base, Some(sweep), kinds, base)
            }
            Resume::Digest => {
                let whole = self.compare(shared, few, &mut meanwhile, &mut seen, &mut gone_at_cut);
                (head, Some(true), whole, head)
            }
        };
        for kind in whole.iter() {
            let mut leaf = Some(0);
            while let Some(place) = leaf.map(|leaf| Place { kind, leaf }) {
                if (most_pages == 0 && kind > Kind::Policy) || shared.read().trimmed_seq() > settled {
                    return false;
                }
                let (messages, next) = shared.segment(place, cursor, true);
                for entry in messages.iter().flat_map(entries_of) {
                    seen.push(entry.key.clone());
                    self.take(entry);
                }
                leaf = next;
                meanwhile(shared);
            }
        }
        for page in 0..most_pages {
            if page > 0 {
                meanwhile(shared);
            }
            let cache = shared.read();
            if cache.trimmed_seq() > settled {
                return false;
            }
            let page = cache.entries_after(cursor, kinds, 0);
            for entry in page.message.iter().flat_map(entries) {
                seen.push(entry.key.clone());
                self.take(entry);
            }
            cursor = page.seq;
            if sweep.is_none() {
                settled = settled.max(cursor);
            }
            if !page.complete() {
                continue;
            }
            if sweep == Some(true) {
                let swept = |key: &&String| whole.contains(Kind::of(&Key::parse(key).unwrap()).unwrap());
                let swept = self.held.keys().filter(swept).cloned();
                gone_at_cut.extend(swept.collect::<Vec<_>>());
                for key in gone_at_cut.drain(..).filter(|key| !seen.contains(key)) {
                    if self.held.remove(&key).is_some() {
                        self.removed.push(key);
                    }
                }
            }
            if sweep != Some(false) {
                self.adopt(&cache, offered.as_ref());
            }
            return true;
        }
        false
    }
}

impl Client {
    /// The cut: whole, or what it changes in the token that was offered. Both have to come to the same.
    fn adopt(&mut self, cache: &Cache, offered: Option<&sync::Token>) {
        let whole = cache.token(KindSet::all());
        let (cut, whole_positions) = (
            offered.map(|offered| cache.stand().cut_after(offered, cache.view(KindSet::all()))),
            whole.positions(),
        );
        match (self.token.as_mut(), cut) {
            (Some(token), Some(cut)) if cut.token.is_none() => {
                token.seq = cut.seq;
                if !cut.epoch.is_empty() {
                    token.epoch = cut.epoch;
                }
                for position in cut.positions.unwrap().list() {
                    let held = self.positions.iter_mut().find(|held| held.source == position.source);
                    *held.unwrap() = position;
                }
                assert_eq!(*token, sync::Token { positions: None, ..whole });
                assert_eq!(self.positions, whole_positions);
            }
            _ => {
                self.positions = whole_positions;
                self.token = Some(sync::Token { positions: None, ..whole });
            }
        }
    }
}

#[test]
fn equal_value_takes_no_position_and_a_value_that_came_back_takes_two() {
    let now = Instant::now();
    let mut cache = cache("e", "");
    cache.listing(0, "h", 10);
    cache.apply_listing(0, 10, vec![set(1, 1)], now);
    assert_eq!(
        cache.apply_revision(0, 11, vec![set(1, 1)], 0, now),
        Applied { skipped: 1, ..Applied::default() }
    );
    assert_eq!(cache.head(), 1);
    cache.apply_revision(0, 12, vec![set(1, 2)], 0, now);
    cache.apply_revision(0, 13, vec![set(1, 1)], 0, now);
    assert_eq!((cache.head(), cache.revision(0)), (3, 13));
    let page = cache.entries_after(1, KindSet::all(), 0);
    let sent = entries(&page.message.unwrap());
    assert_eq!((sent.len(), sent[0].seq, sent[0].cause[0].revision), (1, 3, 13));
}

#[test]
fn created_and_deleted_coalesces_to_a_tombstone_and_deleted_and_created_to_one_update() {
    let now = Instant::now();
    let mut cache = cache("e", "");
    cache.listing(0, "h", 10);
    cache.apply_listing(0, 10, vec![set(1, 1)], now);
    cache.apply_revision(0, 11, vec![set(2, 1)], 0, now);
    cache.apply_revision(0, 12, vec![unset(2)], 0, now);
    cache.apply_revision(0, 13, vec![unset(1)], 0, now);
    cache.apply_revision(0, 14, vec![set(1, 1)], 0, now);
    let sent = entries(&cache.entries_after(1, KindSet::all(), 0).message.unwrap());
    let shape: Vec<_> = sent.iter().map(|entry| (entry.seq, entry.deleted)).collect();
    assert_eq!(shape, [(3, true), (5, false)]);
    assert_eq!((cache.tombstones(), cache.live()[&Kind::GlobalConfig]), (1, 1));
}

#[test]
fn invalid_is_a_deletion_that_says_so() {
    let now = Instant::now();
    let mut cache = cache("e", "");
    cache.listing(0, "h", 10);
    cache.apply_listing(0, 10, vec![set(1, 1)], now);
    let invalid = Update { key: key(1), value: Err(syncer_common::model::DeletionReason::Invalid) };
    cache.apply_revision(0, 11, vec![invalid], 0, now);
    let sent = entries(&cache.entries_after(1, KindSet::all(), 0).message.unwrap());
    assert!(sent[0].deleted && sent[0].reason() == sync::DeletionReason::DeletionInvalid);
}

#[test]
fn cursor_of_other_kinds_moves_without_a_message() {
    let now = Instant::now();
    let mut cache = cache("e", "");
    cache.listing(0, "h", 10);
    cache.apply_listing(0, 10, vec![set(1, 1)], now);
    let page = cache.entries_after(0, Kind::CONFD.into_iter().collect(), 0);
    assert!(page.message.is_none() && page.complete() && page.seq == 1);
}

#[test]
fn large_state_is_paged_and_every_page_but_the_last_says_more() {
    let now = Instant::now();
    let mut cache = cache("e", "");
    cache.listing(0, "h", 10);
    let name = |n: u32| Key::GlobalConfig { name: format!("K{n:05}") };
    let updates: Vec<_> = (0..2_500).map(|n| Update::set(name(n), Value::Config(n.to_string()))).collect();
    cache.apply_listing(0, 10, updates, now);
    let (mut cursor, mut sizes) = (0, Vec::new());
    loop {
        let page = cache.entries_after(cursor, KindSet::all(), 0);
        let bytes = page.message.as_ref().unwrap().payload();
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
    let mut cache = cache("e", "");
    cache.listing(0, "h", 10);
    cache.apply_listing(0, 10, vec![set(1, 1), set(2, 2)], now);
    cache.proof(0, 10, now);
    let token = cache.token(KindSet::all());
    let elsewhere = sync::Token { epoch: "other".into(), ..token.clone() };
    cache.apply_revision(0, 11, vec![unset(1)], 0, now);
    for token in [&token, &elsewhere] {
        let verdict = cache.resume(Some(token), KindSet::all(), Instant::now());
        assert_eq!(verdict, Resume::Delta { after: 2 });
    }
    cache.trim(now + Duration::from_secs(31 * 60));
    assert_eq!(cache.tombstones(), 0);
    for token in [&token, &elsewhere] {
        let verdict = cache.resume(Some(token), KindSet::all(), Instant::now());
        assert_eq!(verdict, Resume::Digest);
    }
    let later = cache.token(KindSet::all());
    assert_eq!(cache.resume(Some(&later), KindSet::all(), Instant::now()), Resume::Delta { after: 3 });
}

#[test]
fn replica_that_has_seen_less_than_the_client_is_behind() {
    let now = Instant::now();
    let replica = |epoch: &str, revision| {
        let mut cache = cache(epoch, "");
        cache.listing(0, "h", 10);
        cache.apply_listing(0, 10, vec![set(1, 1)], now);
        cache.progressed(0, revision, now);
        cache
    };
    let (mut ahead, mut behind) = (replica("a", 20), replica("b", 19));
    let token = ahead.token(KindSet::all());
    let ask = |cache: &Cache| cache.resume(Some(&token), KindSet::all(), now);
    assert_eq!(ask(&behind), Resume::Behind);
    assert_eq!(behind.doubtful(&token), [0]);
    // The datastore itself has less: it was restored. Absence proves nothing then.
    behind.proof(0, 19, now);
    assert_eq!(ask(&behind), Resume::Snapshot { sweep: false });
    // It has as much, and nothing happened there since what both have seen.
    behind.proof(0, 20, now);
    assert_eq!(ask(&behind), Resume::Delta { after: 1 });
    ahead.apply_revision(0, 21, vec![set(1, 2)], 0, now);
    let changed = ahead.token(KindSet::all());
    behind.proof(0, 21, now);
    assert_eq!(behind.resume(Some(&changed), KindSet::all(), now), Resume::Behind);
}

#[test]
fn effects_of_a_replica_that_was_ahead_are_not_forgotten_on_the_way_back() {
    let now = Instant::now();
    let mut cache = cache("e", "");
    cache.listing(0, "h", 10);
    cache.apply_listing(0, 10, vec![set(1, 1)], now);
    let token = cache.token(KindSet::all());
    // It went elsewhere, was sent an effect of 15, and came back before there was a cut.
    let mut positions = token.positions();
    positions[0].high = 15;
    let raised = sync::Token { positions: Some(positions.into_iter().collect()), ..token.clone() };
    let ask = |cache: &Cache, token| cache.resume(Some(token), KindSet::all(), now);
    assert_eq!(ask(&cache, &token), Resume::Delta { after: 1 });
    assert_eq!(ask(&cache, &raised), Resume::Behind);
    // What was created at 15 may have been deleted before this listing: there is no trace of it.
    cache.listing(0, "h", 20);
    cache.apply_listing(0, 20, vec![], now);
    assert_eq!(ask(&cache, &raised), Resume::Digest);
}

#[test]
fn fork_holds_deletions_until_the_operator_accepts_the_history() {
    let now = Instant::now();
    for (accepted, held) in [("", true), ("restored", false)] {
        let mut cache = cache("e", accepted);
        cache.listing(0, "h", 100);
        cache.apply_listing(0, 100, vec![set(1, 1), set(2, 2)], now);
        cache.proof(0, 100, now);
        let old = sync::Token { epoch: "other".into(), ..cache.token(KindSet::all()) };
        assert!(cache.listing(0, "restored", 50));
        cache.apply_listing(0, 50, vec![set(1, 9), unset(2)], now);
        assert_eq!((cache.forked(), live(&cache).len()), (held, if held { 2 } else { 1 }));
        let verdict = cache.resume(Some(&old), KindSet::all(), Instant::now());
        assert_eq!(verdict, if held { Resume::Snapshot { sweep: false } } else { Resume::Digest });
    }
}

#[test]
fn another_event_at_the_witnessed_revision_is_a_fork() {
    let now = Instant::now();
    let replica = |epoch: &str, witness| {
        let mut cache = cache(epoch, "");
        cache.listing(0, "h", 10);
        cache.apply_listing(0, 10, vec![set(1, 1)], now);
        cache.apply_revision(0, 11, vec![set(2, 1)], witness, now);
        cache
    };
    let token = replica("a", 1).token(KindSet::all());
    let ask = |cache: Cache| cache.resume(Some(&token), KindSet::all(), Instant::now());
    assert_eq!(ask(replica("b", 1)), Resume::Delta { after: 2 });
    assert_eq!(ask(replica("b", 2)), Resume::Snapshot { sweep: false });
}

#[test]
fn in_sync_and_fresh_only_when_a_read_has_been_caught_up_with() {
    let start = Instant::now();
    let mut cache = cache("e", "");
    cache.proof(0, 20, start);
    cache.listing(0, "h", 10);
    cache.apply_listing(0, 10, vec![set(1, 1)], start);
    assert!(!cache.in_sync() && cache.age(start).is_none());
    cache.apply_revision(0, 20, vec![], 0, start);
    let later = start + Duration::from_secs(3);
    assert!(cache.in_sync());
    assert_eq!(cache.age(later), Some(Duration::from_secs(3)));
    cache.proof(0, 25, start + Duration::from_secs(2));
    assert_eq!(cache.age(later), Some(Duration::from_secs(3)), "25 is not reached");
    cache.progressed(0, 25, start);
    assert_eq!(cache.age(later), Some(Duration::from_secs(1)));
}

#[test]
fn position_of_one_source_says_nothing_about_another() {
    let now = Instant::now();
    let replica = |epoch: &str| {
        let mut cache = Cache::new(epoch, "");
        cache.follow(["pods", "nodes"]);
        for source in 0..2 {
            cache.listing(source, "h", 100);
        }
        cache.apply_listing(0, 100, vec![set(1, 1)], now);
        cache.apply_listing(1, 40, vec![set(2, 1)], now);
        cache
    };
    let (mut a, mut b) = (replica("a"), replica("b"));
    a.proof(0, 100, now);
    assert!(!a.in_sync(), "one source is not all");
    a.proof(1, 40, now);
    assert!(a.in_sync());
    for cache in [&mut a, &mut b] {
        cache.apply_revision(0, 101, vec![set(3, 1)], 1, now);
    }
    let token = a.token(KindSet::all());
    b.apply_revision(1, 41, vec![set(4, 1)], 2, now);
    b.apply_revision(0, 102, vec![unset(1)], 3, now);
    let ask = |cache: &Cache| cache.resume(Some(&token), KindSet::all(), now);
    assert_eq!(ask(&b), Resume::Delta { after: 3 }, "from the first change that is news, of either source");
    // The same, where the other source's change came first.
    let mut c = replica("c");
    c.apply_revision(1, 41, vec![set(4, 1)], 2, now);
    assert_eq!(ask(&c), Resume::Behind);
    assert_eq!(c.doubtful(&token), [0]);
    c.apply_revision(0, 101, vec![set(3, 1)], 1, now);
    assert_eq!(ask(&c), Resume::Delta { after: 2 });
    // A replica of a later version follows one source more.
    let mut d = Cache::new("d", "");
    d.follow(["pods", "nodes", "services"]);
    for (source, revision) in [(0, 101), (1, 41), (2, 7)] {
        d.listing(source, "h", revision);
        d.apply_listing(source, revision, vec![], now);
    }
    assert_eq!(ask(&d), Resume::Digest);
}

#[test]
fn silent_watch_of_one_source_makes_all_data_old() {
    let start = Instant::now();
    let mut cache = Cache::new("e", "");
    cache.follow(["pods", "nodes"]);
    for source in 0..2 {
        cache.listing(source, "h", 10);
        cache.apply_listing(source, 10, vec![set(source as u8, 1)], start);
        cache.proof(source, 10, start);
    }
    let after = |seconds| start + Duration::from_secs(seconds);
    // Reads in turn go on; bookmarks of one source do not.
    for seconds in 1..=80 {
        cache.proof((seconds % 2) as usize, 10 + seconds, after(seconds));
        cache.progressed(0, 10 + seconds, after(seconds));
    }
    assert_eq!(cache.age(after(70)), Some(Duration::ZERO));
    assert_eq!(cache.age(after(80)), Some(Duration::from_secs(80)));
    cache.progressed(1, 90, after(80));
    assert_eq!(cache.age(after(81)), Some(Duration::from_secs(1)));
}

/// One thing that happens to the world.
#[derive(Clone, Debug)]
enum Step {
    /// A transaction in the datastore; in a source, the keys of its parity.
    Write(Transaction),
    /// Revisions of a source that are somebody else's.
    Foreign(usize, usize),
    /// A replica takes in so many revisions of a source.
    Advance(usize, usize, usize),
    /// A replica is told how far a source is.
    Bookmark(usize, usize),
    /// A replica lists a source again instead of watching.
    Relist(usize, usize),
    /// A replica restarts, listing at so many revisions in the past.
    Restart(usize, u64),
    /// A replica's tombstones grow old.
    Age(usize),
    /// A client follows a replica, for so many pages, with or without a fresh read of the datastore, while the
    /// replica takes in so many revisions between any two messages, and its tombstones may grow old.
    Follow { client: usize, replica: usize, pages: usize, read: bool, meanwhile: usize, ages: bool, few: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0..KEYS, prop::option::of(0u8..3));
    let two = || 0usize..2;
    prop_oneof![
        6 => prop::collection::vec(change, 1..3).prop_map(Step::Write),
        1 => (two(), 1usize..4).prop_map(|(source, n)| Step::Foreign(source, n)),
        5 => (two(), two(), 1usize..5).prop_map(|(replica, source, n)| Step::Advance(replica, source, n)),
        1 => (two(), two()).prop_map(|(replica, source)| Step::Bookmark(replica, source)),
        1 => (two(), two()).prop_map(|(replica, source)| Step::Relist(replica, source)),
        1 => (two(), 0u64..6).prop_map(|(replica, back)| Step::Restart(replica, back)),
        1 => two().prop_map(Step::Age),
        6 => (two(), two(), 0usize..4, any::<bool>(), 0usize..3, prop::bool::weighted(0.1), prop::bool::ANY).prop_map(
            |(client, replica, pages, read, meanwhile, ages, few)| {
                Step::Follow { client, replica, pages, read, meanwhile, ages, few: if few { 512 } else { 0 } }
            }
        ),
    ]
}

/// Keys and their new values; none: deleted.
type Transaction = Vec<(u8, Option<u8>)>;

/// The datastore: every transaction of each source since revision 1.
#[derive(Default)]
struct World {
    logs: [Vec<Transaction>; 2],
}

impl World {
    fn write(&mut self, changes: &Transaction) {
        for (source, log) in self.logs.iter_mut().enumerate() {
            let own: Vec<_> =
                changes.iter().copied().filter(|(key, _)| usize::from(key % 2) == source).collect();
            if !own.is_empty() {
                log.push(own);
            }
        }
    }

    fn newest(&self, source: usize) -> u64 {
        self.logs[source].len() as u64 + 1
    }

    fn state(&self, source: usize, revision: u64) -> BTreeMap<u8, u8> {
        let mut state = BTreeMap::new();
        for (key, value) in self.logs[source][..revision as usize - 1].iter().flatten() {
            match value {
                Some(value) => state.insert(*key, *value),
                None => state.remove(key),
            };
        }
        state
    }

    /// Whether the key was absent at any time since the token.
    fn was_absent(&self, path: &str, token: &sync::Token) -> bool {
        let n = (0..KEYS).find(|n| key(*n).path().unwrap() == path).unwrap();
        let source = usize::from(n % 2);
        (token.positions()[source].low..=self.newest(source))
            .any(|revision| !self.state(source, revision).contains_key(&n))
    }

    fn list(&self, cache: &mut Cache, source: usize, revision: u64, now: Instant) {
        let state = self.state(source, revision);
        let keys = (0..KEYS).filter(|key| usize::from(key % 2) == source);
        let updates = keys.map(|key| state.get(&key).map_or_else(|| unset(key), |value| set(key, *value)));
        cache.listing(source, "h", revision);
        cache.apply_listing(source, revision, updates.collect::<Vec<_>>(), now);
    }

    /// Takes in the next events, so many; what lies between them is skipped as a watch skips it.
    fn advance(&self, cache: &mut Cache, source: usize, events: usize, now: Instant) {
        let from = cache.revision(source);
        let later = self.logs[source].iter().enumerate().skip(from as usize - 1);
        for (index, changes) in later.filter(|(_, changes)| !changes.is_empty()).take(events) {
            let revision = index as u64 + 2;
            let updates: Vec<_> =
                changes.iter().map(|(k, v)| v.map_or_else(|| unset(*k), |v| set(*k, v))).collect();
            cache.apply_revision(source, revision, updates, revision as u32 * 7, now);
        }
    }

    /// A bookmark comes behind all events before it.
    fn bookmark(&self, cache: &mut Cache, source: usize, now: Instant) {
        self.advance(cache, source, usize::MAX, now);
        cache.progressed(source, self.newest(source), now);
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
            let mut cache = Cache::new(format!("e{epochs}"), "");
            cache.follow(["even", "odd"]);
            for source in 0..2 {
                world.list(&mut cache, source, world.newest(source).saturating_sub(back).max(1), now);
                world.advance(&mut cache, source, back as usize, now);
            }
            Shared::new(cache)
        };
        let mut caches = [replica(&world, 0, now), replica(&world, 0, now)];
        let mut clients = [Client::default(), Client::default()];
        for step in steps {
            now += Duration::from_millis(1);
            match step {
                Step::Write(changes) => world.write(&changes),
                Step::Foreign(source, n) => world.logs[source].extend(vec![Vec::new(); n]),
                Step::Advance(n, source, revisions) => {
                    caches[n].update(|cache| world.advance(cache, source, revisions, now));
                }
                Step::Bookmark(n, source) => {
                    caches[n].update(|cache| world.bookmark(cache, source, now));
                }
                Step::Relist(n, source) => {
                    caches[n].update(|cache| world.list(cache, source, world.newest(source), now));
                }
                Step::Restart(n, back) => caches[n] = replica(&world, back, now),
                Step::Age(n) => {
                    now += Duration::from_secs(31 * 60);
                    caches[n].update(|cache| cache.trim(now));
                }
                Step::Follow { client, replica, pages, read, meanwhile, ages, few } => {
                    let (client, cache) = (&mut clients[client], &caches[replica]);
                    for source in (0..2).filter(|_| read) {
                        cache.update(|cache| cache.proof(source, world.newest(source), now));
                    }
                    client.removed.clear();
                    let positions = Some(client.positions.iter().copied().collect());
                    let before = client.token.clone().map(|token| sync::Token { positions, ..token });
                    let mut later = now;
                    let go_on = |shared: &Shared| shared.update(|cache| {
                        for source in (0..2).filter(|_| meanwhile > 0) {
                            world.advance(cache, source, meanwhile, later);
                        }
                        if ages {
                            later += Duration::from_secs(31 * 60);
                            cache.trim(later);
                        }
                    });
                    if client.follow(cache, now, pages, few, go_on) {
                        prop_assert_eq!(&client.held, &live(&cache.read()));
                    }
                    for key in &client.removed {
                        // Who held nothing has received it in this stream, at a position of this replica's.
                        let absent = match &before {
                            Some(since) => world.was_absent(key, since),
                            None => !live(&cache.read()).contains_key(key),
                        };
                        prop_assert!(absent, "false deletion of {}", key);
                    }
                }
            }
        }
        for (client, cache) in clients.iter_mut().zip(&caches) {
            for source in 0..2 {
                cache.update(|cache| world.bookmark(cache, source, now));
            }
            let served = client.follow(cache, now, 9, 512, |_| {});
            prop_assert!(served);
            prop_assert_eq!(&client.held, &live(&cache.read()));
        }
    }
}
