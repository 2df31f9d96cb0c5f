//! When changes go out, and as what: the state is frozen now and then, and what changed since the freeze before is
//! encoded and compressed once, for all streams that had come so far.
//!
//! At once when nothing went out for a while; under load at most every 10 (as configured) to 100 ms, the longer the more there is
//! to gain and the longer the streams take, or when 64 KiB have come together. Streams that are behind, or between two
//! freezes, read the cache themselves and fall in with the next freeze.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::sync::server_message::Message;
use tokio::sync::{SetOnce, watch};
use tokio::time::Instant;

use super::cache::Cache;
use super::encode::{KindSet, message};
use super::frame::Framed;
use super::stand::Stand;
use super::{Progress, Shared};

/// The longest time between two freezes.
const LONGEST: Duration = Duration::from_millis(100);
/// What goes out before its time.
const ENOUGH: u64 = 64 << 10;
/// With so many changes at a freeze, a longer wait would have made fewer messages of them; with so few, not.
const MANY: u64 = 8;
const FEW: u64 = 2;
/// Sending may take one part of the time in so many: those who read need the rest, and a machine that is busy with one
/// message for each change falls behind, where one message for all that came meanwhile costs hardly more.
const PART: u32 = 3;
/// Subscriptions that flights are made for, by the number of streams that have them.
const SUBSCRIPTIONS: usize = 8;

/// The state at a freeze, and what led to it from the one before.
pub struct Freeze {
    pub stand: Stand,
    pub forked: bool,
    /// Position and version of the freeze before.
    before: (u64, u64),
    flights: Vec<(KindSet, Flight)>,
    /// Streams that there were, and those that have taken their flight.
    streams: usize,
    taken: AtomicUsize,
    /// When half of them had.
    half_taken: SetOnce<Instant>,
}

/// What a stream is sent that had come as far as the freeze before.
#[derive(Clone)]
pub struct Flight {
    /// The batch, and behind it the cut; absent if nothing of these kinds changed.
    pub messages: Option<Framed>,
    pub entries: usize,
}

impl Freeze {
    /// Takes the flight for a stream that is complete up to `seq`, and has had a cut of `version`. It may repeat entries.
    pub fn take_flight(&self, kinds: KindSet, seq: u64, version: u64) -> Option<&Flight> {
        if seq < self.before.0 || version < self.before.1 || self.stand.trimmed > seq {
            return None;
        }
        let (_, flight) = self.flights.iter().find(|(of, _)| *of == kinds)?;
        if self.taken.fetch_add(1, Relaxed) + 1 == self.streams.div_ceil(2) {
            _ = self.half_taken.set(Instant::now());
        }
        Some(flight)
    }

    /// Until the next freeze may be made, `wait` after this one of the time `at`, and at most `longest`.
    async fn pause(&self, at: Instant, wait: Duration, longest: Duration) {
        tokio::time::sleep_until(at + wait).await;
        if self.streams > 0 {
            let until_all_took = async {
                let half = self.half_taken.wait().await.duration_since(at);
                tokio::time::sleep_until(at + PART * 2 * half).await;
            };
            _ = tokio::time::timeout_at(at + longest, until_all_took).await;
        }
    }

    fn new(cache: &Cache, before: &Stand, subscriptions: &[(KindSet, u64)], streams: usize) -> Freeze {
        let stand = cache.stand();
        let flight = |(kinds, view): &(KindSet, u64)| {
            let page = cache.entries_after(before.seq, *kinds, 0);
            // Too much for one message: every stream reads for itself.
            if !page.complete() {
                return None;
            }
            let cut = message(Message::Cut(stand.cut_since(before.version, *view)));
            let messages = page.message.map(|batch| batch.followed_by(&cut));
            Some((*kinds, Flight { messages, entries: page.entries }))
        };
        Freeze {
            forked: cache.forked(),
            before: (before.seq, before.version),
            flights: subscriptions.iter().filter_map(flight).collect(),
            stand,
            streams,
            taken: AtomicUsize::new(0),
            half_taken: SetOnce::new(),
        }
    }
}

/// Who wants flights, and the newest one.
pub(super) struct Flights {
    newest: watch::Sender<Arc<Freeze>>,
    subscriptions: Mutex<BTreeMap<KindSet, usize>>,
}

impl Flights {
    pub fn new(cache: &Cache) -> Self {
        let first = Freeze::new(cache, &cache.stand(), &[], 0);
        Flights { newest: watch::Sender::new(Arc::new(first)), subscriptions: Mutex::default() }
    }

    fn subscriptions(&self) -> MutexGuard<'_, BTreeMap<KindSet, usize>> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream's wish to be sent flights of its kinds.
pub struct Subscription {
    shared: Arc<Shared>,
    kinds: KindSet,
    pub freezes: watch::Receiver<Arc<Freeze>>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut subscriptions = self.shared.flights.subscriptions();
        if let Some(streams) = subscriptions.get_mut(&self.kinds) {
            *streams -= 1;
            if *streams == 0 {
                subscriptions.remove(&self.kinds);
            }
        }
    }
}

impl Shared {
    pub fn subscribe(self: &Arc<Self>, kinds: KindSet) -> Subscription {
        *self.flights.subscriptions().entry(kinds).or_default() += 1;
        Subscription { shared: self.clone(), kinds, freezes: self.flights.newest.subscribe() }
    }

    /// Freezes the state when it is time; `shortest` is the shortest wait. Does not return.
    pub async fn freeze_now_and_then(&self, shortest: Duration) {
        let mut progress = self.progress();
        let longest = LONGEST.max(shortest);
        let mut wait = shortest;
        let mut last: Option<Instant> = None;
        loop {
            let frozen = Progress { ..*progress.borrow_and_update() };
            if !self.moved(&frozen) {
                if progress.changed().await.is_err() {
                    return std::future::pending().await;
                }
                continue;
            }
            if let Some(last) = last {
                let newest = self.flights.newest.borrow().clone();
                let enough = newest.stand.bytes + ENOUGH;
                tokio::select! {
                    () = newest.pause(last, wait, longest) => {}
                    _ = progress.wait_for(|progress| progress.bytes >= enough) => {}
                }
            }
            let changes = self.freeze();
            last = Some(Instant::now());
            wait = match changes {
                MANY.. => (wait * 2).min(longest),
                ..=FEW => (wait / 2).max(shortest),
                _ => wait,
            };
        }
    }

    fn moved(&self, progress: &Progress) -> bool {
        let newest = self.flights.newest.borrow();
        newest.stand.seq != progress.seq || newest.forked != progress.forked
    }

    /// Returns how many entries have changed since the last time.
    fn freeze(&self) -> u64 {
        let before = self.flights.newest.borrow().clone();
        let mut wanted: Vec<(KindSet, usize)> =
            self.flights.subscriptions().iter().map(|(kinds, streams)| (*kinds, *streams)).collect();
        let streams = wanted.iter().map(|(_, streams)| streams).sum();
        wanted.sort_by_key(|(_, streams)| std::cmp::Reverse(*streams));
        let freeze = {
            let cache = self.read();
            let with_view = |(kinds, _): &(KindSet, usize)| (*kinds, cache.view(*kinds));
            let wanted: Vec<_> = wanted.iter().take(SUBSCRIPTIONS).map(with_view).collect();
            Freeze::new(&cache, &before.stand, &wanted, streams)
        };
        let changes = freeze.stand.seq - before.stand.seq;
        self.flights.newest.send_replace(Arc::new(freeze));
        changes
    }
}

#[cfg(test)]
mod tests {
    use syncer_common::model::{Key, Update, Value};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longer_the_streams_take_the_further_apart_are_freezes() {
        let mut cache = Cache::new("test", "");
        cache.follow(["etcd"]);
        let shared = Shared::new(cache);
        let mut streams: Vec<_> = (0..4).map(|_| shared.subscribe(KindSet::all())).collect();
        let freezer = shared.clone();
        let freezing =
            tokio::spawn(async move { freezer.freeze_now_and_then(Duration::from_millis(10)).await });
        let mut revision = 0;
        let mut change = || {
            revision += 1;
            let value = Value::Config(revision.to_string());
            let updates = vec![Update::set(Key::GlobalConfig { name: "Key".into() }, value)];
            shared.update(|cache| {
                cache.apply_revision(0, revision, updates, 1, std::time::Instant::now());
            });
        };
        let start = Instant::now();
        // After how long so many of the four take a freeze, and when it comes: at once after quiet, then three times what half
        // of them took twice; 10 ms at least, and 100 ms where too few take it.
        for (taken_after, by, at) in [(5, 4, 0), (0, 2, 30), (0, 1, 40), (0, 4, 140), (0, 4, 150)] {
            change();
            streams[0].freezes.changed().await.unwrap();
            assert_eq!(start.elapsed().as_millis(), at);
            let freeze = streams[0].freezes.borrow_and_update().clone();
            tokio::time::sleep(Duration::from_millis(taken_after)).await;
            for _ in 0..by {
                assert!(freeze.take_flight(KindSet::all(), u64::MAX, u64::MAX).is_some());
            }
        }
        freezing.abort();
    }
}
