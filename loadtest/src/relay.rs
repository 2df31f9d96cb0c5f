//! A relay in front of a typha, whose connections can all be cut or fall silent at once: what a network does to a fleet.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use daemon::{CancellationToken, Endpoint};
use tokio::net::TcpStream;
use tokio::sync::watch;

#[derive(Clone)]
pub struct Relay {
    address: SocketAddr,
    /// Whoever comes is turned away.
    closed: Arc<AtomicBool>,
    /// Ends the connections of now.
    present: Arc<Mutex<CancellationToken>>,
    /// Nothing gets through, and nobody is told.
    silent: watch::Sender<bool>,
}

impl Relay {
    /// Relays a free port of `host` to `server` until `stop`.
    pub async fn start(host: String, server: String, stop: CancellationToken) -> anyhow::Result<Relay> {
        let listener = Endpoint::new(host, 0).bind("nodes").await?;
        let relay = Relay {
            address: listener.local_addr()?,
            closed: Arc::default(),
            present: Arc::new(Mutex::new(stop.child_token())),
            silent: watch::Sender::new(false),
        };
        let (present, closed, silent) = (relay.present.clone(), relay.closed.clone(), relay.silent.clone());
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
                tokio::spawn(pass(client, server.clone(), cut, silent.subscribe()));
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

    /// Whether what either side sends waits here, as packets do that are sent again until a broken path is whole.
    pub fn silence(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    pub fn cut(&self, stop: &CancellationToken) {
        let before = std::mem::replace(&mut *lock(&self.present), stop.child_token());
        before.cancel();
    }
}

fn lock(token: &Mutex<CancellationToken>) -> std::sync::MutexGuard<'_, CancellationToken> {
    token.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pass(
    mut client: TcpStream,
    server: String,
    cut: CancellationToken,
    mut silent: watch::Receiver<bool>,
) {
    let Ok(mut server) = TcpStream::connect(&server).await else { return };
    let copying = tokio::io::copy_bidirectional(&mut client, &mut server);
    tokio::pin!(copying);
    loop {
        let passes = !*silent.borrow_and_update();
        tokio::select! {
            // What comes after the order to be silent does not get through.
            biased;
            () = cut.cancelled() => return,
            Ok(()) = silent.changed() => {}
            // A connection that ends with an error has ended: its two ends find out by themselves.
            _ = &mut copying, if passes => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn what_is_sent_through_a_silent_relay_arrives_when_it_speaks_again() -> anyhow::Result<()> {
        let server = TcpListener::bind("127.0.0.1:0").await?;
        let stop = CancellationToken::new();
        let relay = Relay::start("127.0.0.1".into(), server.local_addr()?.to_string(), stop.clone()).await?;
        let mut near = TcpStream::connect(relay.address()).await?;
        let (mut far, _) = timeout(LONG, server.accept()).await??;
        let mut byte = [0];
        near.write_all(b"a").await?;
        timeout(LONG, far.read_exact(&mut byte)).await??;

        relay.silence(true);
        near.write_all(b"b").await?;
        assert!(timeout(Duration::from_millis(300), far.read(&mut byte)).await.is_err(), "it got through");
        relay.silence(false);
        timeout(LONG, far.read_exact(&mut byte)).await??;
        assert_eq!(&byte, b"b");

        relay.cut(&stop);
        assert_eq!(timeout(LONG, far.read(&mut byte)).await??, 0, "a cut ends the connection");
        stop.cancel();
        Ok(())
    }
}
