//! When acknowledgements are due: the first at once, under load no more often than changes come.

use std::time::Duration;

use tokio::time::Instant;

/// The least time between two: what is programmed meanwhile is said with the next.
const APART: Duration = Duration::from_millis(100);
/// The last one is repeated so often: the server counts a node that it hears from as live.
const AGAIN: Duration = Duration::from_secs(10);

pub(crate) struct Acks {
    said: Option<Instant>,
    due: Instant,
}

impl Acks {
    pub fn new(now: Instant) -> Self {
        Acks { said: None, due: now + AGAIN }
    }

    pub fn due(&self) -> Instant {
        self.due
    }

    /// Something was programmed.
    pub fn on_programmed(&mut self, now: Instant) {
        self.due = self.said.map_or(now, |said| said + APART);
    }

    pub fn on_said(&mut self, now: Instant) {
        (self.said, self.due) = (Some(now), now + AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_is_due_at_once_the_next_after_a_while_and_the_last_again() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut acks = Acks::new(start);
        assert_eq!(acks.due(), start + AGAIN);
        acks.on_programmed(at(5));
        assert!(acks.due() <= at(5), "after a quiet time");
        acks.on_said(at(5));
        for millis in [6, 50, 104] {
            acks.on_programmed(at(millis));
            assert_eq!(acks.due(), at(105), "all of them with the next");
        }
        acks.on_said(at(105));
        assert_eq!(acks.due(), at(105) + AGAIN);
        acks.on_programmed(at(900));
        assert!(acks.due() <= at(900), "quiet again");
    }
}
