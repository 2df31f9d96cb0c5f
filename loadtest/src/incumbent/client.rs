//! One simulated node's stream from Calico's Typha: connects, follows, comes back.
//!
//! Its protocol knows no resuming: whoever comes back is sent everything. As its agents' own library does, this one
//! delivers of that only what differs, and takes what is missing from a complete snapshot for deleted.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use bytes::{Bytes, BytesMut};
use daemon::{Backoff, CancellationToken};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use typha_client::{ClientEvent, CutId, RawUpdate};

use super::encode::Encoder;
use super::gob::{Decoder, Value};
use super::inflate::{Inflate, OFFERED};
use super::values::Known;
use super::wire::{Hello, Kv, Message};

const CONNECT: Duration = Duration::from_secs(10);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
const READ: usize = 64 << 10;
/// All that a version with today's policy keys speaks to; the text is for the server's log.
const VERSION: &str = concat!("bulrush-loadtest ", env!("CARGO_PKG_VERSION"));

pub struct Config {
    pub servers: Vec<String>,
    /// Which of them is first.
    pub first: usize,
    pub node: String,
    pub known: Known,
    /// Every value is read, though others were sent the same.
    pub reads_all: bool,
    /// Silence after which a server is given up; it pings every 10 s.
    pub silence: Duration,
    /// Bytes received, as they came in.
    pub received: Arc<AtomicU64>,
    /// Told why there is no stream.
    pub refused: Box<dyn Fn(String) + Send + Sync>,
}

/// What was delivered: each key, and the hash of its value.
#[derive(Default)]
struct Held {
    entries: HashMap<Arc<str>, u64>,
    /// While a snapshot comes in: keys that it has not mentioned yet.
    missing: Option<HashSet<Arc<str>>>,
}

impl Held {
    /// A stream begins.
    fn resync(&mut self) {
        self.missing = Some(self.entries.keys().cloned().collect());
    }

    fn take(&mut self, known: &Known, reads_all: bool, kvs: Vec<Kv<'_>>) -> Vec<RawUpdate> {
        let mut updates = Vec::new();
        for Kv { key, value } in kvs {
            let Some(key) = known.path(key) else { continue };
            if let Some(missing) = &mut self.missing {
                missing.remove(&key);
            }
            let Some(value) = value else {
                // Servers pass on deletions of what they never sent.
                if self.entries.remove(&key).is_some() {
                    updates.push(RawUpdate { key, value: None });
                }
                continue;
            };
            let hash = known.hash(&key, value, reads_all);
            if self.entries.insert(key.clone(), hash) != Some(hash) {
                updates.push(RawUpdate { key, value: Some((Bytes::copy_from_slice(value), hash)) });
            }
        }
        updates
    }

    /// The server is in sync: what it has not mentioned is gone.
    fn complete(&mut self) -> Vec<RawUpdate> {
        let missing = self.missing.take().unwrap_or_default();
        missing.iter().for_each(|key| {
            self.entries.remove(key);
        });
        missing.into_iter().map(|key| RawUpdate { key, value: None }).collect()
    }
}

/// Follows the servers until cancelled, or until the node has dropped the receiving end of `events`.
pub async fn run(config: Config, events: mpsc::Sender<ClientEvent>, cancel: CancellationToken) {
    tokio::select! {
        () = follow(config, events) => {}
        () = cancel.cancelled() => {}
    }
}

async fn follow(config: Config, events: mpsc::Sender<ClientEvent>) {
    let (mut held, mut announced) = (Held::default(), false);
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    for attempt in config.first.. {
        let server = &config.servers[attempt % config.servers.len()];
        let mut connected = false;
        let ended = stream(&config, server, &mut held, &events, &mut connected, &mut announced).await;
        let Err(error) = ended else { return };
        let reason = format!("{server}: {error:#}");
        if connected {
            backoff.reset();
            if events.send(ClientEvent::Disconnected { reason }).await.is_err() {
                return;
            }
        } else {
            (config.refused)(reason);
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// What a message means for the stream.
enum Step {
    Hello,
    Updates(Vec<RawUpdate>),
    /// What a complete snapshot lacks is gone.
    InSync(Vec<RawUpdate>),
    Ping(Vec<u8>),
    /// The compression to go on with.
    Restart(String),
}

fn step(message: Message<'_>, config: &Config, held: &mut Held) -> Result<Step> {
    Ok(match message {
        Message::ServerHello { version, syncer, node_resources } => {
            ensure!(
                node_resources && syncer == "felix",
                "version {version:?} serves {syncer:?} to felix: it is older than this client knows"
            );
            held.resync();
            Step::Hello
        }
        Message::Kvs(kvs) => Step::Updates(held.take(&config.known, config.reads_all, kvs)),
        Message::SyncStatus { in_sync: true } => Step::InSync(held.complete()),
        Message::SyncStatus { in_sync: false } => Step::Updates(Vec::new()),
        Message::Ping(at) => Step::Ping(at.to_vec()),
        Message::DecoderRestart { compression } => Step::Restart(compression.to_owned()),
    })
}

/// One stream, until it ends with an error. `Ok`: nobody wants it any more.
async fn stream(
    config: &Config,
    server: &str,
    held: &mut Held,
    events: &mpsc::Sender<ClientEvent>,
    connected: &mut bool,
    announced: &mut bool,
) -> Result<()> {
    let mut socket =
        timeout(CONNECT, TcpStream::connect(server)).await.context("connecting: no answer")??;
    socket.set_nodelay(true)?;
    let mut encoder = Encoder::default();
    let hello = Hello {
        hostname: &config.node,
        info: "simulated by loadtest",
        version: VERSION,
        syncer: "felix",
        compression: &OFFERED,
    };
    socket.write_all(&encoder.hello(&hello)).await?;
    let (mut inflate, mut decoder) = (Inflate::Plain, Decoder::default());
    let (mut received, mut plain) = (BytesMut::new(), BytesMut::new());
    // The compression to go on with, as soon as what came so far is at its end.
    let mut restart: Option<String> = None;
    loop {
        let mut take = |envelope: Value<'_>| step(Message::of(&envelope)?, config, held);
        while let Some(step) = decoder.read(&mut plain, &mut take)? {
            ensure!(restart.is_none(), "a message behind the restart that it was to wait for");
            ensure!(*connected != matches!(step, Step::Hello), "a hello in the wrong place, or none");
            let (updates, in_sync) = match step {
                Step::Hello => {
                    *connected = true;
                    let server = server.to_owned();
                    if events.send(ClientEvent::Connected { server, secrets: false }).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
                Step::Updates(updates) => (updates, false),
                Step::InSync(deletions) => (deletions, true),
                Step::Ping(at) => {
                    socket.write_all(&encoder.pong(&at, SystemTime::now())).await?;
                    continue;
                }
                Step::Restart(compression) => {
                    restart = Some(compression);
                    continue;
                }
            };
            let mut said = Vec::new();
            if !updates.is_empty() {
                said.push(ClientEvent::Raw(updates));
            }
            if in_sync && !std::mem::replace(announced, true) {
                said.push(ClientEvent::InSync);
            }
            if in_sync {
                // Nobody acknowledges anything in this protocol.
                said.push(ClientEvent::Cut(CutId { epoch: server.to_owned(), seq: 0 }));
            }
            for event in said {
                if events.send(event).await.is_err() {
                    return Ok(());
                }
            }
        }
        if inflate.at_end()
            && let Some(compression) = restart.take()
        {
            inflate.ends_here(&received, &plain)?;
            (inflate, decoder) = (Inflate::new(&compression)?, Decoder::default());
            socket.write_all(&encoder.ack()).await?;
        }
        received.reserve(READ);
        let read = timeout(config.silence, socket.read_buf(&mut received));
        let count = read.await.with_context(|| format!("silent for {} s", config.silence.as_secs()))??;
        ensure!(count > 0, "the server closed the stream");
        config.received.fetch_add(count as u64, Ordering::Relaxed);
        inflate.read(&mut received, &mut plain)?;
    }
}
