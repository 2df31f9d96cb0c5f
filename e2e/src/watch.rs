//! What the kernel itself says happened: `ip monitor route` and `nft monitor`, with the time of each line.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::lab::Lab;
use crate::process::wait_for;

/// A running monitor in one namespace.
pub struct Monitor {
    child: Child,
    lines: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Monitor {
    /// Route changes.
    pub fn routes(lab: &Lab, netns: &str) -> Result<Monitor> {
        let fence = || {
            lab.sh(netns, "ip route add 203.0.113.1/32 dev lo && ip route del 203.0.113.1/32 dev lo")
                .map(drop)
        };
        Self::start(netns, &["ip", "monitor", "route"], "203.0.113.1", fence)
    }

    /// Rule, chain and set changes of nftables, which `iptables-nft` is a front to. Legacy tables have no such events.
    pub fn rules(lab: &Lab, netns: &str) -> Result<Monitor> {
        let fence =
            || lab.sh(netns, "nft add table ip bulrush_fence && nft delete table ip bulrush_fence").map(drop);
        Self::start(netns, &["nft", "monitor"], "bulrush_fence", fence)
    }

    // A monitor that has been started may not yet listen: it is ready once it has seen a change of our own
    // (`fence`), whose lines are left out.
    fn start(netns: &str, program: &[&str], mark: &str, fence: impl Fn() -> Result<()>) -> Result<Monitor> {
        let mut child = Command::new("ip")
            .args(["netns", "exec", netns, "stdbuf", "-oL"])
            .args(program)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start the monitor")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        let out = child.stdout.take().expect("stdout is piped");
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                sink.lock().expect("no holder panics").push((Instant::now(), line));
            }
        });
        let monitor = Monitor { child, lines };
        wait_for("the monitor to listen", Duration::from_secs(30), || {
            fence()?;
            anyhow::ensure!(monitor.lines().iter().any(|(_, l)| l.contains(mark)), "nothing seen yet");
            Ok(())
        })?;
        // Let the fence's last line arrive, then forget all of them.
        wait_for("the fence to pass", Duration::from_secs(30), || {
            let seen = monitor.lines().len();
            std::thread::sleep(Duration::from_millis(50));
            anyhow::ensure!(monitor.lines().len() == seen, "still arriving");
            Ok(())
        })?;
        monitor.lines.lock().expect("no holder panics").clear();
        Ok(monitor)
    }

    pub fn lines(&self) -> Vec<(Instant, String)> {
        self.lines.lock().expect("no holder panics").clone()
    }

    /// Lines that speak of something taken away.
    pub fn deletions(&self) -> Vec<String> {
        self.lines()
            .into_iter()
            .map(|(_, line)| line)
            .filter(|line| line.starts_with("Deleted ") || line.starts_with("delete "))
            .collect()
    }

    /// When the first line that contains `text` came.
    pub fn first(&self, text: &str) -> Option<Instant> {
        self.lines().into_iter().find(|(_, line)| line.contains(text)).map(|(at, _)| at)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
