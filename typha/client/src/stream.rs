//! One stream: hello, then messages down and acknowledgements up, until it ends.

use std::time::Duration;

use daemon::CancellationToken;
use proto::sync::sync_client::SyncClient;
use proto::sync::{
    Ack, Batch, ClientHello, ClientMessage, GoAway, ResumeVerdict, Scope, ServerHello, ServerMessage,
    Session, client_message, server_message,
};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::held::Held;
use crate::metrics::Metrics;
use crate::{ClientConfig, ClientEvent, CutId};

/// A whole snapshot should not wait for window updates.
const STREAM_WINDOW: u32 = 1 << 20;
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The agent has gone, or asked to stop.
    #[error("stopped")]
    Stopped,
    /// The server could not be reached, or fell silent, or broke off.
    #[error("{0}")]
    Lost(String),
    /// This replica has not come as far as we have: another one may have.
    #[error("server is behind this client")]
    Behind,
    /// The server asked us to leave.
    #[error("server asked to leave: {}", .0.reason)]
    Left(GoAway),
}

impl End {
    fn lost(what: &str, reason: impl std::fmt::Display) -> End {
        End::Lost(format!("{what}: {reason}"))
    }
}

pub struct Stream<'a> {
    pub config: &'a ClientConfig,
    pub held: &'a mut Held,
    /// Whether the agent has been told that its state is proven.
    pub in_sync: &'a mut bool,
    /// Set when this stream came up.
    pub was_up: bool,
    pub events: &'a mpsc::Sender<ClientEvent>,
    pub acks: &'a mut watch::Receiver<Option<CutId>>,
    pub cancel: &'a CancellationToken,
    pub metrics: &'a Metrics,
}

impl Stream<'_> {
    /// Follows `server` until the stream ends, and says why it did.
    pub async fn run(&mut self, server: &str, session: Session) -> End {
        let cancel = self.cancel.clone();
        tokio::select! {
            () = cancel.cancelled() => End::Stopped,
            () = self.events.closed() => End::Stopped,
            end = self.follow(server, session) => end,
        }
    }

    async fn follow(&mut self, server: &str, session: Session) -> End {
        let (up, outbound) = mpsc::channel(16);
        let hello = ClientHello {
            version: proto::VERSION,
            node: self.config.node.clone(),
            agent: self.config.agent.into(),
            software: self.config.software.clone(),
            features: Vec::new(),
            scope: Scope::All as i32,
            resume: self.held.token().cloned(),
            session: Some(session),
            kinds: self.config.kinds.iter().map(|kind| kind.name().to_owned()).collect(),
        };
        if up.send(message(client_message::Message::Hello(hello))).await.is_err() {
            return End::lost("hello", "the stream closed at once");
        }
        let (mut down, hello) = match self.open(server, outbound).await {
            Ok(opened) => opened,
            Err(end) => return end,
        };
        if hello.verdict() == ResumeVerdict::ResumeBehind {
            return End::Behind;
        }
        tracing::info!(
            server,
            replica = hello.replica,
            software = hello.software,
            verdict = hello.verdict().as_str_name(),
            "connected"
        );
        self.was_up = true;
        self.metrics.connections.increment(1);
        if self.events.send(ClientEvent::Connected { server: server.into() }).await.is_err() {
            return End::Stopped;
        }
        self.held.begin(hello.verdict() != ResumeVerdict::ResumeDelta);
        // What is in force already is said again, if it is by this server's count.
        self.acks.mark_changed();
        let mut acks_open = true;
        loop {
            tokio::select! {
                received = timeout(self.config.read_timeout, down.message()) => {
                    let received = match received {
                        Ok(Ok(Some(received))) => received,
                        Ok(Ok(None)) => return End::Lost("server closed the stream".into()),
                        Ok(Err(status)) => return End::lost("stream broke", status.message()),
                        Err(_) => return End::Lost(format!("server was silent for {:?}", self.config.read_timeout)),
                    };
                    if let Err(end) = self.on_message(received, &hello).await {
                        return end;
                    }
                }
                changed = self.acks.changed(), if acks_open => {
                    acks_open = changed.is_ok();
                    let ack = self.acks.borrow_and_update().clone();
                    if let Some(cut) = ack.filter(|cut| cut.epoch == hello.epoch) {
                        let ack = Ack { epoch: cut.epoch, seq: cut.seq };
                        if up.send(message(client_message::Message::Ack(ack))).await.is_err() {
                            return End::Lost("server closed the stream".into());
                        }
                    }
                }
            }
        }
    }

    /// Connects and exchanges hellos.
    async fn open(
        &self,
        server: &str,
        outbound: mpsc::Receiver<ClientMessage>,
    ) -> Result<(Streaming<ServerMessage>, ServerHello), End> {
        let endpoint = Endpoint::from_shared(format!("http://{server}"))
            .map_err(|error| End::lost("server address", format!("{server}: {error}: expected host:port")))?
            .connect_timeout(self.config.connect_timeout)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(self.config.read_timeout)
            .tcp_nodelay(true);
        let exchange = async {
            let channel = endpoint.connect().await.map_err(|error| End::lost("connect", chain(&error)))?;
            let mut down = SyncClient::new(channel)
                .stream(ReceiverStream::new(outbound))
                .await
                .map_err(|status| End::lost("refused", status.message()))?
                .into_inner();
            match down.message().await.map_err(|status| End::lost("refused", status.message()))? {
                Some(ServerMessage { message: Some(server_message::Message::Hello(hello)) }) => {
                    Ok((down, hello))
                }
                Some(ServerMessage { message: Some(server_message::Message::GoAway(go)) }) => {
                    Err(End::Left(go))
                }
                _ => Err(End::Lost("the server's first message was no hello".into())),
            }
        };
        // A replica that is behind may take 5 s to catch up before it answers.
        let limit = self.config.connect_timeout * 2;
        timeout(limit, exchange)
            .await
            .unwrap_or_else(|_| Err(End::Lost(format!("no hello within {limit:?}"))))
    }

    async fn on_message(&mut self, received: ServerMessage, hello: &ServerHello) -> Result<(), End> {
        match received.message {
            Some(server_message::Message::Batch(batch)) => self.on_batch(batch, &hello.epoch).await,
            Some(server_message::Message::SnapshotEnd(end)) => {
                let gone = self.held.on_snapshot_end(&end.kinds);
                self.deliver(gone).await
            }
            Some(server_message::Message::Cut(cut)) => {
                let Some(token) = self.held.on_cut(cut) else { return Ok(()) };
                let cut = CutId { epoch: token.epoch.clone(), seq: token.seq };
                if !std::mem::replace(self.in_sync, true) {
                    self.send(ClientEvent::InSync).await?;
                }
                self.send(ClientEvent::Cut(cut)).await
            }
            Some(server_message::Message::GoAway(go)) => Err(End::Left(go)),
            // Heartbeats prove life by arriving; status is for people. What a newer server may say is ignored.
            _ => Ok(()),
        }
    }

    async fn on_batch(&mut self, batch: Batch, epoch: &str) -> Result<(), End> {
        let before = self.held.unknown;
        let updates =
            batch.entries.into_iter().filter_map(|entry| self.held.on_entry(entry, epoch)).collect();
        self.metrics.unknown.increment(self.held.unknown - before);
        self.deliver(updates).await
    }

    async fn deliver(&self, updates: Vec<syncer_common::model::Update>) -> Result<(), End> {
        if updates.is_empty() {
            return Ok(());
        }
        self.metrics.updates.increment(updates.len() as u64);
        self.send(ClientEvent::Updates(updates)).await
    }

    async fn send(&self, event: ClientEvent) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Stopped)
    }
}

fn message(message: client_message::Message) -> ClientMessage {
    ClientMessage { message: Some(message) }
}

/// An error with its causes: tonic's own text says only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
