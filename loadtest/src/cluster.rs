//! A synthetic cluster, the same for the same seed: what is in it, and how it changes. Pure.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

mod expected;
mod objects;

use crate::shape::{PODS_PER_NODE, Shape};
pub use expected::{Enforced, Expected, PROBE, peerings, probe};
use objects::Pod;
pub use objects::{MARK, Object, node_address, node_name, pod_cidr};

/// A change of the datastore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(Object),
    Delete(String),
}

pub struct Cluster {
    shape: Shape,
    random: StdRng,
    pods: BTreeMap<usize, Pod>,
    /// Per node, which addresses of its block are taken.
    taken: Vec<[bool; PODS_PER_NODE]>,
    next_pod: usize,
    /// How often each policy was changed.
    policies: BTreeMap<usize, u32>,
    gone_namespaces: usize,
}

impl Cluster {
    pub fn new(shape: Shape, seed: u64) -> Self {
        let mut cluster = Cluster {
            shape,
            random: StdRng::seed_from_u64(seed),
            pods: BTreeMap::new(),
            taken: vec![[false; PODS_PER_NODE]; shape.nodes],
            next_pod: 0,
            policies: BTreeMap::new(),
            gone_namespaces: 0,
        };
        for index in 0..shape.pods {
            cluster.place(index % shape.nodes);
        }
        cluster
    }

    /// Everything, in an order in which nothing refers to what is not there yet.
    pub fn objects(&self) -> Vec<Object> {
        let mut all = objects::cluster_wide();
        all.extend((0..self.shape.nodes).map(objects::node));
        for namespace in self.gone_namespaces..self.shape.namespaces {
            all.extend(objects::namespace(namespace, self.shape.policies));
        }
        all.extend((0..self.shape.global_policies).map(|index| objects::global_policy(index, 0)));
        all.extend((0..self.shape.network_sets).map(objects::network_set));
        all.extend((0..self.shape.nodes).map(|node| objects::block(node, &self.taken[node])));
        all.extend(self.pods.values().map(|pod| pod.object(0)));
        all
    }

    pub fn nodes(&self) -> impl Iterator<Item = String> + use<> {
        (0..self.shape.nodes).map(objects::node_name)
    }

    /// A pod starts, ends or changes its labels. `mark` says when, and travels with the endpoint.
    pub fn churn(&mut self, mark: u64) -> Vec<Change> {
        match self.random.random_range(0..4) {
            0 => self.start(mark),
            1 => self.end(),
            _ => self.relabel(mark),
        }
    }

    fn start(&mut self, mark: u64) -> Vec<Change> {
        let first = self.random.random_range(0..self.shape.nodes);
        let free = |node: &usize| self.taken[*node].contains(&false);
        let Some(node) = (0..self.shape.nodes).map(|i| (first + i) % self.shape.nodes).find(free) else {
            return self.relabel(mark);
        };
        let id = self.place(node);
        // As a CNI plugin does: first the address, then the endpoint.
        vec![Change::Put(objects::block(node, &self.taken[node])), Change::Put(self.pods[&id].object(mark))]
    }

    fn end(&mut self) -> Vec<Change> {
        self.any_pod().map(|id| self.remove(id)).unwrap_or_default()
    }

    fn remove(&mut self, id: usize) -> Vec<Change> {
        let Some(pod) = self.pods.remove(&id) else { return Vec::new() };
        self.taken[pod.node][pod.slot] = false;
        vec![Change::Delete(pod.key()), Change::Put(objects::block(pod.node, &self.taken[pod.node]))]
    }

    fn relabel(&mut self, mark: u64) -> Vec<Change> {
        let Some(id) = self.any_pod() else { return Vec::new() };
        let pod = self.pods.get_mut(&id).expect("the pod was just found");
        pod.version += 1;
        vec![Change::Put(pod.object(mark))]
    }

    fn any_pod(&mut self) -> Option<usize> {
        if self.pods.is_empty() {
            return None;
        }
        let from = self.random.random_range(0..self.next_pod);
        self.pods.range(from..).next().or_else(|| self.pods.iter().next()).map(|(id, _)| *id)
    }

    /// A new version of a policy that concerns every node.
    pub fn change_policy(&mut self) -> Vec<Change> {
        if self.shape.global_policies == 0 {
            return Vec::new();
        }
        let index = self.random.random_range(0..self.shape.global_policies);
        let version = self.policies.entry(index).or_default();
        *version += 1;
        vec![Change::Put(objects::global_policy(index, *version))]
    }

    /// The next namespace goes, with all that is in it.
    pub fn delete_namespace(&mut self) -> Vec<Change> {
        let namespace = self.gone_namespaces;
        // The last stays: new pods have to live somewhere.
        if namespace + 1 >= self.shape.namespaces {
            return Vec::new();
        }
        self.gone_namespaces += 1;
        let inside: Vec<usize> =
            self.pods.iter().filter(|(_, pod)| pod.namespace == namespace).map(|(id, _)| *id).collect();
        let mut changes: Vec<Change> = inside.into_iter().flat_map(|id| self.remove(id)).collect();
        let rest = objects::namespace(namespace, self.shape.policies);
        changes.extend(rest.into_iter().rev().map(|object| Change::Delete(object.key)));
        changes
    }

    /// The last `count` nodes go, with their pods and blocks. They may not be given pods until they are back.
    pub fn remove_nodes(&mut self, count: usize) -> Vec<Change> {
        let going = self.shape.nodes - count..self.shape.nodes;
        let pods: Vec<usize> =
            self.pods.iter().filter(|(_, pod)| going.contains(&pod.node)).map(|(id, _)| *id).collect();
        let mut changes: Vec<Change> = pods.into_iter().flat_map(|id| self.remove(id)).collect();
        for node in going {
            changes.push(Change::Delete(objects::block(node, &self.taken[node]).key));
            changes.push(Change::Delete(objects::node(node).key));
        }
        changes
    }

    /// They are back, without pods.
    pub fn return_nodes(&mut self, count: usize) -> Vec<Change> {
        let back = self.shape.nodes - count..self.shape.nodes;
        back.flat_map(|node| [objects::node(node), objects::block(node, &self.taken[node])])
            .map(Change::Put)
            .collect()
    }

    /// A new pod on a node that has an address for it.
    fn place(&mut self, node: usize) -> usize {
        let slot = self.taken[node].iter().position(|taken| !taken).expect("a node with a free address");
        self.taken[node][slot] = true;
        let id = self.next_pod;
        self.next_pod += 1;
        let namespaces = self.shape.namespaces - self.gone_namespaces;
        let namespace = self.gone_namespaces + self.random.random_range(0..namespaces);
        self.pods.insert(id, Pod { id, node, slot, namespace, version: 0 });
        id
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use syncer_common::processors::Processors;

    use super::*;

    fn shape() -> Shape {
        Shape { nodes: 7, pods: 60, namespaces: 4, policies: 2, global_policies: 3, network_sets: 2 }
    }

    /// What the datastore holds after changes.
    fn apply(held: &mut BTreeMap<String, Vec<u8>>, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put(Object { key, value }) => {
                    held.insert(key, value);
                }
                Change::Delete(key) => assert!(held.remove(&key).is_some(), "{key} was not there"),
            }
        }
    }

    #[test]
    fn every_object_is_one_that_agents_get() {
        let mut processors = Processors::new();
        let objects = Cluster::new(shape(), 1).objects();
        for Object { key, value } in &objects {
            let converted = processors.put(key, value);
            assert!(converted.error.is_none(), "{:?}", converted.error);
        }
        let keys: BTreeSet<_> = objects.iter().map(|object| &object.key).collect();
        assert_eq!(keys.len(), objects.len());
        assert!(objects.len().abs_diff(shape().objects()) < 10);
    }

    #[test]
    fn same_seed_same_cluster_and_no_address_is_given_twice() {
        let run = |seed| {
            let mut cluster = Cluster::new(shape(), seed);
            let mut held = BTreeMap::new();
            let objects = cluster.objects();
            apply(&mut held, objects.into_iter().map(Change::Put).collect());
            for mark in 1..400 {
                let changes = cluster.churn(mark);
                apply(&mut held, changes);
            }
            let changes = cluster.delete_namespace();
            assert!(changes.len() > 3);
            apply(&mut held, changes);
            apply(&mut held, cluster.change_policy());
            let there = held.len();
            let changes = cluster.remove_nodes(2);
            apply(&mut held, changes);
            assert!(held.len() <= there - 4 && cluster.pods.values().all(|pod| pod.node < 5));
            apply(&mut held, cluster.return_nodes(2));
            let mut addresses = BTreeSet::new();
            for pod in cluster.pods.values() {
                assert!(addresses.insert((pod.node, pod.slot)) && pod.namespace > 0);
            }
            assert_eq!(cluster.taken.iter().flatten().filter(|taken| **taken).count(), addresses.len());
            held
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }
}
