//! What both kinds of Kubernetes' policies become: the spec of a Calico policy, made of rules per protocol and
//! peer.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::object::error;
use crate::apis::FieldError;
use crate::apis::scalars::Port;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySpec {
    pub tier: &'static str,
    pub order: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<Rule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<Rule>,
    pub selector: String,
    #[serde(skip_serializing_if = "is_default")]
    pub namespace_selector: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<&'static str>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rule {
    pub action: &'static str,
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub source: Side,
    #[serde(skip_serializing_if = "is_default")]
    pub destination: Side,
    #[serde(skip_serializing_if = "is_default")]
    pub metadata: RuleMetadata,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RuleMetadata {
    annotations: BTreeMap<&'static str, String>,
}

impl RuleMetadata {
    /// What the author called the rule, if anything.
    pub fn named(name: &str) -> Self {
        let annotations = (!name.is_empty()).then(|| ("name", name.to_owned())).into_iter().collect();
        RuleMetadata { annotations }
    }
}

/// One side of a rule: whom it names, and, at the destination, which ports.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Side {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_nets: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub selector: String,
    #[serde(skip_serializing_if = "is_default")]
    pub namespace_selector: String,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "ports")]
    pub ports: Vec<Port>,
}

/// Single ports are numbers, ranges and names text.
fn ports<S: Serializer>(ports: &[Port], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ports.iter().map(|port| match port {
        Port::Range { first, last } if first == last => serde_json::Value::from(*first),
        other => serde_json::Value::from(other.to_string()),
    }))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

/// A network with its host bits cleared.
pub fn network(text: &str, field: &str) -> Result<String, FieldError> {
    let net = text.parse::<IpNet>();
    net.map(|net| net.trunc().to_string()).map_err(|_| error(field, format!("{text:?} is not a CIDR")))
}

/// The ports of a rule by protocol; in order, so that the same rule always becomes the same rules.
#[derive(Debug, Default)]
pub struct Protocols {
    /// `None` is any protocol. No ports are all ports.
    by_protocol: BTreeMap<Option<String>, Option<Vec<Port>>>,
}

impl Protocols {
    /// No port, or one more; a protocol that has all ports keeps them.
    pub fn add(&mut self, protocol: Option<String>, port: Option<Port>) {
        let ports = self.by_protocol.entry(protocol).or_insert_with(|| Some(Vec::new()));
        match (ports.as_mut(), port) {
            (Some(ports), Some(port)) => ports.push(port),
            (_, None) => *ports = None,
            (None, Some(_)) => {}
        }
    }

    /// One rule for each protocol and peer.
    pub fn rules(mut self, direction: Direction, peers: &[Side], rule: &Rule) -> Vec<Rule> {
        if self.by_protocol.is_empty() {
            self.by_protocol.insert(None, None);
        }
        let mut rules = Vec::with_capacity(self.by_protocol.len() * peers.len());
        for (protocol, ports) in self.by_protocol {
            let ports = simplified(ports.unwrap_or_default());
            for peer in peers {
                let mut rule = Rule { protocol: protocol.clone(), ..rule.clone() };
                match direction {
                    Direction::Ingress => {
                        rule.source = peer.clone();
                        rule.destination.ports = ports.clone();
                    }
                    Direction::Egress => rule.destination = Side { ports: ports.clone(), ..peer.clone() },
                }
                rules.push(rule);
            }
        }
        rules
    }
}

/// Names first, then the fewest ranges that cover the numbers. With no more than one number there is nothing
/// to cover, and everything stays where it is.
fn simplified(ports: Vec<Port>) -> Vec<Port> {
    let (mut ranges, mut simple) = (Vec::new(), Vec::new());
    for port in &ports {
        match port {
            Port::Range { first, last } => ranges.push((*first, *last)),
            Port::Name(_) => simple.push(port.clone()),
        }
    }
    if ports.len() <= 1
        || matches!(ranges.as_slice(), [] | [(_, _)]) && ranges.iter().all(|(first, last)| first == last)
    {
        return ports;
    }
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    simple.extend(merged.into_iter().map(|(first, last)| Port::Range { first, last }));
    simple
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simple(ports: &[&str]) -> Vec<String> {
        let ports = ports.iter().map(|port| port.parse().unwrap()).collect();
        simplified(ports).iter().map(Port::to_string).collect()
    }

    #[test]
    fn ports_are_covered_by_few_ranges() {
        assert_eq!(simple(&["80", "81", "82", "443", "http"]), ["http", "80:82", "443"]);
        assert_eq!(simple(&["8000:9000", "8500"]), ["8000:9000"]);
        assert_eq!(simple(&["90", "80:89", "92", "80"]), ["80:90", "92"]);
        assert_eq!(simple(&["65535", "0:65534"]), ["0:65535"]);
        assert_eq!(simple(&["80", "80"]), ["80"]);
    }

    #[test]
    fn one_number_among_names_stays_where_it_is() {
        assert_eq!(simple(&["80", "foo"]), ["80", "foo"]);
        assert_eq!(simple(&["foo", "80", "bar"]), ["foo", "80", "bar"]);
        assert_eq!(simple(&["80:90", "foo"]), ["foo", "80:90"]);
        assert_eq!(simple(&[]), [""; 0]);
    }

    #[test]
    fn all_ports_of_a_protocol_include_the_single_ones() {
        let mut protocols = Protocols::default();
        for port in [Some("80"), None, Some("90")] {
            protocols.add(Some("TCP".into()), port.map(|port| port.parse().unwrap()));
        }
        let rules = protocols.rules(Direction::Ingress, &[Side::default()], &Rule::default());
        assert_eq!(rules, [Rule { protocol: Some("TCP".into()), ..Rule::default() }]);
    }
}
