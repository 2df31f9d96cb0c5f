//! Builders for the objects of a small cluster.
#![allow(dead_code)]

pub mod agent;
pub mod cases;
pub mod lab;

use confd::bgp::{BgpModel, LocalSettings, Model};
use confd::render::{Rendered, Syntax, render};
use syncer_common::model::{BlockAffinityKey, Key, ResourceKey, Update, Value, values};

pub fn resource(kind: &str, name: &str) -> Key {
    Key::Resource(ResourceKey { kind: kind.into(), namespace: String::new(), name: name.into() })
}

pub fn node(name: &str, v4: &str, v6: &str) -> Update {
    node_with(name, v4, v6, |_| {})
}

pub fn node_with(name: &str, v4: &str, v6: &str, change: impl FnOnce(&mut values::Node)) -> Update {
    let mut node = values::Node {
        bgp: Some(values::NodeBgp { ipv4_address: v4.into(), ipv6_address: v6.into(), ..Default::default() }),
        ..Default::default()
    };
    change(&mut node);
    Update::set(resource("Node", name), Value::Node(node))
}

pub fn labelled(name: &str, v4: &str, label: &str) -> Update {
    node_with(name, v4, "", |node| {
        node.labels.insert(label.into(), "true".into());
    })
}

pub fn reflector(name: &str, v4: &str, id: &str) -> Update {
    node_with(name, v4, "", |node| {
        node.labels.insert("reflector".into(), "true".into());
        if let Some(bgp) = &mut node.bgp {
            bgp.route_reflector_cluster_id = id.into();
        }
    })
}

pub fn pool(cidr: &str) -> Update {
    pool_with(cidr, |_| {})
}

pub fn pool_with(cidr: &str, change: impl FnOnce(&mut values::IpPool)) -> Update {
    let mut pool = values::IpPool { cidr: cidr.into(), ..Default::default() };
    change(&mut pool);
    Update::set(Key::IpPool { cidr: cidr.parse().unwrap() }, Value::IpPool(pool))
}

pub fn block(host: &str, cidr: &str) -> Update {
    block_in(host, cidr, "confirmed")
}

pub fn block_in(host: &str, cidr: &str, state: &str) -> Update {
    let key =
        BlockAffinityKey { host: host.into(), cidr: cidr.parse().unwrap(), affinity_type: "host".into() };
    let value = values::BlockAffinity { state: state.into(), deleted: false };
    Update::set(Key::BlockAffinity(key), Value::BlockAffinity(value))
}

pub fn configuration(change: impl FnOnce(&mut values::BgpConfiguration)) -> Update {
    configuration_of("default", change)
}

pub fn configuration_of(name: &str, change: impl FnOnce(&mut values::BgpConfiguration)) -> Update {
    let mut configuration = values::BgpConfiguration::default();
    change(&mut configuration);
    Update::set(resource("BGPConfiguration", name), Value::BgpConfiguration(configuration))
}

pub fn without_mesh() -> Update {
    configuration(|configuration| configuration.node_to_node_mesh_enabled = Some(false))
}

pub fn peer(name: &str, change: impl FnOnce(&mut values::BgpPeer)) -> Update {
    let mut peer = values::BgpPeer::default();
    change(&mut peer);
    Update::set(resource("BGPPeer", name), Value::BgpPeer(peer))
}

pub fn local(node: &str) -> LocalSettings {
    LocalSettings { node: node.into(), ..Default::default() }
}

pub fn compute(node: &str, updates: &[Update]) -> BgpModel {
    let forward = compute_in_order(node, updates.iter());
    let backward = compute_in_order(node, updates.iter().rev());
    assert_eq!(forward, backward, "the order of arrival must not matter");
    forward
}

fn compute_in_order<'a>(node: &str, updates: impl Iterator<Item = &'a Update>) -> BgpModel {
    let mut model = Model::default();
    for update in updates {
        model.on_update(update.clone());
    }
    model.compute(&local(node))
}

pub fn rendered(node: &str, updates: &[Update]) -> Rendered {
    render(&compute(node, updates), Syntax::Bird2).remove(0)
}

pub fn names(model: &BgpModel) -> Vec<String> {
    model.peers().map(|peer| peer.name()).collect()
}

pub fn problems(model: &BgpModel) -> Vec<String> {
    model.problems.iter().map(ToString::to_string).collect()
}
