//! The one task that owns the model and BIRD: takes events in, programs at cuts, supervises between them.
//!
//! ```text
//! ClientEvent ─> Intake ─> Model ─compute─> BgpModel ─render─> Programmer ─> file, BIRD
//!                                                                  │
//!                               acks <── the last cut that BIRD has confirmed
//! ```
//!
//! Nothing is written before the first proven state. A lost server changes nothing at all. Where cuts fail
//! to come, additions are programmed all the same, and deletions wait for the next cut: between cuts, that
//! something is missing proves nothing.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::bail;
use daemon::{CancellationToken, Reporter};
use syncer_common::model::{Key, Update};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use typha_client::{ClientEvent, CutId, Reports};

use crate::bgp::{BgpModel, LocalSettings, Model, Problem};
use crate::bird::program::{ProgramError, Programmer, Supervision};
use crate::bird::sessions::{Change, Session};
use crate::metrics::ConfdMetrics;
use crate::render::{Syntax, render};

/// How often BIRD is looked at: a lost reload or a restarted BIRD is made good within that.
const SUPERVISE_EVERY: Duration = Duration::from_secs(2);
/// How long changes wait for a cut.
const CUT_WAIT: Duration = Duration::from_millis(500);

/// Updates on their way to the model: deletions are held back until a cut.
#[derive(Default)]
struct Intake {
    deletions: HashMap<Key, Update>,
}

impl Intake {
    fn take(&mut self, model: &mut Model, updates: Vec<Update>) -> bool {
        let mut changed = false;
        for update in updates {
            if update.value.is_ok() {
                self.deletions.remove(&update.key);
                changed |= model.on_update(update);
            } else {
                self.deletions.insert(update.key.clone(), update);
            }
        }
        changed
    }

    fn cut(&mut self, model: &mut Model) -> bool {
        let mut changed = false;
        for (_, update) in self.deletions.drain() {
            changed |= model.on_update(update);
        }
        changed
    }
}

pub struct Agent {
    local: LocalSettings,
    programmer: Programmer,
    acks: watch::Sender<Option<CutId>>,
    metrics: ConfdMetrics,
    reports: Reports,
    health: Reporter,
    model: Model,
    intake: Intake,
    in_sync: bool,
    /// The model differs from what was last rendered.
    changed: bool,
    /// The last cut, until it is acknowledged.
    cut: Option<CutId>,
    computed: Option<BgpModel>,
    /// BIRD ran the latest configuration when last looked at.
    confirmed: bool,
    problems: BTreeSet<Problem>,
    last_error: Option<String>,
}

impl Agent {
    pub fn new(
        local: LocalSettings,
        programmer: Programmer,
        acks: watch::Sender<Option<CutId>>,
        metrics: ConfdMetrics,
        health: Reporter,
    ) -> Agent {
        health.not_ready("waiting for the first complete state from typha");
        Agent {
            local,
            programmer,
            acks,
            metrics,
            reports: Reports::default(),
            health,
            model: Model::default(),
            intake: Intake::default(),
            in_sync: false,
            changed: false,
            cut: None,
            computed: None,
            confirmed: false,
            problems: BTreeSet::new(),
            last_error: None,
        }
    }

    /// Where BGP sessions are reported.
    pub fn reporting(self, reports: Reports) -> Agent {
        Agent { reports, ..self }
    }

    /// Runs until cancelled. BIRD goes on as it is afterwards.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<ClientEvent>,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(SUPERVISE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut overdue = std::pin::pin!(tokio::time::sleep(CUT_WAIT));
        loop {
            let waiting = self.in_sync && self.changed;
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                event = events.recv() => {
                    let Some(event) = event else {
                        // The client may have heard of the shutdown first.
                        if cancel.is_cancelled() {
                            return Ok(());
                        }
                        bail!("the connection to typha has ended");
                    };
                    let fresh = !self.changed;
                    let mut due = self.on_event(event);
                    // Whatever else has arrived is part of the same configuration.
                    while let Ok(event) = events.try_recv() {
                        due |= self.on_event(event);
                    }
                    if due {
                        self.program().await;
                    } else if fresh {
                        overdue.as_mut().reset(tokio::time::Instant::now() + CUT_WAIT);
                    }
                }
                () = &mut overdue, if waiting => self.program().await,
                _ = tick.tick() => self.supervise().await,
            }
        }
    }

    /// Takes an event in; `true` when it is time to program.
    fn on_event(&mut self, event: ClientEvent) -> bool {
        match event {
            ClientEvent::Connected { server } => tracing::info!(server, "connected to typha"),
            ClientEvent::Disconnected { reason } => {
                tracing::warn!(reason, "connection to typha lost, everything stays as it is");
            }
            ClientEvent::Updates(updates) => {
                self.metrics.updates.increment(updates.len() as u64);
                self.changed |= self.intake.take(&mut self.model, updates);
            }
            ClientEvent::InSync => {
                tracing::info!("in sync");
                self.in_sync = true;
                // Even a state without objects is one to program.
                self.changed = true;
            }
            ClientEvent::Cut(cut) => {
                self.changed |= self.intake.cut(&mut self.model);
                self.cut = Some(cut);
                return self.in_sync;
            }
        }
        false
    }

    /// Programs what has arrived.
    async fn program(&mut self) {
        if self.changed {
            self.changed = false;
            self.compute();
        }
        if self.confirmed {
            self.acknowledge();
        } else {
            self.supervise().await;
        }
    }

    fn compute(&mut self) {
        let start = Instant::now();
        let computed = self.model.compute(&self.local);
        if self.computed.as_ref() == Some(&computed) {
            return;
        }
        let rendered = render(&computed, Syntax::Bird2);
        self.metrics.render_seconds.record(start.elapsed().as_secs_f64());
        self.report(computed.problems.iter().chain(&rendered.problems).cloned().collect());
        if self.programmer.want(rendered) {
            self.confirmed = false;
        }
        self.computed = Some(computed);
    }

    /// Says each problem once, and when it is over.
    fn report(&mut self, problems: BTreeSet<Problem>) {
        for problem in problems.difference(&self.problems) {
            let Problem { object, field, reason } = problem;
            tracing::error!(object, field, reason, "object cannot be used as it is");
            self.metrics.problems_seen.increment(1);
        }
        for Problem { object, field, reason } in self.problems.difference(&problems) {
            tracing::info!(object, field, reason, "object is no longer a problem");
        }
        self.metrics.problems.set(problems.len() as f64);
        self.problems = problems;
    }

    async fn supervise(&mut self) {
        let Supervision { alive, confirmed, reloaded, changes, error } = self.programmer.supervise().await;
        self.metrics.bird_up.set(f64::from(u8::from(alive)));
        self.metrics.confirmed.set(f64::from(u8::from(confirmed)));
        self.metrics.reloads.increment(u64::from(reloaded));
        if alive {
            self.metrics.sessions(self.programmer.sessions());
            self.reports.bgp(self.programmer.sessions().iter().map(Session::report).collect());
        }
        for change in changes {
            match change {
                Change::Up { name } => tracing::info!(name, "bgp session up"),
                Change::Down { name, state, reason } => {
                    tracing::warn!(name, %state, reason, "bgp session down");
                }
                Change::Removed { name } => tracing::info!(name, "bgp session removed"),
            }
        }
        if reloaded {
            tracing::info!(peers = self.programmer.sessions().len(), "bird has read its configuration");
        }
        match &error {
            Some(error) => self.failed(error),
            None => {
                if self.last_error.take().is_some() {
                    tracing::info!("bird is fine again");
                }
                if confirmed {
                    self.health.ready();
                } else {
                    self.health.beat();
                }
            }
        }
        self.confirmed = confirmed;
        if confirmed {
            self.acknowledge();
        }
    }

    /// Says why once, however long it lasts.
    fn failed(&mut self, error: &ProgramError) {
        let text = error.to_string();
        self.metrics.failures.increment(1);
        self.health.not_ready(&text);
        if self.last_error.as_deref() == Some(&text) {
            return;
        }
        match error {
            ProgramError::Control(_) | ProgramError::Reconfiguring => {
                tracing::warn!(error = text, "bird does not run the latest configuration, trying again");
            }
            _ => tracing::error!(error = text, "bird does not run the latest configuration"),
        }
        self.last_error = Some(text);
    }

    /// What was rendered has everything of the last cut in it, and BIRD runs it.
    fn acknowledge(&mut self) {
        if let Some(cut) = self.cut.take() {
            self.acks.send_replace(Some(cut));
        }
    }
}
