//! What a run needs of this machine: said before it starts, not found out in the middle.

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Bytes per entry and node: a hash table's slot in the agents' client, and eight bytes of the value (keys are shared).
const PER_ENTRY: usize = 70;
/// Per node beside its entries: buffers of its connection, and entries under way.
const PER_NODE: usize = 1 << 20;

/// Raises the limit of descriptors to what is needed; fails if that is not allowed.
pub fn descriptors(needed: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of descriptors")?;
    // Root may raise the hard limit, too, up to fs.nr_open.
    if soft < needed && setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed)).is_err() {
        bail!(
            "this run opens {needed} descriptors and {hard} are allowed: raise the limit (`ulimit -Hn {needed}`, or \
             LimitNOFILE= of the service; beyond {}, which is fs.nr_open, that, too) or simulate fewer nodes",
            number("/proc/sys/fs/nr_open").map_or("?".into(), |most| most.to_string())
        );
    }
    Ok(())
}

/// Fails if one address of this machine cannot hold so many streams to one server: after a failover all are with one.
pub fn ports(nodes: usize) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(PORTS) else { return Ok(()) };
    let ends: Vec<usize> = text.split_whitespace().filter_map(|end| end.parse().ok()).collect();
    let [first, last] = ends.as_slice() else { return Ok(()) };
    enough_ports(nodes, *first, *last)
}

fn enough_ports(nodes: usize, first: usize, last: usize) -> Result<()> {
    let there = (last + 1).saturating_sub(first);
    ensure!(
        nodes <= there,
        "{nodes} nodes may have to be with one server, and this machine has {there} ports for that ({first} to {last}): \
         widen them (`sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"`) or simulate fewer nodes"
    );
    Ok(())
}

fn number(file: &str) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
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
        assert!(enough_ports(28_232, 32_768, 60_999).is_ok());
        let error = enough_ports(28_233, 32_768, 60_999).expect_err("too many").to_string();
        assert!(error.contains("28232 ports") && error.contains("ip_local_port_range"), "{error}");
        assert_eq!(field("A: 1 kB\nMem: 20 kB\n", "Mem:"), Some(20));
    }
}
