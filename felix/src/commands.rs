//! The programs that felix runs (iptables, ipset, conntrack), behind a trait, so that tests can fail them.
//!
//! Every call has a deadline and is killed when it passes: a program that hangs on a lock must not hang the
//! dataplane. Nothing is retried here; callers know whether a retry is safe.

use std::process::Stdio;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::io::AsyncWriteExt as _;

/// Longer than iptables itself waits for its lock.
const DEADLINE: Duration = Duration::from_secs(60);

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
    /// Runs a program with `stdin` as its input and returns what it printed.
    async fn run(&self, program: &str, args: &[&str], stdin: &str) -> Result<String, CommandError>;
}

/// Real processes, in the caller's network namespace.
#[derive(Debug, Default)]
pub struct Processes {
    /// Added to the environment of every process.
    pub environment: Vec<(String, String)>,
}

#[async_trait]
impl Commands for Processes {
    async fn run(&self, program: &str, args: &[&str], stdin: &str) -> Result<String, CommandError> {
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
        let finished = async { tokio::join!(feed, child.wait_with_output()).1 };
        let output = match tokio::time::timeout(DEADLINE, finished).await {
            Err(_) => return Err(CommandError::TimedOut { command: command() }),
            Ok(output) => output.map_err(io)?,
        };
        tracing::trace!(program, ?args, elapsed_us = started.elapsed().as_micros() as u64, "program ended");
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(CommandError::Failed { command: command(), status: output.status.code().unwrap_or(-1), stderr })
    }
}
