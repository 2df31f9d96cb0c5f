//! List and watch: turns a datastore into one ordered stream of events that never loses a change.
//!
//! Rules the stream keeps:
//! - A `Snapshot` comes first and after every gap (compaction, another history); between two snapshots
//!   revisions only grow. Connection failures cause no snapshot: the watch resumes where it was.
//! - The first snapshot lies in the past where that is cheap (`HISTORY` revisions), so that deletions of
//!   that time are known. It is preceded by a `Proof`: the state is current once that revision is reached.
//! - `Proof` comes from linearizable reads that know nothing of the watch. It says which revision existed
//!   at that time, never that the watch has delivered it.
//! - `Disconnected` comes once per outage.
//!
//! Each source has its own machine; one reader proves all of them, in turn. Events carry the source's number.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::{Error, Event, Head, Listing, Revision, Source};

mod backoff;
mod machine;
#[cfg(test)]
mod tests;

use machine::{Health, Machine};

/// How far in the past the first listing is taken.
pub const HISTORY: Revision = 20_000;

/// Between reads of the newest revision, of one source and of several [E2, E3].
const PROOF_INTERVAL: Duration = Duration::from_secs(1);
const PROOF_INTERVAL_IN_TURN: Duration = Duration::from_secs(2);
/// Without a successful read for so long the watch is not trusted to be alive either.
const PROOF_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub enum SyncEvent {
    /// Everything at `listing.revision`; replaces whatever was known. Keys in `listing.findings` exist.
    Snapshot {
        listing: Listing,
        history: String,
    },
    /// Every change up to `revision`, complete.
    Events {
        revision: Revision,
        events: Vec<Event>,
    },
    /// Nothing changed up to `revision`.
    Progress {
        revision: Revision,
    },
    /// A linearizable read.
    Proof(Head),
    Disconnected {
        reason: String,
    },
}

/// Follows `sources` until `cancel` fires or `out` is closed. Never gives up. `asks` are wishes for a proof of
/// one source before its turn.
pub async fn run(
    sources: Vec<Arc<dyn Source>>,
    out: mpsc::Sender<(usize, SyncEvent)>,
    asks: mpsc::Receiver<usize>,
    cancel: CancellationToken,
) {
    let (health, observed) = watch::channel(Health::Unknown);
    let down = AtomicUsize::new(0);
    let follow = sources.iter().enumerate().map(|(index, source)| {
        let mut machine = Machine::new(observed.clone(), &down);
        let out = &out;
        async move {
            loop {
                if let Some(event) = machine.step(source.as_ref()).await
                    && out.send((index, event)).await.is_err()
                {
                    return;
                }
            }
        }
    });
    tokio::select! {
        () = cancel.cancelled() => {}
        _ = futures::future::select_all(follow.map(Box::pin)) => {}
        () = prove(&sources, &out, asks, &health) => {}
    }
}

/// Reads the newest revision of one source after the other, and of those asked for. Returns when `out` is closed.
async fn prove(
    sources: &[Arc<dyn Source>],
    out: &mpsc::Sender<(usize, SyncEvent)>,
    mut asks: mpsc::Receiver<usize>,
    health: &watch::Sender<Health>,
) {
    let interval = if sources.len() == 1 { PROOF_INTERVAL } else { PROOF_INTERVAL_IN_TURN };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut proven = Instant::now();
    let mut refused = 0;
    let mut turn = (0..sources.len()).cycle();
    loop {
        // Many agents that come at once wish for the same.
        let mut wanted = BTreeSet::new();
        tokio::select! {
            _ = ticks.tick() => wanted.extend(turn.next()),
            Some(asked) = asks.recv() => wanted.extend((asked < sources.len()).then_some(asked)),
        }
        while let Ok(asked) = asks.try_recv() {
            wanted.extend((asked < sources.len()).then_some(asked));
        }
        for index in wanted {
            match sources[index].head().await {
                Ok(head) => {
                    proven = Instant::now();
                    refused = 0;
                    health.send_replace(Health::Proven);
                    if out.send((index, SyncEvent::Proof(head))).await.is_err() {
                        return;
                    }
                }
                // It is there, and refuses: one kind of many may not be listed by this account, and the watches
                // of the others are not to suffer. When all are refused, that is another matter.
                Err(error @ Error::Invalid { .. }) if refused + 1 < sources.len() => {
                    refused += 1;
                    proven = Instant::now();
                    tracing::debug!(%error, source = sources[index].name(), "the datastore refuses a read");
                }
                Err(error) if proven.elapsed() >= PROOF_PATIENCE => {
                    health.send_replace(Health::Lost(error.to_string()));
                }
                Err(error) => {
                    tracing::debug!(%error, source = sources[index].name(), "datastore did not answer a read");
                }
            }
        }
    }
}
