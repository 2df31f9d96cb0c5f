//! Rules: the selectors of both sides rewritten to the labels that endpoints carry.

use proto::model as v1;

use super::addresses::parse_net;
use super::findings::Findings;
use crate::apis::policy::{EntityRule, Icmp, Rule, ServiceAccounts};
use crate::apis::scalars::{Port, Protocol};
use crate::selector::Selector;

pub(super) const NAMESPACE_LABEL: &str = "projectcalico.org/namespace";
pub(super) const SERVICE_ACCOUNT_LABEL: &str = "projectcalico.org/serviceaccount";
/// In front of labels that endpoints have from their namespace's and service account's profiles.
pub(super) const NAMESPACE_PREFIX: &str = "pcns.";
pub(super) const SERVICE_ACCOUNT_PREFIX: &str = "pcsa.";

/// Converts the rules of a policy in `namespace` (empty for global ones). A rule that cannot be expressed
/// without matching more than it says is left out.
pub(super) fn convert(
    rules: &[Rule],
    namespace: &str,
    field: &str,
    findings: &mut Findings,
) -> Vec<v1::Rule> {
    let mut converted = Vec::with_capacity(rules.len());
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("{field}[{index}]");
        if rule.http.is_some() && !findings_allow_http(findings, &field, rule) {
            continue;
        }
        let src = entity(&rule.source, namespace, &format!("{field}.source"), findings);
        let dst = entity(&rule.destination, namespace, &format!("{field}.destination"), findings);
        let (Some(src), Some(dst)) = (src, dst) else { continue };
        converted.push(v1::Rule {
            action: action(&rule.action),
            ip_version: rule.ip_version.unwrap_or_default(),
            protocol: rule.protocol.as_ref().map(protocol),
            not_protocol: rule.not_protocol.as_ref().map(protocol),
            icmp: rule.icmp.as_ref().and_then(icmp),
            not_icmp: rule.not_icmp.as_ref().and_then(icmp),
            src,
            dst,
            annotations: rule.metadata.annotations.clone(),
        });
    }
    converted
}

/// Matching inside HTTP needs a proxy, which we are not: an allow rule would allow every request.
fn findings_allow_http(findings: &mut Findings, field: &str, rule: &Rule) -> bool {
    if rule.action.eq_ignore_ascii_case("deny") {
        return true;
    }
    findings.note(format!("{field}.http"), "HTTP cannot be matched here: the rule is left out");
    false
}

fn action(action: &str) -> String {
    match action {
        "Pass" => "next-tier".to_owned(),
        other => other.to_ascii_lowercase(),
    }
}

pub(super) fn protocol(protocol: &Protocol) -> v1::Protocol {
    let id = match protocol {
        Protocol::Number(number) => v1::protocol::Id::Number(u32::from(*number)),
        Protocol::Name(name) => v1::protocol::Id::Name(name.to_ascii_lowercase()),
    };
    v1::Protocol { id: Some(id) }
}

fn icmp(icmp: &Icmp) -> Option<v1::Icmp> {
    icmp.r#type.map(|r#type| v1::Icmp { r#type, code: icmp.code })
}

fn port(port: &Port) -> v1::Port {
    let port = match port {
        Port::Range { first, last } => {
            v1::port::Port::Range(v1::PortRange { first: u32::from(*first), last: u32::from(*last) })
        }
        Port::Name(name) => v1::port::Port::Name(name.clone()),
    };
    v1::Port { port: Some(port) }
}

/// `None` when nothing is left of what restricts this side. A side that restricts nothing is
/// `Some(None)`.
fn entity(
    side: &EntityRule,
    namespace: &str,
    field: &str,
    findings: &mut Findings,
) -> Option<Option<v1::EntityRule>> {
    let nets = networks(&side.nets, &format!("{field}.nets"), findings);
    let not_nets = networks(&side.not_nets, &format!("{field}.notNets"), findings);
    let lost = |given: &[String], kept: &[String]| !given.is_empty() && kept.is_empty();
    if lost(&side.nets, &nets) || lost(&side.not_nets, &not_nets) {
        return None;
    }
    let service = side.services.clone().unwrap_or_default();
    let entity = v1::EntityRule {
        nets,
        selector: selector(side, namespace, field, findings),
        ports: side.ports.iter().map(port).collect(),
        not_nets,
        not_selector: side.not_selector.clone(),
        not_ports: side.not_ports.iter().map(port).collect(),
        service_name: service.name,
        service_namespace: service.namespace,
    };
    Some((entity != v1::EntityRule::default()).then_some(entity))
}

fn networks(nets: &[String], field: &str, findings: &mut Findings) -> Vec<String> {
    let mut parsed = Vec::with_capacity(nets.len());
    for (index, net) in nets.iter().enumerate() {
        match parse_net(net) {
            Ok(net) => parsed.push(net.to_string()),
            Err(reason) => findings.refuse(format!("{field}[{index}]"), reason),
        }
    }
    parsed
}

/// Namespace, service accounts and the selector itself, in one.
fn selector(side: &EntityRule, namespace: &str, field: &str, findings: &mut Findings) -> String {
    let accounts = service_accounts(side.service_accounts.as_ref(), field, findings);
    let inner = match (accounts.as_str(), side.selector.as_str()) {
        ("", selector) => selector.to_owned(),
        (accounts, "") => accounts.to_owned(),
        (accounts, selector) => format!("({accounts}) && ({selector})"),
    };
    let within = if side.namespace_selector.is_empty() {
        if namespace.is_empty() { String::new() } else { format!("{NAMESPACE_LABEL} == '{namespace}'") }
    } else {
        let field = format!("{field}.namespaceSelector");
        prefixed(&side.namespace_selector, NAMESPACE_PREFIX, &field, findings)
            .replace("all()", &format!("has({NAMESPACE_LABEL})"))
            .replace("global()", &format!("!has({NAMESPACE_LABEL})"))
    };
    if !within.is_empty() && !inner.is_empty() {
        format!("({within}) && ({inner})")
    } else if !within.is_empty() && (!side.not_selector.is_empty() || !side.namespace_selector.is_empty()) {
        within
    } else {
        inner
    }
}

fn service_accounts(accounts: Option<&ServiceAccounts>, field: &str, findings: &mut Findings) -> String {
    let Some(accounts) = accounts else { return String::new() };
    let names = if accounts.names.is_empty() {
        String::new()
    } else {
        let mut names = accounts.names.clone();
        names.sort();
        names.dedup();
        let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
        format!("{SERVICE_ACCOUNT_LABEL} in {{{}}}", quoted.join(", "))
    };
    let field = format!("{field}.serviceAccounts.selector");
    let selector = prefixed(&accounts.selector, SERVICE_ACCOUNT_PREFIX, &field, findings);
    match (selector.as_str(), names.as_str()) {
        ("", _) => names,
        (_, "") => selector,
        (selector, names) => format!("({selector}) && ({names})"),
    }
}

/// The selector in canonical form over prefixed labels; empty when there is none, or none that reads.
pub(super) fn prefixed(text: &str, prefix: &str, field: &str, findings: &mut Findings) -> String {
    if text.is_empty() {
        return String::new();
    }
    match Selector::parse(text) {
        Ok(selector) => selector.prefixed(prefix).canonical().to_owned(),
        Err(error) => {
            findings.refuse(field, error.to_string());
            String::new()
        }
    }
}
