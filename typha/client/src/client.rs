//! The loop over servers: connect, follow, and move on when the stream ends.
use crate::{ClientConfig, ClientEvent, CutId};
use daemon::CancellationToken;
use tokio::sync::{mpsc, watch};

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
    let _ = (config, events, acks);
    cancel.cancelled().await;
}
