//! Where a state is in each source. On the wire in columns: of two dozen sources, tags alone would be a third.

use crate::sync::{Positions, Token};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub source: u32,
    pub low: u64,
    pub high: u64,
    /// Of a state that is whole: the source was watched from here to `low`, and nothing happened.
    pub steady: u64,
    /// Revision of the last event of the source, and its hash.
    pub witness: Option<(u64, u32)>,
}

impl Position {
    /// The state is that of `low`, and of `high`: nothing was received since the cut that said so.
    pub fn is_whole(&self) -> bool {
        self.high <= self.low
    }

    /// The revision that a replica has to have reached, so as not to take the state back in time.
    pub fn needs(&self) -> u64 {
        if self.is_whole() { self.steady } else { self.high }
    }

    /// A value in the state is now that of `revision`: every one is that of some revision from `low` to `high`, and what
    /// changed after `low` may be missing. A state that is whole was that of `low` and of `high`, but not of every revision
    /// between them: what came and went there without a trace may now be in it.
    pub fn include(&mut self, revision: u64) {
        let complete = if self.is_whole() && revision <= self.low { self.high } else { self.low };
        self.low = complete.min(revision.saturating_sub(1));
        self.high = self.high.max(revision);
    }

    /// The replica whose last cut this is has sent nothing since, and is that far by now.
    pub fn prove(&mut self, proven: &Position) {
        // What another replica has sent since is not covered: this one may have listed, and never have seen it.
        if self.is_whole() && proven.low >= self.low {
            *self = *proven;
        }
    }
}

impl FromIterator<Position> for Positions {
    fn from_iter<T: IntoIterator<Item = Position>>(list: T) -> Self {
        let mut columns = Positions::default();
        let mut before = 0;
        for Position { source, low, high, steady, witness } in list {
            let (revision, hash) = witness.unwrap_or((high, 0));
            columns.source.push(source);
            columns.low.push(minus(low, before));
            columns.high.push(minus(high, low));
            columns.steady.push(minus(steady, high));
            columns.event.push(minus(revision, high));
            columns.hash.push(hash);
            before = low;
        }
        if columns.steady.iter().all(|steady| *steady == 0) {
            columns.steady.clear();
        }
        columns
    }
}

impl Positions {
    /// Columns of different lengths are read as far as all of them go, but for `steady`, which is left out where it is `high`.
    pub fn list(&self) -> Vec<Position> {
        let mut low = 0u64;
        let steady = self.steady.iter().chain(std::iter::repeat(&0));
        let rows =
            self.source.iter().zip(&self.low).zip(&self.high).zip(&self.event).zip(&self.hash).zip(steady);
        rows.map(|(((((source, step), high), event), hash), steady)| {
            low = low.wrapping_add_signed(*step);
            let high = low.wrapping_add_signed(*high);
            let steady = high.wrapping_add_signed(*steady);
            let witness = (*hash != 0).then(|| (high.wrapping_add_signed(*event), *hash));
            Position { source: *source, low, high, steady, witness }
        })
        .collect()
    }
}

impl Token {
    pub fn positions(&self) -> Vec<Position> {
        self.positions.as_ref().map(Positions::list).unwrap_or_default()
    }
}

fn minus(value: u64, other: u64) -> i64 {
    value.wrapping_sub(other) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_covers_the_revision_of_every_value() {
        let after = |low, high, included: &[u64]| {
            let mut position = Position { low, high, ..Position::default() };
            included.iter().for_each(|revision| position.include(*revision));
            (position.low, position.high)
        };
        assert_eq!(after(10, 10, &[12, 15, 11]), (10, 15));
        assert_eq!(after(10, 5, &[12]), (10, 12));
        // From a replica that has not come to 10.
        assert_eq!(after(10, 5, &[7]), (5, 7));
        assert_eq!(after(10, 5, &[10, 7, 12]), (5, 12));
        // Deleted, and created anew with the value it had at 4, while the sender did not look.
        assert_eq!(after(10, 5, &[4]), (3, 5));
        assert_eq!(after(10, 15, &[4]), (3, 15));
        assert_eq!(after(10, 5, &[0]), (0, 5));
    }

    #[test]
    fn nothing_is_proven_of_a_state_that_others_have_added_to() {
        let position = |low, high| Position { low, high, steady: high, ..Position::default() };
        let after = |mut held: Position, proven| {
            held.prove(&proven);
            held
        };
        let listed = Position { steady: 18, witness: Some((5, 1)), ..position(20, 5) };
        assert_eq!(after(position(10, 5), listed), listed);
        assert_eq!(after(position(10, 5), position(9, 5)), position(10, 5), "never back");
        assert_eq!(after(position(5, 7), listed), position(5, 7));
        assert_eq!((position(10, 5).needs(), listed.needs(), position(5, 7).needs()), (5, 18, 7));
    }

    #[test]
    fn positions_survive_their_columns() {
        let position =
            |low, high, witness| Position { source: low as u32, low, high, steady: high / 2, witness };
        let list = vec![
            position(10, 12, Some((12, 5))),
            position(u64::MAX, 3, None),
            position(0, u64::MAX, Some((0, 1))),
        ];
        let columns: Positions = list.iter().copied().collect();
        assert_eq!(columns.list(), list);
        assert_eq!(Positions { hash: vec![1], ..columns.clone() }.list().len(), 1);
        let steady: Positions = list.iter().map(|at| Position { steady: at.high, ..*at }).collect();
        assert_eq!((steady.steady.len(), steady.list()[1]), (0, Position { steady: 3, ..list[1] }));
    }
}
