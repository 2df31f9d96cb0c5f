//! How large a synthetic cluster is.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, Result};

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

/// A file with some of the numbers.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Partial {
    nodes: Option<usize>,
    pods: Option<usize>,
    namespaces: Option<usize>,
    policies: Option<usize>,
    global_policies: Option<usize>,
    network_sets: Option<usize>,
}

impl Shape {
    /// With the numbers of a YAML file in place of these.
    pub fn changed_by(self, file: &Path) -> Result<Shape> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let partial: Partial =
            serde_yaml_ng::from_str(&text).with_context(|| format!("{} is no shape", file.display()))?;
        Ok(Shape {
            nodes: partial.nodes.unwrap_or(self.nodes),
            pods: partial.pods.unwrap_or(self.pods),
            namespaces: partial.namespaces.unwrap_or(self.namespaces),
            policies: partial.policies.unwrap_or(self.policies),
            global_policies: partial.global_policies.unwrap_or(self.global_policies),
            network_sets: partial.network_sets.unwrap_or(self.network_sets),
        })
    }

    /// Objects in the datastore, about.
    pub fn objects(&self) -> usize {
        self.nodes * 2
            + self.pods
            + self.namespaces * (2 + self.policies)
            + self.global_policies
            + self.network_sets
            + 5
    }

    pub fn check(&self) -> std::result::Result<(), String> {
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

    fn from_str(name: &str) -> std::result::Result<Self, String> {
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
    fn file_changes_what_it_names_and_nothing_else() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let small: Shape = "100".parse().expect("a preset");
        std::fs::write(file.path(), "pods: 3000\nnamespaces: 7\n").expect("written");
        let changed = small.changed_by(file.path()).expect("a shape");
        assert_eq!(changed, Shape { pods: 3_000, namespaces: 7, ..small });
        std::fs::write(file.path(), "pod: 3\n").expect("written");
        let error = format!("{:#}", small.changed_by(file.path()).expect_err("an unknown name"));
        assert!(error.contains("pod") && error.contains("network_sets"), "{error}");
    }

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
