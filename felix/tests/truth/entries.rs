//! A [`World`] as the entries that felix is sent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use syncer_common::model::{HostEndpointKey, Key, PolicyKey, Value, WorkloadEndpointKey, values};

use crate::wire::far_mac;
use crate::world::{Act, Labels, Owner, Proto, RuleSpec, Sel, SideMatch, Where, World};

pub const NODE: &str = "n1";

pub fn local_ip(at: usize, v4: bool) -> IpAddr {
    address(v4, [10, 65, 0], 0xfd65, 0, at)
}

pub fn remote_ip(at: usize, v4: bool) -> IpAddr {
    address(v4, [10, 66, 0], 0xfd66, 0, at)
}

pub fn stranger_ip(at: usize, v4: bool) -> IpAddr {
    address(v4, [192, 0, 2], 0x2001, 0xdb8, at)
}

pub fn host_ip(v4: bool) -> IpAddr {
    address(v4, [172, 30, 0], 0xfd30, 0, 0)
}

fn address(v4: bool, [a, b, c]: [u8; 3], first: u16, second: u16, at: usize) -> IpAddr {
    match v4 {
        true => Ipv4Addr::new(a, b, c, at as u8 + 1).into(),
        false => Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, at as u16 + 1).into(),
    }
}

pub fn local_key(n: usize) -> WorkloadEndpointKey {
    key(NODE, &format!("local{n}"))
}

pub fn host_key() -> HostEndpointKey {
    HostEndpointKey { host: NODE.into(), endpoint: "uplink".into() }
}

pub fn interface(n: usize) -> String {
    format!("cali{n}")
}

fn key(host: &str, name: &str) -> WorkloadEndpointKey {
    WorkloadEndpointKey {
        host: host.into(),
        orchestrator: "k8s".into(),
        workload: format!("default/{name}"),
        endpoint: "eth0".into(),
    }
}

pub fn entries(world: &World) -> BTreeMap<Key, Value> {
    let mut entries = BTreeMap::new();
    for (n, owner) in world.locals.iter().enumerate() {
        let value = workload(owner, &interface(n), &far_mac(n), local_ip);
        entries.insert(Key::WorkloadEndpoint(local_key(n)), Value::WorkloadEndpoint(value));
    }
    for owner in &world.remotes {
        let value = workload(owner, "califar", "", remote_ip);
        entries.insert(Key::WorkloadEndpoint(key("n2", &owner.name)), Value::WorkloadEndpoint(value));
    }
    for set in &world.nets {
        let value =
            values::NetworkSet { nets: set.nets.clone(), labels: labels(&set.labels), ..Default::default() };
        entries.insert(Key::NetworkSet { name: set.name.clone() }, Value::NetworkSet(value));
    }
    for (name, of, inbound, outbound) in &world.profiles {
        let rules = values::ProfileRules { inbound_rules: rules(inbound), outbound_rules: rules(outbound) };
        entries.insert(Key::ProfileRules { name: (*name).into() }, Value::ProfileRules(rules));
        let labels = values::ProfileLabels { labels: labels(of) };
        entries.insert(Key::ProfileLabels { name: (*name).into() }, Value::ProfileLabels(labels));
    }
    for tier in &world.tiers {
        let default_action = if tier.pass { "Pass" } else { "Deny" }.into();
        let value = values::Tier { order: tier.order, default_action };
        entries.insert(Key::Tier { name: tier.name.into() }, Value::Tier(value));
    }
    for policy in &world.policies {
        let types = [(policy.ingress, "ingress"), (policy.egress, "egress")];
        let value = values::Policy {
            tier: policy.tier.into(),
            order: policy.order,
            selector: text(&policy.sel),
            inbound_rules: rules(&policy.inbound),
            outbound_rules: rules(&policy.outbound),
            types: types.iter().filter(|(on, _)| *on).map(|(_, name)| (*name).to_owned()).collect(),
            untracked: policy.at == Where::Untracked,
            pre_dnat: policy.at == Where::PreDnat,
            apply_on_forward: policy.at != Where::Normal,
            ..Default::default()
        };
        let key = PolicyKey {
            kind: "GlobalNetworkPolicy".into(),
            namespace: String::new(),
            name: policy.name.clone(),
        };
        entries.insert(Key::Policy(key), Value::Policy(value));
    }
    if let Some(host) = &world.host {
        let value = values::HostEndpoint {
            name: host.interface.into(),
            labels: labels(&host.owner.labels),
            profile_ids: strings(&host.owner.profiles),
            ..Default::default()
        };
        entries.insert(Key::HostEndpoint(host_key()), Value::HostEndpoint(value));
    }
    let name = "DefaultEndpointToHostAction".to_owned();
    entries.insert(Key::GlobalConfig { name }, Value::Config(world.to_host.into()));
    entries
}

fn workload(
    owner: &Owner,
    interface: &str,
    mac: &str,
    ip: fn(usize, bool) -> IpAddr,
) -> values::WorkloadEndpoint {
    let nets = |v4, length| owner.addresses.iter().map(|at| format!("{}/{length}", ip(*at, v4))).collect();
    values::WorkloadEndpoint {
        state: "active".into(),
        name: interface.into(),
        mac: mac.into(),
        profile_ids: strings(&owner.profiles),
        ipv4_nets: nets(true, 32),
        ipv6_nets: nets(false, 128),
        labels: labels(&owner.labels),
        ports: owner
            .ports
            .iter()
            .map(|(name, protocol, port)| values::NamedPort {
                name: (*name).into(),
                protocol: Some(named(protocol)),
                port: u32::from(*port),
            })
            .collect(),
        ..Default::default()
    }
}

fn rules(rules: &[RuleSpec]) -> Vec<values::Rule> {
    rules.iter().map(rule).collect()
}

fn rule(rule: &RuleSpec) -> values::Rule {
    let protocol = |proto: &Option<Proto>| match proto {
        None => None,
        Some(Proto::Name(name)) => Some(named(name)),
        Some(Proto::Number(number)) => {
            Some(values::Protocol { id: Some(values::protocol::Id::Number((*number).into())) })
        }
    };
    let icmp = |icmp: Option<(u8, Option<u8>)>| {
        icmp.map(|(kind, code)| values::Icmp { r#type: kind.into(), code: code.map(Into::into) })
    };
    let action = match rule.act {
        Act::Allow => "allow",
        Act::Deny => "deny",
        Act::Pass => "next-tier",
        Act::Log => "log",
    };
    values::Rule {
        action: action.into(),
        ip_version: rule.version.into(),
        protocol: protocol(&rule.proto),
        not_protocol: protocol(&rule.not_proto),
        icmp: icmp(rule.icmp),
        not_icmp: icmp(rule.not_icmp),
        src: Some(side(&rule.src)),
        dst: Some(side(&rule.dst)),
        ..Default::default()
    }
}

fn side(side: &SideMatch) -> values::EntityRule {
    use values::port::Port;
    let ports = |ranges: &[(u16, u16)], names: &[&str]| {
        let ranges = ranges.iter().map(|(first, last)| {
            Port::Range(values::PortRange { first: (*first).into(), last: (*last).into() })
        });
        let names = names.iter().map(|name| Port::Name((*name).into()));
        ranges.chain(names).map(|port| values::Port { port: Some(port) }).collect()
    };
    values::EntityRule {
        nets: side.nets.clone(),
        not_nets: side.not_nets.clone(),
        selector: side.sel.as_ref().map(text).unwrap_or_default(),
        not_selector: side.not_sel.as_ref().map(text).unwrap_or_default(),
        ports: ports(&side.ports, &side.named),
        not_ports: ports(&side.not_ports, &side.not_named),
        ..Default::default()
    }
}

fn text(sel: &Sel) -> String {
    match sel {
        Sel::All => "all()".into(),
        Sel::Has(key) => format!("has({key})"),
        Sel::Eq(key, value) => format!("{key} == '{value}'"),
        Sel::Ne(key, value) => format!("{key} != '{value}'"),
        Sel::In(key, values) => format!("{key} in {{'{}'}}", values.join("', '")),
        Sel::Not(inner) => format!("!({})", text(inner)),
        Sel::And(left, right) => format!("({}) && ({})", text(left), text(right)),
        Sel::Or(left, right) => format!("({}) || ({})", text(left), text(right)),
    }
}

fn named(name: &str) -> values::Protocol {
    values::Protocol { id: Some(values::protocol::Id::Name(name.into())) }
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn labels(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
