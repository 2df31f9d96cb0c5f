//! The promise of the calculation, on random input: only the current state counts.

use std::collections::BTreeMap;

use felix_calc::Graph;
use felix_calc::testing::expand::NODE;
use felix_calc::testing::{Entry, Recorder, Rule, allow, deny, pass};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use syncer_common::model::{Key, Update, Value};

/// One step of a run.
#[derive(Clone, Debug)]
enum Step {
    Set(Box<Entry>),
    Delete(Key),
    Flush,
    InSync,
}

const ADDRESSES: [&str; 4] = ["10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32", "fd00::1/128"];
const NETS: [&str; 5] = ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.1/32", "128.0.0.0/1", "::/0"];
const PROFILES: [&str; 3] = ["p1", "p2", "p3"];
const TIERS: [&str; 3] = ["default", "t1", "t2"];
const SELECTORS: [&str; 9] = [
    "all()",
    "a == '1'",
    "a in {'1', '2'}",
    "has(b)",
    "!has(a)",
    "a != '1' && has(b)",
    "b == '2' || a == '2'",
    "!(a == '1')",
    "a ==",
];

fn labels() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    subsequence(vec![("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")], 0..=2)
}

fn order() -> impl Strategy<Value = Option<f64>> {
    select(vec![None, Some(1.0), Some(2.0)])
}

fn rule() -> impl Strategy<Value = Rule> {
    let selector = || select(SELECTORS[..8].to_vec());
    let shape = (select(vec![allow(), deny(), pass()]), 0..9, select(vec!["tcp", "udp"]));
    (shape, selector(), selector()).prop_map(|((rule, shape, protocol), one, two)| match shape {
        0 => rule,
        1 => rule.from(one),
        2 => rule.to(one).from(two),
        3 => rule.not_from(one),
        4 => rule.from(one).not_from(two),
        5 => rule.protocol(protocol).to_port("http"),
        6 => rule.protocol(protocol).to(one).to_port("http"),
        7 => rule.protocol(protocol).to(one).to_port("http").to_number(1, 2),
        _ => rule.to(one).not_to_port("http"),
    })
}

fn workload() -> impl Strategy<Value = Entry> {
    let names = (select(vec![NODE, NODE, "there"]), select(vec!["w1", "w2", "w3"]));
    let nets = subsequence(ADDRESSES.to_vec(), 0..=2);
    let ports = subsequence(vec![("http", "tcp", 80), ("http", "udp", 80), ("http", "tcp", 81)], 0..=3);
    let profiles = subsequence(PROFILES.to_vec(), 0..=2).prop_shuffle();
    (names, nets, labels(), ports, profiles).prop_map(|((host, name), nets, labels, ports, profiles)| {
        let entry = Entry::workload(host, name, &nets, &labels).profiles(&profiles);
        ports.into_iter().fold(entry, |entry, (name, protocol, port)| entry.port(name, protocol, port))
    })
}

fn host_endpoint() -> impl Strategy<Value = Entry> {
    let profiles = subsequence(PROFILES.to_vec(), 0..=2);
    (select(vec![NODE, "there"]), select(vec!["eth0", "*"]), labels(), profiles).prop_map(
        |(host, name, labels, profiles)| {
            Entry::host_endpoint(host, name, &["10.0.0.1", "10.0.0.9"], &labels)
                .profiles(&profiles)
                .port("http", "tcp", 80)
        },
    )
}

fn policy() -> impl Strategy<Value = Entry> {
    let kinds = vec!["GlobalNetworkPolicy", "NetworkPolicy", "StagedNetworkPolicy"];
    let identity = (select(kinds), select(vec!["a", "b", "c"]));
    let body = (select(SELECTORS.to_vec()), select(TIERS.to_vec()), order());
    let rules = (prop::collection::vec(rule(), 0..=2), prop::collection::vec(rule(), 0..=2));
    let flags = (0..10, subsequence(vec!["ingress", "egress"], 0..=2));
    (identity, body, rules, flags).prop_map(
        |((kind, name), (selector, tier, order), (inbound, outbound), (flags, types))| {
            let entry = Entry::policy_of_kind(kind, "ns", name, selector).in_tier(tier).types(&types);
            let entry = inbound.into_iter().fold(entry, Entry::inbound);
            let entry = outbound.into_iter().fold(entry, Entry::outbound);
            entry.edit_policy(|policy| {
                policy.order = order;
                policy.untracked = flags == 0;
                policy.pre_dnat = flags == 1;
                policy.apply_on_forward = flags == 2;
                if flags == 3 {
                    policy.performance_hints.push("AssumeNeededOnEveryNode".into());
                }
            })
        },
    )
}

fn network_set() -> impl Strategy<Value = Entry> {
    let parts = (select(vec!["n1", "n2"]), subsequence(NETS.to_vec(), 0..=3), labels());
    (parts, subsequence(PROFILES.to_vec(), 0..=1)).prop_map(|((name, nets, labels), profiles)| {
        Entry::network_set(name, &nets, &labels).profiles(&profiles)
    })
}

fn other() -> impl Strategy<Value = Entry> {
    prop_oneof![
        (select(PROFILES.to_vec()), labels()).prop_map(|(name, labels)| Entry::profile_labels(name, &labels)),
        (select(PROFILES.to_vec()), prop::collection::vec(rule(), 0..=2))
            .prop_map(|(name, rules)| Entry::profile_rules(name, rules, vec![])),
        (select(TIERS.to_vec()), order(), select(vec!["Deny", "Pass"]))
            .prop_map(|(name, order, action)| Entry::tier(name, order, action)),
        (select(vec!["x", "y"]), select(vec!["1", "2"]))
            .prop_map(|(name, value)| Entry::global_config(name, value)),
        select(vec!["1", "2"]).prop_map(|value| Entry::host_config(NODE, "x", value)),
        select(vec!["1", "2"]).prop_map(|value| Entry::scoped_config("s", "a == '1'", &[("x", value)])),
        (select(vec![NODE, "there"]), labels()).prop_map(|(name, labels)| Entry::node(
            name,
            "192.0.2.1/24",
            &labels
        )),
        Just(Entry::pool("10.0.0.0/16")),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![4 => workload(), 1 => host_endpoint(), 4 => policy(), 2 => network_set(), 4 => other()]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => entry().prop_map(|entry| Step::Set(Box::new(entry))),
        5 => entry().prop_map(|entry| Step::Delete(entry.key)),
        4 => Just(Step::Flush),
        1 => Just(Step::InSync),
    ]
}

fn from_scratch(datastore: &BTreeMap<Key, Value>) -> Recorder {
    let (mut graph, mut recorder) = (Graph::new(NODE), Recorder::default());
    graph.on_in_sync();
    for (key, value) in datastore {
        graph.on_update(Update::set(key.clone(), value.clone()));
    }
    recorder.apply(graph.flush());
    recorder
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_ends_like_a_calculation_from_scratch(steps in prop::collection::vec(step(), 1..60)) {
        let (mut graph, mut recorder) = (Graph::new(NODE), Recorder::default());
        let (mut datastore, mut in_sync) = (BTreeMap::new(), false);
        for step in steps.into_iter().chain([Step::InSync, Step::Flush]) {
            match step {
                Step::Set(entry) => {
                    let Entry { key, value } = *entry;
                    datastore.insert(key.clone(), value.clone());
                    graph.on_update(Update::set(key, value));
                }
                Step::Delete(key) => {
                    datastore.remove(&key);
                    graph.on_update(Update::delete(key));
                }
                Step::InSync => {
                    in_sync = true;
                    graph.on_in_sync();
                }
                Step::Flush => {
                    recorder.apply(graph.flush());
                    let expected = if in_sync { from_scratch(&datastore) } else { Recorder::default() };
                    prop_assert_eq!(&recorder, &expected);
                }
            }
        }
        for key in datastore.into_keys() {
            graph.on_update(Update::delete(key));
        }
        recorder.apply(graph.flush());
        let nothing = Recorder { config: Some(BTreeMap::new()), ..Recorder::default() };
        prop_assert_eq!(recorder, nothing, "everything deleted");
        prop_assert_eq!(graph.stats(), Default::default());
    }
}
