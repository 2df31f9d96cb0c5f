//! Where a state is in each source. On the wire in columns: of two dozen sources, tags alone would be a third.

use crate::sync::{Positions, Token};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub source: u32,
    pub low: u64,
    pub high: u64,
    /// Revision of the last event of the source, and its hash.
    pub witness: Option<(u64, u32)>,
}

impl FromIterator<Position> for Positions {
    fn from_iter<T: IntoIterator<Item = Position>>(list: T) -> Self {
        let mut columns = Positions::default();
        let mut before = 0;
        for Position { source, low, high, witness } in list {
            let (revision, hash) = witness.unwrap_or((high, 0));
            columns.source.push(source);
            columns.low.push(minus(low, before));
            columns.high.push(minus(high, low));
            columns.event.push(minus(revision, high));
            columns.hash.push(hash);
            before = low;
        }
        columns
    }
}

impl Positions {
    /// Columns of different lengths are read as far as all of them go.
    pub fn list(&self) -> Vec<Position> {
        let mut low = 0u64;
        let rows = self.source.iter().zip(&self.low).zip(&self.high).zip(&self.event).zip(&self.hash);
        rows.map(|((((source, step), high), event), hash)| {
            low = low.wrapping_add_signed(*step);
            let high = low.wrapping_add_signed(*high);
            let witness = (*hash != 0).then(|| (high.wrapping_add_signed(*event), *hash));
            Position { source: *source, low, high, witness }
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
    fn positions_survive_their_columns() {
        let position = |low, high, witness| Position { source: low as u32, low, high, witness };
        let list = vec![
            position(10, 12, Some((12, 5))),
            position(u64::MAX, 3, None),
            position(0, u64::MAX, Some((0, 1))),
        ];
        let columns: Positions = list.iter().copied().collect();
        assert_eq!(columns.list(), list);
        assert_eq!(Positions { hash: vec![1], ..columns }.list().len(), 1);
    }
}
