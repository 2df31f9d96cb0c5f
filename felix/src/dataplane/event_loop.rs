//! The loop that owns the drivers: inputs, throttle, passes, regular checks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use daemon::{Backoff, CancellationToken, Ports, Reporter};
use felix_calc::output::Output;
use tokio::sync::{mpsc, watch};
use typha_client::CutId;

use super::answers::{Answers, History};
use super::configure::detect_features;
use super::kernel::{Count, Kernel};
use super::model::{HostInterface, Model};
use super::params::DataplaneParams;
use super::status::{StatusFiles, states};
use super::throttle::Throttle;
use crate::commands::{CommandError, Commands};
use crate::config;
use crate::control::Question;
use crate::ifacemonitor::{Event, Monitor};
use crate::ipsets::IpSets;
use crate::iptables::tables::Tables;
use crate::iptables::{Backend, IpVersion};
use crate::metrics;
use crate::routetable::listing;
use crate::routetable::{RouteTable, sysctl};
use crate::tunnels::Tunnels;

/// How often the loop looks around without being called.
const TICK: Duration = Duration::from_millis(250);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// The kernel tells nobody of changes to IP sets: how often to look for those of others.
const IPSETS_LOOK: Duration = Duration::from_secs(5);
/// Address changes come in bursts: look once they are over.
const ADDRESS_PAUSE: Duration = Duration::from_millis(100);

/// What the calculation hands over at once.
#[derive(Debug)]
pub struct Batch {
    pub outputs: Vec<Output>,
    /// Acknowledged when everything up to here is in the kernel.
    pub cut: Option<CutId>,
    /// When the oldest of it arrived on this node.
    pub arrived: Instant,
}

/// What cannot change while felix runs.
pub struct Fixed {
    pub commands: Arc<dyn Commands>,
    pub backend: Backend,
    pub versions: Vec<IpVersion>,
    /// Parameters given on this node.
    pub local: BTreeMap<String, String>,
    pub status: StatusFiles,
}

pub struct Dataplane {
    pub(super) commands: Arc<dyn Commands>,
    pub(super) versions: Vec<IpVersion>,
    /// The backend, unless the configuration names one.
    pub(super) first_backend: Backend,
    /// As last set by the configuration.
    pub(super) log_level: Option<String>,
    pub(super) model: Model,
    pub(super) kernel: Kernel,
    monitor: Monitor,
    pub(super) status: StatusFiles,
    /// The first proven state has arrived.
    started: bool,
    swept: bool,
    /// Rules of ours are in the backend that was left.
    pub(super) left_behind: bool,
    configured: bool,
    model_dirty: bool,
    addresses_due: Option<Instant>,
    cut: Option<CutId>,
    arrived: Option<Instant>,
    changes: usize,
    throttle: Throttle,
    backoff: Backoff,
    retry_at: Option<Instant>,
    refreshes: Refreshes,
    pub(super) history: History,
    questions: Option<mpsc::Receiver<Question>>,
    /// Where health and metrics are served.
    pub(super) ports: Option<watch::Sender<Ports>>,
}

struct Refreshes {
    tables: Instant,
    ipsets: Instant,
    suspicion: Instant,
    routes: Instant,
    interfaces: Instant,
}

impl Dataplane {
    /// Opens programs and sockets in the current network namespace. Reads, writes nothing.
    pub async fn open(fixed: Fixed) -> anyhow::Result<Dataplane> {
        let Fixed { commands, backend, versions, local, status } = fixed;
        let tables =
            Tables::open(&commands, backend, &versions).await.context("looking for the iptables programs")?;
        if let Err(error @ CommandError::Missing { .. }) = commands.run("ipset", &["version"], "").await {
            return Err(error).context("looking for the ipset program");
        }
        let features = detect_features(&*commands, backend).await?;
        let model = Model::new(&versions, features, local);
        let max = model.params().max_ipset_size;
        let ipsets = versions.iter().map(|v| (*v, IpSets::new(*v, commands.clone(), max))).collect();
        let routes = RouteTable::new(commands.clone(), &versions)?;
        let tunnels = Tunnels::new(&versions)?;
        // Subscribe first, list afterwards: no event in between is lost.
        let monitor = Monitor::open().context("subscribing to interface events")?;
        let now = Instant::now();
        Ok(Dataplane {
            commands,
            versions,
            first_backend: backend,
            log_level: None,
            model,
            kernel: Kernel { tables, ipsets, routes, tunnels, forwarding: false },
            monitor,
            status,
            started: false,
            swept: false,
            left_behind: false,
            configured: true,
            model_dirty: true,
            addresses_due: Some(now),
            cut: None,
            arrived: None,
            changes: 0,
            throttle: Throttle::full(now),
            backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            retry_at: None,
            refreshes: Refreshes { tables: now, ipsets: now, suspicion: now, routes: now, interfaces: now },
            history: History::default(),
            questions: None,
            ports: None,
        })
    }

    /// Answers questions that come this way while it runs.
    pub fn answering(self, questions: mpsc::Receiver<Question>) -> Dataplane {
        Dataplane { questions: Some(questions), ..self }
    }

    /// Says where health and metrics are to be served as the configuration changes.
    pub fn serving(self, ports: watch::Sender<Ports>) -> Dataplane {
        Dataplane { ports: Some(ports), ..self }
    }

    /// Runs until cancelled or until the calculation ends. Leaves everything in the kernel.
    pub async fn run(
        mut self,
        mut batches: mpsc::Receiver<Batch>,
        acks: watch::Sender<Option<CutId>>,
        reporter: Reporter,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        reporter.not_ready("waiting for the first proven state");
        loop {
            let wake = self.wake_at();
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                batch = batches.recv() => match batch {
                    Some(batch) => self.absorb(batch),
                    None => return Ok(()),
                },
                events = self.monitor.next() => match events {
                    Ok(events) => self.on_events(events),
                    Err(error) => self.subscribe_again(&error).await,
                },
                question = next(&mut self.questions) => {
                    let answer = self.answers().answer(&question.words);
                    // Nobody waits for it when the asker has gone.
                    drop(question.answer.send(answer));
                }
                _ = tick.tick() => self.on_tick(),
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            while let Ok(batch) = batches.try_recv() {
                self.absorb(batch);
            }
            reporter.beat();
            if self.is_due() {
                let done = self.apply().await;
                if done {
                    reporter.ready();
                    if let Some(cut) = self.cut.take() {
                        acks.send_replace(Some(cut));
                    }
                } else if !self.swept {
                    reporter.not_ready("the first state is not programmed yet");
                }
            }
        }
    }

    // === inputs ===

    fn absorb(&mut self, batch: Batch) {
        self.started = true;
        self.changes += batch.outputs.len();
        metrics::messages(batch.outputs.len());
        if !batch.outputs.is_empty() {
            self.arrived = Some(self.arrived.map_or(batch.arrived, |other| other.min(batch.arrived)));
        }
        for output in batch.outputs {
            if let Output::Config(params) = &output {
                self.history.refused = config::not_in_force(params);
                for refused in &self.history.refused {
                    tracing::warn!("{refused}");
                }
                self.configured = false;
            }
            self.model.on_output(output);
        }
        self.model_dirty = true;
        if batch.cut.is_some() {
            self.cut = batch.cut;
        }
    }

    fn answers(&self) -> Answers<'_> {
        Answers {
            model: &self.model,
            tables: &self.kernel.tables,
            ipsets: &self.kernel.ipsets,
            routes: &self.kernel.routes,
            tunnels: &self.kernel.tunnels,
            status: &self.status,
            history: &self.history,
            started: self.started,
            dirty: self.model_dirty && self.started,
        }
    }

    /// The event socket failed: a new one, and everything is listed again.
    async fn subscribe_again(&mut self, error: &std::io::Error) {
        tracing::warn!(%error, "interface events cannot be read; subscribing again");
        match Monitor::open() {
            Ok(monitor) => {
                self.monitor = monitor;
                self.on_events(vec![Event::Lost]);
            }
            Err(error) => tracing::warn!(%error, "no subscription to interface events; trying again"),
        }
        // A socket that fails at once must not take the processor.
        tokio::time::sleep(ADDRESS_PAUSE).await;
    }

    fn on_events(&mut self, events: Vec<Event>) {
        let soon = || Some(Instant::now() + ADDRESS_PAUSE);
        for event in events {
            match event {
                Event::Link(link) => {
                    self.kernel.tunnels.on_link(&link);
                    self.kernel.routes.on_link(link);
                    self.addresses_due = self.addresses_due.or_else(soon);
                }
                Event::LinkGone { index } => {
                    self.kernel.routes.on_link_gone(index);
                    self.kernel.tunnels.on_link_gone(index);
                    self.addresses_due = self.addresses_due.or_else(soon);
                }
                Event::Addresses => self.addresses_due = self.addresses_due.or_else(soon),
                Event::RouteAdded(route) => self.kernel.on_route(&route, true),
                Event::RouteGone(route) => self.kernel.on_route(&route, false),
                Event::Neighbour(change) => self.kernel.tunnels.on_neighbour(&change),
                Event::Lost => {
                    tracing::info!("interface events were lost; listing everything again");
                    metrics::events_lost();
                    self.kernel.routes.queue_resync();
                    self.kernel.tunnels.queue_resync();
                    self.addresses_due = self.addresses_due.or_else(soon);
                }
            }
        }
    }

    fn on_tick(&mut self) {
        self.status.retry();
        if !self.swept {
            return;
        }
        let params = self.model.params();
        if due(&mut self.refreshes.tables, params.tables_refresh) {
            self.kernel.tables.queue_resync();
        }
        if due(&mut self.refreshes.ipsets, params.ipsets_refresh) {
            self.kernel.ipsets.values_mut().for_each(IpSets::queue_resync);
        }
        if due(&mut self.refreshes.suspicion, IPSETS_LOOK) {
            self.kernel.ipsets.values_mut().for_each(IpSets::suspect);
        }
        if due(&mut self.refreshes.routes, params.routes_refresh) {
            self.kernel.routes.queue_resync();
            self.kernel.tunnels.queue_resync();
        }
        if due(&mut self.refreshes.interfaces, params.interfaces_refresh) {
            self.addresses_due = Some(Instant::now());
        }
        if self.kernel.tables.look(params.tables_check) {
            tracing::debug!("somebody else wrote rules; checking ours");
        }
    }

    // === passes ===

    fn has_work(&self) -> bool {
        let now = Instant::now();
        self.kernel.tables.is_dirty()
            || self.kernel.ipsets.values().any(|sets| sets.has_updates() || sets.has_deletions())
            || self.kernel.routes.needs_apply()
            || self.kernel.tunnels.needs_apply()
            || self.addresses_due.is_some_and(|due| due <= now)
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        // New input is tried at once, even while something else fails.
        let wanted = self.model_dirty || self.retry_at.map_or_else(|| self.has_work(), |at| at <= now);
        self.started && wanted && self.throttle.admit(now)
    }

    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let far = now + Duration::from_secs(3600);
        match self.retry_at {
            _ if !self.started => far,
            _ if self.model_dirty => self.throttle.next(now),
            Some(retry) => retry.max(self.throttle.next(now)),
            None if self.has_work() => self.throttle.next(now),
            None => {
                [self.addresses_due, self.kernel.routes.due()].into_iter().flatten().fold(far, Instant::min)
            }
        }
    }

    /// One pass. `true`: the kernel is as wanted.
    async fn apply(&mut self) -> bool {
        let started = Instant::now();
        let mut failures: Vec<String> = Vec::new();
        self.retry_at = None;
        if !std::mem::replace(&mut self.configured, true) {
            self.configure().await;
        }
        if self.addresses_due.is_some_and(|due| due <= started) {
            self.addresses_due = None;
            match self.list_interfaces().await {
                Ok(()) => {}
                Err(error) => {
                    failures.push(format!("{error:#}"));
                    self.addresses_due = Some(started + ADDRESS_PAUSE);
                }
            }
        }
        self.model_dirty = false;
        let whose =
            |params: &DataplaneParams| (params.interface_exclude.clone(), params.routes.prefixes.clone());
        let interfaces = whose(self.model.params());
        let errors = self.model.flush(&mut self.kernel);
        if interfaces != whose(self.model.params()) {
            // Other interfaces are the node's own: the next pass looks.
            self.addresses_due = Some(started);
        }
        for error in errors {
            self.history.refuse(error.to_string());
            tracing::warn!(
                key = error.name,
                field = "value",
                value = error.value,
                reason = error.reason,
                "parameter refused, its default applies"
            );
            metrics::config_error();
        }
        self.forward();

        let written = self.kernel.write().await;
        failures.extend(written.failures);
        if written.tables && !self.kernel.tables.is_dirty() {
            for sets in self.kernel.ipsets.values_mut() {
                sets.apply_deletions().await;
            }
            if failures.is_empty() && (!self.swept || self.left_behind) {
                self.swept = true;
                let sweep = self.kernel.tables.sweep_other(&self.commands, &self.versions).await;
                if self.left_behind {
                    failures.extend(sweep.errors.iter().map(|(_, _, error)| error.to_string()));
                    self.left_behind = !sweep.errors.is_empty();
                }
            }
        }
        let states = states(&self.model, &self.kernel.tables, &self.kernel.routes);
        match written.rules {
            true => self.status.update(&self.model, states),
            false => self.status.hold(states),
        }
        self.finish(started, written.count, &failures);
        failures.is_empty()
    }

    fn finish(&mut self, started: Instant, count: Count, failures: &[String]) {
        let took = started.elapsed();
        self.history.passes += 1;
        if failures.is_empty() {
            self.history.last_good = Some(Instant::now());
            self.history.cut = self.cut.as_ref().map(|cut| cut.seq).or(self.history.cut);
        } else {
            self.history.failures = failures.to_vec();
            self.history.failed_at = Some(Instant::now());
        }
        metrics::pass(took, !failures.is_empty());
        let (endpoints, policies) = self.model.counts();
        metrics::active(endpoints, policies);
        for (version, sets) in &self.kernel.ipsets {
            metrics::ipsets_owned(*version, sets.wanted().count());
        }
        let millis = |duration: Duration| (duration.as_secs_f64() * 1e4).round() / 10.0;
        if !failures.is_empty() {
            let pause = self.backoff.next_wait();
            self.retry_at = Some(Instant::now() + pause);
            tracing::warn!(
                failures = failures.len(),
                first = failures[0],
                retry_ms = millis(pause),
                "programmed in part"
            );
            return;
        }
        self.backoff.reset();
        let latency = self.arrived.take().map(|arrived| arrived.elapsed());
        let changes = std::mem::take(&mut self.changes);
        if let Some(latency) = latency {
            metrics::programmed_after(latency);
            let seq = self.cut.as_ref().map_or(0, |cut| cut.seq);
            tracing::info!(
                changes,
                cut = seq,
                latency_ms = millis(latency),
                pass_ms = millis(took),
                ipset_lines = count.set_lines,
                table_lines = count.table_lines,
                route_writes = count.route_writes,
                "programmed"
            );
        } else if count.any() {
            tracing::info!(
                pass_ms = millis(took),
                ipset_lines = count.set_lines,
                table_lines = count.table_lines,
                route_writes = count.route_writes,
                "repaired"
            );
        }
    }

    fn forward(&mut self) {
        if self.kernel.forwarding || !self.model.params().ip_forwarding {
            return;
        }
        let errors = sysctl::forward(&self.versions);
        self.kernel.forwarding = errors.is_empty();
        for error in errors {
            tracing::warn!(%error, "forwarding could not be switched on; trying again");
        }
        sysctl::count_connections();
    }

    async fn list_interfaces(&mut self) -> anyhow::Result<()> {
        let links = listing::links().await?;
        let addresses = listing::interface_addresses().await?;
        let params = self.model.params();
        let foreign = |name: &str| {
            params.routes.is_workload(name) || params.interface_exclude.iter().any(|other| other == name)
        };
        let mut interfaces: Vec<HostInterface> = Vec::new();
        for link in links.iter().filter(|link| !foreign(&link.name)) {
            let mut own: Vec<IpAddr> = addresses
                .iter()
                .filter(|(index, _)| *index == link.index)
                .map(|(_, net)| net.addr())
                .collect();
            own.sort();
            own.dedup();
            interfaces.push(HostInterface { name: link.name.clone(), addresses: own });
        }
        interfaces.sort_by(|a, b| a.name.cmp(&b.name));
        self.kernel.tunnels.on_addresses(&addresses);
        for link in links {
            self.kernel.tunnels.on_link(&link);
            self.kernel.routes.on_link(link);
        }
        self.model.on_interfaces(interfaces);
        Ok(())
    }
}

/// The next question; never, when there are none to come.
async fn next(questions: &mut Option<mpsc::Receiver<Question>>) -> Question {
    if let Some(receiver) = questions
        && let Some(question) = receiver.recv().await
    {
        return question;
    }
    std::future::pending().await
}

fn due(last: &mut Instant, interval: Duration) -> bool {
    let due = !interval.is_zero() && last.elapsed() >= interval;
    if due {
        *last = Instant::now();
    }
    due
}
