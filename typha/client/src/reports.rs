//! What the agent reports about its node: the latest of each thing, for whichever server it is connected to.
//!
//! The agent sets what is; a stream sends what it has not sent yet, and all of it again after a reconnect. What
//! changes while the server does not read is sent once, as it is then. Nothing here waits for anybody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use proto::sync::report::Report;
use proto::sync::{BgpReport, BgpSession, EndpointReport, EndpointsComplete, NodeReport, ProcessReport};
use syncer_common::model::Key;
use tokio::sync::watch;

/// A handle; clones share what is reported.
#[derive(Clone, Debug)]
pub struct Reports {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Grows with every change.
    version: u64,
    latest: BTreeMap<Subject, (u64, Content)>,
    by_version: BTreeMap<u64, Subject>,
    /// The endpoints are all there are.
    complete: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Process,
    Node,
    Bgp,
    Endpoint(String),
}

#[derive(Clone, Debug, PartialEq)]
enum Content {
    Process {
        first_update: bool,
    },
    Node(NodeReport),
    Bgp(BgpReport),
    /// Nothing: it is gone. Kept until it was sent.
    Endpoint(Option<&'static str>),
}

impl Default for Reports {
    fn default() -> Self {
        let shared =
            Shared { started: Instant::now(), state: Mutex::default(), changed: watch::Sender::new(0) };
        Reports { shared: Arc::new(shared) }
    }
}

impl Reports {
    /// Every endpoint of the node, with its status (up, down, error). One that was reported before and is not
    /// among them is gone.
    pub fn endpoints(&self, endpoints: impl IntoIterator<Item = (Key, &'static str)>) {
        let mut all: BTreeMap<String, &'static str> =
            endpoints.into_iter().filter_map(|(key, status)| Some((key.path().ok()?, status))).collect();
        self.change(|state| {
            let held: Vec<String> = state
                .latest
                .keys()
                .filter_map(|subject| match subject {
                    Subject::Endpoint(path) => Some(path.clone()),
                    _ => None,
                })
                .collect();
            for path in held {
                let status = all.remove(&path);
                state.set(Subject::Endpoint(path), Content::Endpoint(status));
            }
            for (path, status) in all {
                state.set(Subject::Endpoint(path), Content::Endpoint(Some(status)));
            }
            state.complete = true;
        });
    }

    /// The agent's process lives; `first_update`: it has programmed a complete state.
    pub fn process(&self, first_update: bool) {
        self.change(|state| state.set(Subject::Process, Content::Process { first_update }));
    }

    /// What of the datastore's objects the agent cannot use, one line each.
    pub fn problems(&self, problems: Vec<String>) {
        let report = NodeReport { problems };
        self.change(|state| state.set(Subject::Node, Content::Node(report)));
    }

    /// The sessions of the node, as last read.
    pub fn bgp(&self, sessions: Vec<BgpSession>) {
        self.change(|state| state.set(Subject::Bgp, Content::Bgp(BgpReport { sessions })));
    }

    /// What is reported of an endpoint.
    pub fn endpoint(&self, key: &Key) -> Option<&'static str> {
        match self.lock().latest.get(&Subject::Endpoint(key.path().ok()?)) {
            Some((_, Content::Endpoint(status))) => *status,
            _ => None,
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let (before, after) = {
            let mut state = self.lock();
            let before = (state.version, state.complete);
            change(&mut state);
            (before, (state.version, state.complete))
        };
        if before != after {
            self.shared.changed.send_replace(after.0);
        }
    }

    /// What a new stream has to send: everything.
    pub(crate) fn outgoing(&self) -> Outgoing {
        let head = self.lock().version;
        Outgoing {
            reports: self.clone(),
            changed: self.shared.changed.subscribe(),
            sent: 0,
            head,
            said: false,
        }
    }

    // A poisoned lock only means that a reporter panicked between two plain assignments.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn set(&mut self, subject: Subject, content: Content) {
        let before = self.latest.get(&subject);
        if before.is_some_and(|(_, held)| *held == content) {
            return;
        }
        if let Some((version, _)) = before {
            self.by_version.remove(version);
        }
        self.version += 1;
        self.by_version.insert(self.version, subject.clone());
        self.latest.insert(subject, (self.version, content));
    }

    fn forget(&mut self, subject: &Subject) {
        if let Some((version, _)) = self.latest.remove(subject) {
            self.by_version.remove(&version);
        }
    }
}

/// What one stream has still to send.
pub(crate) struct Outgoing {
    reports: Reports,
    changed: watch::Receiver<u64>,
    sent: u64,
    /// What there was when the stream began is sent up to here.
    head: u64,
    /// That the endpoints are complete.
    said: bool,
}

impl Outgoing {
    /// Until there is something to send. Does not return when there never will be.
    pub async fn due(&mut self) {
        loop {
            self.changed.mark_unchanged();
            if self.is_due() {
                return;
            }
            if self.changed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn is_due(&self) -> bool {
        let state = self.reports.lock();
        let behind = state.by_version.range(self.sent + 1..).next().is_some();
        behind || (state.complete && !self.said)
    }

    pub fn next(&mut self) -> Option<Report> {
        let uptime_seconds = self.reports.shared.started.elapsed().as_secs_f64();
        let mut state = self.reports.lock();
        let next = state.by_version.range(self.sent + 1..).next();
        let next = next.map(|(version, subject)| (*version, subject.clone()));
        // Changes that came after the stream began need not be awaited: they correct what was said.
        let all = next.as_ref().is_none_or(|(version, _)| *version > self.head);
        if all && state.complete && !self.said {
            self.said = true;
            return Some(Report::Complete(EndpointsComplete {}));
        }
        let (version, subject) = next?;
        self.sent = version;
        let content = state.latest.get(&subject)?.1.clone();
        Some(match (subject, content) {
            (_, Content::Process { first_update }) => {
                Report::Process(ProcessReport { uptime_seconds, first_update })
            }
            (_, Content::Node(report)) => Report::Node(report),
            (_, Content::Bgp(report)) => Report::Bgp(report),
            (subject, Content::Endpoint(status)) => {
                if status.is_none() {
                    state.forget(&subject);
                }
                let Subject::Endpoint(key) = subject else { return None };
                let (status, removed) = (status.unwrap_or_default().to_owned(), status.is_none());
                Report::Endpoint(EndpointReport { key, status, removed })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use syncer_common::model::WorkloadEndpointKey;

    use super::*;

    fn endpoint(name: &str) -> Key {
        Key::WorkloadEndpoint(WorkloadEndpointKey {
            host: "n1".into(),
            orchestrator: "k8s".into(),
            workload: format!("default/{name}"),
            endpoint: "eth0".into(),
        })
    }

    /// Everything that is due now: `name=status`, `-name`, or the word for another report.
    fn drain(outgoing: &mut Outgoing) -> Vec<String> {
        let text = |report| match report {
            Report::Endpoint(EndpointReport { key, status, removed }) => {
                let name =
                    key.split("%2f").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or("?").to_owned();
                if removed { format!("-{name}") } else { format!("{name}={status}") }
            }
            Report::Process(_) => "process".into(),
            Report::Complete(_) => "complete".into(),
            other => format!("{other:?}"),
        };
        std::iter::from_fn(|| outgoing.next()).map(text).collect()
    }

    #[test]
    fn latest_value_is_sent_once_and_everything_again_on_a_new_stream() {
        let reports = Reports::default();
        reports.endpoints([(endpoint("a"), "down"), (endpoint("b"), "down")]);
        reports.endpoints([(endpoint("a"), "up"), (endpoint("b"), "down")]);
        reports.process(true);
        let mut first = reports.outgoing();
        assert_eq!(drain(&mut first), ["b=down", "a=up", "process", "complete"]);
        assert!(drain(&mut first).is_empty());
        reports.endpoints([(endpoint("a"), "up")]);
        assert_eq!(drain(&mut first), ["-b"]);
        let mut second = reports.outgoing();
        assert_eq!(drain(&mut second), ["a=up", "process", "complete"]);
    }

    #[test]
    fn agent_without_endpoints_says_that_there_are_none() {
        let reports = Reports::default();
        let mut stream = reports.outgoing();
        assert!(!stream.is_due());
        reports.endpoints([]);
        assert!(stream.is_due());
        assert_eq!(drain(&mut stream), ["complete"]);
    }
}
