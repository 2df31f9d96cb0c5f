//! The task that owns the calculation: updates from the server in, batches for the dataplane out.
//!
//! Batches are made at cuts, where what has arrived is one consistent state. When none comes for a while (a slow
//! stream, a busy server), additions and changes go on without one; deletions wait for the cut. The dataplane
//! takes one batch at a time: while it works, changes collect in the calculation, one per object, so a slow kernel
//! costs no memory.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use daemon::{CancellationToken, Reporter};
use felix_calc::Graph;
use syncer_common::model::{Key, Update};
use tokio::sync::mpsc;
use typha_client::{ClientEvent, CutId};

use crate::dataplane::Batch;
use crate::metrics;

/// How long additions wait for a cut.
const PATIENCE: Duration = Duration::from_millis(500);

pub struct Calculation {
    graph: Graph,
    in_sync: bool,
    /// Deletions since the last cut.
    deletions: BTreeMap<Key, Update>,
    /// When the oldest thing that no batch holds yet arrived.
    arrived: Option<Instant>,
    uncut_since: Option<Instant>,
    cut: Option<CutId>,
    ripe: bool,
    waiting_for_ready: bool,
}

impl Calculation {
    pub fn new(node: &str) -> Calculation {
        Calculation {
            graph: Graph::new(node),
            in_sync: false,
            deletions: BTreeMap::new(),
            arrived: None,
            uncut_since: None,
            cut: None,
            ripe: false,
            waiting_for_ready: false,
        }
    }

    /// Runs until cancelled, or until either end is gone.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<ClientEvent>,
        batches: mpsc::Sender<Batch>,
        reporter: Reporter,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        reporter.not_ready("waiting for a server");
        metrics::resync_state(1);
        loop {
            let far = Instant::now() + Duration::from_secs(3600);
            let patience =
                self.uncut_since.filter(|_| self.in_sync && !self.ripe).map_or(far, |since| since + PATIENCE);
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                event = events.recv() => match event {
                    Some(event) => self.on_event(event, &reporter),
                    None => return Ok(()),
                },
                permit = batches.reserve(), if self.is_ripe() => match permit {
                    Ok(permit) => {
                        if let Some(batch) = self.batch() {
                            permit.send(batch);
                        }
                    }
                    Err(_) => return Ok(()),
                },
                () = tokio::time::sleep_until(patience.into()) => {
                    tracing::debug!("no cut in time; additions go on without one");
                    self.uncut_since = None;
                    self.ripe = true;
                }
            }
        }
    }

    pub fn on_event(&mut self, event: ClientEvent, reporter: &Reporter) {
        match event {
            ClientEvent::Connected { server, .. } => {
                tracing::info!(server, "connected");
                metrics::resync_state(if self.in_sync { 3 } else { 2 });
                if !self.in_sync {
                    reporter.not_ready("receiving the first state");
                }
            }
            ClientEvent::Disconnected { reason } => {
                tracing::warn!(reason, "disconnected from the server; everything stays in force");
                if !self.in_sync {
                    reporter.not_ready("waiting for a server");
                }
            }
            ClientEvent::Updates(updates) => self.on_updates(updates),
            // Never asked for.
            ClientEvent::Raw(_) | ClientEvent::Secrets(_) => {}
            ClientEvent::InSync => {
                tracing::info!("in sync");
                self.in_sync = true;
                self.graph.on_in_sync();
                metrics::resync_state(3);
                reporter.ready();
            }
            ClientEvent::Cut(cut) => {
                for (_, deletion) in std::mem::take(&mut self.deletions) {
                    self.graph.on_update(deletion);
                }
                self.cut = Some(cut);
                self.uncut_since = None;
                self.ripe = true;
            }
        }
    }

    fn on_updates(&mut self, updates: Vec<Update>) {
        let now = Instant::now();
        self.arrived.get_or_insert(now);
        self.uncut_since.get_or_insert(now);
        metrics::updates(updates.len());
        for update in updates {
            if update.live().is_some() {
                self.deletions.remove(&update.key);
                self.graph.on_update(update);
            } else {
                self.deletions.insert(update.key.clone(), update);
            }
        }
    }

    fn is_ripe(&mut self) -> bool {
        let blocked = self.graph.ready() == Some(false);
        if blocked && !self.waiting_for_ready && self.in_sync {
            tracing::info!("the datastore is not ready; changes wait");
        }
        self.waiting_for_ready = blocked && self.in_sync;
        self.ripe && self.in_sync && !blocked
    }

    /// What changed; nothing if neither state nor position did.
    pub fn batch(&mut self) -> Option<Batch> {
        self.ripe = false;
        let outputs = self.graph.flush();
        let arrived = self.arrived.take().unwrap_or_else(Instant::now);
        let cut = self.cut.take();
        (!outputs.is_empty() || cut.is_some()).then_some(Batch { outputs, cut, arrived })
    }
}

#[cfg(test)]
mod tests {
    use daemon::Health;
    use felix_calc::output::Output;
    use syncer_common::model::{Value, values};

    use super::*;

    fn pool(cidr: &str) -> Update {
        let key = Key::IpPool { cidr: cidr.parse().unwrap() };
        Update::set(key, Value::IpPool(values::IpPool { cidr: cidr.into(), ..Default::default() }))
    }

    fn gone(cidr: &str) -> Update {
        Update::delete(Key::IpPool { cidr: cidr.parse().unwrap() })
    }

    fn cut(seq: u64) -> ClientEvent {
        ClientEvent::Cut(CutId { epoch: "e".into(), seq })
    }

    fn removes_pool(batch: &Batch) -> bool {
        batch.outputs.iter().any(|output| matches!(output, Output::PoolRemove { .. }))
    }

    #[test]
    fn nothing_is_ripe_before_the_first_proven_state() {
        let reporter = Health::new().register("calc", None);
        let mut calculation = Calculation::new("n1");
        calculation.on_event(ClientEvent::Updates(vec![pool("10.0.0.0/16")]), &reporter);
        calculation.on_event(cut(1), &reporter);
        assert!(!calculation.is_ripe());
        calculation.on_event(ClientEvent::InSync, &reporter);
        assert!(calculation.is_ripe());
        let batch = calculation.batch().unwrap();
        assert_eq!(batch.cut.unwrap().seq, 1);
        assert!(batch.outputs.iter().any(|output| matches!(output, Output::PoolUpdate { .. })));
        assert!(calculation.batch().is_none());
    }

    #[test]
    fn deletions_wait_for_the_cut() {
        let reporter = Health::new().register("calc", None);
        let mut calculation = Calculation::new("n1");
        calculation.on_event(ClientEvent::Updates(vec![pool("10.0.0.0/16"), pool("10.1.0.0/16")]), &reporter);
        calculation.on_event(ClientEvent::InSync, &reporter);
        calculation.on_event(cut(1), &reporter);
        calculation.batch().unwrap();

        calculation.on_event(
            ClientEvent::Updates(vec![gone("10.0.0.0/16"), gone("10.1.0.0/16"), pool("10.2.0.0/16")]),
            &reporter,
        );
        let early = calculation.batch().unwrap();
        assert!(!removes_pool(&early) && early.cut.is_none());
        // One comes back before the cut: it was never gone.
        calculation.on_event(ClientEvent::Updates(vec![pool("10.1.0.0/16")]), &reporter);
        calculation.on_event(cut(2), &reporter);
        let batch = calculation.batch().unwrap();
        let removed: Vec<_> = batch
            .outputs
            .iter()
            .filter_map(|output| match output {
                Output::PoolRemove { cidr } => Some(cidr.to_string()),
                _ => None,
            })
            .collect();
        assert_eq!(removed, ["10.0.0.0/16"]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_cut_additions_go_on_after_a_while() {
        let health = Health::new();
        let (events_out, events) = mpsc::channel(4);
        let (batches_out, mut batches) = mpsc::channel(1);
        let cancel = CancellationToken::new();
        let run =
            Calculation::new("n1").run(events, batches_out, health.register("calc", None), cancel.clone());
        let task = tokio::spawn(run);
        events_out.send(ClientEvent::InSync).await.unwrap();
        events_out.send(ClientEvent::Updates(vec![pool("10.0.0.0/16")])).await.unwrap();
        // The clock is paused: it moves on to the patience's end by itself. The instant of arrival is real.
        let batch = tokio::time::timeout(Duration::from_secs(5), batches.recv()).await.unwrap().unwrap();
        assert!(batch.cut.is_none() && !batch.outputs.is_empty());
        cancel.cancel();
        task.await.unwrap().unwrap();
    }
}
