//! Rules of the datastore → rules over IP sets, with the sets that they need.
//!
//! How a side's matches map to sets:
//! - positive and negated selector of one side become one selector, so that both are tested on the same
//!   endpoint: two endpoints that share an address do not cancel each other out;
//! - a named port becomes a set of address and port over the endpoints of the side's positive selector,
//!   also when the port is negated: the rule as a whole can only match there;
//! - the plain selector set is left out when only named ports exist, as they already imply it.
//!
//! A policy or profile with any rule that cannot be converted is refused as a whole: half of its rules
//! would be another policy.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use syncer_common::model::values;
use syncer_common::selector::Selector;

use crate::ip_set::{IpSetDef, PortProtocol};
use crate::output::{ActivePolicy, ActiveProfile, Icmp, Protocol, Rule};

/// Why rules were refused, with the place in the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct RuleError {
    pub field: String,
    pub reason: String,
}

/// The sets that a policy or profile refers to, by id.
pub type NeededSets = BTreeMap<String, IpSetDef>;

/// The performance hint that keeps a policy active without a local match.
const ALWAYS_NEEDED: &str = "AssumeNeededOnEveryNode";

pub fn is_always_needed(policy: &values::Policy) -> bool {
    policy.performance_hints.iter().any(|hint| hint == ALWAYS_NEEDED)
}

/// The tier of a policy: the default one when none is named.
pub fn tier_of(policy: &values::Policy) -> &str {
    if policy.tier.is_empty() { "default" } else { &policy.tier }
}

pub fn scan_policy(policy: &values::Policy) -> Result<(ActivePolicy, NeededSets), RuleError> {
    let mut sets = NeededSets::new();
    let active = ActivePolicy {
        tier: tier_of(policy).to_owned(),
        namespace: policy.namespace.clone(),
        inbound: scan_rules("inbound_rules", &policy.inbound_rules, &mut sets)?,
        outbound: scan_rules("outbound_rules", &policy.outbound_rules, &mut sets)?,
        untracked: policy.untracked,
        pre_dnat: policy.pre_dnat,
        original_selector: policy.selector.clone(),
        always_needed: is_always_needed(policy),
    };
    Ok((active, sets))
}

pub fn scan_profile(rules: &values::ProfileRules) -> Result<(ActiveProfile, NeededSets), RuleError> {
    let mut sets = NeededSets::new();
    let active = ActiveProfile {
        inbound: scan_rules("inbound_rules", &rules.inbound_rules, &mut sets)?,
        outbound: scan_rules("outbound_rules", &rules.outbound_rules, &mut sets)?,
    };
    Ok((active, sets))
}

/// Stands in for a profile that an endpoint names but that does not exist: fail closed.
pub fn missing_profile() -> ActiveProfile {
    let deny: Arc<[Rule]> = [Rule { action: "deny".to_owned(), ..Rule::default() }].into();
    ActiveProfile { inbound: deny.clone(), outbound: deny }
}

fn scan_rules(field: &str, rules: &[values::Rule], sets: &mut NeededSets) -> Result<Arc<[Rule]>, RuleError> {
    rules
        .iter()
        .enumerate()
        .map(|(position, rule)| {
            scan_rule(rule, sets)
                .map_err(|error| RuleError { field: format!("{field}[{position}].{}", error.field), ..error })
        })
        .collect()
}

fn scan_rule(rule: &values::Rule, sets: &mut NeededSets) -> Result<Rule, RuleError> {
    let empty = values::EntityRule::default();
    let port_protocol = PortProtocol::of(rule.protocol.as_ref());
    let mut side = |name, entity: &Option<values::EntityRule>, with_ports| {
        scan_side(entity.as_ref().unwrap_or(&empty), port_protocol, with_ports, sets)
            .map_err(|error| RuleError { field: format!("{name}.{}", error.field), ..error })
    };
    let src = side("src", &rule.src, false)?;
    let dst = side("dst", &rule.dst, true)?;
    Ok(Rule {
        action: rule.action.clone(),
        ip_version: rule.ip_version,
        protocol: protocol("protocol", rule.protocol.as_ref())?,
        not_protocol: protocol("not_protocol", rule.not_protocol.as_ref())?,
        icmp: icmp("icmp", rule.icmp.as_ref())?,
        not_icmp: icmp("not_icmp", rule.not_icmp.as_ref())?,
        src_nets: src.nets,
        src_ports: src.ports,
        src_named_port_ip_set_ids: src.named_port_sets,
        src_ip_set_ids: src.sets,
        not_src_nets: src.not_nets,
        not_src_ports: src.not_ports,
        not_src_named_port_ip_set_ids: src.not_named_port_sets,
        not_src_ip_set_ids: src.not_sets,
        dst_nets: dst.nets,
        dst_ports: dst.ports,
        dst_named_port_ip_set_ids: dst.named_port_sets,
        dst_ip_set_ids: dst.sets,
        dst_ip_port_set_ids: dst.ip_port_sets,
        not_dst_nets: dst.not_nets,
        not_dst_ports: dst.not_ports,
        not_dst_named_port_ip_set_ids: dst.not_named_port_sets,
        not_dst_ip_set_ids: dst.not_sets,
        annotations: rule.annotations.clone(),
    })
}

/// First and last port.
type PortRange = (u16, u16);

#[derive(Default)]
struct Side {
    nets: Vec<String>,
    ports: Vec<PortRange>,
    named_port_sets: Vec<String>,
    sets: Vec<String>,
    ip_port_sets: Vec<String>,
    not_nets: Vec<String>,
    not_ports: Vec<PortRange>,
    not_named_port_sets: Vec<String>,
    not_sets: Vec<String>,
}

fn scan_side(
    entity: &values::EntityRule,
    port_protocol: PortProtocol,
    with_service_ports: bool,
    sets: &mut NeededSets,
) -> Result<Side, RuleError> {
    let mut need = |def: IpSetDef| {
        let id = def.id.clone();
        sets.entry(id.clone()).or_insert(def);
        id
    };
    let (ports, names) = split_ports("ports", &entity.ports)?;
    let (not_ports, not_names) = split_ports("not_ports", &entity.not_ports)?;
    let (positive, negated) = selectors(entity)?;

    let mut named_port_sets = |names: Vec<&str>| -> Result<Vec<String>, RuleError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let selector = match &positive {
            Some(selector) => selector.clone(),
            None => parse("selector", "all()")?,
        };
        Ok(names
            .into_iter()
            .map(|name| need(IpSetDef::named_port(selector.clone(), port_protocol, name)))
            .collect())
    };
    let mut side = Side {
        nets: nets("nets", &entity.nets)?,
        not_nets: nets("not_nets", &entity.not_nets)?,
        named_port_sets: named_port_sets(names)?,
        not_named_port_sets: named_port_sets(not_names)?,
        ports,
        not_ports,
        ..Side::default()
    };
    if side.named_port_sets.is_empty() || !side.ports.is_empty() {
        side.sets.extend(positive.map(|selector| need(IpSetDef::selector(selector))));
    }
    side.not_sets.extend(negated.map(|selector| need(IpSetDef::selector(selector))));
    if !entity.service_name.is_empty() {
        let (namespace, name) = (&entity.service_namespace, &entity.service_name);
        let id = need(IpSetDef::service(namespace, name, with_service_ports));
        if with_service_ports { side.ip_port_sets.push(id) } else { side.sets.push(id) }
    }
    Ok(side)
}

/// The positive selector (with the negated one folded in when there are both) and the negated one.
fn selectors(entity: &values::EntityRule) -> Result<(Option<Selector>, Option<Selector>), RuleError> {
    let (positive, negated) = (entity.selector.as_str(), entity.not_selector.as_str());
    Ok(match (positive.is_empty(), negated.is_empty()) {
        (true, true) => (None, None),
        (false, true) => (Some(parse("selector", positive)?), None),
        (true, false) => (None, Some(parse("not_selector", negated)?)),
        (false, false) => {
            parse("selector", positive)?;
            parse("not_selector", negated)?;
            (Some(parse("selector", &format!("({positive}) && !({negated})"))?), None)
        }
    })
}

fn parse(field: &str, text: &str) -> Result<Selector, RuleError> {
    Selector::parse(text).map_err(|error| refused(field, error))
}

fn split_ports<'a>(
    field: &str,
    ports: &'a [values::Port],
) -> Result<(Vec<PortRange>, Vec<&'a str>), RuleError> {
    use values::port::Port;
    let (mut numbers, mut names) = (Vec::new(), Vec::new());
    for port in ports {
        match &port.port {
            Some(Port::Range(range)) => {
                let bound =
                    |number: u32| u16::try_from(number).map_err(|_| refused(field, "port above 65535"));
                let (first, last) = (bound(range.first)?, bound(range.last)?);
                if first > last {
                    return Err(refused(field, "range ends before it begins"));
                }
                numbers.push((first, last));
            }
            Some(Port::Name(name)) => names.push(name.as_str()),
            None => return Err(refused(field, "neither number nor name")),
        }
    }
    Ok((numbers, names))
}

fn nets(field: &str, nets: &[String]) -> Result<Vec<String>, RuleError> {
    for net in nets {
        if net.parse::<IpNet>().is_err() && net.parse::<std::net::IpAddr>().is_err() {
            return Err(refused(field, format!("{net:?} is not a CIDR")));
        }
    }
    Ok(nets.to_vec())
}

fn protocol(field: &str, protocol: Option<&values::Protocol>) -> Result<Option<Protocol>, RuleError> {
    use values::protocol::Id;
    Ok(match protocol.and_then(|protocol| protocol.id.as_ref()) {
        None => None,
        Some(Id::Number(number)) => {
            Some(Protocol::Number(u8::try_from(*number).map_err(|_| refused(field, "number above 255"))?))
        }
        Some(Id::Name(name)) => Some(Protocol::Name(name.to_ascii_lowercase())),
    })
}

fn icmp(field: &str, icmp: Option<&values::Icmp>) -> Result<Option<Icmp>, RuleError> {
    let byte = |number: u32| u8::try_from(number).map_err(|_| refused(field, "type or code above 255"));
    icmp.map(|icmp| Ok(Icmp { icmp_type: byte(icmp.r#type)?, code: icmp.code.map(byte).transpose()? }))
        .transpose()
}

fn refused(field: &str, reason: impl ToString) -> RuleError {
    RuleError { field: field.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{allow, deny};

    fn scan(rule: crate::testing::Rule) -> Result<(Rule, NeededSets), RuleError> {
        let rules = values::ProfileRules { inbound_rules: vec![rule.0], ..Default::default() };
        scan_profile(&rules).map(|(profile, sets)| (profile.inbound[0].clone(), sets))
    }

    #[test]
    fn plain_matches_are_carried_over() {
        let mut rule = deny().protocol("TCP").to_number(80, 90).edit_src(|src| {
            src.nets = vec!["10.0.0.0/8".into()];
            src.not_nets = vec!["10.1.0.0/16".into()];
        });
        rule.0.ip_version = 4;
        rule.0.not_protocol = Some(values::Protocol { id: Some(values::protocol::Id::Number(47)) });
        rule.0.icmp = Some(values::Icmp { r#type: 8, code: None });
        rule.0.not_icmp = Some(values::Icmp { r#type: 3, code: Some(0) });
        rule.0.annotations = BTreeMap::from([("why".to_owned(), "test".to_owned())]);
        let (scanned, sets) = scan(rule).unwrap();
        let expected = Rule {
            action: "deny".into(),
            ip_version: 4,
            protocol: Some(Protocol::Name("tcp".into())),
            not_protocol: Some(Protocol::Number(47)),
            icmp: Some(Icmp { icmp_type: 8, code: None }),
            not_icmp: Some(Icmp { icmp_type: 3, code: Some(0) }),
            src_nets: vec!["10.0.0.0/8".into()],
            not_src_nets: vec!["10.1.0.0/16".into()],
            dst_ports: vec![(80, 90)],
            annotations: BTreeMap::from([("why".to_owned(), "test".to_owned())]),
            ..Rule::default()
        };
        assert_eq!(scanned, expected);
        assert!(sets.is_empty());
    }

    #[test]
    fn selector_of_everything_is_not_no_selector() {
        let (scanned, sets) = scan(allow().from("all()")).unwrap();
        assert_eq!(scanned.src_ip_set_ids, sets.into_keys().collect::<Vec<_>>());
        assert_eq!(scanned.src_ip_set_ids.len(), 1);
        let (scanned, _) = scan(allow().from("")).unwrap();
        assert_eq!(scanned.src_ip_set_ids, Vec::<String>::new());
    }

    #[test]
    fn protocol_numbers_narrow_named_ports_like_names() {
        let by_name = scan(allow().protocol("udp").to_port("dns")).unwrap();
        let mut rule = allow().to_port("dns");
        rule.0.protocol = Some(values::Protocol { id: Some(values::protocol::Id::Number(17)) });
        let by_number = scan(rule).unwrap();
        assert_eq!(by_name.0.dst_named_port_ip_set_ids, by_number.0.dst_named_port_ip_set_ids);
    }

    #[test]
    fn refusal_names_the_place_and_the_reason() {
        let error = |rule| scan(rule).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error(allow().to_number(0, 65_536)), "inbound_rules[0].dst.ports: port above 65535");
        let net = allow().edit_src(|src| src.not_nets.push("10.0.0.0/33".into()));
        assert_eq!(error(net), "inbound_rules[0].src.not_nets: \"10.0.0.0/33\" is not a CIDR");
        let selector = error(allow().from("has(a)").not_from("b =="));
        assert!(
            selector.starts_with("inbound_rules[0].src.not_selector: bad selector at byte"),
            "{selector}"
        );
    }
}
