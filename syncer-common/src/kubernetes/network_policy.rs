//! Kubernetes NetworkPolicy, and the spec that StagedKubernetesNetworkPolicy shares with it.
//!
//! All its rules allow, so a part that does not read can be left out: less is allowed, the rest stands. Where
//! Calico turns a peer with a bad CIDR into one that is everybody, the peer is left out here. Selectors of the
//! policy itself are another matter: without knowing its subject the policy is refused.

use serde::Deserialize;

use super::label_selector::{self, LabelSelector};
use super::object::{Meta, Stored, StoredMeta, error, or_default, parse, resource_path};
use super::policy::{Direction, PolicySpec, Protocols, Rule, Side, network};
use super::{Read, uid};
use crate::apis::FieldError;
use crate::apis::scalars::Port;

pub const KIND: &str = "KubernetesNetworkPolicy";
/// After the ordered policies of the tier.
pub const ORDER: i64 = 1000;
const TIER: &str = "default";
const DEFAULT_PROTOCOL: &str = "TCP";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Object<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
    #[serde(deserialize_with = "or_default")]
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    #[serde(deserialize_with = "or_default")]
    pod_selector: LabelSelector,
    #[serde(deserialize_with = "or_default")]
    ingress: Vec<Ingress>,
    #[serde(deserialize_with = "or_default")]
    egress: Vec<Egress>,
    #[serde(deserialize_with = "or_default")]
    policy_types: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Ingress {
    #[serde(deserialize_with = "or_default")]
    from: Vec<Peer>,
    #[serde(deserialize_with = "or_default")]
    ports: Vec<PolicyPort>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Egress {
    #[serde(deserialize_with = "or_default")]
    to: Vec<Peer>,
    #[serde(deserialize_with = "or_default")]
    ports: Vec<PolicyPort>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Peer {
    pod_selector: Option<LabelSelector>,
    namespace_selector: Option<LabelSelector>,
    ip_block: Option<IpBlock>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct IpBlock {
    cidr: String,
    #[serde(deserialize_with = "or_default")]
    except: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PolicyPort {
    protocol: Option<String>,
    port: Option<NumberOrName>,
    end_port: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum NumberOrName {
    Number(i64),
    Name(String),
}

pub(super) fn path(object: &[u8]) -> Result<String, FieldError> {
    let Object { metadata, .. } = parse(object)?;
    resource_path(KIND, &metadata.namespace, &metadata.name)
}

pub(super) fn read(object: &[u8]) -> Result<Read, FieldError> {
    let Object { metadata, spec } = parse(object)?;
    let path = resource_path(KIND, &metadata.namespace, &metadata.name)?;
    let uid = match &*metadata.uid {
        "" => String::new(),
        own => uid::twin(own, "metadata.uid")?,
    };
    let mut findings = Vec::new();
    let spec = convert(&spec, &mut findings)?;
    let stored = StoredMeta {
        name: &metadata.name,
        namespace: &metadata.namespace,
        uid: &uid,
        creation_timestamp: &metadata.creation_timestamp,
        ..StoredMeta::default()
    };
    // The kind is that of the form; which policy it is, the path says.
    let value = Stored::<_>::new("NetworkPolicy", stored, spec, None::<()>).to_vec();
    Ok(Read { path, value: Some(value), findings, resource_version: metadata.resource_version.to_string() })
}

/// The spec as Calico has it; what does not read is left out and reported.
pub fn convert(spec: &Spec, findings: &mut Vec<FieldError>) -> Result<PolicySpec, FieldError> {
    let mut converted = PolicySpec {
        tier: TIER,
        order: ORDER,
        selector: label_selector::pods(Some(&spec.pod_selector), "spec.podSelector")?,
        types: types(&spec.policy_types),
        ..PolicySpec::default()
    };
    for (index, Ingress { from, ports }) in spec.ingress.iter().enumerate() {
        let field = format!("spec.ingress[{index}]");
        let peers = peers(from, &format!("{field}.from"), findings);
        converted.ingress.extend(rules(Direction::Ingress, &peers, ports, &field, findings));
    }
    for (index, Egress { to, ports }) in spec.egress.iter().enumerate() {
        let field = format!("spec.egress[{index}]");
        let peers = peers(to, &format!("{field}.to"), findings);
        converted.egress.extend(rules(Direction::Egress, &peers, ports, &field, findings));
    }
    Ok(converted)
}

/// A policy that names no direction is from the time when there was only one.
fn types(given: &[String]) -> Vec<&'static str> {
    let mut types: Vec<&str> =
        ["Ingress", "Egress"].into_iter().filter(|name| given.iter().any(|own| own == name)).collect();
    if types.is_empty() {
        types.push("Ingress");
    }
    types
}

/// No peers at all are everybody; peers of which none reads are nobody.
fn peers(peers: &[Peer], field: &str, findings: &mut Vec<FieldError>) -> Vec<Side> {
    if peers.is_empty() {
        return vec![Side::default()];
    }
    let mut sides = Vec::with_capacity(peers.len());
    for (index, peer) in peers.iter().enumerate() {
        match side(peer, &format!("{field}[{index}]")) {
            Ok(side) => sides.push(side),
            Err(error) => findings.push(left_out(error, "peer")),
        }
    }
    sides
}

fn left_out(mut error: FieldError, what: &str) -> FieldError {
    error.reason += &format!(": this {what} is left out");
    error
}

fn side(peer: &Peer, field: &str) -> Result<Side, FieldError> {
    let Some(IpBlock { cidr, except }) = &peer.ip_block else {
        return Ok(Side {
            selector: label_selector::pods(peer.pod_selector.as_ref(), &format!("{field}.podSelector"))?,
            namespace_selector: label_selector::namespaces(
                peer.namespace_selector.as_ref(),
                &format!("{field}.namespaceSelector"),
            )?,
            ..Side::default()
        });
    };
    let excepted = except
        .iter()
        .enumerate()
        .map(|(index, net)| network(net, &format!("{field}.ipBlock.except[{index}]")));
    Ok(Side {
        nets: vec![network(cidr, &format!("{field}.ipBlock.cidr"))?],
        not_nets: excepted.collect::<Result<_, _>>()?,
        ..Side::default()
    })
}

fn rules(
    direction: Direction,
    peers: &[Side],
    ports: &[PolicyPort],
    field: &str,
    findings: &mut Vec<FieldError>,
) -> Vec<Rule> {
    let mut protocols = Protocols::default();
    for (index, port) in ports.iter().enumerate() {
        match read_port(port, &format!("{field}.ports[{index}]")) {
            Ok(read) => {
                let protocol = port.protocol.clone().unwrap_or_else(|| DEFAULT_PROTOCOL.to_owned());
                protocols.add(Some(protocol), read);
            }
            Err(error) => {
                findings.push(left_out(error, "rule"));
                return Vec::new();
            }
        }
    }
    protocols.rules(direction, peers, &Rule { action: "Allow", ..Rule::default() })
}

fn read_port(port: &PolicyPort, field: &str) -> Result<Option<Port>, FieldError> {
    let text = match &port.port {
        None => return Ok(None),
        Some(NumberOrName::Number(number)) => number.to_string(),
        Some(NumberOrName::Name(name)) => name.clone(),
    };
    let text = match port.end_port {
        None => text,
        Some(last) => format!("{text}:{last}"),
    };
    text.parse().map(Some).map_err(|reason: String| error(format!("{field}.port"), reason))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn converted(spec: serde_json::Value) -> (PolicySpec, Vec<String>) {
        let mut findings = Vec::new();
        let spec = serde_json::from_value(spec).unwrap();
        let converted = convert(&spec, &mut findings).unwrap();
        (converted, findings.iter().map(FieldError::to_string).collect())
    }

    #[test]
    fn a_peer_that_does_not_read_is_nobody() {
        let bad = json!({ "ipBlock": { "cidr": "bogus" } });
        let bad_except = json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.0.0.0/33"] } });
        let bad_labels =
            json!({ "podSelector": { "matchExpressions": [{ "key": "a", "operator": "Near" }] } });
        let good = json!({ "ipBlock": { "cidr": "10.1.2.3/16" } });
        let (spec, findings) =
            converted(json!({ "ingress": [{ "from": [bad, bad_except, good, bad_labels] }] }));
        assert_eq!(spec.ingress.len(), 1);
        assert_eq!(spec.ingress[0].source.nets, ["10.1.0.0/16"]);
        assert_eq!(
            findings,
            [
                "spec.ingress[0].from[0].ipBlock.cidr: \"bogus\" is not a CIDR: this peer is left out",
                "spec.ingress[0].from[1].ipBlock.except[0]: \"10.0.0.0/33\" is not a CIDR: this peer is left out",
                "spec.ingress[0].from[3].podSelector.matchExpressions[0].operator: \"Near\" is none of In, NotIn, \
                 Exists, DoesNotExist: this peer is left out",
            ]
        );
        let (spec, _) = converted(json!({ "egress": [{ "to": [{ "ipBlock": { "cidr": "" } }] }] }));
        assert_eq!(spec.egress, []);
    }

    #[test]
    fn a_policy_with_an_unknown_subject_is_refused() {
        let spec = json!({ "podSelector": { "matchExpressions": [{ "key": "a", "operator": "Near" }] } });
        let spec = serde_json::from_value(spec).unwrap();
        let error = convert(&spec, &mut Vec::new()).unwrap_err();
        assert_eq!(error.field, "spec.podSelector.matchExpressions[0].operator");
    }

    #[test]
    fn a_named_port_has_no_range() {
        let (spec, findings) =
            converted(json!({ "ingress": [{ "ports": [{ "port": "http", "endPort": 90 }] }] }));
        assert_eq!(spec.ingress, []);
        assert_eq!(
            findings,
            [
                "spec.ingress[0].ports[0].port: \"http\" is not a port between 0 and 65535: this rule is left out"
            ]
        );
    }
}
