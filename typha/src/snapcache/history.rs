//! What a replica can vouch for: revisions, intervals of history, witnesses, checkpoints [A4, A5, B5, D1].
//!
//! `known` holds closed intervals of revisions in which no deletion can have escaped this replica. A token is
//! only as good as its place in them: between two intervals lies a gap that a re-list jumped over, and an
//! object that was created and deleted within it left no trace here.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use proto::Position;

/// Witnesses and checkpoints kept. A checkpoint is 16 bytes.
const WITNESSES: usize = 4_096;
const CHECKPOINTS: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct History {
    /// Oldest first; the last one ends at `revision`.
    known: Vec<RangeInclusive<u64>>,
    /// The listing that the last one began with.
    listed: u64,
    revision: u64,
    /// Revision and hash of events, newest last.
    witnesses: VecDeque<(u64, u32)>,
    /// (revision, seq): everything up to the revision is at or before seq. Newest last.
    checkpoints: VecDeque<(u64, u64)>,
}

impl History {
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A listing at `revision`: what lies between it and what was known before is a gap.
    pub fn list(&mut self, revision: u64, seq: u64) {
        if self.known.is_empty() || revision < self.revision {
            // The beginning, or another history: nothing of before counts.
            *self = History::default();
        }
        match self.known.last_mut() {
            Some(last) if *last.end() == revision => {}
            _ => {
                self.known.push(revision..=revision);
                self.listed = revision;
            }
        }
        self.revision = revision;
        self.checkpoint(seq);
    }

    /// Another history: revisions of before mean nothing in it.
    pub fn forget(&mut self) {
        *self = History::default();
    }

    /// Complete up to `revision`, with everything up to `seq`.
    pub fn advanced(&mut self, revision: u64, seq: u64, witness: Option<u32>) {
        let Some(last) = self.known.last_mut() else { return };
        if revision < self.revision {
            return;
        }
        *last = *last.start()..=revision;
        self.revision = revision;
        if let Some(hash) = witness {
            if self.witnesses.len() == WITNESSES {
                self.witnesses.pop_front();
            }
            self.witnesses.push_back((revision, hash));
        }
        self.checkpoint(seq);
    }

    fn checkpoint(&mut self, seq: u64) {
        match self.checkpoints.back_mut() {
            // No entry since: the same position now stands for more of history.
            Some((revision, last)) if *last == seq => *revision = self.revision,
            _ => {
                if self.checkpoints.len() == CHECKPOINTS {
                    self.checkpoints.pop_front();
                }
                self.checkpoints.push_back((self.revision, seq));
            }
        }
    }

    /// Tombstones up to `revision` are gone: positions before it can no longer be resumed from.
    pub fn trimmed(&mut self, revision: u64) {
        self.known.retain(|interval| *interval.end() >= revision);
        if let Some(first) = self.known.first_mut() {
            *first = revision.max(*first.start())..=*first.end();
        }
    }

    /// After which revision a state at that position has to be brought up to date; nothing if that can not be told.
    pub fn resumes_after(&self, position: &Position) -> Option<u64> {
        let Position { low, high, steady, .. } = *position;
        if !position.is_whole() {
            let known = self.known.iter().any(|known| known.contains(&low) && known.contains(&high));
            return known.then_some(low);
        }
        // It is the state of every revision from `steady` to `low`, and of `high`: any of them will do.
        let shared = |known: &&RangeInclusive<u64>| *known.start() <= low && steady <= *known.end();
        let shared = self.known.iter().rfind(shared).map(|known| low.min(*known.end()));
        shared.or_else(|| self.knows(high).then_some(high))
    }

    pub fn knows(&self, revision: u64) -> bool {
        self.known.iter().any(|known| known.contains(&revision))
    }

    /// Since when everything that happened was seen.
    pub fn listed(&self) -> u64 {
        self.listed
    }

    /// The last event seen: its revision and hash.
    pub fn witness(&self) -> Option<(u64, u32)> {
        self.witnesses.back().copied()
    }

    /// Another event is on record at the witness's revision, or none where there should be one.
    pub fn contradicts(&self, (revision, hash): (u64, u32)) -> bool {
        if let Ok(index) = self.witnesses.binary_search_by_key(&revision, |(revision, _)| *revision) {
            return self.witnesses[index].1 != hash;
        }
        // Since the last listing, and as far back as the record goes, every event was seen.
        let recorded = match self.witnesses.front() {
            Some((revision, _)) if self.witnesses.len() == WITNESSES => *revision,
            _ => 0,
        };
        revision > self.listed.max(recorded) && revision <= self.revision
    }

    /// The revision through which a client at `seq` is complete.
    pub fn revision_at(&self, seq: u64) -> Option<u64> {
        let next = self.checkpoints.partition_point(|(_, at)| *at <= seq);
        self.checkpoints.get(next.checked_sub(1)?).map(|(revision, _)| *revision)
    }
}

/// Hash of the events of one revision, equal on every replica.
pub fn event_hash<'a>(events: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>) -> u32 {
    let mut hasher = blake3::Hasher::new();
    for (key, value) in events {
        hasher.update(&(key.len() as u64).to_le_bytes());
        hasher.update(key.as_bytes());
        hasher.update(&[u8::from(value.is_some())]);
        let value = value.unwrap_or_default();
        hasher.update(&(value.len() as u64).to_le_bytes());
        hasher.update(value);
    }
    let hash = hasher.finalize();
    // 0 stands for no event.
    u32::from_be_bytes(hash.as_bytes()[..4].try_into().expect("a hash has 32 bytes")).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranging(low: u64, high: u64) -> Position {
        Position { low, high, steady: high, ..Position::default() }
    }

    #[test]
    fn gap_before_a_relist_is_not_vouched_for() {
        let mut history = History::default();
        history.list(100, 10);
        history.advanced(120, 15, Some(1));
        history.list(200, 30);
        history.advanced(210, 31, Some(2));
        let after = |history: &History, low, high| history.resumes_after(&ranging(low, high));
        assert_eq!((after(&history, 100, 120), after(&history, 205, 210)), (Some(100), Some(205)));
        for (low, high) in [(99, 99), (150, 150), (110, 205)] {
            assert_eq!(after(&history, low, high), None, "{low}, {high}");
        }
        history.trimmed(110);
        assert_eq!((after(&history, 109, 110), after(&history, 110, 120)), (None, Some(110)));
        history.trimmed(205);
        assert_eq!((after(&history, 120, 120), after(&history, 205, 205)), (None, Some(205)));
        assert_eq!(history.listed(), 200, "what is trimmed was seen");
    }

    #[test]
    fn state_without_effects_in_a_gap_is_that_of_before_the_gap() {
        let mut history = History::default();
        history.list(100, 10);
        history.advanced(120, 15, Some(1));
        history.list(200, 30);
        let after = |low, high, steady| history.resumes_after(&Position { steady, ..ranging(low, high) });
        // Complete through the gap, or beyond what is known, and without an effect since 110.
        assert_eq!(after(150, 110, 110), Some(120));
        assert_eq!(after(300, 110, 110), Some(200));
        // Without a trace of one: its own gap was from somewhere to 140, or to 250.
        assert_eq!(after(150, 110, 140), Some(110));
        assert_eq!(after(300, 110, 250), Some(110));
        assert_eq!(after(300, 130, 250), None);
        // Its last effect is in the gap: it may have been undone there.
        assert_eq!(after(150, 130, 130), None);
        assert_eq!(after(99, 90, 90), None, "older than all that is known");
        assert_eq!(
            after(110, 90, 90),
            Some(110),
            "nothing happened from before the first listing to after it"
        );
    }

    #[test]
    fn witness_of_another_history_is_contradicted() {
        let mut history = History::default();
        history.list(100, 0);
        history.advanced(105, 1, Some(55));
        history.advanced(107, 1, None);
        history.advanced(109, 2, Some(99));
        assert!(!history.contradicts((105, 55)) && history.contradicts((105, 56)));
        assert!(history.contradicts((106, 1)), "nothing happened at 106 here");
        assert!(!history.contradicts((90, 1)), "before what is known");
        assert!(!history.contradicts((200, 1)), "after what is known");
    }

    #[test]
    fn position_tells_the_revision_it_is_complete_through() {
        let mut history = History::default();
        history.list(100, 10);
        history.advanced(105, 10, Some(1));
        history.advanced(107, 12, Some(2));
        assert_eq!(history.revision_at(9), None);
        assert_eq!(history.revision_at(10), Some(105));
        assert_eq!(history.revision_at(11), Some(105), "half of 107");
        assert_eq!(history.revision_at(12), Some(107));
    }
}
