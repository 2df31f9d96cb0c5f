//! Child processes that never outlive their owner, with their output in a file.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running program; killed when dropped, unless released.
pub struct Process {
    pub name: String,
    pub log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Starts `command`; its output is appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Process> {
        let out = File::options().create(true).append(true).open(log).context("open log")?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        // Its own process group: Ctrl-C at the terminal goes to the lab's owner, which then stops them in order.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("start {name}: {command:?}"))?;
        Ok(Process { name: name.into(), log: log.into(), child: Some(child) })
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("not running")?;
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        Ok(())
    }

    /// Fails with the log's end if the program has ended.
    pub fn check(&mut self) -> Result<()> {
        let Some(child) = self.child.as_mut() else { bail!("{} is not running", self.name) };
        if let Some(status) = child.try_wait()? {
            bail!("{} ended: {status}\n{}", self.name, tail(&self.log, 30));
        }
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// SIGTERM, then SIGKILL after `grace`. Says whether it ended by itself.
    pub fn stop(&mut self, grace: Duration) -> bool {
        if self.signal(Signal::SIGTERM).is_err() {
            return true;
        }
        let deadline = Instant::now() + grace;
        while Instant::now() < deadline {
            match self.child.as_mut().map(Child::try_wait) {
                Some(Ok(None)) => std::thread::sleep(Duration::from_millis(10)),
                _ => {
                    self.child = None;
                    return true;
                }
            }
        }
        self.kill();
        false
    }

    /// Lets it run on after this owner is gone.
    pub fn release(mut self) -> Option<u32> {
        self.child.take().map(|child| child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a file, for error messages.
pub fn tail(path: &Path, lines: usize) -> String {
    let mut text = String::new();
    if let Ok(mut file) = File::open(path) {
        file.read_to_string(&mut text).ok();
    }
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Runs a command to its end and returns what it printed; an error carries what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    if !out.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// How long anything may take on a busy two-core machine; in a virtual machine whose processor is emulated, longer.
pub fn patience() -> Duration {
    Duration::from_secs(if crate::require::is_vm() { 300 } else { 60 })
}

/// Polls until `condition` gives a value; the error names `what` and its last reason.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waited {limit:?} for: {what}")));
            }
            // A look costs an emulated processor a good part of a second.
            Err(_) => {
                std::thread::sleep(Duration::from_millis(if crate::require::is_vm() { 500 } else { 20 }))
            }
        }
    }
}
