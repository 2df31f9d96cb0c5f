//! The endpoints of a service, as its EndpointSlices have them: where the replicas of typha are.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;

use super::connection::{self, causes};
use crate::backend::config::KubernetesConfig;
use crate::backend::{Error, Result};

/// The name of typha's port in its service.
pub const PORT_NAME: &str = "calico-typha";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceEndpoint {
    /// `host:port`, an IPv6 address in brackets.
    pub address: String,
    pub ready: bool,
    pub node: String,
    pub zone: String,
}

/// All endpoints of a service, ready or not, at the port of that name.
pub async fn endpoints(
    config: &KubernetesConfig,
    namespace: &str,
    service: &str,
    port_name: &str,
) -> Result<Vec<ServiceEndpoint>> {
    let client = connection::connect(config).await?;
    let api: Api<EndpointSlice> = Api::namespaced(client, namespace);
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let slices = api.list(&of_service).await.map_err(|error| Error::Unavailable {
        what: format!("endpoint slices of service {namespace}/{service}"),
        reason: causes(&error),
    })?;
    Ok(read(slices.items, port_name))
}

/// Pure: what the slices say. The same address in two slices is one endpoint.
pub fn read(slices: Vec<EndpointSlice>, port_name: &str) -> Vec<ServiceEndpoint> {
    let mut found = Vec::new();
    for slice in slices {
        let ports = slice.ports.unwrap_or_default();
        let Some(port) =
            ports.iter().find(|port| port.name.as_deref() == Some(port_name)).and_then(|port| port.port)
        else {
            continue;
        };
        for endpoint in slice.endpoints {
            // Unset is to be read as ready.
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            for address in &endpoint.addresses {
                let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
                found.push(ServiceEndpoint {
                    address: format!("{host}:{port}"),
                    ready,
                    node: endpoint.node_name.clone().unwrap_or_default(),
                    zone: endpoint.zone.clone().unwrap_or_default(),
                });
            }
        }
    }
    found.sort();
    found.dedup_by(|one, other| one.address == other.address);
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn port_is_found_by_name_and_ipv6_is_bracketed() {
        let slice = |name: &str, endpoints: serde_json::Value| -> EndpointSlice {
            let ports = json!([{"name": "metrics", "port": 9093}, {"name": name, "port": 5473}]);
            serde_json::from_value(
                json!({"addressType": "IPv4", "metadata": {}, "endpoints": endpoints, "ports": ports}),
            )
            .unwrap()
        };
        let endpoints = json!([
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}, "nodeName": "n2", "zone": "west"},
            {"addresses": ["10.0.0.1"], "conditions": {}, "nodeName": "n1"},
            {"addresses": ["fd00::1"], "conditions": {"ready": true}},
        ]);
        let found = read(vec![slice(PORT_NAME, endpoints.clone()), slice("other", endpoints)], PORT_NAME);
        let text: Vec<String> =
            found.iter().map(|e| format!("{} {} {} {}", e.address, e.ready, e.node, e.zone)).collect();
        assert_eq!(text, ["10.0.0.1:5473 true n1 ", "10.0.0.2:5473 false n2 west", "[fd00::1]:5473 true  "]);
    }
}
