//! What the kernel of a node has to hold of the cluster as it is. Worked out from what was written, not from what typha
//! or felix made of it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};

use super::Cluster;
use super::objects::{self, Object, TIERS};

/// The policy that is edited to see how soon an edit is in force.
pub const PROBE: &str = "platform.probe";

/// Of one node.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Interface and address of each of its pods.
    pub pods: BTreeMap<String, String>,
    /// Policies in force, by kind and name.
    pub policies: BTreeMap<String, Enforced>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enforced {
    /// That its ingress speaks of.
    pub sources: BTreeSet<String>,
    /// That its egress denies.
    pub port: Option<u32>,
}

impl Cluster {
    /// `probe`: the version of the policy that is edited to measure, if it is there.
    pub fn expected(&self, node: usize, probe: Option<u32>) -> Expected {
        let local: Vec<_> = self.pods.values().filter(|pod| pod.node == node).collect();
        let mut expected = Expected::default();
        expected.pods.extend(local.iter().map(|pod| (pod.interface(), objects::address(pod.node, pod.slot))));
        if local.is_empty() {
            return expected;
        }
        for index in 0..self.shape.global_policies {
            let version = self.policies.get(&index).copied().unwrap_or_default();
            let nets = if index < self.shape.network_sets { objects::nets(index) } else { Vec::new() };
            let enforced =
                Enforced { sources: nets.into_iter().collect(), port: Some(objects::port(version)) };
            let name = format!("{}.{index:03}", TIERS[index % 2].0);
            expected.policies.insert(format!("GlobalNetworkPolicy {name}"), enforced);
        }
        if let Some(version) = probe {
            let enforced = Enforced { sources: BTreeSet::new(), port: Some(objects::port(version)) };
            expected.policies.insert(format!("GlobalNetworkPolicy {PROBE}"), enforced);
        }
        let mut needed = BTreeSet::new();
        for pod in &local {
            for policy in 0..self.shape.policies {
                let (from, to) = objects::from_and_to(policy);
                if pod.app() == to {
                    needed.insert((pod.namespace, from, to));
                }
            }
        }
        for (namespace, from, to) in needed {
            let members = self.pods.values().filter(|pod| pod.namespace == namespace && pod.app() == from);
            let sources = members.map(|pod| objects::address(pod.node, pod.slot)).collect();
            let name = format!("NetworkPolicy {}/{from}-to-{to}", objects::namespace_name(namespace));
            expected.policies.insert(name, Enforced { sources, port: None });
        }
        expected
    }
}

/// That denies one port to every workload, another one in each version.
pub fn probe(version: u32) -> Object {
    let spec = json!({
        "tier": "platform", "order": 5_000, "selector": "all()", "types": ["Egress"],
        "egress": [
            { "action": "Deny", "protocol": "TCP", "destination": { "ports": [objects::port(version)] } },
            { "action": "Pass" },
        ],
    });
    objects::resource("GlobalNetworkPolicy", "globalnetworkpolicies", "", PROBE, Json::Null, spec)
}

/// BGP among these nodes alone: the others have nobody who answers, and each unanswered question for a neighbour takes
/// a place in a table that all networks of the machine share.
pub fn peerings(nodes: &[usize]) -> Vec<Object> {
    let names: Vec<String> = nodes.iter().map(|node| format!("'{}'", objects::node_name(*node))).collect();
    let these = format!("kubernetes.io/hostname in {{{}}}", names.join(", "));
    let mesh = json!({ "nodeToNodeMeshEnabled": false, "asNumber": 64_512 });
    let peers = json!({ "nodeSelector": these, "peerSelector": these });
    vec![
        objects::resource("BGPConfiguration", "bgpconfigurations", "", "default", Json::Null, mesh),
        objects::resource("BGPPeer", "bgppeers", "", "real", Json::Null, peers),
    ]
}

#[cfg(test)]
mod tests {
    use syncer_common::processors::Processors;

    use super::super::Change;
    use super::*;
    use crate::shape::Shape;

    #[test]
    fn what_a_node_enforces_follows_the_cluster() {
        let shape =
            Shape { nodes: 3, pods: 60, namespaces: 2, policies: 2, global_policies: 3, network_sets: 2 };
        let mut cluster = Cluster::new(shape, 1);
        let first = cluster.expected(1, None);
        assert_eq!(first.pods.len(), 20);
        let global = |expected: &Expected, name: &str| {
            expected.policies[&format!("GlobalNetworkPolicy {name}")].clone()
        };
        let set = global(&first, "platform.001");
        assert_eq!((set.sources.len(), set.port), (20, Some(10_000)));
        // No set for the third: it refers to nothing.
        assert!(global(&first, "security.002").sources.is_empty());
        let namespaced = |expected: &Expected| {
            expected
                .policies
                .iter()
                .filter(|(name, _)| name.starts_with("Net"))
                .map(|(_, of)| of.sources.len())
                .sum::<usize>()
        };
        assert!(namespaced(&first) > 0, "{first:?}");

        while !cluster.policies.contains_key(&1) {
            assert!(matches!(cluster.change_policy()[..], [Change::Put(_)]));
        }
        assert_eq!(global(&cluster.expected(1, Some(7)), PROBE).port, Some(10_007));
        assert_eq!(global(&cluster.expected(1, None), "platform.001").port, Some(10_001));
        cluster.delete_namespace();
        assert!(namespaced(&cluster.expected(1, None)) < namespaced(&first));
        cluster.remove_nodes(2);
        assert_eq!(cluster.expected(1, Some(1)), Expected::default());
    }

    #[test]
    fn objects_of_real_nodes_are_ones_that_agents_get() {
        let mut processors = Processors::new();
        for Object { key, value } in peerings(&[1, 2]).into_iter().chain([probe(1)]) {
            let converted = processors.put(&key, &value);
            assert!(
                converted.error.is_none() && !converted.updates.is_empty(),
                "{key}: {:?}",
                converted.error
            );
        }
    }
}
