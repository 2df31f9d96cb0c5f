//! Felix's configuration: the fields whose values are one of a few, and durations. What it does not know goes
//! through: newer software may.

use serde_json::Value as Json;

use super::resource::Errors;
use crate::apis::Resource;
use crate::apis::scalars::GoDuration;

/// Values are compared without case.
const CHOICES: [(&str, &[&str]); 19] = [
    ("chainInsertMode", &["Insert", "Append"]),
    ("defaultEndpointToHostAction", &["Drop", "Accept", "Return"]),
    ("floatingIPs", &["Enabled", "Disabled"]),
    ("ipForwarding", &["Enabled", "Disabled"]),
    ("iptablesBackend", &["Auto", "Legacy", "NFT"]),
    ("iptablesFilterAllowAction", &["Accept", "Return"]),
    ("iptablesFilterDenyAction", &["Drop", "Reject"]),
    ("iptablesMangleAllowAction", &["Accept", "Return"]),
    ("logSeverityFile", &LEVELS),
    ("logSeverityScreen", &LEVELS),
    ("logSeveritySys", &LEVELS),
    ("natOutgoingExclusions", &["IPPoolsOnly", "IPPoolsAndHostIPs"]),
    ("nftablesFilterAllowAction", &["Accept", "Return"]),
    ("nftablesFilterDenyAction", &["Drop", "Reject"]),
    ("nftablesMode", &["Auto", "Enabled", "Disabled"]),
    ("programClusterRoutes", &["Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly", "Enabled"]),
    ("routeSource", &["CalicoIPAM", "WorkloadIPs"]),
    ("serviceLoopPrevention", &["Drop", "Reject", "Disabled"]),
    ("workloadSourceSpoofing", &["Disabled", "Any"]),
];
const LEVELS: [&str; 8] = ["Trace", "Debug", "Info", "Warning", "Error", "Fatal", "None", "Panic"];
/// Fields that hold durations, by their endings.
const DURATIONS: [&str; 2] = ["RefreshInterval", "reportingInterval"];
const PORTS: [&str; 4] = ["healthPort", "prometheusMetricsPort", "vxlanPort", "wireguardListeningPort"];

impl Errors {
    pub fn felix_configuration(&mut self, resource: &Resource) {
        let Some(spec) = resource.spec.as_object() else { return };
        for (name, value) in spec {
            let field = format!("spec.{name}");
            if name == "nodeSelector" {
                self.selector(field, value.as_str().unwrap_or_default());
            } else if let Some((_, choices)) = CHOICES.iter().find(|(known, _)| known == name) {
                let text = value.as_str().unwrap_or_default();
                let known = choices.iter().any(|choice| choice.eq_ignore_ascii_case(text));
                if !known && value.as_str() != Some("") {
                    self.add(field, format!("{value} is none of {}", choices.join(", ")));
                }
            } else if DURATIONS.iter().any(|ending| name.ends_with(ending)) {
                if let Err(reason) = duration(value) {
                    self.add(field, reason);
                }
            } else if PORTS.contains(&name.as_str()) && value.as_u64().is_none_or(|port| port > 65535) {
                self.add(field, format!("{value} is not a port between 0 and 65535"));
            }
        }
    }
}

fn duration(value: &Json) -> Result<(), String> {
    match value.as_str() {
        Some("") => Ok(()),
        Some(text) => text.parse::<GoDuration>().map(drop),
        None => Err(format!("{value} is not a duration such as 90s or 1m30s")),
    }
}
