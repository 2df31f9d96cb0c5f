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

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::FutureExt;
use proto::sync::report::Report;
use proto::sync::{
    self, ClientHello, ClientMessage, ResumeVerdict, SyncState, client_message, server_message,
};
use rand::Rng;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::accept::Peer;
use super::admission::Admitted;
use super::compare::Compare;
use super::registry::Client;
use super::{Context, hello};
use crate::secrets::Feed;
use crate::snapcache::{Freeze, KindSet, Place, Progress, Resume, Stand, Subscription, compress, message};

/// What a client is told that has to wait for the datastore.
const NOT_IN_SYNC: &str = "this replica has not caught up with the datastore yet";
const FORKED: &str = "FORKED: the datastore's history is not the one that was followed; deletions are held until \
                      an operator sets AcceptHistory";

/// Streams whose certificate ends within this time last until then.
const LAST_MOMENTS: Duration = Duration::from_secs(10);

/// For each answer of a client whose state is compared.
const DIGEST_WAIT: Duration = Duration::from_secs(30);

pub(super) struct Connection {
    context: Arc<Context>,
    inbound: Streaming<ClientMessage>,
    /// The client may still send.
    listening: bool,
    peer: Peer,
    /// It takes compressed messages.
    zstd: bool,
    queue: VecDeque<Bytes>,
    progress: watch::Receiver<Progress>,
    heartbeat: watch::Receiver<Bytes>,
    registered: Option<Registered>,
    /// Its place among the streams that leave when this replica drains.
    share: f64,
    away: Option<watch::Receiver<Vec<String>>>,
    /// When the client has to come again.
    renewal: Instant,
    /// The passwords of its node, if it may have them.
    secrets: Option<Feed>,
    phase: Phase,
}

enum Phase {
    Hello,
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

struct Comparison {
    compare: Compare,
    cursor: Cursor,
    /// When the client has to have answered.
    until: Instant,
}

struct Cursor {
    kinds: KindSet,
    view: u64,
    freezes: Subscription,
    seq: u64,
    /// Position of the last cut, and the version that it was of; none before the first.
    cut: Option<(u64, u64)>,
    /// The token that the client offered, and holds until it gets another.
    offered: Option<sync::Token>,
    /// Tombstones up to here are not needed. Trimmed past it, the client has to come again.
    settled: u64,
    snapshot: Option<Snapshot>,
    since: Instant,
    going_away: bool,
    told_forked: bool,
}

struct Snapshot {
    /// Sent whole; of the others, changes only.
    kinds: KindSet,
    sweep: bool,
    /// Segments are not older than this. Then follows what changed after it; tombstones up to here are left out.
    start: u64,
    /// What is to be sent next of the segments.
    next: Option<Place>,
    /// Nothing of it has been pulled, and nothing else depends on where it begins.
    may_start_later: bool,
    admitted: Admitted,
}

impl Snapshot {
    fn new(kinds: KindSet, sweep: bool, start: u64) -> Self {
        let first = kinds.iter().next();
        let next = first.map(|kind| Place { kind, leaf: 0 });
        Snapshot { kinds, sweep, start, next, may_start_later: false, admitted: Admitted::No }
    }

    /// The place after this one; the next leaf of the kind, if there is one.
    fn step(&mut self, Place { kind, .. }: Place, leaf: Option<u16>) {
        let mut kinds = self.kinds.iter().skip_while(|other| *other != kind);
        let next = kinds.nth(1).map(|kind| Place { kind, leaf: 0 });
        self.next = leaf.map(|leaf| Place { kind, leaf }).or(next);
        self.may_start_later = false;
        if self.next.is_none() {
            self.admitted = Admitted::No;
        }
    }
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

/// Until the client is asked to go elsewhere.
async fn away(orders: &mut Option<watch::Receiver<Vec<String>>>) -> Vec<String> {
    let Some(orders) = orders else { return std::future::pending().await };
    match orders.changed().await {
        Ok(()) => orders.borrow_and_update().clone(),
        Err(_) => std::future::pending().await,
    }
}

/// How long a stream may last: shorter than its certificates, and no fleet's streams end at one moment.
fn lifetime(longest: Duration, until: Option<SystemTime>, now: SystemTime, share: f64) -> Duration {
    let Some(until) = until else { return longest.mul_f64(1.0 - 0.1 * share) };
    let left = until.duration_since(now).unwrap_or_default();
    // With the same certificate it will come again, and at the very end be refused.
    let left = if left > LAST_MOMENTS { left.mul_f64(0.9 - 0.2 * share) } else { left };
    left.min(longest.mul_f64(1.0 - 0.1 * share))
}

impl Connection {
    pub fn new(context: Arc<Context>, inbound: Streaming<ClientMessage>, peer: Peer, zstd: bool) -> Self {
        context.metrics.connections_active.increment(1.0);
        let progress = context.cache.progress();
        let mut heartbeat = context.heartbeat.subscribe();
        heartbeat.mark_unchanged();
        let share = rand::rng().random_range(0.0..1.0);
        let renewal =
            Instant::now() + lifetime(context.options.renewal, peer.until, SystemTime::now(), share);
        Connection {
            context,
            inbound,
            listening: true,
            peer,
            zstd,
            queue: VecDeque::new(),
            progress,
            heartbeat,
            registered: None,
            share,
            away: None,
            renewal,
            secrets: None,
            phase: Phase::Hello,
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
            match &mut self.phase {
                Phase::Hello => self.greet().await?,
                Phase::NotInSync { .. } => self.await_sync().await?,
                Phase::Comparing(_) => self.compare().await?,
                Phase::Streaming(_) => self.step().await?,
                Phase::Closed => return Ok(None),
            }
        }
    }

    // === hello ===

    async fn greet(&mut self) -> Result<(), Status> {
        let since = Instant::now();
        let limit = self.context.options.handshake_timeout;
        let first = match tokio::time::timeout(limit, self.inbound.message()).await {
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
        match verdict {
            None => {
                tracing::info!(
                    node = hello.node,
                    agent = hello.agent,
                    "agent connected, waiting for the datastore"
                );
                let verdict = ResumeVerdict::ResumeSnapshot;
                self.queue.push_back(hello::answer(
                    &self.context,
                    &hello,
                    kinds,
                    verdict,
                    self.secrets.is_some(),
                ));
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
                let verdict = resume.0.verdict();
                self.context.metrics.resumed(verdict).increment(1);
                let answered = verdict.as_str_name();
                tracing::info!(node = hello.node, agent = hello.agent, verdict = answered, "agent connected");
                self.queue.push_back(hello::answer(
                    &self.context,
                    &hello,
                    kinds,
                    verdict,
                    self.secrets.is_some(),
                ));
                self.begin(resume, kinds, hello.resume, since);
            }
        }
        Ok(())
    }

    fn register(&mut self, hello: &ClientHello, kinds: KindSet) {
        let client = Arc::new(Client::new(hello, self.peer.address, kinds));
        self.away = Some(client.away());
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
                let until = Instant::now() + DIGEST_WAIT;
                self.phase = Phase::Comparing(Comparison { compare: Compare::new(kinds), cursor, until });
                return;
            }
        }
        self.phase = Phase::Streaming(cursor);
    }

    /// Waits for the client's next answer. Its state stands still meanwhile, and so does the cursor.
    async fn compare(&mut self) -> Result<(), Status> {
        let Phase::Comparing(comparison) = &mut self.phase else { return Ok(()) };
        // The deletions of a datastore that turned out to be another one prove nothing.
        if self.context.cache.read().forked() {
            self.go_away(sync::GoAway { reason: "the datastore was restored".into(), ..Default::default() });
            self.phase = Phase::Closed;
            return Ok(());
        }
        let until = comparison.until;
        tokio::select! {
            () = self.context.closed.cancelled() => self.phase = Phase::Closed,
            () = self.context.drain.cancelled() => {
                self.leave("draining", self.context.targets());
                self.phase = Phase::Closed;
            }
            message = self.inbound.message() => match message? {
                None => self.phase = Phase::Closed,
                message => self.on_message(message)?,
            },
            _ = self.heartbeat.changed() => self.queue.push_back(self.heartbeat.borrow_and_update().clone()),
            () = tokio::time::sleep_until(until) => {
                return Err(Status::deadline_exceeded("digests were not answered in time"));
            }
        }
        Ok(())
    }

    fn on_digest(&mut self, answer: sync::DigestAnswer) -> Result<(), Status> {
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

    async fn await_sync(&mut self) -> Result<(), Status> {
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
            _ = self.progress.changed() => {}
            _ = self.heartbeat.changed() => self.queue.push_back(self.heartbeat.borrow_and_update().clone()),
            message = self.inbound.message(), if self.listening => self.on_message(message?)?,
            () = self.context.leave(self.share) => self.leave("draining", self.context.targets()),
        }
        if self.context.drain.is_cancelled() {
            self.phase = Phase::Closed;
        }
        Ok(())
    }

    // === streaming ===

    /// Queues the next messages, or waits for a reason to.
    async fn step(&mut self) -> Result<(), Status> {
        let Phase::Streaming(cursor) = &mut self.phase else { return Ok(()) };
        // Before the first cut: an agent that has none yet waits for them.
        if let Some(secrets) = self.secrets.as_mut().and_then(Feed::news) {
            self.queue.push_back(message(server_message::Message::Secrets(secrets)));
            return Ok(());
        }
        let freeze = cursor.freezes.freezes.borrow_and_update().clone();
        if freeze.forked && !cursor.told_forked {
            cursor.told_forked = true;
            self.status(SyncState::SyncInSync, KindSet::default(), FORKED);
            return Ok(());
        }
        if cursor.cut.is_none() || cursor.seq < freeze.stand.seq {
            if let Some(snapshot) = &mut cursor.snapshot
                && snapshot.next.is_some()
                && !snapshot.admitted.is_now(&self.context.admission)
            {
                return self.await_turn().await;
            }
            self.hear()?;
            return self.advance(&freeze);
        }
        let going_away = cursor.going_away;
        tokio::select! {
            () = self.context.closed.cancelled() => self.phase = Phase::Closed,
            () = self.context.leave(self.share), if !going_away => {
                self.leave("draining", self.context.targets());
            }
            () = Feed::changed(&mut self.secrets) => {}
            servers = away(&mut self.away), if !going_away => self.leave("rebalancing", servers),
            () = tokio::time::sleep_until(self.renewal), if !going_away => self.renew(),
            () = tokio::time::sleep_until(self.renewal + self.context.options.drain), if going_away => {
                self.phase = Phase::Closed;
            }
            message = self.inbound.message(), if self.listening => self.on_message(message?)?,
            changed = self.heartbeat.changed() => self.on_heartbeat(changed.is_ok(), &freeze),
            changed = cursor.freezes.freezes.changed() => if changed.is_err() {
                self.phase = Phase::Closed;
            },
        }
        Ok(())
    }

    /// Waits until the snapshot may go on.
    async fn await_turn(&mut self) -> Result<(), Status> {
        let Phase::Streaming(Cursor { snapshot: Some(snapshot), seq, settled, going_away, .. }) =
            &mut self.phase
        else {
            return Ok(());
        };
        tokio::select! {
            () = snapshot.admitted.wait() => if snapshot.may_start_later {
                snapshot.start = self.context.cache.base();
                (*seq, *settled) = (snapshot.start, snapshot.start);
            },
            () = self.context.closed.cancelled() => self.phase = Phase::Closed,
            () = self.context.leave(self.share), if !*going_away => {
                self.leave("draining", self.context.targets());
            }
            servers = away(&mut self.away), if !*going_away => self.leave("rebalancing", servers),
            message = self.inbound.message(), if self.listening => self.on_message(message?)?,
            _ = self.heartbeat.changed() => self.queue.push_back(self.heartbeat.borrow_and_update().clone()),
        }
        Ok(())
    }

    /// A stream that always has something to send has to hear its client as well.
    fn hear(&mut self) -> Result<(), Status> {
        while self.listening
            && let Some(message) = self.inbound.message().now_or_never()
        {
            self.on_message(message?)?;
        }
        Ok(())
    }

    /// Sends what follows the cursor, and a cut once it has reached the head.
    fn advance(&mut self, freeze: &Freeze) -> Result<(), Status> {
        let Phase::Streaming(cursor) = &mut self.phase else { return Ok(()) };
        let context = &self.context;
        // With the others, if it is where they are.
        if let (Some((_, version)), None) = (cursor.cut, &cursor.snapshot)
            && let Some(flight) = freeze.flight(cursor.kinds, cursor.seq, version)
        {
            cursor.seq = freeze.stand.seq;
            cursor.settled = cursor.settled.max(cursor.seq);
            if let Some(messages) = &flight.messages {
                context.metrics.kvs_per_message.record(flight.entries as f64);
                self.queue.push_back(messages.bytes(self.zstd).clone());
                cursor.cut = Some((cursor.seq, freeze.stand.version));
                if let Some(registered) = &self.registered {
                    registered.on_changes(cursor.seq);
                }
            }
            return Ok(());
        }
        if let Some(snapshot) = &mut cursor.snapshot
            && let Some(place) = snapshot.next
        {
            let (messages, leaf) = context.cache.segment(place, snapshot.start, self.zstd);
            snapshot.step(place, leaf);
            self.queue.extend(messages);
            return Ok(());
        }
        let (page, stand) = context.cache.page(cursor.seq, cursor.kinds);
        if stand.trimmed > cursor.settled {
            // It was away for so long that deletions have been forgotten meanwhile. Digests will tell.
            self.go_away(sync::GoAway { reason: "resync".into(), ..Default::default() });
            self.phase = Phase::Closed;
            return Ok(());
        }
        let complete = page.complete();
        cursor.seq = page.seq;
        if cursor.snapshot.is_none() || complete {
            cursor.settled = cursor.settled.max(cursor.seq);
        }
        let sent = page.message.is_some();
        if let Some(message) = page.message {
            context.metrics.kvs_per_message.record(page.entries as f64);
            self.queue.push_back(message.bytes(self.zstd).clone());
        }
        if !complete {
            return Ok(());
        }
        if let Some(snapshot) = cursor.snapshot.take() {
            let kinds = if snapshot.sweep { snapshot.kinds.names() } else { Vec::new() };
            self.queue.push_back(message(server_message::Message::SnapshotEnd(sync::SnapshotEnd { kinds })));
            context.metrics.snapshots.increment(1);
            context.metrics.snapshot_send.record(cursor.since.elapsed().as_secs_f64());
        }
        if sent || cursor.cut.is_none() {
            self.cut(&stand);
            if let Some(registered) = self.registered.as_ref().filter(|_| sent) {
                registered.on_changes(stand.seq);
            }
        }
        Ok(())
    }

    /// Queues the cut at the cursor, which is where the cache stood.
    fn cut(&mut self, stand: &Stand) {
        let Phase::Streaming(cursor) = &mut self.phase else { return };
        let cut = match (cursor.cut, &cursor.offered) {
            (Some((_, version)), _) => stand.cut_since(version, cursor.view),
            (None, Some(offered)) => stand.cut_after(offered, cursor.view),
            (None, None) => stand.first_cut(cursor.view),
        };
        let first = cursor.cut.replace((stand.seq, stand.version)).is_none();
        cursor.offered = None;
        if let Some(registered) = &mut self.registered {
            registered.client.on_sent(stand.seq);
            if first {
                registered.streaming = true;
                self.context.metrics.connections_streaming.increment(1.0);
            }
        }
        if first {
            self.status(SyncState::SyncInSync, KindSet::default(), "");
        }
        self.queue.push_back(message(server_message::Message::Cut(cut)));
    }

    fn on_heartbeat(&mut self, beats: bool, freeze: &Freeze) {
        if !beats {
            self.phase = Phase::Closed;
            return;
        }
        let Phase::Streaming(cursor) = &self.phase else { return };
        // What changed since the last cut was of other kinds; the client's token is to keep up all the same.
        if cursor.cut.is_some_and(|(cut, _)| cut != cursor.seq) && cursor.seq == freeze.stand.seq {
            self.cut(&freeze.stand);
        }
        self.queue.push_back(self.heartbeat.borrow_and_update().clone());
    }

    /// Asks the client to go to another replica, because this one ends.
    fn leave(&mut self, reason: &str, servers: Vec<String>) {
        if let Phase::Streaming(cursor) = &mut self.phase {
            cursor.going_away = true;
        }
        self.context.metrics.connections_dropped.increment(1);
        self.go_away(sync::GoAway { reason: reason.to_owned(), servers, not_before_millis: 0 });
    }

    /// Asks the client to come again, because its certificate ends or the stream is a day old.
    fn renew(&mut self) {
        if let Phase::Streaming(cursor) = &mut self.phase {
            cursor.going_away = true;
        }
        self.go_away(sync::GoAway { reason: "renew".to_owned(), ..Default::default() });
    }

    fn go_away(&mut self, go_away: sync::GoAway) {
        self.queue.push_back(message(server_message::Message::GoAway(go_away)));
    }

    fn on_message(&mut self, received: Option<ClientMessage>) -> Result<(), Status> {
        let Some(received) = received else {
            // It has nothing more to say, but may go on listening: tools do.
            self.listening = false;
            return Ok(());
        };
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
