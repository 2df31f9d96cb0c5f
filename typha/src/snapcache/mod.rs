//! The cache of derived entries: an ordered map that clients follow with cursors.
//!
//! One task (`pipeline`) writes; streams read. [`Shared`] is the seam: a lock that is held for one revision at
//! a time and never over an await, and a watch channel that says how far the head has come. Why not a channel
//! per client: a channel holds history, so a slow client either costs memory or has to be cut off. A cursor
//! costs nothing while it does not move, and what it is given when it moves is the latest value of each key.

mod cache;
mod changes;
mod digest;
mod encode;
mod flights;
mod frame;
mod history;
mod positions;
mod segments;
mod stand;
#[cfg(test)]
mod tests;
mod track;

use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use flights::Flights;
use segments::Segments;

pub use cache::{Applied, Cache, Page};
pub use changes::Changes;
pub use digest::Difference;
pub use encode::{KindSet, message, pages};
pub use flights::{Freeze, Subscription};
pub use frame::compress;
pub use history::event_hash;
pub use positions::Resume;
pub use segments::{Packed, Place};
pub use stand::Stand;

/// What every stream waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Position of the newest entry.
    pub seq: u64,
    /// Bytes of all entries encoded so far.
    pub bytes: u64,
    /// Changes with every proof and whenever a source is complete up to a later revision.
    pub version: u64,
    pub in_sync: bool,
    /// Deletions are held: the datastore's history is not the one that was followed [B5].
    pub forked: bool,
}

/// The cache as one writer and many readers use it.
pub struct Shared {
    cache: RwLock<Cache>,
    progress: watch::Sender<Progress>,
    flights: Flights,
    segments: Segments,
    memo: std::sync::Mutex<Memo>,
    /// Sources that somebody wants to be read now.
    asked: mpsc::Sender<usize>,
    asks: std::sync::Mutex<Option<mpsc::Receiver<usize>>>,
}

/// More than there are sources: repeated wishes are one.
const ASKED: usize = 64;

/// The pages that streams share which come back from the same position, as a fleet does after an outage.
#[derive(Default)]
struct Memo {
    stand: Option<Arc<Stand>>,
    pages: Vec<((u64, KindSet), Page)>,
}

/// Distinct subscriptions and cursors that are worth keeping for one head.
const MEMO_PAGES: usize = 8;

impl Shared {
    pub fn new(cache: Cache) -> Arc<Self> {
        let progress = watch::Sender::new(cache.progress());
        let (asked, asks) = mpsc::channel(ASKED);
        let flights = Flights::new(&cache);
        Arc::new(Shared {
            flights,
            segments: Segments::default(),
            cache: RwLock::new(cache),
            progress,
            memo: Default::default(),
            asked,
            asks: std::sync::Mutex::new(Some(asks)),
        })
    }

    /// Wants a linearizable read of the sources, soon; it will show as progress.
    pub fn ask(&self, sources: impl IntoIterator<Item = usize>) {
        for source in sources {
            // A full channel holds a wish for reads of the same time already.
            if self.asked.try_send(source).is_err() {
                return;
            }
        }
    }

    /// The wishes, for whoever reads the datastore. There is one such reader.
    pub fn asks(&self) -> Option<mpsc::Receiver<usize>> {
        self.asks.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }

    /// Changes the cache, then tells the streams. Only the owner of the cache calls this.
    pub fn update<T>(&self, change: impl FnOnce(&mut Cache) -> T) -> T {
        let (answer, progress) = {
            let mut cache = self.cache.write().unwrap_or_else(|poisoned| poisoned.into_inner());
            let answer = change(&mut cache);
            (answer, cache.progress())
        };
        self.progress.send_if_modified(|last| std::mem::replace(last, progress) != progress);
        answer
    }

    pub fn read(&self) -> RwLockReadGuard<'_, Cache> {
        // A poisoned lock means that the owner panicked; the process is about to end with it.
        self.cache.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// What follows `after`, encoded; shared between all that ask for the same before the head moves on. With it,
    /// where the cache stood.
    pub fn page(&self, after: u64, kinds: KindSet) -> (Page, Arc<Stand>) {
        let key = (after, kinds);
        let (version, trimmed) = {
            let cache = self.read();
            (cache.progress().version, cache.trimmed_seq())
        };
        {
            let memo = self.memo();
            if let Some(stand) =
                memo.stand.as_ref().filter(|stand| (stand.version, stand.trimmed) == (version, trimmed))
                && let Some((_, page)) = memo.pages.iter().find(|(known, _)| *known == key)
            {
                return (page.clone(), stand.clone());
            }
        }
        let (page, stand) = {
            let cache = self.read();
            (cache.entries_after(after, kinds, 0), Arc::new(cache.stand()))
        };
        let mut memo = self.memo();
        if memo
            .stand
            .as_ref()
            .is_none_or(|held| (held.version, held.trimmed) != (stand.version, stand.trimmed))
        {
            *memo = Memo { stand: Some(stand.clone()), pages: Vec::new() };
        }
        if memo.pages.len() < MEMO_PAGES {
            memo.pages.push((key, page.clone()));
        }
        (page, stand)
    }

    /// The position at which a snapshot begins that is wanted now.
    pub fn base(&self) -> u64 {
        let cache = self.read();
        self.segments.base(cache.head(), cache.trimmed_seq(), Instant::now())
    }

    /// A segment of a snapshot that began at `base`: see `segments`.
    pub fn segment(&self, place: Place, base: u64, zstd: bool) -> (Vec<Bytes>, Option<u16>) {
        self.segments.pull(place, base, zstd, || self.read(), Instant::now())
    }

    /// The size of snapshots, as they were last sent compressed.
    pub fn packed(&self) -> Option<Packed> {
        self.segments.packed()
    }

    /// Drops what nobody has used for a while.
    pub fn cool(&self) {
        self.segments.cool(Instant::now());
    }

    fn memo(&self) -> std::sync::MutexGuard<'_, Memo> {
        self.memo.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
