//! Looks at the run once a second.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::fleet::Members;
use crate::latency::Latencies;
use crate::local::{Probe, metric};
use crate::report::{Sample, Served, ServerSample};

/// Seconds between words about how the run goes.
const PROGRESS: usize = 5;

/// The typhas of now: one that was restarted is another process.
#[derive(Clone, Default)]
pub struct Probes(Arc<Mutex<Vec<Probe>>>);

impl Probes {
    pub fn set(&self, probes: Vec<Probe>) {
        *self.lock() = probes;
    }

    fn all(&self) -> Vec<Probe> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Probe>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all of them have counted since they were started; `None` when there is nobody to ask.
    pub async fn served(&self) -> Option<Vec<(u32, Served)>> {
        let mut all = Vec::new();
        for probe in self.all() {
            let (Some(pid), Some(text)) = (probe.pid, probe.metrics().await) else { continue };
            let resumes = |verdict: &str| metric(&text, "typha_resumes_total", verdict).unwrap_or(0.0);
            let served = Served {
                sent_bytes: metric(&text, "typha_sent_bytes_total", "").unwrap_or(0.0),
                cpu_seconds: probe.usage().map_or(0.0, |(cpu, _)| cpu),
                by_delta: resumes("\"delta\""),
                by_digest: resumes("\"digest\""),
                by_snapshot: resumes("\"snapshot\""),
                listings: metric(&text, "typha_datastore_listings_total", "").unwrap_or(0.0),
            };
            all.push((pid, served));
        }
        (!all.is_empty()).then_some(all)
    }
}

/// What was counted between two looks, also by a process that began in between. What one counted that ended in
/// between is lost with it.
pub fn between(before: &[(u32, Served)], after: &[(u32, Served)]) -> Served {
    let mut sum = Served::default();
    for (pid, now) in after {
        let then = before.iter().find(|(known, _)| known == pid).map(|(_, then)| *then).unwrap_or_default();
        sum.sent_bytes += now.sent_bytes - then.sent_bytes;
        sum.cpu_seconds += now.cpu_seconds - then.cpu_seconds;
        sum.by_delta += now.by_delta - then.by_delta;
        sum.by_digest += now.by_digest - then.by_digest;
        sum.listings += now.listings - then.listings;
        sum.by_snapshot += now.by_snapshot - then.by_snapshot;
    }
    sum
}

/// Adds a sample to `samples` every second, for ever.
pub async fn run(
    members: Members,
    latencies: Arc<Latencies>,
    probes: Probes,
    samples: Arc<Mutex<Vec<Sample>>>,
) {
    let mut beats = tokio::time::interval(Duration::from_secs(1));
    let mut used: Vec<(u32, f64, Instant)> = Vec::new();
    loop {
        beats.tick().await;
        let mut servers = Vec::new();
        let mut now_used = Vec::new();
        for probe in probes.all() {
            let (Some(pid), Some((cpu, memory))) = (probe.pid, probe.usage()) else { continue };
            let now = Instant::now();
            let before = used.iter().find(|(known, ..)| *known == pid);
            let cpu_percent = before.map_or(0.0, |(_, before, at)| {
                100.0 * (cpu - before) / now.duration_since(*at).as_secs_f64().max(1e-3)
            });
            now_used.push((pid, cpu, now));
            servers.push(ServerSample { name: probe.name, cpu_percent, memory_mb: memory as f64 / 1e6 });
        }
        used = now_used;
        let in_sync = members.totals().in_sync;
        let used_mb: f64 = servers.iter().map(|server| server.memory_mb).sum();
        let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
        let second = samples.len();
        // The second that is over.
        let latency = latencies.between(second.saturating_sub(1)..second);
        if second > 0 && second.is_multiple_of(PROGRESS) {
            let all = members.len();
            let p99 = match latency.count {
                0 => String::new(),
                _ => format!("p99 {:.1} ms, ", latency.p99_ms),
            };
            eprintln!("{second:>6} s    {in_sync} of {all} in sync, {p99}typha {used_mb:.0} MB");
        }
        samples.push(Sample { second, in_sync, p50_ms: latency.p50_ms, p99_ms: latency.p99_ms, servers });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarted_server_counts_from_nothing() {
        let served = |sent_bytes, by_delta| Served { sent_bytes, by_delta, ..Served::default() };
        let before = [(1, served(100.0, 5.0)), (2, served(50.0, 0.0))];
        let after = [(1, served(130.0, 5.0)), (3, served(20.0, 7.0))];
        assert_eq!(between(&before, &after), served(50.0, 7.0));
    }
}
