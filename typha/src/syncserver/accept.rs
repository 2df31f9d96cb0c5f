//! Accepting connections: limits, TLS, and who is at the other end.
//!
//! A handshake has its own task and deadline, so one that goes nowhere delays nobody. A connection beyond the limit of
//! its address, or of handshakes under way, is closed at once. An error of `accept` (no more descriptors) is waited
//! out.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::server::Connected;
use transport::{Admitted, Identity, Io, ServerTls};

use crate::metrics::Metrics;

const HANDSHAKES: usize = 4_096;
const AFTER_ERROR: Duration = Duration::from_millis(100);
/// Connections that are ready and not yet served.
const READY: usize = 64;

/// Who is at the other end.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    pub address: Option<SocketAddr>,
    /// With TLS.
    pub identity: Option<Arc<Identity>>,
    /// When the first of both ends' certificates ends.
    pub until: Option<SystemTime>,
}

pub(super) struct Accept {
    pub listener: TcpListener,
    pub tls: Option<Arc<ServerTls>>,
    pub handshake: Duration,
    /// 0 = no limit.
    pub per_address: usize,
    pub metrics: Metrics,
}

/// An accepted connection; its address has one less when it is dropped.
pub(super) struct Accepted {
    io: Io,
    peer: Peer,
    _slot: Slot,
}

struct Slot {
    counts: Arc<DashMap<IpAddr, usize>>,
    address: IpAddr,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let dashmap::Entry::Occupied(mut count) = self.counts.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl Accept {
    /// Where connections come out, and what has to run for them to.
    pub fn split(
        self,
    ) -> (impl Future<Output = ()>, tokio_stream::wrappers::ReceiverStream<io::Result<Accepted>>) {
        let (ready, accepted) = mpsc::channel(READY);
        (self.run(ready), accepted.into())
    }

    async fn run(self, ready: mpsc::Sender<io::Result<Accepted>>) {
        let counts: Arc<DashMap<IpAddr, usize>> = Arc::default();
        let mut handshakes = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                Some(_) = handshakes.join_next(), if !handshakes.is_empty() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(AFTER_ERROR).await;
                    continue;
                }
            };
            let Some(slot) = self.slot(&counts, address.ip()).filter(|_| handshakes.len() < HANDSHAKES)
            else {
                self.metrics.connections_refused.increment(1);
                tracing::debug!(%address, "too many connections, this one is closed");
                continue;
            };
            let (tls, limit, ready, metrics) =
                (self.tls.clone(), self.handshake, ready.clone(), self.metrics.clone());
            handshakes.spawn(async move {
                let shaken = tokio::time::timeout(limit, shake_hands(stream, tls)).await;
                let shaken = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                match shaken {
                    Ok((io, peer)) => {
                        let peer = Peer { address: Some(address), ..peer };
                        // Fails only when the server is going down.
                        ready.send(Ok(Accepted { io, peer, _slot: slot })).await.ok();
                    }
                    Err(error) => {
                        metrics.connections_refused.increment(1);
                        tracing::warn!(%address, %error, "connection refused");
                    }
                }
            });
        }
    }

    fn slot(&self, counts: &Arc<DashMap<IpAddr, usize>>, address: IpAddr) -> Option<Slot> {
        let mut count = counts.entry(address).or_default();
        if self.per_address > 0 && *count >= self.per_address {
            return None;
        }
        *count += 1;
        Some(Slot { counts: counts.clone(), address })
    }
}

async fn shake_hands(stream: TcpStream, tls: Option<Arc<ServerTls>>) -> io::Result<(Io, Peer)> {
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok((Io::Plain(stream), Peer::default())) };
    let Admitted { io, identity, until } = tls.accept(stream).await?;
    Ok((io, Peer { address: None, identity: Some(Arc::new(identity)), until }))
}

impl Connected for Accepted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
