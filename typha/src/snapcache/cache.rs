//! The cache itself: pure. No clock, no locks, no sockets; its owner passes the time in.
//!
//! Every entry and tombstone has a position (`seq`, dense, local to this process's epoch) and a cause (the
//! revision of the event that changed it, never the object's own). Entries are compared event by event: an
//! update that leaves the encoded value equal takes no position, and a value that changed and changed back
//! takes two [A3]. Within a source, causes grow with positions, which is what lets a position be found for a
//! revision. A key belongs to one source: no two sources produce the same entry.
//!
//! What is not here is never inferred to be gone. Absence becomes a tombstone only by an update that says so;
//! the pipeline makes those from deletion events and from complete listings, and makes none for an object
//! that it cannot read: such an object keeps its last good entry [B6]. An object that can be read but does
//! not pass validation becomes a tombstone with reason INVALID, so that agents stop enforcing it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::sync;
use syncer_common::digest;
use syncer_common::model::{DeletionReason, Kind, Update};

use super::Progress;
use super::changes::Changes;
use super::digest::Tree;
use super::encode::{self, Encoded, KindSet};
use super::frame::Framed;
use super::stand::Stand;
use super::track::Track;

/// A page ends after this many entries, or this many bytes.
const PAGE_ENTRIES: usize = 1_000;
const PAGE_BYTES: usize = 256 << 10;
/// Tombstones are kept for `TOMBSTONE_AGE`, but no more than the larger of the other two [A4].
const TOMBSTONE_AGE: Duration = Duration::from_secs(30 * 60);
const TOMBSTONES: usize = 64 << 10;
const TOMBSTONES_OF_LIVE: usize = 4;
/// Larger entries are left out: no message can carry them [G2].
const ENTRY_BYTES: usize = 4 << 20;
/// Part of a kind's view id: to be raised when its projection changes its output.
const fn projection(kind: Kind) -> u32 {
    match kind {
        Kind::WorkloadEndpoint | Kind::HostEndpoint | Kind::Service | Kind::EndpointSlice => 2,
        _ => 1,
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    pub seq: u64,
    source: usize,
    revision: u64,
    kind: Kind,
    deleted: bool,
    /// Of key and value, as digests count it; 0 for a tombstone.
    pub hash: u64,
    pub encoded: Encoded,
}

/// What one revision did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub changed: u64,
    /// Updates that changed nothing.
    pub skipped: u64,
    /// Keys whose entries no message can carry.
    pub oversize: Vec<String>,
}

/// What follows a cursor.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// A server message; absent when nothing of these kinds changed.
    pub message: Option<Framed>,
    pub entries: usize,
    /// Where the cursor is when the page has been sent.
    pub seq: u64,
    /// The head when the page was made.
    pub head: u64,
}

impl Page {
    /// The cursor has reached the head: a cut may follow.
    pub fn complete(&self) -> bool {
        self.seq == self.head
    }
}

pub struct Cache {
    epoch: String,
    tracks: Vec<Track>,
    accepted_history: String,
    entries: BTreeMap<Arc<str>, Entry>,
    by_seq: BTreeMap<u64, Arc<str>>,
    head: u64,
    /// Positions at or before this one may lack tombstones.
    trimmed_seq: u64,
    tombstones: VecDeque<(u64, Instant)>,
    tombstones_live: usize,
    live: BTreeMap<Kind, u64>,
    trees: BTreeMap<Kind, Tree>,
    views: BTreeMap<Kind, u64>,
    /// When the history changed last: tokens of before are of another one.
    history_since: u64,
    /// Bytes of all entries ever encoded.
    bytes: u64,
    /// Counts what streams may wait for: proofs, and sources that got further.
    version: u64,
    /// The newest linearizable read of any source.
    reached: Option<Instant>,
}

impl Cache {
    /// `accepted_history` is the operator's word for a history whose deletions are to be believed after a fork
    /// (empty: none).
    pub fn new(epoch: impl Into<String>, accepted_history: impl Into<String>) -> Self {
        let view = |kind: Kind| {
            let version = format!("{} {}", projection(kind), proto::VERSION);
            (kind, digest::hash(kind.name(), version.as_bytes()))
        };
        Cache {
            epoch: epoch.into(),
            tracks: Vec::new(),
            accepted_history: accepted_history.into(),
            entries: BTreeMap::new(),
            by_seq: BTreeMap::new(),
            head: 0,
            trimmed_seq: 0,
            tombstones: VecDeque::new(),
            tombstones_live: 0,
            live: BTreeMap::new(),
            trees: BTreeMap::new(),
            views: Kind::ALL.into_iter().map(view).collect(),
            history_since: 0,
            bytes: 0,
            version: 0,
            reached: None,
        }
    }

    // === What the pipeline tells ===

    /// The sources, by name, once the datastore is open. From here on they are known by their numbers.
    pub fn follow<S: Into<String>>(&mut self, sources: impl IntoIterator<Item = S>) {
        self.tracks = sources.into_iter().map(|name| Track::new(name.into())).collect();
    }

    /// What every reader of the datastore knows without reading it. It is of the first source, and of no revision.
    pub fn apply_initial(&mut self, updates: Vec<Update>) {
        self.apply(0, 0, updates.into(), Instant::now());
    }

    /// A listing at `revision` begins to be applied. Returns whether it belongs to another history than the
    /// one followed so far; then deletions are to be held, unless the operator has accepted it [B5].
    pub fn listing(&mut self, source: usize, history: &str, revision: u64) -> bool {
        let accepted = !self.accepted_history.is_empty() && self.accepted_history == history;
        let track = &mut self.tracks[source];
        let first = track.history_id.is_empty();
        let other = !first && (track.history_id != history || revision < track.revision());
        history.clone_into(&mut track.history_id);
        if other {
            track.forget();
            track.forked = !accepted;
            self.version += 1;
            track.moved = self.version;
            self.history_since = self.version;
        }
        other
    }

    /// Applies a listing's changes, all at once, stamped with its revision.
    pub fn apply_listing(
        &mut self,
        source: usize,
        revision: u64,
        changes: impl Into<Changes>,
        now: Instant,
    ) -> Applied {
        let applied = self.apply(source, revision, changes.into(), now);
        self.tracks[source].listed(revision, self.head, applied.changed > 0, now);
        self.moved(source);
        applied
    }

    /// Applies everything that one revision changed. `witness` is the hash of its events.
    pub fn apply_revision(
        &mut self,
        source: usize,
        revision: u64,
        changes: impl Into<Changes>,
        witness: u32,
        now: Instant,
    ) -> Applied {
        let applied = self.apply(source, revision, changes.into(), now);
        self.tracks[source].advanced(revision, self.head, applied.changed > 0, Some(witness), now);
        self.moved(source);
        applied
    }

    /// Nothing changed up to `revision`.
    pub fn progressed(&mut self, source: usize, revision: u64, now: Instant) {
        self.tracks[source].advanced(revision, self.head, false, None, now);
        self.moved(source);
    }

    fn moved(&mut self, source: usize) {
        self.version += 1;
        self.tracks[source].moved = self.version;
    }

    /// A linearizable read that began at `started` found `revision`.
    pub fn proof(&mut self, source: usize, revision: u64, started: Instant) {
        self.tracks[source].proof(revision, started);
        self.reached = self.reached.max(Some(started));
        self.version += 1;
    }

    fn apply(&mut self, source: usize, revision: u64, changes: Changes, now: Instant) -> Applied {
        let mut applied = Applied { skipped: changes.skipped, ..Applied::default() };
        for (path, (kind, value)) in changes.last {
            if self.tracks[source].forked && value == Err(DeletionReason::Deleted) {
                applied.skipped += 1;
                continue;
            }
            if value.as_ref().is_ok_and(|value| value.len() + path.len() + 128 > ENTRY_BYTES) {
                applied.oversize.push(path);
                continue;
            }
            match self.put(path, kind, (source, revision), value, now) {
                true => applied.changed += 1,
                false => applied.skipped += 1,
            }
        }
        self.trim(now);
        applied
    }

    fn put(
        &mut self,
        path: String,
        kind: Kind,
        (source, revision): (usize, u64),
        value: Result<Vec<u8>, DeletionReason>,
        now: Instant,
    ) -> bool {
        let seq = self.head + 1;
        let leaf = digest::leaf(&path);
        let key: Arc<str> = match self.entries.get_key_value(path.as_str()) {
            Some((key, held)) => {
                let equal = match &value {
                    Ok(value) => !held.deleted && held.encoded.value() == value.as_slice(),
                    Err(_) => held.deleted,
                };
                if equal {
                    return false;
                }
                let key = key.clone();
                self.by_seq.remove(&held.seq);
                self.tracks[held.source].seqs.remove(&held.seq);
                match held.deleted {
                    true => self.tombstones_live -= 1,
                    false => {
                        self.trees.entry(kind).or_default().remove(leaf, &key, held, seq);
                        self.count_live(kind, false);
                    }
                }
                key
            }
            // Deleting what was never here.
            None if value.is_err() => return false,
            None => path.into(),
        };
        let reason = |reason| match reason {
            DeletionReason::Deleted => sync::DeletionReason::DeletionDeleted,
            DeletionReason::Invalid => sync::DeletionReason::DeletionInvalid,
            DeletionReason::OutOfScope => sync::DeletionReason::DeletionOutOfScope,
        };
        let deleted = value.is_err();
        let hash = value.as_deref().map_or(0, |value| digest::hash(&key, value));
        let value = value.as_deref().map_err(|why| reason(*why));
        let encoded = Encoded::new(&key, seq, self.tracks[source].id, revision, value);
        self.head = seq;
        self.bytes += encoded.bytes.len() as u64;
        self.by_seq.insert(seq, key.clone());
        self.tracks[source].seqs.insert(seq);
        let entry = Entry { seq, source, revision, kind, deleted, hash, encoded };
        match deleted {
            true => {
                self.tombstones_live += 1;
                self.tombstones.push_back((seq, now));
            }
            false => {
                self.trees.entry(kind).or_default().add(leaf, key.clone(), &entry);
                self.count_live(kind, true);
            }
        }
        self.entries.insert(key, entry);
        true
    }

    fn count_live(&mut self, kind: Kind, more: bool) {
        let count = self.live.entry(kind).or_default();
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
    }

    /// Drops tombstones that are too old or too many.
    pub fn trim(&mut self, now: Instant) {
        let live = self.entries.len() - self.tombstones_live;
        let most = TOMBSTONES.max(live / TOMBSTONES_OF_LIVE);
        while let Some((seq, at)) = self.tombstones.front().copied()
            && (self.tombstones_live > most || now.saturating_duration_since(at) > TOMBSTONE_AGE)
        {
            self.tombstones.pop_front();
            // A key that was written again after its deletion has another position by now.
            let Some(key) = self.by_seq.get(&seq).cloned() else { continue };
            let Some(entry) = self.entries.get(&key).filter(|entry| entry.deleted) else { continue };
            let (source, revision) = (entry.source, entry.revision);
            self.by_seq.remove(&seq);
            self.entries.remove(&key);
            self.tombstones_live -= 1;
            self.trimmed_seq = self.trimmed_seq.max(seq);
            let track = &mut self.tracks[source];
            track.seqs.remove(&seq);
            track.history.trimmed(revision);
        }
    }

    // === What streams ask ===

    /// What changed after the position, in order of position; tombstones up to `skip_tombstones` are left
    /// out (a snapshot begins with an empty client or ends with a sweep).
    pub fn entries_after(&self, after: u64, kinds: KindSet, skip_tombstones: u64) -> Page {
        let mut members: Vec<&Bytes> = Vec::new();
        let mut bytes = 0;
        let mut reached = self.head;
        for (seq, key) in self.by_seq.range(after.saturating_add(1)..) {
            let Some(entry) = self.entries.get(key) else { continue };
            if !kinds.contains(entry.kind) || (entry.deleted && *seq <= skip_tombstones) {
                continue;
            }
            let length = entry.encoded.bytes.len();
            if !members.is_empty() && (members.len() == PAGE_ENTRIES || bytes + length > PAGE_BYTES) {
                // The page ends before this one.
                reached = seq - 1;
                break;
            }
            bytes += length;
            members.push(&entry.encoded.bytes);
        }
        let message = (!members.is_empty())
            .then(|| encode::batch(members.iter().copied(), reached != self.head).into());
        Page { message, entries: members.len(), seq: reached, head: self.head }
    }

    pub fn progress(&self) -> Progress {
        Progress {
            seq: self.head,
            bytes: self.bytes,
            version: self.version,
            in_sync: self.in_sync(),
            forked: self.forked(),
        }
    }

    /// Where the cache stands, for cuts at the head.
    pub fn stand(&self) -> Stand {
        Stand {
            seq: self.head,
            version: self.version,
            trimmed: self.trimmed_seq,
            bytes: self.bytes,
            epoch: self.epoch.clone(),
            // While deletions are held, what is here, and what clients hold of it, is of no history: a replica that
            // has not got it must not go on from its positions, or what was held would never be deleted.
            history: if self.forked() {
                format!("{}+forked", self.history())
            } else {
                self.history().to_owned()
            },
            history_since: self.history_since,
            positions: self.tracks.iter().map(|track| (track.moved, track.position())).collect(),
        }
    }

    /// The token of a cut at the head.
    pub fn token(&self, kinds: KindSet) -> sync::Token {
        self.stand().token(self.view(kinds))
    }

    /// Positions of the sources that were heard from within `lately`.
    pub fn positions(&self, now: Instant, lately: Duration) -> sync::Positions {
        let heard = self.tracks.iter().filter(|track| track.heard_within(now, lately));
        heard.map(Track::position).collect()
    }

    /// How far each source is complete, and up to where it had effects.
    pub fn sources(&self) -> Vec<sync::SourcePosition> {
        let position = |track: &Track| sync::SourcePosition {
            source: track.name.clone(),
            low: track.revision(),
            high: track.effect(),
            witness: (track.history.witness())
                .map(|(revision, hash)| sync::Witness { revision, hash: hash.into() }),
        };
        self.tracks.iter().map(position).collect()
    }

    /// How old the data can be [E]; nothing while it was never proven. One source: since the newest read that
    /// was caught up with. Several, read in turn: since the newest read of any, as long as no watch has fallen
    /// silent.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let since = match self.tracks.as_slice() {
            [only] => only.proven()?,
            tracks if self.in_sync() => {
                tracks.iter().filter_map(|track| track.stalled(now)).chain(self.reached).min()?
            }
            _ => return None,
        };
        Some(now.saturating_duration_since(since))
    }

    /// The position from which everything follows that `source` caused after `revision`.
    pub(super) fn seq_before(&self, source: usize, revision: u64) -> u64 {
        let caused_after = |seq: &&u64| {
            let entry = self.by_seq.get(seq).and_then(|key| self.entries.get(key));
            entry.is_some_and(|entry| entry.revision > revision)
        };
        let first = self.tracks[source].seqs.iter().rev().take_while(caused_after).last();
        first.map_or(self.head, |seq| seq - 1)
    }

    /// The revision of `source` through which a client that has everything up to `seq` is complete [D1].
    pub fn revision_at(&self, source: usize, seq: u64) -> Option<u64> {
        self.tracks[source].history.revision_at(seq)
    }

    /// The number of a source.
    pub fn source(&self, name: &str) -> Option<usize> {
        self.tracks.iter().position(|track| track.name == name)
    }

    pub fn source_name(&self, source: usize) -> &str {
        &self.tracks[source].name
    }

    pub(super) fn tracks(&self) -> &[Track] {
        &self.tracks
    }

    /// Sources that have not been caught up with yet.
    pub fn unproven(&self) -> impl Iterator<Item = &str> {
        self.tracks.iter().filter(|track| !track.in_sync()).map(|track| track.name.as_str())
    }

    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    /// Identity of the datastore; empty before anything was listed.
    pub fn history(&self) -> &str {
        self.tracks.iter().map(|track| track.history_id.as_str()).find(|id| !id.is_empty()).unwrap_or("")
    }

    pub fn head(&self) -> u64 {
        self.head
    }

    /// How far a source is complete.
    pub fn revision(&self, source: usize) -> u64 {
        self.tracks[source].revision()
    }

    pub fn in_sync(&self) -> bool {
        !self.tracks.is_empty() && self.tracks.iter().all(Track::in_sync)
    }

    pub fn forked(&self) -> bool {
        self.tracks.iter().any(|track| track.forked)
    }

    /// Live entries per kind.
    pub fn live(&self) -> &BTreeMap<Kind, u64> {
        &self.live
    }

    pub fn tombstones(&self) -> u64 {
        self.tombstones_live as u64
    }

    /// Every live entry: path and encoded value. For the status page and for tests.
    pub fn iter_live(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries
            .iter()
            .filter(|(_, entry)| !entry.deleted)
            .map(|(key, entry)| (&**key, entry.encoded.value()))
    }

    /// The view ids of the kinds, folded into one.
    pub fn view(&self, kinds: KindSet) -> u64 {
        let ids: Vec<u8> =
            kinds.iter().filter_map(|kind| self.views.get(&kind)).flat_map(|id| id.to_be_bytes()).collect();
        digest::hash("", &ids)
    }

    pub(super) fn tree(&self, kind: Kind) -> Option<&Tree> {
        self.trees.get(&kind)
    }

    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Positions before this one may lack tombstones.
    pub fn trimmed_seq(&self) -> u64 {
        self.trimmed_seq
    }

    pub(super) fn history_accepted(&self) -> bool {
        !self.accepted_history.is_empty() && self.accepted_history == self.history()
    }
}
