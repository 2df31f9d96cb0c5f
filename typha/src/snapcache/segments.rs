//! Snapshots as shared pieces: a segment is a kind, or a sixty-fourth of a large one, encoded and compressed once for
//! all who pull it (and once more for those who take nothing compressed). So what any number of readers hold, slow ones
//! included, is of the size of the state.
//!
//! A segment may be older than the state, as long as it is not older than the position from which its reader is
//! sent changes afterwards. Readers who come within a moment begin at one position, so that under churn a segment
//! is rebuilt once a moment, not once a reader; what nothing changed in is not rebuilt at all.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLockReadGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use syncer_common::digest::{LEAVES, OF_BRANCH};
use syncer_common::model::Kind;

use super::cache::Cache;
use super::encode;
use super::frame::compress;

/// Larger kinds are sent in branches of their digest trees.
const WHOLE_BYTES: usize = 256 << 10;
/// Segments that nobody has pulled for so long are dropped.
const COLD: Duration = Duration::from_secs(30);
/// Readers who come within this time begin at the same position.
const MOMENT: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Segments {
    slots: Mutex<HashMap<(Kind, u16, bool), SharedSlot>>,
    /// Of what was built compressed last, by kind and first leaf.
    sizes: Mutex<HashMap<(Kind, u16), Size>>,
    base: Mutex<Option<(u64, Instant)>>,
}

/// By kind, first leaf and whether it is compressed; locked by itself while it is built.
type SharedSlot = Arc<Mutex<Slot>>;

/// What was built last: the leaves it is of, the position it is of, and its messages.
#[derive(Default)]
struct Slot {
    leaves: Option<RangeInclusive<u16>>,
    seq: u64,
    messages: Vec<Bytes>,
    pulled: Option<Instant>,
}

/// Bytes of messages, before and after compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    pub plain: usize,
    pub packed: usize,
}

/// Of the segment of these leaves.
struct Size {
    leaves: RangeInclusive<u16>,
    packed: Packed,
}

/// Where a reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub kind: Kind,
    pub leaf: u16,
}

impl Segments {
    /// The position at which a reader who comes now begins.
    pub fn base(&self, head: u64, trimmed: u64, now: Instant) -> u64 {
        let mut base = lock(&self.base);
        match *base {
            Some((seq, at)) if seq >= trimmed && now.saturating_duration_since(at) < MOMENT => seq,
            _ => {
                *base = Some((head, now));
                head
            }
        }
    }

    /// The segment at the place, not older than `base`; and the leaf where the next one of the kind begins, if
    /// there is one.
    pub fn pull<'a>(
        &self,
        Place { kind, leaf }: Place,
        base: u64,
        zstd: bool,
        read: impl Fn() -> RwLockReadGuard<'a, Cache>,
        now: Instant,
    ) -> (Vec<Bytes>, Option<u16>) {
        let leaves = match read().bytes_of(kind) > WHOLE_BYTES {
            true => {
                let first = leaf - leaf % OF_BRANCH;
                first..=first + OF_BRANCH - 1
            }
            false => 0..=LEAVES - 1,
        };
        let next = (*leaves.end() < LEAVES - 1).then(|| leaves.end() + 1);
        let slot = lock(&self.slots).entry((kind, *leaves.start(), zstd)).or_default().clone();
        // Who wants the same segment waits until it is built, once.
        let mut slot = lock(&slot);
        slot.pulled = Some(now);
        let valid = slot.leaves.as_ref() == Some(&leaves)
            && (slot.seq >= base || read().changed(kind, &leaves) <= slot.seq);
        if !valid {
            let (members, seq) = read().members(kind, leaves.clone());
            let pages = encode::pages(&members);
            slot.messages = match zstd {
                true => {
                    let plain = pages.iter().map(Bytes::len).sum();
                    let messages: Vec<Bytes> =
                        pages.into_iter().map(|page| compress(&page).unwrap_or(page)).collect();
                    self.note(kind, &leaves, Packed { plain, packed: messages.iter().map(Bytes::len).sum() });
                    messages
                }
                false => pages,
            };
            (slot.leaves, slot.seq) = (Some(leaves), seq);
        }
        (slot.messages.clone(), next)
    }

    fn note(&self, kind: Kind, leaves: &RangeInclusive<u16>, packed: Packed) {
        let mut sizes = lock(&self.sizes);
        // A kind that grew is sent in other pieces than before.
        sizes.retain(|(of, _), Size { leaves: held, .. }| {
            *of != kind || held.end() < leaves.start() || leaves.end() < held.start()
        });
        sizes.insert((kind, *leaves.start()), Size { leaves: leaves.clone(), packed });
    }

    /// What all segments were when they were last sent compressed; nothing if none was.
    pub fn packed(&self) -> Option<Packed> {
        let sizes = lock(&self.sizes);
        let all = sizes.values().map(|size| size.packed);
        all.reduce(|a, b| Packed { plain: a.plain + b.plain, packed: a.packed + b.packed })
    }

    /// Drops what nobody needs any more.
    pub fn cool(&self, now: Instant) {
        lock(&self.slots).retain(|_, slot| {
            // One that is being built is needed.
            let Ok(slot) = slot.try_lock() else { return true };
            slot.pulled.is_none_or(|pulled| now.saturating_duration_since(pulled) < COLD)
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
