//! What has been delivered to the agent: pure. Decides what is news, what is gone, and which token to offer.
//!
//! Per key it keeps eight bytes of a hash of the value delivered last, so a snapshot of a new server yields
//! only the differences. Rules:
//! - A deletion is delivered for a key that is held, and only when the server says so (of the key, or of its hash
//!   after a comparison), or when a snapshot that is complete for the key's kind did not contain it.
//! - An entry that cannot be read here (unknown key, unknown kind of value) is counted and ignored; it also
//!   counts as present, so that a newer server's values are not taken for deletions.
//! - A token is adopted at a cut, and never from a snapshot that did not cover every kind. What changes after a cut
//!   widens the token's range: it covers the revision of every value that is held.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use proto::sync::{
    Cause, Cut, DeletionReason as Reason, DigestAnswer, DigestRequest, Gone, Heartbeat, Positions,
    ResumeVerdict, ServerHello, SnapshotEnd, Token,
};
use proto::{Position, model};
use syncer_common::digest;
use syncer_common::model::{DeletionReason, Key, Kind, Update};

use crate::digest::Digests;
use crate::disk::{Record, Saved};
use crate::keys::{Delivered, Keys};
use crate::raw::{Names, RawUpdate};
use crate::wire::Entry;

#[derive(Debug, Default)]
pub(crate) struct Held {
    keys: Keys,
    /// Entries are not read.
    raw: Option<Names>,
    /// Whether what is delivered goes to disk as well.
    records: bool,
    /// Without its positions: they change with every entry.
    token: Option<Token>,
    positions: Vec<Position>,
    /// Counts snapshots: what bears an older number was not sent in the present one.
    generation: u32,
    stream: Stream,
    in_sync: bool,
}

/// What the present stream has shown.
#[derive(Debug, Default)]
struct Stream {
    history: String,
    kinds: Vec<Kind>,
    epoch: String,
    snapshot: bool,
    /// What was held when the server asked for digests.
    digests: Option<Digests>,
    /// What is gone, by hash, and kinds to be swept: at the cut, together with the token that says so.
    gone: HashMap<Kind, HashSet<u64>>,
    swept: Vec<Kind>,
    /// Kinds for which the stream is known to be complete.
    complete: Vec<Kind>,
}

/// What to tell the agent.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub updates: Vec<Update>,
    /// In place of `updates`, where entries are not read.
    pub raw: Vec<RawUpdate>,
    /// For the disk, where one is written.
    pub records: Vec<Record>,
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
    pub fn new(raw: Option<Names>) -> Self {
        Held { keys: Keys::new(raw.is_some()), raw, ..Held::default() }
    }

    /// From now on what is delivered is recorded.
    pub fn record(&mut self) {
        self.records = true;
    }

    /// Begins with what was proven before. Returns what to deliver, and, where the kernel has lost it, the cut that it is.
    pub fn restore(&mut self, saved: Saved) -> (Vec<Update>, Option<AtCut>) {
        let mut updates = Vec::with_capacity(saved.entries.len());
        for (path, value) in saved.entries {
            let hash = digest::hash(&path, &value);
            let Some(key) = Key::parse(&path) else { continue };
            let decoded = model::Value::decode(value).ok().and_then(|value| value.kind);
            let (Some(value), Some(kind)) = (decoded, Kind::of(&key)) else { continue };
            self.keys.insert(&path.into(), Delivered { hash, kind, generation: self.generation });
            updates.push(Update::set(key, value));
        }
        let token = saved.token;
        let at = AtCut { first_in_sync: true, epoch: token.epoch.clone(), seq: token.seq };
        self.positions = token.positions();
        self.token = Some(Token { positions: None, ..token });
        self.stream.kinds = saved.kinds;
        self.in_sync = saved.rebooted;
        (updates, saved.rebooted.then_some(at))
    }

    /// The kinds that the present stream is about.
    pub fn kinds(&self) -> &[Kind] {
        &self.stream.kinds
    }

    /// The token to offer.
    pub fn token(&self) -> Option<Token> {
        let positions = Some(self.positions.iter().copied().collect());
        self.token.as_ref().map(|token| Token { positions, ..token.clone() })
    }

    /// Returns what begins a comparison, if the server wants one.
    pub fn on_hello(&mut self, hello: &ServerHello) -> Option<DigestAnswer> {
        let verdict = hello.verdict();
        let kinds = match verdict {
            // Those of the token, which are those of the last stream.
            ResumeVerdict::ResumeDelta if hello.kinds.is_empty() => std::mem::take(&mut self.stream.kinds),
            _ => hello.kinds.iter().filter_map(|name| Kind::from_name(name)).collect(),
        };
        let snapshot = verdict == ResumeVerdict::ResumeSnapshot;
        if verdict != ResumeVerdict::ResumeDelta {
            self.generation = self.generation.wrapping_add(1);
        }
        let complete = if snapshot { Vec::new() } else { kinds.clone() };
        let held = || self.keys.iter().map(|(key, delivered)| (delivered.kind, key, delivered.hash));
        let digests = (verdict == ResumeVerdict::ResumeDigest).then(|| Digests::new(held()));
        let roots = digests.as_ref().map(|digests| digests.roots(&hello.kinds));
        let history = match &self.token {
            Some(token) if hello.history.is_empty() => token.history.clone(),
            _ => hello.history.clone(),
        };
        self.stream = Stream {
            history,
            epoch: hello.epoch.clone(),
            kinds,
            snapshot,
            digests,
            complete,
            ..Stream::default()
        };
        roots
    }

    pub fn on_digest(&self, request: &DigestRequest) -> Vec<DigestAnswer> {
        self.stream.digests.as_ref().map(|digests| digests.answers(request)).unwrap_or_default()
    }

    /// The server has compared: it does not have these. What comes in this stream is not meant.
    pub fn on_gone(&mut self, gone: &Gone) {
        if let (Some(kind), Some(_)) = (Kind::from_name(&gone.kind), &self.stream.digests) {
            self.stream.gone.entry(kind).or_default().extend(&gone.hashes);
        }
    }

    pub fn on_entries(&mut self, entries: Vec<Entry>) -> News {
        let mut news = News::default();
        for entry in entries {
            self.on_entry(entry, &mut news);
        }
        news
    }

    fn on_entry(&mut self, entry: Entry, news: &mut News) {
        let generation = self.generation;
        if entry.deleted {
            if self.is_unproven(&entry) {
                return;
            }
            let Some(key) = self.keys.remove(&entry.key) else { return };
            self.include(&entry.cause);
            if self.raw.is_some() {
                news.raw.push(RawUpdate { key, value: None });
                return;
            }
            // It was parsed when it was delivered.
            if self.records {
                news.records.push((key, None));
            }
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
        let hash = digest::hash(&entry.key, &value);
        if let Some(delivered) = self.keys.get_mut(&entry.key) {
            delivered.generation = generation;
            if delivered.hash == hash {
                news.known += 1;
                return;
            }
        }
        if let Some(names) = &self.raw {
            let Some((key, kind)) = names.get(&entry.key) else {
                news.ignored += 1;
                return;
            };
            self.keys.insert(&key, Delivered { hash, kind, generation });
            self.include(&entry.cause);
            news.raw.push(RawUpdate { key, value: Some((value, hash)) });
            return;
        }
        let Some(key) = Key::parse(&entry.key) else {
            news.ignored += 1;
            return;
        };
        let encoded: Option<Bytes> = self.records.then(|| value.clone());
        let decoded = model::Value::decode(value).ok().and_then(|value| value.kind);
        let (Some(value), Some(kind)) = (decoded, Kind::of(&key)) else {
            news.ignored += 1;
            return;
        };
        self.include(&entry.cause);
        let path: Arc<str> = entry.key.into();
        self.keys.insert(&path, Delivered { hash, kind, generation });
        if encoded.is_some() {
            news.records.push((path, encoded));
        }
        news.updates.push(Update::set(key, value));
    }

    /// A deletion during a snapshot: the key counts as not contained in it, and goes if the end of the snapshot proves
    /// what it contained to be complete. One that proves nothing (of a datastore that was restored) deletes nothing.
    fn is_unproven(&mut self, entry: &Entry) -> bool {
        if !self.stream.snapshot || entry.reason != Reason::DeletionDeleted as i32 {
            return false;
        }
        let held = self.keys.get_mut(&entry.key);
        let Some(delivered) = held.filter(|held| !self.stream.complete.contains(&held.kind)) else {
            return false;
        };
        delivered.generation = self.generation.wrapping_sub(1);
        true
    }

    /// What the snapshot did not contain is gone, for the kinds that it covers: of those the server has sent all.
    pub fn on_snapshot_end(&mut self, end: &SnapshotEnd) {
        if !self.stream.snapshot && self.stream.digests.is_none() {
            return;
        }
        let kinds: Vec<Kind> = end.kinds.iter().filter_map(|name| Kind::from_name(name)).collect();
        if self.stream.snapshot {
            self.stream.complete.clone_from(&kinds);
        }
        self.stream.swept = kinds;
    }

    /// Deletes what has been proven to be gone. Not before the cut: were the stream to end between the two, nothing
    /// would tell the next server how far the state had come.
    fn sweep(&mut self) -> News {
        let (gone, swept) = (std::mem::take(&mut self.stream.gone), std::mem::take(&mut self.stream.swept));
        let mut news = News::default();
        if gone.is_empty() && swept.is_empty() {
            return news;
        }
        let generation = self.generation;
        let paths = self.keys.extract(|delivered| {
            let compared = || gone.get(&delivered.kind).is_some_and(|gone| gone.contains(&delivered.hash));
            delivered.generation != generation && (swept.contains(&delivered.kind) || compared())
        });
        for path in paths {
            if self.raw.is_some() {
                news.raw.push(RawUpdate { key: path, value: None });
                continue;
            }
            match Key::parse(&path) {
                Some(key) => news.updates.push(Update::delete(key)),
                None => news.ignored += 1,
            }
            if self.records {
                news.records.push((path, None));
            }
        }
        news.updates.sort_by(|a, b| a.key.cmp(&b.key));
        news
    }

    /// What the cut means, and what is gone with it. Nothing: it changes a token that is not held.
    pub fn on_cut(&mut self, cut: Cut) -> Option<(AtCut, News)> {
        let news = self.sweep();
        self.stream.digests = None;
        let complete = self.stream.kinds.iter().all(|kind| self.stream.complete.contains(kind));
        let seq = cut.token.as_ref().map_or(cut.seq, |token| token.seq);
        let at = AtCut { first_in_sync: false, epoch: self.stream.epoch.clone(), seq };
        if !complete {
            // The snapshot proved nothing for some kinds: the old token says better what is held.
            return Some((at, news));
        }
        match cut.token {
            Some(token) => {
                self.positions = token.positions();
                self.token = Some(Token { positions: None, ..token });
            }
            None => self.change(cut)?,
        }
        let first = !std::mem::replace(&mut self.in_sync, true);
        Some((AtCut { first_in_sync: first, ..at }, news))
    }

    fn change(&mut self, cut: Cut) -> Option<()> {
        let token = self.token.as_mut()?;
        token.seq = cut.seq;
        if !cut.epoch.is_empty() {
            token.epoch = cut.epoch;
        }
        for position in cut.positions.iter().flat_map(Positions::list) {
            match self.positions.iter_mut().find(|held| held.source == position.source) {
                Some(held) => *held = position,
                None => self.positions.push(position),
            }
        }
        Some(())
    }

    /// At the cut still: then what the heartbeat proves holds for this state too.
    pub fn on_heartbeat(&mut self, heartbeat: &Heartbeat, epoch: &str) {
        let Some(token) = &self.token else { return };
        if token.epoch != epoch || token.seq != heartbeat.seq {
            return;
        }
        for proven in heartbeat.positions.iter().flat_map(Positions::list) {
            let held = self.positions.iter_mut().filter(|held| held.source == proven.source);
            held.for_each(|held| held.prove(&proven));
        }
    }

    /// A change with these causes is now in the state.
    fn include(&mut self, causes: &[Cause]) {
        if self.token.as_ref().is_none_or(|token| token.history != self.stream.history) {
            return;
        }
        for cause in causes {
            let held = self.positions.iter_mut().filter(|held| held.source == cause.source);
            held.for_each(|held| held.include(cause.revision));
        }
    }

    pub fn in_sync(&self) -> bool {
        self.in_sync
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proto::model::{Value, value};

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
            cause: vec![Cause { source: 77, revision }],
            value: value.map(|value| value.encode_to_vec().into()),
        }
    }

    fn hello(verdict: ResumeVerdict) -> ServerHello {
        let kinds = vec!["GlobalConfig".to_owned(), "Policy".to_owned()];
        ServerHello {
            history: "h".into(),
            epoch: "e2".into(),
            verdict: verdict as i32,
            kinds,
            ..Default::default()
        }
    }

    fn position(low: u64, high: u64) -> Position {
        Position { source: 77, low, high, steady: high, witness: None }
    }

    /// Nothing has happened since 10.
    fn beat(seq: u64, revision: u64) -> Heartbeat {
        Heartbeat {
            seq,
            positions: Some([position(revision, 10)].into_iter().collect()),
            ..Default::default()
        }
    }

    fn cut(epoch: &str, seq: u64, revision: u64) -> Cut {
        let token = Token {
            history: "h".into(),
            epoch: epoch.into(),
            seq,
            positions: Some([position(revision, revision)].into_iter().collect()),
            ..Default::default()
        };
        Cut { token: Some(token), ..Default::default() }
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
        held.on_snapshot_end(&end(ALL));
        let (at, gone) = held.on_cut(cut("e1", 2, 10)).unwrap();
        assert!(at.first_in_sync && gone.updates.is_empty());
        held
    }

    fn range(held: &Held) -> (u64, u64) {
        let position = held.token().unwrap().positions()[0];
        (position.low, position.high)
    }

    #[test]
    fn second_snapshot_delivers_differences_only() {
        let mut held = joined();
        held.on_hello(&hello(ResumeVerdict::ResumeSnapshot));
        let news = held.on_entries(vec![entry(2, Some("b"), 11), entry(3, Some("c"), 11)]);
        assert_eq!((news.updates.len(), news.known), (1, 1));
        held.on_snapshot_end(&end(ALL));
        assert_eq!(held.len(), 3, "nothing is gone before the cut");
        let (at, gone) = held.on_cut(cut("e2", 9, 12)).unwrap();
        assert_eq!(gone.updates, [Update::delete(Key::parse(&path(1)).unwrap())]);
        assert!(!at.first_in_sync, "told once");
        assert_eq!((held.token().unwrap().epoch, held.len()), ("e2".to_owned(), 2));
    }

    #[test]
    fn snapshot_that_proves_nothing_sweeps_nothing_and_yields_no_token() {
        let mut held = joined();
        held.on_hello(&hello(ResumeVerdict::ResumeSnapshot));
        held.on_entries(vec![entry(2, Some("new"), 11)]);
        held.on_snapshot_end(&end(&[]));
        assert!(held.on_cut(cut("e2", 9, 12)).unwrap().1.updates.is_empty());
        assert_eq!((held.token().unwrap().epoch, held.len()), ("e1".to_owned(), 2));
        // Complete for another kind only: the same.
        held.on_hello(&hello(ResumeVerdict::ResumeSnapshot));
        held.on_snapshot_end(&end(&["Policy"]));
        assert!(held.on_cut(cut("e2", 9, 12)).unwrap().1.updates.is_empty());
    }

    #[test]
    fn deletion_in_a_snapshot_waits_for_its_proof() {
        let mut held = joined();
        let begin = |held: &mut Held| {
            held.on_hello(&hello(ResumeVerdict::ResumeSnapshot));
            let sent = vec![entry(1, Some("a"), 11), entry(2, Some("b"), 11)];
            assert_eq!(held.on_entries(sent).known, 2);
            assert!(held.on_entries(vec![entry(1, None, 12)]).updates.is_empty());
        };
        begin(&mut held);
        held.on_snapshot_end(&end(&[]));
        assert!(held.on_entries(vec![entry(2, None, 13)]).updates.is_empty(), "nothing was proven");
        assert!(held.on_cut(cut("e2", 9, 13)).unwrap().1.updates.is_empty());
        assert_eq!(held.len(), 2);
        // What is not valid is withdrawn all the same: it is not absence that says so.
        let invalid = Entry { reason: Reason::DeletionInvalid as i32, ..entry(2, None, 14) };
        assert_eq!(held.on_entries(vec![invalid]).updates.len(), 1);

        let mut held = joined();
        begin(&mut held);
        held.on_snapshot_end(&end(ALL));
        let gone = |n| [Update::delete(Key::parse(&path(n)).unwrap())];
        assert_eq!(
            held.on_entries(vec![entry(2, None, 13)]).updates,
            gone(2),
            "complete, so it counts at once"
        );
        assert_eq!(held.on_cut(cut("e2", 9, 13)).unwrap().1.updates, gone(1));
        assert_eq!(held.len(), 0);
    }

    #[test]
    fn broken_off_stream_widens_the_range_by_what_has_changed() {
        let mut held = joined();
        held.on_hello(&hello(ResumeVerdict::ResumeDelta));
        held.on_entries(vec![entry(1, Some("x"), 14), entry(2, Some("b"), 17), entry(3, None, 18)]);
        assert_eq!(range(&held), (10, 14), "the others were held, and not held, before");
        held.on_cut(cut("e2", 3, 15));
        assert_eq!(range(&held), (15, 15));
    }

    #[test]
    fn effects_of_a_replica_that_is_behind_take_the_proof_back_until_the_next_cut() {
        let mut held = joined();
        held.on_heartbeat(&beat(2, 20), "e1");
        held.on_hello(&hello(ResumeVerdict::ResumeDigest));
        held.on_entries(vec![entry(3, Some("came and went between two listings of e1"), 15)]);
        assert_eq!(range(&held), (10, 15));
        // Back at the replica of the cut, which compares.
        held.on_hello(&ServerHello { epoch: "e1".into(), ..hello(ResumeVerdict::ResumeDigest) });
        held.on_heartbeat(&beat(2, 30), "e1");
        assert_eq!(range(&held), (10, 15), "e1 has sent nothing since, but another has");
        held.on_cut(cut("e1", 2, 30));
        assert_eq!(range(&held), (30, 30));
    }

    #[test]
    fn cut_without_a_token_changes_the_one_that_is_held() {
        let mut held = joined();
        held.on_hello(&hello(ResumeVerdict::ResumeDelta));
        held.on_entries(vec![entry(1, Some("x"), 14)]);
        let positions = Some([position(14, 14)].into_iter().collect());
        let cut = Cut { seq: 9, epoch: "e2".into(), positions, ..Default::default() };
        assert_eq!(held.on_cut(cut).unwrap().0.seq, 9);
        let token = held.token().unwrap();
        assert_eq!((token.epoch.as_str(), token.seq, token.history.as_str()), ("e2", 9, "h"));
        assert_eq!(range(&held), (14, 14));
        let quiet = Cut { seq: 11, ..Default::default() };
        held.on_cut(quiet);
        assert_eq!((held.token().unwrap().seq, range(&held)), (11, (14, 14)));
        assert!(Held::default().on_cut(Cut::default()).is_none(), "there is nothing to change");
    }

    #[test]
    fn gone_means_what_was_held_before_and_nothing_that_came_in_this_stream() {
        let mut held = joined();
        let hash_of = |n: u8, content: &str| {
            let value = Value { kind: Some(value::Kind::Config(content.into())) }.encode_to_vec();
            digest::hash(&path(n), &value)
        };
        let gone = Gone { kind: "GlobalConfig".into(), hashes: vec![hash_of(1, "a"), hash_of(2, "b"), 5] };
        held.on_gone(&gone);
        let roots = held.on_hello(&hello(ResumeVerdict::ResumeDigest)).unwrap();
        assert_eq!(
            (roots.sums.len(), held.on_cut(Cut::default()).unwrap().1.updates.len()),
            (4, 0),
            "not asked"
        );
        held.on_hello(&hello(ResumeVerdict::ResumeDigest));
        held.on_gone(&Gone { kind: "Policy".into(), ..gone.clone() });
        assert!(held.on_cut(Cut::default()).unwrap().1.updates.is_empty(), "another kind");
        held.on_hello(&hello(ResumeVerdict::ResumeDigest));
        held.on_gone(&gone);
        // 1 was replaced, and is sent again with the value that is held.
        held.on_entries(vec![entry(1, Some("a"), 12)]);
        // Of kinds that are not sent whole, nothing is swept.
        held.on_snapshot_end(&end(&["Policy"]));
        let (_, news) = held.on_cut(cut("e2", 5, 20)).unwrap();
        assert_eq!(news.updates, [Update::delete(Key::parse(&path(2)).unwrap())]);
        assert_eq!((held.len(), range(&held)), (1, (20, 20)));
    }

    #[test]
    fn heartbeat_at_the_cut_moves_the_token_and_another_does_not() {
        let mut held = joined();
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
        held.on_snapshot_end(&end(ALL));
        assert!(held.on_cut(cut("e2", 9, 12)).unwrap().1.updates.is_empty());
    }
}
