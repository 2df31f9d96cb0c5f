//! A relay in front of a typha, whose connections can all be cut at once: what a network does to a fleet.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use daemon::CancellationToken;
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone)]
pub struct Relay {
    address: SocketAddr,
    /// Whoever comes is turned away.
    closed: Arc<AtomicBool>,
    /// Ends the connections of now.
    present: Arc<Mutex<CancellationToken>>,
}

impl Relay {
    /// Relays a free port of loopback to `server` until `stop`.
    pub async fn start(server: String, stop: CancellationToken) -> std::io::Result<Relay> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let relay = Relay {
            address: listener.local_addr()?,
            closed: Arc::default(),
            present: Arc::new(Mutex::new(stop.child_token())),
        };
        let (present, closed) = (relay.present.clone(), relay.closed.clone());
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stop.cancelled() => return,
                };
                // Out of descriptors for the moment: those that wait are served later.
                let Ok((client, _)) = accepted else {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                };
                if closed.load(Ordering::Relaxed) {
                    continue;
                }
                let cut = lock(&present).clone();
                tokio::spawn(pass(client, server.clone(), cut));
            }
        });
        Ok(relay)
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Whether whoever comes is turned away.
    pub fn close(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }

    pub fn cut(&self, stop: &CancellationToken) {
        let before = std::mem::replace(&mut *lock(&self.present), stop.child_token());
        before.cancel();
    }
}

fn lock(token: &Mutex<CancellationToken>) -> std::sync::MutexGuard<'_, CancellationToken> {
    token.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pass(mut client: TcpStream, server: String, cut: CancellationToken) {
    let Ok(mut server) = TcpStream::connect(&server).await else { return };
    // A connection that ends with an error has ended: its two ends find out by themselves.
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        () = cut.cancelled() => {}
    }
}
