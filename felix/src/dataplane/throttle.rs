//! How fast passes may follow one another.

use std::time::{Duration, Instant};

/// Passes that may follow one another at once, and how fast that allowance comes back.
const BURST: f64 = 10.0;
const PASSES_PER_SECOND: f64 = 10.0;

/// A token bucket: bursts go through, a stream is slowed down, and what comes after quiet is not delayed.
pub struct Throttle {
    tokens: f64,
    at: Instant,
}

impl Throttle {
    pub fn full(now: Instant) -> Throttle {
        Throttle { tokens: BURST, at: now }
    }

    fn available(&self, now: Instant) -> f64 {
        let filled = now.saturating_duration_since(self.at).as_secs_f64() * PASSES_PER_SECOND;
        (self.tokens + filled).min(BURST)
    }

    pub fn admit(&mut self, now: Instant) -> bool {
        let tokens = self.available(now);
        let admitted = tokens >= 1.0;
        (self.tokens, self.at) = (if admitted { tokens - 1.0 } else { tokens }, now);
        admitted
    }

    /// When the next pass is admitted.
    pub fn next(&self, now: Instant) -> Instant {
        let missing = (1.0 - self.available(now)).max(0.0);
        now + Duration::from_secs_f64(missing / PASSES_PER_SECOND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_a_stream_is_slowed_and_quiet_fills_up() {
        let start = Instant::now();
        let mut throttle = Throttle::full(start);
        let admitted = (0..30).filter(|_| throttle.admit(start)).count();
        assert_eq!(admitted, 10);
        let next = throttle.next(start);
        assert!(next > start && next <= start + Duration::from_millis(101));
        assert!(throttle.admit(start + Duration::from_millis(105)));
        let later = start + Duration::from_secs(60);
        assert_eq!(throttle.next(later), later);
        assert_eq!((0..30).filter(|_| throttle.admit(later)).count(), 10);
    }
}
