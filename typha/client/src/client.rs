//! The loop over servers: connect, follow, and move on when the stream ends.

use std::time::Duration;

use daemon::{Backoff, CancellationToken};
use proto::sync::Session;
use tokio::sync::{mpsc, watch};

use crate::held::Held;
use crate::metrics::Metrics;
use crate::servers::Servers;
use crate::stream::{End, Stream};
use crate::{ClientConfig, ClientEvent, CutId};

/// Follows the servers until cancelled, or until the agent has dropped the receiving end of `events`.
///
/// `acks` is read whenever it changes; the agent sets it to the last cut whose content is in force. `events`
/// is a bounded channel: an agent that does not keep up is sent the latest values, coalesced by the server.
pub async fn run(
    config: ClientConfig,
    events: mpsc::Sender<ClientEvent>,
    mut acks: watch::Receiver<Option<CutId>>,
    cancel: CancellationToken,
) {
    let metrics = Metrics::new();
    let mut servers = Servers::new(&config.servers, &config.node, config.agent);
    let mut backoff = Backoff::new(config.backoff.0, config.backoff.1);
    let mut session = Session { boot_id: uuid::Uuid::new_v4().to_string(), counter: 0 };
    let (mut held, mut in_sync, mut failures) = (Held::default(), false, 0);
    if servers.len() == 0 {
        tracing::error!("no typha address is set: nothing to follow");
        cancel.cancelled().await;
        return;
    }
    while let Some(server) = servers.next() {
        session.counter += 1;
        let mut stream = Stream {
            config: &config,
            held: &mut held,
            in_sync: &mut in_sync,
            was_up: false,
            events: &events,
            acks: &mut acks,
            cancel: &cancel,
            metrics: &metrics,
        };
        metrics.connected.set(1.0);
        let end = stream.run(&server, session.clone()).await;
        metrics.connected.set(0.0);
        let was_up = stream.was_up;
        let mut wait = None;
        match &end {
            End::Stopped => return,
            End::Left(go) => {
                tracing::info!(server, reason = go.reason, "server asked to leave");
                servers.prefer(&go.servers);
                wait = Some(Duration::from_millis(go.not_before_millis));
            }
            // Said once an outage; the rest is for debugging.
            End::Lost(_) | End::Behind if was_up || failures == 0 => {
                tracing::warn!(server, reason = %end, "no stream; everything stays as it is");
            }
            End::Lost(_) | End::Behind => tracing::debug!(server, reason = %end, "no stream"),
        }
        if was_up {
            backoff.reset();
            failures = 0;
            if events.send(ClientEvent::Disconnected { reason: end.to_string() }).await.is_err() {
                return;
            }
        } else {
            failures += 1;
        }
        // The other servers are tried at once; a whole round in vain is waited out, so that a fleet does not storm.
        let round_in_vain = failures >= servers.len() || (was_up && servers.len() == 1);
        if wait.is_none() && round_in_vain {
            wait = Some(backoff.next_wait());
        }
        if let Some(wait) = wait {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = events.closed() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}
