//! Waiting times between attempts: doubling, capped, jittered, reset on success.
//!
//! Jitter is half of the step: a wait is drawn from `[step/2, step]`, so that a fleet that lost its server at
//! one moment does not come back at one moment, and the wait never shrinks to nothing.

use std::time::Duration;

use rand::Rng;

#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    step: Duration,
}

impl Backoff {
    /// `first` is the first step and `cap` the largest; a cap below `first` is read as `first`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Backoff { first, cap: cap.max(first), step: first }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        self.next_with(&mut rand::rng())
    }

    /// The next wait, with the given randomness.
    pub fn next_with(&mut self, random: &mut impl Rng) -> Duration {
        let step = self.step;
        self.step = step.saturating_mul(2).min(self.cap);
        step.mul_f64(random.random_range(0.5..=1.0))
    }

    /// To be called on success: the next wait is a first one again.
    pub fn reset(&mut self) {
        self.step = self.first;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    proptest! {
        #[test]
        fn waits_stay_between_half_the_first_step_and_the_cap(
            first in 1u64..5_000, cap in 1u64..60_000, attempts in 1usize..80, seed: u64,
        ) {
            let (first, cap) = (Duration::from_millis(first), Duration::from_millis(cap));
            let mut random = StdRng::seed_from_u64(seed);
            let mut backoff = Backoff::new(first, cap);
            for _ in 0..attempts {
                let wait = backoff.next_with(&mut random);
                prop_assert!(wait >= first / 2, "{wait:?}");
                prop_assert!(wait <= cap.max(first), "{wait:?}");
            }
            backoff.reset();
            prop_assert!(backoff.next_with(&mut random) <= first);
        }

        #[test]
        fn steps_double_until_the_cap(first in 1u64..1_000, doublings in 0u32..10, seed: u64) {
            let first = Duration::from_millis(first);
            let cap = first * 2u32.pow(doublings);
            let mut random = StdRng::seed_from_u64(seed);
            let mut backoff = Backoff::new(first, cap);
            for n in 0..doublings + 3 {
                let step = (first * 2u32.pow(n.min(doublings))).min(cap);
                let wait = backoff.next_with(&mut random);
                prop_assert!(wait >= step / 2 && wait <= step, "{n}: {wait:?} of {step:?}");
            }
        }
    }
}
