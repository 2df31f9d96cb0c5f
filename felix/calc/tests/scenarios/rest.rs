//! Configuration, nodes, pools, and when the calculation speaks at all.

use felix_calc::Graph;
use felix_calc::output::Output;
use felix_calc::testing::expand::NODE;
use felix_calc::testing::{Entry, State, run};
use syncer_common::model::{Key, ResourceKey, Update, Value};

use crate::local;

#[test]
fn host_config_beats_scoped_beats_global() {
    let global = State::new("global")
        .with(Entry::global_config("LogSeverityScreen", "Info"))
        .with(Entry::global_config("ChainInsertMode", "insert"))
        .with(Entry::host_config("there", "ChainInsertMode", "append"))
        .expect(["config LogSeverityScreen=Info", "config ChainInsertMode=insert"]);
    let scoped = global
        .then("scoped")
        .with(Entry::node(NODE, "", &[("rack", "1")]))
        .with(Entry::scoped_config("b", "rack == '1'", &[("LogSeverityScreen", "Debug"), ("Other", "b")]))
        .with(Entry::scoped_config("a", "rack == '1'", &[("Other", "a")]))
        .with(Entry::scoped_config("c", "rack == '2'", &[("ChainInsertMode", "append")]))
        .expect([
            "config LogSeverityScreen=Debug",
            "config ChainInsertMode=insert",
            "config Other=a",
            "host here",
        ]);
    let host = scoped.then("host").with(Entry::host_config(NODE, "LogSeverityScreen", "Error")).expect([
        "config LogSeverityScreen=Error",
        "config ChainInsertMode=insert",
        "config Other=a",
        "host here",
    ]);
    let relabelled = host.then("node moved").with(Entry::node(NODE, "", &[("rack", "2")])).expect([
        "config LogSeverityScreen=Error",
        "config ChainInsertMode=append",
        "host here",
    ]);
    run(&[global, scoped, host, relabelled]);
}

#[test]
fn scoped_config_with_a_broken_selector_is_absent() {
    let broken =
        State::new("broken").with(Entry::scoped_config("a", "rack ==", &[("A", "1")])).expect([""; 0]);
    let fixed =
        broken.then("fixed").with(Entry::scoped_config("a", "", &[("A", "1")])).expect(["config A=1"]);
    run(&[broken, fixed]);
}

#[test]
fn nodes_give_addresses() {
    let node = Entry::node("there", "172.30.0.21/16", &[]);
    let one = State::new("one").with(node.clone()).expect(["host there 172.30.0.21"]);
    let two = one
        .then("two")
        .with(Entry::node(NODE, "172.30.0.20/16", &[]))
        .expect(["host there 172.30.0.21", "host here 172.30.0.20"]);
    let moved = two
        .then("moved")
        .with(Entry::node("there", "172.30.0.22/16", &[("a", "b")]))
        .expect(["host there 172.30.0.22", "host here 172.30.0.20"]);
    let gone = moved.then("gone").without(&node).expect(["host here 172.30.0.20"]);
    run(&[one, two, moved, gone]);
}

#[test]
fn pools_pass_through() {
    let (v4, v6) = (Entry::pool("10.65.0.0/16"), Entry::pool("fd00::/64"));
    let mut quiet = v4.clone();
    if let Value::IpPool(pool) = &mut quiet.value {
        pool.masquerade = false;
    }
    let both = State::new("both").with(v4).with(v6.clone()).expect(["pool 10.65.0.0/16", "pool fd00::/64"]);
    let edited = both.then("edited").with(quiet).expect(["pool 10.65.0.0/16", "pool fd00::/64"]);
    let one = edited.then("one").without(&v6).expect(["pool 10.65.0.0/16"]);
    run(&[both, edited, one]);
}

#[test]
fn service_ranges_come_from_the_default_bgp_configuration() {
    let all = Entry::service_ranges(&["10.96.0.0/12", "fd96::/112"], &["192.0.2.7/24"], &["198.51.100.9"]);
    let mut node = all.clone();
    node.key = Key::Resource(ResourceKey {
        kind: "BGPConfiguration".into(),
        namespace: "".into(),
        name: "node.x".into(),
    });
    let none = State::new("none").with(node).expect([""; 0]);
    let some = none.then("some").with(all.clone()).expect([
        "services 10.96.0.0/12",
        "services fd96::/112",
        "services 192.0.2.0/24",
        "services 198.51.100.9/32",
    ]);
    let bad = some
        .then("one does not read")
        .with(Entry::service_ranges(&["10.96.0.0/12", "nonsense"], &[], &[]))
        .expect(["services 10.96.0.0/12"]);
    let gone = bad.then("gone").without(&all).expect([""; 0]);
    run(&[none, some, bad, gone]);
}

#[test]
fn nothing_is_put_out_before_in_sync() {
    let mut graph = Graph::new(NODE);
    let Entry { key, value } = local("a", "10.0.0.1/32", &[]);
    graph.on_update(Update::set(key, value));
    assert_eq!(graph.flush(), []);
    graph.on_in_sync();
    let outputs = graph.flush();
    assert_eq!(outputs[0], Output::Config(Default::default()), "config comes first, even when empty");
    assert_eq!(outputs.len(), 2);
}

#[test]
fn ready_flag_is_told_apart_from_its_absence() {
    let mut graph = Graph::new(NODE);
    assert_eq!(graph.ready(), None);
    graph.on_update(Update::set(Key::ReadyFlag, Value::Ready(true)));
    assert_eq!(graph.ready(), Some(true));
    graph.on_update(Update::set(Key::ReadyFlag, Value::Ready(false)));
    assert_eq!(graph.ready(), Some(false));
    graph.on_update(Update::delete(Key::ReadyFlag));
    assert_eq!(graph.ready(), None);
}
