//! What to do with a client's token [B].

use proto::sync::{self, ResumeVerdict};

use super::cache::Cache;
use super::encode::KindSet;

/// Where a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Send what follows this position; nothing else differs.
    Delta { after: u64 },
    /// Send everything. `sweep`: absence from it proves deletion.
    Snapshot { sweep: bool },
    /// The client has seen more than this replica: wait, then send it elsewhere.
    Behind,
}

impl Resume {
    pub fn verdict(self) -> ResumeVerdict {
        match self {
            Resume::Delta { .. } => ResumeVerdict::ResumeDelta,
            Resume::Snapshot { .. } => ResumeVerdict::ResumeSnapshot,
            Resume::Behind => ResumeVerdict::ResumeBehind,
        }
    }
}

/// What a linearizable read after the client's hello has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    None,
    /// The datastore's newest revision at a moment after the hello.
    Newest(u64),
}

impl Cache {
    /// The verdict on a token, for a client of `kinds`. Only asked while the cache is in sync.
    pub fn resume(&self, token: Option<&sync::Token>, kinds: KindSet, evidence: Evidence) -> Resume {
        // Who brings no token has been promised nothing that absence could take away.
        let Some(token) = token else { return Resume::Snapshot { sweep: true } };
        // Our own positions: the client holds a prefix of what this process has sent.
        let own = token.epoch == self.epoch() && token.seq <= self.head();
        if own && self.views_match(token, kinds) && token.seq >= self.trimmed_seq() {
            return Resume::Delta { after: token.seq };
        }
        let held = Resume::Snapshot { sweep: self.history_accepted() };
        if token.history != self.history() || self.forked() {
            return held;
        }
        if own {
            return Resume::Snapshot { sweep: true };
        }
        // Every input this replica has, the token has to speak of; today that is one.
        let [position] = token.sources.as_slice() else { return Resume::Snapshot { sweep: true } };
        if position.source != self.source() {
            return held;
        }
        if self.revision() < position.high {
            return match evidence {
                // The datastore itself has not got what the client has seen: it was restored.
                Evidence::Newest(newest) if newest < position.high => held,
                _ => Resume::Behind,
            };
        }
        if token.witness.as_ref().is_some_and(|witness| self.contradicts(witness)) {
            return held;
        }
        if self.views_match(token, kinds) && self.vouches_for(position.low, position.high) {
            return Resume::Delta { after: self.seq_before(position.low) };
        }
        Resume::Snapshot { sweep: true }
    }

    fn views_match(&self, token: &sync::Token, kinds: KindSet) -> bool {
        let scope = sync::Scope::try_from(token.scope).unwrap_or_default() != sync::Scope::Node;
        scope
            && kinds
                .iter()
                .all(|kind| token.views.get(kind.name()).is_some_and(|view| view == self.view(kind)))
    }
}
