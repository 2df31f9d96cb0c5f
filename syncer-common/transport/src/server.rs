//! The accepting end.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::files::provider;
use crate::identity::end_of;
use crate::{ALPN, Expected, Files, Identity, Io, TlsError};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Accepts TLS from clients with a certificate; takes up changed files for new connections.
pub struct ServerTls {
    files: Files,
    clients: Expected,
    current: Mutex<Current>,
}

struct Current {
    end: End,
    stamp: [Option<SystemTime>; 3],
    looked: Instant,
}

/// This end of connections.
#[derive(Clone)]
struct End {
    acceptor: TlsAcceptor,
    own: Identity,
    until: Option<SystemTime>,
}

/// A client that was let in.
pub struct Admitted {
    pub io: Io,
    pub identity: Identity,
    /// When the first of both ends' certificates ends.
    pub until: Option<SystemTime>,
}

impl ServerTls {
    /// Reads the files. `clients`: who they have to be.
    pub fn new(files: Files, clients: Expected) -> Result<ServerTls, TlsError> {
        let stamp = files.stamp();
        let end = end(&files)?;
        let current = Mutex::new(Current { end, stamp, looked: Instant::now() });
        Ok(ServerTls { files, clients, current })
    }

    /// Does the handshake, and says who the client is.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Admitted> {
        let End { acceptor, own, until } = self.end();
        let stream = acceptor.accept(stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let identity = certificate.and_then(Identity::of).unwrap_or_default();
        let until = certificate.and_then(end_of).into_iter().chain(until).min();
        // The other replicas have certificates of the same name.
        if !self.clients.accepts(&identity) && identity != own {
            let Expected { common_name, uri_san } = &self.clients;
            return Err(io::Error::other(format!(
                "the client's certificate is of {:?} {:?}, and neither its name is {common_name:?} nor a URI {uri_san:?}",
                identity.common_name, identity.uris
            )));
        }
        Ok(Admitted { io: Io::Tls(Box::new(stream.into())), identity, until })
    }

    /// Reads the files again if they have changed. Files that cannot be used leave everything as it was.
    fn end(&self) -> End {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= LOOK_EVERY {
            current.looked = Instant::now();
            let stamp = self.files.stamp();
            if stamp != current.stamp {
                match end(&self.files) {
                    Ok(end) => {
                        tracing::info!("certificates have changed, new connections use them");
                        (current.end, current.stamp) = (end, stamp);
                    }
                    // Half of them may be written; they are read again in a second.
                    Err(error) => {
                        tracing::warn!(%error, "changed certificates cannot be used, the old ones stay")
                    }
                }
            }
        }
        current.end.clone()
    }
}

fn end(files: &Files) -> Result<End, TlsError> {
    let read = files.read()?;
    let own = read.chain.first().and_then(Identity::of).unwrap_or_default();
    let until = read.chain.first().and_then(end_of);
    let verifier = WebPkiClientVerifier::builder_with_provider(read.roots, provider())
        .build()
        .map_err(|error| TlsError::Verifier(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(read.chain, read.key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(End { acceptor: TlsAcceptor::from(Arc::new(config)), own, until })
}
