//! Rules of v3 policies and profiles.

use super::resource::Errors;
use crate::apis::policy::{EntityRule, Icmp, Rule};
use crate::apis::scalars::{Port, Protocol};

const MAX_RULES: usize = 1024;
const MAX_NETS: usize = 256;
const MAX_PORTS: usize = 50;

pub(super) fn protocol(protocol: &Protocol) -> Result<(), String> {
    match protocol {
        Protocol::Number(_) => Ok(()),
        Protocol::Name(name) if Protocol::NAMES.contains(&name.to_ascii_lowercase().as_str()) => Ok(()),
        Protocol::Name(name) => {
            Err(format!("{name:?} is none of TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite, or 0-255"))
        }
    }
}

pub(super) fn rules(errors: &mut Errors, field: &str, rules: &[Rule]) {
    if rules.len() > MAX_RULES {
        errors.add(field, format!("{} rules are more than {MAX_RULES}", rules.len()));
    }
    for (index, rule) in rules.iter().enumerate() {
        self::rule(errors, &format!("{field}[{index}]"), rule);
    }
}

fn rule(errors: &mut Errors, field: &str, rule: &Rule) {
    if rule.action.is_empty() {
        errors.add(format!("{field}.action"), "missing");
    } else {
        errors.one_of(format!("{field}.action"), &rule.action, &["Allow", "Deny", "Log", "Pass"]);
    }
    if !matches!(rule.ip_version, None | Some(4 | 6)) {
        errors.add(format!("{field}.ipVersion"), "neither 4 nor 6");
    }
    for (name, protocol) in [("protocol", &rule.protocol), ("notProtocol", &rule.not_protocol)] {
        if let Some(protocol) = protocol {
            errors.check(format!("{field}.{name}"), self::protocol(protocol));
        }
    }
    let is_icmp = rule.protocol.as_ref().is_some_and(|own| own.is("icmp", 1) || own.is("icmpv6", 58));
    for (name, icmp) in [("icmp", &rule.icmp), ("notICMP", &rule.not_icmp)] {
        if let Some(icmp) = icmp {
            self::icmp(errors, &format!("{field}.{name}"), icmp, is_icmp);
        }
    }
    if let Some(protocol) = &rule.protocol {
        let version = if protocol.is("icmp", 1) {
            Some(4)
        } else if protocol.is("icmpv6", 58) {
            Some(6)
        } else {
            None
        };
        if version.is_some() && rule.ip_version.is_some() && version != rule.ip_version {
            errors.add(format!("{field}.ipVersion"), format!("{protocol} is of the other version"));
        }
    }
    if rule.http.is_some() && rule.action != "Allow" {
        errors.add(format!("{field}.http"), "only with action Allow");
    }
    let has_ports = rule.protocol.as_ref().is_some_and(Protocol::has_ports);
    for (name, side) in [("source", &rule.source), ("destination", &rule.destination)] {
        entity(errors, &format!("{field}.{name}"), side, has_ports);
    }
}

fn icmp(errors: &mut Errors, field: &str, icmp: &Icmp, is_icmp: bool) {
    if !is_icmp {
        errors.add(field, "needs protocol ICMP or ICMPv6");
    }
    if icmp.r#type.is_some_and(|r#type| r#type > 254) {
        errors.add(format!("{field}.type"), "not between 0 and 254");
    }
    if icmp.code.is_some_and(|code| code > 255) {
        errors.add(format!("{field}.code"), "not between 0 and 255");
    }
    if icmp.code.is_some() && icmp.r#type.is_none() {
        errors.add(format!("{field}.type"), "missing: a code needs its type");
    }
}

fn entity(errors: &mut Errors, field: &str, side: &EntityRule, has_ports: bool) {
    for (name, nets) in [("nets", &side.nets), ("notNets", &side.not_nets)] {
        let field = format!("{field}.{name}");
        if nets.len() > MAX_NETS {
            errors
                .add(&field, format!("{} networks are more than {MAX_NETS}: use a network set", nets.len()));
        }
        errors.nets(&field, nets);
    }
    for (name, text) in [
        ("selector", &side.selector),
        ("notSelector", &side.not_selector),
        ("namespaceSelector", &side.namespace_selector),
    ] {
        errors.selector(format!("{field}.{name}"), text);
    }
    for (name, ports) in [("ports", &side.ports), ("notPorts", &side.not_ports)] {
        let field = format!("{field}.{name}");
        if !ports.is_empty() && !has_ports {
            errors.add(&field, "needs protocol TCP, UDP or SCTP");
        }
        if ports.len() > MAX_PORTS {
            errors.add(&field, format!("{} ports are more than {MAX_PORTS}", ports.len()));
        }
        for (index, port) in ports.iter().enumerate() {
            if matches!(port, Port::Range { last: 0, .. }) {
                errors.add(format!("{field}[{index}]"), "0 is not a port");
            }
        }
    }
    if let Some(accounts) = &side.service_accounts {
        errors.selector(format!("{field}.serviceAccounts.selector"), &accounts.selector);
    }
    if let Some(service) = &side.services {
        if service.name.is_empty() {
            errors.add(format!("{field}.services.name"), "missing");
        }
        let excluded = !side.selector.is_empty()
            || !side.not_selector.is_empty()
            || !side.namespace_selector.is_empty()
            || !side.nets.is_empty()
            || !side.not_nets.is_empty()
            || side.service_accounts.is_some();
        if excluded {
            errors.add(
                format!("{field}.services"),
                "cannot be combined with selectors, networks or service accounts",
            );
        }
        if field.ends_with("destination") && (!side.ports.is_empty() || !side.not_ports.is_empty()) {
            errors.add(format!("{field}.services"), "a service has its own ports");
        }
    }
}
