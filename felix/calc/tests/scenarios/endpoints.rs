//! Local endpoints and what applies to them.

use felix_calc::testing::expand::NODE;
use felix_calc::testing::{Entry, State, allow, deny, run};
use syncer_common::model::{Value, values};

use crate::{local, remote};

#[test]
fn endpoint_deletion_takes_its_policy_and_profile_along() {
    let a = local("a", "10.0.0.1/32", &[("x", "")]).profiles(&["prof"]);
    let there = State::new("there")
        .with(a.clone())
        .with(Entry::policy("p", "has(x)").inbound(allow().from("all()")))
        .with(Entry::profile_rules("prof", vec![], vec![]))
        .with(remote("b", "10.0.0.2/32", &[("x", "")]));
    let all = felix_calc::testing::selector_set("all()");
    let gone = there.then("gone").without(&a).expect([""; 0]);
    let there = there.expect([
        format!("policy p in(allow src={all})"),
        "profile prof".into(),
        "workload a default(in: p; out: p)".into(),
        format!("set {all} 10.0.0.1 10.0.0.2"),
    ]);
    run(&[there, gone]);
}

#[test]
fn endpoints_of_other_nodes_are_not_programmed() {
    let state = State::new("remote only")
        .with(remote("b", "10.0.0.2/32", &[]))
        .with(Entry::host_endpoint("there", "eth0", &[], &[]))
        .with(Entry::policy("p", "all()"))
        .expect([""; 0]);
    run(&[state]);
}

#[test]
fn workload_without_interface_is_absent() {
    let mut nameless = local("a", "10.0.0.1/32", &[]);
    if let Value::WorkloadEndpoint(endpoint) = &mut nameless.value {
        endpoint.name.clear();
    }
    let broken = State::new("no interface").with(nameless).with(Entry::policy("p", "all()")).expect([""; 0]);
    let fixed = broken
        .then("interface")
        .with(local("a", "10.0.0.1/32", &[]))
        .expect(["policy p", "workload a default(in: p; out: p)"]);
    run(&[broken, fixed]);
}

#[test]
fn value_of_another_kind_than_its_key_is_absent() {
    let fine = local("a", "10.0.0.1/32", &[]);
    let confused = Entry { key: fine.key.clone(), value: Entry::tier("x", None, "Deny").value };
    run(&[
        State::new("fine").with(fine).expect(["workload a"]),
        State::new("confused").with(confused).expect([""; 0]),
    ]);
}

#[test]
fn host_endpoint_stages_are_kept_apart() {
    let state = State::new("all stages")
        .with(Entry::host_endpoint(NODE, "eth0", &["192.0.2.1"], &[("host", "")]))
        .with(Entry::tier("default", None, "Deny"))
        .with(Entry::policy("normal", "has(host)"))
        .with(Entry::policy("track", "has(host)").edit_policy(|policy| policy.untracked = true))
        .with(Entry::policy("dnat", "has(host)").edit_policy(|policy| policy.pre_dnat = true))
        .with(Entry::policy("fwd", "has(host)").edit_policy(|policy| policy.apply_on_forward = true))
        .expect([
            "policy normal",
            "policy track",
            "policy dnat",
            "policy fwd",
            "host endpoint here-eth0 default(in: fwd normal; out: fwd normal) \
             untracked:default+pass(in: track; out: track) prednat:default+pass(in: dnat; out:) \
             forward:default(in: fwd; out: fwd)",
        ]);
    let plain = state
        .then("a stage changes")
        .with(Entry::policy("track", "has(host)"))
        .without(&Entry::policy("dnat", ""))
        .with(Entry::policy("fwd", "has(host)"))
        .expect([
            "policy normal",
            "policy track",
            "policy fwd",
            "host endpoint here-eth0 default(in: fwd normal track; out: fwd normal track)",
        ]);
    run(&[state, plain]);
}

#[test]
fn host_only_stages_do_not_reach_workloads() {
    let state = State::new("workload")
        .with(local("a", "10.0.0.1/32", &[]))
        .with(Entry::policy("track", "all()").edit_policy(|policy| policy.untracked = true))
        .with(Entry::policy("dnat", "all()").edit_policy(|policy| policy.pre_dnat = true))
        .with(Entry::policy("fwd", "all()").edit_policy(|policy| policy.apply_on_forward = true))
        .expect(["policy track", "policy dnat", "policy fwd", "workload a default(in: fwd; out: fwd)"]);
    run(&[state]);
}

#[test]
fn forward_tier_is_missing_when_no_policy_applies_there() {
    let with = Entry::policy("p", "all()").edit_policy(|policy| {
        policy.apply_on_forward = true;
        policy.types = vec!["ingress".into()];
    });
    let forward = State::new("forward")
        .with(Entry::host_endpoint(NODE, "*", &[], &[]))
        .with(with)
        .expect(["policy p", "host endpoint here-* default(in: p; out:) forward:default(in: p; out:)"]);
    let none = forward
        .then("none")
        .with(Entry::policy("p", "all()"))
        .expect(["policy p", "host endpoint here-* default(in: p; out: p)"]);
    run(&[forward, none]);
}

#[test]
fn policy_goes_with_its_last_endpoint_only() {
    let (a, b) = (local("a", "10.0.0.1/32", &[("x", "")]), local("b", "10.0.0.2/32", &[("x", "")]));
    let two = State::new("two")
        .with(a.clone())
        .with(b.clone())
        .with(Entry::policy("p", "has(x)").inbound(deny()))
        .expect([
            "policy p in(deny)",
            "workload a default(in: p; out: p)",
            "workload b default(in: p; out: p)",
        ]);
    let one = two.then("one").without(&a).expect(["policy p in(deny)", "workload b default(in: p; out: p)"]);
    let none = one.then("none").without(&b).expect([""; 0]);
    run(&[two, one, none]);
}

#[test]
fn floating_addresses_limits_and_dscp_come_with_their_workload() {
    let plain = local("a", "10.0.0.1/32", &[]);
    let none = State::new("none").with(plain.clone()).expect(["workload a"]);
    let floating = none
        .then("floating")
        .with(
            plain
                .clone()
                .floating("192.0.2.1", "10.0.0.1")
                .floating("2001:db8::1", "fd00::1")
                // Neither of these can be translated.
                .floating("2001:db8::2", "10.0.0.1")
                .floating("nonsense", "10.0.0.1"),
        )
        .expect([
            "workload a",
            "floating 192.0.2.1 for 10.0.0.1 of a",
            "floating 2001:db8::1 for fd00::1 of a",
        ]);
    let qos = values::QosControls {
        ingress_packet_rate: 100,
        ingress_packet_burst: 5,
        egress_max_connections: 7,
        dscp: Some(46),
        ..Default::default()
    };
    let held = floating.then("held").with(plain.clone().qos(qos)).expect([
        "workload a",
        "limits a in 100 5 0",
        "limits a out 0 0 7",
        "dscp a 46",
    ]);
    let beyond = values::QosControls { dscp: Some(64), ..Default::default() };
    let refused = held.then("no such value").with(plain.qos(beyond)).expect(["workload a"]);
    let elsewhere = refused
        .then("a remote workload's are its node's affair")
        .with(Entry::workload("there", "b", &["10.0.0.2/32"], &[]).floating("192.0.2.2", "10.0.0.2"))
        .expect(["workload a"]);
    run(&[none, floating, held, refused, elsewhere]);
}
