//! Who is connected, how far each has been sent and has acknowledged. In memory only.
//!
//! Written by streams, read by the admin service; no entry is held across an await.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use proto::sync;
use tokio::sync::watch;

use crate::snapcache::KindSet;

/// A node that has left is remembered for so long: it may be dead, which is not the same as never seen.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// More than any fleet has; what exceeds it is not remembered.
const DEPARTED: usize = 50_000;
/// Of what one agent cannot use, so much is kept, of each so many characters.
const PROBLEMS: usize = 50;
const PROBLEM_CHARS: usize = 500;

#[derive(Default)]
pub struct Registry {
    clients: DashMap<u64, Arc<Client>>,
    departed: DashMap<(String, String), (Arc<Client>, Instant)>,
    next: AtomicU64,
}

pub struct Client {
    pub node: String,
    pub agent: String,
    pub software: String,
    pub address: Option<SocketAddr>,
    pub session: Option<sync::Session>,
    pub kinds: KindSet,
    pub connected: Instant,
    sent: AtomicU64,
    acked: AtomicU64,
    /// Where it is asked to go; empty while it may stay.
    away: watch::Sender<Vec<String>>,
    heard_millis: AtomicU64,
    problems: Mutex<Vec<String>>,
}

impl Client {
    pub fn new(hello: &sync::ClientHello, address: Option<SocketAddr>, kinds: KindSet) -> Self {
        Client {
            node: hello.node.clone(),
            agent: hello.agent.clone(),
            software: hello.software.clone(),
            address,
            session: hello.session.clone(),
            kinds,
            connected: Instant::now(),
            sent: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            away: watch::Sender::new(Vec::new()),
            heard_millis: AtomicU64::new(0),
            problems: Mutex::default(),
        }
    }

    /// Asks the client to go to one of these.
    pub fn send_away(&self, servers: Vec<String>) {
        self.away.send_replace(servers);
    }

    pub fn away(&self) -> watch::Receiver<Vec<String>> {
        self.away.subscribe()
    }

    pub fn on_sent(&self, seq: u64) {
        self.sent.store(seq, Relaxed);
    }

    /// An acknowledgement never goes back.
    pub fn on_ack(&self, seq: u64) {
        self.acked.fetch_max(seq, Relaxed);
    }

    pub fn on_heard(&self) {
        self.heard_millis.store(super::millis(self.connected.elapsed()), Relaxed);
    }

    /// What it says that it cannot use; of a long story the beginning.
    pub fn on_problems(&self, problems: &[String]) {
        let shorten = |problem: &String| problem.chars().take(PROBLEM_CHARS).collect();
        let shortened = problems.iter().take(PROBLEMS).map(shorten);
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = shortened.collect();
    }

    pub fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// The last position programmed on the node; 0 while none was.
    pub fn acked(&self) -> u64 {
        self.acked.load(Relaxed)
    }

    pub fn heard_millis_ago(&self) -> u64 {
        super::millis(self.connected.elapsed()).saturating_sub(self.heard_millis.load(Relaxed))
    }
}

impl Registry {
    pub fn add(&self, client: Arc<Client>) -> u64 {
        let id = self.next.fetch_add(1, Relaxed);
        self.clients.insert(id, client);
        id
    }

    pub fn remove(&self, id: u64) {
        let Some((_, client)) = self.clients.remove(&id) else { return };
        if self.departed.len() >= DEPARTED {
            self.departed.retain(|_, (_, left)| left.elapsed() < REMEMBERED);
        }
        if self.departed.len() < DEPARTED {
            self.departed.insert((client.node.clone(), client.agent.clone()), (client, Instant::now()));
        }
    }

    /// Those that left and have not come back here.
    pub fn departed(&self) -> Vec<Arc<Client>> {
        let here: HashSet<(String, String)> = self
            .clients
            .iter()
            .map(|entry| (entry.value().node.clone(), entry.value().agent.clone()))
            .collect();
        self.departed.retain(|place, (_, left)| left.elapsed() < REMEMBERED && !here.contains(place));
        let mut clients: Vec<Arc<Client>> =
            self.departed.iter().map(|entry| entry.value().0.clone()).collect();
        clients.sort_by(|a, b| (&a.node, &a.agent).cmp(&(&b.node, &b.agent)));
        clients
    }

    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// All clients, by node and agent.
    pub fn list(&self) -> Vec<Arc<Client>> {
        let mut clients: Vec<Arc<Client>> = self.clients.iter().map(|entry| entry.value().clone()).collect();
        clients.sort_by(|a, b| (&a.node, &a.agent).cmp(&(&b.node, &b.agent)));
        clients
    }

    /// Of several streams of one agent on one node, the one with the highest session counter [D1].
    pub fn current(&self) -> Vec<Arc<Client>> {
        let mut clients = self.list();
        let counter = |client: &Client| client.session.as_ref().map_or(0, |session| session.counter);
        clients.dedup_by(|later, kept| {
            let same = (&later.node, &later.agent) == (&kept.node, &kept.agent);
            if same && (counter(later), later.connected) > (counter(kept), kept.connected) {
                std::mem::swap(later, kept);
            }
            same
        });
        clients
    }
}
