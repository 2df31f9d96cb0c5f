//! Felix's configuration: one entry per parameter, by the parameter's old name and as text.
//!
//! Fields that this release does not know go through by the general rule, so that newer software's
//! settings are not lost on the way.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::model as v1;
use serde_json::Value as Json;

use super::cluster::{self, Target};
use super::findings::Findings;
use super::node;
use crate::apis::Resource;
use crate::apis::scalars::GoDuration;
use crate::model::{Key, ResourceKey, Update, Value};

const ANNOTATION_PREFIX: &str = "config.projectcalico.org/";
/// Upper-case in parameter names.
const ACRONYMS: [(&str, &str); 6] =
    [("vxlan", "VXLAN"), ("nat", "NAT"), ("bpf", "BPF"), ("xdp", "XDP"), ("mtu", "MTU"), ("aws", "AWS")];
/// Fields whose parameter has a name of its own.
const RENAMED: [(&str, &str); 11] = [
    ("ipipEnabled", "IpInIpEnabled"),
    ("ipipMTU", "IpInIpMtu"),
    ("netlinkTimeout", "NetlinkTimeoutSecs"),
    ("reportingInterval", "ReportingIntervalSecs"),
    ("reportingTTL", "ReportingTTLSecs"),
    ("endpointReportingDelay", "EndpointReportingDelaySecs"),
    ("usageReportingInitialDelay", "UsageReportingInitialDelaySecs"),
    ("usageReportingInterval", "UsageReportingIntervalSecs"),
    ("iptablesPostWriteCheckInterval", "IptablesPostWriteCheckIntervalSecs"),
    ("externalNodesList", "ExternalNodesCIDRList"),
    ("wireguardKeepAlive", "WireguardPersistentKeepAlive"),
];
const LOCK_PROBE_INTERVAL: (&str, &str) = ("iptablesLockProbeInterval", "IptablesLockProbeIntervalMillis");
/// Endings of fields that hold durations.
const DURATION_ENDINGS: [&str; 8] =
    ["Interval", "Timeout", "Delay", "TTL", "KeepAlive", "Period", "Duration", "PacketRetention"];

/// `iptablesBackend` → `IptablesBackend`, `vxlanVNI` → `VXLANVNI`.
pub(crate) fn parameter_name(field: &str) -> String {
    if let Some((_, name)) = RENAMED.iter().chain([&LOCK_PROBE_INTERVAL]).find(|(known, _)| *known == field) {
        return (*name).to_owned();
    }
    for (lower, upper) in ACRONYMS {
        let rest = field.strip_prefix(lower);
        if let Some(rest) =
            rest.filter(|rest| rest.is_empty() || rest.starts_with(|c: char| !c.is_ascii_lowercase()))
        {
            return format!("{upper}{rest}");
        }
    }
    let mut characters = field.chars();
    match characters.next() {
        Some(first) => first.to_ascii_uppercase().to_string() + characters.as_str(),
        None => String::new(),
    }
}

pub(super) fn convert(key: &ResourceKey, resource: &Resource, findings: &mut Findings) -> Vec<Update> {
    let target = Target::of(&key.name);
    let mut parameters = BTreeMap::new();
    let empty = serde_json::Map::new();
    for (field, value) in resource.spec.as_object().unwrap_or(&empty) {
        if field == "nodeSelector" {
            continue;
        }
        match text(field, value) {
            Ok(_) if field.is_empty() => findings.note("spec", "a field without a name is left out"),
            Ok(text) if text.is_empty() => {}
            Ok(text) => {
                parameters.insert(parameter_name(field), text);
            }
            Err(reason) => findings.note(format!("spec.{field}"), reason),
        }
    }
    for (name, value) in &resource.metadata.annotations {
        if let Some(name) = name.strip_prefix(ANNOTATION_PREFIX).filter(|name| !name.is_empty()) {
            parameters.insert(name.to_owned(), value.clone());
        }
    }
    if let Target::Selected = target {
        let node_selector = resource.spec.get("nodeSelector").and_then(Json::as_str).unwrap_or_default();
        let configuration = v1::FelixConfiguration { node_selector: node_selector.to_owned(), parameters };
        let value = Value::FelixConfiguration(configuration);
        return vec![Update::set(Key::Resource(key.clone()), value)];
    }
    // An entry has one owner: or what one object withdraws would still be given by the other.
    parameters.retain(|name, _| {
        let owner = match (cluster::PARAMETERS.contains(&name.as_str()), &target) {
            (true, _) => "ClusterInformation",
            (_, Target::Host(_)) if node::TUNNEL_SETTINGS.contains(&name.as_str()) => "Node",
            _ => return true,
        };
        findings.note(format!("spec ({name})"), format!("left out: it belongs to the {owner}"));
        false
    });
    parameters
        .into_iter()
        .filter_map(|(name, value)| Some(Update::set(target.key(&name)?, Value::Config(value))))
        .collect()
}

fn text(field: &str, value: &Json) -> Result<String, String> {
    if field == "kubeNodePortRanges" {
        return ranges(value).map(|ranges| ranges.join(","));
    }
    match value {
        Json::String(text) if field == LOCK_PROBE_INTERVAL.0 => duration(text, Duration::from_millis(1)),
        Json::String(text) if DURATION_ENDINGS.iter().any(|ending| field.ends_with(ending)) => {
            // Text of the right shape is a duration; what is not goes through for the reader to judge.
            Ok(duration(text, Duration::from_secs(1)).unwrap_or_else(|_| text.clone()))
        }
        Json::String(text) => Ok(text.clone()),
        Json::Bool(truth) => Ok(truth.to_string()),
        Json::Number(number) => Ok(number.to_string()),
        Json::Array(items) if field.starts_with("failsafe") && items.is_empty() => Ok("none".to_owned()),
        Json::Array(items) => {
            let items: Result<Vec<String>, String> =
                items.iter().map(|item| list_item(field, item)).collect();
            items.map(|items| items.join(","))
        }
        Json::Object(_) => list_item(field, value),
        Json::Null => Ok(String::new()),
    }
}

fn duration(text: &str, unit: Duration) -> Result<String, String> {
    text.parse::<GoDuration>().map(|duration| duration.in_units_of(unit))
}

fn scalar(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        Json::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// An item of a list: plain, a failsafe port, a range, or the time limit of a health check.
fn list_item(field: &str, item: &Json) -> Result<String, String> {
    if let Some(text) = scalar(item) {
        return Ok(text);
    }
    let member = |name: &str| item.get(name).and_then(scalar);
    if let Some(port) = member("port") {
        let protocol = member("protocol").unwrap_or_else(|| "TCP".to_owned()).to_ascii_lowercase();
        return Ok(match member("net") {
            Some(net) if net.contains(':') => format!("{protocol}:[{net}]:{port}"),
            Some(net) => format!("{protocol}:{net}:{port}"),
            None => format!("{protocol}:{port}"),
        });
    }
    if let (Some(min), Some(max)) = (member("min"), member("max")) {
        return Ok(format!("{min}-{max}"));
    }
    if let (Some(name), Some(timeout)) = (member("name"), member("timeout")) {
        return Ok(format!("{name}={timeout}"));
    }
    Err(format!("{item} cannot be written as a value of {field}"))
}

/// Ports and ranges, in the form that the reader of the parameter accepts.
fn ranges(value: &Json) -> Result<Vec<String>, String> {
    let items = value.as_array().ok_or("not a list")?;
    items.iter().map(|item| scalar(item).ok_or_else(|| format!("{item} is not a port or a range"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_keep_their_old_names() {
        for (field, name) in [
            ("iptablesBackend", "IptablesBackend"),
            ("vxlanMTU", "VXLANMTU"),
            ("vxlanVNI", "VXLANVNI"),
            ("natOutgoingAddress", "NATOutgoingAddress"),
            ("natPortRange", "NATPortRange"),
            ("bpfLogLevel", "BPFLogLevel"),
            ("ipipMTU", "IpInIpMtu"),
            ("ipv6Support", "Ipv6Support"),
            ("mtuIfacePattern", "MTUIfacePattern"),
            ("nativeThing", "NativeThing"),
        ] {
            assert_eq!(parameter_name(field), name);
        }
    }
}
