//! What fan-out costs, in bytes and allocations and never in seconds, so that it is the same on every machine. A cost
//! that grows by more than a tenth fails; one that was lowered is to be written down here.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

#[path = "../benches/fanout/corpus.rs"]
mod corpus;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Buf;
use corpus::endpoint;
use daemon::{CancellationToken, Endpoint};
use prost::Message;
use proto::sync::{ClientHello, ClientMessage, ServerMessage, client_message, server_message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder};
use typha::metrics::Metrics;
use typha::pipeline::Intake;
use typha::snapcache::{Cache, Shared};
use typha::syncserver::{Options, Server};

/// What each thing cost when it was last looked at.
const AGREED: [(&str, f64); 6] = [
    ("bytes of a delta of one endpoint", 402.0),
    ("allocations per delivery", 1.85),
    ("bytes held per idle client", 45_300.0),
    ("bytes held per entry", 779.0),
    ("bytes per entry of a snapshot", 371.0),
    ("bytes per entry of a compressed snapshot", 49.2),
];
const MORE: f64 = 1.1;

const ENTRIES: u64 = 5_000;
const CLIENTS: u64 = 40;
const DELTAS: u64 = 50;
const SETTLE: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Received {
    cuts: AtomicU64,
    bytes: AtomicU64,
    /// On the wire, of the client behind the relay.
    wire: AtomicU64,
}

#[test]
fn fan_out_costs_no_more_than_agreed() {
    let received = Arc::new(Received::default());
    let (joins, orders) = mpsc::channel(1);
    let clients = std::thread::spawn({
        let received = received.clone();
        move || Builder::new_current_thread().enable_all().build().unwrap().block_on(follow(orders, received))
    });
    let measured = serve(joins, &received);
    clients.join().unwrap();
    let mut more = Vec::new();
    for ((what, agreed), cost) in AGREED.into_iter().zip(measured) {
        println!("{what}: {cost:.2}, agreed {agreed}");
        if cost > agreed * MORE {
            more.push(format!("{what}: {cost:.2}, and {agreed} was agreed (typha/tests/guard.rs)"));
        }
    }
    assert!(more.is_empty(), "{}", more.join("\n"));
}

/// The server has this thread for itself: what is allocated here is what it allocates.
fn serve(joins: mpsc::Sender<(SocketAddr, Join)>, received: &Received) -> [f64; 6] {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut cache = Cache::new("guard", "");
    cache.follow(["etcd"]);
    let cache = Shared::new(cache);
    let stop = CancellationToken::new();
    let (address, server) = runtime.block_on(async {
        let server = Server::bind(
            &Endpoint::new("127.0.0.1", 0),
            cache.clone(),
            Arc::new(Intake::default()),
            Metrics::new(),
            Options::default(),
        )
        .await
        .unwrap();
        (server.address(), tokio::spawn(server.run(stop.clone())))
    });
    let join = |join: Join, expected: u64| {
        runtime.block_on(async {
            let (cuts, bytes) = (received.cuts.load(Relaxed), received.bytes.load(Relaxed));
            joins.send((address, join)).await.unwrap();
            until(|| received.cuts.load(Relaxed) >= cuts + expected).await;
            received.bytes.load(Relaxed) - bytes
        })
    };

    let filled = allocation_counter::measure(|| {
        let updates: Vec<_> = (0..ENTRIES).map(|n| endpoint(n, 0)).collect();
        cache.update(|cache| {
            cache.listing(0, "guard", 1);
            cache.apply_listing(0, 1, updates, Instant::now());
            cache.proof(0, 1, Instant::now());
        });
    });
    // The first encodes what the others are sent, too.
    let snapshot = join(Join { clients: 1, relayed: false }, 1);
    join(Join { clients: 1, relayed: true }, 1);
    let wire = received.wire.load(Relaxed);
    let idle = allocation_counter::measure(|| {
        join(Join { clients: CLIENTS, relayed: false }, CLIENTS);
        // What was needed for the snapshot is given back.
        runtime.block_on(async { tokio::time::sleep(SETTLE).await });
    });

    let everybody = CLIENTS + 2;
    let mut bytes = 0;
    let deltas = allocation_counter::measure(|| {
        runtime.block_on(async {
            let before = received.bytes.load(Relaxed);
            for delta in 0..DELTAS {
                let cuts = received.cuts.load(Relaxed);
                let update = endpoint(delta, delta + 2);
                cache.update(|cache| cache.apply_revision(0, delta + 2, vec![update], 1, Instant::now()));
                until(|| received.cuts.load(Relaxed) >= cuts + everybody).await;
            }
            bytes = received.bytes.load(Relaxed) - before;
        });
    });
    drop(joins);
    stop.cancel();
    runtime.block_on(async { server.await.unwrap().unwrap() });
    let deliveries = (DELTAS * everybody) as f64;
    [
        bytes as f64 / deliveries,
        deltas.count_total as f64 / deliveries,
        idle.bytes_current as f64 / CLIENTS as f64,
        filled.bytes_current as f64 / ENTRIES as f64,
        snapshot as f64 / ENTRIES as f64,
        wire as f64 / ENTRIES as f64,
    ]
}

async fn until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "clients did not receive what they should");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

// === The clients, on a thread of their own ===

struct Join {
    clients: u64,
    /// Compressed, and through a relay that counts what is on the wire.
    relayed: bool,
}

/// Hands out lengths and whether it was a cut.
#[derive(Default)]
struct Lengths(tonic_prost::ProstCodec<ClientMessage, ServerMessage>);

struct Length;

impl Decoder for Length {
    type Item = (usize, bool);
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let length = source.remaining();
        let message = ServerMessage::decode(source).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Some((length, matches!(message.message, Some(server_message::Message::Cut(_))))))
    }
}

impl Codec for Lengths {
    type Encode = ClientMessage;
    type Decode = (usize, bool);
    type Encoder = <tonic_prost::ProstCodec<ClientMessage, ServerMessage> as Codec>::Encoder;
    type Decoder = Length;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Length {
        Length
    }
}

async fn follow(mut joins: mpsc::Receiver<(SocketAddr, Join)>, received: Arc<Received>) {
    let mut streams = tokio::task::JoinSet::new();
    while let Some((server, Join { clients, relayed })) = joins.recv().await {
        let mut address = server;
        if relayed {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            address = listener.local_addr().unwrap();
            streams.spawn(relay(listener, server, received.clone()));
        }
        for _ in 0..clients {
            streams.spawn(stream(address, relayed, received.clone()));
        }
    }
}

async fn relay(listener: TcpListener, server: SocketAddr, received: Arc<Received>) {
    let (client, _) = listener.accept().await.unwrap();
    let server = TcpStream::connect(server).await.unwrap();
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let up = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = from_server.read(&mut buffer).await?;
            if read == 0 {
                return std::io::Result::Ok(());
            }
            received.wire.fetch_add(read as u64, Relaxed);
            to_client.write_all(&buffer[..read]).await?;
        }
    };
    // A stream that ends has ended: the test is over.
    tokio::try_join!(up, down).ok();
}

async fn stream(address: SocketAddr, zstd: bool, received: Arc<Received>) {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let endpoint = endpoint.initial_stream_window_size(1 << 20).initial_connection_window_size(1 << 20);
    let mut grpc = tonic::client::Grpc::new(endpoint.connect().await.unwrap());
    if zstd {
        grpc = grpc.accept_compressed(CompressionEncoding::Zstd);
    }
    let hello = ClientHello {
        version: proto::VERSION,
        node: "guard".into(),
        agent: "felix".into(),
        ..ClientHello::default()
    };
    let hello = ClientMessage { message: Some(client_message::Message::Hello(hello)) };
    let up = futures::StreamExt::chain(tokio_stream::iter([hello]), futures::stream::pending());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/bulrush.sync.v1.Sync/Stream");
    let mut down =
        grpc.streaming(tonic::Request::new(up), path, Lengths::default()).await.unwrap().into_inner();
    // The server ends it when the test is over.
    while let Ok(Some((length, cut))) = down.message().await {
        received.bytes.fetch_add(length as u64, Relaxed);
        received.cuts.fetch_add(u64::from(cut), Relaxed);
    }
}
