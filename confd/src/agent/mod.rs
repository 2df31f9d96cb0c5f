//! The one task that owns the model and BIRD: takes events in, programs at cuts, supervises between them.
//!
//! ```text
//! ClientEvent ─> Intake ─> Model ─compute─> BgpModel ─render─> Programmer ─> file, BIRD
//!                                                                  │
//!                               acks <── the last cut that BIRD has confirmed
//! ```
//!
//! An object that BIRD refuses is left out, and named, until something changes; everything else goes on.
//!
//! Nothing is written before the first proven state. A lost server changes nothing at all. Where cuts fail
//! to come, additions are programmed all the same, and deletions wait for the next cut: between cuts, that
//! something is missing proves nothing.

mod intake;
mod readiness;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::bail;
use daemon::{CancellationToken, Reporter};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use typha_client::{ClientEvent, CutId, Reports};

use crate::bgp::{BgpModel, LocalSettings, Model, Problem, Secrets};
use crate::bird::program::{ProgramError, Programmer, Supervision};
use crate::bird::sessions::{Change, Session};
use crate::bird::watch::{Trouble, Watch};
use crate::bird::write::WriteError;
use crate::local::LocalFiles;
use crate::metrics::ConfdMetrics;
use crate::render::{Syntax, render};
use intake::Intake;
use readiness::unready;

/// How often BIRD is looked at: a lost reload or a restarted BIRD is made good within that.
const SUPERVISE_EVERY: Duration = Duration::from_secs(2);
/// How long changes wait for a cut.
const CUT_WAIT: Duration = Duration::from_millis(500);
/// How long passwords that typha has promised are waited for.
const SECRETS_WAIT: Duration = Duration::from_secs(10);

/// So many objects that BIRD refuses are left out, one after the other, before the agent gives up until the next change.
const MAX_REFUSED: usize = 16;

/// Where the configuration goes, and what of it comes from the node itself.
pub struct Outputs {
    pub syntax: Syntax,
    /// One for each daemon of the syntax.
    pub programmers: Vec<Programmer>,
    pub local_files: LocalFiles,
}

/// A peer in trouble is said once it has been so for this long.
const TROUBLE_AFTER: Duration = Duration::from_secs(30);

pub struct Agent {
    local: LocalSettings,
    outputs: Outputs,
    acks: watch::Sender<Option<CutId>>,
    metrics: ConfdMetrics,
    reports: Reports,
    health: Reporter,
    model: Model,
    intake: Intake,
    in_sync: bool,
    /// Passwords as typha sent them; nothing: it has sent none yet.
    sent: Option<Secrets>,
    /// Until then they are waited for: without them, peerings that are up would be taken down.
    secrets_until: Option<Instant>,
    /// The model differs from what was last rendered.
    changed: bool,
    /// The last cut, until it is acknowledged.
    cut: Option<CutId>,
    computed: Option<BgpModel>,
    /// BIRD ran the latest configuration when last looked at.
    confirmed: bool,
    problems: BTreeSet<Problem>,
    /// Objects that BIRD refuses, with its words.
    refused: BTreeMap<String, String>,
    local_problems: Vec<Problem>,
    started: Instant,
    watch: Watch,
    /// Peers whose trouble has been said.
    troubled: BTreeSet<String>,
    last_error: Option<String>,
}

impl Agent {
    pub fn new(
        local: LocalSettings,
        outputs: Outputs,
        acks: watch::Sender<Option<CutId>>,
        metrics: ConfdMetrics,
        health: Reporter,
    ) -> Agent {
        health.not_ready("waiting for the first complete state from typha");
        Agent {
            local,
            outputs,
            acks,
            metrics,
            reports: Reports::default(),
            health,
            model: Model::default(),
            intake: Intake::default(),
            in_sync: false,
            sent: None,
            secrets_until: None,
            changed: false,
            cut: None,
            computed: None,
            confirmed: false,
            problems: BTreeSet::new(),
            refused: BTreeMap::new(),
            local_problems: Vec::new(),
            started: Instant::now(),
            watch: Watch::default(),
            troubled: BTreeSet::new(),
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
            let waiting = self.is_complete() && self.changed;
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
                _ = tick.tick() => self.look().await,
            }
        }
    }

    /// Takes an event in; `true` when it is time to program.
    fn on_event(&mut self, event: ClientEvent) -> bool {
        match event {
            ClientEvent::Connected { server, secrets } => {
                tracing::info!(server, secrets, "connected to typha");
                self.secrets_until = (secrets && self.sent.is_none()).then(|| Instant::now() + SECRETS_WAIT);
            }
            ClientEvent::Disconnected { reason } => {
                tracing::warn!(reason, "connection to typha lost, everything stays as it is");
            }
            ClientEvent::Updates(updates) => {
                self.metrics.updates.increment(updates.len() as u64);
                self.changed |= self.intake.take(&mut self.model, updates);
            }
            // Never asked for.
            ClientEvent::Raw(_) => {}
            ClientEvent::Secrets(all) => {
                let mut secrets = Secrets::default();
                all.into_iter().for_each(|secret| secrets.insert(&secret.name, &secret.key, secret.value));
                self.sent = Some(secrets);
                self.secrets_until = None;
                self.read_local();
                return self.is_complete() && self.changed;
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
                return self.is_complete();
            }
        }
        false
    }

    /// What a configuration is made from has arrived.
    fn is_complete(&self) -> bool {
        self.in_sync && self.secrets_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Sees what changed on the node itself, and to BIRD.
    async fn look(&mut self) {
        self.read_local();
        if self.is_complete() && self.changed && self.cut.is_none() {
            self.program().await;
        } else {
            self.supervise().await;
        }
    }

    fn read_local(&mut self) {
        let state = self.outputs.local_files.read();
        // Passwords that are mounted win: whoever mounts one means this node.
        let mut secrets = self.sent.clone().unwrap_or_default();
        secrets.extend(state.secrets);
        self.changed |= self.model.set_secrets(secrets);
        self.changed |= self.model.set_workloads(state.workloads);
        self.changed |= self.local_problems != state.problems;
        self.local_problems = state.problems;
    }

    /// Programs what has arrived.
    async fn program(&mut self) {
        if self.changed {
            self.read_local();
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
        if self.computed.as_ref() != Some(&computed) {
            // What was refused may be another thing now.
            self.refused.clear();
            self.computed = Some(computed);
            self.render();
        } else {
            self.report_problems(Vec::new());
        }
        self.metrics.render_seconds.record(start.elapsed().as_secs_f64());
    }

    fn render(&mut self) {
        let Some(computed) = &self.computed else { return };
        let rendered = if self.refused.is_empty() {
            render(computed, self.outputs.syntax)
        } else {
            render(&computed.without(&self.refused), self.outputs.syntax)
        };
        let problems = rendered.iter().flat_map(|one| one.problems.clone()).collect();
        for (programmer, wanted) in self.outputs.programmers.iter_mut().zip(rendered) {
            if programmer.want(wanted) {
                self.confirmed = false;
            }
        }
        self.report_problems(problems);
    }

    fn report_problems(&mut self, of_syntax: Vec<Problem>) {
        let refused = self.refused.iter().map(|(object, reason)| {
            Problem::new(
                object.clone(),
                "the object",
                format!("BIRD refuses what it gives, and it is left out: {reason}"),
            )
        });
        let computed = self.computed.iter().flat_map(|computed| computed.problems.iter().cloned());
        let all = computed.chain(of_syntax).chain(refused).chain(self.local_problems.iter().cloned());
        self.report(all.collect());
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
        self.tell_operators();
    }

    /// For `bulrushctl status`: what cannot be used, and why BIRD does not run the latest configuration.
    fn tell_operators(&self) {
        let problems = self.problems.iter().map(Problem::to_string);
        let error = self.last_error.iter().map(|error| format!("BIRD: {error}"));
        self.reports.problems(error.chain(problems).collect());
    }

    /// Each daemon in turn.
    async fn supervise_all(&mut self) -> Supervision {
        let mut all = Supervision { alive: true, confirmed: true, ..Default::default() };
        for programmer in &mut self.outputs.programmers {
            let found = programmer.supervise().await;
            all.alive &= found.alive;
            all.confirmed &= found.confirmed;
            all.reloaded |= found.reloaded;
            all.recovering |= found.recovering;
            all.changes.extend(found.changes);
            all.error = all.error.or(found.error);
        }
        all
    }

    /// Leaves out the object that BIRD refuses; `true` when there is another configuration to try.
    fn leave_out(&mut self, error: &ProgramError) -> bool {
        let (ProgramError::Write(WriteError::Refused(refusal)) | ProgramError::Refused(refusal)) = error
        else {
            return false;
        };
        let Some(object) = refusal.object().filter(|_| self.refused.len() < MAX_REFUSED) else {
            return false;
        };
        if self.refused.insert(object.to_owned(), refusal.to_string()).is_some() {
            return false;
        }
        self.render();
        true
    }

    fn sessions(&self) -> Vec<Session> {
        self.outputs.programmers.iter().flat_map(|programmer| programmer.sessions().to_vec()).collect()
    }

    async fn supervise(&mut self) {
        let mut found = self.supervise_all().await;
        while found.error.as_ref().is_some_and(|error| self.leave_out(error)) {
            let before = std::mem::take(&mut found.changes);
            found = self.supervise_all().await;
            found.changes.splice(0..0, before);
        }
        let Supervision { alive, confirmed, reloaded, recovering, changes, error } = found;
        let sessions = self.sessions();
        let peers: Vec<&str> = self.outputs.programmers.iter().flat_map(Programmer::peers).collect();
        let count = peers.len();
        let troubles = self.watch.look(peers.into_iter(), &sessions, Instant::now());
        self.say_troubles(&troubles);
        self.metrics.bird_up.set(f64::from(u8::from(alive)));
        self.metrics.confirmed.set(f64::from(u8::from(confirmed)));
        self.metrics.reloads.increment(u64::from(reloaded));
        if alive {
            self.metrics.sessions(&sessions);
            self.reports.bgp(sessions.iter().map(Session::report).collect());
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
            tracing::info!(peers = sessions.len(), "bird has read its configuration");
        }
        match &error {
            Some(error) => self.failed(error),
            None => {
                if self.last_error.take().is_some() {
                    tracing::info!("bird is fine again");
                    self.tell_operators();
                }
                if !confirmed {
                    self.health.beat();
                } else if let Some(reason) = unready(self.started.elapsed(), count, recovering, &troubles) {
                    self.health.not_ready(&reason);
                } else {
                    self.health.ready();
                }
            }
        }
        self.confirmed = confirmed;
        if confirmed {
            self.acknowledge();
        }
    }

    /// Says once that a peer does not come up, or does not stay up.
    fn say_troubles(&mut self, troubles: &[Trouble]) {
        self.metrics.troubled.set(troubles.len() as f64);
        let lasting = troubles.iter().filter(|trouble| trouble.age >= TROUBLE_AFTER);
        let now: BTreeMap<&str, &Trouble> = lasting.map(|trouble| (trouble.name.as_str(), trouble)).collect();
        self.troubled.retain(|name| now.contains_key(name.as_str()));
        for (name, trouble) in now {
            if self.troubled.insert(name.to_owned()) {
                tracing::warn!(peer = %trouble, "bgp peer in trouble");
            }
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
        self.tell_operators();
    }

    /// What was rendered has everything of the last cut in it, and BIRD runs it.
    fn acknowledge(&mut self) {
        if let Some(cut) = self.cut.take() {
            self.acks.send_replace(Some(cut));
        }
    }
}
