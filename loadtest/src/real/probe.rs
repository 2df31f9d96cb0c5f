//! Edits one policy again and again, and measures how soon each edit is in force on each real node.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use daemon::CancellationToken;
use tokio::task::JoinHandle;

use super::answers::Typhas;
use crate::cluster::{self, Change, PROBE};
use crate::latency::Latencies;
use crate::source::Source;

/// From one edit to the next, if it is in force by then.
const APART: Duration = Duration::from_secs(1);
/// How often the typhas are asked: so exact is what is measured.
const ASK: Duration = Duration::from_millis(5);

pub struct Probing {
    end: CancellationToken,
    task: JoinHandle<Result<u64>>,
}

impl Probing {
    /// `version`: of the policy as it is.
    pub fn start(
        typhas: Typhas,
        source: Arc<Source>,
        nodes: BTreeSet<String>,
        applied: Arc<Latencies>,
        version: Arc<AtomicU32>,
    ) -> Probing {
        let end = CancellationToken::new();
        let ended = end.clone();
        let task = tokio::spawn(async move {
            let mut written = 0;
            // One edit at least, however short the phase is.
            loop {
                let began = Instant::now();
                let object = cluster::probe(version.fetch_add(1, Ordering::Relaxed) + 1);
                let key = object.key.clone();
                source.write(Change::Put(object)).await?;
                written += 1;
                let revision = source.revision(&key).context("what was written has a revision")?;
                in_force(&typhas, revision, &nodes, &applied, began).await;
                tokio::select! {
                    () = ended.cancelled() => return Ok(written),
                    () = tokio::time::sleep_until((began + APART).into()) => {}
                }
            }
        });
        Probing { end, task }
    }

    /// The last edit is waited for until `deadline`. Returns how many there were.
    pub async fn finish(mut self, deadline: Instant) -> Result<u64> {
        self.end.cancel();
        match tokio::time::timeout_at(deadline.into(), &mut self.task).await {
            Ok(ended) => ended?,
            // Who is late is found by the check that follows.
            Err(_) => {
                self.task.abort();
                Ok(0)
            }
        }
    }
}

/// Waits until all of them have it, and notes when each had.
async fn in_force(
    typhas: &Typhas,
    revision: u64,
    nodes: &BTreeSet<String>,
    applied: &Latencies,
    began: Instant,
) {
    let key = format!("/calico/v1/policy/GlobalNetworkPolicy//{PROBE}");
    let mut waiting = nodes.clone();
    while !waiting.is_empty() {
        let reached = typhas.reached(&key, revision).await;
        for node in reached.iter().filter(|node| waiting.remove(*node)) {
            let number = nodes.iter().position(|one| one == node).unwrap_or_default();
            applied.took(number, began.elapsed().as_micros() as u64);
        }
        tokio::time::sleep(ASK).await;
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.task.abort();
    }
}
