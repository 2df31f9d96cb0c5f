//! Our values in the v1 JSON form in which Calico's own software sends them, to compare the two.

use serde_json::{Map, Value as Json, json};

use crate::model::Value;
use proto::model as v1;

/// A value as Calico's own software spells it; `None` for kinds that it sends as the v3 objects that they are.
pub fn calico_json(value: &Value) -> Option<Json> {
    Some(match value {
        Value::Ready(ready) => json!(ready),
        Value::Config(text) => json!(text),
        Value::Policy(policy) => json!({
            "namespace": policy.namespace, "tier": policy.tier, "order": policy.order,
            "selector": policy.selector, "inbound_rules": rules(&policy.inbound_rules),
            "outbound_rules": rules(&policy.outbound_rules), "types": policy.types,
            "untracked": policy.untracked, "pre_dnat": policy.pre_dnat,
            "apply_on_forward": policy.apply_on_forward,
            "performance_hints": policy.performance_hints, "staged_action": policy.staged_action,
        }),
        Value::Tier(tier) => json!({ "order": tier.order, "defaultAction": tier.default_action }),
        Value::ProfileRules(profile) => json!({
            "inbound_rules": rules(&profile.inbound_rules), "outbound_rules": rules(&profile.outbound_rules),
        }),
        Value::ProfileLabels(profile) => json!(profile.labels),
        Value::NetworkSet(set) => {
            json!({ "nets": set.nets, "labels": set.labels, "profile_ids": set.profile_ids })
        }
        Value::IpPool(pool) => json!({
            "cidr": pool.cidr, "ipip_mode": pool.ipip_mode, "vxlan_mode": pool.vxlan_mode,
            "masquerade": pool.masquerade, "disabled": pool.disabled,
            "disableBGPExport": pool.disable_bgp_export, "allowed_uses": pool.allowed_uses,
            "assignment_mode": pool.assignment_mode,
        }),
        Value::WorkloadEndpoint(endpoint) => json!({
            "state": endpoint.state, "name": endpoint.name, "mac": endpoint.mac,
            "profile_ids": endpoint.profile_ids, "ipv4_nets": endpoint.ipv4_nets,
            "ipv6_nets": endpoint.ipv6_nets, "labels": endpoint.labels,
            "ports": named_ports(&endpoint.ports), "ipv4_nat": nats(&endpoint.ipv4_nats),
            "ipv6_nat": nats(&endpoint.ipv6_nats),
            "allow_spoofed_source_ips": endpoint.allow_spoofed_source_prefixes,
            "qosControls": endpoint.qos.as_ref().map(controls),
        }),
        Value::HostEndpoint(endpoint) => json!({
            "name": endpoint.name, "expected_ipv4_addrs": endpoint.expected_ipv4_addrs,
            "expected_ipv6_addrs": endpoint.expected_ipv6_addrs, "labels": endpoint.labels,
            "profile_ids": endpoint.profile_ids, "ports": named_ports(&endpoint.ports),
            "qosControls": { "dscp": endpoint.dscp },
        }),
        Value::Wireguard(wireguard) => json!({
            "interfaceIPv4Addr": wireguard.interface_ipv4_addr, "publicKey": wireguard.public_key,
            "interfaceIPv6Addr": wireguard.interface_ipv6_addr, "publicKeyV6": wireguard.public_key_v6,
        }),
        Value::IpamBlock(block) => json!({ "cidr": block.cidr, "affinity": block.affinity }),
        _ => return None,
    })
}

/// Such JSON without what our messages do not have, and without what says nothing: equal for equal values, whoever
/// wrote them.
pub fn carried(value: &Json) -> Json {
    const NOT_CARRIED: [&str; 14] = [
        "active_instance_id",
        "ipv4_gateway",
        "ipv6_gateway",
        "ingressBandwidth",
        "ingressBurst",
        "ingressPeakrate",
        "ingressMinburst",
        "egressBandwidth",
        "egressBurst",
        "egressPeakrate",
        "egressMinburst",
        "ipam",
        "ipip",
        "sequenceNumber",
    ];
    match value {
        Json::Object(members) => {
            let known = |name: &str| {
                !NOT_CARRIED.contains(&name) && !name.starts_with("orig_") && !name.starts_with("!orig_")
            };
            let says = |value: &Json| {
                !(value.is_null()
                    || *value == json!("")
                    || *value == json!(false)
                    || value.as_array().is_some_and(Vec::is_empty)
                    || value.as_object().is_some_and(Map::is_empty))
            };
            members
                .iter()
                .filter(|(name, _)| known(name))
                .map(|(name, value)| (name.clone(), carried(value)))
                .filter(|(_, value)| says(value))
                .collect()
        }
        Json::Array(items) => items.iter().map(carried).collect(),
        Json::Number(number) => json!(number.as_f64()),
        // Our messages carry the class's number.
        Json::String(class) if class == "EF" => json!(46.0),
        other => other.clone(),
    }
}

fn protocol(protocol: &Option<v1::Protocol>) -> Json {
    match protocol.as_ref().and_then(|protocol| protocol.id.as_ref()) {
        Some(v1::protocol::Id::Number(number)) => json!(number),
        Some(v1::protocol::Id::Name(name)) => json!(name),
        None => Json::Null,
    }
}

fn ports(ports: &[v1::Port]) -> Json {
    let port = |port: &v1::Port| match &port.port {
        Some(v1::port::Port::Range(range)) if range.first == range.last => json!(range.first),
        Some(v1::port::Port::Range(range)) => json!(format!("{}:{}", range.first, range.last)),
        Some(v1::port::Port::Name(name)) => json!(name),
        None => Json::Null,
    };
    ports.iter().map(port).collect()
}

fn rule(rule: &v1::Rule) -> Json {
    let mut json = Map::new();
    json.insert("action".into(), json!(rule.action));
    json.insert("ip_version".into(), if rule.ip_version == 0 { Json::Null } else { json!(rule.ip_version) });
    json.insert("protocol".into(), protocol(&rule.protocol));
    json.insert("!protocol".into(), protocol(&rule.not_protocol));
    for (prefix, icmp) in [("", &rule.icmp), ("!", &rule.not_icmp)] {
        if let Some(icmp) = icmp {
            json.insert(format!("{prefix}icmp_type"), json!(icmp.r#type));
            json.insert(format!("{prefix}icmp_code"), json!(icmp.code));
        }
    }
    for (side, entity) in [("src", &rule.src), ("dst", &rule.dst)] {
        let Some(entity) = entity else { continue };
        json.insert(format!("{side}_nets"), json!(entity.nets));
        json.insert(format!("{side}_selector"), json!(entity.selector));
        json.insert(format!("{side}_ports"), ports(&entity.ports));
        json.insert(format!("!{side}_nets"), json!(entity.not_nets));
        json.insert(format!("!{side}_selector"), json!(entity.not_selector));
        json.insert(format!("!{side}_ports"), ports(&entity.not_ports));
        json.insert(format!("{side}_service"), json!(entity.service_name));
        json.insert(format!("{side}_service_ns"), json!(entity.service_namespace));
    }
    if !rule.annotations.is_empty() {
        json.insert("metadata".into(), json!({ "annotations": rule.annotations }));
    }
    Json::Object(json)
}

fn rules(rules: &[v1::Rule]) -> Json {
    rules.iter().map(rule).collect()
}

fn named_ports(ports: &[v1::NamedPort]) -> Json {
    ports
        .iter()
        .map(|port| json!({ "name": port.name, "protocol": protocol(&port.protocol), "port": port.port }))
        .collect()
}

fn nats(nats: &[v1::IpNat]) -> Json {
    nats.iter().map(|nat| json!({ "int_ip": nat.internal_ip, "ext_ip": nat.external_ip })).collect()
}

fn controls(qos: &v1::QosControls) -> Json {
    let limit = |value: u32| (value != 0).then_some(value);
    json!({
        "ingressPacketRate": limit(qos.ingress_packet_rate),
        "ingressPacketBurst": limit(qos.ingress_packet_burst),
        "egressPacketRate": limit(qos.egress_packet_rate),
        "egressPacketBurst": limit(qos.egress_packet_burst),
        "ingressMaxConnections": limit(qos.ingress_max_connections),
        "egressMaxConnections": limit(qos.egress_max_connections), "dscp": qos.dscp,
    })
}
