//! The state machine: one `step` does one thing and yields at most one event.
//!
//! `Start → (Snapshot) → Resume ⇄ Watching`; compaction, a rewound or another history lead back to `List`.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use super::backoff::Backoff;
use super::{HISTORY, SyncEvent};
use crate::backend::{Error, Head, Revision, Source, Watch, WatchItem};

/// A watch that lived so long was a good one: the next failure is a new one.
const SETTLED: Duration = Duration::from_secs(10);

/// How long the watch may take from a listing in the past to the revision that was the newest at the start. A
/// server that reports progress only now and then (etcd before 3.4.25), and whose newest revision is not of ours,
/// would otherwise leave it unproven for minutes: listing the newest revision proves it at once.
const CATCH_UP: Duration = Duration::from_secs(3);

/// What the reads beside the watch say about the datasource.
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

pub(super) struct Machine<'a> {
    state: State,
    /// Comes before the next step.
    next: Option<SyncEvent>,
    backoff: Backoff,
    health: watch::Receiver<Health>,
    /// An outage was reported and nothing has shown its end.
    down: bool,
    /// Sources that are down: the first one is worth a warning.
    all_down: &'a AtomicUsize,
    /// Listings in a row that ended in compaction.
    compactions: u32,
    /// The newest revision at the start, until it is reached.
    target: Revision,
}

impl<'a> Machine<'a> {
    pub(super) fn new(health: watch::Receiver<Health>, all_down: &'a AtomicUsize) -> Self {
        Self {
            state: State::Start,
            next: None,
            backoff: Backoff::default(),
            health,
            down: false,
            all_down,
            compactions: 0,
            target: 0,
        }
    }

    pub(super) async fn step(&mut self, source: &dyn Source) -> Option<SyncEvent> {
        if let Some(event) = self.next.take() {
            return Some(event);
        }
        let (event, next) = match std::mem::replace(&mut self.state, State::Start) {
            State::Start if !source.lists_the_past() => (None, State::List { at: None }),
            State::Start => match source.head().await {
                Ok(head) => {
                    let at = head.revision.saturating_sub(HISTORY).max(1).min(head.revision);
                    // An empty history has no revision to list at.
                    let at = (at > 0).then_some(at);
                    self.target = head.revision;
                    (Some(SyncEvent::Proof(head)), State::List { at })
                }
                Err(error) => self.failed(error, State::Start),
            },
            State::List { at } => self.list(source, at).await,
            State::Resume { after, history } => self.resume(source, after, history).await,
            State::Watching { stream, after, history, since } => {
                self.watch(source, stream, after, history, since).await
            }
            State::Wait { until, then } => {
                tokio::time::sleep_until(until).await;
                (None, *then)
            }
        };
        self.state = next;
        event
    }

    async fn list(&mut self, source: &dyn Source, at: Option<Revision>) -> (Option<SyncEvent>, State) {
        let started = std::time::Instant::now();
        let result = async { Ok((source.history().await?, source.list(at).await?)) }.await;
        match result {
            Ok((history, listing)) => {
                self.recovered();
                self.compactions = 0;
                let after = listing.revision;
                if at.is_none() {
                    self.next = Some(SyncEvent::Proof(Head { revision: after, started }));
                }
                tracing::info!(
                    source = source.name(),
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
        source: &dyn Source,
        after: Revision,
        history: String,
    ) -> (Option<SyncEvent>, State) {
        let result = async {
            let found = source.history().await?;
            if found != history {
                return Ok(Err(found));
            }
            Ok(Ok(source.watch(after).await?))
        }
        .await;
        match result {
            Ok(Ok(stream)) => (None, State::Watching { stream, after, history, since: Instant::now() }),
            Ok(Err(found)) => {
                tracing::warn!(before = history, now = found, "the datastore has another history; listing");
                (None, State::List { at: None })
            }
            Err(error) => self.interrupted(source, error, after, history),
        }
    }

    async fn watch(
        &mut self,
        source: &dyn Source,
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
            Some(Err(error)) => self.interrupted(source, error, after, history),
            None => {
                let error = Error::Unavailable { what: "watch".into(), reason: "ended".into() };
                self.interrupted(source, error, after, history)
            }
        }
    }

    /// The watch failed or did not begin.
    fn interrupted(
        &mut self,
        source: &dyn Source,
        error: Error,
        after: Revision,
        history: String,
    ) -> (Option<SyncEvent>, State) {
        match error {
            Error::Compacted { compacted } => {
                // Usual for quiet kinds after a restart of the Kubernetes API server.
                tracing::info!(
                    source = source.name(),
                    after,
                    compacted,
                    "the datastore has compacted what the watch needs; listing"
                );
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
        if std::mem::take(&mut self.down) && self.all_down.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::info!("the datastore answers again");
        }
        self.backoff.reset();
    }

    /// Waits before `then`; reports the outage if it is a new one.
    fn failed(&mut self, error: Error, then: State) -> (Option<SyncEvent>, State) {
        let next = State::Wait { until: Instant::now() + self.backoff.next(), then: Box::new(then) };
        if std::mem::replace(&mut self.down, true) {
            return (None, next);
        }
        let others = self.all_down.fetch_add(1, Ordering::Relaxed);
        match &error {
            Error::Invalid { .. } => tracing::error!(%error, "the datastore refuses; trying again"),
            // With many sources one outage is one line.
            _ if others > 0 => tracing::debug!(%error, "the datastore does not answer; trying again"),
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
