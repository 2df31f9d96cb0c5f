//! Endpoints of hosts and workloads.

use serde_json::{Map, Value, json};

use super::network::object;
use super::{Old, Result, names};
use crate::apis::DEFAULT_NAMESPACE;

/// What the namespace's label was called.
const OLD_NAMESPACE_LABEL: &str = "calico/k8s_ns";
const NAMESPACE_LABEL: &str = "projectcalico.org/namespace";
const ORCHESTRATOR_LABEL: &str = "projectcalico.org/orchestrator";

impl Old {
    /// Names were unique on their node only; today's name has the node in front.
    pub(super) fn host_endpoint(&mut self) -> Result<Value> {
        let (name, node) = (self.metadata.need("name")?, self.metadata.need("node")?);
        let (name, node) = (self.renamed("metadata.name", &name), self.renamed("metadata.node", &node));
        let mut metadata = json!({ "name": format!("{node}.{name}") });
        let labels = self.metadata.labels("labels")?;
        if !labels.is_empty() {
            metadata["labels"] = labels.into();
        }
        let mut spec = Map::new();
        spec.insert("node".into(), node.into());
        if let Some(interface) = self.spec.text("interfaceName")? {
            spec.insert("interfaceName".into(), interface.into());
        }
        let addresses = self.spec.texts("expectedIPs")?;
        if !addresses.is_empty() {
            spec.insert("expectedIPs".into(), addresses.into());
        }
        self.keep_profiles(&mut spec)?;
        Ok(object("HostEndpoint", metadata, spec))
    }

    pub(super) fn workload_endpoint(&mut self) -> Result<Value> {
        let endpoint = self.metadata.need("name")?;
        let (workload, orchestrator) = (self.metadata.need("workload")?, self.metadata.need("orchestrator")?);
        let node = self.metadata.need("node")?;
        let node = self.renamed("metadata.node", &node);
        let mut labels = self.metadata.labels("labels")?;
        let labelled = labels.get(OLD_NAMESPACE_LABEL).and_then(Value::as_str).map(str::to_owned);
        let (namespace, workload) = match (labelled, orchestrator.as_str()) {
            (Some(namespace), _) => {
                let own = workload.strip_prefix(&namespace).and_then(|rest| rest.strip_prefix('.'));
                (namespace, own.unwrap_or(&workload).to_owned())
            }
            (None, "k8s") => match workload.split_once('.') {
                Some((namespace, pod)) => (namespace.to_owned(), pod.to_owned()),
                None => {
                    let reason = format!(
                        "{workload:?} names no namespace: write namespace.pod, or a label {OLD_NAMESPACE_LABEL}"
                    );
                    return Err(self.metadata.error("workload", reason));
                }
            },
            (None, _) => (DEFAULT_NAMESPACE.to_owned(), workload),
        };
        let mut spec = Map::new();
        let named = match orchestrator.as_str() {
            "k8s" => ("pod", &workload),
            "cni" => ("containerID", &workload),
            "libnetwork" => ("workload", &orchestrator),
            _ => ("workload", &workload),
        };
        let parts = [&node, &orchestrator, named.1, &endpoint].map(|part| names::dashes_doubled(part));
        spec.insert(named.0.into(), workload.clone().into());
        spec.insert("node".into(), node.into());
        spec.insert("orchestrator".into(), orchestrator.clone().into());
        spec.insert("endpoint".into(), endpoint.into());
        for field in ["interfaceName", "mac"] {
            spec.extend(self.spec.text(field)?.map(|text| (field.to_owned(), text.into())));
        }
        let networks = self.spec.texts("ipNetworks")?;
        if !networks.is_empty() {
            spec.insert("ipNetworks".into(), networks.into());
        }
        let nats = self.spec.list("ipNATs")?;
        if !nats.is_empty() {
            spec.insert("ipNATs".into(), nats.into());
        }
        self.keep_profiles(&mut spec)?;
        // The old label stays too: old policies select by it.
        labels.insert(NAMESPACE_LABEL.into(), namespace.clone().into());
        labels.insert(ORCHESTRATOR_LABEL.into(), orchestrator.into());
        let metadata = json!({ "name": parts.join("-"), "namespace": namespace, "labels": labels });
        Ok(object("WorkloadEndpoint", metadata, spec))
    }

    fn keep_profiles(&mut self, spec: &mut Map<String, Value>) -> Result<()> {
        let profiles = self.spec.texts("profiles")?;
        if !profiles.is_empty() {
            spec.insert("profiles".into(), self.renamed_profiles(profiles).into());
        }
        Ok(())
    }
}
