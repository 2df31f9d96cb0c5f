//! `report.html`: one file with its plots in it, nothing to load.

use std::fmt::Write as _;

use crate::report::Report;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}\
pre{background:#f4f4f1;padding:1em;overflow-x:auto;font-size:12.5px}svg{width:100%;height:auto;background:#fbfbf9}\
h2{font-size:1.05em;margin:1.6em 0 .3em}.bad{color:#a00}.good{color:#060}";
const COLOURS: [&str; 4] = ["#1b6ca8", "#c8553d", "#588157", "#8e6c8a"];
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 220.0;
/// Left and below, for the scales.
const MARGIN: (f64, f64) = (60.0, 24.0);

struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

pub fn page(report: &Report) -> String {
    let series = |name: &str, of: &dyn Fn(&crate::report::Sample) -> f64| Series {
        name: name.to_owned(),
        points: report.samples.iter().map(|sample| (sample.second as f64, of(sample))).collect(),
    };
    let names: Vec<String> = report
        .samples
        .iter()
        .rev()
        .find(|sample| !sample.servers.is_empty())
        .map(|sample| sample.servers.iter().map(|server| server.name.clone()).collect())
        .unwrap_or_default();
    let per_server = |of: fn(&crate::report::ServerSample) -> f64| -> Vec<Series> {
        let value = |sample: &crate::report::Sample, name: &String| {
            sample.servers.iter().find(|server| server.name == *name).map_or(0.0, of)
        };
        names.iter().map(|name| series(name, &|sample| value(sample, name))).collect()
    };
    let (verdict, class) = if report.failures.is_empty() { ("passed", "good") } else { ("failed", "bad") };
    let mut page = format!(
        "<!doctype html><meta charset=utf-8><title>loadtest {verdict}</title><style>{STYLE}</style>\
         <h1>loadtest: <span class={class}>{verdict}</span></h1>\
         <p>{} nodes, {} typhas, {} entries; seed {}; bulrush-loadtest {} on {} CPUs, {} MB, Linux {}.<br><code>{}</code></p>\
         <pre>{}</pre>",
        report.nodes,
        report.typhas,
        report.entries,
        report.seed,
        escaped(&report.version),
        report.machine.cpus,
        report.machine.memory_mb,
        escaped(&report.machine.kernel),
        escaped(&report.command),
        escaped(&report.table()),
    );
    let latency = [series("p50", &|sample| sample.p50_ms), series("p99", &|sample| sample.p99_ms)];
    page += &plot("From due to received, ms", &latency);
    page += &plot("Nodes in sync", &[series("in sync", &|sample| sample.in_sync as f64)]);
    page += &plot("CPU of each typha, % of one", &per_server(|server| server.cpu_percent));
    page += &plot("Memory of each typha, MB", &per_server(|server| server.memory_mb));
    page
}

fn plot(title: &str, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|series| series.points.iter());
    let (Some(end), Some(top)) =
        (points().map(|point| point.0).reduce(f64::max), points().map(|point| point.1).reduce(f64::max))
    else {
        return String::new();
    };
    let (end, top) = (end.max(1.0), if top > 0.0 { top } else { 1.0 });
    let x = |second: f64| MARGIN.0 + second / end * (WIDTH - MARGIN.0);
    let y = |value: f64| (HEIGHT - MARGIN.1) * (1.0 - value / top);
    let mut svg = format!(
        "<h2>{}</h2><svg viewBox=\"0 -12 {} {}\" font-size=11>",
        escaped(title),
        WIDTH + 12.0,
        HEIGHT + 12.0
    );
    for part in [0.0, 0.5, 1.0] {
        let (at, label) = (y(top * part), number(top * part));
        _ = write!(
            svg,
            "<line x1={} x2={WIDTH} y1={at:.1} y2={at:.1} stroke=#ddd /><text x={} y={:.1} text-anchor=end>{label}</text>",
            MARGIN.0,
            MARGIN.0 - 6.0,
            at + 4.0
        );
        let second = number(end * part);
        _ = write!(
            svg,
            "<text x={:.1} y={} text-anchor=middle>{second} s</text>",
            x(end * part),
            HEIGHT - 6.0
        );
    }
    for (index, series) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let line: Vec<String> = series
            .points
            .iter()
            .map(|(second, value)| format!("{:.1},{:.1}", x(*second), y(*value)))
            .collect();
        _ = write!(
            svg,
            "<polyline fill=none stroke={colour} stroke-width=1.5 points=\"{}\" /><text x={} y={} fill={colour}>{}</text>",
            line.join(" "),
            MARGIN.0 + 10.0,
            14 * index + 8,
            escaped(&series.name)
        );
    }
    svg + "</svg>"
}

fn number(value: f64) -> String {
    if value >= 100.0 || value == value.trunc() { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_hold_every_point_and_nothing_is_markup() {
        let series = [Series { name: "<b>".into(), points: vec![(0.0, 1.0), (2.0, 4.0)] }];
        let svg = plot("a & b", &series);
        assert!(svg.contains("&lt;b&gt;") && svg.contains("a &amp; b"), "{svg}");
        assert!(svg.contains(&format!("{:.1},0.0", WIDTH)), "{svg}");
        assert_eq!(plot("none", &[]), "");
    }
}
