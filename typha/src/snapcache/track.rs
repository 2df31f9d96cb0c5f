//! What a replica knows of one source: how far it is complete, and since when that is proven.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use proto::Position;
use syncer_common::digest::source_id;

use super::history::History;

/// A watch from which nothing was heard for so long is taken for stalled, whatever other reads say. An API
/// server sends a bookmark about once a minute [E3].
const STALLED: Duration = Duration::from_secs(75);

#[derive(Debug, Default)]
pub(super) struct Track {
    pub name: String,
    /// What stands for the name on the wire.
    pub id: u32,
    /// The cache's version at which the position changed last.
    pub moved: u64,
    /// Empty before the first listing.
    pub history_id: String,
    pub history: History,
    /// Positions of the entries and tombstones that come from here.
    pub seqs: BTreeSet<u64>,
    /// Revision of the last event that changed an entry; a listing may contain effects up to its own.
    effect: u64,
    proofs: VecDeque<(u64, Instant)>,
    newest_proof: Option<(u64, Instant)>,
    /// Start of the newest linearizable read that has been caught up with.
    proven: Option<Instant>,
    /// When the watch was last heard of.
    heard: Option<Instant>,
    /// Deletions are held [B5].
    pub forked: bool,
}

impl Track {
    pub fn new(name: String) -> Self {
        Track { id: source_id(&name), name, ..Track::default() }
    }

    /// Another history: nothing of before counts.
    pub fn forget(&mut self) {
        self.history.forget();
        self.proofs.clear();
        self.newest_proof = None;
        self.effect = 0;
    }

    pub fn listed(&mut self, revision: u64, seq: u64, changed: bool, now: Instant) {
        if changed || self.effect == 0 {
            self.effect = revision;
        }
        self.history.list(revision, seq);
        self.heard = Some(now);
        self.settle();
    }

    /// Complete up to `revision`. `witness`: the hash of its events, if it had any.
    pub fn advanced(&mut self, revision: u64, seq: u64, changed: bool, witness: Option<u32>, now: Instant) {
        if changed {
            self.effect = revision;
        }
        self.history.advanced(revision, seq, witness);
        self.heard = Some(now);
        self.settle();
    }

    /// A linearizable read that began at `started` found `revision`.
    pub fn proof(&mut self, revision: u64, started: Instant) {
        self.newest_proof = Some((revision, started));
        if self.proofs.len() == 64 {
            // Far behind: the oldest are the ones that will be reached first, so thin out the newer ones.
            self.proofs.pop_back();
        }
        self.proofs.push_back((revision, started));
        self.settle();
    }

    fn settle(&mut self) {
        if self.history_id.is_empty() {
            return;
        }
        while let Some((revision, started)) = self.proofs.front().copied()
            && revision <= self.history.revision()
        {
            self.proofs.pop_front();
            self.proven = Some(started);
        }
    }

    pub fn in_sync(&self) -> bool {
        self.proven.is_some()
    }

    pub fn revision(&self) -> u64 {
        self.history.revision()
    }

    pub fn effect(&self) -> u64 {
        self.effect
    }

    /// This source's share of a token.
    pub fn position(&self) -> Position {
        Position {
            source: self.id,
            low: self.revision(),
            high: self.effect,
            steady: self.effect.max(self.history.listed()),
            witness: self.history.witness(),
        }
    }

    /// What is here is what the client has, whatever came and went while either did not look.
    pub fn equals(&self, position: &Position) -> bool {
        position.is_whole() && self.effect <= position.high && self.history.knows(position.high)
    }

    pub fn heard_within(&self, now: Instant, lately: Duration) -> bool {
        self.heard.is_some_and(|heard| now.saturating_duration_since(heard) <= lately)
    }

    pub fn proven(&self) -> Option<Instant> {
        self.proven
    }

    /// Since when nothing was heard of the watch, if that is too long to trust it.
    pub fn stalled(&self, now: Instant) -> Option<Instant> {
        self.heard.filter(|heard| now.saturating_duration_since(*heard) > STALLED)
    }

    /// The newest revision that a read has found which began at `since` or later.
    pub fn newest(&self, since: Instant) -> Option<u64> {
        self.newest_proof.filter(|(_, started)| *started >= since).map(|(revision, _)| revision)
    }
}
