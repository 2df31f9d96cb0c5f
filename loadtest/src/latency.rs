//! From when a change was due to when a node had it, second by second.
//!
//! Counted from when a change was *due*, not from when it was written: a datastore or a load generator that stalls
//! counts against the result, instead of hiding what it delayed (coordinated omission).

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// So that nodes seldom wait for one another.
const SHARDS: usize = 16;
/// Two digits of the number are kept: 1 % is less than what two runs differ by.
const DIGITS: u8 = 2;

pub struct Latencies {
    start: Instant,
    shards: [Mutex<Shard>; SHARDS],
}

struct Shard {
    seconds: Vec<Histogram<u64>>,
    /// Since the phase began.
    phase: Histogram<u64>,
}

impl Default for Shard {
    fn default() -> Self {
        Shard { seconds: Vec::new(), phase: empty() }
    }
}

fn empty() -> Histogram<u64> {
    Histogram::new(DIGITS).expect("two digits are allowed")
}

#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Percentiles {
    pub count: u64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Percentiles { count, p50_ms, p99_ms, max_ms, .. } = self;
        if *count == 0 {
            return f.write_str("none measured");
        }
        write!(f, "p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms, max {max_ms:.1} ms ({count} measured)")
    }
}

impl Latencies {
    pub fn new(start: Instant) -> Self {
        Latencies { start, shards: Default::default() }
    }

    /// Microseconds since the run began: a mark.
    pub fn mark(&self, due: Instant) -> u64 {
        (due.saturating_duration_since(self.start).as_micros() as u64).max(1)
    }

    /// A node received the change that was due at `mark`.
    pub fn seen(&self, node: usize, mark: u64) {
        let elapsed = self.start.elapsed();
        self.record(node, elapsed, (elapsed.as_micros() as u64).saturating_sub(mark));
    }

    /// Something took so many microseconds until now.
    pub fn took(&self, node: usize, micros: u64) {
        self.record(node, self.start.elapsed(), micros);
    }

    fn record(&self, node: usize, elapsed: Duration, took: u64) {
        let took = took.max(1);
        let mut shard = lock(&self.shards[node % SHARDS]);
        shard.phase += took;
        let second = elapsed.as_secs() as usize;
        while shard.seconds.len() <= second {
            shard.seconds.push(empty());
        }
        shard.seconds[second] += took;
    }

    /// A phase begins.
    pub fn begin(&self) {
        self.shards.iter().for_each(|shard| lock(shard).phase.reset());
    }

    pub fn since_begin(&self) -> Percentiles {
        self.all(|shard, all| all.add(&shard.phase).expect("both resize themselves"))
    }

    /// Of what was received in those seconds of the run.
    pub fn between(&self, seconds: Range<usize>) -> Percentiles {
        self.all(|shard, all| {
            for histogram in shard.seconds.iter().take(seconds.end).skip(seconds.start) {
                all.add(histogram).expect("both resize themselves");
            }
        })
    }

    fn all(&self, add: impl Fn(&Shard, &mut Histogram<u64>)) -> Percentiles {
        let mut all = empty();
        self.shards.iter().for_each(|shard| add(&lock(shard), &mut all));
        if all.is_empty() {
            return Percentiles::default();
        }
        let ms = |micros: u64| Duration::from_micros(micros).as_secs_f64() * 1e3;
        let at = |quantile| ms(all.value_at_quantile(quantile));
        Percentiles {
            count: all.len(),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            max_ms: ms(all.max()),
        }
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_late_counts_from_when_it_was_due() {
        let start = Instant::now().checked_sub(Duration::from_secs(3)).expect("three seconds ago");
        let latencies = Latencies::new(start);
        assert_eq!(latencies.between(0..10), Percentiles::default());
        let due = latencies.mark(start + Duration::from_secs(1));
        for node in 0..100 {
            latencies.seen(node, due);
        }
        let all = latencies.between(0..10);
        assert_eq!(all.count, 100);
        assert!(all.p50_ms >= 1_980.0 && all.p99_ms < 60_000.0, "{all:?}");
        assert_eq!(latencies.between(0..3).count, 0);
        assert_eq!(latencies.since_begin(), all);
        latencies.begin();
        assert_eq!((latencies.since_begin().count, latencies.between(0..10).count), (0, 100));
    }

    #[test]
    fn nothing_measured_is_no_zero() {
        let edits = Percentiles { count: 1, p50_ms: 1.0, p99_ms: 2.0, max_ms: 3.0, ..Percentiles::default() };
        assert_eq!(edits.to_string(), "p50 1.0 ms, p99 2.0 ms, max 3.0 ms (1 measured)");
        assert_eq!(Percentiles::default().to_string(), "none measured");
    }
}
