//! What a run needs of this machine: said before it starts, not found out in the middle.

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Bytes per entry and node: a hash table's slot in the agents' client, and eight bytes of the value (keys are shared).
const PER_ENTRY: usize = 70;
/// Per node beside its entries: buffers of its connection, and entries under way.
const PER_NODE: usize = 1 << 20;

/// Raises the limit of descriptors to what is needed; fails if that is not allowed.
pub fn descriptors(needed: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of descriptors")?;
    ensure!(
        hard >= needed,
        "this run opens {needed} descriptors and {hard} are allowed: raise the limit (`ulimit -Hn {needed}`, or \
         LimitNOFILE= of the service) or simulate fewer nodes"
    );
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard).context("raising the limit of descriptors")?;
    }
    Ok(())
}

/// Fails if the nodes' state cannot fit into what is free.
pub fn memory(nodes: usize, entries: usize) -> Result<()> {
    let needed = nodes * (entries * PER_ENTRY + PER_NODE);
    let Some(free) = available() else { return Ok(()) };
    ensure!(
        needed < free,
        "{nodes} nodes that hold {entries} entries each take some {} MB, and {} MB are free: fewer nodes or \
         fewer pods",
        needed >> 20,
        free >> 20
    );
    Ok(())
}

fn available() -> Option<usize> {
    field(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:").map(|kb| kb << 10)
}

/// The most memory that this process has taken.
pub fn own_peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    field(&status, "VmHWM:").map_or(0.0, |kb| kb as f64 / 1e3)
}

/// The number behind a name, in files of /proc.
pub fn field(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line[name.len()..].split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_said_with_a_remedy() {
        assert!(memory(1, 10).is_ok());
        let error = memory(1_000_000, 1_000_000).expect_err("too large").to_string();
        assert!(error.contains("fewer nodes"), "{error}");
        let error = descriptors(u64::MAX).expect_err("too many").to_string();
        assert!(error.contains("ulimit -Hn") && error.contains("LimitNOFILE"), "{error}");
        assert_eq!(field("A: 1 kB\nMem: 20 kB\n", "Mem:"), Some(20));
    }
}
