//! When changes go out, and as what: the state is frozen now and then, and what changed since the freeze before is
//! encoded and compressed once, for all streams that had come so far.
//!
//! At once when nothing went out for a while; under load at most every 10 to 100 ms, the longer the more there is
//! to gain, or when 64 KiB have come together. Streams that are behind, or between two freezes, read the cache
//! themselves and fall in with the next freeze.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::sync::server_message::Message;
use tokio::sync::watch;
use tokio::time::Instant;

use super::cache::Cache;
use super::encode::{KindSet, message};
use super::frame::Framed;
use super::stand::Stand;
use super::{Progress, Shared};

/// The shortest time between two freezes.
const SHORTEST: Duration = Duration::from_millis(10);
/// What goes out before its time.
const ENOUGH: u64 = 64 << 10;
/// With so many changes at a freeze, a longer wait would have made fewer messages of them; with so few, not.
const MANY: u64 = 8;
const FEW: u64 = 2;
/// Subscriptions that flights are made for, by the number of streams that have them.
const SUBSCRIPTIONS: usize = 8;

/// The state at a freeze, and what led to it from the one before.
#[derive(Default)]
pub struct Freeze {
    pub stand: Stand,
    pub forked: bool,
    /// Position and version of the freeze before.
    before: (u64, u64),
    flights: Vec<(KindSet, Flight)>,
}

/// What a stream is sent that had come as far as the freeze before.
#[derive(Clone)]
pub struct Flight {
    /// The batch, and behind it the cut; absent if nothing of these kinds changed.
    pub messages: Option<Framed>,
    pub entries: usize,
}

impl Freeze {
    /// The flight for a stream that is complete up to `seq`, and has had a cut of `version`. It may repeat entries.
    pub fn flight(&self, kinds: KindSet, seq: u64, version: u64) -> Option<&Flight> {
        if seq < self.before.0 || version < self.before.1 || self.stand.trimmed > seq {
            return None;
        }
        self.flights.iter().find(|(of, _)| *of == kinds).map(|(_, flight)| flight)
    }

    fn new(cache: &Cache, before: &Stand, subscriptions: &[(KindSet, u64)]) -> Freeze {
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
        let first = Freeze::new(cache, &cache.stand(), &[]);
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

    /// Freezes the state when it is time; `longest` is the longest wait. Does not return.
    pub async fn freeze_now_and_then(&self, longest: Duration) {
        let mut progress = self.progress();
        let mut wait = SHORTEST.min(longest);
        let mut last: Option<Instant> = None;
        loop {
            let frozen = Progress { ..*progress.borrow_and_update() };
            if !self.moved(&frozen) {
                if progress.changed().await.is_err() {
                    return std::future::pending().await;
                }
                continue;
            }
            if let Some(due) = last.map(|last| last + wait) {
                let enough = self.flights.newest.borrow().stand.bytes + ENOUGH;
                tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    _ = progress.wait_for(|progress| progress.bytes >= enough) => {}
                }
            }
            let changes = self.freeze();
            last = Some(Instant::now());
            wait = match changes {
                MANY.. => (wait * 2).min(longest),
                ..=FEW => (wait / 2).max(SHORTEST.min(longest)),
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
        wanted.sort_by_key(|(_, streams)| std::cmp::Reverse(*streams));
        let freeze = {
            let cache = self.read();
            let with_view = |(kinds, _): &(KindSet, usize)| (*kinds, cache.view(*kinds));
            let wanted: Vec<_> = wanted.iter().take(SUBSCRIPTIONS).map(with_view).collect();
            Freeze::new(&cache, &before.stand, &wanted)
        };
        let changes = freeze.stand.seq - before.stand.seq;
        self.flights.newest.send_replace(Arc::new(freeze));
        changes
    }
}
