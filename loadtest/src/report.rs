//! What a run found: as a table for the terminal, and as `report.json` for `loadtest compare`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::latency::Percentiles;
use crate::shape::Shape;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub version: String,
    pub command: String,
    pub seed: u64,
    pub started_unix_seconds: u64,
    pub machine: Machine,
    /// `bulrush`, or `calico-typha`.
    #[serde(default)]
    pub protocol: String,
    pub nodes: usize,
    pub typhas: usize,
    /// Of the synthetic cluster; absent when the run only followed what was there.
    pub shape: Option<Shape>,
    /// That each node held at the end.
    pub entries: usize,
    /// The most memory that the load generator itself took.
    #[serde(default)]
    pub own_peak_mb: f64,
    pub phases: Vec<PhaseResult>,
    /// What the traffic of a phase costs with other servers; the first is typha itself.
    #[serde(default)]
    pub baselines: Vec<Baseline>,
    pub samples: Vec<Sample>,
    /// Beside the simulated ones.
    #[serde(default)]
    pub real: Option<RealNodes>,
    /// Empty = every node held what the datastore held after every phase, and no rule was broken.
    pub failures: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub cpus: usize,
    pub memory_mb: usize,
    pub kernel: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PhaseResult {
    pub phase: String,
    pub seconds: f64,
    /// Of the run, when its checks were done.
    #[serde(default)]
    pub until_second: usize,
    /// From the end of the phase until every node held what the datastore held. Absent: not in time.
    pub settled_ms: Option<f64>,
    /// Changes written to the datastore.
    pub writes: u64,
    /// Received by all nodes together: messages with changes, and changes.
    #[serde(default)]
    pub messages: u64,
    pub updates: u64,
    pub deletions: u64,
    pub disconnects: u64,
    /// Of those, by servers that named where to go.
    #[serde(default)]
    pub sent_on: u64,
    pub latency: Percentiles,
    /// By all nodes together, as they came over the wire: where the servers do not say what they sent.
    #[serde(default)]
    pub received_bytes: Option<u64>,
    /// What the typhas counted meanwhile, where they could be asked.
    pub servers: Option<Served>,
    #[serde(default)]
    pub real: Option<RealPhase>,
}

/// What the real nodes did in a phase.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RealPhase {
    /// From the writing of a policy's edit until a node's felix had acknowledged it: it is in the kernel.
    pub applied: Percentiles,
    /// From the end of the phase until every felix had acknowledged everything. Absent: not in time.
    pub settled_ms: Option<f64>,
}

/// The real nodes of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RealNodes {
    pub nodes: usize,
    /// Whether they ran confd and BIRD, too.
    pub confd: bool,
    pub applied: Percentiles,
    /// How often a kernel was compared with the cluster.
    pub compared: usize,
    pub usage: Vec<RealUsage>,
}

/// Of a node's felix, all its processes together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RealUsage {
    pub node: String,
    pub felix_cpu_seconds: f64,
    pub felix_peak_mb: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Served {
    pub sent_bytes: f64,
    #[serde(default)]
    pub cpu_seconds: f64,
    pub by_delta: f64,
    pub by_digest: f64,
    pub by_snapshot: f64,
    /// Of the datastore, by typhas.
    #[serde(default)]
    pub listings: f64,
}

/// What a server used for the traffic of a phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Baseline {
    pub server: String,
    pub phase: String,
    pub messages: u64,
    pub message_bytes: usize,
    pub cpu_us_per_message: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// A second of the run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    pub second: usize,
    pub in_sync: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub servers: Vec<ServerSample>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerSample {
    pub name: String,
    /// Of one processor.
    pub cpu_percent: f64,
    pub memory_mb: f64,
}

impl Machine {
    pub fn here() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Machine {
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mb: crate::limits::field(&text("/proc/meminfo"), "MemTotal:").unwrap_or(0) >> 10,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl PhaseResult {
    /// By the servers, to all nodes.
    pub fn sent_bytes(&self) -> Option<f64> {
        let received = self.received_bytes.map(|bytes| bytes as f64);
        self.servers.map(|served| served.sent_bytes).or(received)
    }

    /// What a stream that began in this phase cost. None where changes were sent as well: they are not told apart.
    pub fn bytes_per_stream(&self) -> Option<f64> {
        // A server that does not count its streams: each that ended is taken to have come back.
        let counted = self.servers.map(|served| served.by_delta + served.by_digest + served.by_snapshot);
        let begun = counted.unwrap_or(self.disconnects as f64);
        self.sent_bytes().filter(|_| self.writes == 0 && begun > 0.0).map(|bytes| bytes / begun)
    }
}

impl std::fmt::Display for RealNodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cpu: f64 = self.usage.iter().map(|usage| usage.felix_cpu_seconds).sum();
        let peak = self.usage.iter().map(|usage| usage.felix_peak_mb).fold(0.0, f64::max);
        write!(
            f,
            "{} real nodes ({}): policy edits in the kernel: {}; kernels compared {} times; felix {peak:.0} MB at most, {:.1} s of CPU each",
            self.nodes,
            if self.confd { "felix, confd, BIRD" } else { "felix; BIRD is not installed" },
            self.applied,
            self.compared,
            cpu / self.usage.len().max(1) as f64
        )
    }
}

impl Report {
    pub fn read(path: &Path) -> Result<Report> {
        let path = if path.is_dir() { path.join("report.json") } else { path.to_owned() };
        let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no report of loadtest", path.display()))
    }

    /// Most memory of all typhas together during a phase, by its place.
    pub fn peak_mb(&self, phase: usize) -> Option<f64> {
        let until = self.phases.get(phase)?.until_second;
        let from = phase.checked_sub(1).map_or(0, |before| self.phases[before].until_second);
        let during = self.samples.iter().filter(|sample| (from..=until).contains(&sample.second));
        let sums = during.map(|sample| sample.servers.iter().map(|server| server.memory_mb).sum::<f64>());
        sums.reduce(f64::max)
    }

    /// Largest memory and mean CPU of all typhas together.
    pub fn servers(&self) -> Option<(f64, f64)> {
        let sum = |sample: &Sample, of: fn(&ServerSample) -> f64| sample.servers.iter().map(of).sum::<f64>();
        let measured: Vec<&Sample> =
            self.samples.iter().filter(|sample| !sample.servers.is_empty()).collect();
        let memory = measured.iter().map(|sample| sum(sample, |server| server.memory_mb)).reduce(f64::max)?;
        let cpu: f64 = measured.iter().map(|sample| sum(sample, |server| server.cpu_percent)).sum();
        Some((memory, cpu / measured.len() as f64))
    }

    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut line = |words: String| {
            _ = writeln!(text, "{words}");
        };
        line(format!(
            "{:<34} {:>8} {:>8} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "PHASE", "SECONDS", "WRITES", "RECEIVED", "P50 ms", "P99 ms", "MAX ms", "SETTLED", "SENT MB"
        ));
        for phase in &self.phases {
            let of = |value: f64| if phase.latency.count == 0 { "-".into() } else { format!("{value:.1}") };
            let settled = phase.settled_ms.map_or("NEVER".into(), |ms| format!("{ms:.0} ms"));
            let sent = phase.sent_bytes().map_or("-".into(), |bytes| format!("{:.2}", bytes / 1e6));
            line(format!(
                "{:<34} {:>8.1} {:>8} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9}",
                phase.phase,
                phase.seconds,
                phase.writes,
                phase.updates,
                of(phase.latency.p50_ms),
                of(phase.latency.p99_ms),
                of(phase.latency.max_ms),
                settled,
                sent
            ));
            if phase.disconnects > 0 {
                let resumed = phase.servers.map(|Served { by_delta, by_digest, by_snapshot, .. }| {
                    format!("; then {by_delta} by delta, {by_digest} by digest, {by_snapshot} by snapshot")
                });
                let each =
                    phase.bytes_per_stream().map(|bytes| format!("; {bytes:.0} B for each that began"));
                line(format!(
                    "  {} streams ended ({} sent on){}; {} deletions{}",
                    phase.disconnects,
                    phase.sent_on,
                    resumed.unwrap_or_default(),
                    phase.deletions,
                    each.unwrap_or_default()
                ));
            }
            if let Some(RealPhase { applied, settled_ms }) = &phase.real {
                let settled = settled_ms.map_or("not in time".into(), |ms| format!("after {ms:.0} ms"));
                let applied =
                    (applied.count > 0).then(|| format!("; an edit of a policy in their kernels {applied}"));
                line(format!("  real nodes in step {settled}{}", applied.unwrap_or_default()));
            }
        }
        if let Some((memory, cpu)) = self.servers() {
            line(format!(
                "typha: {memory:.0} MB at most, {cpu:.0} % of one CPU on average ({} together); loadtest itself {:.0} MB",
                self.typhas, self.own_peak_mb
            ));
        }
        if let Some(real) = &self.real {
            line(real.to_string());
        }
        if let [typha, others @ ..] = self.baselines.as_slice() {
            line(format!(
                "{}: typha {:.1} µs of CPU per message of {} B, following etcd and converting included",
                typha.phase, typha.cpu_us_per_message, typha.message_bytes
            ));
            for other in others {
                line(format!(
                    "  {}: {:.1} µs per message of {} B, p50 {:.1} ms, p99 {:.1} ms; typha costs {:.2} × that",
                    other.server,
                    other.cpu_us_per_message,
                    other.message_bytes,
                    other.p50_ms,
                    other.p99_ms,
                    typha.cpu_us_per_message / other.cpu_us_per_message
                ));
            }
        }
        if self.failures.is_empty() {
            line(format!(
                "PASSED: {0} of {0} nodes held what they should after every phase ({1} entries)",
                self.nodes, self.entries
            ));
        } else {
            line(format!("FAILED, seed {}:", self.seed));
            for failure in &self.failures {
                line(format!("  {failure}"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_costs_what_was_sent_to_those_that_began() {
        let served =
            |by_delta, by_snapshot| Served { sent_bytes: 1000.0, by_delta, by_snapshot, ..Served::default() };
        let phase = |writes, servers| PhaseResult {
            writes,
            servers,
            disconnects: 1,
            received_bytes: Some(700),
            ..PhaseResult::default()
        };
        // Of a join, next to none ends.
        assert_eq!(phase(0, Some(served(3.0, 2.0))).bytes_per_stream(), Some(200.0));
        assert_eq!(phase(0, None).bytes_per_stream(), Some(700.0), "nobody counted but the nodes");
        assert_eq!(phase(0, Some(served(0.0, 0.0))).bytes_per_stream(), None);
        assert_eq!(phase(1, Some(served(3.0, 2.0))).bytes_per_stream(), None, "changes were sent as well");
    }
}
