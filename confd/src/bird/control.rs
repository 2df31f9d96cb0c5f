//! Client of BIRD's control socket.
//!
//! A reply is a run of lines `NNNN-text`, or ` text` under the same code, ended by `NNNN text`. Codes from
//! 8000 are errors. Every exchange has a deadline: a BIRD that is stopped must not stop its supervisor. After
//! an error the connection is out of step, so drop it and connect again.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::sessions::{self, Session};
use crate::render::MARKER;

const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Reading a configuration of thousands of peers on a busy machine.
const CONFIGURE_TIMEOUT: Duration = Duration::from_secs(60);
/// `show protocols all` prints about 1 KB per peer.
const MAX_REPLY_BYTES: usize = 64 << 20;

const WELCOME: u16 = 1;
const READING: u16 = 2;
const RECONFIGURED: u16 = 3;
const IN_PROGRESS: u16 = 4;
const QUEUED: u16 = 5;
const EVALUATED: u16 = 23;
const FIRST_ERROR: u16 = 8000;
const CONFIG_ERROR: u16 = 8002;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no BIRD answers at {}: {source}; is it running, with -s naming this socket?", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("BIRD's control socket failed at {command:?}: {source}")]
    Io { command: String, source: io::Error },
    #[error("BIRD did not answer {command:?} within {} s", after.as_secs())]
    Timeout { command: String, after: Duration },
    #[error("BIRD closed its control socket at {command:?}")]
    Closed { command: String },
    #[error("BIRD's answer to {command:?} is not understood: {line:?}")]
    Garbled { command: String, line: String },
    #[error("BIRD refuses its configuration: {0}")]
    Refused(String),
    #[error("BIRD answers {command:?} with {code:04} {text}")]
    Failed { command: String, code: u16, text: String },
}

/// One line of a reply with the code that it stands under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyLine {
    pub code: u16,
    pub text: String,
}

/// A complete reply; the last line's code says how it went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub lines: Vec<ReplyLine>,
}

impl Reply {
    /// The code of the last line.
    pub fn code(&self) -> u16 {
        self.lines.last().map_or(0, |line| line.code)
    }

    /// The text of the last line.
    pub fn text(&self) -> &str {
        self.lines.last().map_or("", |line| &line.text)
    }

    /// Takes a line in; `Ok(true)` when it ends the reply.
    fn push(&mut self, line: &str) -> Result<bool, ()> {
        if let Some(text) = line.strip_prefix(' ') {
            let code = self.lines.last().ok_or(())?.code;
            self.lines.push(ReplyLine { code, text: text.to_owned() });
            return Ok(false);
        }
        // A line that starts with `+` was not asked for.
        if line.starts_with('+') {
            return Ok(false);
        }
        let (code, rest) = line.split_at_checked(4).ok_or(())?;
        let code = code.parse().map_err(|_| ())?;
        let mut rest = rest.chars();
        let last = match rest.next() {
            Some(' ') | None => true,
            Some('-') => false,
            Some(_) => return Err(()),
        };
        self.lines.push(ReplyLine { code, text: rest.as_str().to_owned() });
        Ok(last)
    }
}

/// What `show status` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub version: String,
    pub last_reboot: String,
    pub last_reconfiguration: String,
    pub reconfiguring: bool,
    pub graceful_restart: bool,
}

/// A connection to BIRD.
pub struct Control {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Control {
    pub async fn connect(path: &Path) -> Result<Control, ControlError> {
        let failed = |source| ControlError::Connect { path: path.to_owned(), source };
        let stream = match timeout(EXCHANGE_TIMEOUT, UnixStream::connect(path)).await {
            Ok(stream) => stream.map_err(failed)?,
            Err(_) => return Err(failed(io::Error::from(io::ErrorKind::TimedOut))),
        };
        let (reader, writer) = stream.into_split();
        let mut control = Control { reader: BufReader::new(reader), writer };
        let welcome = control.reply("", EXCHANGE_TIMEOUT).await?;
        if welcome.code() != WELCOME {
            return Err(ControlError::Garbled { command: String::new(), line: welcome.text().to_owned() });
        }
        Ok(control)
    }

    /// Sends a command and reads its whole reply; an error code is an error.
    pub async fn command(&mut self, command: &str) -> Result<Reply, ControlError> {
        let reply = self.exchange(command, EXCHANGE_TIMEOUT).await?;
        if reply.code() >= FIRST_ERROR {
            return Err(ControlError::Failed {
                command: command.to_owned(),
                code: reply.code(),
                text: reply.text().to_owned(),
            });
        }
        Ok(reply)
    }

    /// Has BIRD read its configuration file again; the answer is which file that is. BIRD may still be taking
    /// protocols up and down: `Status::reconfiguring` tells.
    pub async fn configure(&mut self) -> Result<String, ControlError> {
        let reply = self.exchange("configure", CONFIGURE_TIMEOUT).await?;
        match reply.code() {
            RECONFIGURED | IN_PROGRESS | QUEUED => {
                let reading = reply.lines.iter().find(|line| line.code == READING);
                let file = reading.and_then(|line| line.text.strip_prefix("Reading configuration from "));
                Ok(file.unwrap_or_default().to_owned())
            }
            CONFIG_ERROR => Err(ControlError::Refused(reply.text().to_owned())),
            code => Err(ControlError::Failed {
                command: "configure".to_owned(),
                code,
                text: reply.text().to_owned(),
            }),
        }
    }

    /// The marker of the configuration that BIRD runs; none if that is not one of ours.
    pub async fn running_marker(&mut self) -> Result<Option<String>, ControlError> {
        let reply = self.exchange(&format!("eval {MARKER}"), EXCHANGE_TIMEOUT).await?;
        Ok((reply.code() == EVALUATED).then(|| reply.text().trim().to_owned()))
    }

    pub async fn status(&mut self) -> Result<Status, ControlError> {
        Ok(parse_status(&self.command("show status").await?))
    }

    /// The BGP sessions; with `routes`, also how many routes each took and gave.
    pub async fn sessions(&mut self, routes: bool) -> Result<Vec<Session>, ControlError> {
        let command = if routes { "show protocols all" } else { "show protocols" };
        Ok(sessions::parse(&self.command(command).await?))
    }

    async fn exchange(&mut self, command: &str, limit: Duration) -> Result<Reply, ControlError> {
        let write = async {
            self.writer.write_all(command.as_bytes()).await?;
            self.writer.write_all(b"\n").await
        };
        match timeout(limit, write).await {
            Ok(Ok(())) => {}
            Ok(Err(source)) => return Err(ControlError::Io { command: command.to_owned(), source }),
            Err(_) => return Err(ControlError::Timeout { command: command.to_owned(), after: limit }),
        }
        self.reply(command, limit).await
    }

    async fn reply(&mut self, command: &str, limit: Duration) -> Result<Reply, ControlError> {
        let read = async {
            let mut reply = Reply::default();
            let mut bytes = 0;
            let mut raw = Vec::new();
            loop {
                raw.clear();
                let read = self
                    .reader
                    .read_until(b'\n', &mut raw)
                    .await
                    .map_err(|source| ControlError::Io { command: command.to_owned(), source })?;
                if read == 0 {
                    return Err(ControlError::Closed { command: command.to_owned() });
                }
                bytes += read;
                let line = String::from_utf8_lossy(&raw);
                let line = line.trim_end_matches(['\n', '\r']);
                match reply.push(line) {
                    Ok(true) => return Ok(reply),
                    Ok(false) if bytes <= MAX_REPLY_BYTES => {}
                    _ => {
                        return Err(ControlError::Garbled {
                            command: command.to_owned(),
                            line: line.chars().take(200).collect(),
                        });
                    }
                }
            }
        };
        match timeout(limit, read).await {
            Ok(result) => result,
            Err(_) => Err(ControlError::Timeout { command: command.to_owned(), after: limit }),
        }
    }
}

fn parse_status(reply: &Reply) -> Status {
    let mut status = Status::default();
    for line in &reply.lines {
        let text = line.text.trim();
        if let Some(version) = text.strip_prefix("BIRD ") {
            status.version = version.to_owned();
        } else if let Some(when) = text.strip_prefix("Last reboot on ") {
            status.last_reboot = when.to_owned();
        } else if let Some(when) = text.strip_prefix("Last reconfiguration on ") {
            status.last_reconfiguration = when.to_owned();
        } else if text.starts_with("Reconfiguration in progress") {
            status.reconfiguring = true;
        }
        status.graceful_restart |= line.code == 24;
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Reply {
        let mut reply = Reply::default();
        let ended = text.lines().map(|line| reply.push(line).unwrap()).collect::<Vec<bool>>();
        assert!(ended.last().unwrap(), "the reply has an end");
        assert!(ended[..ended.len() - 1].iter().all(|ended| !ended), "and only one");
        reply
    }

    #[test]
    fn a_reply_ends_at_the_line_whose_code_has_no_dash() {
        let reply = reply("0002-Reading configuration from /x\n8002 /x:3:1 syntax error");
        assert_eq!((reply.code(), reply.text()), (8002, "/x:3:1 syntax error"));
        assert_eq!(reply.lines[0].code, 2);
    }

    #[test]
    fn indented_lines_stand_under_the_code_above_them() {
        let reply = reply("1002-one\n     two\n0000 ");
        assert_eq!(reply.lines[1], ReplyLine { code: 1002, text: "    two".into() });
        assert_eq!(reply.code(), 0);
    }

    #[test]
    fn nonsense_is_an_error_and_not_a_panic() {
        for line in ["", "x", "12", "abcd text", "0001xtext", " first", "é€…"] {
            assert!(Reply::default().push(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn status_is_read_with_and_without_a_graceful_restart() {
        let plain = "1000-BIRD 2.0.12\n1011-Router ID is 10.0.0.1\n     Last reboot on 2026-01-01 10:00:00.000\n     Last reconfiguration on 2026-01-02 10:00:00.000\n0013 Daemon is up and running";
        let status = parse_status(&reply(plain));
        assert_eq!(status.version, "2.0.12");
        assert_eq!(status.last_reboot, "2026-01-01 10:00:00.000");
        assert_eq!(status.last_reconfiguration, "2026-01-02 10:00:00.000");
        assert!(!status.reconfiguring && !status.graceful_restart);
        let busy =
            "1000-BIRD 2.0.12\n0024-Graceful restart recovery in progress\n0013 Reconfiguration in progress";
        let status = parse_status(&reply(busy));
        assert!(status.reconfiguring && status.graceful_restart);
    }
}
