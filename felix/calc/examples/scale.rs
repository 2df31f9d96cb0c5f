//! Time and memory of the calculation at scale, beside the plainest agent that could do it, which keeps the entries as
//! they are and looks at every selector for each: `cargo run --release -p felix-calc --example scale --
//! [endpoints] [policies]` (100000 and 2000 when not given).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hint::black_box;
use std::time::{Duration, Instant};

use felix_calc::Graph;
use felix_calc::output::Output;
use felix_calc::testing::expand::NODE;
use felix_calc::testing::{Entry, allow, selector_set};
use syncer_common::model::{Key, Update, Value};
use syncer_common::selector::Selector;

const LOCAL: usize = 200;
const NAMESPACES: usize = 500;
const UPDATES: usize = 10_000;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number"));
    let endpoints = arguments.next().unwrap_or(100_000);
    let policies = arguments.next().unwrap_or(2_000);

    let before = resident_mb();
    let entries = (0..endpoints).map(|number| endpoint(number, number, endpoints));
    let plain: HashMap<Key, Value> = entries.map(|Entry { key, value }| (key, value)).collect();
    let plain_mb = resident_mb() - before;

    let before = resident_mb();
    let mut graph = Graph::new(NODE);
    let started = Instant::now();
    feed(&mut graph, (0..NAMESPACES).map(profile));
    feed(&mut graph, (0..policies).map(policy));
    feed(&mut graph, (0..endpoints).map(|number| endpoint(number, number, endpoints)));
    graph.on_in_sync();
    let outputs = graph.flush();
    let in_sync = started.elapsed();
    println!("in sync   {in_sync:>8.2?}, {} outputs", outputs.len());
    println!(
        "memory    {:>8} MB; the endpoints as they were received: {plain_mb} MB",
        resident_mb() - before
    );
    println!("{:?}", graph.stats());

    let update = updates(&mut graph, endpoints);
    println!("update    {update:>8.1?} per change of a remote endpoint's address, with a flush each");

    let (members, took) = every_selector(&plain, policies, &outputs);
    println!("\nevery selector looked at for every endpoint:");
    println!("in sync   {took:>8.2?}, the members of the same sets ({members}) and nothing else");
    println!("update    {:>8.1?}", took / endpoints as u32);
}

fn updates(graph: &mut Graph, endpoints: usize) -> Duration {
    let remote = (LOCAL..endpoints).cycle().take(UPDATES);
    let changed: Vec<Entry> = remote.map(|number| endpoint(number, number + endpoints, endpoints)).collect();
    let started = Instant::now();
    for entry in changed {
        feed(graph, [entry]);
        black_box(graph.flush());
    }
    started.elapsed() / UPDATES as u32
}

/// The members of the sets in use, found the plain way: how many, and how long it took.
fn every_selector(plain: &HashMap<Key, Value>, policies: usize, outputs: &[Output]) -> (usize, Duration) {
    let mut expected = 0;
    let mut in_use = BTreeSet::new();
    for output in outputs {
        if let Output::IpSetUpdate { id, members, .. } = output {
            expected += members.len();
            in_use.insert(id.as_str());
        }
    }
    let sources: BTreeSet<String> = (0..policies).flat_map(sources).collect();
    let used = sources.iter().filter(|source| in_use.contains(selector_set(source).as_str()));
    let selectors: Vec<Selector> = used.map(|source| Selector::parse(source).expect("it parses")).collect();

    let started = Instant::now();
    let mut members = 0;
    for value in plain.values() {
        let Value::WorkloadEndpoint(endpoint) = value else { continue };
        let number = endpoint.profile_ids[0].strip_prefix("kns.ns").and_then(|number| number.parse().ok());
        let inherited = [("pcns.team".to_owned(), team(number.expect("a namespace by number")))];
        let labels: BTreeMap<String, String> = endpoint.labels.clone().into_iter().chain(inherited).collect();
        members += selectors.iter().filter(|selector| selector.matches(&labels)).count();
    }
    let took = started.elapsed();
    assert_eq!(members, expected, "both find the same members");
    (members, took)
}

fn feed(graph: &mut Graph, entries: impl IntoIterator<Item = Entry>) {
    entries.into_iter().for_each(|Entry { key, value }| graph.on_update(Update::set(key, value)));
}

fn namespace(number: usize) -> String {
    format!("ns{}", number % NAMESPACES)
}

fn team(namespace: usize) -> String {
    format!("t{}", namespace % 20)
}

fn profile(number: usize) -> Entry {
    Entry::profile_labels(&format!("kns.{}", namespace(number)), &[("pcns.team", &team(number))])
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
    let [neighbours, team] = sources(number);
    Entry::policy_of_kind("NetworkPolicy", &namespace, &format!("p{number}"), &selector)
        .inbound(allow().from(&neighbours))
        .inbound(allow().from(&team))
}

/// Whom a policy lets in.
fn sources(policy: usize) -> [String; 2] {
    let within = format!("projectcalico.org/namespace == '{}'", namespace(policy));
    [format!("({within}) && (app == 'app{}')", (policy + 1) % 50), format!("pcns.team == '{}'", team(policy))]
}

/// What this process holds in memory.
fn resident_mb() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096 / 1_000_000
}
