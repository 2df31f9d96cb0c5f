//! What the same traffic costs without typha, in the same run: as many messages of as many bytes, as far apart, to as
//! many streams, by a server that writes bytes to sockets, and by a stock tonic service that encodes every message for
//! every client. Servers are processes of their own (this program, run again): what clients use is not counted.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use daemon::Endpoint;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;

use crate::latency::Latencies;
use crate::local::cpu_and_memory;
use crate::report::{Baseline, PhaseResult};

mod stock;

/// A stream that is this far behind is cut off: the baseline then says nothing.
const QUEUE: usize = 1_024;
/// Of the traffic, at most so much is repeated.
const LONGEST: Duration = Duration::from_secs(15);
const STAMP: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Raw,
    Stock,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Raw => "raw TCP",
            Kind::Stock => "stock tonic service",
        }
    }
}

/// What a phase sent to each stream.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Traffic {
    streams: usize,
    messages: u64,
    bytes: usize,
    entries: usize,
    apart: Duration,
}

impl Traffic {
    /// Nothing: the phase sent no messages, or nobody counted them.
    fn of(phase: &PhaseResult, streams: usize) -> Option<Traffic> {
        let (total, served) = (phase.messages, phase.servers?);
        let each = (total as f64 / streams as f64).round();
        if each < 1.0 || served.cpu_seconds <= 0.0 {
            return None;
        }
        let apart = Duration::from_secs_f64(phase.seconds / each);
        let most = (LONGEST.as_secs_f64() / apart.as_secs_f64()).max(1.0);
        Some(Traffic {
            streams,
            messages: each.min(most) as u64,
            bytes: ((served.sent_bytes / total as f64) as usize).max(STAMP),
            entries: ((phase.updates as f64 / total as f64).round() as usize).max(1),
            apart,
        })
    }
}

/// All baselines of the last phase that changed something all the time.
pub async fn measure(phases: &[PhaseResult], streams: usize) -> Result<Vec<Baseline>> {
    let mut all = Vec::new();
    let churn = phases.iter().rev().find(|phase| phase.phase.starts_with("churn"));
    let Some((phase, traffic)) = churn.and_then(|phase| Some((phase, Traffic::of(phase, streams)?))) else {
        return Ok(all);
    };
    let served = phase.servers.unwrap_or_default();
    all.push(Baseline {
        server: "typha".into(),
        phase: phase.phase.clone(),
        messages: phase.messages,
        message_bytes: traffic.bytes,
        cpu_us_per_message: served.cpu_seconds * 1e6 / phase.messages as f64,
        p50_ms: phase.latency.p50_ms,
        p99_ms: phase.latency.p99_ms,
    });
    for kind in [Kind::Raw, Kind::Stock] {
        eprintln!("         baseline: {}", kind.name());
        let measured = of(kind, traffic).await.with_context(|| format!("baseline {}", kind.name()))?;
        all.push(Baseline { phase: phase.phase.clone(), ..measured });
    }
    Ok(all)
}

async fn of(kind: Kind, traffic: Traffic) -> Result<Baseline> {
    let mut server = Process::start(kind, traffic).await?;
    let received = Arc::new(Received { latencies: Latencies::new(Instant::now()), ..Received::default() });
    let mut clients = JoinSet::new();
    for index in 0..traffic.streams {
        let (address, received) = (server.address, received.clone());
        match kind {
            Kind::Raw => clients.spawn(read(address, traffic.bytes, index, received)),
            Kind::Stock => clients.spawn(stock::read(address, index, received)),
        };
    }
    server.answer(&format!("wait {}", traffic.streams)).await?;
    let before = server.cpu()?;
    server.answer("go").await?;
    let expected = traffic.messages * traffic.streams as u64;
    let deadline = Instant::now() + LONGEST * 2;
    while received.messages.load(Relaxed) < expected {
        ensure!(
            Instant::now() < deadline,
            "{} of {expected} messages arrived",
            received.messages.load(Relaxed)
        );
        if let Some(ended) = clients.try_join_next() {
            ended??;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let latency = received.latencies.since_begin();
    Ok(Baseline {
        server: kind.name().into(),
        phase: String::new(),
        messages: expected,
        message_bytes: (received.bytes.load(Relaxed) / expected) as usize,
        cpu_us_per_message: (server.cpu()? - before) * 1e6 / expected as f64,
        p50_ms: latency.p50_ms,
        p99_ms: latency.p99_ms,
    })
}

struct Received {
    messages: AtomicU64,
    bytes: AtomicU64,
    latencies: Latencies,
}

impl Default for Received {
    fn default() -> Self {
        let latencies = Latencies::new(Instant::now());
        Received { messages: AtomicU64::new(0), bytes: AtomicU64::new(0), latencies }
    }
}

impl Received {
    fn message(&self, index: usize, bytes: usize, stamp: u64) {
        self.messages.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
        self.latencies.took(index, unix_micros().saturating_sub(stamp));
    }
}

fn unix_micros() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as u64)
}

async fn read(address: SocketAddr, bytes: usize, index: usize, received: Arc<Received>) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let mut message = vec![0; bytes];
    loop {
        stream.read_exact(&mut message).await?;
        let stamp = u64::from_be_bytes(message[..STAMP].try_into().expect("eight bytes"));
        received.message(index, bytes, stamp);
    }
}

struct Process {
    child: Child,
    input: ChildStdin,
    output: tokio::io::Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
}

impl Process {
    async fn start(kind: Kind, traffic: Traffic) -> Result<Process> {
        let kind = match kind {
            Kind::Raw => "raw",
            Kind::Stock => "stock",
        };
        let size = if kind == "raw" { traffic.bytes } else { traffic.entries };
        let apart = traffic.apart.as_micros().to_string();
        let mut child = Command::new(std::env::current_exe()?)
            .args(["baseline-server", kind, &size.to_string(), &traffic.messages.to_string(), &apart])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().context("its input")?;
        let mut output = BufReader::new(child.stdout.take().context("its output")?).lines();
        let address = output.next_line().await?.context("it ended")?.parse().context("its address")?;
        Ok(Process { child, input, output, address })
    }

    async fn answer(&mut self, order: &str) -> Result<()> {
        self.input.write_all(format!("{order}\n").as_bytes()).await?;
        self.output.next_line().await?.context("it ended")?;
        Ok(())
    }

    fn cpu(&self) -> Result<f64> {
        let (cpu, _) = self.child.id().and_then(cpu_and_memory).context("its use of the processor")?;
        Ok(cpu)
    }
}

// === The servers' side ===

/// What every stream is to send: messages, each with when it was made.
type Sender = broadcast::Sender<u64>;

/// Serves until its input ends: `wait N` answers when N streams are there, `go` when all was sent.
pub async fn serve(kind: Kind, size: usize, messages: u64, apart: Duration) -> Result<()> {
    let listener = Endpoint::new("127.0.0.1", 0).bind("streams").await?;
    println!("{}", listener.local_addr()?);
    let (sender, _) = broadcast::channel(QUEUE);
    let mut serving = JoinSet::new();
    match kind {
        Kind::Raw => serving.spawn(serve_raw(listener, sender.clone(), size)),
        Kind::Stock => serving.spawn(stock::serve(listener, sender.clone(), size)),
    };
    let (orders_out, mut orders) = mpsc::channel(4);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if orders_out.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(order) = orders.recv().await {
        match order.strip_prefix("wait ") {
            Some(streams) => {
                let streams: usize = streams.parse()?;
                while sender.receiver_count() < streams {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            None => {
                let start = Instant::now();
                for number in 1..=messages {
                    // Without a stream nobody measures.
                    sender.send(unix_micros()).ok();
                    tokio::time::sleep_until((start + apart * number as u32).into()).await;
                }
            }
        }
        println!("done");
    }
    Ok(())
}

async fn serve_raw(listener: TcpListener, sender: Sender, size: usize) -> Result<()> {
    let padding = Bytes::from(vec![b'x'; size - STAMP]);
    let mut streams = JoinSet::new();
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (mut messages, padding) = (sender.subscribe(), padding.clone());
        streams.spawn(async move {
            let mut message = BytesMut::with_capacity(size);
            while let Ok(stamp) = messages.recv().await {
                message.clear();
                message.put_u64(stamp);
                message.put_slice(&padding);
                if stream.write_all(&message).await.is_err() {
                    return;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Served;

    #[test]
    fn traffic_of_a_phase_is_that_of_one_stream() {
        let served = Served { sent_bytes: 3e6, cpu_seconds: 2.0, ..Served::default() };
        let phase = PhaseResult {
            seconds: 10.0,
            updates: 5_000,
            messages: 1_000,
            servers: Some(served),
            ..PhaseResult::default()
        };
        let traffic = Traffic::of(&phase, 10).expect("it sent something");
        assert_eq!((traffic.messages, traffic.bytes, traffic.entries), (100, 3_000, 5));
        assert_eq!(traffic.apart, Duration::from_millis(100));
        assert_eq!(Traffic::of(&PhaseResult::default(), 10), None);
    }
}
