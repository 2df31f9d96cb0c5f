//! The agent's local socket: `felix status` and `felix explain` ask the running daemon over it.
//!
//! One line in (words separated by tabs), text out, one question a connection. The dataplane's task answers between
//! passes. The socket is root's alone.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use daemon::CancellationToken;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// Below the folder of EndpointStatusPathPrefix.
const SOCKET: &str = "felix.sock";
const LONGEST_LINE: u64 = 4096;
/// A pass over a large node may take a while.
const DEADLINE: Duration = Duration::from_secs(60);
/// What an answer begins with, so that the asker knows whether it is one.
const OK: &str = "ok\n";

pub struct Question {
    pub words: Vec<String>,
    pub answer: oneshot::Sender<Result<String, String>>,
}

pub struct Control {
    listener: UnixListener,
    questions: mpsc::Sender<Question>,
}

/// Where the socket is; none without a folder.
pub fn socket(prefix: &Path) -> Option<PathBuf> {
    (!prefix.as_os_str().is_empty()).then(|| prefix.join(SOCKET))
}

impl Control {
    /// Takes the place of a socket that a former run left.
    pub fn bind(path: &Path, questions: mpsc::Sender<Question>) -> anyhow::Result<Control> {
        let bind = || -> std::io::Result<UnixListener> {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = bind().with_context(|| format!("the control socket {}", path.display()))?;
        Ok(Control { listener, questions })
    }

    pub async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        loop {
            let stream = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "a connection to the control socket failed");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            // One after the other: there is one dataplane to answer.
            let served = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                served = tokio::time::timeout(DEADLINE, self.serve(stream)) => served,
            };
            match served {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a question was not answered"),
                Err(_) => tracing::warn!("a question was not answered in time"),
            }
        }
    }

    async fn serve(&self, stream: UnixStream) -> anyhow::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        BufReader::new(read.take(LONGEST_LINE)).read_line(&mut line).await?;
        let words = line.trim_end_matches('\n').split('\t').map(str::to_owned).collect();
        let (answer, answered) = oneshot::channel();
        self.questions.send(Question { words, answer }).await.context("the dataplane has ended")?;
        let text = match answered.await.context("the dataplane has ended")? {
            Ok(text) => format!("{OK}{text}"),
            Err(reason) => reason,
        };
        write.write_all(text.as_bytes()).await?;
        Ok(write.shutdown().await?)
    }
}

/// Asks the running daemon.
pub async fn ask(path: &Path, words: &[&str]) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(path)
        .await
        .with_context(|| format!("no felix answers at {}: is it running on this node?", path.display()))?;
    stream.write_all(format!("{}\n", words.join("\t")).as_bytes()).await?;
    let mut text = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut text))
        .await
        .with_context(|| format!("felix did not answer within {} s", DEADLINE.as_secs()))??;
    match text.strip_prefix(OK) {
        Some(text) => Ok(text.to_owned()),
        None if text.is_empty() => bail!("felix ended while it was asked"),
        None => bail!("{text}"),
    }
}
