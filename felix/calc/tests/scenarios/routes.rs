//! How blocks and addresses of other nodes are reached.

use felix_calc::testing::expand::NODE;
use felix_calc::testing::{Entry, State, run};

use crate::local;

const POOL: &str = "10.65.0.0/16";
const OWN: &str = "10.65.0.0/26";
const NEAR: &str = "10.65.1.0/26";
const FAR: &str = "10.65.2.0/26";

/// This node, one of its subnet, one of another; each with a block and a tunnel in it.
fn cluster(name: &'static str, pool: Entry) -> State {
    State::new(name)
        .with(pool)
        .with(Entry::vxlan_node(NODE, ["172.30.0.20/24", ""], ["10.65.0.0", ""]))
        .with(Entry::vxlan_node("near", ["172.30.0.21/24", ""], ["10.65.1.0", ""]))
        .with(Entry::vxlan_node("far", ["172.30.1.22/24", ""], ["10.65.2.0", ""]))
        .with(Entry::block(OWN, NODE, &[]))
        .with(Entry::block(NEAR, "near", &[]))
        .with(Entry::block(FAR, "far", &[]))
}

/// What the cluster has whatever the pool says, and these routes.
fn with_routes(routes: &[&str]) -> Vec<String> {
    let always = [
        "host here 172.30.0.20",
        "host near 172.30.0.21",
        "host far 172.30.1.22",
        "pool 10.65.0.0/16",
        "own vtep 172.30.0.20 10.65.0.0",
        "vtep near 172.30.0.21 10.65.1.0",
        "vtep far 172.30.1.22 10.65.2.0",
    ];
    always.iter().chain(routes).map(|line| (*line).to_owned()).collect()
}

#[test]
fn the_pools_mode_decides_and_may_change() {
    let vxlan = cluster("vxlan", Entry::pool_with(POOL, "always", "")).expect(with_routes(&[
        "route 10.65.0.0/26 vxlan blackhole",
        "route 10.65.1.0/26 vxlan tunnel 10.65.1.0",
        "route 10.65.2.0/26 vxlan tunnel 10.65.2.0",
    ]));
    let cross = cluster("cross-subnet", Entry::pool_with(POOL, "cross-subnet", "")).expect(with_routes(&[
        "route 10.65.0.0/26 vxlan blackhole",
        "route 10.65.1.0/26 vxlan node 172.30.0.21",
        "route 10.65.2.0/26 vxlan tunnel 10.65.2.0",
    ]));
    // The fabric has to know the way to the far one.
    let plain = cluster("plain", Entry::pool_with(POOL, "", "")).expect(with_routes(&[
        "route 10.65.0.0/26 plain blackhole",
        "route 10.65.1.0/26 plain node 172.30.0.21",
    ]));
    let ipip = cluster("ipip", Entry::pool_with(POOL, "", "always")).expect(with_routes(&[
        "route 10.65.0.0/26 ipip blackhole",
        "route 10.65.1.0/26 ipip tunnel 172.30.0.21",
        "route 10.65.2.0/26 ipip tunnel 172.30.1.22",
    ]));
    let ipip_cross =
        cluster("ipip cross-subnet", Entry::pool_with(POOL, "", "cross-subnet")).expect(with_routes(&[
            "route 10.65.0.0/26 ipip blackhole",
            "route 10.65.1.0/26 ipip node 172.30.0.21",
            "route 10.65.2.0/26 ipip tunnel 172.30.1.22",
        ]));
    run(&[vxlan, cross, plain, ipip, ipip_cross]);
}

#[test]
fn a_smaller_pool_within_a_pool_has_its_own_mode_and_no_pool_means_no_route() {
    let both = cluster("both", Entry::pool_with(POOL, "always", "")).with(Entry::pool_with(
        "10.65.2.0/24",
        "",
        "always",
    ));
    let pools = |routes: &[&str]| {
        let mut lines = with_routes(routes);
        lines.push("pool 10.65.2.0/24".into());
        lines
    };
    let both = both.expect(pools(&[
        "route 10.65.0.0/26 vxlan blackhole",
        "route 10.65.1.0/26 vxlan tunnel 10.65.1.0",
        "route 10.65.2.0/26 ipip tunnel 172.30.1.22",
    ]));
    let mut lines = pools(&["route 10.65.2.0/26 ipip tunnel 172.30.1.22"]);
    lines.retain(|line| line != "pool 10.65.0.0/16");
    let small = both.then("small").without(&Entry::pool(POOL)).expect(lines);
    run(&[both, small]);
}

#[test]
fn own_address_and_subnet_move_every_route() {
    let start = cluster("start", Entry::pool_with(POOL, "cross-subnet", "")).expect(with_routes(&[
        "route 10.65.0.0/26 vxlan blackhole",
        "route 10.65.1.0/26 vxlan node 172.30.0.21",
        "route 10.65.2.0/26 vxlan tunnel 10.65.2.0",
    ]));
    let lines = |address: &str, routes: &[&str]| {
        let lines = with_routes(routes).into_iter();
        lines.map(|line| line.replace("172.30.0.20", address)).collect::<Vec<_>>()
    };
    let moved = start
        .then("moved")
        .with(Entry::vxlan_node(NODE, ["172.30.1.20/24", ""], ["10.65.0.0", ""]))
        .expect(lines(
            "172.30.1.20",
            &[
                "route 10.65.0.0/26 vxlan blackhole",
                "route 10.65.1.0/26 vxlan tunnel 10.65.1.0",
                "route 10.65.2.0/26 vxlan node 172.30.1.22",
            ],
        ));
    // Without a prefix length nobody is known to be near.
    let alone = start
        .then("alone")
        .with(Entry::vxlan_node(NODE, ["172.30.0.20", ""], ["10.65.0.0", ""]))
        .expect(with_routes(&[
            "route 10.65.0.0/26 vxlan blackhole",
            "route 10.65.1.0/26 vxlan tunnel 10.65.1.0",
            "route 10.65.2.0/26 vxlan tunnel 10.65.2.0",
        ]));
    run(&[start, moved, alone]);
}

#[test]
fn borrowed_addresses_lead_to_their_borrower() {
    let lent = cluster("lent", Entry::pool_with(POOL, "always", ""))
        .with(Entry::block(OWN, NODE, &[("10.65.0.5", "far")]))
        .with(Entry::block(NEAR, "near", &[("10.65.1.5", "far"), ("10.65.1.6", NODE)]))
        .expect(with_routes(&[
            "route 10.65.0.0/26 vxlan blackhole",
            "route 10.65.0.5/32 vxlan tunnel 10.65.2.0",
            "route 10.65.1.0/26 vxlan tunnel 10.65.1.0",
            "route 10.65.1.5/32 vxlan tunnel 10.65.2.0",
            "route 10.65.2.0/26 vxlan tunnel 10.65.2.0",
        ]));
    // The owner is gone, the borrowers are not.
    let orphaned = lent
        .then("orphaned")
        .with(Entry::block(NEAR, "", &[("10.65.1.5", "far"), ("10.65.1.6", NODE)]))
        .expect(with_routes(&[
            "route 10.65.0.0/26 vxlan blackhole",
            "route 10.65.0.5/32 vxlan tunnel 10.65.2.0",
            // Its tunnel is still there, and no block leads to it.
            "route 10.65.1.0/32 vxlan tunnel 10.65.1.0",
            "route 10.65.1.5/32 vxlan tunnel 10.65.2.0",
            "route 10.65.2.0/26 vxlan tunnel 10.65.2.0",
        ]));
    // A workload that is here beats whatever the block says.
    let moved_here = lent.then("moved here").with(local("a", "10.65.0.5/32", &[])).expect(
        with_routes(&[
            "route 10.65.0.0/26 vxlan blackhole",
            "route 10.65.1.0/26 vxlan tunnel 10.65.1.0",
            "route 10.65.1.5/32 vxlan tunnel 10.65.2.0",
            "route 10.65.2.0/26 vxlan tunnel 10.65.2.0",
        ])
        .into_iter()
        .chain(["workload a".to_owned()]),
    );
    run(&[lent, orphaned, moved_here]);
}

#[test]
fn a_tunnel_outside_its_nodes_blocks_has_a_route_of_its_own() {
    let base = cluster("borrowed", Entry::pool_with(POOL, "always", ""));
    let lines = |tunnel: &str, routes: &[&str]| {
        let lines = with_routes(routes).into_iter();
        lines
            .map(|line| line.replace("172.30.1.22 10.65.2.0", &format!("172.30.1.22 {tunnel}")))
            .collect::<Vec<_>>()
    };
    let borrowed = base
        .with(Entry::vxlan_node("far", ["172.30.1.22/24", ""], ["10.65.1.9", ""]))
        .with(Entry::block(NEAR, "near", &[("10.65.1.9", "far")]))
        .expect(lines(
            "10.65.1.9",
            &[
                "route 10.65.0.0/26 vxlan blackhole",
                "route 10.65.1.0/26 vxlan tunnel 10.65.1.0",
                "route 10.65.1.9/32 vxlan tunnel 10.65.1.9",
                "route 10.65.2.0/26 vxlan tunnel 10.65.1.9",
            ],
        ));
    // The block's record of the loan may come later than the node's.
    let unrecorded = borrowed.then("unrecorded").with(Entry::block(NEAR, "near", &[])).expect(lines(
        "10.65.1.9",
        &[
            "route 10.65.0.0/26 vxlan blackhole",
            "route 10.65.1.0/26 vxlan tunnel 10.65.1.0",
            "route 10.65.1.9/32 vxlan tunnel 10.65.1.9",
            "route 10.65.2.0/26 vxlan tunnel 10.65.1.9",
        ],
    ));
    // A pool of single addresses for tunnels: a block each; the own one is no blackhole.
    let single = base_with_single_blocks().expect(lines(
        "10.65.9.2",
        &[
            "route 10.65.0.0/26 vxlan blackhole",
            "route 10.65.1.0/26 vxlan tunnel 10.65.1.0",
            "route 10.65.2.0/26 vxlan tunnel 10.65.9.2",
            "route 10.65.9.2/32 vxlan tunnel 10.65.9.2",
        ],
    ));
    run(&[borrowed, unrecorded, single]);
}

fn base_with_single_blocks() -> State {
    cluster("single", Entry::pool_with(POOL, "always", ""))
        .with(Entry::vxlan_node("far", ["172.30.1.22/24", ""], ["10.65.9.2", ""]))
        .with(Entry::block("10.65.9.2/32", "far", &[]))
        .with(Entry::block("10.65.9.1/32", NODE, &[]))
}

#[test]
fn a_node_that_leaves_takes_its_routes_along() {
    let all = cluster("all", Entry::pool_with(POOL, "always", "")).expect(with_routes(&[
        "route 10.65.0.0/26 vxlan blackhole",
        "route 10.65.1.0/26 vxlan tunnel 10.65.1.0",
        "route 10.65.2.0/26 vxlan tunnel 10.65.2.0",
    ]));
    let mut lines =
        with_routes(&["route 10.65.0.0/26 vxlan blackhole", "route 10.65.1.0/26 vxlan tunnel 10.65.1.0"]);
    lines.retain(|line| !line.contains("far"));
    let gone = all
        .then("gone")
        .without(&Entry::vxlan_node("far", ["", ""], ["", ""]))
        .without(&Entry::block(FAR, "far", &[]))
        .expect(lines.clone());
    // Its block is still listed, but nobody knows where the node is.
    let lost = all.then("lost").without(&Entry::vxlan_node("far", ["", ""], ["", ""])).expect(lines);
    // No tunnel yet: no route rather than one to nowhere.
    let mut lines =
        with_routes(&["route 10.65.0.0/26 vxlan blackhole", "route 10.65.1.0/26 vxlan tunnel 10.65.1.0"]);
    lines.retain(|line| !line.starts_with("vtep far"));
    let young =
        all.then("young").with(Entry::vxlan_node("far", ["172.30.1.22/24", ""], ["", ""])).expect(lines);
    run(&[all, gone, lost, young]);
}

#[test]
fn families_are_apart() {
    let both = State::new("both")
        .with(Entry::pool_with("fd65::/48", "cross-subnet", ""))
        .with(Entry::pool_with(POOL, "", ""))
        .with(Entry::vxlan_node(NODE, ["172.30.0.20/24", "fd30::20/64"], ["", "fd65::1"]))
        .with(Entry::vxlan_node("near", ["172.30.0.21/24", "fd30::21/64"], ["", "fd65::1:1"]))
        .with(Entry::vxlan_node("far", ["172.30.0.22/24", "fd30:0:0:1::22/64"], ["", "fd65::2:1"]))
        .with(Entry::block("fd65::/122", NODE, &[]))
        .with(Entry::block("fd65::1:0/122", "near", &[]))
        .with(Entry::block("fd65::2:0/122", "far", &[]))
        .with(Entry::block(FAR, "far", &[]))
        .expect([
            "host here 172.30.0.20",
            "host near 172.30.0.21",
            "host far 172.30.0.22",
            "pool 10.65.0.0/16",
            "pool fd65::/48",
            "own vtep fd30::20 fd65::1",
            "vtep near fd30::21 fd65::1:1",
            "vtep far fd30:0:0:1::22 fd65::2:1",
            "route fd65::/122 vxlan blackhole",
            "route fd65::1:0/122 vxlan node fd30::21",
            "route fd65::2:0/122 vxlan tunnel fd65::2:1",
            "route 10.65.2.0/26 plain node 172.30.0.22",
        ]);
    // IP-in-IP is not for IPv6: such a pool counts as plain.
    let lines: Vec<String> = [
        "host here 172.30.0.20",
        "host near 172.30.0.21",
        "host far 172.30.0.22",
        "pool 10.65.0.0/16",
        "pool fd65::/48",
        "own vtep fd30::20 fd65::1",
        "vtep near fd30::21 fd65::1:1",
        "vtep far fd30:0:0:1::22 fd65::2:1",
        "route fd65::/122 plain blackhole",
        "route fd65::1:0/122 plain node fd30::21",
        "route 10.65.2.0/26 plain node 172.30.0.22",
    ]
    .map(str::to_owned)
    .into();
    let ipip = both.then("ipip").with(Entry::pool_with("fd65::/48", "", "always")).expect(lines);
    run(&[both, ipip]);
}
