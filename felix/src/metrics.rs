//! Felix's metrics: names as Calico's where the meaning is the same, so that dashboards go on working.
//!
//! The recorder is the process's; without one (tests, `felix render`) these calls do nothing.

use std::time::Duration;

use crate::iptables::{IpVersion, TableName};

const IPSET_CALLS: &str = "felix_ipset_calls";
const IPSET_ERRORS: &str = "felix_ipset_errors";
const IPSET_LINES: &str = "felix_ipset_lines_executed";
const IPSETS_OWNED: &str = "felix_ipsets_calico";
const SAVE_CALLS: &str = "felix_iptables_save_calls";
const SAVE_ERRORS: &str = "felix_iptables_save_errors";
const RESTORE_CALLS: &str = "felix_iptables_restore_calls";
const RESTORE_ERRORS: &str = "felix_iptables_restore_errors";
const LINES: &str = "felix_iptables_lines_executed";
const CHAINS: &str = "felix_iptables_chains";
const RULES: &str = "felix_iptables_rules";
const ROUTES: &str = "felix_route_table_num_routes";
const CLUSTER_ROUTES: &str = "felix_cluster_routes";
const DRIFT: &str = "felix_drift_total";
const APPLY_TIME: &str = "felix_int_dataplane_apply_time_seconds";
const FAILURES: &str = "felix_int_dataplane_failures";
const MESSAGES: &str = "felix_int_dataplane_messages";
const RESYNC_STATE: &str = "felix_resync_state";
const RESYNCS_STARTED: &str = "felix_resyncs_started";
const UPDATES_PROCESSED: &str = "felix_calc_graph_updates_processed";
const OUTPUT_EVENTS: &str = "felix_calc_graph_output_events";
const ACTIVE_ENDPOINTS: &str = "felix_active_local_endpoints";
const ACTIVE_POLICIES: &str = "felix_active_local_policies";
const PROGRAMMED_AFTER: &str = "felix_programmed_latency_seconds";
const CONFIG_ERRORS: &str = "felix_config_errors_total";
const EVENTS_LOST: &str = "felix_netlink_overruns_total";

/// Describes every series and creates those without labels at zero.
pub fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    for (name, what) in [
        (IPSET_CALLS, "calls of the ipset program"),
        (IPSET_ERRORS, "ipset calls that failed, and members that could not be read"),
        (IPSET_LINES, "lines given to ipset restore"),
        (SAVE_CALLS, "iptables-save calls"),
        (SAVE_ERRORS, "iptables-save calls that failed"),
        (RESTORE_CALLS, "iptables-restore calls"),
        (RESTORE_ERRORS, "iptables-restore calls that failed"),
        (FAILURES, "dataplane passes that left something to be tried again"),
        (MESSAGES, "changes that the dataplane received from the calculation"),
        (RESYNCS_STARTED, "connections to a server that began with a full or partial resync"),
        (UPDATES_PROCESSED, "updates that the calculation processed"),
        (OUTPUT_EVENTS, "changes that the calculation put out"),
        (CONFIG_ERRORS, "configuration parameters that were refused"),
        (
            EVENTS_LOST,
            "times that the kernel dropped interface events, after which everything was listed again",
        ),
    ] {
        describe_counter!(name, what);
        metrics::counter!(name).increment(0);
    }
    describe_counter!(LINES, "lines given to iptables-restore");
    describe_gauge!(IPSETS_OWNED, "IP sets that felix wants in the kernel");
    describe_gauge!(CHAINS, "chains that felix wants in the kernel");
    describe_gauge!(RULES, "rules that felix wants in the kernel");
    describe_gauge!(ROUTES, "routes that felix wants in the kernel");
    describe_gauge!(CLUSTER_ROUTES, "routes to other nodes that felix has in the kernel");
    describe_counter!(DRIFT, "things in the kernel that somebody else changed and felix put right");
    describe_gauge!(RESYNC_STATE, "1 waiting for a server, 2 receiving a snapshot, 3 in sync");
    describe_gauge!(ACTIVE_ENDPOINTS, "endpoints on this node");
    describe_gauge!(ACTIVE_POLICIES, "policies in force on this node");
    describe_histogram!(APPLY_TIME, "time of one dataplane pass");
    describe_histogram!(PROGRAMMED_AFTER, "time from the arrival of a change to its being in the kernel");
    for name in [RESYNC_STATE, ACTIVE_ENDPOINTS, ACTIVE_POLICIES, ROUTES, CLUSTER_ROUTES] {
        metrics::gauge!(name).set(0.0);
    }
}

pub fn ipset_call() {
    metrics::counter!(IPSET_CALLS).increment(1);
}

pub fn ipset_error() {
    metrics::counter!(IPSET_ERRORS).increment(1);
}

pub fn ipset_lines(lines: usize) {
    metrics::counter!(IPSET_LINES).increment(lines as u64);
}

pub fn ipsets_owned(version: IpVersion, count: usize) {
    metrics::gauge!(IPSETS_OWNED, "ip_version" => label(version)).set(count as f64);
}

pub fn save(failed: bool) {
    metrics::counter!(SAVE_CALLS).increment(1);
    metrics::counter!(SAVE_ERRORS).increment(u64::from(failed));
}

pub fn restore(failed: bool) {
    metrics::counter!(RESTORE_CALLS).increment(1);
    metrics::counter!(RESTORE_ERRORS).increment(u64::from(failed));
}

pub fn table(version: IpVersion, table: TableName, chains: usize, rules: usize, lines: usize) {
    let labels = [("ip_version", label(version)), ("table", table.name())];
    metrics::gauge!(CHAINS, &labels).set(chains as f64);
    metrics::gauge!(RULES, &labels).set(rules as f64);
    metrics::counter!(LINES, &labels).increment(lines as u64);
}

pub fn routes(count: usize) {
    metrics::gauge!(ROUTES).set(count as f64);
}

pub fn cluster_routes(count: usize) {
    metrics::gauge!(CLUSTER_ROUTES).set(count as f64);
}

/// Somebody else changed something of ours.
pub fn drift(what: &'static str) {
    metrics::counter!(DRIFT, "what" => what).increment(1);
}

pub fn pass(took: Duration, failed: bool) {
    metrics::histogram!(APPLY_TIME).record(took.as_secs_f64());
    metrics::counter!(FAILURES).increment(u64::from(failed));
}

pub fn messages(count: usize) {
    metrics::counter!(MESSAGES).increment(count as u64);
    metrics::counter!(OUTPUT_EVENTS).increment(count as u64);
}

pub fn updates(count: usize) {
    metrics::counter!(UPDATES_PROCESSED).increment(count as u64);
}

pub fn resync_state(state: u8) {
    metrics::gauge!(RESYNC_STATE).set(f64::from(state));
    if state == 2 {
        metrics::counter!(RESYNCS_STARTED).increment(1);
    }
}

pub fn active(endpoints: usize, policies: usize) {
    metrics::gauge!(ACTIVE_ENDPOINTS).set(endpoints as f64);
    metrics::gauge!(ACTIVE_POLICIES).set(policies as f64);
}

pub fn programmed_after(latency: Duration) {
    metrics::histogram!(PROGRAMMED_AFTER).record(latency.as_secs_f64());
}

pub fn events_lost() {
    metrics::counter!(EVENTS_LOST).increment(1);
}

pub fn config_error() {
    metrics::counter!(CONFIG_ERRORS).increment(1);
}

fn label(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "4",
        IpVersion::V6 => "6",
    }
}
