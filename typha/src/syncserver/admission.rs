//! Admission of snapshots: who may pull segments now.
//!
//! A fleet that comes at once wants thousands of snapshots. If all were sent side by side, every stream would get a
//! sliver, all would be in sync at the very end, buffers would fill for everybody, and the deltas of those who are in
//! sync would wait behind thousands of busy streams. So there is a number of turns, a few for each processor, given in
//! the order in which they were asked for: what is under way is at most that number of segments and send buffers, and a
//! stream that is in sync waits behind no more than that many others. Who waits is sent heartbeats; resumes by token or
//! digest need no turn.
//!
//! A turn is for those who take what they are given. One whose socket has taken nothing for a while, while others
//! wait, loses its turn (it holds nothing but references to shared segments) and asks again when it goes on. So no
//! number of stalled readers holds up anybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Sending is copying by the kernel: more than a processor can do at once only hides the clients' round trips.
const EACH_PROCESSOR: usize = 16;
/// How long a turn outlives the last segment that was pulled under it, while others wait.
const STALLED: Duration = Duration::from_millis(250);
const LOOK: Duration = Duration::from_millis(50);

pub(super) struct Admission {
    turns: Arc<Semaphore>,
    held: DashMap<u64, Held>,
    waiting: AtomicUsize,
    next: AtomicU64,
}

struct Held {
    _permit: OwnedSemaphorePermit,
    used: Instant,
}

/// Ends when it is dropped, if it was not taken away before.
pub(super) struct Turn {
    admission: Arc<Admission>,
    id: u64,
}

/// Where a stream is that needs a turn.
pub(super) enum Admitted {
    No,
    /// Kept over many waits: its place in the queue is in it.
    Asked(BoxFuture<'static, Turn>),
    Yes(Turn),
}

impl Admission {
    /// `turns`: 0 stands for what the processors can do.
    pub fn new(turns: usize) -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let turns = if turns == 0 { EACH_PROCESSOR * processors } else { turns };
        Arc::new(Admission {
            turns: Arc::new(Semaphore::new(turns.min(Semaphore::MAX_PERMITS))),
            held: DashMap::new(),
            waiting: AtomicUsize::new(0),
            next: AtomicU64::new(0),
        })
    }

    pub fn ask(self: &Arc<Self>) -> BoxFuture<'static, Turn> {
        let admission = self.clone();
        Box::pin(async move {
            let permit = match admission.turns.clone().try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) => admission.wait().await,
            };
            let id = admission.next.fetch_add(1, Relaxed);
            admission.held.insert(id, Held { _permit: permit, used: Instant::now() });
            Turn { admission, id }
        })
    }

    async fn wait(&self) -> OwnedSemaphorePermit {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        self.waiting.fetch_add(1, Relaxed);
        let _waiting = Waiting(&self.waiting);
        match self.turns.clone().acquire_owned().await {
            Ok(permit) => permit,
            // It is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// Takes turns from those who do not use them. Does not return.
    pub async fn take_back(&self) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if self.waiting() > 0 {
                self.held.retain(|_, held| held.used.elapsed() < STALLED);
            }
        }
    }

    /// Streams that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Streams whose turn it is.
    pub fn active(&self) -> usize {
        self.held.len()
    }
}

impl Admitted {
    /// Whether the next segment may be pulled now.
    pub fn is_now(&mut self, admission: &Arc<Admission>) -> bool {
        match self {
            Admitted::Yes(turn) if turn.is_still() => true,
            Admitted::Asked(_) => false,
            _ => {
                *self = Admitted::Asked(admission.ask());
                false
            }
        }
    }

    /// Until it is the turn of the stream that has asked.
    pub async fn wait(&mut self) {
        match self {
            Admitted::Asked(asked) => *self = Admitted::Yes(asked.await),
            _ => std::future::pending().await,
        }
    }
}

impl Turn {
    fn is_still(&self) -> bool {
        let held = self.admission.held.get_mut(&self.id);
        held.map(|mut held| held.used = Instant::now()).is_some()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.admission.held.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_are_given_in_order_and_come_back_by_being_dropped_or_by_not_being_used() {
        let admission = Admission::new(2);
        let (one, two) = (admission.ask().await, admission.ask().await);
        let (mut third, mut fourth) = (admission.ask(), admission.ask());
        assert!((&mut third).now_or_never().is_none() && (&mut fourth).now_or_never().is_none());
        assert_eq!((admission.active(), admission.waiting()), (2, 2));
        drop(one);
        assert!((&mut fourth).now_or_never().is_none(), "the third was first");
        let third = third.await;
        assert_eq!((admission.active(), admission.waiting()), (2, 1));

        // Nobody takes from those who use it.
        std::thread::sleep(STALLED);
        assert!(third.is_still());
        let fourth = tokio::select! {
            () = admission.take_back() => unreachable!(),
            fourth = fourth => fourth,
        };
        assert!(!two.is_still() && third.is_still() && fourth.is_still());
        drop(two);
        assert_eq!((admission.active(), admission.waiting()), (2, 0));
    }

    #[tokio::test]
    async fn who_leaves_the_queue_is_not_waited_for() {
        let admission = Admission::new(1);
        let one = admission.ask().await;
        let (mut second, mut third) = (admission.ask(), admission.ask());
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        drop(second);
        drop(one);
        assert!(third.now_or_never().is_some());
        assert_eq!((admission.active(), admission.waiting()), (0, 0));
    }
}
