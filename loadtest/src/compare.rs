//! Two runs beside one another.

use std::fmt::Write as _;

use crate::report::Report;

pub fn table(a: &Report, b: &Report) -> String {
    let mut text = String::new();
    for (name, report) in [("A", a), ("B", b)] {
        _ = writeln!(
            text,
            "{name}: {} nodes, {} typhas ({}), {} entries, seed {}, {} on {} CPUs",
            report.nodes,
            report.typhas,
            report.protocol,
            report.entries,
            report.seed,
            report.version,
            report.machine.cpus
        );
    }
    if (a.nodes, a.typhas, a.shape, a.machine.cpus) != (b.nodes, b.typhas, b.shape, b.machine.cpus) {
        text += "The runs differ in size or machine: ratios say little.\n";
    }
    _ = writeln!(text, "\n{:<34} {:<14} {:>12} {:>12} {:>8}", "PHASE", "", "A", "B", "B / A");
    let mut row = |phase: &str, what: &str, a: Option<f64>, b: Option<f64>| {
        let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
        let ratio = match (a, b) {
            (Some(a), Some(b)) if a > 0.0 => format!("{:.2}", b / a),
            _ => "-".into(),
        };
        _ = writeln!(text, "{phase:<34} {what:<14} {:>12} {:>12} {ratio:>8}", number(a), number(b));
    };
    // By place and name: the same phase may happen twice.
    for (one, other) in a.phases.iter().zip(&b.phases).filter(|(one, other)| one.phase == other.phase) {
        let latency =
            |phase: &crate::report::PhaseResult, value: f64| (phase.latency.count > 0).then_some(value);
        row(&one.phase, "p50 ms", latency(one, one.latency.p50_ms), latency(other, other.latency.p50_ms));
        row("", "p99 ms", latency(one, one.latency.p99_ms), latency(other, other.latency.p99_ms));
        let kernel = |phase: &crate::report::PhaseResult| {
            phase.real.as_ref().filter(|real| real.applied.count > 0).map(|real| real.applied.p99_ms)
        };
        if let (Some(one), Some(other)) = (kernel(one), kernel(other)) {
            row("", "p99 in kernel", Some(one), Some(other));
        }
        row("", "settled ms", one.settled_ms, other.settled_ms);
        let sent = |phase: &crate::report::PhaseResult| phase.sent_bytes().map(|bytes| bytes / 1e6);
        row("", "sent MB", sent(one), sent(other));
    }
    let (a, b) = (a.servers(), b.servers());
    row("all", "typha MB", a.map(|servers| servers.0), b.map(|servers| servers.0));
    row("", "typha CPU %", a.map(|servers| servers.1), b.map(|servers| servers.1));
    text
}
