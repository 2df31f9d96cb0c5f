//! What to do with a client's token [B].

use std::time::Instant;

use proto::Position;
use proto::sync::{self, ResumeVerdict};

use super::cache::Cache;
use super::encode::KindSet;
use super::track::Track;

/// Where a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Send what follows this position; nothing else differs.
    Delta { after: u64 },
    /// Compare contents, and send what differs: history does not reach back far enough.
    Digest,
    /// Send everything. `sweep`: absence from it proves deletion.
    Snapshot { sweep: bool },
    /// The client has seen more than this replica: wait, then send it elsewhere.
    Behind,
}

impl Resume {
    pub fn verdict(self) -> ResumeVerdict {
        match self {
            Resume::Delta { .. } => ResumeVerdict::ResumeDelta,
            Resume::Digest => ResumeVerdict::ResumeDigest,
            Resume::Snapshot { .. } => ResumeVerdict::ResumeSnapshot,
            Resume::Behind => ResumeVerdict::ResumeBehind,
        }
    }
}

impl Cache {
    /// The verdict on a token, for a client of `kinds` that came at `asked`: only a read that began later says
    /// what the datastore has now. Only asked while the cache is in sync.
    pub fn resume(&self, token: Option<&sync::Token>, kinds: KindSet, asked: Instant) -> Resume {
        // Who brings no token has been promised nothing that absence could take away.
        let Some(token) = token else { return Resume::Snapshot { sweep: true } };
        let positions = token.positions();
        // Our own positions: the client holds a prefix of what this process has sent. Unless, since its last cut, it
        // was sent more, perhaps by another replica.
        let prefix = positions.iter().all(Position::is_whole);
        let own = prefix && token.epoch == self.epoch() && token.seq <= self.head();
        if own && self.views_match(token, kinds) && token.seq >= self.trimmed_seq() {
            return Resume::Delta { after: token.seq };
        }
        let held = match self.history_accepted() {
            true => Resume::Digest,
            false => Resume::Snapshot { sweep: false },
        };
        if token.history != self.history() || self.forked() {
            return held;
        }
        if own {
            return Resume::Digest;
        }
        let mut after = self.head();
        let mut delta = self.views_match(token, kinds);
        let mut behind = false;
        let mut strange = true;
        for (source, track) in self.tracks().iter().enumerate() {
            // A source that the token does not speak of is new: what it holds may differ from what is here.
            let Some(position) = positions.iter().find(|position| position.source == track.id) else {
                delta = false;
                continue;
            };
            strange = false;
            let seen = position.low.max(position.high);
            if track.revision() < seen {
                match track.newest(asked) {
                    // The datastore itself has not got what the client has seen: it was restored.
                    Some(newest) if newest < seen => return held,
                    // Nothing that the client has seen, or that has come and gone before it, is still to happen here.
                    Some(_) if position.needs() <= track.revision() || track.equals(position) => {}
                    _ => behind = true,
                }
            }
            if position.witness.is_some_and(|witness| track.history.contradicts(witness)) {
                return held;
            }
            match track.history.resumes_after(position) {
                Some(revision) => after = after.min(self.seq_before(source, revision)),
                None => delta = false,
            }
        }
        match (strange, behind, delta) {
            // A token of another kind of datastore.
            (true, ..) => held,
            (_, true, _) => Resume::Behind,
            (_, _, true) => Resume::Delta { after },
            _ => Resume::Digest,
        }
    }

    /// The sources that have to be read again before there can be a verdict on the token.
    pub fn doubtful(&self, token: &sync::Token) -> Vec<usize> {
        let tracks = self.tracks().iter().enumerate();
        let positions = token.positions();
        let behind = |track: &Track| {
            let seen = positions.iter().find(|position| position.source == track.id);
            seen.is_some_and(|position| track.revision() < position.low.max(position.high))
        };
        tracks.filter(|(_, track)| behind(track)).map(|(source, _)| source).collect()
    }

    fn views_match(&self, token: &sync::Token, kinds: KindSet) -> bool {
        let scope = sync::Scope::try_from(token.scope).unwrap_or_default() != sync::Scope::Node;
        scope && token.view == self.view(kinds)
    }
}
