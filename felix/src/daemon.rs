//! Wiring of the daemon: which tasks there are, and how they are joined.
//!
//! ```text
//! typha-client ──events (64)──▶ calculation ──batches (1)──▶ dataplane ──▶ kernel
//!       ▲────────────────── acks (watch) ───────────────────────┘
//! signals ──▶ cancel                       http: /metrics /liveness /readiness ◀── ports (watch) ── dataplane
//! felix.sock ──questions (1)──▶ dataplane   `felix status`, `felix explain`
//! ```
//!
//! A server that goes away changes nothing here: the client looks for another one, and what is in the kernel stays.
//! So it does when felix ends. After a reboot the last proven state, which the client keeps on disk, is in force before any
//! server answers.

use std::sync::Arc;
use std::time::Duration;

use ::daemon::{CancellationToken, Health, Http, Metrics, Signals, Tasks};
use tokio::sync::{mpsc, watch};
use typha_client::{ClientConfig, Reports};

use crate::calculation::Calculation;
use crate::commands::{Commands, Processes};
use crate::config::Config;
use crate::control::{self, Control};
use crate::dataplane::Dataplane;
use crate::dataplane::event_loop::Fixed;
use crate::dataplane::status::StatusFiles;
use crate::iptables::{IpVersion, features};
use crate::metrics;

/// Enough for the client to read on while the calculation works; beyond that the server coalesces. A message of a snapshot
/// is a MiB, and more than that when it is decoded.
const EVENT_BUFFER: usize = 4;
/// One batch waits while another is programmed; changes beyond that collect in the calculation.
const BATCH_BUFFER: usize = 1;
const GRACE: Duration = Duration::from_secs(5);
/// The dataplane's loop is heard from at every tick; a pass over a large node may take long.
const SILENCE: Duration = Duration::from_secs(90);

/// Runs until a signal comes.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let recorder = Metrics::install()?;
    metrics::describe();
    let health = Health::new();
    let calculation_reporter = health.register("calculation", None);
    let dataplane_reporter = health.register("dataplane", Some(SILENCE));
    let http =
        Http::bind(config.ports.metrics.clone(), config.ports.health.clone(), recorder, health).await?;
    let (ports_out, ports) = watch::channel(config.ports);
    let signals = Signals::install()?;

    let commands: Arc<dyn Commands> = Arc::new(Processes::default());
    let backend = match config.backend {
        Some(backend) => backend,
        None => features::detect_backend(&*commands).await,
    };
    let mut versions = vec![IpVersion::V4];
    if config.ipv6 && features::has_ipv6() {
        versions.push(IpVersion::V6);
    }
    tracing::info!(node = config.node, backend = backend.name(), ?versions, "starting");
    let reports = Reports::default();
    reports.process(false);
    let dataplane = Dataplane::open(Fixed {
        commands,
        backend,
        versions,
        local: config.parameters,
        status: StatusFiles::new(&config.status_prefix).reporting(reports.clone()),
    })
    .await?;
    let (questions_out, questions) = mpsc::channel(1);
    let dataplane = dataplane.answering(questions).serving(ports_out);
    let control = control::socket(&config.status_prefix).and_then(|path| {
        let bound = Control::bind(&path, questions_out);
        bound
            .inspect_err(|error| {
                tracing::warn!(error = format!("{error:#}"), "`felix status` will not answer")
            })
            .ok()
    });

    let cancel = CancellationToken::new();
    let (events_out, events) = mpsc::channel(EVENT_BUFFER);
    let (batches_out, batches) = mpsc::channel(BATCH_BUFFER);
    let (acks_out, acks) = watch::channel(None);
    let software = concat!("bulrush-felix ", env!("CARGO_PKG_VERSION"));
    let mut client = ClientConfig::new(config.typhas, config.node.clone(), "felix", software);
    (client.reports, client.tls, client.zone) = (reports, config.typha_tls, config.typha_zone);
    client.state = config.state_file;

    let mut tasks = Tasks::new(cancel.clone());
    let token = cancel.clone();
    tasks.spawn("signals", async move {
        signals.cancel_on_signal(token).await;
        Ok(())
    });
    tasks.spawn("http", http.follow(ports, cancel.clone()));
    if let Some(control) = control {
        tasks.spawn("control", control.run(cancel.clone()));
    }
    let token = cancel.clone();
    tasks.spawn("typha-client", async move {
        typha_client::run(client, events_out, acks, token).await;
        Ok(())
    });
    let calculation = Calculation::new(&config.node);
    tasks.spawn("calculation", calculation.run(events, batches_out, calculation_reporter, cancel.clone()));
    tasks.spawn("dataplane", dataplane.run(batches, acks_out, dataplane_reporter, cancel));
    tasks.run(GRACE).await
}
