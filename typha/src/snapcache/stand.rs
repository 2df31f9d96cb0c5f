//! Where the cache stood at one moment: what the cuts of that moment say.

use proto::Position;
use proto::sync;

/// Taken together with what was sent up to it.
#[derive(Clone, Debug, Default)]
pub struct Stand {
    pub seq: u64,
    /// Counts what streams may wait for; a cut after another one says what moved since that one's version.
    pub version: u64,
    /// Positions before this one may lack tombstones.
    pub trimmed: u64,
    /// Bytes of all entries encoded so far.
    pub bytes: u64,
    pub(super) epoch: String,
    pub(super) history: String,
    /// When the history changed last: tokens of before are of another one.
    pub(super) history_since: u64,
    /// Each with the version at which it moved last.
    pub(super) positions: Vec<(u64, Position)>,
}

impl Stand {
    /// The whole token, for a client of that view.
    pub fn token(&self, view: u64) -> sync::Token {
        sync::Token {
            history: self.history.clone(),
            view,
            scope: sync::Scope::All as i32,
            positions: Some(self.positions.iter().map(|(_, position)| *position).collect()),
            epoch: self.epoch.clone(),
            seq: self.seq,
        }
    }

    /// The first cut of a stream, for a client without a token.
    pub fn first_cut(&self, view: u64) -> sync::Cut {
        sync::Cut { token: Some(self.token(view)), ..sync::Cut::default() }
    }

    /// What the cut changes for a client that has had one of ours, of that version.
    pub fn cut_since(&self, version: u64, view: u64) -> sync::Cut {
        if version < self.history_since {
            return self.first_cut(view);
        }
        let moved = self.positions.iter().filter(|(at, _)| *at > version).map(|(_, position)| *position);
        sync::Cut { seq: self.seq, positions: Some(moved.collect()), ..sync::Cut::default() }
    }

    /// What the cut changes in the token that the client has offered.
    pub fn cut_after(&self, offered: &sync::Token, view: u64) -> sync::Cut {
        let theirs = offered.positions();
        let known = |(_, own): &(u64, Position)| theirs.iter().any(|position| position.source == own.source);
        if (&offered.history, offered.view, offered.scope) != (&self.history, view, sync::Scope::All as i32)
            || theirs.len() != self.positions.len()
            || !self.positions.iter().all(known)
        {
            return self.first_cut(view);
        }
        let epoch = if offered.epoch == self.epoch { String::new() } else { self.epoch.clone() };
        let positions = self.positions.iter().map(|(_, position)| *position);
        let moved = positions.filter(|position| !theirs.contains(position));
        sync::Cut { token: None, seq: self.seq, epoch, positions: Some(moved.collect()) }
    }
}
