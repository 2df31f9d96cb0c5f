//! A run: fill the datastore, let the nodes join, go through the phases, and check every node after each.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use daemon::CancellationToken;
use nix::sys::signal::Signal;
use syncer_common::backend::config::StoreConfig;
use tokio::runtime::Handle;
use typha_client::Names;

use crate::baseline;
use crate::cluster::{Change, Cluster};
use crate::fleet::{Fleet, Pace, Sample, Seen, Speech};
use crate::incumbent;
use crate::latency::Latencies;
use crate::limits;
use crate::local::{LOOPBACK, Local, Probe};
use crate::node::{Fault, Keys};
use crate::phase::Phase;
use crate::real::{self, Probing, Real, netns};
use crate::relay::Relay;
use crate::report::{Machine, PhaseResult, Report};
use crate::sampler::{self, Probes};
use crate::shape::Shape;
use crate::source::Source;
use crate::writers::{Writers, churn};

/// Descriptors for everything but the nodes.
pub const OTHER_DESCRIPTORS: u64 = 500;

pub struct Plan {
    pub servers: Servers,
    pub shape: Shape,
    /// How many streams; more than the cluster has nodes never.
    pub nodes: usize,
    pub phases: Vec<Phase>,
    pub seed: u64,
    pub patience: Duration,
    /// Whether to measure the traffic without typha, too.
    pub baseline: bool,
    /// Percent.
    pub sample: f64,
    pub fault: Option<Fault>,
    /// Nodes with felix and confd, beside the simulated ones.
    pub real: usize,
    /// Stops the felix of one of them, to see that it is found.
    pub stop_felix: bool,
    pub logs: PathBuf,
    pub command: String,
}

pub enum Servers {
    /// Started for the run: an etcd and so many typhas.
    Local(usize),
    /// Running ones; without a datastore nothing is written.
    Given { typhas: Vec<String>, calico: bool, pids: Vec<u32>, store: Option<StoreConfig> },
}

struct Run {
    fleet: Fleet,
    cluster: Cluster,
    source: Option<Arc<Source>>,
    local: Option<Local>,
    relays: Vec<Relay>,
    real: Option<Real>,
    latencies: Arc<Latencies>,
    probes: Probes,
    /// Servers on this machine that the run did not start.
    watched: Vec<Probe>,
    start: Instant,
    patience: Duration,
    stop: CancellationToken,
}

/// `nodes`: the runtime of the nodes. What drives and measures the run, the datastore's client above all, would wait behind
/// thousands of them in one.
pub async fn run(plan: Plan, nodes: Handle) -> Result<Report> {
    let cuts = plan.phases.iter().any(Phase::cuts);
    limits::descriptors(OTHER_DESCRIPTORS + plan.nodes as u64 * if cuts { 3 } else { 1 })?;
    if !matches!(plan.servers, Servers::Given { store: None, .. }) {
        limits::memory(plan.nodes, plan.shape.objects())?;
    }
    limits::ports(plan.nodes)?;
    let calico = matches!(plan.servers, Servers::Given { calico: true, .. });
    let host = if plan.real > 0 { netns::SERVERS.to_string() } else { LOOPBACK.to_owned() };
    let mut watched = Vec::new();
    let (mut local, store, servers) = match plan.servers {
        Servers::Local(typhas) => {
            eprintln!("starting etcd and {typhas} typhas; their logs are in {}", plan.logs.display());
            let local = Local::start(typhas, &host, &plan.logs).await?;
            let (servers, store) = (local.addresses(), Some(local.store.clone()));
            (Some(local), store, servers)
        }
        Servers::Given { typhas, store, pids, .. } => {
            watched.extend(pids.into_iter().map(Probe::of_process));
            (None, store, typhas)
        }
    };
    let stop = CancellationToken::new();
    let mut relays = Vec::new();
    if cuts {
        for server in &servers {
            // With the nodes' streams, their relays.
            let relay = nodes.spawn(Relay::start(host.clone(), server.clone(), stop.clone()));
            relays.push(relay.await?.context("starting a relay")?);
        }
    }
    let reached: Vec<String> =
        if cuts { relays.iter().map(Relay::address).collect() } else { servers.clone() };
    if let Some(local) = &mut local {
        local.serve(&reached)?;
    }
    let cluster = Cluster::new(plan.shape, plan.seed);
    let keys = if store.is_some() { Keys::accounted() } else { Keys::default() };
    let source = match store {
        Some(store) => {
            let source = Source::open(&store, calico, keys.clone()).await.context("opening the datastore")?;
            let mut objects = cluster.objects();
            objects.extend(real::objects(plan.real));
            eprintln!("writing {} objects", objects.len());
            source.fill(objects).await?;
            Some(Arc::new(source))
        }
        None => None,
    };
    let start = Instant::now();
    let latencies = Arc::new(Latencies::new(start));
    let real = match &source {
        Some(source) if plan.real > 0 => {
            let (servers, logs) = (&servers, &plan.logs);
            Some(Real::prepare(plan.real, &cluster, &reached, servers, source, logs, plan.stop_felix)?)
        }
        _ => None,
    };
    let simulated =
        cluster.nodes().enumerate().filter(|(index, _)| !real::indices(plan.real).contains(index));
    let names = simulated.map(|(_, name)| name).take(plan.nodes).collect();
    let sample = Sample { fault: plan.fault, ..Sample::draw(plan.nodes, plan.sample, plan.seed) };
    let speech = match calico {
        true => Speech::Calico { known: incumbent::Known::default(), received: Arc::default() },
        false => Speech::Bulrush(Names::default()),
    };
    let seen = Seen { latencies: latencies.clone(), spread: None };
    let mut run = Run {
        fleet: Fleet::new(reached, speech, names, keys, seen, sample, nodes.clone()),
        cluster,
        source,
        local,
        relays,
        real,
        latencies: latencies.clone(),
        probes: Probes::default(),
        watched,
        start,
        patience: plan.patience,
        stop: stop.clone(),
    };
    if let Some(local) = &mut run.local {
        local.ready().await?;
    }
    run.show_probes();
    let samples = Arc::new(Mutex::new(Vec::new()));
    let sampling = sampler::run(run.fleet.members(), latencies, run.probes.clone(), samples.clone());
    let (phases, failures) = tokio::select! {
        ended = run.phases(&plan.phases) => ended,
        () = sampling => unreachable!("it looks for ever"),
    };
    let entries = run.fleet.first_state().entries();
    let real = run.real.as_ref().map(Real::report);
    run.fleet.leave().await;
    let baselines = match plan.baseline && failures.is_empty() {
        true => baseline::measure(&phases, plan.nodes).await?,
        false => Vec::new(),
    };
    stop.cancel();
    if let (Some(source), None) = (&run.source, &run.local) {
        eprintln!("removing what was written");
        source.clear().await?;
    }
    let samples = std::mem::take(&mut *samples.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Report {
        version: env!("CARGO_PKG_VERSION").into(),
        command: plan.command,
        seed: plan.seed,
        started_unix_seconds: SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(0, |since| since.as_secs() - start.elapsed().as_secs()),
        machine: Machine::here(),
        protocol: if calico { "calico-typha" } else { "bulrush" }.into(),
        nodes: plan.nodes,
        typhas: servers.len(),
        shape: run.source.is_some().then_some(plan.shape),
        entries,
        own_peak_mb: limits::own_peak_mb(),
        phases,
        baselines,
        samples,
        real,
        failures,
    })
}

impl Run {
    fn show_probes(&self) {
        if let Some(local) = &self.local {
            self.probes.set(local.typhas.iter().map(|typha| typha.probe()).collect());
        } else {
            self.probes.set(self.watched.clone());
        }
    }

    /// All phases; the first failure ends the run.
    async fn phases(&mut self, phases: &[Phase]) -> (Vec<PhaseResult>, Vec<String>) {
        let mut results = Vec::new();
        for phase in std::iter::once(None).chain(phases.iter().map(Some)) {
            let name = phase.map_or("join".into(), ToString::to_string);
            eprintln!("{:>6.1} s  {name}", self.start.elapsed().as_secs_f64());
            let mut result = PhaseResult { phase: name.clone(), ..PhaseResult::default() };
            let failures = match self.phase(phase, &mut result).await {
                Ok(failures) => failures,
                Err(error) => vec![format!("{error:#}")],
            };
            result.until_second = self.start.elapsed().as_secs() as usize;
            results.push(result);
            if !failures.is_empty() {
                return (results, failures.into_iter().map(|failure| format!("{name}: {failure}")).collect());
            }
        }
        (results, Vec::new())
    }

    async fn phase(&mut self, phase: Option<&Phase>, result: &mut PhaseResult) -> Result<Vec<String>> {
        let (before, served) = (self.fleet.totals(), self.probes.served().await);
        let received_bytes = self.fleet.received_bytes();
        self.latencies.begin();
        let start = Instant::now();
        let probing = self.begin_real(phase).await?;
        match phase {
            None => self.fleet.join(),
            Some(phase) => result.writes = self.act(*phase).await?,
        }
        if matches!(phase, None | Some(Phase::Storm))
            && let Err(late) = self.fleet.all_in_sync(self.patience).await
        {
            return Ok(vec![late]);
        }
        let ended = Instant::now();
        if let Some(probing) = probing {
            result.writes += probing.finish(ended + self.patience).await?;
        }
        result.seconds = ended.duration_since(start).as_secs_f64();
        let truth = match &self.source {
            Some(source) => source.truth().await?,
            // Nothing to compare with but one another.
            None => self.fleet.first_state(),
        };
        let mut failures = match self.fleet.all_hold(&truth, self.patience).await {
            Ok(last_change) => {
                let settled = last_change.map(|at| at.saturating_duration_since(ended)).unwrap_or_default();
                result.settled_ms = Some(settled.as_secs_f64() * 1e3);
                Vec::new()
            }
            Err(failures) => failures,
        };
        let after = self.fleet.totals();
        result.messages = after.messages - before.messages;
        result.updates = after.updates - before.updates;
        result.deletions = after.deletions - before.deletions;
        result.disconnects = after.disconnects - before.disconnects;
        result.sent_on = after.sent_on - before.sent_on;
        result.latency = self.latencies.since_begin();
        result.received_bytes =
            self.fleet.received_bytes().zip(received_bytes).map(|(after, before)| after - before);
        if let (Some(before), Some(after)) = (served, self.probes.served().await) {
            result.servers = Some(sampler::between(&before, &after));
        }
        let nothing_happened = phase.is_some_and(|phase| !phase.writes());
        if nothing_happened && result.deletions > 0 && self.source.is_some() {
            failures.push(format!("{} deletions, though nothing was deleted", result.deletions));
        }
        failures.extend(self.fleet.mistakes());
        if let (Some(real), Some(source)) = (&mut self.real, &self.source) {
            let (found, wrong) = real.check(&self.cluster, source, ended, self.patience).await;
            result.real = Some(found);
            failures.extend(wrong);
        }
        Ok(failures)
    }

    /// The real nodes join, or die and join anew; while a phase writes, what it takes until an edit is in their kernels is
    /// measured.
    async fn begin_real(&mut self, phase: Option<&Phase>) -> Result<Option<Probing>> {
        let (Some(real), Some(source)) = (&mut self.real, &self.source) else { return Ok(None) };
        match phase {
            None => real.join()?,
            Some(phase) => {
                real.begin()?;
                if *phase == Phase::Storm {
                    real.restart().await?;
                }
                return Ok(phase.writes().then(|| real.probe(source.clone())));
            }
        }
        Ok(None)
    }

    /// Returns how many changes were written.
    async fn act(&mut self, phase: Phase) -> Result<u64> {
        match phase {
            Phase::Idle { seconds } => tokio::time::sleep(Duration::from_secs(seconds)).await,
            Phase::Churn { seconds, rate } => return self.churn(Duration::from_secs(seconds), rate).await,
            Phase::Rollout { count } => {
                let changes = (0..count).flat_map(|_| self.cluster.change_policy()).collect();
                return self.write(changes).await;
            }
            Phase::Namespaces { count } => {
                let changes = (0..count).flat_map(|_| self.cluster.delete_namespace()).collect();
                return self.write(changes).await;
            }
            Phase::Storm => self.fleet.restart().await,
            Phase::Reconnect => self.cut(Duration::ZERO).await?,
            Phase::Cut { seconds } => self.cut(Duration::from_secs(seconds)).await?,
            Phase::Failover { seconds } => {
                for relay in &self.relays {
                    relay.close(true);
                    relay.cut(&self.stop);
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    relay.close(false);
                    self.fleet.all_caught_up(self.patience).await.map_err(anyhow::Error::msg)?;
                }
            }
            Phase::Partition { seconds } => {
                for relay in &self.relays {
                    relay.silence(true);
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    relay.silence(false);
                    self.fleet.all_caught_up(self.patience).await.map_err(anyhow::Error::msg)?;
                }
            }
            Phase::Nodes { count } => return self.nodes(count).await,
            Phase::Compact { seconds, rate } => {
                return self.compact(Duration::from_secs(seconds), rate).await;
            }
            Phase::Day { seconds } => {
                let mut written = 0;
                for _ in 0..24 {
                    tokio::time::sleep(Duration::from_secs(seconds) / 24).await;
                    let mark = self.latencies.mark(Instant::now());
                    let changes = self.cluster.churn(mark);
                    written += self.write(changes).await?;
                    self.local.as_ref().context("day needs --local")?.compact().await?;
                }
                return Ok(written);
            }
            Phase::Stall { percent, seconds, rate } => {
                return self.hindered(percent, Pace::Stalled, seconds, rate).await;
            }
            Phase::Slow { percent, seconds, rate, pause } => {
                let pace = Pace::Slow(Duration::from_millis(pause));
                return self.hindered(percent, pace, seconds, rate).await;
            }
            Phase::Rolling { rate } => return self.rolling(rate).await,
            Phase::Freeze { seconds } => {
                let local = self.local.as_ref().context("freeze needs --local")?;
                local.etcd.signal(Signal::SIGSTOP)?;
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                local.etcd.signal(Signal::SIGCONT)?;
            }
        }
        Ok(0)
    }

    async fn churn(&mut self, length: Duration, rate: f64) -> Result<u64> {
        let source = self.source.clone().context("churn needs a datastore to write to")?;
        churn(&source, &mut self.cluster, &self.latencies, rate, tokio::time::sleep(length)).await
    }

    /// Ends all streams; for so long none gets through. Returns when every node has one again.
    async fn cut(&self, length: Duration) -> Result<()> {
        let all = self.fleet.totals().disconnects + self.fleet.len() as u64;
        self.relays.iter().for_each(|relay| {
            relay.close(!length.is_zero());
            relay.cut(&self.stop);
        });
        tokio::time::sleep(length).await;
        self.relays.iter().for_each(|relay| relay.close(false));
        let deadline = Instant::now() + self.patience;
        while self.fleet.totals().disconnects < all && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.fleet.all_caught_up(self.patience).await.map_err(anyhow::Error::msg)
    }

    /// Churn, while a part of the nodes reads slowly or not at all.
    async fn hindered(&mut self, percent: f64, pace: Pace, seconds: u64, rate: f64) -> Result<u64> {
        let count = (self.fleet.len() as f64 * percent / 100.0).ceil() as usize;
        self.fleet.pace(count, pace);
        let written = self.churn(Duration::from_secs(seconds), rate).await;
        self.fleet.pace(count, Pace::Full);
        written
    }

    async fn nodes(&mut self, count: usize) -> Result<u64> {
        let count = count.min(self.fleet.len() - 1);
        self.fleet.last_leave(count);
        let changes = self.cluster.remove_nodes(count);
        let gone = self.write(changes).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let changes = self.cluster.return_nodes(count);
        let back = self.write(changes).await?;
        self.fleet.last_return(count);
        self.fleet.all_in_sync(self.patience).await.map_err(anyhow::Error::msg)?;
        Ok(gone + back)
    }

    /// What the typhas did not see is forgotten when they look again.
    async fn compact(&mut self, length: Duration, rate: f64) -> Result<u64> {
        let all = |local: &Local, signal| local.typhas.iter().try_for_each(|typha| typha.signal(signal));
        let before = self.probes.served().await;
        let local = self.local.as_mut().context("compact needs --local")?;
        all(local, Signal::SIGSTOP)?;
        // Else what changes would wait for them in the sockets of their watches.
        local.restart_etcd().await?;
        let written = self.churn(length, rate).await;
        let local = self.local.as_ref().context("compact needs --local")?;
        let compacted = local.compact().await;
        all(local, Signal::SIGCONT)?;
        compacted?;
        let written = written?;
        // All nodes may be with one replica; the other one has to have listed, too.
        let deadline = Instant::now() + self.patience;
        while let (1.., Some(before), Some(now)) = (written, &before, self.probes.served().await)
            && now.iter().zip(before).any(|((_, now), (_, then))| now.listings <= then.listings)
        {
            ensure!(Instant::now() < deadline, "a typha whose history was compacted away has not listed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(written)
    }

    /// Each typha in turn, while pods come and go.
    async fn rolling(&mut self, rate: f64) -> Result<u64> {
        let source = self.source.clone().context("churn needs a datastore to write to")?;
        let mut local = self.local.take().context("rolling needs --local")?;
        let (fleet, probes, patience) = (&self.fleet, self.probes.clone(), self.patience);
        let mut outcome = Ok(());
        let restarts = async {
            for index in 0..local.typhas.len() {
                outcome = local.restart(index).await;
                if outcome.is_err() {
                    return;
                }
                probes.set(local.typhas.iter().map(|typha| typha.probe()).collect());
                // Each node is served again before the next typha goes.
                if let Err(late) = fleet.all_in_sync(patience).await {
                    outcome = Err(anyhow::anyhow!(late));
                    return;
                }
                // So that the next one knows where to send its clients.
                outcome = local.acquainted(patience).await;
                if outcome.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        };
        let written = churn(&source, &mut self.cluster, &self.latencies, rate, restarts).await;
        self.local = Some(local);
        outcome?;
        written
    }

    async fn write(&self, changes: Vec<Change>) -> Result<u64> {
        let source = self.source.clone().context("there is no datastore to write to")?;
        let mut writers = Writers::start(source);
        for change in changes {
            writers.write(change).await?;
        }
        writers.finish().await
    }
}

impl Plan {
    /// Refuses what cannot work before anything is started.
    pub fn check(&self) -> Result<()> {
        self.shape.check().map_err(|error| anyhow::anyhow!(error))?;
        ensure!(self.nodes > 0, "at least one node");
        ensure!(
            (0.0..=100.0).contains(&self.sample),
            "--sample {} is not from 0 to 100 percent",
            self.sample
        );
        ensure!(
            self.nodes + self.real <= self.shape.nodes,
            "{} streams are more than the {} nodes of the cluster: a larger --preset, or --nodes",
            self.nodes + self.real,
            self.shape.nodes
        );
        if let Servers::Given { pids, .. } = &self.servers {
            for pid in pids {
                ensure!(
                    Probe::of_process(*pid).usage().is_some(),
                    "--pid {pid}: there is no such process on this machine"
                );
            }
        }
        for phase in &self.phases {
            match &self.servers {
                Servers::Local(_) => {}
                Servers::Given { .. } if phase.needs_local() => anyhow::bail!(
                    "{phase} acts on servers that the run started itself: use --local instead of --typha"
                ),
                Servers::Given { store: None, .. } if phase.writes() => anyhow::bail!(
                    "{phase} writes to the datastore: name it with --etcd, --kubeconfig or --directory (it has to be empty)"
                ),
                Servers::Given { .. } => {}
            }
        }
        Ok(())
    }
}
