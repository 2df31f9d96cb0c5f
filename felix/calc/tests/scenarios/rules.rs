//! What rules ask for, and how the cluster's changes reach them.

use felix_calc::testing::expand::NODE;
use felix_calc::testing::{Entry, Rule, State, allow, deny, pass, port_set, run, selector_set};

use crate::{local, remote, set};

const ME: &str = "workload me default(in: p; out: p)";

/// A local workload under a policy with these inbound rules.
fn under(name: &'static str, rules: impl IntoIterator<Item = Rule>) -> State {
    let policy = rules.into_iter().fold(Entry::policy("p", "has(me)"), Entry::inbound);
    State::new(name).with(local("me", "10.0.0.1/32", &[("me", "")])).with(policy)
}

#[test]
fn tcp_and_udp_of_one_number_are_not_confused() {
    let (tcp, udp) = (port_set("all()", "tcp", "dns"), port_set("all()", "udp", "dns"));
    let rules = [allow().protocol("tcp").to_port("dns"), deny().protocol("udp").to_port("dns")];
    let line = format!("policy p in(allow dst-port={tcp}) in(deny dst-port={udp})");
    let server = |protocol| remote("dns", "10.0.0.53/32", &[]).port("dns", protocol, 53);
    let by_udp = under("udp", rules.clone()).with(server("udp")).expect([
        line.clone(),
        ME.into(),
        set(&tcp, &[]),
        set(&udp, &["10.0.0.53,udp:53"]),
    ]);
    let by_tcp = by_udp.then("tcp").with(server("tcp")).expect([
        line.clone(),
        ME.into(),
        set(&tcp, &["10.0.0.53,tcp:53"]),
        set(&udp, &[]),
    ]);
    let by_both = by_tcp.then("both").with(server("tcp").port("dns", "udp", 53)).expect([
        line,
        ME.into(),
        set(&tcp, &["10.0.0.53,tcp:53"]),
        set(&udp, &["10.0.0.53,udp:53"]),
    ]);
    run(&[by_udp, by_tcp, by_both]);
}

#[test]
fn named_and_numeric_ports_together_keep_the_selectors_set() {
    let (selected, named) = (selector_set("has(web)"), port_set("has(web)", "tcp", "http"));
    let rule = allow().protocol("tcp").to("has(web)").to_port("http").to_number(8080, 8080);
    let line = format!("policy p in(allow dst={selected} dst-port={named})");
    let both = under("both", [rule])
        .with(remote("a", "10.0.0.2/32", &[("web", "")]).port("http", "tcp", 80))
        .with(remote("b", "10.0.0.3/32", &[]).port("http", "tcp", 80))
        .expect([line, ME.into(), set(&selected, &["10.0.0.2"]), set(&named, &["10.0.0.2,tcp:80"])]);
    let only_named = both
        .then("the number goes")
        .with(Entry::policy("p", "has(me)").inbound(allow().protocol("tcp").to("has(web)").to_port("http")))
        .expect([
            format!("policy p in(allow dst-port={named})"),
            ME.into(),
            set(&named, &["10.0.0.2,tcp:80"]),
        ]);
    run(&[both, only_named]);
}

#[test]
fn a_port_name_shared_by_pods_means_each_ones_own_number() {
    let named = port_set("has(web)", "tcp", "http");
    let state = under("shared", [allow().protocol("tcp").to("has(web)").to_port("http")])
        .with(remote("a", "10.0.0.2/32", &[("web", "")]).port("http", "tcp", 80))
        .with(remote("b", "10.0.0.3/32", &[("web", "")]).port("http", "tcp", 8080).port("http", "tcp", 8081))
        .expect([
            format!("policy p in(allow dst-port={named})"),
            ME.into(),
            set(&named, &["10.0.0.2,tcp:80", "10.0.0.3,tcp:8080", "10.0.0.3,tcp:8081"]),
        ]);
    run(&[state]);
}

#[test]
fn a_named_port_of_the_source_narrows_the_source() {
    let named = port_set("all()", "udp", "rtp");
    let source = |side: &mut syncer_common::model::values::EntityRule| {
        let port = syncer_common::model::values::port::Port::Name("rtp".into());
        side.ports.push(syncer_common::model::values::Port { port: Some(port) });
    };
    let state = under("source", [allow().protocol("udp").edit_src(source)])
        .with(remote("a", "10.0.0.2/32", &[]).port("rtp", "udp", 5004))
        .expect([
            format!("policy p in(allow src-port={named})"),
            ME.into(),
            set(&named, &["10.0.0.2,udp:5004"]),
        ]);
    run(&[state]);
}

#[test]
fn an_endpoint_has_its_ports_at_all_its_addresses_of_both_families() {
    let named = port_set("all()", "tcp", "http");
    let server = Entry::workload("there", "a", &["10.0.0.2/32", "10.0.0.3/32", "fd00::2/128"], &[]);
    let state =
        under("addresses", [allow().protocol("tcp").to_port("http")]).with(server.port("http", "tcp", 80));
    run(&[state.expect([
        format!("policy p in(allow dst-port={named})"),
        ME.into(),
        set(&named, &["10.0.0.2,tcp:80", "10.0.0.3,tcp:80", "fd00::2,tcp:80"]),
    ])]);
}

#[test]
fn rules_keep_their_order_and_their_actions() {
    let log = |mut rule: Rule| {
        rule.0.action = "log".into();
        rule
    };
    let state = under("actions", [log(allow()), deny(), pass(), allow()])
        .expect(["policy p in(log) in(deny) in(next-tier) in(allow)", ME]);
    let turned = state
        .then("turned round")
        .with([allow(), pass(), deny()].into_iter().fold(Entry::policy("p", "has(me)"), Entry::inbound))
        .expect(["policy p in(allow) in(next-tier) in(deny)", ME]);
    run(&[state, turned]);
}

#[test]
fn a_policy_without_rules_still_applies() {
    let empty = under("no rules", []).expect(["policy p", ME]);
    let gone = empty.then("no policy").without(&Entry::policy("p", "")).expect(["workload me"]);
    run(&[empty, gone]);
}

#[test]
fn nets_that_overlap_or_repeat_stay_until_the_last_of_them_goes() {
    let id = selector_set("has(net)");
    let line = format!("policy p in(allow src={id})");
    let one = |nets: &[&str]| Entry::network_set("one", nets, &[("net", "")]);
    let two = |nets: &[&str]| Entry::network_set("two", nets, &[("net", "")]);
    let both = under("overlap", [allow().from("has(net)")])
        .with(one(&["10.1.0.0/16", "10.1.2.0/24", "10.1.2.0/24"]))
        .with(two(&["10.1.2.7/24", "10.1.2.3"]))
        .expect([line.clone(), ME.into(), set(&id, &["10.1.0.0/16", "10.1.2.0/24", "10.1.2.3"])]);
    let fewer = both.then("one lets go").with(one(&["10.1.0.0/16"])).expect([
        line.clone(),
        ME.into(),
        set(&id, &["10.1.0.0/16", "10.1.2.0/24", "10.1.2.3"]),
    ]);
    let none = fewer.then("the other, too").with(two(&["10.1.2.3"])).expect([
        line,
        ME.into(),
        set(&id, &["10.1.0.0/16", "10.1.2.3"]),
    ]);
    run(&[both, fewer, none]);
}

#[test]
fn a_members_labels_follow_its_namespace_and_service_account() {
    let id = selector_set("team == 'red' && sa == 'web'");
    let line = format!("policy p in(allow src={id})");
    let namespace = |team| Entry::profile_labels("kns.x", &[("team", team)]);
    let account = |name| Entry::profile_labels("ksa.x.web", &[("sa", name)]);
    let pod = remote("a", "10.0.0.2/32", &[]).profiles(&["kns.x", "ksa.x.web"]);
    let expect = |state: State, members: &[&str]| state.expect([line.clone(), ME.into(), set(&id, members)]);
    let base =
        under("neither", [allow().from("team == 'red' && sa == 'web'")]).with(pod).with(namespace("blue"));
    let account_only = base.then("account").with(account("web"));
    let both = account_only.then("both").with(namespace("red"));
    let other = both.then("other account").with(account("db"));
    run(&[expect(base, &[]), expect(account_only, &[]), expect(both, &["10.0.0.2"]), expect(other, &[])]);
}

#[test]
fn an_endpoint_that_moves_to_another_node_stays_a_member_and_is_no_longer_ours() {
    let id = selector_set("app == 'a'");
    let line = format!("policy p in(allow src={id})");
    let labels = [("app", "a")];
    let here = under("here", [allow().from("app == 'a'")])
        .with(Entry::workload(NODE, "a", &["10.0.0.2/32"], &labels))
        .expect([line.clone(), ME.into(), "workload a".into(), set(&id, &["10.0.0.2"])]);
    let there = here
        .then("there")
        .without(&Entry::workload(NODE, "a", &[], &[]))
        .with(remote("a", "10.0.0.2/32", &labels))
        .expect([line, ME.into(), set(&id, &["10.0.0.2"])]);
    run(&[here, there]);
}

#[test]
fn policies_of_one_name_in_two_namespaces_are_two() {
    let policy = |namespace: &str| {
        Entry::policy_of_kind("NetworkPolicy", namespace, "p", &format!("ns == '{namespace}'"))
            .inbound(allow())
    };
    let both = State::new("both")
        .with(local("a", "10.0.0.1/32", &[("ns", "x")]))
        .with(local("b", "10.0.0.2/32", &[("ns", "y")]))
        .with(policy("x"))
        .with(policy("y"))
        .expect([
            "NetworkPolicy x/p in(allow)",
            "NetworkPolicy y/p in(allow)",
            "workload a default(in: p; out: p)",
            "workload b default(in: p; out: p)",
        ]);
    let one = both.then("one").without(&policy("x")).expect([
        "NetworkPolicy y/p in(allow)",
        "workload a",
        "workload b default(in: p; out: p)",
    ]);
    run(&[both, one]);
}

#[test]
fn a_tier_without_a_matching_policy_is_left_out() {
    let tiers = State::new("three tiers")
        .with(local("a", "10.0.0.1/32", &[("app", "a")]))
        .with(Entry::tier("first", Some(1.0), "Deny"))
        .with(Entry::tier("second", Some(2.0), "Pass"))
        .with(Entry::tier("default", Some(3.0), "Deny"))
        .with(Entry::policy("other", "app == 'b'").in_tier("first"))
        .with(Entry::policy("mine", "app == 'a'").in_tier("second"))
        .expect(["policy mine", "workload a second+pass(in: mine; out: mine)"]);
    let matching =
        tiers.then("the first matches").with(Entry::policy("other", "has(app)").in_tier("first")).expect([
            "policy mine",
            "policy other",
            "workload a first(in: other; out: other) second+pass(in: mine; out: mine)",
        ]);
    let strict = matching.then("the second denies").with(Entry::tier("second", Some(2.0), "Deny")).expect([
        "policy mine",
        "policy other",
        "workload a first(in: other; out: other) second(in: mine; out: mine)",
    ]);
    run(&[tiers, matching, strict]);
}

#[test]
fn workloads_of_another_orchestrator_and_interface_prefix_are_workloads() {
    let id = selector_set("has(app)");
    let mut instance = Entry::workload(NODE, "vm", &["10.0.0.9/32"], &[("app", "")]);
    if let syncer_common::model::Key::WorkloadEndpoint(key) = &mut instance.key {
        key.orchestrator = "openstack".into();
        key.workload = "instance-1".into();
    }
    if let syncer_common::model::Value::WorkloadEndpoint(value) = &mut instance.value {
        value.name = "tap1234".into();
    }
    let state = under("openstack", [allow().from("has(app)")]).with(instance).expect([
        format!("policy p in(allow src={id})"),
        ME.into(),
        "workload instance-1".into(),
        set(&id, &["10.0.0.9"]),
    ]);
    run(&[state]);
}

#[test]
fn a_thousand_sets_come_and_go_with_their_rules() {
    let selectors: Vec<String> = (0..200).map(|n| format!("app == 'a{n}'")).collect();
    let many = under("many", selectors.iter().map(|selector| allow().from(selector))).with(remote(
        "a",
        "10.0.0.2/32",
        &[("app", "a7")],
    ));
    let rules: String =
        selectors.iter().map(|selector| format!(" in(allow src={})", selector_set(selector))).collect();
    let mut lines = vec![format!("policy p{rules}"), ME.into()];
    lines.extend(
        selectors
            .iter()
            .enumerate()
            .map(|(n, selector)| set(&selector_set(selector), if n == 7 { &["10.0.0.2"] } else { &[] })),
    );
    let none = many.then("none").with(Entry::policy("p", "has(me)")).expect(["policy p", ME]);
    run(&[many.expect(lines), none]);
}

#[test]
fn a_named_host_endpoint_and_that_of_all_interfaces_are_told_apart() {
    let state = State::new("both")
        .with(Entry::host_endpoint(NODE, "eth0", &["192.0.2.1"], &[("zone", "edge")]))
        .with(Entry::host_endpoint(NODE, "*", &[], &[("zone", "any")]))
        .with(Entry::host_endpoint("there", "*", &[], &[("zone", "edge")]))
        .with(Entry::policy("edge", "zone == 'edge'"))
        .with(Entry::policy("all", "has(zone)").types(&["ingress"]))
        .expect([
            "policy all",
            "policy edge",
            "host endpoint here-eth0 default(in: all edge; out: edge)",
            "host endpoint here-* default(in: all; out:)",
        ]);
    run(&[state]);
}
