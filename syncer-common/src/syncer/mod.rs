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

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::{Datastore, Event, Head, Listing, Revision};

mod backoff;
mod machine;
#[cfg(test)]
mod tests;

use machine::{Health, Machine};

/// How far in the past the first listing is taken.
pub const HISTORY: Revision = 20_000;

const PROOF_INTERVAL: Duration = Duration::from_secs(1);
/// Without a successful read for so long the watch is not trusted to be alive either.
const PROOF_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub enum SyncEvent {
    /// Everything at `listing.revision`; replaces whatever was known. Keys in `listing.oversize` exist.
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

/// Follows `store` until `cancel` fires or `out` is closed. Never gives up.
pub async fn run(store: Arc<dyn Datastore>, out: mpsc::Sender<SyncEvent>, cancel: CancellationToken) {
    let (health, observed) = watch::channel(Health::Unknown);
    let follow = async {
        let mut machine = Machine::new(observed);
        loop {
            if let Some(event) = machine.step(store.as_ref()).await
                && out.send(event).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = follow => {}
        () = prove(store.as_ref(), &out, &health) => {}
    }
}

/// Reads the newest revision once a second. Returns when `out` is closed.
async fn prove(store: &dyn Datastore, out: &mpsc::Sender<SyncEvent>, health: &watch::Sender<Health>) {
    let mut ticks = tokio::time::interval(PROOF_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut proven = Instant::now();
    loop {
        ticks.tick().await;
        match store.head().await {
            Ok(head) => {
                proven = Instant::now();
                health.send_replace(Health::Proven);
                if out.send(SyncEvent::Proof(head)).await.is_err() {
                    return;
                }
            }
            Err(error) if proven.elapsed() >= PROOF_PATIENCE => {
                health.send_replace(Health::Lost(error.to_string()));
            }
            Err(error) => tracing::debug!(%error, "datastore did not answer a read"),
        }
    }
}
