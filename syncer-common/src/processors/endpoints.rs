//! Workload and host endpoints.

use proto::model as v1;

use super::Outcome;
use super::addresses::{mac, parse_address, parse_net};
use super::findings::Findings;
use super::rules::{self, NAMESPACE_PREFIX, SERVICE_ACCOUNT_LABEL, SERVICE_ACCOUNT_PREFIX};
use crate::apis::network::{
    DSCP_ANNOTATION, Dscp, EndpointPort, HostEndpointSpec, LiveMigrationSpec, MigratingWorkload, QosControls,
    WorkloadEndpointSpec,
};
use crate::apis::{FieldError, Resource};
use crate::model::{HostEndpointKey, Key, ResourceKey, Update, Value, WorkloadEndpointKey};

/// The four parts of a workload endpoint's name, `node-orchestrator-workload-endpoint`. Dashes inside a
/// part are doubled.
pub fn split_workload_name(name: &str) -> Option<[String; 4]> {
    let mut parts = vec![String::new()];
    let mut characters = name.chars().peekable();
    while let Some(character) = characters.next() {
        let part = parts.last_mut()?;
        if character != '-' {
            part.push(character);
        } else if characters.next_if_eq(&'-').is_some() {
            part.push('-');
        } else {
            parts.push(String::new());
        }
    }
    let well_formed = |part: &String| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-');
    if parts.iter().all(well_formed) { parts.try_into().ok() } else { None }
}

pub(super) fn workload_endpoint_key(key: &ResourceKey) -> Option<WorkloadEndpointKey> {
    let [host, orchestrator, workload, endpoint] = split_workload_name(&key.name)?;
    let workload = format!("{}/{workload}", key.namespace);
    Some(WorkloadEndpointKey { host, orchestrator, workload, endpoint })
}

pub(super) fn convert_workload(key: &ResourceKey, resource: &Resource) -> Result<Update, FieldError> {
    let own = workload_endpoint_key(key).map(Key::WorkloadEndpoint).ok_or_else(|| {
        let reason = "not of the form node-orchestrator-workload-endpoint, with dashes inside a part doubled";
        FieldError::new("metadata.name", format!("{:?} is {reason}", key.name))
    })?;
    let spec: WorkloadEndpointSpec = resource.typed_spec()?;
    if spec.ip_networks.is_empty() {
        return Ok(Update::delete(own));
    }
    let (ipv4_nets, ipv6_nets) = split_nets(&spec.ip_networks, "spec.ipNetworks")?;
    let (mut ipv4_nats, mut ipv6_nats) = (Vec::new(), Vec::new());
    for (index, nat) in spec.ip_nats.iter().enumerate() {
        let address = |text: &str, side: &str| {
            parse_address(text)
                .map_err(|reason| FieldError::new(format!("spec.ipNATs[{index}].{side}"), reason))
        };
        let internal = address(&nat.internal_ip, "internalIP")?;
        let external = address(&nat.external_ip, "externalIP")?;
        let family = if internal.is_ipv4() { &mut ipv4_nats } else { &mut ipv6_nats };
        family.push(v1::IpNat { internal_ip: internal.to_string(), external_ip: external.to_string() });
    }
    let mut allow_spoofed_source_prefixes = Vec::new();
    for (index, prefix) in spec.allow_spoofed_source_prefixes.iter().enumerate() {
        let field = || format!("spec.allowSpoofedSourcePrefixes[{index}]");
        let net = parse_net(prefix).map_err(|reason| FieldError::new(field(), reason))?;
        allow_spoofed_source_prefixes.push(net.to_string());
    }
    let qos = spec.qos_controls.map(qos).transpose()?;
    let mac = match spec.mac.as_str() {
        "" => String::new(),
        text => mac(text).map_err(|reason| FieldError::new("spec.mac", reason))?,
    };
    let mut labels = resource.metadata.labels.clone();
    labels.retain(|label, _| {
        !label.starts_with(NAMESPACE_PREFIX) && !label.starts_with(SERVICE_ACCOUNT_PREFIX)
    });
    if !spec.service_account_name.is_empty() {
        labels.insert(SERVICE_ACCOUNT_LABEL.to_owned(), spec.service_account_name);
    }
    let endpoint = v1::WorkloadEndpoint {
        state: "active".to_owned(),
        name: spec.interface_name,
        mac,
        profile_ids: spec.profiles,
        ipv4_nets,
        ipv6_nets,
        labels,
        ports: named_ports(&spec.ports),
        ipv4_nats,
        ipv6_nats,
        allow_spoofed_source_prefixes,
        incarnation: resource.metadata.uid.clone(),
        qos,
    };
    Ok(Update::set(own, Value::WorkloadEndpoint(endpoint)))
}

fn qos(controls: QosControls) -> Result<v1::QosControls, FieldError> {
    let dscp = match &controls.dscp {
        None => None,
        Some(dscp) => Some(u32::from(dscp.value().ok_or_else(|| {
            FieldError::new("spec.qosControls.dscp", "neither 0 to 63 nor a class such as AF21")
        })?)),
    };
    // Negative limits mean nothing, and the kernel's limit match counts to 10,000 packets.
    let rate = |value: i64| value.clamp(0, 10_000) as u32;
    let connections = |value: i64| value.clamp(0, u32::MAX.into()) as u32;
    Ok(v1::QosControls {
        ingress_packet_rate: rate(controls.ingress_packet_rate),
        ingress_packet_burst: rate(controls.ingress_packet_burst),
        egress_packet_rate: rate(controls.egress_packet_rate),
        egress_packet_burst: rate(controls.egress_packet_burst),
        ingress_max_connections: connections(controls.ingress_max_connections),
        egress_max_connections: connections(controls.egress_max_connections),
        dscp,
    })
}

fn split_nets(nets: &[String], field: &str) -> Result<(Vec<String>, Vec<String>), FieldError> {
    let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
    for (index, net) in nets.iter().enumerate() {
        let net = parse_net(net).map_err(|reason| FieldError::new(format!("{field}[{index}]"), reason))?;
        let family = if net.addr().is_ipv4() { &mut ipv4 } else { &mut ipv6 };
        family.push(net.to_string());
    }
    Ok((ipv4, ipv6))
}

/// Rules refer to ports by name; the others say nothing.
fn named_ports(ports: &[EndpointPort]) -> Vec<v1::NamedPort> {
    ports
        .iter()
        .filter(|port| !port.name.is_empty())
        .map(|port| v1::NamedPort {
            name: port.name.clone(),
            protocol: port.protocol.as_ref().map(rules::protocol),
            port: port.port,
        })
        .collect()
}

pub(super) fn convert_host(
    key: &ResourceKey,
    resource: &Resource,
    findings: &mut Findings,
) -> Result<Outcome, FieldError> {
    let spec: HostEndpointSpec = resource.typed_spec()?;
    if spec.node.is_empty() {
        return Err(FieldError::new("spec.node", "missing"));
    }
    // It becomes a part of the entry's path, where hosts are written as they are.
    if spec.node.contains(['/', '%']) {
        return Err(FieldError::new("spec.node", format!("{:?} is no name of a node", spec.node)));
    }
    let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
    for (index, text) in spec.expected_ips.iter().enumerate() {
        match parse_address(text) {
            Ok(address) if address.is_ipv4() => ipv4.push(address.to_string()),
            Ok(address) => ipv6.push(address.to_string()),
            Err(reason) => findings.note(format!("spec.expectedIPs[{index}]"), reason),
        }
    }
    let dscp = resource.metadata.annotations.get(DSCP_ANNOTATION).and_then(|text| {
        let value = Dscp::parse(text).and_then(|dscp| dscp.value());
        if value.is_none() {
            let reason = format!("{text:?} is neither 0 to 63 nor a class such as AF21");
            findings.note(format!("metadata.annotations[{DSCP_ANNOTATION}]"), reason);
        }
        value.map(u32::from)
    });
    let endpoint = v1::HostEndpoint {
        name: spec.interface_name,
        expected_ipv4_addrs: ipv4,
        expected_ipv6_addrs: ipv6,
        labels: resource.metadata.labels.clone(),
        profile_ids: spec.profiles,
        ports: named_ports(&spec.ports),
        dscp,
    };
    let own = Key::HostEndpoint(HostEndpointKey { host: spec.node, endpoint: key.name.clone() });
    Ok(Outcome::Shared(Box::new((own, Value::HostEndpoint(endpoint)))))
}

pub(super) fn convert_migration(key: &ResourceKey, resource: &Resource) -> Result<Update, FieldError> {
    let LiveMigrationSpec { source, target } = resource.typed_spec()?;
    let (source, target) = (source.unwrap_or_default(), target.unwrap_or_default());
    let migration = v1::LiveMigration {
        source: source.workload.or(source.workload_endpoint).map(migrating),
        target_selector: target.selector.unwrap_or_default(),
        target: target.workload_endpoint.map(migrating),
    };
    Ok(Update::set(Key::Resource(key.clone()), Value::LiveMigration(migration)))
}

fn migrating(workload: MigratingWorkload) -> v1::Workload {
    let MigratingWorkload { hostname, orchestrator_id, workload_id, endpoint_id } = workload;
    v1::Workload { hostname, orchestrator_id, workload_id, endpoint_id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_inside_name_parts_are_doubled() {
        let parts = |name| split_workload_name(name).map(|parts| parts.join("|"));
        assert_eq!(parts("node--a-k8s-test--pod-eth0").as_deref(), Some("node-a|k8s|test-pod|eth0"));
        assert_eq!(parts("n-cni-abc-eth--0").as_deref(), Some("n|cni|abc|eth-0"));
        assert_eq!(parts("bad-name"), None);
        assert_eq!(parts("a-b-c-d-e"), None);
        assert_eq!(parts("-b-c-d"), None);
    }
}
