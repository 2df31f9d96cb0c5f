//! Kubernetes' Services and EndpointSlices, reduced to what routes and rules are made from: changes of
//! anything else cause no output.

use proto::model as v1;

use super::addresses::parse_address;
use super::findings::Findings;
use super::rules;
use crate::apis::services::{EndpointSlice, ServiceSpec, ServiceStatus};
use crate::apis::{FieldError, Resource, prune_nulls, read};
use crate::model::{Key, ResourceKey, Update, Value};

/// Which Service a slice belongs to.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// In place of the address of a Service that has none.
const HEADLESS: &str = "None";

pub(super) fn convert_service(
    key: &ResourceKey,
    resource: &Resource,
    findings: &mut Findings,
) -> Result<Update, FieldError> {
    let spec: ServiceSpec = resource.typed_spec()?;
    let status: ServiceStatus = resource.typed_status()?;
    let cluster_ips = if spec.cluster_ips.is_empty() { vec![spec.cluster_ip] } else { spec.cluster_ips };
    let ingress: Vec<String> = status.load_balancer.ingress.into_iter().map(|ingress| ingress.ip).collect();
    let mut addresses = |texts: &[String], field: &str| {
        let mut parsed = Vec::with_capacity(texts.len());
        for (index, text) in
            texts.iter().enumerate().filter(|(_, text)| !text.is_empty() && *text != HEADLESS)
        {
            match parse_address(text) {
                Ok(address) => parsed.push(address.to_string()),
                Err(reason) => findings.note(format!("{field}[{index}]"), reason),
            }
        }
        parsed
    };
    let service = v1::Service {
        cluster_ips: addresses(&cluster_ips, "spec.clusterIPs"),
        external_ips: addresses(&spec.external_ips, "spec.externalIPs"),
        load_balancer_ip: addresses(&[spec.load_balancer_ip], "spec.loadBalancerIP")
            .pop()
            .unwrap_or_default(),
        ingress_ips: addresses(&ingress, "status.loadBalancer.ingress"),
        r#type: spec.r#type,
        external_traffic_policy: spec.external_traffic_policy,
        ip_families: spec.ip_families,
    };
    Ok(Update::set(Key::Resource(key.clone()), Value::Service(service)))
}

/// A slice has its members at the top, so it is read from the whole value.
pub(super) fn convert_slice(
    key: &ResourceKey,
    resource: &Resource,
    value: &[u8],
    findings: &mut Findings,
) -> Result<Update, FieldError> {
    let own = Key::Resource(key.clone());
    let mut value: serde_json::Value = serde_json::from_slice(value)
        .map_err(|error| FieldError::new("the value", format!("not JSON: {error}")))?;
    prune_nulls(&mut value);
    let slice: EndpointSlice = read(&value, "")?;
    let Some(service) = resource.metadata.labels.get(SERVICE_NAME_LABEL).filter(|name| !name.is_empty())
    else {
        return Ok(Update::delete(own));
    };
    let v6 = match slice.address_type.as_str() {
        "IPv4" => false,
        "IPv6" => true,
        // Names are no addresses to route to.
        "FQDN" => return Ok(Update::delete(own)),
        other => {
            return Err(FieldError::new("addressType", format!("{other:?} is none of IPv4, IPv6, FQDN")));
        }
    };
    let mut endpoints = Vec::with_capacity(slice.endpoints.len());
    for (index, endpoint) in slice.endpoints.into_iter().enumerate() {
        let mut addresses = Vec::with_capacity(endpoint.addresses.len());
        for (position, text) in endpoint.addresses.iter().enumerate() {
            let field = || format!("endpoints[{index}].addresses[{position}]");
            match parse_address(text) {
                Ok(address) if address.is_ipv6() == v6 => addresses.push(address.to_string()),
                Ok(address) => findings.note(field(), format!("{address} is not {}", slice.address_type)),
                Err(reason) => findings.note(field(), reason),
            }
        }
        endpoints.push(v1::Endpoint {
            addresses,
            ready: endpoint.conditions.ready,
            node_name: endpoint.node_name,
        });
    }
    let ports = slice
        .ports
        .into_iter()
        .map(|port| v1::EndpointPort {
            name: port.name,
            protocol: port.protocol.as_ref().map(rules::protocol),
            port: port.port.map(u32::from),
        })
        .collect();
    let slice = v1::EndpointSlice {
        service_name: service.clone(),
        address_type: slice.address_type,
        endpoints,
        ports,
    };
    Ok(Update::set(own, Value::EndpointSlice(slice)))
}
