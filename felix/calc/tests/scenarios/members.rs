//! What IP sets hold.

use felix_calc::testing::{Entry, State, allow, deny, port_set, run, selector_set};

use crate::{remote, set};

/// A local workload under a policy with one inbound rule, and what these two give.
fn under(name: &'static str, rule: felix_calc::testing::Rule) -> State {
    State::new(name)
        .with(Entry::workload("here", "me", &[], &[("me", "")]))
        .with(Entry::policy("p", "has(me)").inbound(rule))
}

const ME: &str = "workload me default(in: p; out: p)";

#[test]
fn label_change_moves_a_member_in_and_out() {
    let id = selector_set("role == 'web'");
    let policy = format!("policy p in(allow src={id})");
    let expect =
        |state: State, members: &[&str]| state.expect([policy.clone(), ME.into(), set(&id, members)]);
    let base = under("nobody", allow().from("role == 'web'"));
    let empty = base.clone().with(remote("b", "10.0.0.2/32", &[("role", "db")]));
    let one = empty.then("one").with(remote("b", "10.0.0.2/32", &[("role", "web")]));
    let moved = one.then("another address").with(remote("b", "10.0.0.3/32", &[("role", "web")]));
    let two = moved.then("two, one v6").with(remote("c", "fd00::4/128", &[("role", "web")]));
    run(&[
        expect(empty, &[]),
        expect(one, &["10.0.0.2"]),
        expect(moved, &["10.0.0.3"]),
        expect(two, &["10.0.0.3", "fd00::4"]),
    ]);
}

#[test]
fn shared_address_stays_until_its_last_owner_goes() {
    let id = selector_set("has(x)");
    let policy = format!("policy p in(allow src={id})");
    let expect =
        |state: State, members: &[&str]| state.expect([policy.clone(), ME.into(), set(&id, members)]);
    let (b, c) = (remote("b", "10.0.0.2/32", &[("x", "")]), remote("c", "10.0.0.2/32", &[("x", "")]));
    let both = under("both", allow().from("has(x)")).with(b.clone()).with(c.clone());
    let unlabelled = both.then("one lost its label").with(remote("b", "10.0.0.2/32", &[]));
    let deleted = both.then("one deleted").without(&c);
    let none = deleted.then("none").without(&b);
    run(&[
        expect(both, &["10.0.0.2"]),
        expect(unlabelled, &["10.0.0.2"]),
        expect(deleted, &["10.0.0.2"]),
        expect(none, &[]),
    ]);
}

#[test]
fn address_handed_over_between_endpoints_in_one_flush_is_no_change() {
    let id = selector_set("has(x)");
    let policy = format!("policy p in(allow src={id})");
    let expect = |state: State| state.expect([policy.clone(), ME.into(), set(&id, &["10.0.0.2"])]);
    let b = remote("b", "10.0.0.2/32", &[("x", "")]);
    let first = under("b has it", allow().from("has(x)")).with(b.clone());
    let second = first.then("c has it").without(&b).with(remote("c", "10.0.0.2/32", &[("x", "")]));
    run(&[expect(first), expect(second)]);
}

#[test]
fn named_port_collects_addresses_and_numbers_by_protocol() {
    let (tcp, udp) = (port_set("all()", "tcp", "dns"), port_set("all()", "udp", "dns"));
    let state = under("both protocols", allow().protocol("tcp").to_port("dns"))
        .with(
            Entry::policy("p", "has(me)")
                .inbound(allow().protocol("tcp").to_port("dns"))
                .inbound(allow().protocol("udp").to_port("dns")),
        )
        .with(remote("b", "10.0.0.2/32", &[]).port("dns", "tcp", 53).port("dns", "udp", 5353))
        .with(remote("c", "10.0.0.3/32", &[]).port("dns", "udp", 53).port("other", "udp", 54))
        .with(remote("d", "fd00::3/128", &[]).port("dns", "tcp", 53).port("dns", "sctp", 55));
    run(&[state.expect([
        format!("policy p in(allow dst-port={tcp}) in(allow dst-port={udp})"),
        ME.into(),
        set(&tcp, &["10.0.0.2,tcp:53", "fd00::3,tcp:53"]),
        set(&udp, &["10.0.0.2,udp:5353", "10.0.0.3,udp:53"]),
    ])]);
}

#[test]
fn named_port_without_protocol_takes_all_protocols() {
    let any = port_set("all()", "any", "dns");
    let state = under("any", allow().to_port("dns"))
        .with(remote("b", "10.0.0.2/32", &[]).port("dns", "tcp", 53).port("dns", "udp", 53))
        .with(remote("c", "10.0.0.3/32", &[]).port("dns", "sctp", 53));
    run(&[state.expect([
        format!("policy p in(allow dst-port={any})"),
        ME.into(),
        set(&any, &["10.0.0.2,tcp:53", "10.0.0.2,udp:53", "10.0.0.3,sctp:53"]),
    ])]);
}

#[test]
fn named_port_is_narrowed_by_the_selector_and_replaces_it() {
    let (web, ports) = (selector_set("role == 'web'"), port_set("role == 'web'", "tcp", "http"));
    let rule = allow().protocol("tcp").to("role == 'web'").to_port("http");
    let world = |state: State| {
        state
            .with(remote("b", "10.0.0.2/32", &[("role", "web")]).port("http", "tcp", 80))
            .with(remote("c", "10.0.0.3/32", &[("role", "db")]).port("http", "tcp", 81))
    };
    let named = world(under("only named", rule.clone())).expect([
        format!("policy p in(allow dst-port={ports})"),
        ME.into(),
        set(&ports, &["10.0.0.2,tcp:80"]),
    ]);
    let mixed = world(under("named and numeric", rule.to_number(443, 443))).expect([
        format!("policy p in(allow dst={web} dst-port={ports})"),
        ME.into(),
        set(&web, &["10.0.0.2"]),
        set(&ports, &["10.0.0.2,tcp:80"]),
    ]);
    let numeric = world(under("only numeric", allow().protocol("tcp").to("role == 'web'").to_number(1, 9)))
        .expect([format!("policy p in(allow dst={web})"), ME.into(), set(&web, &["10.0.0.2"])]);
    run(&[named, mixed, numeric]);
}

#[test]
fn negated_named_port_uses_the_positive_selector_and_keeps_it() {
    let (web, ports) = (selector_set("role == 'web'"), port_set("role == 'web'", "tcp", "http"));
    let state = under("negated port", deny().protocol("tcp").to("role == 'web'").not_to_port("http"))
        .with(remote("b", "10.0.0.2/32", &[("role", "web")]).port("http", "tcp", 80))
        .with(remote("c", "10.0.0.3/32", &[]).port("http", "tcp", 80));
    run(&[state.expect([
        format!("policy p in(deny dst={web} !dst-port={ports})"),
        ME.into(),
        set(&web, &["10.0.0.2"]),
        set(&ports, &["10.0.0.2,tcp:80"]),
    ])]);
}

#[test]
fn port_change_of_an_endpoint_changes_members() {
    let ports = port_set("all()", "tcp", "http");
    let policy = format!("policy p in(allow dst-port={ports})");
    let world = |name, number| {
        under(name, allow().protocol("tcp").to_port("http"))
            .with(remote("b", "10.0.0.2/32", &[]).port("http", "tcp", number))
    };
    let expect =
        |state: State, member: &str| state.expect([policy.clone(), ME.into(), set(&ports, &[member])]);
    run(&[expect(world("80", 80), "10.0.0.2,tcp:80"), expect(world("81", 81), "10.0.0.2,tcp:81")]);
}

#[test]
fn host_endpoints_are_members_with_their_ports() {
    let (hosts, ports) = (selector_set("has(host)"), port_set("has(host)", "tcp", "ssh"));
    let rule = allow().protocol("tcp").to("has(host)").to_port("ssh");
    let state = under("host endpoint", rule.to_number(1, 1)).with(
        Entry::host_endpoint("there", "eth0", &["192.0.2.1", "2001:db8::1"], &[("host", "")])
            .port("ssh", "tcp", 22),
    );
    run(&[state.expect([
        format!("policy p in(allow dst={hosts} dst-port={ports})"),
        ME.into(),
        set(&hosts, &["192.0.2.1", "2001:db8::1"]),
        set(&ports, &["192.0.2.1,tcp:22", "2001:db8::1,tcp:22"]),
    ])]);
}

#[test]
fn negated_selector_alone_stays_negated() {
    let id = selector_set("role == 'web'");
    let state = under("negated", allow().not_from("role == 'web'"))
        .with(remote("b", "10.0.0.2/32", &[("role", "web")]))
        .with(remote("c", "10.0.0.3/32", &[]));
    run(&[state.expect([format!("policy p in(allow !src={id})"), ME.into(), set(&id, &["10.0.0.2"])])]);
}

#[test]
fn negated_selector_is_tested_on_the_same_endpoint_as_the_positive_one() {
    let id = selector_set("(has(x)) && !(role == 'web')");
    let state = under("shared address", allow().from("has(x)").not_from("role == 'web'"))
        .with(remote("b", "10.0.0.2/32", &[("x", ""), ("role", "web")]))
        .with(remote("c", "10.0.0.2/32", &[("x", "")]))
        .with(remote("d", "10.0.0.4/32", &[("x", ""), ("role", "web")]));
    run(&[state.expect([format!("policy p in(allow src={id})"), ME.into(), set(&id, &["10.0.0.2"])])]);
}

#[test]
fn network_sets_bring_nets_and_split_the_default_route() {
    let id = selector_set("has(net)");
    let policy = format!("policy p in(allow src={id})");
    let expect =
        |state: State, members: &[&str]| state.expect([policy.clone(), ME.into(), set(&id, members)]);
    let base = under("nets", allow().from("has(net)"));
    let of = |nets: &[&str]| Entry::network_set("n", nets, &[("net", "")]);
    let nets = base.clone().with(of(&["10.0.0.0/8", "192.0.2.7/32", "10.0.0.0/8", "10.1.0.0/16"]));
    let default = nets.then("default").with(of(&["0.0.0.0/0", "::/0", "0.0.0.0/1"]));
    let shared = default.then("shared with another").with(Entry::network_set(
        "m",
        &["128.0.0.0/1", "10.0.0.0/8"],
        &[("net", "")],
    ));
    let host_bits = shared.then("host bits and plain addresses").with(of(&["10.9.9.9/8", "192.0.2.7"]));
    run(&[
        expect(nets, &["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7"]),
        expect(default, &["0.0.0.0/1", "128.0.0.0/1", "8000::/1", "::/1"]),
        expect(shared, &["0.0.0.0/1", "10.0.0.0/8", "128.0.0.0/1", "8000::/1", "::/1"]),
        expect(host_bits, &["10.0.0.0/8", "128.0.0.0/1", "192.0.2.7"]),
    ]);
}

#[test]
fn network_sets_inherit_labels_of_their_namespace() {
    let id = selector_set("pcns.team == 'red'");
    let policy = format!("policy p in(allow src={id})");
    let expect =
        |state: State, members: &[&str]| state.expect([policy.clone(), ME.into(), set(&id, members)]);
    let red = under("red", allow().from("pcns.team == 'red'"))
        .with(Entry::network_set("ns/n", &["10.0.0.0/8"], &[]).profiles(&["kns.ns"]))
        .with(remote("b", "10.0.0.2/32", &[]).profiles(&["kns.ns"]))
        .with(Entry::profile_labels("kns.ns", &[("pcns.team", "red")]));
    let blue = red.then("blue").with(Entry::profile_labels("kns.ns", &[("pcns.team", "blue")]));
    let back = blue
        .then("one of them on its own")
        .with(Entry::network_set("ns/n", &["10.0.0.0/8"], &[("pcns.team", "red")]).profiles(&["kns.ns"]));
    run(&[expect(red, &["10.0.0.0/8", "10.0.0.2"]), expect(blue, &[]), expect(back, &["10.0.0.0/8"])]);
}

#[test]
fn set_lives_while_any_active_policy_or_profile_needs_it() {
    let id = selector_set("has(x)");
    let b = remote("b", "10.0.0.2/32", &[("x", "")]);
    let all = State::new("policy and profile")
        .with(b)
        .with(Entry::workload("here", "me", &[], &[("me", "")]).profiles(&["prof"]))
        .with(Entry::policy("p", "has(me)").inbound(allow().from("has(x)")))
        .with(Entry::profile_rules("prof", vec![], vec![allow().to("has(x)")]))
        .expect([
            format!("policy p in(allow src={id})"),
            format!("profile prof out(allow dst={id})"),
            ME.into(),
            set(&id, &["10.0.0.2"]),
        ]);
    let profile_only = all.then("profile only").without(&Entry::policy("p", "")).expect([
        format!("profile prof out(allow dst={id})"),
        "workload me".into(),
        set(&id, &["10.0.0.2"]),
    ]);
    let none = profile_only
        .then("neither")
        .with(Entry::profile_rules("prof", vec![], vec![allow()]))
        .expect(["profile prof out(allow)", "workload me"]);
    run(&[all, profile_only, none]);
}

#[test]
fn rule_edit_swaps_sets() {
    let (x, y) = (selector_set("has(x)"), selector_set("has(y)"));
    let world = |state: State| state.with(remote("b", "10.0.0.2/32", &[("x", ""), ("y", "")]));
    let first = world(under("x", allow().from("has(x)")));
    let second = world(under("y", allow().from("has(y)")));
    run(&[
        first.expect([format!("policy p in(allow src={x})"), ME.into(), set(&x, &["10.0.0.2"])]),
        second.expect([format!("policy p in(allow src={y})"), ME.into(), set(&y, &["10.0.0.2"])]),
    ]);
}

#[test]
fn equal_selectors_in_other_spelling_share_a_set() {
    let id = selector_set("a in {'x', 'y'}");
    let state = under("two spellings", allow().from("a in {'x','y'}"))
        .with(
            Entry::policy("p", "has(me)")
                .inbound(allow().from("a in {'x','y'}"))
                .outbound(allow().to("  a in { \"y\", \"x\", } ")),
        )
        .with(remote("b", "10.0.0.2/32", &[("a", "x")]));
    run(&[state.expect([
        format!("policy p in(allow src={id}) out(allow dst={id})"),
        ME.into(),
        set(&id, &["10.0.0.2"]),
    ])]);
}

/// Rules from and to the service kube-system/dns, and the ids of their sets.
fn service() -> (felix_calc::testing::Rule, felix_calc::testing::Rule, String, String) {
    let edit = |side: &mut syncer_common::model::values::EntityRule| {
        side.service_name = "dns".into();
        side.service_namespace = "kube-system".into();
    };
    let id = |with_ports| felix_calc::ip_set::IpSetDef::service("kube-system", "dns", with_ports).id;
    (allow().edit_src(edit), allow().edit_dst(edit), id(false), id(true))
}

#[test]
fn a_services_sets_hold_the_endpoints_of_all_its_slices() {
    let (source, destination, without_ports, with_ports) = service();
    let policy = Entry::policy("p", "has(me)").inbound(source.clone()).outbound(destination);
    let lines = |addresses: &[&str], ports: &[&str]| {
        [
            format!("policy p in(allow src={without_ports}) out(allow dst-service={with_ports})"),
            ME.into(),
            set(&without_ports, addresses),
            set(&with_ports, ports),
        ]
    };
    let slice = |name: &str, addresses: &[&str]| {
        Entry::slice("kube-system", name, "dns", addresses, &[("udp", 53), ("tcp", 53)])
    };
    let none = under("no endpoints", source)
        .with(policy)
        .with(Entry::slice("kube-system", "other-1", "other", &["10.9.9.9"], &[("tcp", 1)]))
        .with(Entry::slice("default", "dns-1", "dns", &["10.9.9.8"], &[("tcp", 1)]))
        .expect(lines(&[], &[]));
    let two = none
        .then("two slices share an address")
        .with(slice("dns-1", &["10.0.0.3", "10.0.0.4"]))
        .with(slice("dns-2", &["10.0.0.4", "fd00::3"]))
        .expect(lines(
            &["10.0.0.3", "10.0.0.4", "fd00::3"],
            &[
                "10.0.0.3,tcp:53",
                "10.0.0.3,udp:53",
                "10.0.0.4,tcp:53",
                "10.0.0.4,udp:53",
                "fd00::3,tcp:53",
                "fd00::3,udp:53",
            ],
        ));
    let one = two
        .then("one slice loses it")
        .with(slice("dns-1", &["10.0.0.3"]))
        .without(&slice("dns-2", &[]))
        .expect(lines(&["10.0.0.3"], &["10.0.0.3,tcp:53", "10.0.0.3,udp:53"]));
    let moved = one
        .then("the slice is another service's")
        .with(Entry::slice("kube-system", "dns-1", "other", &["10.0.0.3"], &[("udp", 53)]))
        .expect(lines(&[], &[]));
    run(&[none, two, one, moved]);
}

#[test]
fn a_services_port_without_number_is_in_no_set() {
    let (_, destination, _, with_ports) = service();
    let mut any = Entry::slice("kube-system", "dns-1", "dns", &["10.0.0.3"], &[("tcp", 80), ("udp", 53)]);
    if let syncer_common::model::Value::EndpointSlice(slice) = &mut any.value {
        slice.ports[0].port = None;
    }
    let state = State::new("any port")
        .with(crate::local("me", "10.0.0.1/32", &[("me", "")]))
        .with(Entry::policy("p", "has(me)").types(&["egress"]).outbound(destination))
        .with(any);
    run(&[state.expect([
        format!("policy p out(allow dst-service={with_ports})"),
        "workload me default(in:; out: p)".into(),
        set(&with_ports, &["10.0.0.3,udp:53"]),
    ])]);
}
