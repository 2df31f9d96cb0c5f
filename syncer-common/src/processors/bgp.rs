//! BGP configuration, peers and filters, reduced to the messages that travel.

use proto::model as v1;

use super::findings::Findings;
use crate::apis::bgp::{
    BgpConfigurationSpec, BgpFilterOperation, BgpFilterRule, BgpFilterSpec, BgpPeerSpec, CidrItem, Password,
};
use crate::apis::{FieldError, Resource};
use crate::model::{Key, ResourceKey, Update, Value};
use crate::processors::addresses::parse_net;
use crate::selector::Selector;

fn secret(password: Option<Password>) -> Option<v1::SecretKeyRef> {
    let reference = password?.secret_key_ref?;
    Some(v1::SecretKeyRef { name: reference.name, key: reference.key })
}

fn cidrs(items: &[CidrItem], field: &str) -> Result<Vec<String>, FieldError> {
    let parse = |(index, item): (usize, &CidrItem)| {
        parse_net(&item.cidr)
            .map(|net| net.to_string())
            .map_err(|reason| FieldError::new(format!("{field}[{index}].cidr"), reason))
    };
    // An item may say nothing at all.
    items.iter().enumerate().filter(|(_, item)| !item.cidr.is_empty()).map(parse).collect()
}

pub(super) fn convert_configuration(key: &ResourceKey, resource: &Resource) -> Result<Update, FieldError> {
    let spec: BgpConfigurationSpec = resource.typed_spec()?;
    let mut prefix_advertisements = Vec::new();
    for (index, prefix) in spec.prefix_advertisements.into_iter().enumerate() {
        let field = || format!("spec.prefixAdvertisements[{index}].cidr");
        let cidr = parse_net(&prefix.cidr).map_err(|reason| FieldError::new(field(), reason))?;
        prefix_advertisements
            .push(v1::PrefixAdvertisement { cidr: cidr.to_string(), communities: prefix.communities });
    }
    let configuration = v1::BgpConfiguration {
        log_severity_screen: spec.log_severity_screen,
        node_to_node_mesh_enabled: spec.node_to_node_mesh_enabled,
        as_number: spec.as_number.map(|number| number.0),
        listen_port: spec.listen_port.map(u32::from),
        bind_mode: spec.bind_mode,
        service_cluster_ips: cidrs(&spec.service_cluster_ips, "spec.serviceClusterIPs")?,
        service_external_ips: cidrs(&spec.service_external_ips, "spec.serviceExternalIPs")?,
        service_load_balancer_ips: cidrs(&spec.service_load_balancer_ips, "spec.serviceLoadBalancerIPs")?,
        service_load_balancer_aggregation: spec.service_load_balancer_aggregation,
        communities: spec
            .communities
            .into_iter()
            .map(|community| v1::Community { name: community.name, value: community.value })
            .collect(),
        prefix_advertisements,
        node_mesh_password: secret(spec.node_mesh_password),
        node_mesh_max_restart_seconds: spec.node_mesh_max_restart_time.map(|time| time.seconds()),
        ignored_interfaces: spec.ignored_interfaces,
        program_cluster_routes: spec.program_cluster_routes,
        ipv4_normal_route_priority: spec.ipv4_normal_route_priority,
        ipv6_normal_route_priority: spec.ipv6_normal_route_priority,
    };
    Ok(Update::set(Key::Resource(key.clone()), Value::BgpConfiguration(configuration)))
}

pub(super) fn convert_peer(
    key: &ResourceKey,
    resource: &Resource,
    findings: &mut Findings,
) -> Result<Update, FieldError> {
    let spec: BgpPeerSpec = resource.typed_spec()?;
    for (field, selector) in [
        ("spec.nodeSelector", &spec.node_selector),
        ("spec.peerSelector", &spec.peer_selector),
        ("spec.localWorkloadSelector", &spec.local_workload_selector),
    ] {
        if let Err(error) = Selector::parse(selector) {
            findings.refuse(field, error.to_string());
        }
    }
    let peer = v1::BgpPeer {
        node: spec.node,
        node_selector: spec.node_selector,
        peer_ip: spec.peer_ip,
        peer_selector: spec.peer_selector,
        local_workload_selector: spec.local_workload_selector,
        as_number: spec.as_number.map_or(0, |number| number.0),
        local_as_number: spec.local_as_number.map(|number| number.0),
        password: secret(spec.password),
        source_address: spec.source_address,
        keep_original_next_hop: spec.keep_original_next_hop,
        next_hop_mode: spec.next_hop_mode,
        max_restart_seconds: spec.max_restart_time.map(|time| time.seconds()),
        keepalive_seconds: spec.keepalive_time.map(|time| time.seconds()),
        filters: spec.filters,
        ttl_security: spec.ttl_security.map(u32::from),
        reachable_by: spec.reachable_by,
        num_allowed_local_as_numbers: spec.num_allowed_local_as_numbers,
        reverse_peering: spec.reverse_peering,
    };
    Ok(Update::set(Key::Resource(key.clone()), Value::BgpPeer(peer)))
}

/// A filter counts as a whole: without one of its rules it would pass other routes.
pub(super) fn convert_filter(key: &ResourceKey, resource: &Resource) -> Result<Update, FieldError> {
    let spec: BgpFilterSpec = resource.typed_spec()?;
    let convert = |field: &str, rules: &[BgpFilterRule]| -> Result<Vec<v1::BgpFilterRule>, FieldError> {
        let rules = rules.iter().enumerate();
        rules.map(|(index, rule)| filter_rule(rule, &format!("spec.{field}[{index}]"))).collect()
    };
    let [export_v4, import_v4, export_v6, import_v6] =
        spec.lists().map(|(field, rules, _)| convert(field, rules));
    let filter = v1::BgpFilter {
        export_v4: export_v4?,
        import_v4: import_v4?,
        export_v6: export_v6?,
        import_v6: import_v6?,
    };
    Ok(Update::set(Key::Resource(key.clone()), Value::BgpFilter(filter)))
}

fn filter_rule(rule: &BgpFilterRule, field: &str) -> Result<v1::BgpFilterRule, FieldError> {
    let cidr = match rule.cidr.as_str() {
        "" => String::new(),
        text => {
            let net = parse_net(text).map_err(|reason| FieldError::new(format!("{field}.cidr"), reason))?;
            // As it is written, unless host bits have to be masked.
            if text.parse() == Ok(net) { text.to_owned() } else { net.to_string() }
        }
    };
    let length = rule.prefix_length.clone().unwrap_or_default();
    Ok(v1::BgpFilterRule {
        action: rule.action.clone(),
        cidr,
        match_operator: rule.match_operator.clone(),
        prefix_length_min: length.min,
        prefix_length_max: length.max,
        interface: rule.interface.clone(),
        source: rule.source.clone(),
        peer_type: rule.peer_type.clone(),
        communities: rule.communities.clone().unwrap_or_default().values,
        as_path_prefix: rule.as_path_prefix.iter().map(|number| number.0).collect(),
        priority: rule.priority,
        operations: rule.operations.iter().map(operation).collect(),
    })
}

fn operation(operation: &BgpFilterOperation) -> v1::BgpFilterOperation {
    use v1::bgp_filter_operation::Operation;
    let BgpFilterOperation { add_community, prepend_as_path, set_priority } = operation.clone();
    let operation = add_community
        .map(|add| Operation::AddCommunity(add.value))
        .or_else(|| {
            let path = prepend_as_path?.prefix.iter().map(|number| number.0).collect();
            Some(Operation::PrependAsPath(v1::AsPath { numbers: path }))
        })
        .or_else(|| Some(Operation::SetPriority(set_priority?.value?)));
    v1::BgpFilterOperation { operation }
}
