//! Finding out what a client holds, where history does not reach: nothing of the state is sent before that.

use std::time::Duration;

use futures::StreamExt;
use proto::sync;
use tokio::time::Instant;
use tonic::Status;

use super::streaming::{Cursor, Snapshot};
use super::{Connection, Phase};
use crate::snapcache::compress;
use crate::syncserver::compare::Compare;

/// For each answer of a client whose state is compared.
const DIGEST_WAIT: Duration = Duration::from_secs(30);

pub(super) struct Comparison {
    compare: Compare,
    cursor: Cursor,
    /// When the client has to have answered.
    until: Instant,
}

impl Comparison {
    pub fn new(cursor: Cursor) -> Self {
        let compare = Compare::new(cursor.kinds);
        Comparison { compare, cursor, until: Instant::now() + DIGEST_WAIT }
    }
}

impl Connection {
    /// Waits for the client's next answer. Its state stands still meanwhile, and so does the cursor.
    pub(super) async fn compare(&mut self) -> Result<(), Status> {
        let Phase::Comparing(comparison) = &mut self.phase else { return Ok(()) };
        // The deletions of a datastore that turned out to be another one prove nothing.
        if self.context.cache.read().forked() {
            self.go_away(sync::GoAway { reason: "the datastore was restored".into(), ..Default::default() });
            return Ok(());
        }
        let until = comparison.until;
        match tokio::time::timeout_at(until, self.events.next()).await {
            Ok(event) => self.on_event(event),
            Err(_) => Err(Status::deadline_exceeded("digests were not answered in time")),
        }
    }

    pub(super) fn on_digest(&mut self, answer: sync::DigestAnswer) -> Result<(), Status> {
        let Phase::Comparing(comparison) = &mut self.phase else {
            return Err(Status::invalid_argument("a digest that nobody has asked for"));
        };
        let messages = {
            let cache = self.context.cache.read();
            comparison.compare.on_answer(answer, &cache).map_err(Status::invalid_argument)?
        };
        comparison.until = Instant::now() + DIGEST_WAIT;
        let zstd = self.zstd;
        self.queue.extend(messages.into_iter().map(|message| match zstd {
            true => compress(&message).unwrap_or(message),
            false => message,
        }));
        if comparison.compare.done() {
            let Phase::Comparing(Comparison { compare, mut cursor, .. }) =
                std::mem::replace(&mut self.phase, Phase::Closed)
            else {
                return Ok(());
            };
            if !compare.whole.is_empty() {
                cursor.snapshot = Some(Snapshot::new(compare.whole, true, cursor.seq));
            }
            self.phase = Phase::Streaming(cursor);
        }
        Ok(())
    }
}
