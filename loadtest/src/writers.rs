//! Writes the changes of a phase to the datastore: many at once, those of one key in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cluster::{Change, Cluster, Object};
use crate::latency::Latencies;
use crate::source::Source;

/// Each key has its writer.
const WRITERS: usize = 32;
/// While the phase is still going on, what is due waits here.
const WAITING: usize = 10_000;

/// Writes changes, `rate` per second, until `end`.
pub async fn churn(
    source: &Arc<Source>,
    cluster: &mut Cluster,
    latencies: &Latencies,
    rate: f64,
    end: impl Future<Output = ()>,
) -> Result<u64> {
    let mut writers = Writers::start(source.clone());
    let start = Instant::now();
    tokio::pin!(end);
    for number in 0.. {
        let due = start + Duration::from_secs_f64(f64::from(number) / rate);
        tokio::select! {
            biased;
            () = &mut end => break,
            () = tokio::time::sleep_until(due.into()) => {}
        }
        for change in cluster.churn(latencies.mark(due)) {
            writers.write(change).await?;
        }
    }
    writers.finish().await
}

/// Tasks that write, each the keys that fall to it.
pub struct Writers {
    queues: Vec<mpsc::Sender<Change>>,
    tasks: JoinSet<Result<u64>>,
}

impl Writers {
    pub fn start(source: Arc<Source>) -> Self {
        let mut tasks = JoinSet::new();
        let queues = (0..WRITERS).map(|_| {
            let (queue, mut changes) = mpsc::channel(WAITING / WRITERS);
            let source = source.clone();
            tasks.spawn(async move {
                let mut written = 0;
                while let Some(change) = changes.recv().await {
                    source.write(change).await?;
                    written += 1;
                }
                Ok(written)
            });
            queue
        });
        Writers { queues: queues.collect(), tasks }
    }

    pub async fn write(&mut self, change: Change) -> Result<()> {
        let (Change::Put(Object { key, .. }) | Change::Delete(key)) = &change;
        let hash = blake3::hash(key.as_bytes());
        let queue = &self.queues[usize::from(hash.as_bytes()[0]) % WRITERS];
        if queue.send(change).await.is_err() {
            // Its task has ended, with an error.
            std::mem::replace(self, Writers { queues: Vec::new(), tasks: JoinSet::new() }).finish().await?;
        }
        Ok(())
    }

    pub async fn finish(mut self) -> Result<u64> {
        self.queues.clear();
        let mut written = 0;
        while let Some(ended) = self.tasks.join_next().await {
            written += ended??;
        }
        Ok(written)
    }
}
