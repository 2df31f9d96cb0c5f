//! What has been delivered to the agent: pure. Decides what is news, what is gone, and which token to offer.
//!
//! Per key it keeps eight bytes of a hash of the value delivered last, so a snapshot of a new server yields
//! only the differences. Rules:
//! - A deletion is delivered for a key that is held, and only when the server says so, or when a snapshot that
//!   is complete for the key's kind did not contain it.
//! - An entry that cannot be read here (unknown key, unknown kind of value) is counted and ignored; it also
//!   counts as present, so that a newer server's values are not taken for deletions.
//! - A token is adopted at a cut, and never from a snapshot that did not cover every kind. What arrives after
//!   a cut raises the token's upper bound: the state may contain effects up to there.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;
use proto::model;
use proto::sync::{Cut, DeletionReason as Reason, Heartbeat, ResumeVerdict, ServerHello, SnapshotEnd, Token};
use syncer_common::model::{DeletionReason, Key, Kind, Update};

use crate::wire::Entry;

#[derive(Debug, Default)]
pub(crate) struct Held {
    keys: HashMap<Box<str>, Delivered>,
    token: Option<Token>,
    /// Counts snapshots: what bears an older number was not sent in the present one.
    generation: u32,
    stream: Stream,
    in_sync: bool,
}

#[derive(Debug)]
struct Delivered {
    hash: u64,
    kind: Kind,
    generation: u32,
}

/// What the present stream has shown.
#[derive(Debug, Default)]
struct Stream {
    history: String,
    kinds: Vec<Kind>,
    snapshot: bool,
    /// Kinds for which the stream is known to be complete.
    complete: Vec<Kind>,
}

/// What to tell the agent.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub updates: Vec<Update>,
    /// Entries that could not be read.
    pub ignored: u64,
    /// Entries whose value was delivered before.
    pub known: u64,
}

/// What a cut means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AtCut {
    pub first_in_sync: bool,
    pub epoch: String,
    pub seq: u64,
}

impl Held {
    /// The token to offer.
    pub fn token(&self) -> Option<Token> {
        self.token.clone()
    }

    pub fn on_hello(&mut self, hello: &ServerHello) {
        let kinds: Vec<Kind> = hello.kinds.iter().filter_map(|name| Kind::from_name(name)).collect();
        let snapshot = hello.verdict() == ResumeVerdict::ResumeSnapshot;
        if snapshot {
            self.generation = self.generation.wrapping_add(1);
        }
        let complete = if snapshot { Vec::new() } else { kinds.clone() };
        self.stream = Stream { history: hello.history.clone(), kinds, snapshot, complete };
    }

    pub fn on_entries(&mut self, entries: Vec<Entry>) -> News {
        let mut news = News::default();
        for entry in entries {
            self.raise(&entry);
            self.on_entry(entry, &mut news);
        }
        news
    }

    fn on_entry(&mut self, entry: Entry, news: &mut News) {
        let generation = self.generation;
        if entry.deleted {
            let Some(_) = self.keys.remove(entry.key.as_str()) else { return };
            // It was parsed when it was delivered.
            let Some(key) = Key::parse(&entry.key) else { return };
            let reason = match Reason::try_from(entry.reason).unwrap_or_default() {
                Reason::DeletionInvalid => DeletionReason::Invalid,
                Reason::DeletionOutOfScope => DeletionReason::OutOfScope,
                _ => DeletionReason::Deleted,
            };
            news.updates.push(Update { key, value: Err(reason) });
            return;
        }
        let value = entry.value.unwrap_or_default();
        let hash = hash(&entry.key, &value);
        if let Some(delivered) = self.keys.get_mut(entry.key.as_str()) {
            delivered.generation = generation;
            if delivered.hash == hash {
                news.known += 1;
                return;
            }
        }
        let Some(key) = Key::parse(&entry.key) else {
            news.ignored += 1;
            return;
        };
        let decoded = model::Value::decode(value).ok().and_then(|value| value.kind);
        let (Some(value), Some(kind)) = (decoded, Kind::of(&key)) else {
            news.ignored += 1;
            return;
        };
        self.keys.insert(entry.key.into_boxed_str(), Delivered { hash, kind, generation });
        news.updates.push(Update::set(key, value));
    }

    /// What the snapshot did not contain is gone, for the kinds that it covers.
    pub fn on_snapshot_end(&mut self, end: &SnapshotEnd) -> News {
        let mut news = News::default();
        if !self.stream.snapshot {
            return news;
        }
        let kinds: Vec<Kind> = end.kinds.iter().filter_map(|name| Kind::from_name(name)).collect();
        let generation = self.generation;
        self.keys.retain(|path, delivered| {
            if delivered.generation == generation || !kinds.contains(&delivered.kind) {
                return true;
            }
            match Key::parse(path) {
                Some(key) => news.updates.push(Update::delete(key)),
                None => news.ignored += 1,
            }
            false
        });
        news.updates.sort_by(|a, b| a.key.cmp(&b.key));
        self.stream.complete = kinds;
        news
    }

    pub fn on_cut(&mut self, cut: Cut) -> Option<AtCut> {
        let token = cut.token?;
        let at = AtCut { first_in_sync: false, epoch: token.epoch.clone(), seq: token.seq };
        if !self.stream.kinds.iter().all(|kind| self.stream.complete.contains(kind)) {
            // The snapshot proved nothing for some kinds: the old token says better what is held.
            return Some(at);
        }
        self.token = Some(token);
        let first = !std::mem::replace(&mut self.in_sync, true);
        Some(AtCut { first_in_sync: first, ..at })
    }

    /// At the cut still: then what the heartbeat proves holds for this state too.
    pub fn on_heartbeat(&mut self, heartbeat: &Heartbeat, epoch: &str) {
        let Some(token) = &mut self.token else { return };
        if token.epoch != epoch || token.seq != heartbeat.seq {
            return;
        }
        for position in &mut token.sources {
            let proven = heartbeat.sources.iter().find(|proven| proven.source == position.source);
            // Anything above `low` would have come after the cut, and been sent: it did not.
            if let Some(proven) = proven.filter(|proven| proven.low >= position.low.max(position.high)) {
                (position.low, position.witness) = (proven.low, proven.witness);
            }
        }
    }

    /// The state now contains an effect of that revision.
    fn raise(&mut self, entry: &Entry) {
        let Some(token) = self.token.as_mut().filter(|token| token.history == self.stream.history) else {
            return;
        };
        for position in &mut token.sources {
            for stamp in entry.cause.iter().filter(|stamp| stamp.source == position.source) {
                position.high = position.high.max(stamp.revision);
            }
        }
    }

    pub fn in_sync(&self) -> bool {
        self.in_sync
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }
}

/// The first 64 bits of BLAKE3(key ‖ 0 ‖ value), as digests count them.
fn hash(key: &str, value: &Bytes) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key.as_bytes());
    hasher.update(&[0]);
    hasher.update(value);
    let hash = hasher.finalize();
    u64::from_be_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use proto::model::{Value, value};
    use proto::sync::{SourcePosition, Stamp};

    use super::*;

    fn path(n: u8) -> String {
        format!("/calico/v1/config/Key{n}")
    }

    fn entry(n: u8, content: Option<&str>, revision: u64) -> Entry {
        let value = content.map(|content| Value { kind: Some(value::Kind::Config(content.into())) });
        Entry {
            key: path(n),
            deleted: value.is_none(),
            reason: i32::from(value.is_none()),
            seq: 0,
            cause: vec![Stamp { source: "etcd".into(), revision }],
            value: value.map(|value| value.encode_to_vec().into()),
        }
    }

    fn hello(verdict: ResumeVerdict) -> ServerHello {
        let kinds = vec!["GlobalConfig".to_owned(), "Policy".to_owned()];
        ServerHello { history: "h".into(), verdict: verdict as i32, kinds, ..Default::default() }
    }

    fn cut(epoch: &str, seq: u64, revision: u64) -> Cut {
        let sources =
            vec![SourcePosition { source: "etcd".into(), low: revision, high: revision, witness: None }];
        Cut {
            token: Some(Token {
                history: "h".into(),
                epoch: epoch.into(),
                seq,
                sources,
                ..Default::default()
            }),
        }
    }

    fn end(kinds: &[&str]) -> SnapshotEnd {
        SnapshotEnd { kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect() }
    }

    const ALL: &[&str] = &["GlobalConfig", "Policy"];

    fn joined() -> Held {
        let mut held = Held::default();
        held.on_hello(&hello(ResumeVerdict::ResumeSnapshot));
        let news = held.on_entries(vec![entry(1, Some("a"), 5), entry(2, Some("b"), 5)]);
        assert_eq!(news.updates.len(), 2);
        assert!(held.on_snapshot_end(&end(ALL)).updates.is_empty());
        assert!(held.on_cut(cut("e1", 2, 10)).unwrap().first_in_sync);
        held
    }

    fn range(held: &Held) -> (u64, u64) {
        let token = held.token().unwrap();
        (token.sources[0].low, token.sources[0].high)
    }

    #[test]
    fn second_snapshot_delivers_differences_only() {
        let mut held = joined();
        held.on_hello(&hello(ResumeVerdict::ResumeSnapshot));
        let news = held.on_entries(vec![entry(2, Some("b"), 11), entry(3, Some("c"), 11)]);
        assert_eq!((news.updates.len(), news.known), (1, 1));
        let gone = held.on_snapshot_end(&end(ALL)).updates;
        assert_eq!(gone, [Update::delete(Key::parse(&path(1)).unwrap())]);
        let at = held.on_cut(cut("e2", 9, 12)).unwrap();
        assert!(!at.first_in_sync, "told once");
        assert_eq!((held.token().unwrap().epoch, held.len()), ("e2".to_owned(), 2));
    }

    #[test]
    fn snapshot_that_proves_nothing_sweeps_nothing_and_yields_no_token() {
        let mut held = joined();
        held.on_hello(&hello(ResumeVerdict::ResumeSnapshot));
        held.on_entries(vec![entry(2, Some("new"), 11)]);
        assert!(held.on_snapshot_end(&end(&[])).updates.is_empty());
        held.on_cut(cut("e2", 9, 12));
        assert_eq!((held.token().unwrap().epoch, held.len()), ("e1".to_owned(), 2));
        // Complete for another kind only: the same.
        held.on_hello(&hello(ResumeVerdict::ResumeSnapshot));
        assert!(held.on_snapshot_end(&end(&["Policy"])).updates.is_empty());
    }

    #[test]
    fn broken_off_stream_raises_the_upper_bound_only() {
        let mut held = joined();
        held.on_hello(&hello(ResumeVerdict::ResumeDelta));
        held.on_entries(vec![entry(1, Some("x"), 14)]);
        assert_eq!(range(&held), (10, 14));
        held.on_cut(cut("e2", 3, 15));
        assert_eq!(range(&held), (15, 15));
    }

    #[test]
    fn heartbeat_at_the_cut_moves_the_token_and_another_does_not() {
        let mut held = joined();
        let beat = |seq, revision| Heartbeat {
            seq,
            sources: vec![SourcePosition {
                source: "etcd".into(),
                low: revision,
                high: revision,
                witness: None,
            }],
            ..Default::default()
        };
        held.on_heartbeat(&beat(3, 20), "e1");
        held.on_heartbeat(&beat(2, 20), "e2");
        assert_eq!(range(&held), (10, 10));
        held.on_heartbeat(&beat(2, 20), "e1");
        assert_eq!(range(&held), (20, 10), "nothing happened since 10");
        held.on_heartbeat(&beat(2, 15), "e1");
        assert_eq!(range(&held), (20, 10), "never back");
    }

    #[test]
    fn deletion_of_what_was_never_delivered_is_not_delivered() {
        let mut held = joined();
        held.on_hello(&hello(ResumeVerdict::ResumeDelta));
        assert!(held.on_entries(vec![entry(9, None, 11)]).updates.is_empty());
        assert_eq!(held.on_entries(vec![entry(1, None, 12)]).updates.len(), 1);
        assert!(held.on_entries(vec![entry(1, None, 12)]).updates.is_empty());
    }

    #[test]
    fn value_of_an_unknown_kind_is_ignored_and_never_a_deletion() {
        let mut held = joined();
        held.on_hello(&hello(ResumeVerdict::ResumeSnapshot));
        let future =
            Entry { value: Some(Bytes::from_static(&[0xfa, 0x3e, 0x00])), ..entry(1, Some("a"), 12) };
        let alien = Entry { key: "/calico/v9/hologram/x".into(), ..entry(1, Some("a"), 12) };
        let news = held.on_entries(vec![future, alien, entry(2, Some("b"), 12)]);
        assert_eq!((news.updates.len(), news.ignored), (0, 2));
        assert!(held.on_snapshot_end(&end(ALL)).updates.is_empty());
    }
}
