//! The loop over servers: connect, follow, and move on when the stream ends.
//!
//! Waits are jittered and grow while no server gets as far as a cut. A server that was good and went away
//! costs one short wait; one that asks its clients to leave costs none beyond what it asks for.

use std::time::Duration;

use daemon::{Backoff, CancellationToken};
use tokio::sync::{mpsc, watch};

use crate::disk::Disk;
use crate::held::Held;
use crate::metrics::Metrics;
use crate::servers::Servers;
use crate::stream::{Agent, Course, End};
use crate::{ClientConfig, ClientEvent, CutId};

/// Follows the servers until cancelled, or until the agent has dropped the receiving end of `events`.
///
/// `acks` is read whenever it changes; the agent sets it to the last cut whose content is in force. `events`
/// is a bounded channel: an agent that does not keep up is sent the latest values, coalesced by the server.
pub async fn run(
    config: ClientConfig,
    events: mpsc::Sender<ClientEvent>,
    acks: watch::Receiver<Option<CutId>>,
    cancel: CancellationToken,
) {
    tokio::select! {
        () = follow(config, events, acks) => {}
        () = cancel.cancelled() => {}
    }
}

async fn follow(
    config: ClientConfig,
    events: mpsc::Sender<ClientEvent>,
    acks: watch::Receiver<Option<CutId>>,
) {
    let mut servers = Servers::new(&config.servers, &config.node, &config.zone);
    let (first, longest) = config.backoff;
    let mut backoff = Backoff::new(first, longest);
    let mut agent = Agent {
        held: Held::new(config.raw.clone()),
        disk: None,
        config,
        events,
        acks,
        metrics: Metrics::new(),
        // Half of a UUID is enough to tell one start of one agent from the next.
        boot_id: format!("{:016x}", uuid::Uuid::new_v4().as_u64_pair().0),
        counter: 0,
    };
    if !boot(&mut agent).await {
        return;
    }
    let mut reported = String::new();
    loop {
        servers.look_up().await;
        let Some(server) = servers.pick() else {
            tracing::error!("no typha is configured: set the address of at least one");
            return;
        };
        let mut course = Course::default();
        let end = agent.follow(&server, servers.others(), &mut course).await;
        servers.learn(&course.peers);
        if course.cut {
            backoff.reset();
            servers.good();
        }
        if course.connected {
            agent.metrics.disconnections.increment(1);
            agent.metrics.connected.set(0.0);
            reported.clear();
            if agent.events.send(ClientEvent::Disconnected { reason: end.to_string() }).await.is_err() {
                return;
            }
        }
        let mut wait = backoff.next_wait();
        match &end {
            End::AgentGone => return,
            End::GoAway { servers: hinted, not_before, .. } => {
                match hinted.is_empty() {
                    true => servers.again(),
                    false => servers.hint(hinted),
                }
                wait = wait.min(first).max(*not_before);
                tracing::info!(reason = %end, "leaving the server");
            }
            End::Stale { better, .. } => {
                servers.hint(std::slice::from_ref(better));
                wait = Duration::ZERO;
                tracing::warn!(reason = %end, "leaving the server");
            }
            _ => {
                // An outage repeats the same words for every attempt; say them once.
                let text = end.to_string();
                if text == reported {
                    tracing::debug!(reason = text, "no server yet");
                } else {
                    tracing::warn!(
                        reason = text,
                        in_sync = agent.held.in_sync(),
                        "lost the server, trying the next"
                    );
                    reported = text;
                }
            }
        }
        tokio::time::sleep(wait).await;
    }
}

/// Delivers the last proven state, if one is kept on disk. `false`: the agent is gone.
async fn boot(agent: &mut Agent) -> bool {
    let Some(path) = agent.config.state.clone() else { return true };
    let ClientConfig { node, agent: name, software, .. } = &agent.config;
    let identity = format!("{node} {name} {software}");
    let file = path.display().to_string();
    let opened = tokio::task::spawn_blocking(move || {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Disk::open(&path, identity, boot.trim().to_owned())
    })
    .await;
    let (disk, saved) = match opened.map_err(std::io::Error::other).flatten() {
        Ok(opened) => opened,
        Err(error) => {
            tracing::error!(file, %error, "no state is kept on disk: after a reboot nothing is enforced before a server answers");
            return true;
        }
    };
    agent.disk = Some(disk);
    agent.held.record();
    let Some(saved) = saved else { return true };
    let (updates, at) = agent.held.restore(saved);
    let mut events = Vec::new();
    if !updates.is_empty() {
        events.push(ClientEvent::Updates(updates));
    }
    match at {
        Some(at) => {
            tracing::info!(
                file,
                entries = agent.held.len(),
                "enforcing the last proven state until a server answers"
            );
            events.push(ClientEvent::InSync);
            events.push(ClientEvent::Cut(CutId { epoch: at.epoch, seq: at.seq }));
        }
        // What is in the kernel may be newer. It stays until a server has said what changed.
        None => tracing::info!(file, entries = agent.held.len(), "beginning with the last proven state"),
    }
    for event in events {
        if agent.events.send(event).await.is_err() {
            return false;
        }
    }
    true
}
