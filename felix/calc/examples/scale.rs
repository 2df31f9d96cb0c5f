//! Time and memory of the calculation at scale: `cargo run --release -p felix-calc --example scale --
//! [endpoints] [policies]` (100000 and 2000 when not given).

use std::time::Instant;

use felix_calc::Graph;
use felix_calc::testing::expand::NODE;
use felix_calc::testing::{Entry, allow};
use syncer_common::model::Update;

const LOCAL: usize = 200;
const NAMESPACES: usize = 500;
const UPDATES: usize = 10_000;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number"));
    let endpoints = arguments.next().unwrap_or(100_000);
    let policies = arguments.next().unwrap_or(2_000);
    let mut graph = Graph::new(NODE);
    let baseline = resident_mb();

    let namespaces = (0..NAMESPACES).map(|number| {
        let name = format!("kns.{}", namespace(number));
        Entry::profile_labels(&name, &[("pcns.team", &format!("t{}", number % 20))])
    });
    let started = Instant::now();
    feed(&mut graph, namespaces);
    feed(&mut graph, (0..policies).map(policy));
    feed(&mut graph, (0..endpoints).map(|number| endpoint(number, number, endpoints)));
    graph.on_in_sync();
    let loaded = started.elapsed();
    let outputs = graph.flush().len();
    println!("in sync   {:>8.2?} to load, {:.2?} in all, {outputs} outputs", loaded, started.elapsed());
    println!("memory    {:>8} MB", resident_mb() - baseline);
    println!("{:?}", graph.stats());

    let remote = (LOCAL..endpoints).cycle().take(UPDATES);
    let changed: Vec<Entry> = remote.map(|number| endpoint(number, number + endpoints, endpoints)).collect();
    let started = Instant::now();
    let mut outputs = 0;
    for entry in changed {
        feed(&mut graph, [entry]);
        outputs += graph.flush().len();
    }
    let each = started.elapsed() / UPDATES as u32;
    println!(
        "update    {each:>8.1?} per change of a remote endpoint's address, with a flush each; {outputs} outputs"
    );
}

fn feed(graph: &mut Graph, entries: impl IntoIterator<Item = Entry>) {
    entries.into_iter().for_each(|Entry { key, value }| graph.on_update(Update::set(key, value)));
}

fn namespace(number: usize) -> String {
    format!("ns{}", number % NAMESPACES)
}

fn endpoint(number: usize, address: usize, endpoints: usize) -> Entry {
    let host = if number < LOCAL { NODE.to_owned() } else { format!("node{}", number % (endpoints / LOCAL)) };
    let [_, a, b, c] = (address as u32).to_be_bytes();
    let namespace = namespace(number);
    let labels = [
        ("projectcalico.org/namespace", namespace.as_str()),
        ("projectcalico.org/orchestrator", "k8s"),
        ("app", &format!("app{}", number % 50)),
        ("pod-template-hash", &format!("{:x}", number / 3)),
    ];
    Entry::workload(&host, &format!("pod-{number:x}"), &[&format!("10.{a}.{b}.{c}/32")], &labels)
        .profiles(&[&format!("kns.{namespace}")])
}

fn policy(number: usize) -> Entry {
    let namespace = namespace(number);
    let within = format!("projectcalico.org/namespace == '{namespace}'");
    let selector = format!("app == 'app{}' && {within}", number % 50);
    Entry::policy_of_kind("NetworkPolicy", &namespace, &format!("p{number}"), &selector)
        .inbound(allow().from(&format!("({within}) && (app == 'app{}')", (number + 1) % 50)))
        .inbound(allow().from(&format!("pcns.team == 't{}'", number % 20)))
}

/// What this process holds in memory.
fn resident_mb() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096 / 1_000_000
}
