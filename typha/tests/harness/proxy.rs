//! A wire between an agent and a replica: it counts, it can be cut, it can be stopped, it can lead elsewhere.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[derive(Clone)]
struct Wire {
    target: Arc<Mutex<SocketAddr>>,
    up: Arc<AtomicU64>,
    down: Arc<AtomicU64>,
    /// Counts cuts.
    cuts: watch::Sender<u64>,
    /// While true, nothing is read from the replica.
    stopped: watch::Sender<bool>,
}

pub struct Proxy {
    wire: Wire,
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Wire {
            target: Arc::new(Mutex::new(target)),
            up: Arc::default(),
            down: Arc::default(),
            cuts: watch::Sender::new(0),
            stopped: watch::Sender::new(false),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let wire = wire.clone();
            async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(wire.clone().carry(stream));
                }
            }
        });
        Proxy { wire, address, _tasks: tasks }
    }

    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// Ends all connections; the next ones go there. Counts from zero.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.wire.target.lock().unwrap() = target;
        self.wire.cuts.send_modify(|cuts| *cuts += 1);
        self.wire.up.store(0, Relaxed);
        self.wire.down.store(0, Relaxed);
    }

    pub fn stop(&self, stopped: bool) {
        self.wire.stopped.send_replace(stopped);
    }

    /// Bytes up and down since the last cut.
    pub fn bytes(&self) -> (u64, u64) {
        (self.wire.up.load(Relaxed), self.wire.down.load(Relaxed))
    }
}

impl Wire {
    async fn carry(self, near: TcpStream) {
        let mut cuts = self.cuts.subscribe();
        let target = *self.target.lock().unwrap();
        let Ok(far) = TcpStream::connect(target).await else { return };
        for stream in [&near, &far] {
            stream.set_nodelay(true).unwrap();
        }
        let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
        let never = watch::Sender::new(false);
        tokio::select! {
            () = copy(from_near, to_far, &self.up, never.subscribe()) => {}
            () = copy(from_far, to_near, &self.down, self.stopped.subscribe()) => {}
            _ = cuts.changed() => {}
        }
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    count: &AtomicU64,
    mut stopped: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        if stopped.wait_for(|stopped| !stopped).await.is_err() {
            return;
        }
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        count.fetch_add(read as u64, Relaxed);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
