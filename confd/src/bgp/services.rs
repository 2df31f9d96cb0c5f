//! Which addresses of Services this node announces by themselves, beside the ranges they are in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use syncer_common::model::values;

use super::Family;

/// The ranges that BGPConfiguration names.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    pub cluster: Vec<IpNet>,
    pub external: Vec<IpNet>,
    pub load_balancer: Vec<IpNet>,
    /// Load-balancer ranges are announced as a whole.
    pub aggregated: bool,
}

impl Ranges {
    fn any(&self) -> bool {
        !(self.cluster.is_empty() && self.external.is_empty() && self.load_balancer.is_empty())
    }
}

/// Namespace and name.
pub(super) type ObjectName = (String, String);

#[derive(Clone, Debug, Default)]
pub(super) struct Services {
    pub services: BTreeMap<ObjectName, values::Service>,
    pub slices: BTreeMap<ObjectName, values::EndpointSlice>,
}

impl Services {
    /// The host routes of a family. `ranges` are those of both families: any of them turns advertisement on.
    pub fn host_routes(&self, ranges: &Ranges, node: &str, family: Family) -> BTreeSet<IpNet> {
        if !ranges.any() {
            return BTreeSet::new();
        }
        let mut slices: BTreeMap<(&str, &str), Vec<&values::EndpointSlice>> = BTreeMap::new();
        for ((namespace, _), slice) in &self.slices {
            slices.entry((namespace, &slice.service_name)).or_default().push(slice);
        }
        let mut routes = BTreeSet::new();
        for ((namespace, name), service) in &self.services {
            let Some(slices) = slices.get(&(namespace.as_str(), name.as_str())) else { continue };
            let routed = matches!(service.r#type.as_str(), "" | "ClusterIP" | "NodePort" | "LoadBalancer");
            if routed && !service.cluster_ips.is_empty() && announced(service, slices, ranges, node) {
                routes.extend(addresses(service, ranges).filter(|address| Family::of(*address) == family));
            }
        }
        routes.into_iter().map(IpNet::from).collect()
    }
}

/// Whether this node announces the addresses of a Service.
fn announced(
    service: &values::Service,
    slices: &[&values::EndpointSlice],
    ranges: &Ranges,
    node: &str,
) -> bool {
    let local = service.external_traffic_policy == "Local";
    if service.external_traffic_policy == "Cluster" {
        let lone = |nets: &[IpNet], address: &str| {
            address.parse::<IpAddr>().is_ok_and(|address| nets.contains(&IpNet::from(address)))
        };
        let balanced = service.r#type == "LoadBalancer"
            && std::iter::once(&service.load_balancer_ip)
                .chain(&service.ingress_ips)
                .any(|address| lone(&ranges.load_balancer, address));
        if balanced || service.external_ips.iter().any(|address| lone(&ranges.external, address)) {
            return true;
        }
    }
    if !local && ranges.aggregated {
        return false;
    }
    slices
        .iter()
        .filter(|slice| service.ip_families.is_empty() || service.ip_families.contains(&slice.address_type))
        .flat_map(|slice| &slice.endpoints)
        .any(|endpoint| endpoint.ready.unwrap_or(true) && (!local || endpoint.node_name == node))
}

fn addresses<'a>(service: &'a values::Service, ranges: &'a Ranges) -> impl Iterator<Item = IpAddr> + 'a {
    let parsed = |texts: &'a [String]| texts.iter().filter_map(|text| text.parse::<IpAddr>().ok());
    let inside = |nets: &'a [IpNet]| move |address: &IpAddr| nets.iter().any(|net| net.contains(address));
    parsed(&service.cluster_ips)
        .filter(|_| !ranges.cluster.is_empty())
        .chain(parsed(&service.external_ips).filter(inside(&ranges.external)))
        .chain(parsed(&service.ingress_ips).filter(inside(&ranges.load_balancer)))
}
