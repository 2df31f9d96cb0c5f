//! confd's metrics: names, descriptions, and the handles that the daemon reports through.

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

use crate::bird::sessions::{Session, State};

const SESSIONS: &str = "confd_bgp_sessions";
const ROUTES_IMPORTED: &str = "confd_bgp_routes_imported";
const ROUTES_EXPORTED: &str = "confd_bgp_routes_exported";
const TROUBLED: &str = "confd_bgp_peers_in_trouble";
const BIRD_UP: &str = "confd_bird_up";
const CONFIRMED: &str = "confd_config_confirmed";
const RELOADS: &str = "confd_bird_reloads_total";
const FAILURES: &str = "confd_bird_failures_total";
const PROBLEMS: &str = "confd_input_problems";
const PROBLEMS_SEEN: &str = "confd_input_problems_total";
const RENDER_SECONDS: &str = "confd_render_seconds";
const UPDATES: &str = "confd_updates_total";

/// One handle per series, made once, so that every series is there from the start.
pub struct ConfdMetrics {
    sessions: [(State, Gauge); State::ALL.len()],
    routes_imported: Gauge,
    routes_exported: Gauge,
    pub troubled: Gauge,
    pub bird_up: Gauge,
    pub confirmed: Gauge,
    pub reloads: Counter,
    pub failures: Counter,
    pub problems: Gauge,
    pub problems_seen: Counter,
    pub render_seconds: Histogram,
    pub updates: Counter,
}

impl ConfdMetrics {
    pub fn new() -> ConfdMetrics {
        describe_gauge!(SESSIONS, "BGP sessions of this node by state");
        describe_gauge!(ROUTES_IMPORTED, "Routes taken from BGP peers");
        describe_gauge!(ROUTES_EXPORTED, "Routes given to BGP peers");
        describe_gauge!(TROUBLED, "Peers that are missing, not up, or lost again and again");
        describe_gauge!(BIRD_UP, "1 while BIRD answers at its control socket");
        describe_gauge!(CONFIRMED, "1 while BIRD runs the latest configuration");
        describe_counter!(RELOADS, "Times that BIRD was told to read its configuration");
        describe_counter!(FAILURES, "Attempts to bring BIRD to the latest configuration that failed");
        describe_gauge!(PROBLEMS, "Objects, or parts of them, that could not be used");
        describe_counter!(PROBLEMS_SEEN, "The same, counted when first seen");
        describe_histogram!(RENDER_SECONDS, "Time to compute and render the configuration");
        describe_counter!(UPDATES, "Updates received");
        let made = ConfdMetrics {
            sessions: State::ALL.map(|state| (state, gauge!(SESSIONS, "state" => state.name()))),
            routes_imported: gauge!(ROUTES_IMPORTED),
            routes_exported: gauge!(ROUTES_EXPORTED),
            troubled: gauge!(TROUBLED),
            bird_up: gauge!(BIRD_UP),
            confirmed: gauge!(CONFIRMED),
            reloads: counter!(RELOADS),
            failures: counter!(FAILURES),
            problems: gauge!(PROBLEMS),
            problems_seen: counter!(PROBLEMS_SEEN),
            render_seconds: histogram!(RENDER_SECONDS),
            updates: counter!(UPDATES),
        };
        made.sessions(&[]);
        made.troubled.set(0.0);
        made.bird_up.set(0.0);
        made.confirmed.set(0.0);
        made.problems.set(0.0);
        for counter in [&made.reloads, &made.failures, &made.problems_seen, &made.updates] {
            counter.absolute(0);
        }
        made
    }

    /// The sessions as last read.
    pub fn sessions(&self, sessions: &[Session]) {
        for (state, gauge) in &self.sessions {
            gauge.set(sessions.iter().filter(|session| session.state == *state).count() as f64);
        }
        let sum = |count: fn(&Session) -> Option<u64>| sessions.iter().filter_map(count).sum::<u64>() as f64;
        self.routes_imported.set(sum(|session| session.imported));
        self.routes_exported.set(sum(|session| session.exported));
    }
}

impl Default for ConfdMetrics {
    fn default() -> Self {
        ConfdMetrics::new()
    }
}
