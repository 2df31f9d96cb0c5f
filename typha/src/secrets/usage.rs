//! Which nodes use which passwords, by the objects that say so. Pure.
//!
//! A node uses a password when one of its peerings could need it: it is in a mesh that has one, or a BGPPeer with one
//! speaks about it or names it as the other end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use syncer_common::model::{Key, Update, Value, values};
use syncer_common::selector::Selector;

/// A Secret and a key in it.
pub type Reference = (String, String);

#[derive(Default)]
pub struct Usage {
    nodes: HashMap<String, Node>,
    /// Those that have a password.
    peers: BTreeMap<String, Peer>,
    mesh: Option<Reference>,
}

#[derive(PartialEq)]
struct Node {
    labels: BTreeMap<String, String>,
    addresses: Vec<IpAddr>,
    reflects: bool,
}

struct Peer {
    password: Reference,
    node: String,
    nodes: Option<Selector>,
    /// The other end, unless it has no side of its own to configure.
    reverse: Option<Reverse>,
    object: values::BgpPeer,
}

enum Reverse {
    Nodes(Selector),
    Address(IpAddr),
}

impl Usage {
    /// Takes one change in; `true` when a node may use other passwords now.
    pub fn on_update(&mut self, update: &Update) -> bool {
        let Key::Resource(key) = &update.key else { return false };
        match (key.kind.as_str(), &update.value) {
            ("Node", Ok(Value::Node(node))) => {
                let node = Node::of(node);
                if self.nodes.get(&key.name) == Some(&node) {
                    return false;
                }
                self.nodes.insert(key.name.clone(), node);
                !self.is_idle()
            }
            ("Node", Err(_)) => self.nodes.remove(&key.name).is_some() && !self.is_idle(),
            ("BGPPeer", Ok(Value::BgpPeer(object))) => match Peer::of(object) {
                Some(peer) => {
                    let before = self.peers.insert(key.name.clone(), peer);
                    before.is_none_or(|before| before.object != *object)
                }
                None => self.peers.remove(&key.name).is_some(),
            },
            ("BGPPeer", Err(_)) => self.peers.remove(&key.name).is_some(),
            ("BGPConfiguration", Ok(Value::BgpConfiguration(configuration))) if key.name == "default" => {
                let meshed = configuration.node_to_node_mesh_enabled.unwrap_or(true);
                self.set_mesh(configuration.node_mesh_password.as_ref().filter(|_| meshed).map(reference))
            }
            ("BGPConfiguration", Err(_)) if key.name == "default" => self.set_mesh(None),
            _ => false,
        }
    }

    fn set_mesh(&mut self, mesh: Option<Reference>) -> bool {
        std::mem::replace(&mut self.mesh, mesh.clone()) != mesh
    }

    /// Nobody uses a password.
    fn is_idle(&self) -> bool {
        self.mesh.is_none() && self.peers.is_empty()
    }

    /// What a node uses.
    pub fn of(&self, name: &str) -> BTreeSet<&Reference> {
        let Some(node) = self.nodes.get(name) else { return BTreeSet::new() };
        let mesh = self.mesh.iter().filter(|_| !node.reflects && !node.addresses.is_empty());
        let peers = self.peers.values().filter(|peer| peer.concerns(name, node)).map(|peer| &peer.password);
        mesh.chain(peers).collect()
    }

    /// What any object names.
    pub fn all(&self) -> BTreeSet<&Reference> {
        self.mesh.iter().chain(self.peers.values().map(|peer| &peer.password)).collect()
    }
}

impl Node {
    fn of(node: &values::Node) -> Node {
        let bgp = node.bgp.clone().unwrap_or_default();
        let address = |text: &String| text.split('/').next()?.parse().ok();
        Node {
            labels: node.labels.clone(),
            addresses: [&bgp.ipv4_address, &bgp.ipv6_address].into_iter().filter_map(address).collect(),
            reflects: !bgp.route_reflector_cluster_id.is_empty(),
        }
    }
}

impl Peer {
    /// None without a password, and where the object cannot be understood: confd leaves it out, too.
    fn of(object: &values::BgpPeer) -> Option<Peer> {
        let password = reference(object.password.as_ref()?);
        if !object.local_workload_selector.is_empty() {
            return None;
        }
        let nodes = match object.node_selector.as_str() {
            "" => None,
            _ if !object.node.is_empty() => None,
            text => Some(Selector::parse(text).ok()?),
        };
        let reverse = if object.reverse_peering == "Manual" {
            None
        } else if object.peer_selector.is_empty() {
            address(&object.peer_ip).map(Reverse::Address)
        } else {
            Some(Reverse::Nodes(Selector::parse(&object.peer_selector).ok()?))
        };
        Some(Peer { password, node: object.node.clone(), nodes, reverse, object: object.clone() })
    }

    fn concerns(&self, name: &str, node: &Node) -> bool {
        let own_side = match &self.nodes {
            Some(selector) => selector.matches(&node.labels),
            None => self.node.is_empty() || self.node == name,
        };
        own_side
            || match &self.reverse {
                Some(Reverse::Nodes(selector)) => selector.matches(&node.labels),
                Some(Reverse::Address(address)) => node.addresses.contains(address),
                None => false,
            }
    }
}

fn reference(reference: &values::SecretKeyRef) -> Reference {
    (reference.name.clone(), reference.key.clone())
}

/// Of `address`, `address:port` and `[address]:port`.
fn address(peer_ip: &str) -> Option<IpAddr> {
    let bare = peer_ip.trim_start_matches('[').trim_end_matches(']');
    let with_port = || peer_ip.parse::<std::net::SocketAddr>().ok().map(|socket| socket.ip());
    bare.parse().ok().or_else(with_port)
}

#[cfg(test)]
mod tests {
    use syncer_common::model::ResourceKey;

    use super::*;

    fn key(kind: &str, name: &str) -> Key {
        Key::Resource(ResourceKey { kind: kind.into(), namespace: String::new(), name: name.into() })
    }

    fn node(name: &str, address: &str, rack: &str) -> Update {
        let node = values::Node {
            labels: BTreeMap::from([("rack".to_owned(), rack.to_owned())]),
            bgp: Some(values::NodeBgp { ipv4_address: format!("{address}/16"), ..Default::default() }),
            ..Default::default()
        };
        Update { key: key("Node", name), value: Ok(Value::Node(node)) }
    }

    fn peer(name: &str, change: impl FnOnce(&mut values::BgpPeer)) -> Update {
        let password = Some(values::SecretKeyRef { name: "bgp".into(), key: name.into() });
        let mut peer = values::BgpPeer { password, ..Default::default() };
        change(&mut peer);
        Update { key: key("BGPPeer", name), value: Ok(Value::BgpPeer(peer)) }
    }

    fn used(usage: &Usage, node: &str) -> Vec<String> {
        usage.of(node).into_iter().map(|(_, key)| key.clone()).collect()
    }

    #[test]
    fn a_node_uses_the_passwords_of_its_own_peerings_and_of_those_with_it() {
        let mut usage = Usage::default();
        for update in
            [node("n1", "10.0.0.1", "r1"), node("n2", "10.0.0.2", "r2"), node("n3", "10.0.0.3", "r3")]
        {
            assert!(!usage.on_update(&update), "no peering has a password");
        }
        let global = |peer: &mut values::BgpPeer| peer.peer_ip = "10.9.0.1".into();
        for update in [
            peer("rack", |peer| {
                peer.node_selector = "rack == 'r1'".into();
                peer.peer_ip = "10.9.0.1".into();
            }),
            peer("one", |peer| {
                peer.node = "n2".into();
                peer.peer_ip = "10.0.0.3:179".into();
            }),
            peer("selected", |peer| {
                peer.node = "n3".into();
                peer.peer_selector = "rack == 'r2'".into();
            }),
            peer("manual", |peer| {
                peer.node = "n3".into();
                peer.peer_selector = "rack == 'r1'".into();
                peer.reverse_peering = "Manual".into();
            }),
        ] {
            assert!(usage.on_update(&update));
            assert!(!usage.on_update(&update), "the same again");
        }
        assert_eq!(used(&usage, "n1"), ["rack"]);
        assert_eq!(used(&usage, "n2"), ["one", "selected"]);
        assert_eq!(used(&usage, "n3"), ["manual", "one", "selected"]);
        assert!(used(&usage, "stranger").is_empty());
        usage.on_update(&peer("everybody", global));
        assert_eq!(used(&usage, "n1"), ["everybody", "rack"]);
        assert!(usage.on_update(&node("n1", "10.0.0.1", "r9")), "it leaves its rack");
        assert_eq!(used(&usage, "n1"), ["everybody"]);
        let gone = Update::delete(key("BGPPeer", "everybody"));
        assert!(usage.on_update(&gone));
        assert!(used(&usage, "n1").is_empty());
    }

    #[test]
    fn the_mesh_uses_its_password_while_it_is_on_and_reflectors_do_not() {
        let mut usage = Usage::default();
        usage.on_update(&node("n1", "10.0.0.1", "r1"));
        let mut configuration = values::BgpConfiguration {
            node_mesh_password: Some(values::SecretKeyRef { name: "bgp".into(), key: "mesh".into() }),
            ..Default::default()
        };
        let update = |configuration: &values::BgpConfiguration| Update {
            key: key("BGPConfiguration", "default"),
            value: Ok(Value::BgpConfiguration(configuration.clone())),
        };
        assert!(usage.on_update(&update(&configuration)));
        assert_eq!(used(&usage, "n1"), ["mesh"]);
        let bgp = values::NodeBgp {
            ipv4_address: "10.0.0.1/16".into(),
            route_reflector_cluster_id: "1.0.0.1".into(),
            ..Default::default()
        };
        let reflector = values::Node { bgp: Some(bgp), ..Default::default() };
        usage.on_update(&Update { key: key("Node", "n1"), value: Ok(Value::Node(reflector)) });
        assert!(used(&usage, "n1").is_empty());
        configuration.node_to_node_mesh_enabled = Some(false);
        assert!(usage.on_update(&update(&configuration)));
        assert!(usage.all().is_empty());
    }
}
