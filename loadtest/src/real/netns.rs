//! Networks of a run's own. They have no names: each goes with the last process and descriptor in it, so nothing is left
//! behind however the run ends, and no other lab on the machine can meet them.

use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// Where the run's servers are, in the network of the nodes' own addresses.
pub const SERVERS: Ipv4Addr = Ipv4Addr::new(172, 16, 255, 254);
const BRIDGE: &str = "fabric";

/// Takes this process into a network with nothing in it but loopback and the bridge that nodes are attached to. While
/// it has one thread: those that begin later are born there, those of before would stay where they are.
pub fn leave() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("--real makes network namespaces: run it as root")?;
    ip(&format!(
        "link set lo up\nlink add {BRIDGE} type bridge mcast_snooping 0\nlink set {BRIDGE} up\n\
         addr add {SERVERS}/16 dev {BRIDGE}\n"
    ))
}

/// A node's.
pub struct Namespace(File);

impl Namespace {
    /// Attached to the bridge with this address.
    pub fn attached(number: usize, address: &str) -> Result<Self> {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            File::open("/proc/thread-self/ns/net").context("opening it")
        });
        let namespace = Namespace(made.join().map_err(|_| anyhow!("the thread that makes it panicked"))??);
        let there = format!("/proc/{}/fd/{}", std::process::id(), namespace.0.as_raw_fd());
        ip(&format!(
            "link add node{number} type veth peer name eth0 netns {there}\nlink set node{number} master {BRIDGE} up\n"
        ))?;
        let inside = format!(
            "link set lo up\nlink set eth0 up\naddr add {address} dev eth0\nroute add default via {SERVERS}\n"
        );
        namespace.inside(|| ip(&inside))?;
        Ok(namespace)
    }

    /// Calls `f` on a thread in the namespace; what it starts is there, too.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
                f()
            });
            thread.join().map_err(|_| anyhow!("a thread in a network namespace panicked"))?
        })
    }
}

/// Lines of `ip -batch`, in the network of the calling thread.
pub fn ip(batch: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip: install the package iproute2")?;
    child.stdin.take().context("stdin is piped")?.write_all(batch.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "ip -batch: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// What a command printed, run in the network of the calling thread.
pub fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}: {}", output.status, words.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
