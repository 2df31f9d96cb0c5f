//! The programs that felix runs (iptables, ipset, conntrack), behind a trait, so that tests can fail them.
//!
//! Every call has a deadline and is killed when it passes: a program that hangs on a lock must not hang the
//! dataplane. Nothing is retried here; callers know whether a retry is safe.

use std::process::Stdio;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

/// Longer than iptables itself waits for its lock.
const DEADLINE: Duration = Duration::from_secs(60);
/// As much as a pipe holds, in bytes.
const PIPE: usize = 65_536;

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("{program} is not installed: install the package that holds it")]
    Missing { program: String },
    #[error("`{command}` failed with status {status}: {stderr}")]
    Failed { command: String, status: i32, stderr: String },
    #[error("`{command}` did not end within {} s", DEADLINE.as_secs())]
    TimedOut { command: String },
    #[error("`{command}` could not be run: {source}")]
    Io { command: String, source: std::io::Error },
}

#[async_trait]
pub trait Commands: Send + Sync {
    /// Runs a program with `stdin` as its input and hands over each line that it prints, without its end, as it comes:
    /// what a kernel's sets and rules are in text is many times what they are. After an error what came is a part.
    async fn lines(
        &self,
        program: &str,
        args: &[&str],
        stdin: &str,
        line: &mut OnLine<'_>,
    ) -> Result<(), CommandError>;

    /// The same, for what is small: returns all that was printed.
    async fn run(&self, program: &str, args: &[&str], stdin: &str) -> Result<String, CommandError> {
        let mut printed = String::new();
        let mut line = |line: &str| {
            printed.push_str(line);
            printed.push('\n');
        };
        self.lines(program, args, stdin, &mut line).await?;
        Ok(printed)
    }
}

pub type OnLine<'a> = dyn FnMut(&str) + Send + 'a;

/// Real processes, in the caller's network namespace.
#[derive(Debug, Default)]
pub struct Processes {
    /// Added to the environment of every process.
    pub environment: Vec<(String, String)>,
}

#[async_trait]
impl Commands for Processes {
    async fn lines(
        &self,
        program: &str,
        args: &[&str],
        stdin: &str,
        line: &mut OnLine<'_>,
    ) -> Result<(), CommandError> {
        let command = || format!("{program} {}", args.join(" "));
        let io = |source| CommandError::Io { command: command(), source };
        let started = Instant::now();
        let mut child = tokio::process::Command::new(program)
            .args(args)
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::NotFound => CommandError::Missing { program: program.into() },
                _ => io(source),
            })?;
        let input = child.stdin.take();
        let feed = async move {
            if let Some(mut input) = input {
                // A program that stops reading reports why by its exit status; a broken pipe says less.
                if let Err(error) = input.write_all(stdin.as_bytes()).await {
                    tracing::debug!(program, %error, "program stopped reading its input");
                }
            }
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let finished = async {
            let (_, printed, complaint, status) =
                tokio::join!(feed, each_line(stdout, line), all(stderr), child.wait());
            printed.and(status).and_then(|status| Ok((status, complaint?)))
        };
        let (status, complaint) = match tokio::time::timeout(DEADLINE, finished).await {
            Err(_) => return Err(CommandError::TimedOut { command: command() }),
            Ok(finished) => finished.map_err(io)?,
        };
        tracing::trace!(program, ?args, elapsed_us = started.elapsed().as_micros() as u64, "program ended");
        if status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&complaint).trim().to_owned();
        Err(CommandError::Failed { command: command(), status: status.code().unwrap_or(-1), stderr })
    }
}

async fn each_line(source: Option<impl AsyncRead + Unpin>, line: &mut OnLine<'_>) -> std::io::Result<()> {
    let Some(source) = source else { return Ok(()) };
    let mut source = BufReader::with_capacity(PIPE, source);
    let mut bytes = Vec::new();
    while source.read_until(b'\n', &mut bytes).await? > 0 {
        line(String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(&bytes)).as_ref());
        bytes.clear();
    }
    Ok(())
}

async fn all(source: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut source) = source {
        source.read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str) -> (Vec<String>, Result<(), CommandError>) {
        let mut lines = Vec::new();
        let mut line = |line: &str| lines.push(line.to_owned());
        let result = Processes::default().lines("sh", &["-c", script], "in\n", &mut line).await;
        (lines, result)
    }

    #[tokio::test]
    async fn each_line_comes_once_and_the_last_needs_no_end() {
        let (lines, result) = shell("cat; printf '\\n\\377b\\nlast'; echo aside >&2").await;
        result.unwrap();
        assert_eq!(lines, ["in", "", "\u{fffd}b", "last"]);
    }

    #[tokio::test]
    async fn a_failure_has_status_and_complaint() {
        let (lines, result) = shell("echo one; echo no >&2; exit 3").await;
        assert_eq!(lines, ["one"]);
        assert_eq!(
            result.unwrap_err().to_string(),
            "`sh -c echo one; echo no >&2; exit 3` failed with status 3: no"
        );
    }

    #[tokio::test]
    async fn what_is_not_installed_is_named() {
        let error = Processes::default().run("no-such-program", &[], "").await.unwrap_err();
        assert!(
            matches!(&error, CommandError::Missing { program } if program == "no-such-program"),
            "{error}"
        );
    }
}
