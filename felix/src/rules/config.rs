//! What rendering depends on: marks, prefixes, actions and switches, and their reading from configuration.
//!
//! A parameter that cannot be read is reported once by name and keeps its default; the others still apply.

use std::collections::BTreeMap;

use felix_calc::failsafe;
pub use felix_calc::failsafe::FailsafePort;

use super::fragments::{AllowAction, DenyAction};
use crate::iptables::render::Features;

/// Packet mark bits. No two overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    pub accept: u32,
    pub pass: u32,
    pub drop: u32,
    pub scratch0: u32,
    pub scratch1: u32,
    /// Zero while WireGuard is off.
    pub wireguard: u32,
    /// All bits that endpoint marks are made of (IPVS only).
    pub endpoint: u32,
    /// The endpoint mark of packets that come from no endpoint; zero without IPVS.
    pub non_cali_endpoint: u32,
}

impl Marks {
    /// What policy leaves on a packet; the drop bit never outlives its chain.
    pub fn all(&self) -> u32 {
        self.accept | self.pass | self.scratch0 | self.scratch1
    }

    /// Lowest bits of the mask first. None when the mask has too few.
    pub fn allocate(mask: u32, wireguard: bool, ipvs: bool) -> Option<Marks> {
        let mut free = mask;
        let mut next = || {
            let bit = free & free.wrapping_neg();
            free &= !bit;
            (bit != 0).then_some(bit)
        };
        let mut marks = Marks {
            accept: next()?,
            pass: next()?,
            drop: next()?,
            scratch0: next()?,
            scratch1: next()?,
            ..Marks::default()
        };
        if wireguard {
            marks.wireguard = next()?;
        }
        marks.endpoint = free;
        if ipvs {
            if free.count_ones() < 2 {
                return None;
            }
            marks.non_cali_endpoint = free & free.wrapping_neg();
        }
        Some(marks)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointToHostAction {
    #[default]
    Drop,
    Accept,
    Return,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoopPrevention {
    #[default]
    Drop,
    Reject,
    Disabled,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RulesConfig {
    pub workload_iface_prefixes: Vec<String>,
    pub marks: Marks,
    pub features: Features,
    pub filter_allow_action: AllowAction,
    pub mangle_allow_action: AllowAction,
    pub filter_deny_action: DenyAction,
    pub endpoint_to_host_action: EndpointToHostAction,
    pub failsafe_inbound: Vec<FailsafePort>,
    pub failsafe_outbound: Vec<FailsafePort>,
    pub disable_conntrack_invalid: bool,
    pub flow_logs_enabled: bool,
    pub log_prefix: String,
    /// `5/minute`; none for no limit.
    pub log_action_rate_limit: Option<String>,
    pub log_action_rate_limit_burst: Option<u32>,
    pub ipip_enabled: bool,
    pub vxlan_enabled: bool,
    pub vxlan_enabled_v6: bool,
    pub vxlan_port: u16,
    pub allow_vxlan_packets_from_workloads: bool,
    pub allow_ipip_packets_from_workloads: bool,
    pub wireguard_enabled: bool,
    pub wireguard_enabled_v6: bool,
    pub wireguard_encrypt_host_traffic: bool,
    pub wireguard_interface: String,
    pub wireguard_interface_v6: String,
    pub wireguard_port: u16,
    pub wireguard_port_v6: u16,
    /// kube-proxy in IPVS mode: packets to pods then never pass FORWARD.
    pub kube_ipvs: bool,
    pub kube_node_port_ranges: Vec<(u16, u16)>,
    /// `first-last`, of masqueraded TCP and UDP.
    pub nat_port_range: Option<(u16, u16)>,
    /// SNAT to this address instead of masquerading.
    pub nat_outgoing_address: Option<String>,
    /// Traffic to other nodes keeps its source too.
    pub nat_outgoing_excludes_hosts: bool,
    pub nat_outgoing_interface_filter: Option<String>,
    pub service_loop_prevention: LoopPrevention,
    /// Floating addresses of others than OpenStack's, whose are always translated.
    pub floating_ips: bool,
    pub openstack: Option<OpenStack>,
}

/// Special cases for OpenStack's instances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenStack {
    pub metadata_ip: Option<String>,
    pub metadata_port: u16,
}

/// Mark bits unless configured otherwise.
const DEFAULT_MARK_MASK: u32 = 0xffff_0000;

impl Default for RulesConfig {
    fn default() -> Self {
        RulesConfig {
            workload_iface_prefixes: vec!["cali".to_owned()],
            marks: Marks::allocate(DEFAULT_MARK_MASK, false, false)
                .expect("the default mask has more bits than there are marks"),
            features: Features::default(),
            filter_allow_action: AllowAction::Accept,
            mangle_allow_action: AllowAction::Accept,
            filter_deny_action: DenyAction::Drop,
            endpoint_to_host_action: EndpointToHostAction::Drop,
            failsafe_inbound: failsafe::default_inbound(),
            failsafe_outbound: failsafe::default_outbound(),
            disable_conntrack_invalid: false,
            flow_logs_enabled: false,
            log_prefix: "calico-packet".to_owned(),
            log_action_rate_limit: None,
            log_action_rate_limit_burst: Some(5),
            ipip_enabled: false,
            vxlan_enabled: false,
            vxlan_enabled_v6: false,
            vxlan_port: 4789,
            allow_vxlan_packets_from_workloads: false,
            allow_ipip_packets_from_workloads: false,
            wireguard_enabled: false,
            wireguard_enabled_v6: false,
            wireguard_encrypt_host_traffic: false,
            wireguard_interface: "wireguard.cali".to_owned(),
            wireguard_interface_v6: "wg-v6.cali".to_owned(),
            wireguard_port: 51820,
            wireguard_port_v6: 51821,
            kube_ipvs: false,
            kube_node_port_ranges: vec![(30000, 32767)],
            nat_port_range: None,
            nat_outgoing_address: None,
            nat_outgoing_excludes_hosts: false,
            nat_outgoing_interface_filter: None,
            service_loop_prevention: LoopPrevention::Drop,
            floating_ips: false,
            openstack: None,
        }
    }
}

/// A parameter that was given and cannot be used. Its default applies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parameter {name}={value:?}: {reason}")]
pub struct ParamError {
    pub name: String,
    pub value: String,
    pub reason: &'static str,
}

impl RulesConfig {
    /// From parameters by Felix's names, in any case. Those that rendering does not know are others' to
    /// read.
    pub fn from_params(params: &BTreeMap<String, String>) -> (RulesConfig, Vec<ParamError>) {
        let mut reader = Reader { params, errors: Vec::new() };
        let config = reader.config();
        (config, reader.errors)
    }
}

/// The text that stands for a parameter's zero value.
const NONE: &str = "none";

struct Reader<'a> {
    params: &'a BTreeMap<String, String>,
    errors: Vec<ParamError>,
}

impl Reader<'_> {
    fn config(&mut self) -> RulesConfig {
        let default = RulesConfig::default();
        let d = &default;
        let openstack = self.flag("OpenstackSpecialCases", false);
        let wireguard_enabled = self.flag("WireguardEnabled", d.wireguard_enabled);
        let wireguard_enabled_v6 = self.flag("WireguardEnabledV6", d.wireguard_enabled_v6);
        RulesConfig {
            workload_iface_prefixes: self.read(
                "InterfacePrefix",
                d.workload_iface_prefixes.clone(),
                prefixes,
            ),
            marks: self.read("IptablesMarkMask", d.marks, |text| {
                let mask = number(text).ok_or("not a number")?;
                Marks::allocate(mask, wireguard_enabled || wireguard_enabled_v6, false)
                    .ok_or("too few bits for the marks")
            }),
            features: d.features,
            filter_allow_action: self.read("IptablesFilterAllowAction", d.filter_allow_action, allow_action),
            mangle_allow_action: self.read("IptablesMangleAllowAction", d.mangle_allow_action, allow_action),
            filter_deny_action: self.read("IptablesFilterDenyAction", d.filter_deny_action, |text| {
                one_of(text, &[("DROP", DenyAction::Drop), ("REJECT", DenyAction::Reject)])
            }),
            endpoint_to_host_action: self.read(
                "DefaultEndpointToHostAction",
                d.endpoint_to_host_action,
                |text| {
                    one_of(
                        text,
                        &[
                            ("DROP", EndpointToHostAction::Drop),
                            ("ACCEPT", EndpointToHostAction::Accept),
                            ("RETURN", EndpointToHostAction::Return),
                        ],
                    )
                },
            ),
            failsafe_inbound: self.read(
                "FailsafeInboundHostPorts",
                d.failsafe_inbound.clone(),
                failsafe::parse_list,
            ),
            failsafe_outbound: self.read(
                "FailsafeOutboundHostPorts",
                d.failsafe_outbound.clone(),
                failsafe::parse_list,
            ),
            disable_conntrack_invalid: self.flag("DisableConntrackInvalidCheck", d.disable_conntrack_invalid),
            flow_logs_enabled: self.flag("FlowLogsEnabled", d.flow_logs_enabled),
            log_prefix: self.read("LogPrefix", d.log_prefix.clone(), log_prefix),
            log_action_rate_limit: self.read("LogActionRateLimit", None, rate),
            log_action_rate_limit_burst: self.read(
                "LogActionRateLimitBurst",
                d.log_action_rate_limit_burst,
                |text| {
                    if text == NONE { Ok(None) } else { number(text).map(Some).ok_or("not a number") }
                },
            ),
            ipip_enabled: self.flag("IpInIpEnabled", d.ipip_enabled),
            vxlan_enabled: self.flag("VXLANEnabled", d.vxlan_enabled),
            vxlan_enabled_v6: self.flag("VXLANEnabledV6", d.vxlan_enabled_v6),
            vxlan_port: self.port("VXLANPort", d.vxlan_port),
            allow_vxlan_packets_from_workloads: self.flag("AllowVXLANPacketsFromWorkloads", false),
            allow_ipip_packets_from_workloads: self.flag("AllowIPIPPacketsFromWorkloads", false),
            wireguard_enabled,
            wireguard_enabled_v6,
            wireguard_encrypt_host_traffic: self
                .flag("WireguardHostEncryptionEnabled", d.wireguard_encrypt_host_traffic),
            wireguard_interface: self.read(
                "WireguardInterfaceName",
                d.wireguard_interface.clone(),
                interface,
            ),
            wireguard_interface_v6: self.read(
                "WireguardInterfaceNameV6",
                d.wireguard_interface_v6.clone(),
                interface,
            ),
            wireguard_port: self.port("WireguardListeningPort", d.wireguard_port),
            wireguard_port_v6: self.port("WireguardListeningPortV6", d.wireguard_port_v6),
            kube_ipvs: d.kube_ipvs,
            kube_node_port_ranges: self.read(
                "KubeNodePortRanges",
                d.kube_node_port_ranges.clone(),
                port_ranges,
            ),
            nat_port_range: self.read("NATPortRange", None, |text| {
                if is_unset(text) { Ok(None) } else { port_range(text).map(Some) }
            }),
            nat_outgoing_address: self.read("NATOutgoingAddress", None, |text| {
                if is_unset(text) {
                    return Ok(None);
                }
                text.parse::<std::net::IpAddr>().map(|ip| Some(ip.to_string())).map_err(|_| "not an address")
            }),
            nat_outgoing_excludes_hosts: self.read("NATOutgoingExclusions", false, |text| {
                one_of(text, &[("IPPoolsOnly", false), ("IPPoolsAndHostIPs", true)])
            }),
            nat_outgoing_interface_filter: self.read("IptablesNATOutgoingInterfaceFilter", None, |text| {
                if is_unset(text) { Ok(None) } else { interface(text).map(Some) }
            }),
            service_loop_prevention: self.read("ServiceLoopPrevention", d.service_loop_prevention, |text| {
                one_of(
                    text,
                    &[
                        ("Drop", LoopPrevention::Drop),
                        ("Reject", LoopPrevention::Reject),
                        ("Disabled", LoopPrevention::Disabled),
                    ],
                )
            }),
            floating_ips: self.read("FloatingIPs", d.floating_ips, |text| {
                one_of(text, &[("Enabled", true), ("Disabled", false)])
            }),
            openstack: openstack.then(|| OpenStack {
                metadata_ip: self.read("MetadataAddr", Some("127.0.0.1".to_owned()), |text| {
                    if is_unset(text) {
                        return Ok(None);
                    }
                    text.parse::<std::net::IpAddr>()
                        .map(|ip| Some(ip.to_string()))
                        .map_err(|_| "not an address")
                }),
                metadata_port: self.port("MetadataPort", 8775),
            }),
        }
    }

    fn read<T>(&mut self, name: &str, default: T, parse: impl FnOnce(&str) -> Result<T, &'static str>) -> T {
        let given = self.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        let Some((_, value)) = given else { return default };
        match parse(value.trim()) {
            Ok(value) => value,
            Err(reason) => {
                self.errors.push(ParamError { name: name.to_owned(), value: value.clone(), reason });
                default
            }
        }
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        self.read(name, default, |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "y" | "t" => Ok(true),
            "false" | "0" | "no" | "n" | "f" | NONE => Ok(false),
            _ => Err("neither true nor false"),
        })
    }

    fn port(&mut self, name: &str, default: u16) -> u16 {
        self.read(name, default, |text| match text.parse() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err("not a port"),
        })
    }
}

fn is_unset(text: &str) -> bool {
    text.is_empty() || text.eq_ignore_ascii_case(NONE)
}

/// Decimal or `0x…`.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn one_of<T: Copy>(text: &str, values: &[(&str, T)]) -> Result<T, &'static str> {
    let found = values.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or("not one of the known values")
}

fn allow_action(text: &str) -> Result<AllowAction, &'static str> {
    one_of(text, &[("ACCEPT", AllowAction::Accept), ("RETURN", AllowAction::Return)])
}

/// An interface name or pattern that may stand in a restore line.
fn interface(text: &str) -> Result<String, &'static str> {
    let safe = |c: char| c.is_ascii_alphanumeric() || "_-.+:@".contains(c);
    if !text.is_empty() && text.len() <= 15 && text.chars().all(safe) {
        Ok(text.to_owned())
    } else {
        Err("not an interface name")
    }
}

fn prefixes(text: &str) -> Result<Vec<String>, &'static str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(interface)
        .collect::<Result<Vec<_>, _>>()
        .and_then(|list| if list.is_empty() { Err("no prefix") } else { Ok(list) })
}

/// What stands between the quotes of a restore line.
fn log_prefix(text: &str) -> Result<String, &'static str> {
    if text.contains(['"', '\\']) || text.chars().any(char::is_control) {
        Err("holds characters that cannot be quoted")
    } else if text.eq_ignore_ascii_case(NONE) {
        Ok(String::new())
    } else {
        Ok(text.to_owned())
    }
}

fn rate(text: &str) -> Result<Option<String>, &'static str> {
    if is_unset(text) {
        return Ok(None);
    }
    let (count, unit) = text.split_once('/').ok_or("not of the form 5/minute")?;
    let known = ["second", "sec", "s", "minute", "min", "m", "hour", "h", "day", "d"];
    if count.parse::<u32>().is_ok_and(|count| count > 0) && known.contains(&unit) {
        Ok(Some(text.to_owned()))
    } else {
        Err("not of the form 5/minute")
    }
}

fn port_range(text: &str) -> Result<(u16, u16), &'static str> {
    let (first, last) = text.split_once([':', '-']).unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err("not a port range"),
    }
}

fn port_ranges(text: &str) -> Result<Vec<(u16, u16)>, &'static str> {
    if is_unset(text) {
        return Ok(Vec::new());
    }
    text.split(',').map(|range| port_range(range.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (RulesConfig, Vec<ParamError>) {
        let params = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        RulesConfig::from_params(&params)
    }

    #[test]
    fn marks_take_the_lowest_free_bits() {
        let marks = RulesConfig::default().marks;
        assert_eq!((marks.accept, marks.pass, marks.drop), (0x10000, 0x20000, 0x40000));
        assert_eq!((marks.scratch0, marks.scratch1), (0x80000, 0x10_0000));
        assert_eq!(marks.endpoint, 0xffe0_0000);
        assert_eq!(marks.all(), 0x1b_0000);
        let marks = Marks::allocate(0xffff_0000, true, true).unwrap();
        assert_eq!((marks.wireguard, marks.endpoint), (0x20_0000, 0xffc0_0000));
        assert_eq!(marks.non_cali_endpoint, 0x40_0000);
        assert_eq!(Marks::allocate(0xf, false, false), None);
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(read(&[]), (RulesConfig::default(), Vec::new()));
    }

    #[test]
    fn parameters_are_read_in_any_case() {
        let (config, errors) = read(&[
            ("interfaceprefix", "cali, tap"),
            ("IptablesFilterDenyAction", "reject"),
            ("IptablesMarkMask", "0xff000000"),
            ("FailsafeInboundHostPorts", "22,udp:68,tcp:10.0.0.0/8:1022,tcp:[fd00::/8]:23"),
            ("FailsafeOutboundHostPorts", "none"),
            ("NATPortRange", "32768:65535"),
            ("SomebodyElses", "x"),
        ]);
        assert_eq!(errors, []);
        assert_eq!(config.workload_iface_prefixes, ["cali", "tap"]);
        assert_eq!(config.filter_deny_action, DenyAction::Reject);
        assert_eq!(config.marks.accept, 0x0100_0000);
        assert_eq!(config.failsafe_inbound.len(), 4);
        assert_eq!(config.failsafe_inbound[3].net.unwrap().to_string(), "fd00::/8");
        assert!(config.failsafe_outbound.is_empty());
        assert_eq!(config.nat_port_range, Some((32768, 65535)));
    }

    #[test]
    fn a_bad_parameter_is_named_and_spoils_no_other() {
        let (config, errors) = read(&[
            ("VXLANPort", "many"),
            ("InterfacePrefix", "cali\n-A INPUT"),
            ("LogPrefix", "a\"b"),
            ("ServiceLoopPrevention", "Reject"),
        ]);
        let mut names: Vec<_> = errors.iter().map(|error| error.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["InterfacePrefix", "LogPrefix", "VXLANPort"]);
        assert_eq!(config.vxlan_port, 4789);
        assert_eq!(config.service_loop_prevention, LoopPrevention::Reject);
    }
}
