//! A running agent that is fed by hand, in place of typha.
#![allow(dead_code)]

use std::time::Duration;

use confd::agent::{Agent, Outputs};
use confd::metrics::ConfdMetrics;
use daemon::{CancellationToken, Health};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use typha_client::{ClientEvent, CutId};

use super::lab::{LabNode, eventually};
use super::local;

/// The operator is promised that a lost reload is noticed within 5 s; a busy machine is given more.
pub const REPAIR: Duration = Duration::from_secs(20);

pub struct Running {
    pub events: mpsc::Sender<ClientEvent>,
    pub acks: watch::Receiver<Option<CutId>>,
    pub health: Health,
    cancel: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

pub fn start(node: &LabNode) -> Running {
    start_with(node.outputs())
}

pub fn start_with(outputs: Outputs) -> Running {
    let (events, inbox) = mpsc::channel(8);
    let (acks_out, acks) = watch::channel(None);
    let (health, cancel) = (Health::new(), CancellationToken::new());
    let reporter = health.register("bird", None);
    let agent = Agent::new(local("n1"), outputs, acks_out, ConfdMetrics::new(), reporter);
    let task = tokio::spawn(agent.run(inbox, cancel.clone()));
    Running { events, acks, health, cancel, task }
}

pub fn cut(seq: u64) -> CutId {
    CutId { epoch: "e".into(), seq }
}

impl Running {
    pub async fn send(&self, events: impl IntoIterator<Item = ClientEvent>) {
        for event in events {
            self.events.send(event).await.unwrap();
        }
    }

    /// Everything sent has been taken out of the channel.
    pub async fn taken(&self) {
        eventually("events are taken", REPAIR, async || {
            if self.events.capacity() == self.events.max_capacity() { Ok(()) } else { Err("not yet".into()) }
        })
        .await;
    }

    pub async fn acknowledged(&mut self, seq: u64) {
        let wanted = Some(cut(seq));
        let wait = self.acks.wait_for(|ack| *ack == wanted);
        tokio::time::timeout(REPAIR, wait).await.unwrap_or_else(|_| panic!("no ack of {seq}")).unwrap();
    }

    pub async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }
}
