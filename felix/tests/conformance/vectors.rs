//! Reading of the shared vectors, and their inputs as the renderer takes them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use felix::iptables::render::Features;
use felix::iptables::{IpVersion, Rule};
use felix::rules::config::{EndpointToHostAction, FailsafePort, LoopPrevention, OpenStack};
use felix::rules::fragments::{AllowAction, DenyAction};
use felix::rules::{Marks, RulesConfig};
use felix_calc::output;
use serde_json::Value;
use syncer_common::model::PolicyKey;

/// The named file, or none where this machine has no vectors; that is a failure where they are required.
pub fn load(file: &str) -> Option<Value> {
    let folder = std::env::var_os("BULRUSH_CONFORMANCE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance"),
        PathBuf::from,
    );
    let path = folder.join(file);
    if !path.exists() {
        let required = std::env::var("BULRUSH_REQUIRE").is_ok_and(|value| value == "1");
        assert!(!required, "{} is required and absent", path.display());
        println!("SKIPPED: no conformance folder");
        return None;
    }
    let text = std::fs::read_to_string(&path).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    match value.get(key) {
        None | Some(Value::Null) => &[],
        Some(value) => value.as_array().unwrap(),
    }
}

pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

pub fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or_default()
}

pub fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or_default()
}

pub fn texts(value: &Value, key: &str) -> Vec<String> {
    list(value, key).iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

pub fn version(case: &Value) -> IpVersion {
    if number(case, "ip_version") == 6 { IpVersion::V6 } else { IpVersion::V4 }
}

/// What the vectors leave out is zero, not the product's default.
pub fn config(vector: &Value, modern: bool) -> RulesConfig {
    let mark = |key: &str| u32::try_from(number(vector, key)).unwrap();
    let port = |key: &str| u16::try_from(number(vector, key)).unwrap();
    let optional = |key: &str| Some(text(vector, key).to_owned()).filter(|text| !text.is_empty());
    let allow = |key: &str| match text(vector, key) {
        "RETURN" => AllowAction::Return,
        _ => AllowAction::Accept,
    };
    RulesConfig {
        workload_iface_prefixes: texts(vector, "workload_iface_prefixes"),
        marks: Marks {
            accept: mark("mark_accept"),
            pass: mark("mark_pass"),
            drop: mark("mark_drop"),
            scratch0: mark("mark_scratch0"),
            scratch1: mark("mark_scratch1"),
            wireguard: mark("wireguard_mark"),
            endpoint: mark("mark_endpoint"),
            non_cali_endpoint: mark("mark_non_cali_endpoint"),
        },
        features: if modern { Features::all() } else { Features::default() },
        filter_allow_action: allow("filter_allow_action"),
        mangle_allow_action: allow("mangle_allow_action"),
        filter_deny_action: match text(vector, "filter_deny_action") {
            "REJECT" => DenyAction::Reject,
            _ => DenyAction::Drop,
        },
        endpoint_to_host_action: match text(vector, "endpoint_to_host_action") {
            "DROP" => EndpointToHostAction::Drop,
            "ACCEPT" => EndpointToHostAction::Accept,
            _ => EndpointToHostAction::Return,
        },
        failsafe_inbound: failsafes(vector, "failsafe_inbound_host_ports"),
        failsafe_outbound: failsafes(vector, "failsafe_outbound_host_ports"),
        disable_conntrack_invalid: flag(vector, "disable_conntrack_invalid"),
        flow_logs_enabled: flag(vector, "flow_logs_enabled"),
        log_prefix: optional("log_prefix").unwrap_or_else(|| "calico-packet".to_owned()),
        log_action_rate_limit: optional("log_action_rate_limit"),
        log_action_rate_limit_burst: u32::try_from(number(vector, "log_action_rate_limit_burst"))
            .ok()
            .filter(|burst| *burst > 0),
        ipip_enabled: flag(vector, "ipip_enabled"),
        vxlan_enabled: flag(vector, "vxlan_enabled"),
        vxlan_enabled_v6: flag(vector, "vxlan_enabled_v6"),
        vxlan_port: port("vxlan_port"),
        allow_vxlan_packets_from_workloads: flag(vector, "allow_vxlan_packets_from_workloads"),
        allow_ipip_packets_from_workloads: flag(vector, "allow_ipip_packets_from_workloads"),
        wireguard_enabled: flag(vector, "wireguard_enabled"),
        wireguard_enabled_v6: flag(vector, "wireguard_enabled_v6"),
        wireguard_encrypt_host_traffic: flag(vector, "wireguard_encrypt_host_traffic"),
        wireguard_interface: text(vector, "wireguard_interface_name").to_owned(),
        wireguard_interface_v6: text(vector, "wireguard_interface_name_v6").to_owned(),
        wireguard_port: port("wireguard_listening_port"),
        wireguard_port_v6: port("wireguard_listening_port_v6"),
        kube_ipvs: flag(vector, "kube_ipvs_support_enabled"),
        kube_node_port_ranges: texts(vector, "kube_node_port_ranges")
            .iter()
            .map(|range| ports(range))
            .collect(),
        nat_port_range: optional("nat_port_range").map(|range| ports(&range)),
        nat_outgoing_address: optional("nat_outgoing_address"),
        nat_outgoing_excludes_hosts: text(vector, "nat_outgoing_exclusions") == "IPPoolsAndHostIPs",
        nat_outgoing_interface_filter: optional("iptables_nat_outgoing_interface_filter"),
        service_loop_prevention: match text(vector, "service_loop_prevention") {
            "Drop" => LoopPrevention::Drop,
            "Reject" => LoopPrevention::Reject,
            _ => LoopPrevention::Disabled,
        },
        floating_ips: false,
        openstack: flag(vector, "open_stack_special_cases_enabled").then(|| OpenStack {
            metadata_ip: optional("open_stack_metadata_ip"),
            metadata_port: port("open_stack_metadata_port"),
        }),
    }
}

fn ports(range: &str) -> (u16, u16) {
    let (first, last) = range.split_once(':').unwrap_or((range, range));
    (first.parse().unwrap(), last.parse().unwrap())
}

fn failsafes(vector: &Value, key: &str) -> Vec<FailsafePort> {
    list(vector, key)
        .iter()
        .map(|entry| FailsafePort {
            protocol: text(entry, "protocol").to_owned(),
            port: u16::try_from(number(entry, "port")).unwrap(),
            net: Some(text(entry, "net")).filter(|net| !net.is_empty()).map(|net| net.parse().unwrap()),
        })
        .collect()
}

pub fn policy_key(value: &Value) -> PolicyKey {
    PolicyKey {
        kind: text(value, "kind").to_owned(),
        namespace: text(value, "namespace").to_owned(),
        name: text(value, "name").to_owned(),
    }
}

pub fn rule(vector: &Value) -> output::Rule {
    let known = [
        "action",
        "ip_version",
        "protocol",
        "src_net",
        "src_ports",
        "src_named_port_ip_set_ids",
        "dst_net",
        "dst_ports",
        "dst_named_port_ip_set_ids",
        "icmp_type",
        "icmp_type_code",
        "src_ip_set_ids",
        "dst_ip_set_ids",
        "dst_ip_port_set_ids",
        "not_protocol",
        "not_src_net",
        "not_src_ports",
        "not_src_named_port_ip_set_ids",
        "not_dst_net",
        "not_dst_ports",
        "not_dst_named_port_ip_set_ids",
        "not_icmp_type",
        "not_icmp_type_code",
        "not_src_ip_set_ids",
        "not_dst_ip_set_ids",
        "metadata",
    ];
    for key in vector.as_object().unwrap().keys() {
        assert!(known.contains(&key.as_str()), "the vectors have a field that is not read here: {key}");
    }
    output::Rule {
        action: text(vector, "action").to_owned(),
        ip_version: u32::try_from(number(vector, "ip_version")).unwrap(),
        protocol: protocol(vector, "protocol"),
        src_nets: texts(vector, "src_net"),
        src_ports: port_ranges(vector, "src_ports"),
        src_named_port_ip_set_ids: texts(vector, "src_named_port_ip_set_ids"),
        dst_nets: texts(vector, "dst_net"),
        dst_ports: port_ranges(vector, "dst_ports"),
        dst_named_port_ip_set_ids: texts(vector, "dst_named_port_ip_set_ids"),
        icmp: icmp(vector, "icmp_type", "icmp_type_code"),
        src_ip_set_ids: texts(vector, "src_ip_set_ids"),
        dst_ip_set_ids: texts(vector, "dst_ip_set_ids"),
        dst_ip_port_set_ids: texts(vector, "dst_ip_port_set_ids"),
        not_protocol: protocol(vector, "not_protocol"),
        not_src_nets: texts(vector, "not_src_net"),
        not_src_ports: port_ranges(vector, "not_src_ports"),
        not_src_named_port_ip_set_ids: texts(vector, "not_src_named_port_ip_set_ids"),
        not_dst_nets: texts(vector, "not_dst_net"),
        not_dst_ports: port_ranges(vector, "not_dst_ports"),
        not_dst_named_port_ip_set_ids: texts(vector, "not_dst_named_port_ip_set_ids"),
        not_icmp: icmp(vector, "not_icmp_type", "not_icmp_type_code"),
        not_src_ip_set_ids: texts(vector, "not_src_ip_set_ids"),
        not_dst_ip_set_ids: texts(vector, "not_dst_ip_set_ids"),
        annotations: annotations(vector),
    }
}

fn annotations(vector: &Value) -> BTreeMap<String, String> {
    let map = vector.get("metadata").and_then(|metadata| metadata.get("annotations"));
    let entries = map.and_then(Value::as_object).into_iter().flatten();
    entries.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect()
}

fn protocol(vector: &Value, key: &str) -> Option<output::Protocol> {
    let protocol = vector.get(key)?;
    Some(match protocol.get("number") {
        Some(number) => output::Protocol::Number(u8::try_from(number.as_u64().unwrap()).unwrap()),
        None => output::Protocol::Name(text(protocol, "name").to_owned()),
    })
}

fn port_ranges(vector: &Value, key: &str) -> Vec<(u16, u16)> {
    let port = |range: &Value, end: &str| u16::try_from(number(range, end)).unwrap();
    list(vector, key).iter().map(|range| (port(range, "first"), port(range, "last"))).collect()
}

fn icmp(vector: &Value, kind: &str, kind_and_code: &str) -> Option<output::Icmp> {
    let byte = |value: &Value| u8::try_from(value.as_u64().unwrap_or_default()).unwrap();
    if let Some(both) = vector.get(kind_and_code) {
        let code = u8::try_from(number(both, "code")).unwrap();
        let icmp_type = u8::try_from(number(both, "type")).unwrap();
        return Some(output::Icmp { icmp_type, code: Some(code) });
    }
    vector.get(kind).map(|kind| output::Icmp { icmp_type: byte(kind), code: None })
}

pub fn rules(vector: &Value, key: &str) -> Vec<output::Rule> {
    list(vector, key).iter().map(rule).collect()
}

/// A recorded rule given as fragments.
pub fn fragments(vector: &Value) -> Rule {
    Rule {
        matches: text(vector, "match").to_owned(),
        action: text(vector, "action").to_owned(),
        comments: texts(vector, "comments").into_iter().map(Into::into).collect(),
    }
}

/// A recorded line back to its chain and fragments, the hash left out.
pub fn parse_line(line: &str) -> (String, Rule) {
    const COMMENT: &str = "-m comment --comment \"";
    let (chain, mut rest) = line.strip_prefix("-A ").unwrap().split_once(' ').unwrap();
    let mut comments = Vec::new();
    while let Some(tail) = rest.strip_prefix(COMMENT) {
        let (comment, tail) = tail.split_once('"').unwrap();
        if !comment.starts_with("cali:") {
            comments.push(comment.to_owned().into());
        }
        rest = tail.strip_prefix(' ').unwrap_or(tail);
    }
    let at = ["--jump ", "--goto ", "-j "]
        .iter()
        .filter_map(|word| rest.find(word).filter(|at| *at == 0 || rest[..*at].ends_with(' ')))
        .min()
        .unwrap_or(rest.len());
    let rule = Rule {
        matches: rest[..at].strip_suffix(' ').unwrap_or(&rest[..at]).to_owned(),
        action: rest[at..].to_owned(),
        comments,
    };
    (chain.to_owned(), rule)
}

/// Fails with the first differences of many cases instead of the first alone.
#[derive(Default)]
pub struct Report {
    pub checked: usize,
    failures: Vec<String>,
}

impl Report {
    pub fn check<T: PartialEq + std::fmt::Debug>(&mut self, id: &str, got: &T, expected: &T) {
        self.checked += 1;
        if got != expected {
            self.failures.push(format!("{id}\n     got: {got:#?}\nexpected: {expected:#?}"));
        }
    }

    pub fn finish(self, what: &str) {
        println!("{what}: {} checked, {} differ", self.checked, self.failures.len());
        assert!(self.checked > 0, "{what}: the vectors hold no case");
        let shown: Vec<_> = self.failures.iter().take(5).cloned().collect();
        assert!(
            self.failures.is_empty(),
            "{what}: {} of {} differ:\n{}",
            self.failures.len(),
            self.checked,
            shown.join("\n")
        );
    }
}
