//! ClusterNetworkPolicy (`policy.networking.k8s.io/v1alpha2`), in the tiers before and after all others.
//!
//! A rule that does not read is left out when it accepts; when it denies or passes on, everything that it might
//! have been about is denied.

use serde::Deserialize;

use super::label_selector::{self, IS_POD, LabelSelector};
use super::object::{Meta, Stored, StoredMeta, error, or_default, parse, resource_path};
use super::policy::{Direction, PolicySpec, Protocols, Rule, RuleMetadata, Side, network};
use super::{Read, uid};
use crate::apis::FieldError;
use crate::apis::scalars::Port;

pub const KIND: &str = "KubernetesClusterNetworkPolicy";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Object<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
    #[serde(deserialize_with = "or_default")]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    tier: String,
    priority: i64,
    #[serde(deserialize_with = "or_default")]
    subject: Peer,
    #[serde(deserialize_with = "or_default")]
    ingress: Vec<PolicyRule>,
    #[serde(deserialize_with = "or_default")]
    egress: Vec<PolicyRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PolicyRule {
    #[serde(deserialize_with = "or_default")]
    name: String,
    action: String,
    #[serde(alias = "to", deserialize_with = "or_default")]
    from: Vec<Peer>,
    #[serde(deserialize_with = "or_default")]
    protocols: Vec<Protocol>,
}

/// Exactly one of them is given.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Peer {
    namespaces: Option<LabelSelector>,
    pods: Option<Pods>,
    networks: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Pods {
    #[serde(deserialize_with = "or_default")]
    namespace_selector: LabelSelector,
    #[serde(deserialize_with = "or_default")]
    pod_selector: LabelSelector,
}

/// Exactly one of them is given.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Protocol {
    tcp: Option<Ports>,
    udp: Option<Ports>,
    sctp: Option<Ports>,
    destination_named_port: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ports {
    destination_port: Option<DestinationPort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DestinationPort {
    number: Option<i64>,
    range: Option<PortRange>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PortRange {
    start: i64,
    end: i64,
}

pub(super) fn path(object: &[u8]) -> Result<String, FieldError> {
    let Object { metadata, .. } = parse(object)?;
    resource_path(KIND, "", &metadata.name)
}

pub(super) fn read(object: &[u8]) -> Result<Read, FieldError> {
    let Object { metadata, spec } = parse(object)?;
    let path = resource_path(KIND, "", &metadata.name)?;
    let resource_version = metadata.resource_version.to_string();
    let uid = match &*metadata.uid {
        "" => String::new(),
        own => uid::twin(own, "metadata.uid")?,
    };
    let Some((tier, (selector, namespace_selector))) = tier(&spec.tier).zip(subject(&spec.subject)?) else {
        let finding = match tier(&spec.tier) {
            None => error("spec.tier", format!("{:?} is neither Admin nor Baseline", spec.tier)),
            Some(_) => error("spec.subject", "missing: give namespaces or pods"),
        };
        return Ok(Read { path, value: None, findings: vec![finding], resource_version });
    };
    let mut findings = Vec::new();
    let mut converted =
        PolicySpec { tier, order: spec.priority, selector, namespace_selector, ..PolicySpec::default() };
    converted.ingress = rules(&spec.ingress, Direction::Ingress, &mut findings);
    converted.egress = rules(&spec.egress, Direction::Egress, &mut findings);
    for (name, rules) in [("Ingress", &converted.ingress), ("Egress", &converted.egress)] {
        if !rules.is_empty() {
            converted.types.push(name);
        }
    }
    let stored = StoredMeta {
        name: &metadata.name,
        uid: &uid,
        creation_timestamp: &metadata.creation_timestamp,
        ..StoredMeta::default()
    };
    let value = Stored::<_>::new("GlobalNetworkPolicy", stored, converted, None::<()>).to_vec();
    Ok(Read { path, value: Some(value), findings, resource_version })
}

fn tier(name: &str) -> Option<&'static str> {
    match name {
        "Admin" => Some("kube-admin"),
        "Baseline" => Some("kube-baseline"),
        _ => None,
    }
}

/// Selectors of pods and of their namespaces.
fn subject(subject: &Peer) -> Result<Option<(String, String)>, FieldError> {
    Ok(match (&subject.namespaces, &subject.pods) {
        (Some(namespaces), _) => Some((
            IS_POD.to_owned(),
            label_selector::namespaces(Some(namespaces), "spec.subject.namespaces")?,
        )),
        (None, Some(pods)) => Some(selectors(pods, "spec.subject.pods")?),
        (None, None) => None,
    })
}

fn selectors(pods: &Pods, field: &str) -> Result<(String, String), FieldError> {
    Ok((
        label_selector::pods(Some(&pods.pod_selector), &format!("{field}.podSelector"))?,
        label_selector::namespaces(Some(&pods.namespace_selector), &format!("{field}.namespaceSelector"))?,
    ))
}

fn rules(rules: &[PolicyRule], direction: Direction, findings: &mut Vec<FieldError>) -> Vec<Rule> {
    let side = if direction == Direction::Ingress { "ingress" } else { "egress" };
    let mut converted = Vec::new();
    for (index, own) in rules.iter().enumerate() {
        let field = format!("spec.{side}[{index}]");
        let Some(action) = action(&own.action) else {
            let reason = format!("{:?} is none of Accept, Deny, Pass: this rule is left out", own.action);
            findings.push(error(format!("{field}.action"), reason));
            continue;
        };
        match rule(own, action, direction, &field) {
            Ok(rules) => converted.extend(rules),
            Err(mut finding) if action == "Allow" => {
                finding.reason += ": this rule is left out";
                findings.push(finding);
            }
            Err(mut finding) => {
                finding.reason += ": this rule denies everything";
                findings.push(finding);
                converted.push(Rule { action: "Deny", ..Rule::default() });
            }
        }
    }
    converted
}

fn action(name: &str) -> Option<&'static str> {
    match name {
        "Accept" => Some("Allow"),
        "Deny" => Some("Deny"),
        "Pass" => Some("Pass"),
        _ => None,
    }
}

fn rule(
    rule: &PolicyRule,
    action: &'static str,
    direction: Direction,
    field: &str,
) -> Result<Vec<Rule>, FieldError> {
    let list = if direction == Direction::Ingress { "from" } else { "to" };
    if rule.from.is_empty() {
        return Err(error(format!("{field}.{list}"), "missing"));
    }
    let peers = rule
        .from
        .iter()
        .enumerate()
        .map(|(index, own)| peer(own, direction, &format!("{field}.{list}[{index}]")));
    let peers = peers.collect::<Result<Vec<Side>, _>>()?;
    let mut protocols = Protocols::default();
    for (index, own) in rule.protocols.iter().enumerate() {
        let (protocol, port) = protocol(own, &format!("{field}.protocols[{index}]"))?;
        protocols.add(protocol, port);
    }
    let metadata = RuleMetadata::named(&rule.name);
    Ok(protocols.rules(direction, &peers, &Rule { action, metadata, ..Rule::default() }))
}

fn peer(peer: &Peer, direction: Direction, field: &str) -> Result<Side, FieldError> {
    match peer {
        Peer { namespaces: Some(namespaces), pods: None, networks: None } => Ok(Side {
            namespace_selector: label_selector::namespaces(Some(namespaces), &format!("{field}.namespaces"))?,
            ..Side::default()
        }),
        Peer { namespaces: None, pods: Some(pods), networks: None } => {
            let (selector, namespace_selector) = selectors(pods, &format!("{field}.pods"))?;
            Ok(Side { selector, namespace_selector, ..Side::default() })
        }
        Peer { namespaces: None, pods: None, networks: Some(nets) }
            if direction == Direction::Egress && !nets.is_empty() =>
        {
            let nets = nets
                .iter()
                .enumerate()
                .map(|(index, net)| network(net, &format!("{field}.networks[{index}]")));
            Ok(Side { nets: nets.collect::<Result<_, _>>()?, ..Side::default() })
        }
        _ => {
            let known = if direction == Direction::Ingress {
                "namespaces, pods"
            } else {
                "namespaces, pods, networks"
            };
            Err(error(field, format!("not one of {known}")))
        }
    }
}

fn protocol(protocol: &Protocol, field: &str) -> Result<(Option<String>, Option<Port>), FieldError> {
    let (name, ports) = match protocol {
        Protocol { tcp: Some(ports), udp: None, sctp: None, destination_named_port: None } => ("TCP", ports),
        Protocol { tcp: None, udp: Some(ports), sctp: None, destination_named_port: None } => ("UDP", ports),
        Protocol { tcp: None, udp: None, sctp: Some(ports), destination_named_port: None } => ("SCTP", ports),
        Protocol { tcp: None, udp: None, sctp: None, destination_named_port: Some(name) } => {
            // A name even when it is made of digits; whether it is one, ports know.
            if name.contains(':') || name.parse::<Port>().is_err() {
                let field = format!("{field}.destinationNamedPort");
                return Err(error(field, format!("{name:?} is not the name of a port")));
            }
            return Ok((None, Some(Port::Name(name.clone()))));
        }
        _ => return Err(error(field, "not one of tcp, udp, sctp, destinationNamedPort")),
    };
    let port = match &ports.destination_port {
        None => None,
        Some(port) => {
            let field = format!("{field}.{}.destinationPort", name.to_ascii_lowercase());
            Some(destination_port(port, &field)?)
        }
    };
    Ok((Some(name.to_owned()), port))
}

fn destination_port(port: &DestinationPort, field: &str) -> Result<Port, FieldError> {
    let text = match port {
        DestinationPort { number: Some(number), range: None } => number.to_string(),
        DestinationPort { number: None, range: Some(PortRange { start, end }) } => format!("{start}:{end}"),
        _ => return Err(error(field, "not one of number, range")),
    };
    text.parse().map_err(|reason: String| error(field, reason))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn egress(rule: Value) -> (Value, Vec<FieldError>) {
        let object = json!({ "metadata": { "name": "p" }, "spec": {
            "tier": "Admin", "priority": 1, "subject": { "namespaces": {} }, "egress": [rule],
        }});
        let read = read(object.to_string().as_bytes()).unwrap();
        let value: Value = serde_json::from_slice(&read.value.unwrap()).unwrap();
        (value["spec"]["egress"].clone(), read.findings)
    }

    #[test]
    fn what_is_not_known_never_widens_a_rule() {
        let nodes = json!({ "nodes": { "matchLabels": { "a": "b" } } });
        for broken in [
            json!({ "to": [nodes] }),
            json!({ "to": [] }),
            json!({ "to": [{ "networks": [] }] }),
            json!({ "to": [{ "networks": ["10.0.0.0/8"], "namespaces": {} }] }),
            json!({ "to": [{ "namespaces": {} }], "protocols": [{ "icmp": {} }] }),
            json!({ "to": [{ "namespaces": {} }], "protocols": [{ "tcp": { "destinationPort": {} } }] }),
            json!({ "to": [{ "pods": { "podSelector": { "matchExpressions": [{ "key": "a", "operator": "?" }] } } }] }),
        ] {
            for (action, left) in [
                ("Accept", json!(null)),
                ("Deny", json!([{ "action": "Deny" }])),
                ("Pass", json!([{ "action": "Deny" }])),
            ] {
                let mut rule = broken.clone();
                rule["action"] = json!(action);
                let (rules, findings) = egress(rule);
                assert_eq!(rules, left, "{action} {broken}");
                assert_eq!(findings.len(), 1, "{broken}");
                assert!(findings[0].field.starts_with("spec.egress[0]."), "{}", findings[0]);
            }
        }
    }

    #[test]
    fn a_protocol_without_ports_means_all_of_them() {
        let (rules, findings) = egress(json!({
            "action": "Deny", "to": [{ "namespaces": {} }], "protocols": [{ "tcp": {} }],
        }));
        assert_eq!(
            rules,
            json!([{
                "action": "Deny", "protocol": "TCP", "destination": { "namespaceSelector": "all()" },
            }])
        );
        assert_eq!(findings, []);
    }

    #[test]
    fn without_subject_or_tier_there_is_no_policy() {
        for (spec, field) in [
            (json!({ "tier": "Admin" }), "spec.subject"),
            (json!({ "tier": "Other", "subject": { "namespaces": {} } }), "spec.tier"),
        ] {
            let object = json!({ "metadata": { "name": "p" }, "spec": spec });
            let read = read(object.to_string().as_bytes()).unwrap();
            assert_eq!(read.value, None);
            assert_eq!(read.findings[0].field, field);
        }
    }
}
