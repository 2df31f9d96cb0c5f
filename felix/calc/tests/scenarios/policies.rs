//! Which policies and profiles apply, and in which order.

use felix_calc::testing::{Entry, State, allow, deny, pass, run};

use crate::{local, remote};

#[test]
fn policy_is_active_while_a_local_label_matches() {
    let policy = Entry::policy("p", "role == 'db'").inbound(allow());
    let bare = State::new("no match").with(policy).with(local("a", "10.0.0.1/32", &[]));
    let bare = bare.with(remote("b", "10.0.0.2/32", &[("role", "db")])).expect(["workload a"]);
    let matching = bare
        .then("label added")
        .with(local("a", "10.0.0.1/32", &[("role", "db")]))
        .expect(["policy p in(allow)", "workload a default(in: p; out: p)"]);
    let other = matching
        .then("selector moved away")
        .with(Entry::policy("p", "role == 'web'").inbound(allow()))
        .expect(["workload a"]);
    run(&[bare, matching, other]);
}

#[test]
fn labels_of_profiles_are_inherited_and_shadowed_by_own_ones() {
    let policy = Entry::policy("p", "team == 'red'");
    let inherits = State::new("inherits")
        .with(policy)
        .with(local("a", "10.0.0.1/32", &[]).profiles(&["kns.x"]))
        .with(local("b", "10.0.0.2/32", &[("team", "blue")]).profiles(&["kns.x"]))
        .with(Entry::profile_rules("kns.x", vec![], vec![allow()]))
        .with(Entry::profile_labels("kns.x", &[("team", "red")]))
        .expect(["policy p", "profile kns.x out(allow)", "workload a default(in: p; out: p)", "workload b"]);
    let moved = inherits
        .then("namespace label changed")
        .with(Entry::profile_labels("kns.x", &[("team", "green")]))
        .expect(["profile kns.x out(allow)", "workload a", "workload b"]);
    let gone = moved.then("namespace labels gone").without(&Entry::profile_labels("kns.x", &[])).expect([
        "profile kns.x out(allow)",
        "workload a",
        "workload b",
    ]);
    run(&[inherits, moved, gone]);
}

#[test]
fn missing_profile_denies_both_ways() {
    let missing = State::new("missing")
        .with(local("a", "10.0.0.1/32", &[]).profiles(&["one", "two"]))
        .with(Entry::profile_rules("one", vec![allow()], vec![]))
        .expect(["profile one in(allow)", "profile two in(deny) out(deny)", "workload a"]);
    let there = missing.then("created").with(Entry::profile_rules("two", vec![], vec![allow()])).expect([
        "profile one in(allow)",
        "profile two out(allow)",
        "workload a",
    ]);
    let unused = there
        .then("no longer named")
        .with(local("a", "10.0.0.1/32", &[]).profiles(&["one"]))
        .expect(["profile one in(allow)", "workload a"]);
    run(&[missing, there, unused]);
}

#[test]
fn profile_stays_while_any_local_endpoint_names_it() {
    let rules = Entry::profile_rules("shared", vec![allow()], vec![]);
    let (a, b) = (local("a", "10.0.0.1/32", &[]), local("b", "10.0.0.2/32", &[]));
    let both = State::new("both")
        .with(rules)
        .with(a.clone().profiles(&["shared"]))
        .with(b.clone().profiles(&["shared"]))
        .with(remote("c", "10.0.0.3/32", &[]).profiles(&["far"]))
        .expect(["profile shared in(allow)", "workload a", "workload b"]);
    let one = both.then("one").without(&a).expect(["profile shared in(allow)", "workload b"]);
    let none = one.then("none").with(b).expect(["workload b"]);
    run(&[both, one, none]);
}

#[test]
fn policies_sort_by_order_then_name() {
    let numbered = State::new("orders")
        .with(local("a", "10.0.0.1/32", &[]))
        .with(Entry::policy("z", "all()").order(1.0))
        .with(Entry::policy("b", "all()").order(2.5))
        .with(Entry::policy("a", "all()").order(2.5))
        .with(Entry::policy("negative", "all()").order(-1.0))
        .with(Entry::policy("c", "all()"))
        .expect([
            "policy a",
            "policy b",
            "policy c",
            "policy z",
            "policy negative",
            "workload a default(in: negative z a b c; out: negative z a b c)",
        ]);
    let moved = numbered.then("order changed").with(Entry::policy("z", "all()")).expect([
        "policy a",
        "policy b",
        "policy c",
        "policy z",
        "policy negative",
        "workload a default(in: negative a b c z; out: negative a b c z)",
    ]);
    run(&[numbered, moved]);
}

#[test]
fn equal_order_sorts_by_name_then_namespace_then_kind() {
    let network = |namespace: &str, name: &str| {
        Entry::policy_of_kind("NetworkPolicy", namespace, name, "all()").order(5.0)
    };
    let state = State::new("same order")
        .with(local("a", "10.0.0.1/32", &[]))
        .with(network("ns2", "m"))
        .with(network("ns1", "m"))
        .with(network("ns1", "k"))
        .with(Entry::policy_of_kind("KubernetesNetworkPolicy", "ns1", "m", "all()").order(5.0))
        .with(Entry::policy("l", "all()").order(5.0))
        .expect([
            "NetworkPolicy ns1/k",
            "NetworkPolicy ns1/m",
            "NetworkPolicy ns2/m",
            "KubernetesNetworkPolicy ns1/m",
            "policy l",
            "workload a default(in: k l m m m; out: k l m m m)",
        ]);
    run(&[state]);
}

#[test]
fn tiers_sort_by_order_then_name_and_carry_their_default_action() {
    let state = State::new("three tiers")
        .with(local("a", "10.0.0.1/32", &[]))
        .with(Entry::tier("default", None, "Deny"))
        .with(Entry::tier("platform", Some(20.0), "Pass"))
        .with(Entry::tier("security", Some(10.0), "Deny"))
        .with(Entry::tier("unused", Some(1.0), "Deny"))
        .with(Entry::policy("d", "all()"))
        .with(Entry::policy("p", "all()").in_tier("platform").inbound(pass()))
        .with(Entry::policy("s", "all()").in_tier("security").inbound(pass()))
        .expect([
            "policy d",
            "policy p in(next-tier)",
            "policy s in(next-tier)",
            "workload a security(in: s; out: s) platform+pass(in: p; out: p) default(in: d; out: d)",
        ]);
    let swapped = state
        .then("order changed")
        .with(Entry::tier("security", Some(20.5), "Pass"))
        .with(Entry::tier("default", Some(20.0), "Deny"))
        .expect([
            "policy d",
            "policy p in(next-tier)",
            "policy s in(next-tier)",
            "workload a default(in: d; out: d) platform+pass(in: p; out: p) security+pass(in: s; out: s)",
        ]);
    run(&[state, swapped]);
}

#[test]
fn missing_tier_applies_last_and_denies() {
    let tier = Entry::tier("access", Some(1.0), "Pass");
    let there = State::new("tier exists")
        .with(local("a", "10.0.0.1/32", &[]))
        .with(tier.clone())
        .with(Entry::tier("default", None, "Deny"))
        .with(Entry::policy("e", "all()").in_tier("access"))
        .with(Entry::policy("d", "all()"))
        .expect(["policy d", "policy e", "workload a access+pass(in: e; out: e) default(in: d; out: d)"]);
    let gone = there.then("tier deleted").without(&tier).expect([
        "policy d",
        "policy e",
        "workload a default(in: d; out: d) access(in: e; out: e)",
    ]);
    run(&[there, gone]);
}

#[test]
fn policy_moves_between_tiers() {
    let first = State::new("in default")
        .with(local("a", "10.0.0.1/32", &[]))
        .with(Entry::tier("default", None, "Deny"))
        .with(Entry::tier("other", Some(1.0), "Deny"))
        .with(Entry::policy("p", "all()"))
        .expect(["policy p", "workload a default(in: p; out: p)"]);
    let second = first
        .then("in other")
        .with(Entry::policy("p", "all()").in_tier("other"))
        .expect(["policy p", "workload a other(in: p; out: p)"]);
    let unnamed = second
        .then("no tier is the default one")
        .with(Entry::policy("p", "all()").in_tier(""))
        .expect(["policy p", "workload a default(in: p; out: p)"]);
    run(&[first, second, unnamed]);
}

#[test]
fn types_decide_directions_and_none_means_both() {
    let with_types = |name: &'static str, types: &[&str]| {
        State::new(name)
            .with(local("a", "10.0.0.1/32", &[]))
            .with(Entry::policy("p", "all()").types(types).inbound(allow()))
    };
    run(&[
        with_types("none", &[]).expect(["policy p in(allow)", "workload a default(in: p; out: p)"]),
        with_types("in", &["ingress"]).expect(["policy p in(allow)", "workload a default(in: p; out:)"]),
        with_types("out", &["egress"]).expect(["policy p in(allow)", "workload a default(in:; out: p)"]),
        with_types("both", &["ingress", "egress"])
            .expect(["policy p in(allow)", "workload a default(in: p; out: p)"]),
    ]);
}

#[test]
fn staged_policies_change_nothing() {
    let kinds = ["StagedNetworkPolicy", "StagedKubernetesNetworkPolicy", "StagedGlobalNetworkPolicy"];
    let staged = kinds.into_iter().fold(State::new("staged"), |state, kind| {
        state.with(Entry::policy_of_kind(kind, "ns", "s", "all()").inbound(deny().from("all()")))
    });
    let staged = staged.with(local("a", "10.0.0.1/32", &[])).expect(["workload a"]);
    let enforced = staged
        .then("enforced")
        .with(Entry::policy_of_kind("NetworkPolicy", "ns", "s", "all()").inbound(deny()))
        .expect(["NetworkPolicy ns/s in(deny)", "workload a default(in: s; out: s)"]);
    run(&[staged, enforced]);
}

#[test]
fn hint_makes_a_policy_active_without_a_match() {
    let hinted = Entry::policy("p", "role == 'nobody'")
        .inbound(allow())
        .edit_policy(|policy| policy.performance_hints.push("AssumeNeededOnEveryNode".into()));
    let with_hint = State::new("hint").with(hinted).expect(["policy p in(allow)"]);
    let without = with_hint
        .then("no hint")
        .with(Entry::policy("p", "role == 'nobody'").inbound(allow()))
        .expect([""; 0]);
    run(&[with_hint, without]);
}

#[test]
fn policy_that_cannot_be_read_is_absent() {
    let good = Entry::policy("p", "all()").inbound(allow());
    let fine = State::new("fine")
        .with(local("a", "10.0.0.1/32", &[]))
        .with(good.clone())
        .expect(["policy p in(allow)", "workload a default(in: p; out: p)"]);
    let broken = [
        fine.then("selector").with(Entry::policy("p", "all(").inbound(allow())),
        fine.then("rule selector").with(good.clone().inbound(allow().from("a =="))),
        fine.then("port").with(good.clone().inbound(allow().protocol("tcp").to_number(1, 70_000))),
        fine.then("port range").with(good.clone().inbound(allow().protocol("tcp").to_number(5, 4))),
        fine.then("net")
            .with(good.clone().inbound(allow().edit_src(|src| src.nets.push("10.0.0.0/40".into())))),
    ];
    let mut states = vec![fine.clone()];
    states.extend(broken.into_iter().map(|state| state.expect(["workload a"])));
    run(&states);
}

#[test]
fn profile_that_cannot_be_read_is_missing() {
    let fine = State::new("fine")
        .with(local("a", "10.0.0.1/32", &[]).profiles(&["p"]))
        .with(Entry::profile_rules("p", vec![allow()], vec![]))
        .expect(["profile p in(allow)", "workload a"]);
    let broken = fine
        .then("broken")
        .with(Entry::profile_rules("p", vec![allow().from("((")], vec![]))
        .expect(["profile p in(deny) out(deny)", "workload a"]);
    run(&[fine, broken]);
}
