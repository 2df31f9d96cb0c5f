//! Which sessions a node gets, by table.
// Helpers of tests are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use confd::bgp::{NextHop, Peer};
use syncer_common::model::{Update, values};

use support::*;

fn three_nodes() -> Vec<Update> {
    vec![
        node("n1", "10.0.0.1/24", "fd00::1/64"),
        node("n2", "10.0.0.2/24", "fd00::2/64"),
        node("n3", "10.0.0.3/24", ""),
    ]
}

fn with(mut base: Vec<Update>, more: impl IntoIterator<Item = Update>) -> Vec<Update> {
    base.extend(more);
    base
}

fn find(updates: &[Update], node: &str, name: &str) -> Peer {
    let model = compute(node, updates);
    let known = names(&model);
    model
        .peers()
        .find(|peer| peer.name() == name)
        .unwrap_or_else(|| panic!("{name} is not in {known:?}"))
        .clone()
}

fn reflectors() -> Vec<Update> {
    vec![
        without_mesh(),
        reflector("r1", "10.0.0.1/24", "1.0.0.1"),
        reflector("r2", "10.0.0.2/24", "1.0.0.1"),
        node("n3", "10.0.0.3/24", ""),
        peer("to-reflectors", |peer| {
            peer.node_selector = "all()".into();
            peer.peer_selector = "has(reflector)".into();
        }),
    ]
}

#[test]
fn the_mesh_joins_every_node_in_both_families() {
    let model = compute("n1", &three_nodes());
    assert_eq!(names(&model), ["Mesh_10_0_0_2", "Mesh_10_0_0_3", "Mesh_fd00__2"]);
    assert!(model.problems.is_empty(), "{:?}", model.problems);
    assert_eq!(names(&compute("n3", &three_nodes())), ["Mesh_10_0_0_1", "Mesh_10_0_0_2"]);
}

#[test]
fn exactly_one_side_of_a_mesh_session_is_passive() {
    let nodes = vec![node("a", "9.9.9.9/8", ""), node("b", "10.0.0.1/8", "")];
    assert!(find(&nodes, "b", "Mesh_9_9_9_9").passive, "9.9.9.9 is greater as text");
    assert!(!find(&nodes, "a", "Mesh_10_0_0_1").passive);
}

#[test]
fn a_mesh_peer_without_its_own_as_has_the_default_one() {
    let nodes = vec![
        node_with("n1", "10.0.0.1/24", "", |node| node.bgp.as_mut().unwrap().as_number = Some(65001)),
        node("n2", "10.0.0.2/24", ""),
        configuration(|configuration| configuration.as_number = Some(65000)),
    ];
    let peer = find(&nodes, "n1", "Mesh_10_0_0_2");
    assert_eq!((peer.remote_as, peer.same_as), (65000, false));
    assert_eq!(find(&nodes, "n2", "Mesh_10_0_0_1").remote_as, 65001);
}

#[test]
fn a_mesh_password_that_is_not_at_hand_withholds_the_mesh_and_says_so() {
    let password = values::SecretKeyRef { name: "bgp".into(), key: "mesh".into() };
    let updates = with(three_nodes(), [configuration(|it| it.node_mesh_password = Some(password))]);
    let model = compute("n1", &updates);
    assert!(names(&model).is_empty());
    assert_eq!(model.problems.len(), 1);
    assert!(problems(&model)[0].contains("nodeMeshPassword"), "{:?}", model.problems);
}

#[test]
fn reflectors_leave_the_mesh() {
    let updates = vec![
        node("n1", "10.0.0.1/24", ""),
        node("n2", "10.0.0.2/24", ""),
        reflector("r", "10.0.0.9/24", "1.0.0.1"),
    ];
    assert_eq!(names(&compute("n1", &updates)), ["Mesh_10_0_0_2"]);
    assert!(names(&compute("r", &updates)).is_empty());
}

#[test]
fn clients_peer_with_every_reflector_and_reflectors_with_clients_and_one_another() {
    let updates = reflectors();
    assert_eq!(names(&compute("n3", &updates)), ["Node_10_0_0_1", "Node_10_0_0_2"]);
    assert_eq!(names(&compute("r1", &updates)), ["Node_10_0_0_2", "Node_10_0_0_3"]);
    assert!(find(&updates, "r1", "Node_10_0_0_3").reflector_client);
    assert!(!find(&updates, "r1", "Node_10_0_0_2").reflector_client, "same cluster ID");
    assert!(!find(&updates, "n3", "Node_10_0_0_1").reflector_client);
}

#[test]
fn manual_reverse_peering_leaves_the_other_side_alone() {
    let updates = with(
        three_nodes(),
        [
            without_mesh(),
            peer("p", |peer| {
                peer.node = "n1".into();
                peer.peer_ip = "10.0.0.2".into();
                peer.as_number = 64512;
                peer.reverse_peering = "Manual".into();
            }),
        ],
    );
    assert_eq!(names(&compute("n1", &updates)), ["Node_10_0_0_2"]);
    assert!(names(&compute("n2", &updates)).is_empty());
    let automatic = with(
        updates[..updates.len() - 1].to_vec(),
        [peer("p", |peer| {
            peer.node = "n1".into();
            peer.peer_ip = "10.0.0.2".into();
        })],
    );
    assert_eq!(names(&compute("n2", &automatic)), ["Node_10_0_0_1"]);
}

#[test]
fn a_global_peer_wins_over_a_node_peer_and_the_first_name_wins_in_a_pass() {
    let external = |number| {
        move |peer: &mut values::BgpPeer| {
            peer.peer_ip = "10.9.0.1".into();
            peer.as_number = number;
        }
    };
    let updates = with(
        three_nodes(),
        [
            without_mesh(),
            peer("b", external(65002)),
            peer("a", external(65001)),
            peer("0", |peer| {
                external(65003)(peer);
                peer.node_selector = "all()".into();
            }),
        ],
    );
    let model = compute("n1", &updates);
    assert_eq!(names(&model), ["Global_10_9_0_1"]);
    assert_eq!(model.peers().next().unwrap().remote_as, 65001);
}

#[test]
fn ports_come_from_the_peer_or_from_the_node_that_it_is() {
    let updates = with(
        three_nodes(),
        [
            configuration(|it| {
                it.node_to_node_mesh_enabled = Some(false);
                it.listen_port = Some(1179);
            }),
            configuration_of("node.n2", |it| it.listen_port = Some(2179)),
            peer("external", |peer| {
                peer.peer_ip = "[fd00::99]:1790".into();
                peer.as_number = 65001;
            }),
            peer("n2", |peer| {
                peer.peer_ip = "10.0.0.2".into();
                peer.as_number = 64512;
            }),
            peer("other-as", |peer| {
                peer.peer_ip = "10.0.0.3".into();
                peer.as_number = 65001;
            }),
        ],
    );
    assert_eq!(
        names(&compute("n1", &updates)),
        ["Global_10_0_0_2_port_2179", "Global_10_0_0_3", "Global_fd00__99_port_1790"]
    );
}

#[test]
fn own_addresses_and_absent_families_give_no_sessions() {
    let updates = with(
        three_nodes(),
        [
            without_mesh(),
            peer("own", |peer| {
                peer.peer_ip = "10.0.0.3".into();
                peer.as_number = 64512;
                peer.reverse_peering = "Manual".into();
            }),
            peer("v6", |peer| {
                peer.peer_ip = "fd00::99".into();
                peer.as_number = 64512;
            }),
        ],
    );
    assert!(names(&compute("n3", &updates)).is_empty());
    assert_eq!(names(&compute("n1", &updates)), ["Global_10_0_0_3", "Global_fd00__99"]);
}

#[test]
fn a_peer_that_needs_a_password_or_a_filter_is_withheld_and_keeps_its_place() {
    let updates = with(
        three_nodes(),
        [
            without_mesh(),
            peer("a", |peer| {
                peer.peer_ip = "10.9.0.1".into();
                peer.as_number = 65001;
                peer.password = Some(values::SecretKeyRef { name: "secret".into(), key: "k".into() });
            }),
            peer("b", |peer| {
                peer.peer_ip = "10.9.0.1".into();
                peer.as_number = 65001;
            }),
            peer("c", |peer| {
                peer.peer_ip = "10.9.0.2".into();
                peer.as_number = 65001;
                peer.filters = vec!["no-default".into()];
            }),
        ],
    );
    let model = compute("n1", &updates);
    assert!(names(&model).is_empty());
    assert_eq!(
        problems(&model),
        [
            "BGPPeer(a): spec.password: the password (Secret secret, key k) is not available; withheld: Global_10_9_0_1",
            "BGPPeer(c): spec.filters: BGPFilter objects are not available (no-default); withheld: Global_10_9_0_2",
        ]
    );
}

#[test]
fn options_of_a_peer_reach_its_session() {
    let updates = with(
        three_nodes(),
        [
            without_mesh(),
            peer("a", |peer| {
                peer.peer_ip = "10.9.0.1".into();
                peer.as_number = 65001;
                peer.local_as_number = Some(65001);
                peer.num_allowed_local_as_numbers = Some(2);
                peer.source_address = "None".into();
                peer.ttl_security = Some(3);
                peer.reachable_by = "10.0.0.254".into();
                peer.keep_original_next_hop = true;
                peer.max_restart_seconds = Some(90);
                peer.keepalive_seconds = Some(7);
            }),
            peer("b", |peer| {
                peer.peer_ip = "10.9.0.2".into();
                peer.as_number = 65001;
                peer.keep_original_next_hop = true;
            }),
        ],
    );
    let a = find(&updates, "n1", "Global_10_9_0_1");
    assert_eq!((a.local_as, a.same_as, a.allowed_own_as), (Some(65001), true, Some(2)));
    assert_eq!((a.source, a.ttl_security), (None, Some(3)));
    assert_eq!(a.reachable_by, Some("10.0.0.254".parse().unwrap()));
    assert_eq!((a.restart_seconds, a.keepalive_seconds), (Some(90), Some(7)));
    assert_eq!(a.next_hop, NextHop::Auto, "kept only towards other AS numbers");
    assert_eq!(find(&updates, "n1", "Global_10_9_0_2").next_hop, NextHop::Keep);
}

#[test]
fn a_bad_object_takes_only_itself_away() {
    let updates = with(
        three_nodes(),
        [
            node("bad-address", "10.0.0.300/24", ""),
            peer("bad-ip", |peer| peer.peer_ip = "router.example".into()),
            peer("link-local", |peer| peer.peer_ip = "fe80::1".into()),
            peer("bad-selector", |peer| {
                peer.node_selector = "has(".into();
                peer.peer_ip = "10.9.0.3".into();
            }),
            peer("good", |peer| {
                peer.peer_ip = "10.9.0.1".into();
                peer.as_number = 65001;
            }),
        ],
    );
    let model = compute("n1", &updates);
    assert_eq!(names(&model), ["Global_10_9_0_1", "Mesh_10_0_0_2", "Mesh_10_0_0_3", "Mesh_fd00__2"]);
    let objects: Vec<(&str, &str)> =
        model.problems.iter().map(|problem| (problem.object.as_str(), problem.field.as_str())).collect();
    assert_eq!(
        objects,
        [
            ("Node(bad-address)", "spec.bgp.ipv4Address"),
            ("BGPPeer(bad-ip)", "spec.peerIP"),
            ("BGPPeer(bad-selector)", "spec.nodeSelector"),
            ("BGPPeer(link-local)", "spec.peerIP"),
        ]
    );
}

#[test]
fn of_two_mirrored_ends_one_waits() {
    for (updates, pairs) in
        [(reflectors(), [("n3", "10.0.0.3", "r1", "10.0.0.1"), ("r1", "10.0.0.1", "r2", "10.0.0.2")])]
    {
        for (left, left_address, right, right_address) in pairs {
            let waits = |node: &str, other: &str| {
                let text = rendered(node, &updates).text().to_owned();
                let name = format!("protocol bgp Node_{}", other.replace('.', "_"));
                let at = text.find(&name).unwrap_or_else(|| panic!("{node} has no {name}"));
                let end = at + text[at..].find("\n}").unwrap();
                text[at..end].contains("passive on;")
            };
            assert!(waits(left, right_address) != waits(right, left_address), "{left} and {right}");
        }
    }
}

#[test]
fn a_deleted_peer_takes_its_sessions_away() {
    let mut model = confd::bgp::Model::default();
    for update in three_nodes() {
        assert!(model.on_update(update.clone()));
        assert!(!model.on_update(update), "the same again is no change");
    }
    assert!(model.on_update(Update::delete(resource("Node", "n2"))));
    assert_eq!(names(&model.compute(&local("n1"))), ["Mesh_10_0_0_3"]);
}
