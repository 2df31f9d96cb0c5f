//! Wiring of the daemon: which tasks there are, and how they are joined.
//!
//! ```text
//! typha-client ──events (bounded)──> agent ──> BIRD        signals ──> cancel
//!       ^────────acks (watch)──────────┘                   http: /metrics /liveness /readiness
//! ```

use std::time::Duration;

use ::daemon::{CancellationToken, Health, Http, Metrics, Signals, Tasks};
use tokio::sync::{mpsc, watch};
use typha_client::ClientConfig;

use crate::agent::{Agent, Outputs};
use crate::bird::program::Programmer;
use crate::bird::write::ConfigFile;
use crate::config::Config;
use crate::metrics::ConfdMetrics;
use crate::template::{self, Templates};

/// Enough for a client to read on while BIRD reconfigures; beyond that the server coalesces.
const EVENT_BUFFER: usize = 64;
const GRACE: Duration = Duration::from_secs(5);
/// The agent's loop is heard from at every supervision; BIRD may take a minute to check a configuration
/// and another to read it.
const SILENCE: Duration = Duration::from_secs(180);

/// Runs until a signal comes. BIRD and what it has programmed stay.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let metrics = Metrics::install()?;
    let health = Health::new();
    let reporter = health.register("bird", Some(SILENCE));
    let http = Http::bind(config.metrics, config.health, metrics, health).await?;
    let signals = Signals::install()?;

    let cancel = CancellationToken::new();
    let (events_out, events) = mpsc::channel(EVENT_BUFFER);
    let (acks_out, acks) = watch::channel(None);
    let programmers = config
        .birds
        .into_iter()
        .map(|bird| Programmer::new(ConfigFile::new(bird.config, bird.binary), bird.socket))
        .collect();
    let outputs = Outputs { syntax: config.syntax, programmers, local_files: config.local_files };
    let software = concat!("bulrush-confd ", env!("CARGO_PKG_VERSION"));
    let mut client = ClientConfig::new(config.typhas, config.local.node.clone(), "confd", software);
    (client.tls, client.zone) = (config.typha_tls, config.typha_zone);
    client.secrets = true;
    let agent = Agent::new(config.local, outputs, acks_out, ConfdMetrics::new(), reporter)
        .reporting(client.reports.clone());

    let mut tasks = Tasks::new(cancel.clone());
    let token = cancel.clone();
    tasks.spawn("signals", async move {
        signals.cancel_on_signal(token).await;
        Ok(())
    });
    tasks.spawn("http", http.run(cancel.clone()));
    let token = cancel.clone();
    tasks.spawn("typha-client", async move {
        typha_client::run(client, events_out, acks, token).await;
        Ok(())
    });
    tasks.spawn("agent", agent.run(events, cancel));
    tasks.run(GRACE).await
}

/// Makes files from templates, until a signal comes, or once.
pub async fn run_templates(config: Config, options: template::Options) -> anyhow::Result<()> {
    let signals = Signals::install()?;
    let templates = Templates::new(options)?;
    let cancel = CancellationToken::new();
    let (events_out, events) = mpsc::channel(EVENT_BUFFER);
    let (acks_out, acks) = watch::channel(None);
    let software = concat!("bulrush-confd ", env!("CARGO_PKG_VERSION"));
    // A name of its own: every kind is sent, and its acknowledgements are not BIRD's.
    let mut client = ClientConfig::new(config.typhas, config.local.node, "confd-template", software);
    (client.tls, client.zone) = (config.typha_tls, config.typha_zone);
    let mut tasks = Tasks::new(cancel.clone());
    let token = cancel.clone();
    tasks.spawn("signals", async move {
        signals.cancel_on_signal(token).await;
        Ok(())
    });
    let token = cancel.clone();
    tasks.spawn("typha-client", async move {
        typha_client::run(client, events_out, acks, token).await;
        Ok(())
    });
    tasks.spawn("templates", async move {
        let result = templates.run(events, acks_out, cancel.clone()).await;
        // Once is over.
        cancel.cancel();
        result
    });
    tasks.run(GRACE).await
}
