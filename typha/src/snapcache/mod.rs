//! The cache of derived entries: an ordered map that clients follow with cursors.
//!
//! One task (`pipeline`) writes; streams read. [`Shared`] is the seam: a lock that is held for one revision at
//! a time and never over an await, and a watch channel that says how far the head has come. Why not a channel
//! per client: a channel holds history, so a slow client either costs memory or has to be cut off. A cursor
//! costs nothing while it does not move, and what it is given when it moves is the latest value of each key.

mod cache;
mod digest;
mod encode;
mod history;
mod positions;
#[cfg(test)]
mod tests;
mod track;

use std::sync::{Arc, RwLock, RwLockReadGuard};

use bytes::Bytes;
use proto::sync::{self, server_message};
use tokio::sync::{mpsc, watch};

pub use cache::{Applied, Cache, Page};
pub use digest::Difference;
pub use encode::{KindSet, message, pages};
pub use history::event_hash;
pub use positions::Resume;

/// What every stream waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Position of the newest entry.
    pub seq: u64,
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
    memo: std::sync::Mutex<Memo>,
    /// Sources that somebody wants to be read now.
    asked: mpsc::Sender<usize>,
    asks: std::sync::Mutex<Option<mpsc::Receiver<usize>>>,
}

/// More than there are sources: repeated wishes are one.
const ASKED: usize = 64;

/// The page that caught-up clients share: all of them ask for the same one within a moment.
#[derive(Default)]
struct Memo {
    head: u64,
    pages: Vec<((u64, KindSet), Page)>,
    cuts: Vec<((KindSet, u64, u64), Bytes)>,
}

/// Distinct subscriptions and cursors that are worth keeping for one head.
const MEMO_PAGES: usize = 8;

impl Shared {
    pub fn new(cache: Cache) -> Arc<Self> {
        let progress = watch::Sender::new(cache.progress());
        let (asked, asks) = mpsc::channel(ASKED);
        Arc::new(Shared {
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

    /// What follows `after`, encoded; shared between all that ask for the same before the head moves on.
    pub fn page(&self, after: u64, kinds: KindSet) -> Page {
        let head = self.read().head();
        let key = (after, kinds);
        {
            let memo = self.memo();
            if memo.head == head
                && let Some((_, page)) = memo.pages.iter().find(|(known, _)| *known == key)
            {
                return page.clone();
            }
        }
        let page = self.read().entries_after(after, kinds, 0);
        let mut memo = self.memo();
        if memo.head != page.head {
            memo.head = page.head;
            memo.pages.clear();
        }
        if memo.pages.len() < MEMO_PAGES {
            memo.pages.push((key, page.clone()));
        }
        page
    }

    /// The encoded cut at the head, if the head is still at `seq`, for a client that has had one of ours at
    /// version `since`; shared like pages. With it, the version that it is of.
    pub fn cut(&self, seq: u64, kinds: KindSet, since: u64) -> Option<(Bytes, u64)> {
        let cache = self.read();
        if cache.head() != seq {
            return None;
        }
        let version = cache.progress().version;
        let key = (kinds, since, version);
        let mut memo = self.memo();
        if let Some((_, cut)) = memo.cuts.iter().find(|(known, _)| *known == key) {
            return Some((cut.clone(), version));
        }
        let cut = message(server_message::Message::Cut(cache.cut_since(since, kinds)));
        if memo.cuts.len() >= MEMO_PAGES {
            memo.cuts.clear();
        }
        memo.cuts.push((key, cut.clone()));
        Some((cut, version))
    }

    /// The same for a client that has had none, and may have offered a token that it still holds.
    pub fn first_cut(&self, seq: u64, kinds: KindSet, offered: Option<&sync::Token>) -> Option<(Bytes, u64)> {
        let cache = self.read();
        if cache.head() != seq {
            return None;
        }
        let cut = match offered {
            Some(offered) => cache.cut_after(offered, kinds),
            None => sync::Cut { token: Some(cache.token(kinds)), ..Default::default() },
        };
        Some((message(server_message::Message::Cut(cut)), cache.progress().version))
    }

    fn memo(&self) -> std::sync::MutexGuard<'_, Memo> {
        self.memo.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
