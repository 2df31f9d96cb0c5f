//! All simulated nodes of a run: each follows the typhas with the client library of felix and confd.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use daemon::CancellationToken;
use futures::FutureExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use typha_client::{ClientConfig, ClientEvent, Names};

use crate::follow::Spread;
use crate::incumbent;
use crate::latency::Latencies;
use crate::node::{Fault, Keys, Node, State};

/// Events that wait for a node: so much may pile up in front of one that does not read, and no more.
const EVENTS: usize = 16;
/// Nodes that take their first snapshot at the same time. They share this machine: with more of them each would get so
/// little of it that servers look silent, and all would begin again.
const JOINING: usize = 400;
/// In place of the 6 s of an agent that has a machine of its own.
const SILENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

pub struct Fleet {
    servers: Vec<String>,
    seen: Seen,
    keys: Keys,
    speech: Speech,
    joining: Arc<Semaphore>,
    members: Members,
    tasks: JoinSet<()>,
    /// Where the nodes run: not where the run itself does.
    runtime: Handle,
    stop: CancellationToken,
}

/// How to talk to the servers, and what all nodes share for that.
#[derive(Clone)]
pub enum Speech {
    /// As felix and confd do.
    Bulrush(Names),
    /// As Calico's felix does with Calico's Typha.
    Calico { known: incumbent::Known, received: Arc<AtomicU64> },
}

/// Which nodes read every value, and the fault of the first.
pub struct Sample {
    pub members: Vec<bool>,
    pub fault: Option<Fault>,
}

impl Sample {
    pub fn none(nodes: usize) -> Sample {
        Sample { members: vec![false; nodes], fault: None }
    }

    /// So many percent, but at least one; the same for the same seed.
    pub fn draw(nodes: usize, percent: f64, seed: u64) -> Sample {
        let count = (nodes as f64 * percent / 100.0).ceil().min(nodes as f64) as usize;
        let mut sample = Sample::none(nodes);
        for index in rand::seq::index::sample(&mut StdRng::seed_from_u64(seed), nodes, count) {
            sample.members[index] = true;
        }
        sample
    }
}

/// Who is told of what nodes receive.
#[derive(Clone)]
pub struct Seen {
    pub latencies: Arc<Latencies>,
    pub spread: Option<Arc<Spread>>,
}

/// The nodes, for those who only look at them.
#[derive(Clone)]
pub struct Members(Arc<[Arc<Member>]>);

struct Member {
    index: usize,
    /// It reads every value, as felix does.
    sampled: bool,
    node: Mutex<Node>,
    /// How it reads.
    pace: watch::Sender<Pace>,
    /// Whether its latencies count: not while it catches up with what it missed by its own fault.
    counts: AtomicBool,
    session: Mutex<CancellationToken>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Full,
    /// With so long a pause after each event.
    Slow(Duration),
    Stalled,
}

/// Sums over all nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub in_sync: usize,
    pub connected: usize,
    pub caught_up: usize,
    pub messages: u64,
    pub updates: u64,
    pub deletions: u64,
    pub disconnects: u64,
    pub sent_on: u64,
    pub mistakes: usize,
}

impl Members {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for member in self.0.iter() {
            let node = lock(&member.node);
            totals.in_sync += usize::from(node.in_sync);
            totals.connected += usize::from(node.connected);
            totals.caught_up += usize::from(node.caught_up);
            totals.messages += node.messages;
            totals.updates += node.updates;
            totals.deletions += node.deletions;
            totals.disconnects += node.disconnects;
            totals.sent_on += node.sent_on;
            totals.mistakes += node.mistakes.len();
        }
        totals
    }

    /// Of the state that most nodes hold: its entries, and how many hold it.
    pub fn most_alike(&self) -> (usize, usize) {
        let mut states: HashMap<(u64, usize), usize> = HashMap::new();
        for member in self.0.iter() {
            *states.entry(lock(&member.node).state.sum()).or_default() += 1;
        }
        let most = states.into_iter().max_by_key(|(_, nodes)| *nodes);
        most.map_or((0, 0), |((_, entries), nodes)| (entries, nodes))
    }
}

impl Fleet {
    pub fn new(
        servers: Vec<String>,
        speech: Speech,
        names: Vec<String>,
        keys: Keys,
        seen: Seen,
        sample: Sample,
        runtime: Handle,
    ) -> Self {
        let stop = CancellationToken::new();
        let member = |(index, name)| {
            let mut node = Node::new(name, keys.clone());
            node.fault = sample.fault.filter(|_| index == 0);
            Arc::new(Member {
                index,
                sampled: sample.members[index],
                node: Mutex::new(node),
                pace: watch::Sender::new(Pace::Full),
                counts: AtomicBool::new(true),
                session: Mutex::new(stop.child_token()),
            })
        };
        let members = Members(names.into_iter().enumerate().map(member).collect());
        Fleet {
            servers,
            seen,
            keys,
            speech,
            joining: Arc::new(Semaphore::new(JOINING)),
            members,
            tasks: JoinSet::new(),
            runtime,
            stop,
        }
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Every node joins, at once.
    pub fn join(&mut self) {
        for member in self.members.0.clone().iter() {
            self.spawn(member.clone());
        }
    }

    fn spawn(&mut self, member: Arc<Member>) {
        let (servers, speech, seen) = (self.servers.clone(), self.speech.clone(), self.seen.clone());
        let (session, joining) = (lock(&member.session).clone(), self.joining.clone());
        let follow = async move {
            let turn = tokio::select! {
                turn = joining.acquire_owned() => turn.ok(),
                () = session.cancelled() => return,
            };
            follow(member, session, servers, speech, seen, turn).await;
        };
        self.tasks.spawn_on(follow, &self.runtime);
    }

    /// Every node dies, forgets everything and joins again, at once.
    pub async fn restart(&mut self) {
        self.leave().await;
        self.forget(self.len());
        self.join();
    }

    /// The last `count` nodes leave. Only while all others are known to stay.
    pub fn last_leave(&self, count: usize) {
        self.last(count).for_each(|member| lock(&member.session).cancel());
    }

    /// They come back, and hold nothing.
    pub fn last_return(&mut self, count: usize) {
        self.forget(count);
        let back: Vec<_> = self.last(count).cloned().collect();
        back.into_iter().for_each(|member| self.spawn(member));
    }

    fn last(&self, count: usize) -> impl Iterator<Item = &Arc<Member>> {
        self.members.0.iter().rev().take(count)
    }

    fn forget(&self, count: usize) {
        for member in self.last(count) {
            let mut node = lock(&member.node);
            let fresh = Node::new(std::mem::take(&mut node.name), self.keys.clone());
            let old = std::mem::replace(&mut *node, fresh);
            (node.messages, node.updates) = (old.messages, old.updates);
            (node.deletions, node.disconnects) = (old.deletions, old.disconnects + 1);
            node.sent_on = old.sent_on;
            node.mistakes = old.mistakes;
            *lock(&member.session) = self.stop.child_token();
        }
    }

    /// Every node's stream ends.
    pub async fn leave(&mut self) {
        for member in self.members.0.iter() {
            lock(&member.session).cancel();
        }
        while self.tasks.join_next().await.is_some() {}
    }

    /// `count` nodes read so from now on: those of the sample first, for they notice most.
    pub fn pace(&self, count: usize, pace: Pace) {
        let (sampled, others): (Vec<_>, Vec<_>) = self.members.0.iter().partition(|member| member.sampled);
        for member in sampled.into_iter().chain(others).take(count) {
            if pace != Pace::Full {
                member.counts.store(false, Ordering::Relaxed);
            }
            member.pace.send_replace(pace);
        }
    }

    pub fn totals(&self) -> Totals {
        self.members.totals()
    }

    /// Bytes that all nodes received, where their client counts them.
    pub fn received_bytes(&self) -> Option<u64> {
        match &self.speech {
            Speech::Bulrush(_) => None,
            Speech::Calico { received, .. } => Some(received.load(Ordering::Relaxed)),
        }
    }

    pub fn members(&self) -> Members {
        self.members.clone()
    }

    pub async fn all_in_sync(&self, patience: Duration) -> Result<Duration, String> {
        let start = Instant::now();
        loop {
            let in_sync = self.totals().in_sync;
            if in_sync == self.len() {
                return Ok(start.elapsed());
            }
            if start.elapsed() > patience {
                let reason = |member: &Arc<Member>| lock(&member.node).lost.clone();
                return Err(format!(
                    "{in_sync} of {} nodes are in sync after {} s (--patience): {}",
                    self.len(),
                    patience.as_secs(),
                    self.members
                        .0
                        .iter()
                        .find_map(reason)
                        .unwrap_or("no stream was lost; are they slow?".into())
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until every node has a stream that has come to a consistent state.
    pub async fn all_caught_up(&self, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        loop {
            let caught_up = self.totals().caught_up;
            if caught_up == self.len() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{caught_up} of {} nodes have a stream again", self.len()));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until every node holds exactly `truth`, and says when the last of them changed.
    pub async fn all_hold(&self, truth: &State, patience: Duration) -> Result<Option<Instant>, Vec<String>> {
        let start = Instant::now();
        loop {
            let wrong = |member: &&Arc<Member>| {
                let node = lock(&member.node);
                // Those of the sample entry by entry, the others by the digest of all entries.
                !node.state.same(truth) || (member.sampled && !node.state.equals(truth))
            };
            let late: Vec<_> = self.members.0.iter().filter(wrong).collect();
            if late.is_empty() {
                self.members.0.iter().for_each(|member| member.counts.store(true, Ordering::Relaxed));
                return Ok(self.members.0.iter().filter_map(|member| lock(&member.node).changed).max());
            }
            if start.elapsed() > patience {
                let mut words = vec![format!(
                    "{} of {} nodes do not hold what the datastore holds ({} entries) after {} s",
                    late.len(),
                    self.len(),
                    truth.entries(),
                    patience.as_secs()
                )];
                words.extend(late.iter().take(3).map(|member| {
                    let node = lock(&member.node);
                    format!("{}: {}", node.name, node.state.differences(truth, &self.keys))
                }));
                return Err(words);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Without a datastore to compare with: whether all hold the same.
    pub fn first_state(&self) -> State {
        self.members.0.first().map(|member| lock(&member.node).state.clone()).unwrap_or_default()
    }

    pub fn mistakes(&self) -> Vec<String> {
        let of = |member: &Arc<Member>| {
            let node = lock(&member.node);
            node.mistakes.iter().map(|mistake| format!("{}: {mistake}", node.name)).collect::<Vec<_>>()
        };
        self.members.0.iter().flat_map(of).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `turn`: to take the first snapshot; it is given back at its end.
async fn follow(
    member: Arc<Member>,
    session: CancellationToken,
    servers: Vec<String>,
    speech: Speech,
    seen: Seen,
    mut turn: Option<OwnedSemaphorePermit>,
) {
    let (events, mut received) = mpsc::channel(EVENTS);
    let (acks, programmed) = watch::channel(None);
    let client = match speech {
        Speech::Bulrush(names) => {
            let software = concat!("bulrush-loadtest ", env!("CARGO_PKG_VERSION"));
            let mut config = ClientConfig::new(servers, lock(&member.node).name.clone(), "felix", software);
            // Thousands share the processors of this machine: one that is not run for a while has not met a silent
            // server.
            config.read_timeout = SILENCE;
            config.raw = (!member.sampled).then_some(names);
            typha_client::run(config, events, programmed, session).left_future()
        }
        Speech::Calico { known, received } => {
            let told = member.clone();
            let config = incumbent::Config {
                servers,
                first: member.index,
                node: lock(&member.node).name.clone(),
                known,
                reads_all: member.sampled,
                silence: SILENCE,
                received,
                refused: Box::new(move |reason| lock(&told.node).lost = Some(reason)),
            };
            incumbent::run(config, events, session).right_future()
        }
    };
    let mut pace = member.pace.subscribe();
    let consume = async {
        loop {
            // The sender lives as long as the member.
            let open = pace.wait_for(|pace| *pace != Pace::Stalled).await.is_ok();
            let Some(event) = received.recv().await.filter(|_| open) else { return };
            let now = *pace.borrow();
            if let Pace::Slow(pause) = now {
                tokio::time::sleep(pause).await;
            }
            if event == ClientEvent::InSync {
                turn = None;
            }
            if let ClientEvent::Cut(cut) = &event {
                acks.send_replace(Some(cut.clone()));
            }
            let mut node = lock(&member.node);
            let counts = node.in_sync && member.counts.load(Ordering::Relaxed);
            node.on_event(event, |received| {
                if let (true, Some(mark)) = (counts, received.mark) {
                    seen.latencies.seen(member.index, mark);
                }
                if let Some(spread) = &seen.spread {
                    spread.seen(received.key, received.hash);
                }
            });
        }
    };
    tokio::join!(client, consume);
}
