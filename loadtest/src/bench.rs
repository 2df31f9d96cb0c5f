//! `loadtest bench`: runs what design §8 asks of typha, and writes what was measured into docs/performance.md.
//!
//! Every number is of a run of this program (or of `typha/benches/fanout.rs`) on this machine; what was not run has
//! no number. The rest of the file is written by hand and stays as it is.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::report::{Machine, PhaseResult, Report};

const BEGIN: &str = "<!-- begin of what `make bench` measured -->";
const END: &str = "<!-- end of what `make bench` measured -->";

/// What `cargo bench --bench fanout` says in its last line.
#[derive(Deserialize)]
struct Fanout {
    streams: usize,
    /// Small messages, large ones, and large ones compressed; raw TCP is uncompressed.
    steady: [Steady; 3],
    /// The same with mTLS, beside raw TLS.
    tls: [Steady; 3],
    snapshot: Snapshot,
    memory: Memory,
    idle_kb: f64,
    idle_tls_kb: f64,
    sustained: Option<Sustained>,
}

#[derive(Deserialize)]
struct Steady {
    bytes: u64,
    typha: Cost,
    raw: Cost,
    bare: Option<Cost>,
}

#[derive(Clone, Copy, Deserialize)]
struct Cost {
    cpu_us: f64,
    p50_ms: f64,
    p99_ms: f64,
}

#[derive(Deserialize)]
struct Snapshot {
    streams: usize,
    /// Of server CPU per stream.
    plain_ms: f64,
    compressed_ms: f64,
    raw_ms: f64,
    compressed_s: f64,
    raw_s: f64,
    /// Bytes on the wire, compressed to plain.
    wire: f64,
    store_over_payload: f64,
}

#[derive(Deserialize)]
struct Memory {
    steady_mb: f64,
    peak_mb: f64,
}

#[derive(Deserialize)]
struct Sustained {
    streams: usize,
    updates_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_percent: f64,
    behind_ms: f64,
}

struct Row {
    what: String,
    target: &'static str,
    measured: String,
    beside: String,
    command: String,
}

/// Runs everything, and puts the table into `file`. Fails when a run did not pass.
pub fn bench(fanout: &Path, demo: Option<&Path>, file: &Path, reports: &Path, long: bool) -> Result<()> {
    let text = std::fs::read_to_string(fanout).with_context(|| format!("reading {}", fanout.display()))?;
    let line = text.lines().rfind(|line| line.starts_with('{')).context("fanout said nothing")?;
    let mut rows = of_fanout(&serde_json::from_str(line).context("the last line of fanout")?);
    if let Some(demo) = demo {
        let text = std::fs::read_to_string(demo).with_context(|| format!("reading {}", demo.display()))?;
        rows.extend(of_demo(&text));
    }
    let runner = Runner { reports: reports.to_owned() };
    let stall = if long { 600 } else { 60 };
    let stalled = format!("stall:percent=10,seconds={stall},rate=50");
    let steady = runner.run(
        "steady",
        &["--local", "1", "--preset", "1000", "--pods", "10000", "--baseline", "--patience", "300"],
        &["churn:seconds=30,rate=50", "reconnect", &stalled, "churn:seconds=30,rate=50"],
    )?;
    rows.extend(of_steady(&steady));
    let rolling = runner.run(
        "rolling",
        &["--local", "3", "--preset", "1000", "--pods", "10000", "--patience", "300"],
        &["rolling:rate=50"],
    )?;
    rows.extend(of_rolling(&rolling));
    if long {
        let large = runner.run(
            "large",
            &["--local", "2", "--preset", "5000", "--pods", "10000", "--patience", "1200"],
            &["churn:seconds=60,rate=20", "rollout:count=5"],
        )?;
        rows.extend(of_large(&large));
    }
    let whole = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    std::fs::write(file, replace(&whole, &table(&rows, long))?)
        .with_context(|| format!("writing {}", file.display()))
}

struct Runner {
    reports: PathBuf,
}

impl Runner {
    fn run(&self, name: &str, arguments: &[&str], phases: &[&str]) -> Result<Report> {
        let folder = self.reports.join(name);
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").args(arguments).arg("--report").arg(&folder);
        phases.iter().for_each(|phase| {
            command.args(["--phase", phase]);
        });
        eprintln!("# {name}: {command:?}");
        ensure!(command.status()?.success(), "the run {name:?} did not pass");
        let mut report = Report::read(&folder)?;
        // As others would call it.
        let words = arguments.iter().copied().chain(phases.iter().flat_map(|phase| ["--phase", phase]));
        report.command = format!("loadtest run {}", words.collect::<Vec<_>>().join(" "));
        Ok(report)
    }
}

fn of_fanout(fanout: &Fanout) -> Vec<Row> {
    let snapshot = &fanout.snapshot;
    let command =
        format!("cargo bench --workspace --bench fanout -- {} {}", fanout.streams, snapshot.streams);
    let row = |what: String, target, measured: String, beside: String| Row {
        what,
        target,
        measured,
        beside,
        command: command.clone(),
    };
    let mut rows = Vec::new();
    for (lines, raw, compressed) in
        [(&fanout.steady, "raw TCP", "≤ 1.0 ×"), (&fanout.tls, "raw TLS", "≤ 1.4 ×")]
    {
        for (line, how) in lines.iter().zip(["plain", "plain", "compressed once"]) {
            let Steady { bytes, typha, raw: beside, bare } = line;
            let times = |cost: Cost| format!("{:.1} µs, {:.2} ×", cost.cpu_us, cost.cpu_us / beside.cpu_us);
            let bare = bare.map_or(String::new(), |bare| format!("; HTTP/2 alone: {}", times(bare)));
            rows.push(row(
                format!(
                    "server CPU per message, {} streams, {:.1} KB {how}{}",
                    fanout.streams,
                    *bytes as f64 / 1e3,
                    if raw == "raw TLS" { ", mTLS" } else { "" }
                ),
                if how == "plain" { "≤ 1.4 ×" } else { compressed },
                times(*typha),
                format!("{raw}, as many bytes uncompressed: {:.1} µs{bare}", beside.cpu_us),
            ));
            rows.push(row(
                "the same: change → receipt by all".into(),
                "p50 ≤ 1.3 ×, p99 ≤ 1.5 ×",
                format!(
                    "p50 {:.1} ms, {:.2} ×; p99 {:.1} ms, {:.2} ×",
                    typha.p50_ms,
                    typha.p50_ms / beside.p50_ms,
                    typha.p99_ms,
                    typha.p99_ms / beside.p99_ms
                ),
                format!("{raw}: p50 {:.1} ms, p99 {:.1} ms", beside.p50_ms, beside.p99_ms),
            ));
        }
    }
    let Memory { steady_mb, peak_mb } = fanout.memory;
    let Snapshot { streams, plain_ms, compressed_ms, raw_ms, compressed_s, raw_s, wire, .. } = snapshot;
    rows.extend([
        row(
            format!("snapshot of 100,000 endpoints to {streams} streams, compressed, building included: CPU"),
            "≤ 0.25 ×",
            format!("{compressed_ms:.1} ms a stream, {:.2} ×", compressed_ms / raw_ms),
            format!(
                "raw TCP uncompressed: {raw_ms:.1} ms; plain {plain_ms:.1} ms, {:.2} ×",
                plain_ms / raw_ms
            ),
        ),
        row(
            "the same: until all have it, connecting included".into(),
            "≤ 0.25 ×",
            format!("{compressed_s:.1} s, {:.2} ×", compressed_s / raw_s),
            format!("raw TCP uncompressed: {raw_s:.1} s"),
        ),
        row("the same: bytes on the wire".into(), "≤ 15 %", format!("{:.1} %", 100.0 * wire), "plain".into()),
        row(
            format!("memory: 100,000 endpoints, {} streams", fanout.streams),
            "≤ 150 MB",
            format!("{steady_mb:.0} MB"),
            String::new(),
        ),
        row(
            "the same, while all of them take a snapshot at once".into(),
            "≤ 15 % more",
            format!("{peak_mb:.0} MB, {:+.0} %", 100.0 * (peak_mb / steady_mb - 1.0)),
            String::new(),
        ),
        row(
            "store".into(),
            "≤ 1.3 × payload",
            format!("{:.2} ×", snapshot.store_over_payload),
            "bytes of the entries".into(),
        ),
        row(
            format!("memory per idle client, plain, {} streams", fanout.streams),
            "≤ 25 KB",
            format!("{:.1} KB", fanout.idle_kb),
            String::new(),
        ),
        row("the same with mTLS".into(), "≤ 35 KB", format!("{:.1} KB", fanout.idle_tls_kb), String::new()),
    ]);
    if let Some(Sustained { streams, updates_per_second, p50_ms, p99_ms, cpu_percent, behind_ms }) =
        &fanout.sustained
    {
        let line = row(
            format!("one replica, {streams} streams, {updates_per_second:.0} updates/s for 10 s, compressed"),
            "in step, p99 ≤ 250 ms",
            format!(
                "p50 {p50_ms:.0} ms, p99 {p99_ms:.0} ms; all had all {behind_ms:.0} ms after the last change"
            ),
            format!("server: {cpu_percent:.0} % of a processor; the clients share the machine"),
        );
        rows.push(Row { command: format!("{command} {streams}"), ..line });
    }
    rows
}

/// Real nodes among simulated ones: the demo's summary.
fn of_demo(text: &str) -> Option<Row> {
    let of = |what: &str| {
        Some(text.lines().rfind(|line| line.contains(what))?.split_once(what)?.1.trim().to_owned())
    };
    Some(Row {
        what: "policy edit, from the start of the command to the kernel rule, p99".into(),
        target: "≤ 250 ms",
        measured: of("p99 from command to kernel")?,
        beside: format!("received: {}", of("p99 from command to receipt")?),
        command: "demo --datastore etcd --real 8 --simulated 1000".into(),
    })
}

fn named<'a>(report: &'a Report, name: &str) -> Vec<&'a PhaseResult> {
    report.phases.iter().filter(|phase| phase.phase.starts_with(name)).collect()
}

fn of_steady(report: &Report) -> Vec<Row> {
    let row = |what: &str, target, measured: String, beside: String| Row {
        what: what.into(),
        target,
        measured,
        beside,
        command: report.command.clone(),
    };
    let mut rows = Vec::new();
    let churns = named(report, "churn");
    if let Some(churn) = churns.first() {
        let latency = churn.latency;
        rows.push(row(
            "etcd commit → client, 1,000 clients, 50 pod events/s (from when it was due)",
            "p50 ≤ 10 ms, p99 ≤ 100 ms",
            format!("p50 {:.1} ms, p99 {:.1} ms", latency.p50_ms, latency.p99_ms),
            String::new(),
        ));
        let bytes = churn.servers.map_or(0.0, |served| served.sent_bytes) / (churn.updates.max(1)) as f64;
        rows.push(row(
            "the same: bytes per change to a node that is not interested",
            "≤ 150 B",
            format!("{bytes:.0} B"),
            String::new(),
        ));
    }
    if let [typha, others @ ..] = report.baselines.as_slice() {
        for other in others {
            rows.push(row(
                "CPU per message of the whole typha (following etcd and converting included)",
                "",
                format!(
                    "{:.1} µs ({} B): {:.2} ×",
                    typha.cpu_us_per_message,
                    typha.message_bytes,
                    typha.cpu_us_per_message / other.cpu_us_per_message
                ),
                format!("{}: {:.1} µs ({} B)", other.server, other.cpu_us_per_message, other.message_bytes),
            ));
        }
    }
    if let Some((bytes, served)) =
        named(report, "reconnect").first().and_then(|cut| Some((cut.bytes_per_stream()?, cut.servers?)))
    {
        rows.push(row(
            "reconnect without change, 1,000 at once",
            "≤ 1 KB by DELTA",
            format!(
                "{bytes:.0} B each; {} by delta, {} by digest, {} by snapshot",
                served.by_delta, served.by_digest, served.by_snapshot
            ),
            String::new(),
        ));
    }
    if let (Some(stall), Some(before), Some(state)) =
        (named(report, "stall").first(), churns.first(), report.peak_mb(1))
    {
        let place = report.phases.iter().position(|phase| phase.phase == stall.phase).unwrap_or(0);
        rows.push(row(
            "10 % of the clients stalled under churn",
            "memory ≤ 2 × state + 20 MiB; others' p99 unchanged",
            format!(
                "{:.0} MB, others' p99 {:.0} ms",
                report.peak_mb(place).unwrap_or_default(),
                stall.latency.p99_ms
            ),
            format!("churn without stalls: {state:.0} MB, p99 {:.0} ms", before.latency.p99_ms),
        ));
    }
    rows
}

fn of_rolling(report: &Report) -> Vec<Row> {
    let Some((phase, served)) =
        named(report, "rolling").first().and_then(|phase| Some((*phase, phase.servers?)))
    else {
        return Vec::new();
    };
    let resumed = served.by_delta + served.by_digest;
    vec![Row {
        what: "rolling restart of 3 replicas, 1,000 clients, under churn: resumed".into(),
        target: "≥ 99 % without a snapshot; 0 false deletes",
        measured: format!(
            "{:.1} % ({} by delta, {} by digest, {} by snapshot, as far as the replicas that live on counted); all nodes right, p99 {:.0} ms",
            100.0 * resumed / (resumed + served.by_snapshot).max(1.0),
            served.by_delta,
            served.by_digest,
            served.by_snapshot,
            phase.latency.p99_ms
        ),
        beside: String::new(),
        command: report.command.clone(),
    }]
}

/// 5,000 nodes: also read from a report that was made before.
fn of_large(report: &Report) -> Vec<Row> {
    let row = |what: String, target, measured: String| Row {
        what,
        target,
        measured,
        beside: String::new(),
        command: report.command.clone(),
    };
    let memory = report.servers().map_or(0.0, |(memory, _)| memory);
    let mut rows = vec![row(
        format!(
            "{} simulated nodes × {} entries, {} typhas: all in sync, all verified",
            report.nodes, report.entries, report.typhas
        ),
        "all in sync",
        format!(
            "join {:.0} s; typhas {memory:.0} MB together; loadtest {:.1} GB",
            report.phases.first().map_or(0.0, |join| join.seconds),
            report.own_peak_mb / 1e3
        ),
    )];
    if let Some(churn) = named(report, "churn").first() {
        rows.push(row(
            format!("the same under {}", churn.phase),
            "in step",
            format!(
                "{:.0} entries/s received, p50 {:.0} ms, p99 {:.0} ms",
                churn.updates as f64 / churn.seconds,
                churn.latency.p50_ms,
                churn.latency.p99_ms
            ),
        ));
    }
    rows
}

fn table(rows: &[Row], long: bool) -> String {
    let machine = Machine::here();
    let mut text = format!(
        "Measured by `make {}` on {} CPUs, {} GB, kernel {}, with version {}; clients, servers and etcd share the machine.\n\n\
         | what | target | measured | beside it | repeat it |\n|---|---|---|---|---|\n",
        if long { "bench-long" } else { "bench" },
        machine.cpus,
        machine.memory_mb >> 10,
        machine.kernel,
        env!("CARGO_PKG_VERSION"),
    );
    for Row { what, target, measured, beside, command } in rows {
        // Nothing can go wrong writing into a string.
        _ = writeln!(text, "| {what} | {target} | **{measured}** | {beside} | `{command}` |");
    }
    text
}

fn replace(whole: &str, new: &str) -> Result<String> {
    let (before, rest) = whole.split_once(BEGIN).with_context(|| format!("there is no line {BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("there is no line {END}"))?;
    Ok(format!("{before}{BEGIN}\n{new}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let whole = format!("# P\n{BEGIN}\nold\n{END}\nby hand\n");
        assert_eq!(
            replace(&whole, "new\n").expect("both marks"),
            format!("# P\n{BEGIN}\nnew\n{END}\nby hand\n")
        );
        assert!(replace("# P\n", "new\n").is_err());
    }
}
