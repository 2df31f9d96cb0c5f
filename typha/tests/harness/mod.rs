//! Replicas in this process, each in a runtime of its own so that one can be killed, and clients that keep
//! account of everything that they are told.

// Every test file uses a part of this; all of it is test code, though not inside `#[test]`.
#![allow(dead_code, clippy::unwrap_used)]

pub mod namespace;
pub mod process;
pub mod proxy;
pub mod raw;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use daemon::{CancellationToken, Endpoint};
use proto::sync::sync_client::SyncClient;
use proto::sync::{
    ClientHello, ClientMessage, ServerMessage, Token, client_message, server_message::Message as Down,
};
use syncer_common::model::{Key, Update, Value};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tonic::Streaming;
use tonic::transport::Channel;
use typha::metrics::Metrics;
use typha::pipeline::Intake;
use typha::snapcache::{Cache, Shared};
use typha::syncserver::{Options, Server};
use typha_client::{ClientConfig, ClientEvent, ClientTls, CutId, Reports};

/// Long enough for a busy machine; nothing waits for it to pass.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn key(n: u32) -> Key {
    Key::GlobalConfig { name: format!("Key{n:05}") }
}

pub fn set(n: u32, value: &str) -> Update {
    Update::set(key(n), Value::Config(value.to_owned()))
}

/// Text that does not compress to speak of.
pub fn noise(seed: u64, length: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(ALPHABET[(state >> 58) as usize])
    };
    (0..length).map(|_| next()).collect()
}

pub fn unset(n: u32) -> Update {
    Update::delete(key(n))
}

pub type State = BTreeMap<Key, Value>;

/// Polls until the condition holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain waited for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The same for a condition that has to ask.
pub async fn eventually_async(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "in vain waited for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One typha without a datastore: the test feeds its cache.
pub struct Replica {
    pub cache: Arc<Shared>,
    pub address: SocketAddr,
    runtime: Option<Runtime>,
    drain: CancellationToken,
    done: Arc<Mutex<Option<anyhow::Result<()>>>>,
}

static EPOCH: AtomicU32 = AtomicU32::new(0);

pub fn options() -> Options {
    Options { heartbeat: Duration::from_millis(100), ..Options::default() }
}

impl Replica {
    /// Not in sync and empty.
    pub fn start(options: Options) -> Replica {
        Replica::start_of(options, &["etcd"])
    }

    /// The same with sources of these names.
    pub fn start_of(options: Options, sources: &[&str]) -> Replica {
        // As long as a real one, and never that of another run.
        let epoch = format!("{:08x}{:08x}", std::process::id(), EPOCH.fetch_add(1, Ordering::Relaxed));
        let mut cache = Cache::new(epoch, "");
        cache.follow(sources.iter().copied());
        let cache = Shared::new(cache);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let drain = CancellationToken::new();
        let done = Arc::new(Mutex::new(None));
        let (sender, receiver) = std::sync::mpsc::channel();
        runtime.spawn({
            let (cache, drain, done) = (cache.clone(), drain.clone(), done.clone());
            async move {
                let endpoint = Endpoint::new("127.0.0.1", 0);
                let intake = Arc::new(Intake::default());
                let server = Server::bind(&endpoint, cache, intake, Metrics::new(), options).await.unwrap();
                sender.send(server.address()).unwrap();
                let served = server.run(drain).await;
                *done.lock().unwrap() = Some(served);
            }
        });
        let address = receiver.recv_timeout(PATIENCE).unwrap();
        Replica { cache, address, runtime: Some(runtime), drain, done }
    }

    /// In sync at a listing.
    pub fn listed(options: Options, revision: u64, updates: Vec<Update>) -> Replica {
        let replica = Replica::start(options);
        replica.list(revision, updates);
        replica
    }

    pub fn list(&self, revision: u64, updates: Vec<Update>) {
        self.cache.update(|cache| {
            cache.listing(0, "history", revision);
            cache.apply_listing(0, revision, updates, Instant::now());
            cache.proof(0, revision, Instant::now());
        });
    }

    pub fn apply(&self, revision: u64, updates: Vec<Update>) {
        self.cache
            .update(|cache| cache.apply_revision(0, revision, updates, revision as u32 * 31, Instant::now()));
    }

    pub fn state(&self) -> State {
        let cache = self.cache.read();
        let decode =
            |bytes: &[u8]| <proto::model::Value as prost::Message>::decode(bytes).unwrap().kind.unwrap();
        cache.iter_live().map(|(key, value)| (Key::parse(key).unwrap(), decode(value))).collect()
    }

    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// As with `kill -9`: sockets close, nobody is told anything.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// As with SIGTERM.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    pub fn ended(&self) -> bool {
        self.done.lock().unwrap().is_some()
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What an agent was told.
#[derive(Clone, Debug, Default)]
pub struct Account {
    pub state: State,
    pub connected: Vec<String>,
    pub disconnected: Vec<String>,
    pub updates: usize,
    pub deletions: Vec<Key>,
    /// Updates that changed nothing: there shall be none.
    pub spurious: Vec<Key>,
    pub in_sync: usize,
    pub cuts: Vec<CutId>,
    /// Every message with passwords.
    pub secrets: Vec<Vec<proto::sync::Secret>>,
}

/// An agent that uses the client library.
pub struct Agent {
    pub account: Arc<Mutex<Account>>,
    pub acks: watch::Sender<Option<CutId>>,
    pub reports: Reports,
    /// While held, the agent does not take anything in.
    pub busy: Arc<tokio::sync::Mutex<()>>,
    cancel: CancellationToken,
}

impl Agent {
    pub fn start(servers: &[String], agent: &'static str) -> Agent {
        Agent::start_on("node-1", servers, agent)
    }

    pub fn start_on(node: &str, servers: &[String], agent: &'static str) -> Agent {
        Self::start_tls(node, servers, agent, None)
    }

    pub fn start_tls(node: &str, servers: &[String], agent: &'static str, tls: Option<ClientTls>) -> Agent {
        let mut config = ClientConfig::new(servers.to_vec(), node, agent, "test 0");
        config.tls = tls;
        config.read_timeout = Duration::from_secs(3);
        Agent::start_with(config)
    }

    pub fn start_with(mut config: ClientConfig) -> Agent {
        config.backoff = (Duration::from_millis(20), Duration::from_millis(200));
        let reports = config.reports.clone();
        let (events, mut inbox) = mpsc::channel(1);
        let (acks, acked) = watch::channel(None);
        let cancel = CancellationToken::new();
        tokio::spawn(typha_client::run(config, events, acked, cancel.clone()));
        let account = Arc::new(Mutex::new(Account::default()));
        let busy = Arc::new(tokio::sync::Mutex::new(()));
        tokio::spawn({
            let (account, busy) = (account.clone(), busy.clone());
            async move {
                while let Some(event) = inbox.recv().await {
                    let _ready = busy.lock().await;
                    account.lock().unwrap().on_event(event);
                }
            }
        });
        Agent { account, acks, reports, busy, cancel }
    }

    pub fn look(&self) -> Account {
        self.account.lock().unwrap().clone()
    }

    /// Waits until the agent is in sync with what the replica holds.
    pub async fn settle(&self, replica: &Replica) {
        let epoch = replica.cache.read().epoch().to_owned();
        eventually("the agent to hold what the replica holds", || {
            let head = replica.cache.read().head();
            let account = self.account.lock().unwrap();
            let at_head = account.cuts.last().is_some_and(|cut| cut.epoch == epoch && cut.seq == head);
            at_head && account.state == replica.state()
        })
        .await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Account {
    fn on_event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Connected { server, .. } => self.connected.push(server),
            ClientEvent::Secrets(secrets) => self.secrets.push(secrets),
            ClientEvent::Disconnected { reason } => self.disconnected.push(reason),
            ClientEvent::InSync => self.in_sync += 1,
            ClientEvent::Cut(cut) => self.cuts.push(cut),
            ClientEvent::Updates(updates) => updates.into_iter().for_each(|update| self.on_update(update)),
            ClientEvent::Raw(raw) => panic!("nobody asked for {raw:?}"),
        }
    }

    fn on_update(&mut self, update: Update) {
        self.updates += 1;
        match update.value {
            Ok(value) => {
                if self.state.insert(update.key.clone(), value.clone()) == Some(value) {
                    self.spurious.push(update.key);
                }
            }
            Err(_) => match self.state.remove(&update.key) {
                Some(_) => self.deletions.push(update.key),
                None => self.spurious.push(update.key),
            },
        }
    }
}

/// A stream spoken by hand.
pub struct Raw {
    pub up: mpsc::Sender<ClientMessage>,
    pub down: Streaming<ServerMessage>,
}

pub fn hello() -> ClientHello {
    ClientHello {
        version: proto::VERSION,
        node: "node-1".into(),
        agent: "felix".into(),
        software: "test 0".into(),
        ..Default::default()
    }
}

impl Raw {
    pub async fn open(replica: &Replica) -> Raw {
        Raw::open_at(replica.address).await
    }

    pub async fn open_at(server: SocketAddr) -> Raw {
        let channel = Channel::from_shared(format!("http://{server}")).unwrap().connect().await.unwrap();
        let (up, messages) = mpsc::channel(16);
        let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
        let down = SyncClient::new(channel).stream(messages).await.unwrap().into_inner();
        Raw { up, down }
    }

    pub async fn say(&self, message: client_message::Message) {
        self.up.send(ClientMessage { message: Some(message) }).await.unwrap();
    }

    pub async fn greet(replica: &Replica, resume: Option<Token>) -> Raw {
        let raw = Raw::open(replica).await;
        raw.say(client_message::Message::Hello(ClientHello { resume, ..hello() })).await;
        raw
    }

    /// The next message that is not a heartbeat.
    pub async fn next(&mut self) -> Result<Option<Down>, tonic::Status> {
        loop {
            match patiently(self.down.message()).await?.map(|message| message.message.unwrap()) {
                Some(Down::Heartbeat(_)) => {}
                other => return Ok(other),
            }
        }
    }
}

pub async fn patiently<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("an answer in time")
}
