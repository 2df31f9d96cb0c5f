//! Values of the v1 model, before they are sent.

use proto::model as v1;

use crate::apis::FieldError;
use crate::model::{Key, Value};
use crate::processors::{parse_address, parse_net};
use crate::selector::Selector;

/// Everything that is wrong with a value; nothing when it is good.
pub fn value(key: &Key, value: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    match value {
        Value::Policy(policy) => {
            errors.selector("selector", &policy.selector);
            errors.rules("inbound_rules", &policy.inbound_rules);
            errors.rules("outbound_rules", &policy.outbound_rules);
            for (index, direction) in policy.types.iter().enumerate() {
                errors.one_of(&format!("types[{index}]"), direction, &["ingress", "egress"]);
            }
            if policy.untracked && policy.pre_dnat {
                errors.add("pre_dnat", "a policy is either untracked or before DNAT, not both");
            }
            if policy.pre_dnat && !policy.outbound_rules.is_empty() {
                errors.add("outbound_rules", "a policy before DNAT cannot have egress rules");
            }
        }
        Value::ProfileRules(profile) => {
            errors.rules("inbound_rules", &profile.inbound_rules);
            errors.rules("outbound_rules", &profile.outbound_rules);
        }
        Value::Tier(tier) => errors.one_of("default_action", &tier.default_action, &["Deny", "Pass"]),
        Value::WorkloadEndpoint(endpoint) => {
            if endpoint.name.is_empty() {
                errors.add("interface_name", "missing: the endpoint has no interface");
            }
            errors.interface("interface_name", &endpoint.name);
            errors.nets("ipv4_nets", &endpoint.ipv4_nets);
            errors.nets("ipv6_nets", &endpoint.ipv6_nets);
            errors.named_ports(&endpoint.ports);
        }
        Value::HostEndpoint(endpoint) => {
            if endpoint.name.is_empty()
                && endpoint.expected_ipv4_addrs.is_empty()
                && endpoint.expected_ipv6_addrs.is_empty()
            {
                errors.add("interfaceName", "give an interface, or addresses to find it by");
            }
            errors.interface("interfaceName", &endpoint.name);
            errors.named_ports(&endpoint.ports);
        }
        Value::IpPool(pool) => {
            if !pool.ipip_mode.is_empty() && !pool.vxlan_mode.is_empty() {
                errors.add("vxlanMode", "a pool has one encapsulation: IPIP or VXLAN");
            }
            if !pool.ipip_mode.is_empty() && pool.cidr.contains(':') {
                errors.add("ipipMode", "IPIP carries IPv4 only");
            }
        }
        Value::BgpPeer(peer) => errors.bgp_peer(peer),
        Value::FelixConfiguration(configuration) => {
            errors.selector("nodeSelector", &configuration.node_selector);
        }
        Value::NetworkSet(set) => errors.nets("nets", &set.nets),
        Value::BgpFilter(filter) => errors.bgp_filter(filter),
        Value::Service(service) => {
            let types = ["", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
            errors.one_of("type", &service.r#type, &types);
            let policies = ["", "Cluster", "Local"];
            errors.one_of("externalTrafficPolicy", &service.external_traffic_policy, &policies);
        }
        Value::EndpointSlice(slice) => {
            for (index, port) in slice.ports.iter().enumerate() {
                errors.protocol(&format!("ports[{index}].protocol"), port.protocol.as_ref());
            }
        }
        Value::LiveMigration(migration) => errors.selector("target_selector", &migration.target_selector),
        Value::CalicoNodeStatus(status) if status.node.is_empty() => errors.add("node", "missing"),
        _ => {}
    }
    if let Key::HostConfig { host, .. } = key
        && host.is_empty()
    {
        errors.add("host", "empty");
    }
    errors.0
}

#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn add(&mut self, field: &str, reason: impl Into<String>) {
        self.0.push(FieldError::new(field, reason));
    }

    fn one_of(&mut self, field: &str, value: &str, allowed: &[&str]) {
        if !allowed.contains(&value) {
            self.add(field, format!("{value:?} is none of {}", allowed.join(", ")));
        }
    }

    fn selector(&mut self, field: &str, text: &str) {
        if let Err(error) = Selector::parse(text) {
            self.add(field, error.to_string());
        }
    }

    fn nets(&mut self, field: &str, nets: &[String]) {
        for (index, net) in nets.iter().enumerate() {
            if let Err(reason) = parse_net(net) {
                self.add(&format!("{field}[{index}]"), reason);
            }
        }
    }

    /// Names that the kernel takes: they end up in rules and in paths under `/proc`.
    fn interface(&mut self, field: &str, name: &str) {
        let bad = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        if name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
            self.add(field, format!("{name:?} is not a name for an interface"));
        }
    }

    fn named_ports(&mut self, ports: &[v1::NamedPort]) {
        for (index, port) in ports.iter().enumerate() {
            if port.port == 0 || port.port > 65535 {
                self.add(
                    &format!("ports[{index}].port"),
                    format!("{} is not between 1 and 65535", port.port),
                );
            }
            if port.protocol.is_none() {
                self.add(&format!("ports[{index}].protocol"), "missing");
            }
        }
    }

    fn rules(&mut self, field: &str, rules: &[v1::Rule]) {
        for (index, rule) in rules.iter().enumerate() {
            self.rule(&format!("{field}[{index}]"), rule);
        }
    }

    fn rule(&mut self, field: &str, rule: &v1::Rule) {
        self.one_of(&format!("{field}.action"), &rule.action, &["allow", "deny", "log", "next-tier"]);
        if !matches!(rule.ip_version, 0 | 4 | 6) {
            self.add(&format!("{field}.ip_version"), format!("{} is neither 4 nor 6", rule.ip_version));
        }
        for (name, protocol) in [("protocol", &rule.protocol), ("not_protocol", &rule.not_protocol)] {
            self.protocol(&format!("{field}.{name}"), protocol.as_ref());
        }
        let is_icmp = is_protocol(rule.protocol.as_ref(), &[("icmp", 1), ("icmpv6", 58)]);
        for (name, icmp) in [("icmp", &rule.icmp), ("not_icmp", &rule.not_icmp)] {
            let Some(icmp) = icmp else { continue };
            if !is_icmp {
                self.add(&format!("{field}.{name}"), "needs protocol ICMP or ICMPv6");
            }
            if icmp.r#type > 255 || icmp.code.is_some_and(|code| code > 255) {
                self.add(&format!("{field}.{name}"), "type and code are 0 to 255");
            }
        }
        let has_ports = is_protocol(rule.protocol.as_ref(), &[("tcp", 6), ("udp", 17), ("sctp", 132)]);
        for (name, side) in [("src", &rule.src), ("dst", &rule.dst)] {
            let Some(side) = side else { continue };
            let field = format!("{field}.{name}");
            self.nets(&format!("{field}.nets"), &side.nets);
            self.nets(&format!("{field}.not_nets"), &side.not_nets);
            if !side.selector.is_empty() {
                self.selector(&format!("{field}.selector"), &side.selector);
            }
            if !side.not_selector.is_empty() {
                self.selector(&format!("{field}.not_selector"), &side.not_selector);
            }
            for (name, ports) in [("ports", &side.ports), ("not_ports", &side.not_ports)] {
                self.ports(&format!("{field}.{name}"), ports, has_ports);
            }
        }
    }

    fn protocol(&mut self, field: &str, protocol: Option<&v1::Protocol>) {
        use v1::protocol::Id;
        match protocol.map(|protocol| &protocol.id) {
            None => {}
            Some(Some(Id::Number(number))) if *number <= 255 => {}
            Some(Some(Id::Name(name))) if crate::apis::scalars::Protocol::NAMES.contains(&name.as_str()) => {}
            Some(other) => self.add(field, format!("{} is no protocol", describe(other.as_ref()))),
        }
    }

    fn ports(&mut self, field: &str, ports: &[v1::Port], has_ports: bool) {
        if !ports.is_empty() && !has_ports {
            self.add(field, "needs protocol TCP, UDP or SCTP");
        }
        for (index, port) in ports.iter().enumerate() {
            let good = match &port.port {
                Some(v1::port::Port::Range(range)) => range.first <= range.last && range.last <= 65535,
                Some(v1::port::Port::Name(name)) => !name.is_empty(),
                None => false,
            };
            if !good {
                self.add(&format!("{field}[{index}]"), "not a port, a range or a name");
            }
        }
    }

    /// A rule that does nothing, or of which nobody knows what it does.
    fn bgp_filter(&mut self, filter: &v1::BgpFilter) {
        let lists = [
            ("exportV4", &filter.export_v4),
            ("importV4", &filter.import_v4),
            ("exportV6", &filter.export_v6),
            ("importV6", &filter.import_v6),
        ];
        for (list, rules) in lists {
            for (index, rule) in rules.iter().enumerate() {
                let field = format!("{list}[{index}]");
                self.one_of(&format!("{field}.action"), &rule.action, &["Accept", "Reject"]);
                if rule.cidr.is_empty() != rule.match_operator.is_empty() {
                    self.add(&format!("{field}.cidr"), "cidr and matchOperator go together");
                }
                if rule.operations.iter().any(|operation| operation.operation.is_none()) {
                    self.add(&format!("{field}.operations"), "an operation that does nothing");
                }
            }
        }
    }

    fn bgp_peer(&mut self, peer: &v1::BgpPeer) {
        if !peer.node.is_empty() && !peer.node_selector.is_empty() {
            self.add("nodeSelector", "node is given too: give one of the two");
        }
        let targets = [
            ("peerIP", &peer.peer_ip),
            ("peerSelector", &peer.peer_selector),
            ("localWorkloadSelector", &peer.local_workload_selector),
        ];
        let given: Vec<&str> =
            targets.iter().filter(|(_, value)| !value.is_empty()).map(|(name, _)| *name).collect();
        if given.len() != 1 {
            self.add("peerIP", "give one of peerIP, peerSelector and localWorkloadSelector");
        }
        if !peer.peer_ip.is_empty() && !is_peer_address(&peer.peer_ip) {
            self.add("peerIP", format!("{:?} is not address or address:port", peer.peer_ip));
        }
        for (field, text) in [("nodeSelector", &peer.node_selector), ("peerSelector", &peer.peer_selector)] {
            self.selector(field, text);
        }
    }
}

/// `address`, `v4:port` or `[v6]:port`.
pub(super) fn is_peer_address(text: &str) -> bool {
    parse_address(text).is_ok() || text.parse::<std::net::SocketAddr>().is_ok()
}

fn is_protocol(protocol: Option<&v1::Protocol>, known: &[(&str, u32)]) -> bool {
    use v1::protocol::Id;
    match protocol.and_then(|protocol| protocol.id.as_ref()) {
        Some(Id::Name(own)) => known.iter().any(|(name, _)| own == name),
        Some(Id::Number(own)) => known.iter().any(|(_, number)| own == number),
        None => false,
    }
}

fn describe(id: Option<&v1::protocol::Id>) -> String {
    match id {
        Some(v1::protocol::Id::Name(name)) => format!("{name:?}"),
        Some(v1::protocol::Id::Number(number)) => number.to_string(),
        None => "nothing".to_owned(),
    }
}
