//! Clients that do as little as can be: they share the machine with what is measured. Those of typha speak HTTP/2 and
//! take messages apart; those of the raw server read bytes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes, BytesMut};
use hdrhistogram::Histogram;
use prost::Message;
use proto::sync::{ClientHello, ClientMessage, client_message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use transport::ClientTls;

use crate::tls::{self, Lab};
use crate::{FRAME_BYTES, HEAD, QUIET, made};

const WINDOW: u32 = 1 << 20;
/// Cuts and heartbeats are smaller than a message that counts.
const COUNTS: usize = 1_024;
/// Of many streams so few look into what is compressed: reading it costs more than anything that is measured.
const LOOKS_INTO: usize = 50;

pub struct Received {
    pub messages: AtomicU64,
    /// Of these messages, as they came.
    pub bytes: AtomicU64,
    /// Messages that were looked into, and their bytes once decompressed.
    plain: [AtomicU64; 2],
    /// From when a change was made until it was received, in microseconds.
    latencies: Mutex<Histogram<u64>>,
}

impl Received {
    fn new() -> anyhow::Result<Received> {
        let latencies = Mutex::new(Histogram::new_with_bounds(1, 60_000_000, 3)?);
        Ok(Received {
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            plain: Default::default(),
            latencies,
        })
    }

    fn latencies(&self) -> std::sync::MutexGuard<'_, Histogram<u64>> {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The median and the 99th percentile in milliseconds, since the last time.
    pub fn take_latencies(&self) -> (f64, f64) {
        let mut latencies = self.latencies();
        let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        let taken = (at(0.5), at(0.99));
        latencies.reset();
        taken
    }

    /// Messages that were looked into so far, and their bytes once decompressed.
    pub fn plain(&self) -> [u64; 2] {
        self.plain.each_ref().map(|number| number.load(Relaxed))
    }

    fn on_message(&self, bytes: usize) {
        self.messages.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    fn on_plain(&self, bytes: usize, made: Option<u64>) {
        self.plain[0].fetch_add(1, Relaxed);
        self.plain[1].fetch_add(bytes as u64, Relaxed);
        if let Some(made) = made {
            // Longer than the histogram reaches nothing takes here.
            self.latencies().saturating_record(made::now().saturating_sub(made));
        }
    }

    /// Until nothing has come for a while. Returns the bytes.
    pub async fn quiet(&self) -> u64 {
        let mut before = self.bytes.load(Relaxed);
        loop {
            tokio::time::sleep(QUIET).await;
            let after = self.bytes.load(Relaxed);
            if after == before {
                return after;
            }
            before = after;
        }
    }
}

/// What the clients speak.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// Messages as the raw server sends them.
    Bytes {
        size: u64,
    },
    Grpc {
        zstd: bool,
    },
}

/// So many streams, that count together.
pub fn streams(
    count: usize,
    address: SocketAddr,
    speech: Speech,
    lab: Option<&Lab>,
) -> anyhow::Result<(JoinSet<anyhow::Result<()>>, Arc<Received>)> {
    let received = Arc::new(Received::new()?);
    let mut tasks = JoinSet::new();
    for index in 0..count {
        let (tls, received) = (lab.map(Lab::client), received.clone());
        match speech {
            Speech::Bytes { size } => tasks.spawn(read(address, tls, size as usize, received)),
            Speech::Grpc { zstd } => tasks.spawn(follow(address, tls, zstd, index < LOOKS_INTO, received)),
        };
    }
    Ok((tasks, received))
}

async fn read(
    address: SocketAddr,
    tls: Option<ClientTls>,
    size: usize,
    received: Arc<Received>,
) -> anyhow::Result<()> {
    let mut stream = tls::connect(&address.to_string(), tls).await?;
    // Where the server's queue was full, it has forgotten this connection until something comes.
    stream.write_all(b"hello").await?;
    let mut buffer = vec![0; size.clamp(HEAD, 64 << 10)];
    loop {
        stream.read_exact(&mut buffer[..HEAD]).await?;
        let made = made::find(&buffer[..HEAD]);
        let mut rest = size - HEAD;
        while rest > 0 {
            let room = rest.min(buffer.len());
            let read = stream.read(&mut buffer[..room]).await?;
            anyhow::ensure!(read > 0, "closed");
            rest -= read;
        }
        received.on_message(size);
        received.on_plain(size, made);
    }
}

async fn follow(
    address: SocketAddr,
    tls: Option<ClientTls>,
    zstd: bool,
    looks_into: bool,
    received: Arc<Received>,
) -> anyhow::Result<()> {
    let stream = tls::connect(&address.to_string(), tls).await?;
    let mut settings = h2::client::Builder::new();
    settings.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).max_frame_size(FRAME_BYTES);
    let (sender, connection) = settings.handshake::<_, Bytes>(stream).await?;
    let connection = async { connection.await.map_err(anyhow::Error::from) };
    let listen = async {
        let mut request = http::Request::post(format!("http://{address}/bulrush.sync.v1.Sync/Stream"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if zstd {
            request = request.header("grpc-accept-encoding", "zstd");
        }
        let (response, mut up) = sender.ready().await?.send_request(request.body(())?, false)?;
        up.send_data(hello(), false)?;
        let mut body = response.await?.into_body();
        let mut taken = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            taken.extend_from_slice(&data);
            while let Some(message) = next(&mut taken) {
                if message.len() < COUNTS && message[0] == 0 {
                    continue;
                }
                received.on_message(message.len());
                match message[0] {
                    0 => received.on_plain(message.len(), made::find(&message)),
                    _ if looks_into => {
                        let plain = zstd::decode_all(&message[5..])?;
                        received.on_plain(plain.len(), made::find(&plain));
                    }
                    _ => {}
                }
            }
        }
        let end = body.trailers().await?;
        Err::<(), _>(anyhow::anyhow!("the stream ended: {end:?}"))
    };
    tokio::try_join!(connection, listen)?;
    Ok(())
}

/// The next whole message, prefix included.
fn next(taken: &mut BytesMut) -> Option<BytesMut> {
    let length = taken.get(1..5).map(|mut length| length.get_u32() as usize)?;
    (taken.len() >= 5 + length).then(|| taken.split_to(5 + length))
}

fn hello() -> Bytes {
    let hello = ClientHello {
        version: proto::VERSION,
        node: "bench".into(),
        agent: "felix".into(),
        ..Default::default()
    };
    let message = ClientMessage { message: Some(client_message::Message::Hello(hello)) }.encode_to_vec();
    let mut framed = BytesMut::from(&[0][..]);
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.freeze()
}
