//! The inbox: pure but for its lock. Decides which report counts and what is to be written next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::sync::report::Report;
use proto::sync::{self, BgpReport, EndpointReport, ProcessReport};
use syncer_common::model::Key;
use tokio::sync::Notify;

/// A key that was just written is not written again within this time.
const APART: Duration = Duration::from_secs(1);
/// How often the state of a living process is written, and how long it outlives the last time.
pub const PROCESS_EVERY: Duration = Duration::from_secs(30);
/// By then the keepalive has ended a half-open stream of the same agent to another replica.
const COMPARE_AGAIN: Duration = Duration::from_secs(60);
/// More endpoints than any node has: what exceeds it is refused.
const ENDPOINTS: usize = 10_000;
pub const NO_REGION: &str = "no-region";

/// Why a report does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{key:?} is not an endpoint of node {node}")]
    NotItsOwn { key: String, node: String },
    #[error("only felix reports endpoints and its process, not {agent}")]
    NotItsBusiness { agent: String },
    #[error("{status:?} is no status of an endpoint: up, down or error")]
    NoStatus { status: String },
    #[error("node {node} has reported {ENDPOINTS} endpoints already")]
    TooMany { node: String },
}

/// What the writer is to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Task {
    /// One endpoint's status, by the path of its status key.
    Endpoint {
        stream: u64,
        path: String,
    },
    /// Compare all keys of the node with what was reported.
    Compare {
        stream: u64,
    },
    Process {
        stream: u64,
    },
    /// The CalicoNodeStatus objects of all nodes that report BGP sessions here.
    NodeStatus,
}

#[derive(Default)]
pub struct Inbox {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    sessions: HashMap<u64, Session>,
    current: HashMap<(String, String), u64>,
    queue: BTreeSet<(Instant, Task)>,
    queued: HashMap<Task, Instant>,
    written: HashMap<String, Instant>,
}

struct Session {
    node: String,
    agent: String,
    order: sync::Session,
    /// Path of the status key to status; nothing: gone, and to be deleted.
    endpoints: BTreeMap<String, Option<&'static str>>,
    complete: bool,
    process: Option<(ProcessReport, Instant)>,
    bgp: Option<BgpReport>,
}

impl Inbox {
    /// A stream said hello.
    pub fn open(&self, stream: u64, node: &str, agent: &str, order: Option<sync::Session>) {
        let mut state = self.lock();
        let order = order.unwrap_or_default();
        let place = (node.to_owned(), agent.to_owned());
        if let Some(older) = state.current.get(&place).copied() {
            let newer = state.sessions.get(&older).is_some_and(|held| {
                held.order.boot_id == order.boot_id && held.order.counter > order.counter
            });
            if newer {
                return;
            }
            state.sessions.remove(&older);
        }
        state.current.insert(place, stream);
        let session = Session {
            node: node.to_owned(),
            agent: agent.to_owned(),
            order,
            endpoints: BTreeMap::new(),
            complete: false,
            process: None,
            bgp: None,
        };
        state.sessions.insert(stream, session);
    }

    /// The stream has ended; what it had still to write goes with it.
    pub fn close(&self, stream: u64) {
        let mut state = self.lock();
        let Some(session) = state.sessions.remove(&stream) else { return };
        state.current.remove(&(session.node, session.agent));
    }

    /// Takes a report in. One of a stream that a newer one has replaced is passed over.
    pub fn take(&self, stream: u64, report: Report, now: Instant) -> Result<(), Refusal> {
        let mut state = self.lock();
        let Some(session) = state.sessions.get_mut(&stream) else { return Ok(()) };
        let (task, due) = match report {
            Report::Endpoint(report) => {
                session.is_felix()?;
                let Some(path) = session.on_endpoint(report)? else { return Ok(()) };
                let due = state.written.get(&path).map_or(now, |written| now.max(*written + APART));
                (Task::Endpoint { stream, path }, due)
            }
            Report::Complete(_) => {
                session.is_felix()?;
                session.complete = true;
                state.enqueue(Task::Compare { stream }, now);
                return self.awake(state);
            }
            Report::Process(report) => {
                session.is_felix()?;
                session.process = Some((report, now));
                (Task::Process { stream }, now)
            }
            Report::Bgp(report) => {
                session.bgp = Some(report);
                (Task::NodeStatus, now)
            }
            // For operators, through the admin service; no key of the datastore has it.
            Report::Node(_) => return Ok(()),
        };
        state.enqueue(task, due);
        self.awake(state)
    }

    fn awake(&self, state: MutexGuard<'_, State>) -> Result<(), Refusal> {
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// The next task that is due.
    pub(super) async fn next(&self) -> Task {
        loop {
            let due = {
                let mut state = self.lock();
                match state.queue.first().cloned() {
                    Some((due, task)) if due <= Instant::now() => {
                        state.queue.pop_first();
                        state.queued.remove(&task);
                        return task;
                    }
                    first => first.map(|(due, _)| due),
                }
            };
            match due {
                Some(due) => tokio::select! {
                    () = tokio::time::sleep_until(due.into()) => {}
                    () = self.wake.notified() => {}
                },
                None => self.wake.notified().await,
            }
        }
    }

    /// The task is to be done at `due`, or earlier if it is waiting for an earlier time already.
    pub(super) fn later(&self, task: Task, due: Instant) {
        self.lock().enqueue(task, due);
    }

    /// The status that a key is to have; outer nothing: nobody cares any more.
    pub(super) fn wanted(&self, stream: u64, path: &str) -> Option<Option<&'static str>> {
        self.lock().sessions.get(&stream)?.endpoints.get(path).copied()
    }

    /// A key is as it was wanted.
    pub(super) fn wrote(&self, stream: u64, path: &str, status: Option<&'static str>, now: Instant) {
        let mut state = self.lock();
        state.written.insert(path.to_owned(), now);
        if state.written.len() > 2 * ENDPOINTS {
            state.written.retain(|_, written| now.saturating_duration_since(*written) < APART);
        }
        let Some(session) = state.sessions.get_mut(&stream) else { return };
        if status.is_none() && session.endpoints.get(path) == Some(&None) {
            session.endpoints.remove(path);
        }
    }

    /// Node and endpoints of a session that has named all of them.
    pub(super) fn complete(&self, stream: u64) -> Option<(String, BTreeMap<String, Option<&'static str>>)> {
        let state = self.lock();
        let session = state.sessions.get(&stream).filter(|session| session.complete)?;
        Some((session.node.clone(), session.endpoints.clone()))
    }

    pub(super) fn process(&self, stream: u64) -> Option<(String, ProcessReport, Instant)> {
        let state = self.lock();
        let session = state.sessions.get(&stream)?;
        let (report, at) = session.process?;
        Some((session.node.clone(), report, at))
    }

    /// The BGP sessions of every node that reports them here.
    pub(super) fn bgp(&self) -> BTreeMap<String, BgpReport> {
        let state = self.lock();
        let reports = state.sessions.values();
        reports.filter_map(|session| Some((session.node.clone(), session.bgp.clone()?))).collect()
    }

    /// Whether the node still has a stream here.
    pub(super) fn has(&self, stream: u64) -> bool {
        self.lock().sessions.contains_key(&stream)
    }

    /// A second comparison, when no older stream can write any more.
    pub(super) fn compared(&self, stream: u64, first: bool, now: Instant) {
        if first {
            self.lock().enqueue(Task::Compare { stream }, now + COMPARE_AGAIN);
        }
    }

    /// Tasks of sessions that are gone.
    #[cfg(test)]
    fn pending(&self) -> Vec<Task> {
        self.lock().queue.iter().map(|(_, task)| task.clone()).collect()
    }

    // A poisoned lock only means that a stream panicked between two plain assignments.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn enqueue(&mut self, task: Task, due: Instant) {
        if let Some(queued) = self.queued.get(&task).copied() {
            if queued <= due {
                return;
            }
            self.queue.remove(&(queued, task.clone()));
        }
        self.queued.insert(task.clone(), due);
        self.queue.insert((due, task));
    }
}

impl Session {
    fn is_felix(&self) -> Result<(), Refusal> {
        match self.agent.as_str() {
            "felix" => Ok(()),
            agent => Err(Refusal::NotItsBusiness { agent: agent.to_owned() }),
        }
    }

    /// The path of the status key, unless nothing changed.
    fn on_endpoint(&mut self, report: EndpointReport) -> Result<Option<String>, Refusal> {
        let not_its_own = || Refusal::NotItsOwn { key: report.key.clone(), node: self.node.clone() };
        let status_key = match Key::parse(&report.key) {
            Some(Key::WorkloadEndpoint(key)) if key.host == self.node => Key::WorkloadEndpointStatus {
                region: NO_REGION.into(),
                host: key.host,
                orchestrator: key.orchestrator,
                workload: key.workload,
                endpoint: key.endpoint,
            },
            Some(Key::HostEndpoint(key)) if key.host == self.node => {
                Key::HostEndpointStatus { host: key.host, endpoint: key.endpoint }
            }
            _ => return Err(not_its_own()),
        };
        let path = status_key.path().map_err(|_| not_its_own())?;
        let status = match (report.removed, report.status.as_str()) {
            (true, _) => None,
            (false, "up") => Some("up"),
            (false, "down") => Some("down"),
            (false, "error") => Some("error"),
            (false, other) => return Err(Refusal::NoStatus { status: other.to_owned() }),
        };
        if self.endpoints.len() >= ENDPOINTS && !self.endpoints.contains_key(&path) {
            return Err(Refusal::TooMany { node: self.node.clone() });
        }
        let before = self.endpoints.insert(path.clone(), status);
        Ok((before != Some(status)).then_some(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(node: &str, workload: &str, status: Option<&str>) -> Report {
        let key = format!("/calico/v1/host/{node}/workload/k8s/default%2f{workload}/endpoint/eth0");
        let (status, removed) = (status.unwrap_or_default().to_owned(), status.is_none());
        Report::Endpoint(EndpointReport { key, status, removed })
    }

    fn order(boot_id: &str, counter: u64) -> Option<sync::Session> {
        Some(sync::Session { boot_id: boot_id.into(), counter })
    }

    const PATH: &str = "/calico/felix/v2/no-region/host/n1/workload/k8s/default%2fa/endpoint/eth0";

    #[test]
    fn only_own_endpoints_count() {
        let (inbox, now) = (Inbox::default(), Instant::now());
        inbox.open(1, "n1", "felix", order("b", 1));
        assert!(inbox.take(1, report("n1", "a", Some("up")), now).is_ok());
        assert!(matches!(inbox.take(1, report("n2", "a", Some("up")), now), Err(Refusal::NotItsOwn { .. })));
        assert!(matches!(inbox.take(1, report("n1", "a", Some("fine")), now), Err(Refusal::NoStatus { .. })));
        let policy = EndpointReport { key: "/calico/v1/Ready".into(), ..Default::default() };
        assert!(matches!(inbox.take(1, Report::Endpoint(policy), now), Err(Refusal::NotItsOwn { .. })));
        inbox.open(2, "n1", "confd", order("c", 1));
        assert!(matches!(inbox.take(2, report("n1", "a", None), now), Err(Refusal::NotItsBusiness { .. })));
        assert_eq!(inbox.pending(), [Task::Endpoint { stream: 1, path: PATH.into() }]);
    }

    #[test]
    fn changes_before_a_write_are_one_write_and_a_key_is_not_written_twice_a_second() {
        let (inbox, now) = (Inbox::default(), Instant::now());
        inbox.open(1, "n1", "felix", order("b", 1));
        for status in ["up", "down", "up", "down"] {
            inbox.take(1, report("n1", "a", Some(status)), now).unwrap();
        }
        assert_eq!(inbox.pending().len(), 1);
        assert_eq!(inbox.wanted(1, PATH), Some(Some("down")));
        inbox.lock().queue.clear();
        inbox.lock().queued.clear();
        inbox.wrote(1, PATH, Some("down"), now);
        inbox.take(1, report("n1", "a", Some("down")), now).unwrap();
        assert!(inbox.pending().is_empty(), "nothing changed");
        inbox.take(1, report("n1", "a", None), now).unwrap();
        assert_eq!(inbox.lock().queue.first().unwrap().0, now + APART);
        inbox.wrote(1, PATH, None, now);
        assert_eq!(inbox.wanted(1, PATH), None, "what is gone is forgotten");
    }

    #[test]
    fn highest_counter_of_a_boot_id_counts_and_what_an_older_one_had_to_write_is_dropped() {
        let (inbox, now) = (Inbox::default(), Instant::now());
        inbox.open(1, "n1", "felix", order("b", 1));
        inbox.take(1, report("n1", "a", Some("down")), now).unwrap();
        inbox.open(2, "n1", "felix", order("b", 2));
        inbox.take(2, report("n1", "a", Some("up")), now).unwrap();
        inbox.take(1, report("n1", "a", Some("error")), now).unwrap();
        assert_eq!((inbox.wanted(1, PATH), inbox.wanted(2, PATH)), (None, Some(Some("up"))));
        // A stream that was opened before, but is heard of later.
        inbox.open(3, "n1", "felix", order("b", 1));
        assert!(inbox.has(2) && !inbox.has(3));
        // A restarted agent.
        inbox.open(4, "n1", "felix", order("other", 1));
        assert!(!inbox.has(2) && inbox.has(4));
        inbox.close(2);
        assert!(inbox.has(4));
    }
}
