//! The supervisor: every task of a daemon has a name, and its end is handled.
//!
//! The first task that ends with an error, panics, or ends before it was asked to, cancels the rest; they get
//! a grace to come to an orderly end, and are aborted after it.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub struct Tasks {
    set: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
    cancel: CancellationToken,
}

impl Tasks {
    pub fn new(cancel: CancellationToken) -> Self {
        Tasks { set: JoinSet::new(), names: HashMap::new(), cancel }
    }

    /// Starts a task that is to run until the token is cancelled.
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let handle = self.set.spawn(task.instrument(tracing::info_span!("task", name)));
        self.names.insert(handle.id(), name);
    }

    /// Waits for all tasks. After cancellation, whoever it came from, they have `grace` to end.
    pub async fn run(mut self, grace: Duration) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        loop {
            tokio::select! {
                ended = self.set.join_next_with_id() => match ended {
                    Some(ended) => self.judge(ended, &mut outcome),
                    None => return outcome,
                },
                () = self.cancel.cancelled() => break,
            }
        }
        let deadline = tokio::time::sleep(grace);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                ended = self.set.join_next_with_id() => match ended {
                    Some(ended) => self.judge(ended, &mut outcome),
                    None => return outcome,
                },
                () = &mut deadline => {
                    tracing::warn!(tasks = ?self.names.values(), "tasks did not end in time, aborting them");
                    self.set.shutdown().await;
                    return outcome;
                }
            }
        }
    }

    fn judge(
        &mut self,
        ended: Result<(Id, anyhow::Result<()>), JoinError>,
        outcome: &mut anyhow::Result<()>,
    ) {
        let early = !self.cancel.is_cancelled();
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(anyhow::Error::from(error))),
        };
        let name = self.names.remove(&id).unwrap_or("?");
        let result = match result {
            Ok(()) if early => Err(anyhow::anyhow!("it ended before it was asked to")),
            result => result,
        };
        self.cancel.cancel();
        if let Err(error) = result {
            tracing::error!(task = name, error = format!("{error:#}"), "task failed");
            if outcome.is_ok() {
                *outcome = Err(error.context(format!("task {name}")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failing_task_cancels_the_others_and_names_itself() {
        let cancel = CancellationToken::new();
        let mut tasks = Tasks::new(cancel.clone());
        let waits = cancel.clone();
        tasks.spawn("patient", async move {
            waits.cancelled().await;
            Ok(())
        });
        tasks.spawn("broken", async { anyhow::bail!("no such device") });
        let error = tasks.run(Duration::from_secs(5)).await.expect_err("a task failed");
        assert_eq!(format!("{error:#}"), "task broken: no such device");
        assert!(cancel.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn stubborn_task_is_aborted_after_the_grace() {
        let cancel = CancellationToken::new();
        let mut tasks = Tasks::new(cancel.clone());
        tasks.spawn("stubborn", std::future::pending());
        cancel.cancel();
        assert!(tasks.run(Duration::from_secs(1)).await.is_ok());
    }
}
