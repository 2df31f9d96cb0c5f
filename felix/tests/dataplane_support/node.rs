//! A running dataplane and the calculation that feeds it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use daemon::{CancellationToken, Health, Ports};
use felix::control::Control;
use felix::dataplane::event_loop::Fixed;
use felix::dataplane::status::StatusFiles;
use felix::dataplane::{Batch, Dataplane};
use felix::iptables::{Backend, IpVersion};
use felix_calc::Graph;
use felix_calc::output::Output;
use syncer_common::model::Update;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use typha_client::{CutId, Reports};

use super::Lab;

/// The agent's socket, in the lab's folder.
pub const SOCKET: &str = "felix.sock";
const LIMIT: Duration = Duration::from_secs(60);

pub struct Node {
    pub graph: Graph,
    pub seq: u64,
    pub batches: mpsc::Sender<Batch>,
    pub acks: watch::Receiver<Option<CutId>>,
    pub health: Health,
    pub reports: Reports,
    cancel: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Node {
    pub async fn start(lab: &Lab, backend: Backend) -> Node {
        Node::start_heard(lab, backend, None).await
    }

    /// One that has to be heard from within a time.
    pub async fn start_heard(lab: &Lab, backend: Backend, silence: Option<Duration>) -> Node {
        Node::start_with(lab, backend, silence, BTreeMap::new(), |dataplane| dataplane).await
    }

    /// One with parameters of its own, that says where health and metrics are to be served.
    pub async fn start_serving(
        lab: &Lab,
        local: BTreeMap<String, String>,
        ports: watch::Sender<Ports>,
    ) -> Node {
        Node::start_with(lab, Backend::Nft, None, local, |dataplane| dataplane.serving(ports)).await
    }

    async fn start_with(
        lab: &Lab,
        backend: Backend,
        silence: Option<Duration>,
        local: BTreeMap<String, String>,
        extend: impl FnOnce(Dataplane) -> Dataplane,
    ) -> Node {
        let reports = Reports::default();
        let dataplane = Dataplane::open(Fixed {
            commands: lab.commands.clone(),
            backend,
            versions: IpVersion::ALL.to_vec(),
            local,
            status: StatusFiles::new(&lab.path().join("status")).reporting(reports.clone()),
        })
        .await
        .expect("the dataplane opens");
        let (questions_out, questions) = mpsc::channel(1);
        let dataplane = extend(dataplane.answering(questions));
        let control = Control::bind(&lab.path().join(SOCKET), questions_out).expect("the socket is free");
        let health = Health::new();
        let (batches, batches_in) = mpsc::channel(1);
        let (acks_out, acks) = watch::channel(None);
        let cancel = CancellationToken::new();
        tokio::spawn(control.run(cancel.clone()));
        let task = tokio::spawn(dataplane.run(
            batches_in,
            acks_out,
            health.register("dataplane", silence),
            cancel.clone(),
        ));
        Node { graph: Graph::new("n1"), seq: 0, batches, acks, health, reports, cancel, task }
    }

    /// Feeds updates and waits until they are acknowledged. Returns what the calculation made of them.
    pub async fn program(&mut self, updates: Vec<Update>) -> Vec<Output> {
        let (cut, outputs) = self.feed(updates).await;
        let acked = self.acks.wait_for(|ack| ack.as_ref() == Some(&cut));
        tokio::time::timeout(LIMIT, acked).await.expect("acknowledged in time").expect("the dataplane runs");
        outputs
    }

    /// Feeds updates, and that is all.
    pub async fn feed(&mut self, updates: Vec<Update>) -> (CutId, Vec<Output>) {
        updates.into_iter().for_each(|update| self.graph.on_update(update));
        self.graph.on_in_sync();
        self.seq += 1;
        let cut = CutId { epoch: "e".into(), seq: self.seq };
        let outputs = self.graph.flush();
        let batch = Batch { outputs: outputs.clone(), cut: Some(cut.clone()), arrived: Instant::now() };
        self.batches.send(batch).await.expect("the dataplane runs");
        (cut, outputs)
    }

    /// Ends it in the middle of whatever it does, with the programs that it runs.
    pub async fn crash(self) {
        self.cancel.cancel();
        self.task.abort();
        match self.task.await {
            Ok(ended) => ended.expect("no failure"),
            Err(error) => assert!(error.is_cancelled(), "{error}"),
        }
    }

    pub async fn stop(self) {
        self.cancel.cancel();
        self.task.await.expect("no panic").expect("no failure");
    }
}
