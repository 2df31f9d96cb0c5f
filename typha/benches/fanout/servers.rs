//! The servers, ordered about on standard input: typha's, and what it is compared with. Each says its address first, and
//! `done` when an order is carried out.
//!
//! `raw` writes bytes to sockets. `bare` is the same with HTTP/2 around it: a stream on the `h2` crate, one task per
//! connection and nothing else, which is what gRPC costs at the least with the library that tonic stands on.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use daemon::{CancellationToken, Endpoint};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use transport::{Io, ServerTls};
use typha::metrics::Metrics;
use typha::pipeline::Intake;
use typha::snapcache::{Cache, Changes, Shared};
use typha::syncserver::{Options, Server};

use crate::corpus::endpoint;
use crate::made;
use crate::{FRAME_BYTES, HEAD};

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

pub async fn typha(tls: Option<Arc<ServerTls>>) -> anyhow::Result<()> {
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
            // So many batches of so many changes, so many milliseconds apart; each change says when it was made.
            [batches, changes, apart] => {
                let mut ticks = tokio::time::interval(Duration::from_millis(apart));
                for batch in 0..batches {
                    ticks.tick().await;
                    revision += 1;
                    let made = made::now();
                    let updates: Vec<_> = (0..changes).map(|n| endpoint(batch * changes + n, made)).collect();
                    cache.update(|cache| cache.apply_revision(0, revision, updates, 1, Instant::now()));
                }
            }
            _ => break,
        }
        say("done");
    }
    Ok(())
}

/// Sends each message of `messages` to whoever connects.
type Serve<F> = fn(TcpStream, Option<Arc<ServerTls>>, broadcast::Receiver<Bytes>) -> F;

pub async fn raw(tls: Option<Arc<ServerTls>>) -> anyhow::Result<()> {
    broadcast_to(write, tls).await
}

async fn write(
    stream: TcpStream,
    tls: Option<Arc<ServerTls>>,
    mut messages: broadcast::Receiver<Bytes>,
) -> anyhow::Result<()> {
    let mut stream = match tls {
        None => Io::Plain(stream),
        Some(tls) => tls.accept(stream).await?.io,
    };
    while let Ok(message) = messages.recv().await {
        stream.write_all(&message).await?;
    }
    Ok(())
}

pub async fn bare() -> anyhow::Result<()> {
    broadcast_to(answer, None).await
}

async fn answer(
    stream: TcpStream,
    _: Option<Arc<ServerTls>>,
    mut messages: broadcast::Receiver<Bytes>,
) -> anyhow::Result<()> {
    let mut connection =
        h2::server::Builder::new().max_frame_size(FRAME_BYTES).handshake::<_, Bytes>(stream).await?;
    let Some(asked) = connection.accept().await else { return Ok(()) };
    let (_request, mut respond) = asked?;
    let head = http::Response::builder().header("content-type", "application/grpc").body(())?;
    let mut body = respond.send_response(head, false)?;
    loop {
        tokio::select! {
            biased;
            // What there is no room for waits in h2: no client of this run stands still.
            message = messages.recv() => body.send_data(message?, false)?,
            // Moves what was queued, and what comes in.
            next = connection.accept() => if next.is_none() { return Ok(()) },
        }
    }
}

/// Orders: so many messages, of so many bytes, so many milliseconds apart.
async fn broadcast_to<F>(serve: Serve<F>, tls: Option<Arc<ServerTls>>) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let listener = Endpoint::new("127.0.0.1", 0).bind("streams").await?;
    say(&listener.local_addr()?.to_string());
    let (sender, _) = broadcast::channel::<Bytes>(256);
    let mut streams = JoinSet::new();
    let mut orders = orders();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                streams.spawn(serve(stream, tls.clone(), sender.subscribe()));
            }
            Some(ended) = streams.join_next(), if !streams.is_empty() => {
                // Clients leave at the end of a measurement.
                _ = ended?;
            }
            order = orders.recv() => {
                let Some([messages, bytes, apart]) = order.as_deref() else { return Ok(()) };
                let mut ticks = tokio::time::interval(Duration::from_millis(*apart));
                for _ in 0..*messages {
                    ticks.tick().await;
                    _ = sender.send(message(*bytes as usize));
                }
                say("done");
            }
        }
    }
}

/// A gRPC message that says when it was made, as an endpoint of the corpus does.
fn message(bytes: usize) -> Bytes {
    let mut message = vec![b'x'; bytes.max(HEAD)];
    let length = (message.len() - 5) as u32;
    message[0] = 0;
    message[1..5].copy_from_slice(&length.to_be_bytes());
    let made = made::encoded(made::now());
    message[5..5 + made.len()].copy_from_slice(&made);
    message.into()
}
