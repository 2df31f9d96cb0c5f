//! What it costs to serve many: CPU and memory of the server per stream, and the time from a change to its receipt,
//! beside a raw TCP server that writes as many bytes to as many sockets, in the same run; with mTLS beside a server of
//! raw TLS.
//!
//! `cargo bench --bench fanout -- [STREAMS] [SNAPSHOT_STREAMS] [SUSTAINED_STREAMS]`; the last is 0 = left out. Ratios
//! count; absolute times are those of the machine. The last line is the same as JSON, for `loadtest bench`.

mod clients;
mod corpus;
mod made;
mod process;
mod servers;
mod tls;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context;
use clients::{Speech, streams};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use process::Process;
use serde::Serialize;
use tls::Lab;
use tokio::time::Instant;

/// Between two batches, in milliseconds: longer than the server waits for company.
const APART: u64 = 120;
const BATCHES: u64 = 40;
const ENDPOINTS: u64 = 100_000;
/// Of HTTP/2, as agents set it.
const FRAME_BYTES: u32 = 64 << 10;
/// In these first bytes a message of the raw server says when it was made.
const HEAD: usize = 30;
/// For all clients to be connected.
const PATIENCE: Duration = Duration::from_secs(60);
/// When nothing has come for so long, all has come.
const QUIET: Duration = Duration::from_secs(1);

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Of a server: where its certificates are, if it has any.
    let tls = || args.get(1).map(|folder| tls::server(folder.as_ref())).transpose();
    match args.first().map(String::as_str) {
        Some("typha") => runtime.block_on(servers::typha(tls()?)),
        Some("raw") => runtime.block_on(servers::raw(tls()?)),
        Some("bare") => runtime.block_on(servers::bare()),
        _ => {
            let number = |n: usize, default| args.get(n).and_then(|arg| arg.parse().ok()).unwrap_or(default);
            runtime.block_on(measure(number(0, 1_000), number(1, 50), number(2, 0)))
        }
    }
}

/// Of a server that sends messages.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    /// Of the server, per message.
    cpu_us: f64,
    /// From a change to its receipt.
    p50_ms: f64,
    p99_ms: f64,
}

#[derive(Debug, Serialize)]
struct Steady {
    /// Of a message, uncompressed.
    bytes: u64,
    typha: Cost,
    raw: Cost,
    /// HTTP/2 and nothing else.
    bare: Option<Cost>,
}

impl Steady {
    fn line(&self) -> String {
        let Steady { bytes, typha, raw, bare } = self;
        let bare = bare.map_or(String::new(), |bare| {
            format!("; HTTP/2 alone: {:.1} µs, {:.2} ×", bare.cpu_us, bare.cpu_us / raw.cpu_us)
        });
        format!(
            "{bytes} B: {:.1} µs, raw {:.1} µs: {:.2} ×{bare}; change to receipt p50 {:.1} ms, p99 {:.1} ms, raw {:.1} and {:.1} ms",
            typha.cpu_us,
            raw.cpu_us,
            typha.cpu_us / raw.cpu_us,
            typha.p50_ms,
            typha.p99_ms,
            raw.p50_ms,
            raw.p99_ms
        )
    }
}

/// A server that only sends, in the way of `role`; and how many seconds that took.
async fn baseline(
    role: &str,
    speech: Speech,
    count: usize,
    lab: Option<&Lab>,
    [messages, size, apart]: [u64; 3],
) -> anyhow::Result<(Cost, f64)> {
    let mut server = Process::start(role, lab)?;
    let (mut tasks, received) = streams(count, server.address, speech, lab)?;
    // Until a message reaches every client, for one is only sent to those who have connected.
    let (mut before, deadline) = (0, Instant::now() + PATIENCE);
    while received.messages.load(Relaxed) < before + count as u64 {
        if let Some(ended) = tasks.try_join_next() {
            ended?.with_context(|| format!("a client of {role}"))?;
        }
        let reached = received.messages.load(Relaxed) - before;
        anyhow::ensure!(Instant::now() < deadline, "{reached} of {count} clients of {role} get messages");
        before = received.messages.load(Relaxed);
        server.order(&[1, size, 1])?;
        received.quiet().await;
    }
    received.take_latencies();
    let (cpu, before, start) = (server.cpu()?, received.messages.load(Relaxed), Instant::now());
    server.order(&[messages, size, apart])?;
    received.quiet().await;
    let seconds = start.elapsed().as_secs_f64() - QUIET.as_secs_f64();
    let arrived = received.messages.load(Relaxed) - before;
    anyhow::ensure!(arrived == messages * count as u64, "{arrived} messages of {role} arrived");
    let (p50_ms, p99_ms) = received.take_latencies();
    Ok((Cost { cpu_us: (server.cpu()? - cpu) / arrived as f64, p50_ms, p99_ms }, seconds))
}

async fn steady(count: usize, lab: Option<&Lab>, changes: u64, zstd: bool) -> anyhow::Result<Steady> {
    let mut server = Process::start("typha", lab)?;
    server.order(&[1_000])?;
    let (_tasks, received) = streams(count, server.address, Speech::Grpc { zstd }, lab)?;
    received.quiet().await;
    received.take_latencies();
    let (cpu, before, plain) = (server.cpu()?, received.messages.load(Relaxed), received.plain());
    server.order(&[BATCHES, changes, APART])?;
    received.quiet().await;
    let messages = received.messages.load(Relaxed) - before;
    let expected = count as u64 * BATCHES;
    // A machine that stands still makes the server put two batches into one message; what counts is each message.
    anyhow::ensure!(messages > expected / 2, "{messages} of {expected} messages arrived");
    let (p50_ms, p99_ms) = received.take_latencies();
    let typha = Cost { cpu_us: (server.cpu()? - cpu) / messages as f64, p50_ms, p99_ms };
    let now = received.plain();
    let bytes = (now[1] - plain[1]) / (now[0] - plain[0]).max(1);
    drop(server);
    let order = [BATCHES, bytes, APART];
    let (raw, _) = baseline("raw", Speech::Bytes { size: bytes }, count, lab, order).await?;
    let bare = match (lab, zstd) {
        (None, false) => Some(baseline("bare", Speech::Grpc { zstd }, count, lab, order).await?.0),
        _ => None,
    };
    Ok(Steady { bytes, typha, raw, bare })
}

#[derive(Debug, Serialize)]
struct Sustained {
    streams: usize,
    updates_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Of one processor.
    cpu_percent: f64,
    /// Until the last had the last change, after it was made.
    behind_ms: f64,
}

/// A thousand updates a second for ten seconds, to streams that take compressed messages.
async fn sustained(count: usize) -> anyhow::Result<Sustained> {
    const UPDATES: u64 = 10_000;
    let mut server = Process::start("typha", None)?;
    server.order(&[1_000])?;
    let (_tasks, received) = streams(count, server.address, Speech::Grpc { zstd: true }, None)?;
    received.quiet().await;
    received.take_latencies();
    let (cpu, start) = (server.cpu()?, Instant::now());
    server.order(&[UPDATES / 10, 10, 10])?;
    let took = start.elapsed();
    let at_end = received.messages.load(Relaxed);
    let (mut last, mut before) = (Instant::now(), at_end);
    // Nothing for a second: it was the last.
    while last.elapsed() < Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let messages = received.messages.load(Relaxed);
        if messages != before {
            (last, before) = (Instant::now(), messages);
        }
    }
    let behind = last.duration_since(start).saturating_sub(took);
    let (p50_ms, p99_ms) = received.take_latencies();
    let cpu_percent = (server.cpu()? - cpu) / 1e4 / last.duration_since(start).as_secs_f64();
    let updates_per_second = UPDATES as f64 / took.as_secs_f64();
    Ok(Sustained {
        streams: count,
        updates_per_second,
        p50_ms,
        p99_ms,
        cpu_percent,
        behind_ms: behind.as_secs_f64() * 1e3,
    })
}

/// Resident KB of the server for each stream that has nothing to do.
async fn idle(count: usize, lab: Option<&Lab>) -> anyhow::Result<f64> {
    let mut server = Process::start("typha", lab)?;
    server.order(&[10])?;
    let before = server.memory("VmRSS")?;
    let (_tasks, received) = streams(count, server.address, Speech::Grpc { zstd: true }, lab)?;
    received.quiet().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    Ok((server.memory("VmRSS")? - before) * 1_024.0 / count as f64)
}

/// Bytes that the loopback interface has carried: what is on the wire between these processes, and whoever else uses it.
fn loopback() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/net/dev")?;
    let line =
        text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("the loopback interface")?;
    Ok(line.split_whitespace().next().context("its bytes")?.parse()?)
}

#[derive(Debug, Serialize)]
struct Snapshot {
    streams: usize,
    /// Of the server, per stream, in milliseconds; building included.
    plain_ms: f64,
    compressed_ms: f64,
    raw_ms: f64,
    /// From the first connection until the last stream has all of it, in seconds.
    compressed_s: f64,
    raw_s: f64,
    /// Bytes on the wire, compressed to plain.
    wire: f64,
    store_over_payload: f64,
}

async fn snapshot(count: usize) -> anyhow::Result<Snapshot> {
    println!("snapshot of {ENDPOINTS} endpoints to {count} streams at once, building included:");
    let (mut payload, mut store) = (0, 0.0);
    let (mut cpu_ms, mut seconds, mut wire) = (Vec::new(), Vec::new(), Vec::new());
    for zstd in [false, true] {
        let mut server = Process::start("typha", None)?;
        let empty = server.memory("VmRSS")?;
        server.order(&[ENDPOINTS])?;
        let (filled, cpu, carried) = (server.memory("VmRSS")?, server.cpu()?, loopback()?);
        let start = Instant::now();
        let (_tasks, received) = streams(count, server.address, Speech::Grpc { zstd }, None)?;
        let bytes = received.quiet().await;
        if !zstd {
            payload = bytes / count as u64;
        }
        seconds.push(start.elapsed().as_secs_f64() - QUIET.as_secs_f64());
        store = filled - empty;
        cpu_ms.push((server.cpu()? - cpu) / 1e3 / count as f64);
        wire.push((loopback()? - carried) as f64);
        println!(
            "  {}: {:.1} MB a stream, server CPU {:.1} ms a stream; resident: store {store:.0} MB",
            if zstd { "compressed" } else { "plain" },
            bytes as f64 / 1e6 / count as f64,
            cpu_ms[cpu_ms.len() - 1],
        );
    }
    println!("  on the wire compressed: {:.1} % of plain", 100.0 * wire[1] / wire[0]);
    let size = payload / 64;
    let (raw, raw_s) = baseline("raw", Speech::Bytes { size }, count, None, [64, size, 1]).await?;
    let raw_ms = raw.cpu_us * 64.0 / 1e3;
    println!("  raw TCP, as many bytes uncompressed: CPU {raw_ms:.1} ms a stream");
    Ok(Snapshot {
        streams: count,
        plain_ms: cpu_ms[0],
        compressed_ms: cpu_ms[1],
        raw_ms,
        compressed_s: seconds[1],
        raw_s,
        wire: wire[1] / wire[0],
        store_over_payload: store * 1e6 / payload as f64,
    })
}

#[derive(Debug, Serialize)]
struct Memory {
    /// Resident MB with all streams in sync, and the most while all of them took a snapshot at once.
    steady_mb: f64,
    peak_mb: f64,
}

/// Of a server that holds all endpoints, and this many streams.
async fn memory(count: usize) -> anyhow::Result<Memory> {
    let mut server = Process::start("typha", None)?;
    server.order(&[ENDPOINTS])?;
    let (tasks, received) = streams(count, server.address, Speech::Grpc { zstd: true }, None)?;
    received.quiet().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let steady_mb = server.memory("VmRSS")?;
    drop(tasks);
    server.forget_peak()?;
    let (_tasks, received) = streams(count, server.address, Speech::Grpc { zstd: true }, None)?;
    received.quiet().await;
    Ok(Memory { steady_mb, peak_mb: server.memory("VmHWM")? })
}

async fn measure(count: usize, snapshots: usize, many: usize) -> anyhow::Result<()> {
    let needed = 500 + count.max(snapshots).max(many) as u64;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed))
            .context("raising the limit of descriptors")?;
    }
    println!("{count} streams, {BATCHES} batches {APART} ms apart, server CPU per message:");
    let lab = Lab::new()?;
    let mut lines = Vec::new();
    for lab in [None, Some(&lab)] {
        for (changes, zstd) in [(10, false), (100, false), (100, true)] {
            let line = steady(count, lab, changes, zstd).await?;
            let how = if zstd { "compressed, raw not" } else { "plain" };
            println!("  {how}{}, {}", if lab.is_some() { ", mTLS" } else { "" }, line.line());
            lines.push(line);
        }
    }
    let snapshot = snapshot(snapshots).await?;
    let memory = memory(count).await?;
    println!(
        "{ENDPOINTS} endpoints and {count} streams: {:.0} MB, at most {:.0} MB while all take a snapshot",
        memory.steady_mb, memory.peak_mb
    );
    let (idle_kb, idle_tls_kb) = (idle(count, None).await?, idle(count, Some(&lab)).await?);
    println!("{count} idle streams: {idle_kb:.1} KB each, with mTLS {idle_tls_kb:.1} KB");
    let sustained = match many {
        0 => None,
        many => Some(sustained(many).await?),
    };
    if let Some(sustained) = &sustained {
        println!("{sustained:.1?}");
    }
    let json = serde_json::json!({
        "streams": count, "steady": lines[..3], "tls": lines[3..], "snapshot": snapshot, "memory": memory, "idle_kb": idle_kb,
        "idle_tls_kb": idle_tls_kb, "sustained": sustained,
    });
    println!("{json}");
    Ok(())
}
