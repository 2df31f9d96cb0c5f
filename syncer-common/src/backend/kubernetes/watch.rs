//! The watch of one kind.
//!
//! The server ends a watch now and then (it is asked to, after some five minutes), and one that has said
//! nothing for 75 s, not even a bookmark, is not trusted. Both are opened again from where they were, without
//! telling anybody, at least half a second apart. Each time the newest revision and the history are read
//! first: the server does not refuse a watch from a revision that it does not have yet, it just says
//! nothing until it has.
//!
//! Updates that change nothing of ours (heartbeats of nodes, most of a pod's status) only move the
//! position; many at once move it once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http_body_util::BodyExt;
use kube::client::Body;
use tokio::time::Instant;

use super::api::Call;
use super::collection;
use super::connection::causes;
use super::failure::{Failure, Refusal, full_name};
use super::kind::{Kind, Served};
use super::known::Known;
use super::object::{self, Line};
use crate::backend::{Error, Event, Result, Revision, Watch, WatchItem};

/// The server ends a watch after this, more or less, so that watches spread over the API servers.
const LIFE: Duration = Duration::from_secs(290);
/// No event is so long: objects are limited to a few MiB.
const LONGEST_LINE: usize = 64 << 20;

pub(super) async fn start(kind: Arc<Kind>, after: Revision) -> Result<Watch> {
    let history = kind.api.history().await?;
    let phase = open(&kind, after).await?;
    let watch = KindWatch {
        after,
        history,
        phase,
        opened: Instant::now(),
        known: Some(kind.lend(after)),
        unsaid: false,
        kind,
    };
    if matches!(watch.phase, Phase::Absent) {
        watch.tell_absence();
    }
    Ok(futures::stream::unfold(watch, KindWatch::next).boxed())
}

enum Phase {
    Open {
        served: Served,
        lines: Lines,
    },
    /// Ended in good order, or silent for too long.
    Ended,
    /// The server does not know the kind.
    Absent,
    Failed,
}

struct KindWatch {
    kind: Arc<Kind>,
    after: Revision,
    history: String,
    phase: Phase,
    opened: Instant,
    /// Always there until the end.
    known: Option<Known>,
    /// The position has moved, and nothing was said about it.
    unsaid: bool,
}

impl Drop for KindWatch {
    fn drop(&mut self) {
        if let Some(known) = self.known.take() {
            self.kind.give_back(known);
        }
    }
}

async fn open(kind: &Kind, after: Revision) -> Result<Phase> {
    let watch = |failure| kind.error("watch", failure, after);
    match kind.newest().await.map_err(|failure| kind.error("list", failure, after))? {
        None => return Ok(Phase::Absent),
        Some(head) if head < after => return Err(Error::Rewound { head, seen: after }),
        Some(_) => {}
    }
    let served = kind.served().await.map_err(watch)?;
    let seconds = LIFE.mul_f64(rand::random_range(0.9..1.1)).as_secs();
    let path = format!(
        "{}?watch=true&allowWatchBookmarks=true&resourceVersion={after}&timeoutSeconds={seconds}",
        collection(&served.resource, "")
    );
    match kind.api.stream(&Call::get(path, kind.api.timing.request)).await {
        Ok(body) => Ok(Phase::Open { served, lines: Lines::new(body) }),
        Err(failure) if failure.missing() => Ok(Phase::Absent),
        Err(failure) => Err(failure.into_error("watch", &served.resource, after)),
    }
}

impl KindWatch {
    async fn next(mut self) -> Option<(Result<WatchItem>, Self)> {
        loop {
            let result = match std::mem::replace(&mut self.phase, Phase::Failed) {
                Phase::Failed => return None,
                Phase::Open { served, lines } => self.receive(served, lines).await,
                Phase::Ended => self.reopen().await.map(|()| None),
                Phase::Absent => self.await_kind().await.map(|()| None),
            };
            match result {
                Ok(None) => {}
                Ok(Some(item)) => return Some((Ok(item), self)),
                Err(error) => {
                    self.phase = Phase::Failed;
                    return Some((Err(error), self));
                }
            }
        }
    }

    async fn reopen(&mut self) -> Result<()> {
        tokio::time::sleep_until(self.opened + self.kind.api.timing.reopen).await;
        self.opened = Instant::now();
        if self.kind.api.history().await? != self.history {
            // Whoever follows asks for the history again, and lists.
            let what = format!("watch of {}", self.kind.name);
            return Err(Error::Unavailable { what, reason: "the cluster is another one now".into() });
        }
        self.phase = open(&self.kind, self.after).await?;
        if matches!(self.phase, Phase::Absent) {
            self.tell_absence();
        }
        Ok(())
    }

    fn tell_absence(&self) {
        let objects = self.known.as_ref().map_or(0, Known::len);
        if objects > 0 {
            self.kind.counters.vanished.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                source = self.kind.name,
                objects,
                "the API server no longer knows the kind; that is no proof that its objects are gone, so they stay"
            );
        }
    }

    async fn await_kind(&mut self) -> Result<()> {
        tokio::time::sleep(self.kind.api.timing.absent).await;
        let newest =
            self.kind.newest().await.map_err(|failure| self.kind.error("list", failure, self.after))?;
        if newest.is_some() {
            tracing::info!(source = self.kind.name, "the API server knows the kind now");
            return Err(Error::Compacted { compacted: self.after });
        }
        self.phase = Phase::Absent;
        Ok(())
    }

    /// Handles one line, if one comes.
    async fn receive(&mut self, served: Served, mut lines: Lines) -> Result<Option<WatchItem>> {
        let line = match lines.ready() {
            Some(line) => line,
            // All that has arrived is handled: now say where that leaves us.
            None if std::mem::take(&mut self.unsaid) => {
                self.phase = Phase::Open { served, lines };
                return Ok(Some(WatchItem::Progress { revision: self.after }));
            }
            None => match tokio::time::timeout(self.kind.api.timing.silence, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => {
                    self.phase = Phase::Ended;
                    return Ok(None);
                }
                Ok(Err(reason)) => return Err(self.failed(&served, Failure::NoAnswer(reason))),
                Err(_) => {
                    tracing::debug!(source = self.kind.name, "the watch says nothing; opening another");
                    self.phase = Phase::Ended;
                    return Ok(None);
                }
            },
        };
        let item = self.handle(&served, &line).await;
        self.phase = Phase::Open { served, lines };
        item
    }

    fn failed(&self, served: &Served, failure: Failure) -> Error {
        failure.into_error("watch", &served.resource, self.after)
    }

    fn unreadable(&self, served: &Served, reason: &str) -> Error {
        self.failed(served, Failure::NoAnswer(format!("an event can not be read: {reason}")))
    }

    async fn handle(&mut self, served: &Served, line: &[u8]) -> Result<Option<WatchItem>> {
        let Line { event, object } =
            serde_json::from_slice(line).map_err(|error| self.unreadable(served, &error.to_string()))?;
        if event == "ERROR" {
            return Err(self.refused(served, Refusal::read(0, object.get().as_bytes())).await);
        }
        let Some(revision) = object::revision_of(object) else {
            let reason = format!("{event} without a numeric metadata.resourceVersion");
            return Err(self.unreadable(served, &reason));
        };
        // Nothing older than what was asked for is expected; what is, was said before.
        if revision <= self.after {
            return Ok(None);
        }
        let known = self.known.as_mut().expect("a watch that goes on knows something");
        let events = match event {
            "BOOKMARK" => {
                known.revision = revision;
                self.reach(revision);
                return Ok(Some(WatchItem::Progress { revision }));
            }
            "DELETED" => known.delete(object::path(&served.resource, &served.options, object), revision),
            "ADDED" | "MODIFIED" => {
                known.update(object::convert(&served.resource, &served.options, object, revision))
            }
            other => {
                let reason = format!("{other:?} is not a kind of event");
                return Err(self.unreadable(served, &reason));
            }
        };
        self.reach(revision);
        if events.is_empty() {
            self.kind.counters.skipped.fetch_add(1, Ordering::Relaxed);
            self.unsaid = true;
            return Ok(None);
        }
        let findings = events.iter().filter(|event| matches!(event, Event::Finding(_))).count();
        self.kind.counters.events.fetch_add((events.len() - findings) as u64, Ordering::Relaxed);
        self.kind.counters.findings.fetch_add(findings as u64, Ordering::Relaxed);
        Ok(Some(WatchItem::Events { revision, events }))
    }

    fn reach(&mut self, revision: Revision) {
        self.after = revision;
        self.unsaid = false;
        self.kind.reached(revision);
    }

    /// An error within the watch.
    async fn refused(&mut self, served: &Served, refusal: Refusal) -> Error {
        if refusal.too_large {
            // Either this server lags behind the others, or history went back. A consistent read knows.
            match self.kind.newest().await {
                Ok(Some(head)) if head < self.after => {
                    return Error::Rewound { head, seen: self.after };
                }
                Ok(_) => {
                    let what = format!("kubernetes watch of {}", full_name(&served.resource));
                    return Error::Unavailable { what, reason: "the API server lags behind".into() };
                }
                Err(failure) => return self.kind.error("list", failure, self.after),
            }
        }
        self.failed(served, Failure::Refused(refusal))
    }
}

/// A body, line by line. Safe to drop while it waits.
pub(super) struct Lines {
    body: Body,
    held: BytesMut,
    /// So much of `held` has no line end in it.
    searched: usize,
}

impl Lines {
    pub(super) fn new(body: Body) -> Self {
        Lines { body, held: BytesMut::new(), searched: 0 }
    }

    /// A line that has arrived.
    fn ready(&mut self) -> Option<Bytes> {
        loop {
            let found = self.held[self.searched..].iter().position(|byte| *byte == b'\n');
            let Some(end) = found else {
                self.searched = self.held.len();
                return None;
            };
            let line = self.held.split_to(self.searched + end + 1).freeze();
            self.searched = 0;
            let line = line.slice(..line.len() - 1);
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    }

    /// `None`: the body has ended. Half a line at the end counts for nothing: the object of that event
    /// comes again after the last whole one.
    pub(super) async fn next(&mut self) -> std::result::Result<Option<Bytes>, String> {
        loop {
            if let Some(line) = self.ready() {
                return Ok(Some(line));
            }
            if self.held.len() > LONGEST_LINE {
                return Err(format!("an event is longer than {LONGEST_LINE} bytes"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.held.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(causes(&error)),
            }
        }
    }
}
