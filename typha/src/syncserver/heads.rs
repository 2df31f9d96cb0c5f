//! When the cache's head reached which position: what turns an acknowledged position into a lag in time.
//!
//! Kept for the last few thousand moments; an older position lags by at least the age of the oldest. A node whose
//! agent reads none of the changed kinds acknowledges them with the next heartbeat, so lags below 2 s say little.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::snapcache::Progress;

const MOMENTS: usize = 8_192;
const APART: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Heads {
    moments: Mutex<VecDeque<(u64, Instant)>>,
}

impl Heads {
    /// Notes the head as it moves. Does not return.
    pub async fn follow(&self, mut progress: watch::Receiver<Progress>) {
        loop {
            let seq = progress.borrow_and_update().seq;
            self.note(seq, Instant::now());
            if progress.changed().await.is_err() {
                return std::future::pending().await;
            }
            tokio::time::sleep(APART).await;
        }
    }

    fn note(&self, seq: u64, now: Instant) {
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        if moments.back().is_none_or(|(last, _)| *last < seq) {
            if moments.len() == MOMENTS {
                moments.pop_front();
            }
            moments.push_back((seq, now));
        }
    }

    /// How long there has been something after this position.
    pub fn lag(&self, seq: u64) -> Duration {
        let moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let next = moments.partition_point(|(at, _)| *at <= seq);
        moments.get(next).map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_counts_from_the_first_change_after_the_position() {
        let heads = Heads::default();
        let start = Instant::now() - Duration::from_secs(60);
        for (seq, after) in [(10, 0), (12, 20), (12, 25), (20, 50)] {
            heads.note(seq, start + Duration::from_secs(after));
        }
        let lag = |seq| heads.lag(seq).as_secs();
        assert_eq!((lag(20), lag(12), lag(11), lag(10), lag(3)), (0, 10, 40, 40, 60));
    }
}
