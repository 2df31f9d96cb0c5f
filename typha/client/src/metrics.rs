//! What the client counts. Label-free: which server is in the log.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

pub const CONNECTED: &str = "typha_client_connected";
pub const CONNECTIONS: &str = "typha_client_connections_total";
pub const UPDATES: &str = "typha_client_updates_total";
pub const UNKNOWN: &str = "typha_client_entries_unknown_total";

#[derive(Clone)]
pub(crate) struct Metrics {
    pub connected: Gauge,
    pub connections: Counter,
    pub updates: Counter,
    pub unknown: Counter,
}

impl Metrics {
    /// Handles, all at zero from the start.
    pub fn new() -> Self {
        describe_gauge!(CONNECTED, "1 while a stream is up, else 0");
        describe_counter!(CONNECTIONS, "streams that came up");
        describe_counter!(UPDATES, "updates delivered to the agent");
        describe_counter!(UNKNOWN, "entries of a kind that this build does not know");
        let metrics = Metrics {
            connected: gauge!(CONNECTED),
            connections: counter!(CONNECTIONS),
            updates: counter!(UPDATES),
            unknown: counter!(UNKNOWN),
        };
        metrics.connected.set(0.0);
        [&metrics.connections, &metrics.updates, &metrics.unknown].into_iter().for_each(|c| c.absolute(0));
        metrics
    }
}
