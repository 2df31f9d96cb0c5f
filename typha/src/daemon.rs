//! The wiring: what is started, in which order, and how it ends.
//!
//! ```text
//! signals ─> cancel
//! datastore: open ─> syncer ──(events, bounded)──> pipeline ─> cache ─> server (agents)
//! readiness: cache in sync ─> /readiness          http: /metrics /liveness /readiness
//! ```
//!
//! The health port opens first, so that a typha whose datastore is unreachable can be asked why it is not
//! ready. A datastore that does not answer is tried again for ever; settings that can never work end the
//! process. On SIGTERM the server drains while the datastore is still followed; then everything stops.

use std::sync::Arc;
use std::time::Duration;

use ::daemon::{
    Backoff, CancellationToken, Health, Http, Metrics as Recorder, Reload, Reporter, Settings, Signals,
    Tasks, logging,
};
use anyhow::Context as _;
use syncer_common::backend::{self, Datastore, Error as StoreError, config::StoreConfig};
use syncer_common::syncer;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::pipeline::{Intake, Pipeline};
use crate::reports::{self, Inbox};
use crate::secrets::{self, Secrets};
use crate::snapcache::{Cache, Shared};
use crate::syncserver::Server;
use crate::traces::{Exporter, Traces};

/// Events between the syncer and the pipeline. A listing is one event.
const EVENTS: usize = 64;
/// The reporter is heard from at least every few seconds, through proofs or this tick.
const BEAT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(20);

/// Runs typha until SIGTERM or SIGINT.
pub async fn run(config: Config, reload: Reload) -> anyhow::Result<()> {
    logging::init(&config.log_level, config.log_format)?;
    let recorder = Recorder::install()?;
    let metrics = Metrics::new();
    let health = Health::new();
    let cancel = CancellationToken::new();
    let signals = Signals::install()?;

    let reporter = health.register("datastore", Some(SILENCE));
    reporter.not_ready("not in sync with the datastore yet");
    let mut http = Http::bind(config.metrics.clone(), config.health.clone(), recorder, health).await?;
    tracing::info!(
        replica = config.options.replica,
        datastore = config.store.name(),
        health = ?http.health_address(),
        metrics = ?http.metrics_address(),
        software = config.options.software,
        "starting"
    );

    // Half of a UUID is enough, and every token carries it.
    let epoch = format!("{:016x}", uuid::Uuid::new_v4().as_u64_pair().0);
    let cache = Shared::new(Cache::new(epoch, config.accept_history.clone()));
    let intake = Arc::new(Intake::default());
    let drain = config.options.drain;
    let replica = config.options.replica.clone();
    let mut options = config.options;
    let tracing = config.tracing.map(|(endpoint, ratio)| {
        let (traces, finished) = Traces::new(&replica, ratio);
        options.traces = Some(traces.clone());
        (traces, finished, Exporter::new(endpoint, &replica, metrics.clone()))
    });
    let traces = options.traces.clone();
    let server =
        Server::bind(&config.server, cache.clone(), intake.clone(), metrics.clone(), options).await?;

    http.merge(server.page());

    let mut tasks = Tasks::new(cancel.clone());
    let apply = |settings: &Settings| logging::set(&settings.get::<String>("LogSeverityScreen")?);
    tasks.spawn("settings", reload.run(apply, cancel.clone()));
    // The datastore and the side port are wanted until the last agent has left.
    let stopped = CancellationToken::new();
    tasks.spawn("signals", {
        let cancel = cancel.clone();
        async move {
            signals.cancel_on_signal(cancel).await;
            Ok(())
        }
    });
    tasks.spawn("http", http.run(stopped.clone()));
    let reports =
        Reports { inbox: server.reports(), per_second: config.status_writes, metrics: metrics.clone() };
    let secrets = server.secrets();
    if let Some((traces, finished, exporter)) = tracing {
        let (metrics, stopped) = (metrics.clone(), stopped.clone());
        tasks.spawn("traces", async move {
            tokio::select! {
                () = traces.finish(&metrics) => {}
                () = exporter.run(finished) => {}
                () = stopped.cancelled() => {}
            }
            Ok(())
        });
    }
    let pipeline = Pipeline::new(cache.clone(), intake, metrics)
        .use_pod_cidr(config.use_pod_cidr)
        .traces(traces)
        .secrets(secrets.clone());
    let passwords = Passwords { secrets, namespace: config.secret_namespace };
    tasks.spawn("datastore", follow(config.store, pipeline, reports, passwords, stopped.clone()));
    tasks.spawn("readiness", report(cache, reporter, stopped.clone()));
    tasks.spawn("server", async move {
        let served = server.run(cancel).await;
        stopped.cancel();
        served
    });
    tasks.run(drain + Duration::from_secs(2)).await?;
    tracing::info!("stopped");
    Ok(())
}

/// What agents report, and how fast it may be written.
struct Reports {
    inbox: Arc<Inbox>,
    per_second: f64,
    metrics: Metrics,
}

/// The passwords that objects name, and where their Secrets are.
struct Passwords {
    secrets: Arc<Secrets>,
    namespace: String,
}

/// Opens the datastore, feeds the pipeline from it, and writes to it what agents report.
async fn follow(
    config: StoreConfig,
    mut pipeline: Pipeline,
    reports: Reports,
    passwords: Passwords,
    stopped: CancellationToken,
) -> anyhow::Result<()> {
    let store = tokio::select! {
        store = open(&config) => store?,
        () = stopped.cancelled() => return Ok(()),
    };
    let (sender, receiver) = mpsc::channel(EVENTS);
    let sources = store.clone().sources();
    let asks = pipeline.follow(&sources.iter().map(|source| source.name()).collect::<Vec<_>>());
    let writing = async {
        if reports.per_second > 0.0 {
            // Only etcd has Calico's status keys; a folder of manifests belongs to its editors.
            let keys = matches!(config, StoreConfig::Etcd(_));
            if !matches!(config, StoreConfig::Directory { .. }) {
                reports::write(reports.inbox, store.clone(), keys, reports.per_second, reports.metrics).await;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = async { tokio::join!(syncer::run(sources, sender, asks, stopped), pipeline.run(receiver)) } => {}
        () = writing => {}
        () = count(&*store) => {}
        () = secrets::read(passwords.secrets, store.clone(), passwords.namespace) => {}
    }
    Ok(())
}

/// Publishes what the datastore's client counts.
async fn count(store: &dyn Datastore) {
    let mut beats = tokio::time::interval(BEAT);
    loop {
        beats.tick().await;
        for (event, number) in store.counters() {
            Metrics::datastore_events(event).absolute(number);
        }
    }
}

async fn open(config: &StoreConfig) -> anyhow::Result<Arc<dyn Datastore>> {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
    let mut reported = String::new();
    loop {
        match backend::config::open(config).await {
            Ok(store) => return Ok(store),
            Err(error @ StoreError::Invalid { .. }) => return Err(error).context("opening the datastore"),
            Err(error) => {
                let text = error.to_string();
                if text != reported {
                    tracing::warn!(%error, "datastore cannot be opened, trying again");
                    reported = text;
                }
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
}

/// Ready from the first time the cache is in sync. A datastore that goes away later does not make a replica
/// unready: heartbeats tell agents how old the data is, and an old answer is better than no server at all.
async fn report(cache: Arc<Shared>, reporter: Reporter, stopped: CancellationToken) -> anyhow::Result<()> {
    let mut progress = cache.progress();
    let mut beats = tokio::time::interval(BEAT);
    let mut ready = false;
    loop {
        if !ready && progress.borrow_and_update().in_sync {
            ready = true;
            tracing::info!("in sync with the datastore, ready");
            reporter.ready();
        }
        tokio::select! {
            changed = progress.changed() => changed.context("the cache is gone")?,
            _ = beats.tick() => reporter.beat(),
            () = stopped.cancelled() => return Ok(()),
        }
    }
}
