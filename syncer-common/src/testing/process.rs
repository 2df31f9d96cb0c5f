//! A server process of a test: its output in a file, ended in good order or at once, stopped and continued.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const STOP: Duration = Duration::from_secs(10);

/// Killed when dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts it; what it prints is appended to `log`.
    pub fn spawn(command: &mut Command, log: &Path) -> io::Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(Self { child })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn exited(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end (SIGTERM), and kills it when it takes too long.
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + STOP;
        while !self.exited() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops its clock (SIGSTOP): connections stay open, nothing answers. A signal reaches the threads one by
    /// one, and until then they go on answering: this waits for the last of them.
    ///
    /// # Panics
    /// When it does not stop.
    pub async fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        let deadline = Instant::now() + STOP;
        while !all_threads_stopped(self.id()) {
            assert!(Instant::now() < deadline, "process {} did not stop on SIGSTOP", self.id());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.id()).expect("process ids fit in i32");
        // Fails only for a process that is gone already.
        kill(Pid::from_raw(pid), signal).ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Whether each thread is in state `T` (proc(5): the field after the parenthesised name).
fn all_threads_stopped(pid: u32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    tasks.flatten().all(|task| match std::fs::read_to_string(task.path().join("stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')),
        Err(_) => true,
    })
}
