//! How large a synthetic cluster is.

use std::str::FromStr;

/// Numbers of objects. Pods are spread evenly over nodes and namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    pub nodes: usize,
    pub pods: usize,
    pub namespaces: usize,
    /// Per namespace.
    pub policies: usize,
    /// Cluster-wide, over three tiers.
    pub global_policies: usize,
    pub network_sets: usize,
}

/// More pods than a block of 64 addresses holds would make blocks a matter of their own.
pub const PODS_PER_NODE: usize = 64;

impl Shape {
    /// Objects in the datastore, about.
    pub fn objects(&self) -> usize {
        self.nodes * 2
            + self.pods
            + self.namespaces * (2 + self.policies)
            + self.global_policies
            + self.network_sets
            + 5
    }

    pub fn check(&self) -> Result<(), String> {
        if self.nodes == 0 || self.namespaces == 0 {
            return Err("a cluster has at least one node and one namespace".into());
        }
        if self.nodes > 16_000 {
            return Err(format!(
                "{} nodes are more than the 16,000 whose blocks fit into the pool",
                self.nodes
            ));
        }
        let per_node = self.pods.div_ceil(self.nodes);
        if per_node > PODS_PER_NODE {
            return Err(format!(
                "{per_node} pods per node are more than the {PODS_PER_NODE} of a block: fewer pods or more nodes"
            ));
        }
        Ok(())
    }
}

/// By number of nodes: `100`, `500`, `1000`, `5000`.
impl FromStr for Shape {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let (nodes, pods, namespaces, global_policies) = match name {
            "100" => (100, 2_000, 20, 10),
            "500" => (500, 10_000, 60, 20),
            "1000" => (1_000, 20_000, 120, 30),
            "5000" => (5_000, 100_000, 400, 60),
            other => return Err(format!("there is no preset {other:?}: 100, 500, 1000 or 5000")),
        };
        Ok(Shape { nodes, pods, namespaces, policies: 2, global_policies, network_sets: global_policies })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_sound_and_impossible_clusters_are_refused() {
        for preset in ["100", "500", "1000", "5000"] {
            preset.parse::<Shape>().and_then(|shape| shape.check()).expect(preset);
        }
        assert!("250".parse::<Shape>().is_err());
        let small: Shape = "100".parse().expect("a preset");
        assert!(Shape { nodes: 0, ..small }.check().is_err());
        assert!(Shape { nodes: 10, ..small }.check().expect_err("too many").contains("fewer pods"));
        assert!(Shape { nodes: 20_000, ..small }.check().is_err());
    }
}
