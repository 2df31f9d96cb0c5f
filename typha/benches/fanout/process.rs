//! A server under measurement: this program once more, as a process of its own, so that what the clients use is not
//! counted.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::Context;

use crate::tls::Lab;

pub struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
    pub address: SocketAddr,
}

impl Process {
    pub fn start(role: &str, lab: Option<&Lab>) -> anyhow::Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).args(lab.map(|lab| lab.folder.path()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("the output of a server")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        Ok(Process { child, output, address: line.trim().parse().context("a server's address")? })
    }

    pub fn order(&mut self, numbers: &[u64]) -> anyhow::Result<()> {
        let words: Vec<String> = numbers.iter().map(u64::to_string).collect();
        writeln!(self.child.stdin.as_mut().context("the input of a server")?, "{}", words.join(" "))?;
        let mut line = String::new();
        tokio::task::block_in_place(|| self.output.read_line(&mut line))?;
        anyhow::ensure!(line.trim() == "done", "a server ended");
        Ok(())
    }

    /// CPU used so far, user and system, in microseconds.
    pub fn cpu(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        // utime and stime, in hundredths of a second.
        Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) * 10_000.0)
    }

    /// In MB: resident now (`VmRSS`), or the most there ever was (`VmHWM`).
    pub fn memory(&self, field: &str) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("memory of a server")?;
        let kib = line.trim_start_matches(':').split_whitespace().next().context("memory of a server")?;
        Ok(kib.parse::<f64>()? / 1_024.0)
    }

    /// From now on the most is counted anew (proc(5), clear_refs).
    pub fn forget_peak(&self) -> anyhow::Result<()> {
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
