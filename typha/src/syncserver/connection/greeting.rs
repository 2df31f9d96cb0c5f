//! The beginning of a stream: the hello, what the client's token is worth here, and the wait for the datastore.

use std::sync::Arc;
use std::time::SystemTime;

use futures::StreamExt;
use proto::sync::{self, ClientHello, ResumeVerdict, SyncState};
use rand::Rng;
use tokio::time::Instant;
use tonic::Status;

use super::comparing::Comparison;
use super::events::{Orders, Told, messages};
use super::leaving::lifetime;
use super::streaming::{Cursor, Snapshot};
use super::{Connection, FORKED, Phase, Registered};
use crate::secrets::Feed;
use crate::snapcache::{KindSet, Resume};
use crate::syncserver::{hello, registry::Client};

/// What a client is told that has to wait for the datastore.
const NOT_IN_SYNC: &str = "this replica has not caught up with the datastore yet";

impl Connection {
    pub(super) async fn greet(&mut self) -> Result<(), Status> {
        let since = Instant::now();
        let limit = self.context.options.handshake_timeout;
        let Phase::Hello(inbound) = &mut self.phase else { return Ok(()) };
        let first = match tokio::time::timeout(limit, inbound.message()).await {
            Ok(first) => first,
            Err(_) => Err(Status::deadline_exceeded(format!("no hello within {} s", limit.as_secs_f64()))),
        };
        let hello = match first.and_then(|first| {
            let hello = hello::read(first, &self.context.options.software)?;
            hello::check(&hello, &self.peer, self.context.options.bind_clients)?;
            Ok(hello)
        }) {
            Ok(hello) => hello,
            Err(status) => {
                self.context.metrics.hellos_refused.increment(1);
                tracing::warn!(address = ?self.peer.address, reason = status.message(), "stream refused");
                return Err(status);
            }
        };
        let kinds = hello::kinds(&hello);
        self.secrets =
            hello::gets_secrets(&hello, &self.peer).then(|| self.context.secrets.feed(&hello.node));
        self.register(&hello, kinds);
        let verdict = self.verdict(&hello, kinds).await;
        let answer = verdict.as_ref().map_or(ResumeVerdict::ResumeSnapshot, |(resume, _)| resume.verdict());
        let secrets = self.secrets.is_some();
        self.queue.push_back(hello::answer(&self.context, &hello, kinds, answer, secrets));
        match verdict {
            None => {
                tracing::info!(
                    node = hello.node,
                    agent = hello.agent,
                    "agent connected, waiting for the datastore"
                );
                let waiting_for: Vec<String> =
                    self.context.cache.read().unproven().take(4).map(str::to_owned).collect();
                self.status(
                    SyncState::SyncResync,
                    kinds,
                    &format!("{NOT_IN_SYNC}: {}", waiting_for.join(", ")),
                );
                self.phase = Phase::NotInSync { kinds, since };
            }
            Some(resume) => {
                self.context.metrics.resumed(answer).increment(1);
                let answered = answer.as_str_name();
                tracing::info!(node = hello.node, agent = hello.agent, verdict = answered, "agent connected");
                self.begin(resume, kinds, hello.resume, since);
            }
        }
        Ok(())
    }

    fn register(&mut self, hello: &ClientHello, kinds: KindSet) {
        let client = Arc::new(Client::new(hello, self.peer.address, kinds));
        let share = rand::rng().random_range(0.0..1.0);
        let longest = self.context.options.renewal;
        let mut heartbeat = self.context.heartbeat.subscribe();
        heartbeat.mark_unchanged();
        let orders = Orders {
            context: self.context.clone(),
            share,
            renewal: Instant::now() + lifetime(longest, self.peer.until, SystemTime::now(), share),
            heartbeat,
            away: client.away(),
            secrets: self.secrets.as_ref().map(Feed::changes),
            told: Told::default(),
        };
        self.events.push(orders.events());
        if let Phase::Hello(inbound) = std::mem::replace(&mut self.phase, Phase::Closed) {
            self.events.push(messages(*inbound));
        }
        let id = self.context.registry.add(client.clone());
        self.context.reports.open(id, &client.node, &client.agent, client.session.clone());
        self.context.metrics.connections_accepted.increment(1);
        self.registered = Some(Registered { context: self.context.clone(), client, id, streaming: false });
    }

    /// Decides on the client's token, waiting a while if this replica has seen less than the client. Nothing:
    /// not in sync, and the client has no state that waiting elsewhere could serve better.
    async fn verdict(&mut self, hello: &ClientHello, kinds: KindSet) -> Option<(Resume, u64)> {
        let asked = std::time::Instant::now();
        let deadline = Instant::now() + self.context.options.behind_wait;
        let mut probed = false;
        loop {
            self.progress.mark_unchanged();
            let (resume, trimmed) = {
                let cache = self.context.cache.read();
                let resume = if cache.in_sync() {
                    cache.resume(hello.resume.as_ref(), kinds, asked)
                } else if hello.resume.is_none() {
                    return None;
                } else {
                    Resume::Behind
                };
                (resume, cache.trimmed_seq())
            };
            match resume {
                Resume::Behind => {}
                Resume::Digest if !hello::digests(hello) => {
                    return Some((Resume::Snapshot { sweep: true }, trimmed));
                }
                resume => return Some((resume, trimmed)),
            }
            if let Some(token) = hello.resume.as_ref().filter(|_| !std::mem::replace(&mut probed, true)) {
                let doubtful = self.context.cache.read().doubtful(token);
                self.context.cache.ask(doubtful);
            }
            tokio::select! {
                changed = self.progress.changed() => if changed.is_err() {
                    return Some((Resume::Behind, trimmed));
                },
                () = tokio::time::sleep_until(deadline) => return Some((Resume::Behind, trimmed)),
                () = self.context.drain.cancelled() => return Some((Resume::Behind, trimmed)),
            }
        }
    }

    /// `trimmed`: up to where tombstones had been dropped at the time of the verdict.
    fn begin(
        &mut self,
        (resume, trimmed): (Resume, u64),
        kinds: KindSet,
        offered: Option<sync::Token>,
        since: Instant,
    ) {
        let (head, view) = {
            let cache = self.context.cache.read();
            (cache.head(), cache.view(kinds))
        };
        let mut cursor = Cursor {
            kinds,
            view,
            freezes: self.context.cache.subscribe(kinds),
            seq: head,
            cut: None,
            offered,
            settled: head,
            snapshot: None,
            since,
            going_away: false,
            told_forked: false,
        };
        match resume {
            Resume::Behind => {
                self.status(
                    SyncState::SyncResync,
                    KindSet::default(),
                    "this replica has seen less of the datastore than you have",
                );
                self.phase = Phase::Closed;
                return;
            }
            Resume::Delta { after } => (cursor.seq, cursor.settled) = (after, after.max(trimmed)),
            Resume::Snapshot { sweep } => {
                if !sweep {
                    self.status(SyncState::SyncResync, KindSet::default(), FORKED);
                }
                // Its deletions are not to be believed, nor are tokens of it to be changed by parts.
                cursor.offered = None;
                let snapshot = Snapshot::new(kinds, sweep, head);
                cursor.snapshot = Some(Snapshot { may_start_later: true, ..snapshot });
            }
            Resume::Digest => {
                self.phase = Phase::Comparing(Comparison::new(cursor));
                return;
            }
        }
        self.phase = Phase::Streaming(cursor);
    }

    pub(super) async fn await_sync(&mut self) -> Result<(), Status> {
        let Phase::NotInSync { kinds, since } = self.phase else { return Ok(()) };
        let resume = {
            let cache = self.context.cache.read();
            let resume = || cache.resume(None, kinds, std::time::Instant::now());
            cache.in_sync().then(|| (resume(), cache.trimmed_seq()))
        };
        if let Some(resume) = resume {
            self.context.metrics.resumed(resume.0.verdict()).increment(1);
            self.begin(resume, kinds, None, since);
            return Ok(());
        }
        tokio::select! {
            _ = self.progress.changed() => Ok(()),
            event = self.events.next() => self.on_event(event),
        }
    }
}
