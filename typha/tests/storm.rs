//! A fleet that comes at once: everybody is in sync in the end, nobody who stands still holds the others up, and the
//! server's memory stays near what it is when all are idle. `BULRUSH_STORM` sets the number of streams (default 500).

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use daemon::Backoff;
use harness::process::Typha;
use harness::raw::AsTheyAre;
use harness::*;
use prost::Message;
use proto::sync::{
    ClientHello, ClientMessage, ServerMessage, client_message, server_message::Message as Down,
};
use syncer_common::model::Update;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Request, Streaming};
use typha::syncserver::Options;

const STREAMS: usize = 500;
/// Nothing but batches is longer.
const SHORT: usize = 4 << 10;

struct Node {
    down: Streaming<Bytes>,
    _up: mpsc::Sender<Bytes>,
    bytes: usize,
}

impl Node {
    /// As clients do it: who is not let in, because so many come, comes again a little later.
    async fn join(server: String, n: usize, zstd: bool) -> Node {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            match Node::try_join(&server, n, zstd).await {
                Some(node) => return node,
                None => tokio::time::sleep(backoff.next_wait()).await,
            }
        }
    }

    async fn try_join(server: &str, n: usize, zstd: bool) -> Option<Node> {
        let (up, messages) = mpsc::channel(1);
        let hello = ClientHello { node: format!("node-{n}"), ..hello() };
        let hello = ClientMessage { message: Some(client_message::Message::Hello(hello)) };
        up.send(hello.encode_to_vec().into()).await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{server}")).unwrap();
        let channel = endpoint.initial_stream_window_size(1 << 20).connect().await.ok()?;
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(8 << 20);
        if zstd {
            grpc = grpc.accept_compressed(CompressionEncoding::Zstd);
        }
        grpc.ready().await.ok()?;
        let path = PathAndQuery::from_static("/bulrush.sync.v1.Sync/Stream");
        let request = Request::new(ReceiverStream::new(messages));
        let down = grpc.streaming(request, path, AsTheyAre).await.ok()?.into_inner();
        Some(Node { down, _up: up, bytes: 0 })
    }

    /// Reads until the first cut: the state is complete and proven.
    async fn in_sync(mut self) -> Node {
        loop {
            let message = patiently(self.down.message()).await.unwrap().expect("the stream goes on");
            self.bytes += message.len();
            if message.len() < SHORT
                && let Some(Down::Cut(_)) = ServerMessage::decode(message).unwrap().message
            {
                return self;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_stand_still_in_their_snapshots_hold_up_nobody_and_are_complete_later() {
    let state: Vec<Update> = (0..400).map(|n| set(n, &noise(u64::from(n), 10_000))).collect();
    let replica = Replica::listed(Options { snapshots: 2, ..options() }, 10, state);
    // Twice as many as there are turns; what they do not read is more than the windows and buffers take.
    let mut stalled = Vec::new();
    for n in 0..4 {
        let mut node = Node::join(replica.name(), n, n % 2 == 0).await;
        while node.bytes < 300_000 {
            node.bytes += patiently(node.down.message()).await.unwrap().unwrap().len();
        }
        stalled.push(node);
    }
    let mut joining = JoinSet::new();
    for n in 4..64 {
        let server = replica.name();
        joining.spawn(async move { Node::join(server, n, n % 2 == 0).await.in_sync().await.bytes });
    }
    let others = joining.join_all().await;
    assert!(others.iter().all(|bytes| *bytes > 4_000_000), "{others:?}");
    // Those who waited so long for their own reasons missed nothing either.
    replica.apply(11, vec![set(3, "changed"), unset(4)]);
    for node in stalled {
        assert!(node.in_sync().await.bytes > 3_900_000);
    }
}

/// Kilobytes of a process.
fn memory(process: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// All of them in sync, `at_once` side by side.
async fn join_all(server: &str, streams: usize, at_once: usize) -> Vec<Node> {
    let (turns, joined) = (Arc::new(Semaphore::new(at_once)), Arc::new(AtomicUsize::new(0)));
    let mut joining = JoinSet::new();
    for n in 0..streams {
        let (server, turns, joined) = (server.to_owned(), turns.clone(), joined.clone());
        joining.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            // A few clients of other makes take nothing compressed.
            let node = Node::join(server, n, n % 10 != 0).await.in_sync().await;
            joined.fetch_add(1, Relaxed);
            node
        });
    }
    let nodes = joining.join_all().await;
    assert_eq!((nodes.len(), joined.load(Relaxed)), (streams, streams));
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn fleet_that_comes_at_once_is_in_sync_within_twice_the_memory() {
    let streams = std::env::var("BULRUSH_STORM").map_or(STREAMS, |streams| streams.parse().unwrap());
    let store = tempfile::tempdir().unwrap();
    let mut manifest = String::new();
    for n in 0..400u32 {
        let nets: Vec<String> = (0..300u32)
            .map(|m| {
                let [_, b, c, d] = (n * 300 + m).wrapping_mul(2_654_435_761).to_be_bytes();
                format!("10.{b}.{c}.{d}/32")
            })
            .collect();
        write!(
            manifest,
            "---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {{name: set-{n}}}\nspec: {{nets: [{}]}}\n",
            nets.join(", ")
        )
        .unwrap();
    }
    std::fs::write(store.path().join("sets.yaml"), manifest).unwrap();
    let folder = store.path().display().to_string();
    // A line for each of thousands of agents says nothing.
    let settings = [
        ("TYPHA_DATASTORETYPE", "directory"),
        ("TYPHA_DIRECTORY", folder.as_str()),
        ("TYPHA_LOGSEVERITYSCREEN", "warn"),
    ];
    let typha = Typha::start(&settings);
    eventually("the sets to be served", || {
        typha.get("/status.json").is_some_and(|text| text.contains(r#""NetworkSet":400"#))
    })
    .await;
    let (server, process) = (typha.server.to_string(), typha.process.0.id());

    let began = Instant::now();
    let nodes = join_all(&server, streams, 8).await;
    let one_by_one = began.elapsed();
    let steady = memory(process, "VmRSS:");
    drop(nodes);
    eventually("all to have left", || {
        let text = typha.get("/metrics").unwrap();
        text.lines().any(|line| line == "typha_connections_active 0")
    })
    .await;
    // The high-water mark begins anew.
    std::fs::write(format!("/proc/{process}/clear_refs"), "5").unwrap();
    let began = Instant::now();
    let nodes = join_all(&server, streams, usize::MAX >> 4).await;
    let at_once = began.elapsed();
    let peak = memory(process, "VmHWM:");
    let bytes: usize = nodes.iter().map(|node| node.bytes).sum();
    println!(
        "{streams} streams, {:.1} MB each: 8 at a time {one_by_one:.1?}, steady {} MB; at once {at_once:.1?}, peak {} MB",
        bytes as f64 / 1e6 / streams as f64,
        steady >> 10,
        peak >> 10
    );
    assert!(peak < 2 * steady, "{peak} kB at the most, {steady} kB when all were idle");
}
