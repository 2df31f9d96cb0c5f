//! Whether felix and BIRD of this node do their work.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::options::Watch;

const PATIENCE: Duration = Duration::from_secs(5);

pub async fn node(options: &Watch) -> Result<()> {
    let felix = timeout(PATIENCE, felix(&options.felix_health)).await;
    felix
        .unwrap_or_else(|_| bail!("no answer"))
        .with_context(|| format!("felix at {}", options.felix_health))?;
    if let Some(socket) = &options.bird_socket {
        let bird = timeout(PATIENCE, UnixStream::connect(socket)).await;
        bird.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .with_context(|| format!("BIRD at {}", socket.display()))?;
    }
    Ok(())
}

async fn felix(address: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /readiness HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer).await?;
    match answer.split_whitespace().nth(1) {
        Some("200" | "204") => Ok(()),
        Some(status) => bail!("is not ready (HTTP status {status})"),
        None => bail!("gives no answer of HTTP"),
    }
}
