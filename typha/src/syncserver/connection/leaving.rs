//! Asking a client to go, or to come again: because this replica ends, has too many, or the stream has lasted long enough.

use std::time::{Duration, SystemTime};

use proto::sync::{self, server_message};

use super::{Connection, Phase};
use crate::snapcache::message;

/// Streams whose certificate ends within this time last until then.
const LAST_MOMENTS: Duration = Duration::from_secs(10);

/// How long a stream may last: shorter than its certificates, and no fleet's streams end at one moment.
pub(super) fn lifetime(
    longest: Duration,
    until: Option<SystemTime>,
    now: SystemTime,
    share: f64,
) -> Duration {
    let Some(until) = until else { return longest.mul_f64(1.0 - 0.1 * share) };
    let left = until.duration_since(now).unwrap_or_default();
    // With the same certificate it will come again, and at the very end be refused.
    let left = if left > LAST_MOMENTS { left.mul_f64(0.9 - 0.2 * share) } else { left };
    left.min(longest.mul_f64(1.0 - 0.1 * share))
}

impl Connection {
    /// Asks the client to go to another replica, because this one ends.
    pub(super) fn leave(&mut self, reason: &str, servers: Vec<String>) {
        self.context.metrics.connections_dropped.increment(1);
        self.go_away(sync::GoAway { reason: reason.to_owned(), servers, not_before_millis: 0 });
    }

    /// Asks the client to come again, because its certificate ends or the stream is a day old.
    pub(super) fn renew(&mut self) {
        self.go_away(sync::GoAway { reason: "renew".to_owned(), ..Default::default() });
    }

    /// A stream that has nothing to lose ends at once; the others may find another replica first.
    pub(super) fn go_away(&mut self, go_away: sync::GoAway) {
        match &mut self.phase {
            Phase::Streaming(cursor) => cursor.going_away = true,
            phase => *phase = Phase::Closed,
        }
        self.queue.push_back(message(server_message::Message::GoAway(go_away)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_end_before_their_certificates_and_not_at_one_moment() {
        let (day, now) = (Duration::from_secs(86_400), SystemTime::now());
        let hours = |share, left: Option<u64>| {
            let until = left.map(|hours| now + Duration::from_secs(hours * 3_600));
            lifetime(day, until, now, share).as_secs_f64() / 3_600.0
        };
        assert_eq!((hours(0.0, None), hours(1.0, None)), (24.0, 21.6));
        assert_eq!((hours(0.0, Some(8_760)), hours(1.0, Some(8_760))), (24.0, 21.6));
        assert!(hours(0.0, Some(10)) < 9.01 && hours(1.0, Some(10)) > 6.99);
        // No hundred streams in its last second.
        let last = Duration::from_secs(5);
        assert_eq!(lifetime(day, Some(now + last), now, 0.5), last);
        assert_eq!(lifetime(day, Some(now - last), now, 0.5), Duration::ZERO);
    }
}
