//! The state machine: one `step` does one thing and yields at most one event.
//!
//! `Start → (Snapshot) → Resume ⇄ Watching`; compaction, a rewound or another history lead back to `List`.

use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use super::backoff::Backoff;
use super::{HISTORY, SyncEvent};
use crate::backend::{Datastore, Error, Revision, Watch, WatchItem};

/// A watch that lived so long was a good one: the next failure is a new one.
const SETTLED: Duration = Duration::from_secs(10);

/// How long the watch may take from a listing in the past to the revision that was the newest at the start. A
/// server that reports progress only now and then (etcd before 3.4.25), and whose newest revision is not of ours,
/// would otherwise leave it unproven for minutes: listing the newest revision proves it at once.
const CATCH_UP: Duration = Duration::from_secs(3);

/// What the reads beside the watch say about the datastore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Unknown,
    Proven,
    Lost(String),
}

enum State {
    /// Nothing is known: find out where the past is.
    Start,
    /// List at that revision (`None`: the newest).
    List {
        at: Option<Revision>,
    },
    /// Watch from `after`, in that history.
    Resume {
        after: Revision,
        history: String,
    },
    Watching {
        stream: Watch,
        after: Revision,
        history: String,
        since: Instant,
    },
    /// Wait, then go on.
    Wait {
        until: Instant,
        then: Box<State>,
    },
}

pub(super) struct Machine {
    state: State,
    backoff: Backoff,
    health: watch::Receiver<Health>,
    /// An outage was reported and nothing has shown its end.
    down: bool,
    /// Listings in a row that ended in compaction.
    compactions: u32,
    /// The newest revision at the start, until it is reached.
    target: Revision,
}

impl Machine {
    pub(super) fn new(health: watch::Receiver<Health>) -> Self {
        Self {
            state: State::Start,
            backoff: Backoff::default(),
            health,
            down: false,
            compactions: 0,
            target: 0,
        }
    }

    pub(super) async fn step(&mut self, store: &dyn Datastore) -> Option<SyncEvent> {
        let (event, next) = match std::mem::replace(&mut self.state, State::Start) {
            State::Start => match store.head().await {
                Ok(head) => {
                    let at = head.revision.saturating_sub(HISTORY).max(1).min(head.revision);
                    // An empty history has no revision to list at.
                    let at = (at > 0).then_some(at);
                    self.target = head.revision;
                    (Some(SyncEvent::Proof(head)), State::List { at })
                }
                Err(error) => self.failed(error, State::Start),
            },
            State::List { at } => self.list(store, at).await,
            State::Resume { after, history } => self.resume(store, after, history).await,
            State::Watching { stream, after, history, since } => {
                self.watch(stream, after, history, since).await
            }
            State::Wait { until, then } => {
                tokio::time::sleep_until(until).await;
                (None, *then)
            }
        };
        self.state = next;
        event
    }

    async fn list(&mut self, store: &dyn Datastore, at: Option<Revision>) -> (Option<SyncEvent>, State) {
        let result = async { Ok((store.history().await?, store.list(at).await?)) }.await;
        match result {
            Ok((history, listing)) => {
                self.recovered();
                self.compactions = 0;
                let after = listing.revision;
                tracing::info!(
                    revision = after,
                    objects = listing.items.len(),
                    history,
                    "listed the datastore"
                );
                let next = State::Resume { after, history: history.clone() };
                (Some(SyncEvent::Snapshot { listing, history }), next)
            }
            Err(error @ Error::Compacted { .. }) => {
                // The past is gone, or, rarely, compaction overtook a listing of the present.
                self.compactions += 1;
                if self.compactions > 2 {
                    return self.failed(error, State::List { at: None });
                }
                (None, State::List { at: None })
            }
            Err(error) => self.failed(error, State::List { at }),
        }
    }

    async fn resume(
        &mut self,
        store: &dyn Datastore,
        after: Revision,
        history: String,
    ) -> (Option<SyncEvent>, State) {
        let result = async {
            let found = store.history().await?;
            if found != history {
                return Ok(Err(found));
            }
            Ok(Ok(store.watch(after).await?))
        }
        .await;
        match result {
            Ok(Ok(stream)) => (None, State::Watching { stream, after, history, since: Instant::now() }),
            Ok(Err(found)) => {
                tracing::warn!(before = history, now = found, "the datastore has another history; listing");
                (None, State::List { at: None })
            }
            Err(error) => self.interrupted(error, after, history),
        }
    }

    async fn watch(
        &mut self,
        mut stream: Watch,
        after: Revision,
        history: String,
        since: Instant,
    ) -> (Option<SyncEvent>, State) {
        let mut health = self.health.clone();
        let item = tokio::select! {
            biased;
            item = stream.next() => item,
            lost = lost(&mut health) => Some(Err(Error::Unavailable {
                what: "watch".into(),
                reason: format!("reads fail as well: {lost}"),
            })),
            () = tokio::time::sleep_until(since + CATCH_UP), if after < self.target => {
                tracing::info!(at = after, newest = self.target, "the watch proves nothing newer; listing the newest revision");
                self.target = 0;
                return (None, State::List { at: None });
            }
            () = tokio::time::sleep_until(since + SETTLED), if since.elapsed() < SETTLED => {
                // Quiet, but alive: what fails from now on is another outage.
                if matches!(*self.health.borrow(), Health::Proven) {
                    self.recovered();
                }
                return (None, State::Watching { stream, after, history, since });
            }
        };
        match item {
            Some(Ok(WatchItem::Events { revision, events })) => {
                self.recovered();
                let next = State::Watching { stream, after: revision, history, since };
                (Some(SyncEvent::Events { revision, events }), next)
            }
            Some(Ok(WatchItem::Progress { revision })) => {
                self.recovered();
                let next = State::Watching { stream, after: revision, history, since };
                (Some(SyncEvent::Progress { revision }), next)
            }
            Some(Err(error)) => self.interrupted(error, after, history),
            None => {
                let error = Error::Unavailable { what: "watch".into(), reason: "ended".into() };
                self.interrupted(error, after, history)
            }
        }
    }

    /// The watch failed or did not begin.
    fn interrupted(&mut self, error: Error, after: Revision, history: String) -> (Option<SyncEvent>, State) {
        match error {
            Error::Compacted { compacted } => {
                tracing::warn!(after, compacted, "the datastore has compacted what the watch needs; listing");
                (None, State::List { at: None })
            }
            Error::Rewound { head, seen } => {
                tracing::error!(head, seen, "the datastore was restored to an older state; listing");
                (None, State::List { at: None })
            }
            error => self.failed(error, State::Resume { after, history }),
        }
    }

    fn recovered(&mut self) {
        if self.down {
            tracing::info!("the datastore answers again");
        }
        self.down = false;
        self.backoff.reset();
    }

    /// Waits before `then`; reports the outage if it is a new one.
    fn failed(&mut self, error: Error, then: State) -> (Option<SyncEvent>, State) {
        let next = State::Wait { until: Instant::now() + self.backoff.next(), then: Box::new(then) };
        if self.down {
            return (None, next);
        }
        self.down = true;
        match &error {
            Error::Invalid { .. } => tracing::error!(%error, "the datastore refuses; trying again"),
            _ => tracing::warn!(%error, "the datastore does not answer; trying again"),
        }
        (Some(SyncEvent::Disconnected { reason: error.to_string() }), next)
    }
}

/// Waits until the reads beside the watch have failed for too long, and says why.
async fn lost(health: &mut watch::Receiver<Health>) -> String {
    let found =
        health.wait_for(|health| matches!(health, Health::Lost(_))).await.map(|health| health.clone());
    match found {
        Ok(Health::Lost(reason)) => reason,
        // The reader is gone: the run is ending.
        _ => std::future::pending().await,
    }
}
