//! One stream to one server, from the connection to its end.
//!
//! The agent's channel is bounded: while the agent is busy nothing is read, the server's cursor stands still,
//! and what is read afterwards is coalesced. Only the time spent waiting for the server counts as its silence.

use std::time::Duration;

use proto::sync::{self, ClientHello, ClientMessage, ResumeVerdict, SyncState, client_message};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

use crate::acks::Acks;
use crate::disk::Disk;
use crate::held::{Held, News};
use crate::metrics::Metrics;
use crate::reports::Outgoing;
use crate::stale::{self, Stale};
use crate::wire::ServerMessage;
use crate::{ClientConfig, ClientEvent, CutId};

/// Feature: content digests.
const DIGEST: &str = "digest";
/// Feature: the passwords of the node's BGP sessions.
const SECRETS: &str = "secrets";
const METHOD: &str = "/bulrush.sync.v1.Sync/Stream";
/// Window and frame size that clients ask for, and the largest message that they take [G].
const WINDOW_BYTES: u32 = 1 << 20;
const FRAME_BYTES: u32 = 64 << 10;
const MESSAGE_BYTES: usize = (4 << 20) + (64 << 10);
/// The server may keep a hello waiting this long before it says that it is behind.
const VERDICT_WAIT: Duration = Duration::from_secs(5);
/// How long a server may be without the datastore before another one is tried.
const RESYNC_PATIENCE: Duration = Duration::from_secs(5);
/// Client messages under way.
const OUTBOUND: usize = 16;

/// Why a stream ended. All of them mean: the next server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("connecting to {server}: {reason}")]
    Unreachable { server: String, reason: String },
    #[error("{server} answers {code}: {message}")]
    Refused { server: String, code: String, message: String },
    #[error("{server} has been silent for {} s", .after.as_secs_f64())]
    Silent { server: String, after: Duration },
    #[error("{server} closed the stream")]
    Closed { server: String },
    #[error("{server} sent something that is not the protocol: {what}")]
    Protocol { server: String, what: &'static str },
    #[error("{server} has seen less of the datastore than this node")]
    Behind { server: String },
    #[error("{server} is not in sync with the datastore")]
    NotInSync { server: String },
    #[error("{server} asks its clients to leave: {reason}{}", targets(.servers))]
    GoAway { server: String, reason: String, servers: Vec<String>, not_before: Duration },
    #[error("{server} has data that is {} s old, and {better} has data of {} s", .age.as_secs(), .theirs.as_secs())]
    Stale { server: String, better: String, age: Duration, theirs: Duration },
    /// The agent has dropped its end.
    #[error("the agent has stopped listening")]
    AgentGone,
}

fn targets(servers: &[String]) -> String {
    if servers.is_empty() { String::new() } else { format!(", for {}", servers.join(" or ")) }
}

/// What outlives streams.
pub(crate) struct Agent {
    pub config: ClientConfig,
    pub events: mpsc::Sender<ClientEvent>,
    pub acks: watch::Receiver<Option<CutId>>,
    pub held: Held,
    pub disk: Option<Disk>,
    pub metrics: Metrics,
    pub boot_id: String,
    pub counter: u64,
}

/// What a stream has come to, for the waits between streams.
#[derive(Debug, Default)]
pub(crate) struct Course {
    pub connected: bool,
    /// It reached a cut: the server is a good one.
    pub cut: bool,
    /// What the server says of its fellows.
    pub peers: Vec<sync::Peer>,
}

struct Stream<'a> {
    agent: &'a mut Agent,
    server: String,
    outbound: mpsc::Sender<ClientMessage>,
    epoch: String,
    not_in_sync_since: Option<Instant>,
    /// The other servers.
    elsewhere: Vec<String>,
    acks: Acks,
    reports: Outgoing,
    stale: Stale,
    /// The question whether another server is fresher, while it is under way.
    question: JoinSet<Option<(String, Duration)>>,
}

impl Agent {
    /// Follows one server. `elsewhere`: the others.
    pub async fn follow(&mut self, server: &str, elsewhere: Vec<String>, course: &mut Course) -> End {
        match self.attempt(server, elsewhere, course).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn attempt(
        &mut self,
        server: &str,
        elsewhere: Vec<String>,
        course: &mut Course,
    ) -> Result<End, End> {
        let channel = self.connect(server).await?;
        self.counter += 1;
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let hello = client_message::Message::Hello(self.hello());
        // The channel is new and has room.
        _ = outbound.try_send(ClientMessage { message: Some(hello) });
        let mut inbound = self.open(server, channel, messages).await?;

        let reports = self.config.reports.outgoing();
        let mut stream = Stream {
            agent: self,
            server: server.to_owned(),
            outbound,
            epoch: String::new(),
            not_in_sync_since: None,
            elsewhere,
            acks: Acks::new(Instant::now()),
            reports,
            stale: Stale::new(Instant::now()),
            question: JoinSet::new(),
        };
        stream.greet(&mut inbound, course).await?;
        loop {
            if let Some(end) = stream.step(&mut inbound, course).await? {
                return Ok(end);
            }
        }
    }

    async fn connect(&self, server: &str) -> Result<Channel, End> {
        let unreachable = |reason: String| End::Unreachable { server: server.to_owned(), reason };
        let settings = |endpoint: Endpoint| {
            endpoint
                .connect_timeout(self.config.connect_timeout)
                .tcp_nodelay(true)
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .max_frame_size(FRAME_BYTES)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(10))
        };
        // The connector of TLS has no deadline of its own.
        let connecting = transport::channel(server, self.config.tls.as_ref(), settings);
        match timeout(self.config.connect_timeout, connecting).await {
            Ok(connected) => connected.map_err(|error| unreachable(chain(&*error))),
            Err(_) => Err(unreachable("no connection in time".into())),
        }
    }

    async fn open(
        &self,
        server: &str,
        channel: Channel,
        messages: mpsc::Receiver<ClientMessage>,
    ) -> Result<Streaming<ServerMessage>, End> {
        // The limit holds for what a message is once it is decompressed, too.
        let mut grpc = tonic::client::Grpc::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .accept_compressed(CompressionEncoding::Zstd);
        let opening = async {
            grpc.ready().await.map_err(|error| tonic::Status::unavailable(chain(&error)))?;
            let codec = tonic_prost::ProstCodec::<ClientMessage, ServerMessage>::default();
            let request = Request::new(ReceiverStream::new(messages));
            grpc.streaming(request, PathAndQuery::from_static(METHOD), codec).await
        };
        match timeout(self.config.connect_timeout, opening).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(refused(server, &status)),
            Err(_) => Err(End::Silent { server: server.to_owned(), after: self.config.connect_timeout }),
        }
    }

    fn hello(&self) -> ClientHello {
        ClientHello {
            version: proto::VERSION,
            node: self.config.node.clone(),
            agent: self.config.agent.to_owned(),
            software: self.config.software.clone(),
            features: [Some(DIGEST), self.config.secrets.then_some(SECRETS)]
                .into_iter()
                .flatten()
                .map(str::to_owned)
                .collect(),
            scope: sync::Scope::All as i32,
            resume: self.held.token(),
            session: Some(sync::Session { boot_id: self.boot_id.clone(), counter: self.counter }),
            kinds: self.config.kinds.iter().map(|kind| kind.name().to_owned()).collect(),
        }
    }
}

impl Stream<'_> {
    async fn greet(
        &mut self,
        inbound: &mut Streaming<ServerMessage>,
        course: &mut Course,
    ) -> Result<(), End> {
        let limit = self.agent.config.read_timeout.max(VERDICT_WAIT + Duration::from_secs(2));
        let Some(hello) = self.receive(inbound, limit).await?.hello else {
            return Err(self.protocol("the first message is not a hello"));
        };
        self.epoch.clone_from(&hello.epoch);
        tracing::info!(
            server = self.server,
            replica = hello.replica,
            software = hello.software,
            verdict = hello.verdict().as_str_name(),
            "connected"
        );
        match hello.verdict() {
            ResumeVerdict::ResumeBehind => return Err(End::Behind { server: self.server.clone() }),
            ResumeVerdict::ResumeSnapshot | ResumeVerdict::ResumeDelta | ResumeVerdict::ResumeDigest => {}
            _ => return Err(self.protocol("a verdict that was not asked for")),
        }
        if let Some(roots) = self.agent.held.on_hello(&hello) {
            self.say(client_message::Message::Digest(roots)).await?;
        }
        course.connected = true;
        self.agent.metrics.connections.increment(1);
        self.agent.metrics.connected.set(1.0);
        let secrets = hello.features.iter().any(|feature| feature == SECRETS);
        self.tell(ClientEvent::Connected { server: self.server.clone(), secrets }).await
    }

    /// One message of the server, or one of ours.
    async fn step(
        &mut self,
        inbound: &mut Streaming<ServerMessage>,
        course: &mut Course,
    ) -> Result<Option<End>, End> {
        let limit = self.agent.config.read_timeout;
        let mut acks = self.agent.acks.clone();
        let outbound = self.outbound.clone();
        let message = {
            let silence = Instant::now() + limit;
            let mut open = true;
            loop {
                tokio::select! {
                    message = inbound.message() => break message,
                    changed = acks.changed(), if open => {
                        open = changed.is_ok();
                        self.acks.on_programmed(Instant::now());
                    }
                    () = tokio::time::sleep_until(self.acks.due()) => self.acknowledge(&mut acks),
                    // As the server takes them: what changes meanwhile is sent once.
                    Ok(permit) = async {
                        self.reports.due().await;
                        outbound.reserve().await
                    } => {
                        if let Some(report) = self.reports.next() {
                            let report = client_message::Message::Report(sync::Report { report: Some(report) });
                            permit.send(ClientMessage { message: Some(report) });
                        }
                    }
                    Some(answer) = self.question.join_next(), if !self.question.is_empty() => {
                        // Meanwhile this server may have recovered.
                        if let (Ok(Some((better, theirs))), true) = (answer, self.stale.is_stale()) {
                            let (server, age) = (self.server.clone(), self.stale.age());
                            return Ok(Some(End::Stale { server, better, age, theirs }));
                        }
                    }
                    () = tokio::time::sleep_until(silence) => {
                        return Err(End::Silent { server: self.server.clone(), after: limit });
                    }
                }
            }
        };
        self.agent.acks = acks;
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(Some(End::Closed { server: self.server.clone() })),
            Err(status) => return Err(refused(&self.server, &status)),
        };
        self.on_message(message, course).await
    }

    async fn receive(
        &self,
        inbound: &mut Streaming<ServerMessage>,
        limit: Duration,
    ) -> Result<ServerMessage, End> {
        match timeout(limit, inbound.message()).await {
            Ok(Ok(Some(message))) => Ok(message),
            Ok(Ok(None)) => Err(End::Closed { server: self.server.clone() }),
            Ok(Err(status)) => Err(refused(&self.server, &status)),
            Err(_) => Err(End::Silent { server: self.server.clone(), after: limit }),
        }
    }

    async fn on_message(&mut self, message: ServerMessage, course: &mut Course) -> Result<Option<End>, End> {
        if let Some(batch) = message.batch {
            let news = self.agent.held.on_entries(batch.entries);
            self.deliver(news).await?;
        }
        if let Some(secrets) = message.secrets {
            self.tell(ClientEvent::Secrets(secrets.secrets)).await?;
        }
        if let Some(request) = message.digest {
            for answer in self.agent.held.on_digest(&request) {
                self.say(client_message::Message::Digest(answer)).await?;
            }
        }
        if let Some(gone) = message.gone {
            self.agent.held.on_gone(&gone);
        }
        if let Some(end) = message.snapshot_end {
            self.agent.held.on_snapshot_end(&end);
        }
        if let Some(status) = message.status {
            self.on_status(&status);
        }
        if let Some(cut) = message.cut {
            let Some((at, gone)) = self.agent.held.on_cut(cut) else {
                return Err(self.protocol("a cut that changes a token which was never sent"));
            };
            self.deliver(gone).await?;
            if let (Some(disk), Some(token)) = (&mut self.agent.disk, self.agent.held.token()) {
                disk.cut(token, self.agent.held.kinds());
                disk.write().await;
            }
            course.cut = true;
            if at.first_in_sync {
                self.tell(ClientEvent::InSync).await?;
            }
            self.tell(ClientEvent::Cut(CutId { epoch: at.epoch, seq: at.seq })).await?;
        }
        if let Some(disk) = &mut self.agent.disk {
            disk.write().await;
        }
        if let Some(heartbeat) = message.heartbeat {
            self.agent.held.on_heartbeat(&heartbeat, &self.epoch);
            self.agent.metrics.age.set(heartbeat.age_millis.map_or(-1.0, |age| age as f64 / 1_000.0));
            let (age, uptime) = (heartbeat.age_millis, heartbeat.uptime_millis);
            if self.stale.on_heartbeat(age, uptime, Instant::now()) && !self.elsewhere.is_empty() {
                let (tls, token) = (self.agent.config.tls.clone(), self.agent.held.token());
                let (ours, others) = (self.server.clone(), self.elsewhere.clone());
                self.question.spawn(stale::fresher(ours, others, tls, token, self.stale.age()));
            }
            let waited = self.not_in_sync_since.is_some_and(|since| since.elapsed() > RESYNC_PATIENCE);
            if waited && !self.elsewhere.is_empty() {
                return Ok(Some(End::NotInSync { server: self.server.clone() }));
            }
        }
        if let Some(go_away) = message.go_away {
            return Ok(Some(End::GoAway {
                server: self.server.clone(),
                reason: go_away.reason,
                servers: go_away.servers,
                not_before: Duration::from_millis(go_away.not_before_millis),
            }));
        }
        Ok(None)
    }

    fn on_status(&mut self, status: &sync::KindStatus) {
        match status.state() {
            SyncState::SyncInSync => self.not_in_sync_since = None,
            _ => self.not_in_sync_since = self.not_in_sync_since.or(Some(Instant::now())),
        }
        if !status.detail.is_empty() {
            tracing::warn!(server = self.server, detail = status.detail, "server reports a problem");
        }
    }

    async fn deliver(&mut self, news: News) -> Result<(), End> {
        if let Some(disk) = &mut self.agent.disk {
            disk.record(news.records);
        }
        let metrics = &self.agent.metrics;
        metrics.updates.increment((news.updates.len() + news.raw.len()) as u64);
        metrics.known.increment(news.known);
        metrics.ignored.increment(news.ignored);
        metrics.entries.set(self.agent.held.len() as f64);
        if news.ignored > 0 {
            tracing::debug!(server = self.server, entries = news.ignored, "entries of unknown kinds ignored");
        }
        if !news.raw.is_empty() {
            self.tell(ClientEvent::Raw(news.raw)).await?;
        }
        if news.updates.is_empty() {
            return Ok(());
        }
        self.tell(ClientEvent::Updates(news.updates)).await
    }

    /// Sends what the server waits for.
    async fn say(&self, message: client_message::Message) -> Result<(), End> {
        let limit = self.agent.config.read_timeout;
        match timeout(limit, self.outbound.send(ClientMessage { message: Some(message) })).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Closed { server: self.server.clone() }),
            Err(_) => Err(End::Silent { server: self.server.clone(), after: limit }),
        }
    }

    async fn tell(&self, event: ClientEvent) -> Result<(), End> {
        self.agent.events.send(event).await.map_err(|_| End::AgentGone)
    }

    /// Sends the last cut in force, if it is one of this server's. With no room, a later one will do.
    fn acknowledge(&mut self, acks: &mut watch::Receiver<Option<CutId>>) {
        self.acks.on_said(Instant::now());
        let Some(cut) = acks.borrow_and_update().clone() else { return };
        if cut.epoch != self.epoch {
            return;
        }
        let ack = client_message::Message::Ack(sync::Ack { epoch: cut.epoch, seq: cut.seq });
        if self.outbound.try_send(ClientMessage { message: Some(ack) }).is_err() {
            tracing::debug!(server = self.server, "acknowledgement left out, the server does not read");
        }
    }

    fn protocol(&self, what: &'static str) -> End {
        End::Protocol { server: self.server.clone(), what }
    }
}

fn refused(server: &str, status: &tonic::Status) -> End {
    End::Refused {
        server: server.to_owned(),
        code: format!("{:?}", status.code()),
        message: status.message().to_owned(),
    }
}

/// An error with its causes: the outermost alone says "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
