//! Certificates for a run, and both ends of a connection with them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use transport::certs::Authority;
use transport::{ClientTls, Expected, Files, Io, ServerTls};

const SERVER: &str = "typha-server";
const CLIENT: &str = "typha-client";
const HOUR: Duration = Duration::from_secs(3_600);

/// A CA, and a certificate for either end.
pub struct Lab {
    pub folder: tempfile::TempDir,
    client: ClientTls,
}

impl Lab {
    pub fn new() -> anyhow::Result<Lab> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::new("bench", HOUR)?;
        authority.save(folder.path())?;
        authority.issue(folder.path(), "server", SERVER, "spiffe://bench/typha")?;
        let files = authority.issue(folder.path(), "client", CLIENT, "spiffe://bench/agent")?;
        let client =
            ClientTls { files, server: Expected { common_name: SERVER.into(), uri_san: String::new() } };
        Ok(Lab { folder, client })
    }

    pub fn client(&self) -> ClientTls {
        self.client.clone()
    }
}

/// The accepting end, from a lab's folder.
pub fn server(folder: &Path) -> anyhow::Result<Arc<ServerTls>> {
    let [ca, cert, key] = ["ca.crt", "server.crt", "server.key"].map(|name| folder.join(name));
    let clients = Expected { common_name: CLIENT.into(), uri_san: String::new() };
    Ok(Arc::new(ServerTls::new(Files { ca, cert, key }, clients)?))
}

/// A connection that carries bytes and nothing else.
pub async fn connect(address: &str, tls: Option<ClientTls>) -> anyhow::Result<Io> {
    let stream = TcpStream::connect(address).await?;
    let Some(tls) = tls else { return Ok(Io::Plain(stream)) };
    let connector = TlsConnector::from(Arc::new(tls.config()?));
    let name = ServerName::try_from("typha").context("a name for a handshake")?;
    Ok(Io::Tls(Box::new(connector.connect(name, stream).await?.into())))
}
