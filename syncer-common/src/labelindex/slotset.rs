//! Sets of slots, of which there is one for every value of a label in the cluster: most are of a few items, some of all.
//! Slots are dense, so that two bytes an item do, or less.

use super::slots::Slot;

/// Of one set, the slots that share their upper half.
const CHUNK: usize = 1 << 16;
/// From here on a bit for each slot of a chunk is smaller than two bytes for each that is in it.
const DENSE: usize = CHUNK / 16;

#[derive(Clone, Debug, Default)]
pub(super) struct SlotSet {
    /// By the upper half, in order; none is empty.
    chunks: Vec<(u16, Chunk)>,
}

#[derive(Clone, Debug)]
enum Chunk {
    /// In order.
    Sparse(Vec<u16>),
    Dense(Box<Bits>),
}

#[derive(Clone, Debug)]
struct Bits {
    words: [u64; CHUNK / 64],
    len: usize,
}

impl SlotSet {
    pub fn insert(&mut self, slot: Slot) {
        let (upper, low) = halves(slot);
        let at = self.find(upper).unwrap_or_else(|at| {
            self.chunks.reserve_exact(1);
            self.chunks.insert(at, (upper, Chunk::Sparse(Vec::new())));
            at
        });
        self.chunks[at].1.insert(low);
    }

    pub fn remove(&mut self, slot: Slot) {
        let (upper, low) = halves(slot);
        if let Ok(at) = self.find(upper) {
            self.chunks[at].1.remove(low);
            if self.chunks[at].1.len() == 0 {
                self.chunks.remove(at);
            }
        }
    }

    pub fn contains(&self, slot: Slot) -> bool {
        let (upper, low) = halves(slot);
        self.find(upper).is_ok_and(|at| self.chunks[at].1.contains(low))
    }

    pub fn len(&self) -> usize {
        self.chunks.iter().map(|(_, chunk)| chunk.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.chunks
            .iter()
            .flat_map(|(upper, chunk)| lows(chunk).map(move |low| Slot::from(*upper) << 16 | Slot::from(low)))
    }

    fn find(&self, upper: u16) -> Result<usize, usize> {
        self.chunks.binary_search_by_key(&upper, |(upper, _)| *upper)
    }
}

fn halves(slot: Slot) -> (u16, u16) {
    ((slot >> 16) as u16, slot as u16)
}

impl Chunk {
    fn insert(&mut self, low: u16) {
        match self {
            Chunk::Sparse(lows) => {
                let Err(at) = lows.binary_search(&low) else { return };
                lows.insert(at, low);
                if lows.len() > DENSE {
                    let mut bits = Box::new(Bits { words: [0; CHUNK / 64], len: lows.len() });
                    lows.iter().for_each(|low| *bits.word(*low) |= bit(*low));
                    *self = Chunk::Dense(bits);
                }
            }
            Chunk::Dense(bits) => {
                bits.len += usize::from(*bits.word(low) & bit(low) == 0);
                *bits.word(low) |= bit(low);
            }
        }
    }

    fn remove(&mut self, low: u16) {
        match self {
            Chunk::Sparse(lows) => {
                if let Ok(at) = lows.binary_search(&low) {
                    lows.remove(at);
                }
            }
            Chunk::Dense(bits) => {
                bits.len -= usize::from(*bits.word(low) & bit(low) != 0);
                *bits.word(low) &= !bit(low);
                // Not right below the limit: an item that comes and goes there would turn it round each time.
                if bits.len < DENSE / 2 {
                    *self = Chunk::Sparse(lows(self).collect());
                }
            }
        }
    }

    fn contains(&self, low: u16) -> bool {
        match self {
            Chunk::Sparse(lows) => lows.binary_search(&low).is_ok(),
            Chunk::Dense(bits) => bits.words[usize::from(low) / 64] & bit(low) != 0,
        }
    }

    fn len(&self) -> usize {
        match self {
            Chunk::Sparse(lows) => lows.len(),
            Chunk::Dense(bits) => bits.len,
        }
    }
}

impl Bits {
    fn word(&mut self, low: u16) -> &mut u64 {
        &mut self.words[usize::from(low) / 64]
    }
}

fn bit(low: u16) -> u64 {
    1 << (low % 64)
}

fn lows(chunk: &Chunk) -> impl Iterator<Item = u16> + '_ {
    let (sparse, dense) = match chunk {
        Chunk::Sparse(lows) => (lows.as_slice(), None),
        Chunk::Dense(bits) => (&[][..], Some(bits)),
    };
    let dense = dense.into_iter().flat_map(|bits| bits.words.iter().enumerate()).flat_map(|(at, word)| {
        (0..64).filter(move |n| word >> n & 1 != 0).map(move |n| (at * 64 + n) as u16)
    });
    sparse.iter().copied().chain(dense)
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<T: IntoIterator<Item = Slot>>(slots: T) -> Self {
        let mut set = SlotSet::default();
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A run of slots that come or go.
    fn run() -> impl Strategy<Value = (bool, Slot, Slot)> {
        let from = prop_oneof![0..100u32, 60_000..70_000u32, 0..200_000u32];
        (any::<bool>(), from, prop_oneof![Just(1), 1..50u32, 1..6_000u32])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn holds_what_a_plain_set_holds(runs in prop::collection::vec(run(), 0..20)) {
            let (mut set, mut plain) = (SlotSet::default(), BTreeSet::new());
            for (there, from, count) in runs {
                for slot in from..from + count {
                    match there {
                        true => { set.insert(slot); plain.insert(slot); }
                        false => { set.remove(slot); plain.remove(&slot); }
                    }
                    prop_assert_eq!(set.contains(slot), there);
                }
                prop_assert!(set.iter().eq(plain.iter().copied()));
                prop_assert_eq!((set.len(), set.is_empty()), (plain.len(), plain.is_empty()));
            }
            plain.iter().for_each(|slot| set.remove(*slot));
            prop_assert!(set.chunks.is_empty());
        }
    }
}
