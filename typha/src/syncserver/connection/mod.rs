//! One stream: a cursor over the cache.
//!
//! `next` yields the next message and is called only when the socket can take one, so a slow client's stream
//! stands still, at no cost, and is then given the latest value of what changed meanwhile.
//!
//! Order on the wire: hello; for a snapshot, batches until the cursor has reached the head, `SnapshotEnd`;
//! then the status of the kinds and a cut; for a digest, questions and answers, what they have shown to differ, and
//! the same end; from there batches, each run of them ended by a cut. Before the
//! cache is in sync there is a status RESYNC, heartbeats and nothing else: no entry, no deletion, no end of a
//! snapshot.
//!
//! `greeting`: up to the verdict on the client's token. `comparing`: digests. `streaming`: the cursor. `leaving`: how a
//! client is asked to go. `events`: what any of them is interrupted by.

mod comparing;
mod events;
mod greeting;
mod leaving;
mod streaming;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use proto::sync::report::Report;
use proto::sync::{self, ClientMessage, SyncState, client_message, server_message};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::Context;
use super::accept::Peer;
use super::registry::Client;
use crate::secrets::Feed;
use crate::snapcache::{KindSet, Progress, message};
use comparing::Comparison;
use events::{Event, Events};
use streaming::Cursor;

const FORKED: &str = "FORKED: the datastore's history is not the one that was followed; deletions are held until \
                      an operator sets AcceptHistory";

pub(super) struct Connection {
    context: Arc<Context>,
    /// None before the hello.
    events: Events,
    peer: Peer,
    /// It takes compressed messages.
    zstd: bool,
    queue: VecDeque<Bytes>,
    progress: watch::Receiver<Progress>,
    registered: Option<Registered>,
    /// The passwords of its node, if it may have them.
    secrets: Option<Feed>,
    phase: Phase,
}

enum Phase {
    Hello(Box<Streaming<ClientMessage>>),
    /// The hello is answered; the snapshot begins when the cache is in sync.
    NotInSync {
        kinds: KindSet,
        since: Instant,
    },
    /// Finding out what the client holds; nothing of the state is sent before that.
    Comparing(Comparison),
    Streaming(Cursor),
    Closed,
}

/// In the registry for as long as the stream lives.
struct Registered {
    context: Arc<Context>,
    client: Arc<Client>,
    id: u64,
    streaming: bool,
}

impl Registered {
    /// Changes up to this position have been sent.
    fn on_changes(&self, seq: u64) {
        self.client.on_sent(seq);
        if let Some(traces) = &self.context.options.traces {
            traces.sent(self.id, (&self.client.node, &self.client.agent), seq);
        }
    }

    fn on_ack(&self, seq: u64) {
        self.client.on_ack(seq);
        if let Some(traces) = &self.context.options.traces {
            traces.acked(self.id, seq);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(traces) = &self.context.options.traces {
            traces.left(self.id);
        }
        self.context.registry.remove(self.id);
        self.context.reports.close(self.id);
        if self.streaming {
            self.context.metrics.connections_streaming.decrement(1.0);
        }
        tracing::info!(
            node = self.client.node,
            agent = self.client.agent,
            sent = self.client.sent(),
            acked = self.client.acked(),
            "agent left"
        );
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.context.metrics.connections_active.decrement(1.0);
    }
}

impl Connection {
    pub fn new(context: Arc<Context>, inbound: Streaming<ClientMessage>, peer: Peer, zstd: bool) -> Self {
        context.metrics.connections_active.increment(1.0);
        let progress = context.cache.progress();
        Connection {
            context,
            events: Events::new(),
            peer,
            zstd,
            queue: VecDeque::new(),
            progress,
            registered: None,
            secrets: None,
            phase: Phase::Hello(Box::new(inbound)),
        }
    }

    /// The next message; nothing at the end of the stream.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(bytes) = self.queue.pop_front() {
                self.context.metrics.sent_bytes.increment(bytes.len() as u64);
                self.context.sent_bytes.fetch_add(bytes.len() as u64, Relaxed);
                self.context.sent_frames.fetch_add(1, Relaxed);
                return Ok(Some(bytes));
            }
            // Boxed, what is not for every message: the future is moved with each.
            match &mut self.phase {
                Phase::Hello(_) => Box::pin(self.greet()).await?,
                Phase::NotInSync { .. } => Box::pin(self.await_sync()).await?,
                Phase::Comparing(_) => Box::pin(self.compare()).await?,
                Phase::Streaming(_) => self.step().await?,
                Phase::Closed => return Ok(None),
            }
        }
    }

    /// What comes in between, whatever the phase.
    fn on_event(&mut self, event: Option<Event>) -> Result<(), Status> {
        let going_away = matches!(&self.phase, Phase::Streaming(cursor) if cursor.going_away);
        match event {
            Some(Event::Message(message)) => self.on_message((*message)?)?,
            // It cannot answer.
            Some(Event::Silent) if matches!(self.phase, Phase::Comparing(_)) => self.phase = Phase::Closed,
            Some(Event::Heartbeat) => self.on_heartbeat(),
            Some(Event::Draining) if !going_away => self.leave("draining", self.context.targets()),
            Some(Event::Away(servers)) if !going_away => self.leave("rebalancing", servers),
            Some(Event::Renewal) if !going_away => self.renew(),
            Some(Event::Expired) if going_away => self.phase = Phase::Closed,
            Some(Event::Closed) | None => self.phase = Phase::Closed,
            // The next step asks for passwords by itself; and one goes away once.
            Some(_) => {}
        }
        Ok(())
    }

    fn on_message(&mut self, received: ClientMessage) -> Result<(), Status> {
        let Some(registered) = &self.registered else { return Ok(()) };
        let client = &registered.client;
        client.on_heard();
        match received.message {
            Some(client_message::Message::Ack(ack)) => {
                let own = ack.epoch == self.context.cache.read().epoch();
                registered.on_ack(if own { ack.seq } else { 0 });
            }
            Some(client_message::Message::Report(report)) => {
                self.context.metrics.reports.increment(1);
                if let Some(Report::Node(node)) = &report.report {
                    client.on_problems(&node.problems);
                }
                let taken = report.report.map(|report| {
                    self.context.reports.take(registered.id, report, std::time::Instant::now())
                });
                if let Some(Err(refusal)) = taken {
                    self.context.metrics.reports_refused.increment(1);
                    tracing::warn!(node = client.node, agent = client.agent, %refusal, "report refused");
                }
            }
            Some(client_message::Message::Digest(answer)) => return self.on_digest(answer),
            Some(client_message::Message::Hello(_)) => {
                return Err(Status::invalid_argument("a stream has one hello, and this one has had it"));
            }
            // A later protocol version's message.
            None => {}
        }
        Ok(())
    }

    fn status(&mut self, state: SyncState, kinds: KindSet, detail: &str) {
        let status =
            sync::KindStatus { state: state as i32, kinds: kinds.names(), detail: detail.to_owned() };
        self.queue.push_back(message(server_message::Message::Status(status)));
    }
}
