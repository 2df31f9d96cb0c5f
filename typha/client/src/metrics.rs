//! The client's metrics, shared by every agent that uses it.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

const CONNECTIONS: &str = "typha_client_connections_total";
const DISCONNECTIONS: &str = "typha_client_disconnections_total";
const CONNECTED: &str = "typha_client_connected";
const UPDATES: &str = "typha_client_updates_total";
const KNOWN: &str = "typha_client_updates_known_total";
const IGNORED: &str = "typha_client_updates_ignored_total";
const ENTRIES: &str = "typha_client_entries";
const AGE: &str = "typha_client_data_age_seconds";

/// Handles; taken once, after the recorder is installed.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub connections: Counter,
    pub disconnections: Counter,
    pub connected: Gauge,
    pub updates: Counter,
    pub known: Counter,
    pub ignored: Counter,
    pub entries: Gauge,
    pub age: Gauge,
}

impl Metrics {
    pub fn new() -> Self {
        describe_counter!(CONNECTIONS, "Streams to typha that were opened.");
        describe_counter!(DISCONNECTIONS, "Streams to typha that ended.");
        describe_gauge!(CONNECTED, "1 while a stream to a typha is up.");
        describe_counter!(UPDATES, "Changes delivered to the agent.");
        describe_counter!(KNOWN, "Entries received again with the value held.");
        describe_counter!(IGNORED, "Entries of kinds or with values that this version does not know.");
        describe_gauge!(ENTRIES, "Entries held.");
        describe_gauge!(AGE, "How old the data can be, by the last heartbeat.");
        let metrics = Metrics {
            connections: counter!(CONNECTIONS),
            disconnections: counter!(DISCONNECTIONS),
            connected: gauge!(CONNECTED),
            updates: counter!(UPDATES),
            known: counter!(KNOWN),
            ignored: counter!(IGNORED),
            entries: gauge!(ENTRIES),
            age: gauge!(AGE),
        };
        for counter in [
            &metrics.connections,
            &metrics.disconnections,
            &metrics.updates,
            &metrics.known,
            &metrics.ignored,
        ] {
            counter.increment(0);
        }
        for gauge in [&metrics.connected, &metrics.entries, &metrics.age] {
            gauge.set(0.0);
        }
        metrics
    }
}
