//! typha's metrics: names, descriptions and handles. Names are Calico's where the meaning is equal.
//!
//! Handles are taken once, after the recorder is installed; every series exists from the start, at zero.

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use proto::sync::ResumeVerdict;

const CONNECTIONS_ACCEPTED: &str = "typha_connections_accepted";
const CONNECTIONS_DROPPED: &str = "typha_connections_dropped";
const CONNECTIONS_ACTIVE: &str = "typha_connections_active";
const CONNECTIONS_STREAMING: &str = "typha_connections_streaming";
const CONNECTIONS_REFUSED: &str = "typha_connections_refused_total";
const HELLOS_REFUSED: &str = "typha_hellos_refused_total";
const SNAPSHOTS_GENERATED: &str = "typha_snapshots_generated";
const SNAPSHOTS_ACTIVE: &str = "typha_snapshots_active";
const SNAPSHOTS_WAITING: &str = "typha_snapshots_waiting";
const SNAPSHOT_RAW_BYTES: &str = "typha_snapshot_raw_bytes";
const SNAPSHOT_COMPRESSED_BYTES: &str = "typha_snapshot_compressed_bytes";
const RESUMES: &str = "typha_resumes_total";
const UPDATES_TOTAL: &str = "typha_updates_total";
const UPDATES_SKIPPED: &str = "typha_updates_skipped";
const UPDATES_INVALID: &str = "typha_updates_invalid_total";
const CACHE_SIZE: &str = "typha_cache_size";
const TOMBSTONES: &str = "typha_cache_tombstones";
const SEQ: &str = "typha_breadcrumb_seq_number";
const REVISION: &str = "typha_datastore_revision";
const AGE: &str = "typha_data_age_seconds";
const CONNECTED: &str = "typha_datastore_connected";
const RELISTS: &str = "typha_datastore_listings_total";
const DATASTORE_EVENTS: &str = "typha_datastore_client_events_total";
const KVS_PER_MESSAGE: &str = "typha_kvs_per_msg";
const SENT_BYTES: &str = "typha_sent_bytes_total";
const SNAPSHOT_SEND: &str = "typha_client_snapshot_send_secs";
const REPORTS: &str = "typha_reports_total";
const REPORTS_REFUSED: &str = "typha_reports_refused_total";
const REPORT_WRITES: &str = "typha_report_writes_total";
const REPORT_WRITES_FAILED: &str = "typha_report_writes_failed_total";
const TRACES_DROPPED: &str = "typha_traces_dropped_total";

#[derive(Clone)]
pub struct Metrics {
    pub connections_accepted: Counter,
    pub connections_dropped: Counter,
    pub connections_active: Gauge,
    pub connections_streaming: Gauge,
    pub connections_refused: Counter,
    pub hellos_refused: Counter,
    pub snapshots: Counter,
    pub snapshots_active: Gauge,
    pub snapshots_waiting: Gauge,
    pub snapshot_raw_bytes: Gauge,
    pub snapshot_compressed_bytes: Gauge,
    pub resumed_snapshot: Counter,
    pub resumed_delta: Counter,
    pub resumed_digest: Counter,
    pub resumed_behind: Counter,
    pub updates: Counter,
    pub updates_skipped: Counter,
    pub updates_invalid: Counter,
    pub cache_size: Gauge,
    pub tombstones: Gauge,
    pub seq: Gauge,
    pub age: Gauge,
    pub datastore_connected: Gauge,
    pub listings: Counter,
    pub kvs_per_message: Histogram,
    pub sent_bytes: Counter,
    pub snapshot_send: Histogram,
    pub reports: Counter,
    pub reports_refused: Counter,
    pub report_writes: Counter,
    pub report_writes_failed: Counter,
    pub traces_dropped: Counter,
}

impl Metrics {
    pub fn new() -> Self {
        describe();
        let metrics = Metrics {
            connections_accepted: counter!(CONNECTIONS_ACCEPTED),
            connections_dropped: counter!(CONNECTIONS_DROPPED),
            connections_active: gauge!(CONNECTIONS_ACTIVE),
            connections_streaming: gauge!(CONNECTIONS_STREAMING),
            connections_refused: counter!(CONNECTIONS_REFUSED),
            hellos_refused: counter!(HELLOS_REFUSED),
            snapshots: counter!(SNAPSHOTS_GENERATED),
            snapshots_active: gauge!(SNAPSHOTS_ACTIVE),
            snapshots_waiting: gauge!(SNAPSHOTS_WAITING),
            snapshot_raw_bytes: gauge!(SNAPSHOT_RAW_BYTES),
            snapshot_compressed_bytes: gauge!(SNAPSHOT_COMPRESSED_BYTES),
            resumed_snapshot: counter!(RESUMES, "verdict" => "snapshot"),
            resumed_digest: counter!(RESUMES, "verdict" => "digest"),
            resumed_delta: counter!(RESUMES, "verdict" => "delta"),
            resumed_behind: counter!(RESUMES, "verdict" => "behind"),
            updates: counter!(UPDATES_TOTAL),
            updates_skipped: counter!(UPDATES_SKIPPED),
            updates_invalid: counter!(UPDATES_INVALID),
            cache_size: gauge!(CACHE_SIZE),
            tombstones: gauge!(TOMBSTONES),
            seq: gauge!(SEQ),
            age: gauge!(AGE),
            datastore_connected: gauge!(CONNECTED),
            listings: counter!(RELISTS),
            kvs_per_message: histogram!(KVS_PER_MESSAGE),
            sent_bytes: counter!(SENT_BYTES),
            snapshot_send: histogram!(SNAPSHOT_SEND),
            reports: counter!(REPORTS),
            reports_refused: counter!(REPORTS_REFUSED),
            report_writes: counter!(REPORT_WRITES),
            report_writes_failed: counter!(REPORT_WRITES_FAILED),
            traces_dropped: counter!(TRACES_DROPPED),
        };
        metrics.zero();
        metrics
    }

    /// Revision up to which a source is complete.
    pub fn revision(source: &str) -> Gauge {
        gauge!(REVISION, "source" => source.to_owned())
    }

    /// What the datastore's client saw.
    pub fn datastore_events(event: &'static str) -> Counter {
        counter!(DATASTORE_EVENTS, "event" => event)
    }

    fn zero(&self) {
        for counter in [
            &self.connections_accepted,
            &self.connections_dropped,
            &self.connections_refused,
            &self.hellos_refused,
            &self.snapshots,
            &self.resumed_snapshot,
            &self.resumed_delta,
            &self.resumed_digest,
            &self.resumed_behind,
            &self.updates,
            &self.updates_skipped,
            &self.updates_invalid,
            &self.listings,
            &self.sent_bytes,
            &self.reports,
            &self.reports_refused,
            &self.report_writes,
            &self.report_writes_failed,
            &self.traces_dropped,
        ] {
            counter.increment(0);
        }
        for gauge in [
            &self.connections_active,
            &self.connections_streaming,
            &self.snapshots_active,
            &self.snapshots_waiting,
            &self.snapshot_raw_bytes,
            &self.snapshot_compressed_bytes,
            &self.cache_size,
            &self.tombstones,
            &self.seq,
            &self.age,
            &self.datastore_connected,
        ] {
            gauge.set(0.0);
        }
    }

    pub(crate) fn resumed(&self, verdict: ResumeVerdict) -> &Counter {
        match verdict {
            ResumeVerdict::ResumeDelta => &self.resumed_delta,
            ResumeVerdict::ResumeDigest => &self.resumed_digest,
            ResumeVerdict::ResumeBehind => &self.resumed_behind,
            _ => &self.resumed_snapshot,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

fn describe() {
    describe_counter!(CONNECTIONS_ACCEPTED, "Streams whose hello was accepted.");
    describe_counter!(CONNECTIONS_DROPPED, "Streams that were asked to go elsewhere.");
    describe_gauge!(CONNECTIONS_ACTIVE, "Streams open, hello seen or not.");
    describe_gauge!(CONNECTIONS_STREAMING, "Streams past their first cut.");
    describe_counter!(
        CONNECTIONS_REFUSED,
        "Connections closed: limits, failed TLS, another name than configured."
    );
    describe_counter!(
        HELLOS_REFUSED,
        "Streams refused: no hello in time, another first message, another version."
    );
    describe_counter!(SNAPSHOTS_GENERATED, "Snapshots sent completely.");
    describe_gauge!(SNAPSHOTS_ACTIVE, "Snapshots that are being sent.");
    describe_gauge!(SNAPSHOTS_WAITING, "Streams that wait for their turn to be sent a snapshot.");
    describe_gauge!(
        SNAPSHOT_RAW_BYTES,
        "Bytes of all segments of snapshots, as they were last sent compressed."
    );
    describe_gauge!(SNAPSHOT_COMPRESSED_BYTES, "The same segments' bytes after compression.");
    describe_counter!(RESUMES, "Verdicts on the tokens that clients offered.");
    describe_counter!(UPDATES_TOTAL, "Entries that changed in the cache.");
    describe_counter!(UPDATES_SKIPPED, "Updates that changed nothing agents read.");
    describe_counter!(UPDATES_INVALID, "Datastore values refused.");
    describe_gauge!(CACHE_SIZE, "Live entries.");
    describe_gauge!(TOMBSTONES, "Deletions remembered for clients that have not seen them.");
    describe_gauge!(SEQ, "Position of the newest entry.");
    describe_gauge!(REVISION, "Datastore revision up to which the cache is complete.");
    describe_gauge!(AGE, "How old the data can be; -1 while it was never proven.");
    describe_gauge!(CONNECTED, "1 while the datastore answers.");
    describe_counter!(RELISTS, "Listings of the datastore, the first included.");
    describe_counter!(
        DATASTORE_EVENTS,
        "Kubernetes: events passed on (event), without effect (skipped), objects or parts of them that could \
         not be used (finding), kinds no longer served (vanished)."
    );
    describe_histogram!(KVS_PER_MESSAGE, "Entries per message.");
    describe_counter!(SENT_BYTES, "Bytes of messages handed to streams.");
    describe_histogram!(SNAPSHOT_SEND, "Seconds from the hello to the first cut of a snapshot.");
    describe_counter!(REPORTS, "Status reports received from agents.");
    describe_counter!(REPORTS_REFUSED, "Status reports refused: of another node, or not readable.");
    describe_counter!(REPORT_WRITES, "Writes of status to the datastore.");
    describe_counter!(TRACES_DROPPED, "Traces of updates that the OpenTelemetry collector did not take.");
    describe_counter!(REPORT_WRITES_FAILED, "Writes of status that failed, tried again or not.");
}
