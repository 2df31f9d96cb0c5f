//! What the cache sends, keeps and answers; `convergence` has the property that all of it serves.

mod convergence;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use prost::Message;
use proto::sync::{self, ServerMessage, server_message};
use syncer_common::digest;
use syncer_common::model::{Key, Kind, Update, Value};

use super::*;

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
fn listing_that_found_nothing_is_waited_for_only_where_something_may_have_come_and_gone() {
    let now = Instant::now();
    let listed = |epoch: &str, revision| {
        let mut cache = cache(epoch, "");
        cache.listing(0, "h", revision);
        cache.apply_listing(0, revision, vec![set(1, 1)], now);
        cache
    };
    let (mut ahead, mut behind) = (listed("a", 10), listed("b", 10));
    ahead.apply_listing(0, 30, vec![set(1, 1)], now);
    ahead.progressed(0, 40, now);
    let token = ahead.token(KindSet::all());
    let ask = |cache: &mut Cache| {
        cache.proof(0, 40, now);
        cache.resume(Some(&token), KindSet::all(), now)
    };
    behind.progressed(0, 20, now);
    assert_eq!(ask(&mut behind), Resume::Delta { after: 1 }, "nothing happened here either");
    behind.apply_revision(0, 21, vec![set(2, 1)], 0, now);
    assert_eq!(ask(&mut behind), Resume::Behind, "it was gone by 30");
    behind.apply_revision(0, 29, vec![unset(2)], 0, now);
    behind.progressed(0, 30, now);
    assert_eq!(ask(&mut behind), Resume::Delta { after: 3 }, "both were the same from here on");
    // A replica that has just started can not tell what was before.
    assert_eq!(ask(&mut listed("c", 29)), Resume::Behind);
    assert_eq!(ask(&mut listed("d", 30)), Resume::Delta { after: 1 });
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
