//! The server: one gRPC port for agents (Sync), operators and other replicas (Admin), health and reflection.
//!
//! ```text
//! Server::run ── accepts, until asked to drain                      (this file)
//!   ├─ accept.rs      limits, TLS, who is there
//!   ├─ service.rs     one Connection per stream, polled when its socket can take more
//!   │    compare.rs      digests: what the client lacks, and holds too much
//!   │    connection/     hello, verdict, snapshot or deltas, cuts, heartbeats, go-away
//!   ├─ admission.rs   whose turn it is to be sent a snapshot
//!   ├─ freezes        now and then, what changed is encoded once, a watch channel to all streams (snapcache)
//!   ├─ heartbeat      every 2 s, encoded once, a watch channel to all streams
//!   └─ admin.rs       Status, Load, Wait, from the registry of streams (registry.rs)
//! ```
//!
//! A stream is a cursor that is polled, not a task that is fed: while its client is slow it is not polled and
//! holds nothing but its position. Nothing is queued for anybody.

mod accept;
mod admin;
mod admission;
pub(crate) mod compare;
mod connection;
mod heads;
mod hello;
mod page;
mod peers;
mod registry;
mod service;

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use daemon::{CancellationToken, Endpoint};
use proto::sync::{self, server_message};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use transport::{ClientTls, ServerTls};

use crate::metrics::Metrics;
use crate::pipeline::Intake;
use crate::reports::Inbox;
use crate::secrets::Secrets;
use crate::snapcache::{Shared, message};
use crate::traces::Traces;
use admission::Admission;
pub use peers::Discovery;
use peers::Peers;
use registry::Registry;

/// No stream is older: what was revoked or renewed meanwhile counts at the latest then [G4].
const RENEWAL: Duration = Duration::from_secs(24 * 3600);
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Heartbeats carry the positions that moved within this time: five chances to hear of each.
const POSITIONS: Duration = Duration::from_secs(10);
/// Pings on quiet connections find peers that went without a word.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));
const STREAMS_PER_CONNECTION: u32 = 4;
const FRAME_BYTES: u32 = 64 << 10;
/// How long a drain gives each stream, up to a part of its time in all.
const LEAVE_EACH: Duration = Duration::from_millis(5);
/// Streams that ignored the go-away have been ended; this long for their connections to close.
const CLOSING: Duration = Duration::from_millis(500);

/// How the server behaves; the defaults are those of the settings.
#[derive(Clone)]
pub struct Options {
    /// This replica's name.
    pub replica: String,
    pub software: String,
    /// Other replicas, to send clients to when draining.
    pub peers: Vec<String>,
    /// For TLS, and for a client's hello.
    pub handshake_timeout: Duration,
    /// How the other replicas are found, how often they are looked for and asked, and with which certificate.
    pub discovery: Discovery,
    pub peer_interval: Duration,
    pub peer_tls: Option<ClientTls>,
    /// Clients are moved so that replicas have as many.
    pub rebalance: bool,
    /// Connections from one address; 0 = no limit.
    pub per_address: usize,
    /// Snapshots that are sent side by side; 0 = as many as the processors can do.
    pub snapshots: usize,
    /// Nothing: plain TCP.
    pub tls: Option<Arc<ServerTls>>,
    /// A client may only be the node and agent that its certificate names, and such a client may not ask what
    /// operators ask.
    pub bind_clients: bool,
    /// How long a client that has seen more than this replica is kept waiting.
    pub behind_wait: Duration,
    /// The shortest time that changes wait for others to share a message with; up to 100 ms where there is much to gain.
    /// The first after a quiet time waits for none.
    pub coalesce: Duration,
    /// From the go-away to the end of the remaining streams.
    pub drain: Duration,
    pub heartbeat: Duration,
    /// How long a stream may last.
    pub renewal: Duration,
    /// Pings: how often, and how long for an answer.
    pub keepalive: (Duration, Duration),
    /// Nothing: updates are not traced.
    pub traces: Option<Arc<Traces>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            replica: "typha".into(),
            software: software(),
            peers: Vec::new(),
            handshake_timeout: Duration::from_secs(10),
            discovery: Discovery::None,
            peer_interval: Duration::from_secs(5),
            peer_tls: None,
            rebalance: true,
            per_address: 0,
            snapshots: 0,
            tls: None,
            bind_clients: false,
            behind_wait: Duration::from_secs(5),
            coalesce: Duration::from_millis(10),
            drain: Duration::from_secs(5),
            heartbeat: HEARTBEAT,
            renewal: RENEWAL,
            keepalive: KEEPALIVE,
            traces: None,
        }
    }
}

/// Name and version, as hellos carry it.
pub fn software() -> String {
    concat!("bulrush-typha ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// What every stream and every question needs.
struct Context {
    cache: Arc<Shared>,
    intake: Arc<Intake>,
    metrics: Metrics,
    options: Options,
    registry: Registry,
    admission: Arc<Admission>,
    /// Handed to streams since the start.
    sent_bytes: AtomicU64,
    sent_frames: AtomicU64,
    reports: Arc<Inbox>,
    secrets: Arc<Secrets>,
    heads: heads::Heads,
    peers: Peers,
    heartbeat: watch::Sender<Bytes>,
    /// Clients are asked to leave.
    drain: CancellationToken,
    /// Streams end.
    closed: CancellationToken,
    started: Instant,
    /// When draining began.
    drained: OnceLock<Instant>,
}

impl Context {
    /// Until this stream is to be told to leave because this replica drains. All streams at one moment would
    /// be a storm for the others, so each has its own moment; `share` is between 0 and 1.
    async fn leave(&self, share: f64) {
        self.drain.cancelled().await;
        let began = *self.drained.get_or_init(Instant::now);
        let spread = LEAVE_EACH.saturating_mul(u32::try_from(self.registry.len()).unwrap_or(u32::MAX));
        let spread = spread.min(self.options.drain.mul_f64(0.6));
        tokio::time::sleep_until((began + spread.mul_f64(share)).into()).await;
    }

    /// Where clients are sent.
    fn targets(&self) -> Vec<String> {
        let epoch = self.cache.read().epoch().to_owned();
        match self.peers.targets(&epoch) {
            known if known.is_empty() => self.options.peers.clone(),
            known => known,
        }
    }

    fn freshness(&self) -> sync::FreshnessReply {
        let cache = self.cache.read();
        sync::FreshnessReply {
            replica: self.options.replica.clone(),
            history: cache.history().to_owned(),
            in_sync: cache.in_sync(),
            age_millis: cache.age(Instant::now()).map(millis),
            sources: cache.sources(),
        }
    }

    fn heartbeat(&self) -> Bytes {
        let cache = self.cache.read();
        // Here and not when something happens: data gets old while nothing does.
        self.metrics.age.set(cache.age(Instant::now()).map_or(-1.0, |age| age.as_secs_f64()));
        let heartbeat = sync::Heartbeat {
            age_millis: cache.age(Instant::now()).map(millis),
            uptime_millis: millis(self.started.elapsed()),
            positions: Some(cache.positions(Instant::now(), POSITIONS)),
            seq: cache.head(),
        };
        message(server_message::Message::Heartbeat(heartbeat))
    }

    /// Makes the heartbeat that all streams share.
    fn beat(&self) {
        self.heartbeat.send_replace(self.heartbeat());
        self.metrics.snapshots_active.set(self.admission.active() as f64);
        self.metrics.snapshots_waiting.set(self.admission.waiting() as f64);
        let size = self.cache.packed().unwrap_or_default();
        self.metrics.snapshot_raw_bytes.set(size.plain as f64);
        self.metrics.snapshot_compressed_bytes.set(size.packed as f64);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub struct Server {
    context: Arc<Context>,
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Listens; clients are accepted when `run` is called.
    pub async fn bind(
        endpoint: &Endpoint,
        cache: Arc<Shared>,
        intake: Arc<Intake>,
        metrics: Metrics,
        options: Options,
    ) -> anyhow::Result<Self> {
        let listener = endpoint.bind("agents").await?;
        let address = listener.local_addr().context("reading the address of the sync port")?;
        let context = Context {
            cache,
            intake,
            metrics,
            admission: Admission::new(options.snapshots),
            options,
            registry: Registry::default(),
            sent_bytes: AtomicU64::new(0),
            sent_frames: AtomicU64::new(0),
            reports: Arc::default(),
            secrets: Arc::default(),
            heads: heads::Heads::default(),
            peers: Peers::default(),
            drained: OnceLock::new(),
            heartbeat: watch::Sender::new(Bytes::new()),
            drain: CancellationToken::new(),
            closed: CancellationToken::new(),
            started: Instant::now(),
        };
        Ok(Server { context: Arc::new(context), listener, address })
    }

    /// The status page, for the health port.
    pub fn page(&self) -> axum::Router {
        page::routes(self.context.clone())
    }

    /// What agents report, for the writer.
    pub fn reports(&self) -> Arc<Inbox> {
        self.context.reports.clone()
    }

    /// Which nodes use which passwords: to be filled.
    pub fn secrets(&self) -> Arc<Secrets> {
        self.context.secrets.clone()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until cancelled, then drains: no new connections, a go-away to every stream, and the end of the
    /// remaining ones when the drain time is over.
    pub async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let context = self.context;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let health = HealthReporter::new();
        let sync = service::SyncService::new(context.clone());
        let bound = context.options.bind_clients;
        let admin = proto::admin::admin_server::AdminServer::with_interceptor(
            admin::AdminService::new(context.clone()),
            move |request| admin::may_ask(request, bound),
        );
        let accept = accept::Accept {
            listener: self.listener,
            tls: context.options.tls.clone(),
            handshake: context.options.handshake_timeout,
            per_address: context.options.per_address,
            metrics: context.metrics.clone(),
        };
        let (accepting, incoming) = accept.split();
        let stop_accepting = context.drain.clone();
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(context.options.keepalive.0))
            .http2_keepalive_timeout(Some(context.options.keepalive.1))
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .max_frame_size(FRAME_BYTES)
            .add_service(sync)
            .add_service(admin)
            .add_service(HealthServer::new(HealthService::from_health_reporter(health.clone())))
            .add_service(reflection().build_v1().context("building the reflection service")?)
            .add_service(reflection().build_v1alpha().context("building the reflection service")?)
            .serve_with_incoming_shutdown(incoming, async move { stop_accepting.cancelled().await });
        // Before the first client, or it would get one in the middle of its hello.
        context.beat();
        tracing::info!(address = %self.address, replica = context.options.replica, "serving agents");
        tokio::select! {
            served = serving => served.context("serving agents"),
            () = accepting => Ok(()),
            () = keep_beating(&context) => Ok(()),
            () = peers::follow(&context) => Ok(()),
            () = context.admission.take_back() => Ok(()),
            () = context.heads.follow(context.cache.progress()) => Ok(()),
            () = context.cache.freeze_now_and_then(context.options.coalesce) => Ok(()),
            () = tell_health(&context, &health) => Ok(()),
            () = drain(&context, cancel) => Ok(()),
        }
    }
}

/// Does not return.
async fn keep_beating(context: &Context) {
    let period = context.options.heartbeat;
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        context.beat();
        context.cache.cool();
    }
}

/// Keeps gRPC health in step with what this replica can do. Does not return.
async fn tell_health(context: &Context, health: &HealthReporter) {
    let mut progress = context.cache.progress();
    let mut told = None;
    loop {
        let serving = progress.borrow_and_update().in_sync && !context.drain.is_cancelled();
        if told != Some(serving) {
            told = Some(serving);
            let status = if serving {
                tonic_health::ServingStatus::Serving
            } else {
                tonic_health::ServingStatus::NotServing
            };
            for service in ["", service::NAME] {
                health.set_service_status(service, status).await;
            }
        }
        tokio::select! {
            changed = progress.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            () = context.drain.cancelled(), if !context.drain.is_cancelled() => {}
        }
    }
}

/// Waits for the wish to stop, and sees the streams out.
async fn drain(context: &Context, cancel: CancellationToken) {
    cancel.cancelled().await;
    tracing::info!(streams = context.registry.len(), "draining: no new streams, asking agents to leave");
    context.drain.cancel();
    tokio::time::sleep(context.options.drain).await;
    if context.registry.len() > 0 {
        tracing::warn!(streams = context.registry.len(), "drain time is over, ending the remaining streams");
    }
    context.closed.cancel();
    tokio::time::sleep(CLOSING).await;
}
