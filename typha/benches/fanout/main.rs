//! What it costs to serve many: server CPU and memory per stream, beside a raw TCP server that writes as many bytes to
//! as many sockets, in the same run; with mTLS beside a server of raw TLS.
//!
//! `cargo bench --bench fanout -- [STREAMS] [SNAPSHOT_STREAMS]`. Servers are processes of their own (this program, run
//! again), so that what the clients use is not counted. Ratios count; absolute times are those of the machine. The last
//! line is the same as JSON, for `loadtest bench`.

mod corpus;
mod tls;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::{Buf, Bytes};
use corpus::endpoint;
use daemon::{CancellationToken, Endpoint};
use prost::Message;
use proto::sync::{ClientHello, ClientMessage, client_message};
use tls::Lab;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use transport::{ClientTls, Io, ServerTls};
use typha::metrics::Metrics;
use typha::pipeline::Intake;
use typha::snapcache::{Cache, Changes, Shared};
use typha::syncserver::{Options, Server};

/// Between two batches: longer than the server waits for company.
const INTERVAL: Duration = Duration::from_millis(120);
const BATCHES: u64 = 40;
const ENDPOINTS: u64 = 100_000;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Of a server: where its certificates are, if it has any.
    let tls = || args.get(1).map(|folder| tls::server(folder.as_ref())).transpose();
    match args.first().map(String::as_str) {
        Some("serve") => runtime.block_on(serve(tls()?)),
        Some("raw") => runtime.block_on(raw(tls()?)),
        _ => {
            let number = |n: usize, default| args.get(n).and_then(|arg| arg.parse().ok()).unwrap_or(default);
            runtime.block_on(measure(number(0, 1_000), number(1, 50)))
        }
    }
}

// === The servers, ordered about on standard input ===

fn say(line: &str) {
    println!("{line}");
    _ = std::io::stdout().flush();
}

fn orders() -> mpsc::Receiver<Vec<u64>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let numbers = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            if sender.blocking_send(numbers).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn serve(tls: Option<Arc<ServerTls>>) -> anyhow::Result<()> {
    // As the program has it: without a subscriber, every span of the libraries asks for one.
    daemon::logging::init("warning", daemon::logging::Format::Text)?;
    let mut cache = Cache::new("bench", "");
    cache.follow(["etcd"]);
    let cache = Shared::new(cache);
    let any_port = Endpoint::new("127.0.0.1", 0);
    let intake = Arc::new(Intake::default());
    let options = Options { tls, ..Options::default() };
    let server = Server::bind(&any_port, cache.clone(), intake, Metrics::new(), options).await?;
    say(&server.address().to_string());
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run(CancellationToken::new()));
    let mut revision = 1;
    let mut orders = orders();
    while let Some(order) = orders.recv().await {
        match order[..] {
            // So many endpoints, from a listing.
            [count] => {
                revision += 1;
                let mut changes = Changes::default();
                changes.extend((0..count).map(|n| endpoint(n, 0)));
                cache.update(|cache| {
                    cache.listing(0, "bench", revision);
                    cache.apply_listing(0, revision, changes, Instant::now());
                    cache.proof(0, revision, Instant::now());
                });
            }
            // So many batches of so many changes.
            [batches, changes] => {
                for batch in 0..batches {
                    revision += 1;
                    let updates: Vec<_> =
                        (0..changes).map(|n| endpoint(batch * changes + n, revision)).collect();
                    cache.update(|cache| cache.apply_revision(0, revision, updates, 1, Instant::now()));
                    tokio::time::sleep(INTERVAL).await;
                }
            }
            _ => break,
        }
        say("done");
    }
    Ok(())
}

async fn raw(tls: Option<Arc<ServerTls>>) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(&listener.local_addr()?.to_string());
    let (sender, _) = broadcast::channel::<Bytes>(256);
    let mut streams = JoinSet::new();
    let mut orders = orders();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                let (mut messages, tls) = (sender.subscribe(), tls.clone());
                streams.spawn(async move {
                    let mut stream = match tls {
                        None => Io::Plain(stream),
                        Some(tls) => match tls.accept(stream).await {
                            Ok(admitted) => admitted.io,
                            Err(error) => return eprintln!("{error}"),
                        },
                    };
                    while let Ok(message) = messages.recv().await {
                        if stream.write_all(&message).await.is_err() {
                            return;
                        }
                    }
                });
            }
            order = orders.recv() => {
                // So many messages, of so many bytes, so many milliseconds apart.
                let Some([messages, bytes, apart]) = order.as_deref() else { return Ok(()) };
                let message = Bytes::from(vec![b'x'; *bytes as usize]);
                for _ in 0..*messages {
                    _ = sender.send(message.clone());
                    tokio::time::sleep(Duration::from_millis(*apart)).await;
                }
                say("done");
            }
        }
    }
}

struct Process {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    address: SocketAddr,
}

impl Process {
    fn start(role: &str, lab: Option<&Lab>) -> anyhow::Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).args(lab.map(|lab| lab.folder.path()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("the output of a server")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        Ok(Process { child, output, address: line.trim().parse().context("a server's address")? })
    }

    fn order(&mut self, numbers: &[u64]) -> anyhow::Result<()> {
        let words: Vec<String> = numbers.iter().map(u64::to_string).collect();
        writeln!(self.child.stdin.as_mut().context("the input of a server")?, "{}", words.join(" "))?;
        let mut line = String::new();
        tokio::task::block_in_place(|| self.output.read_line(&mut line))?;
        anyhow::ensure!(line.trim() == "done", "a server ended");
        Ok(())
    }

    /// CPU used so far, user and system, in microseconds.
    fn cpu(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        // utime and stime, in hundredths of a second.
        Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) * 10_000.0)
    }

    /// In MB: resident now, or the most there ever was.
    fn memory(&self, field: &str) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("memory of a server")?;
        Ok(line.split_whitespace().nth(1).context("memory of a server")?.parse::<f64>()? / 1_024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

// === The clients ===

/// Counts, and throws away.
#[derive(Clone, Copy, Default)]
struct Discard;

impl Codec for Discard {
    type Encode = ClientMessage;
    type Decode = usize;
    type Encoder = Discard;
    type Decoder = Discard;

    fn encoder(&mut self) -> Discard {
        Discard
    }

    fn decoder(&mut self) -> Discard {
        Discard
    }
}

impl Encoder for Discard {
    type Item = ClientMessage;
    type Error = Status;

    fn encode(&mut self, item: ClientMessage, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(target).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Discard {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let length = source.remaining();
        source.advance(length);
        Ok(Some(length))
    }
}

#[derive(Default)]
struct Received {
    /// Of at least a kilobyte: cuts and heartbeats are smaller.
    messages: AtomicU64,
    bytes: AtomicU64,
}

async fn follow(
    address: SocketAddr,
    tls: Option<ClientTls>,
    zstd: bool,
    received: Arc<Received>,
) -> anyhow::Result<()> {
    let settings = |endpoint: tonic::transport::Endpoint| {
        endpoint
            .tcp_nodelay(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(1 << 20)
            .max_frame_size(64 << 10)
    };
    let channel = transport::channel(&address.to_string(), tls.as_ref(), settings)
        .await
        .map_err(|error| anyhow::anyhow!("connecting: {error}"))?;
    let mut grpc = tonic::client::Grpc::new(channel);
    if zstd {
        grpc = grpc.accept_compressed(CompressionEncoding::Zstd);
    }
    let hello = ClientHello {
        version: proto::VERSION,
        node: "bench".into(),
        agent: "felix".into(),
        ..Default::default()
    };
    let hello = ClientMessage { message: Some(client_message::Message::Hello(hello)) };
    let up = futures::StreamExt::chain(tokio_stream::iter([hello]), futures::stream::pending());
    grpc.ready().await?;
    let path = http::uri::PathAndQuery::from_static("/bulrush.sync.v1.Sync/Stream");
    let mut down = grpc.streaming(tonic::Request::new(up), path, Discard).await?.into_inner();
    while let Some(length) = down.message().await? {
        if length >= 1_024 {
            received.messages.fetch_add(1, Relaxed);
            received.bytes.fetch_add(length as u64, Relaxed);
        }
    }
    Ok(())
}

async fn read(address: SocketAddr, tls: Option<ClientTls>, received: Arc<Received>) -> anyhow::Result<()> {
    let mut stream = tls::connect(&address.to_string(), tls).await?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = stream.read(&mut buffer).await?;
        anyhow::ensure!(read > 0, "closed");
        received.bytes.fetch_add(read as u64, Relaxed);
    }
}

/// Streams to a typha, or to the raw server, that count together.
fn streams(
    count: usize,
    address: SocketAddr,
    zstd: Option<bool>,
    lab: Option<&Lab>,
) -> (JoinSet<anyhow::Result<()>>, Arc<Received>) {
    let received = Arc::new(Received::default());
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let tls = lab.map(Lab::client);
        match zstd {
            Some(zstd) => tasks.spawn(follow(address, tls, zstd, received.clone())),
            None => tasks.spawn(read(address, tls, received.clone())),
        };
    }
    (tasks, received)
}

/// Until nothing has come for a while. Returns the bytes.
async fn quiet(received: &Received) -> u64 {
    let mut before = received.bytes.load(Relaxed);
    loop {
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        let now = received.bytes.load(Relaxed);
        if now == before {
            return now;
        }
        before = now;
    }
}

// === What is measured ===

/// CPU of the raw server per message, in microseconds.
async fn baseline(
    count: usize,
    lab: Option<&Lab>,
    messages: u64,
    size: u64,
    apart: u64,
) -> anyhow::Result<f64> {
    let mut raw = Process::start("raw", lab)?;
    let (_tasks, received) = streams(count, raw.address, None, lab);
    quiet(&received).await;
    let cpu = raw.cpu()?;
    raw.order(&[messages, size, apart])?;
    let sent = quiet(&received).await / size;
    Ok((raw.cpu()? - cpu) / sent as f64)
}

async fn steady(
    count: usize,
    lab: Option<&Lab>,
    changes: u64,
    zstd: bool,
) -> anyhow::Result<(u64, f64, f64)> {
    let mut typha = Process::start("serve", lab)?;
    typha.order(&[1_000])?;
    let (_tasks, received) = streams(count, typha.address, Some(zstd), lab);
    quiet(&received).await;
    let (cpu, messages) = (typha.cpu()?, received.messages.load(Relaxed));
    let bytes = received.bytes.load(Relaxed);
    typha.order(&[BATCHES, changes])?;
    let bytes = quiet(&received).await - bytes;
    let messages = received.messages.load(Relaxed) - messages;
    let expected = count as u64 * BATCHES;
    // A machine that stands still makes the server put two batches into one message; what counts is each message.
    anyhow::ensure!(messages > expected / 2, "{messages} of {expected} messages arrived");
    let (own, size) = ((typha.cpu()? - cpu) / messages as f64, bytes / messages);
    drop(typha);
    Ok((size, own, baseline(count, lab, BATCHES, size, INTERVAL.as_millis() as u64).await?))
}

/// Resident KB of the server for each stream that has nothing to do.
async fn idle(count: usize, lab: Option<&Lab>) -> anyhow::Result<f64> {
    let mut typha = Process::start("serve", lab)?;
    typha.order(&[10])?;
    let before = typha.memory("VmRSS")?;
    let (_tasks, received) = streams(count, typha.address, Some(true), lab);
    quiet(&received).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    Ok((typha.memory("VmRSS")? - before) * 1_024.0 / count as f64)
}

/// Bytes that the loopback interface has carried: what is on the wire between these processes, and whoever else uses it.
fn loopback() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/net/dev")?;
    let line =
        text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("the loopback interface")?;
    Ok(line.split_whitespace().next().context("its bytes")?.parse()?)
}

async fn measure(count: usize, snapshots: usize) -> anyhow::Result<()> {
    println!("{count} streams, {BATCHES} batches {} ms apart, server CPU per message:", INTERVAL.as_millis());
    let lab = Lab::new()?;
    let mut ratios = Vec::new();
    for (lab, changes, zstd) in [
        (None, 10, false),
        (None, 100, false),
        (None, 100, true),
        (Some(&lab), 10, false),
        (Some(&lab), 100, false),
        (Some(&lab), 100, true),
    ] {
        let (size, own, raw) = steady(count, lab, changes, zstd).await?;
        let how = if zstd { "compressed" } else { "plain" };
        let (with, beside) = if lab.is_some() { (", mTLS", "TLS") } else { ("", "TCP") };
        println!(
            "  {size} B {how}{with}: {own:.1} µs, raw {beside} uncompressed {raw:.1} µs: {:.2} ×",
            own / raw
        );
        ratios.push((size, own / raw));
    }

    println!("snapshot of {ENDPOINTS} endpoints to {snapshots} streams at once, building included:");
    let (mut plain, mut store, mut peak) = (0, 0.0, 0.0);
    let (mut cpu_ms, mut wire) = (Vec::new(), Vec::new());
    for zstd in [false, true] {
        let mut typha = Process::start("serve", None)?;
        let empty = typha.memory("VmRSS")?;
        typha.order(&[ENDPOINTS])?;
        let (filled, cpu, carried) = (typha.memory("VmRSS")?, typha.cpu()?, loopback()?);
        let (_tasks, received) = streams(snapshots, typha.address, Some(zstd), None);
        plain = quiet(&received).await / snapshots as u64;
        (store, peak) = (filled - empty, typha.memory("VmHWM")?);
        cpu_ms.push((typha.cpu()? - cpu) / 1e3 / snapshots as f64);
        wire.push((loopback()? - carried) as f64);
        println!(
            "  {}: {:.1} MB a stream once decompressed, server CPU {:.1} ms a stream; resident: store {store:.0} MB, most {peak:.0} MB",
            if zstd { "compressed" } else { "plain" },
            plain as f64 / 1e6,
            cpu_ms[cpu_ms.len() - 1],
        );
    }
    println!("  on the wire compressed: {:.1} % of plain", 100.0 * wire[1] / wire[0]);
    let raw = baseline(snapshots, None, 64, plain / 64, 1).await? * 64.0 / 1e3;
    println!("  raw TCP, as many bytes uncompressed: CPU {raw:.1} ms a stream");

    let (idle_kb, idle_tls_kb) = (idle(count, None).await?, idle(count, Some(&lab)).await?);
    println!("{count} idle streams: {idle_kb:.1} KB each, with mTLS {idle_tls_kb:.1} KB");
    let json = serde_json::json!({
        "streams": count, "plain": [ratios[0], ratios[1]], "compressed": ratios[2],
        "tls_plain": [ratios[3], ratios[4]], "tls_compressed": ratios[5], "snapshot_streams": snapshots,
        "snapshot_plain_ms": cpu_ms[0], "snapshot_compressed_ms": cpu_ms[1], "snapshot_raw_ms": raw,
        "snapshot_wire": wire[1] / wire[0], "store_over_payload": store * 1e6 / plain as f64, "peak_mb": peak,
        "idle_kb": idle_kb, "idle_tls_kb": idle_tls_kb,
    });
    println!("{json}");
    Ok(())
}
