//! Specs of policies, tiers and profiles.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::scalars::{Port, Protocol};

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub action: String,
    #[serde(rename = "ipVersion")]
    pub ip_version: Option<u32>,
    pub protocol: Option<Protocol>,
    pub not_protocol: Option<Protocol>,
    pub icmp: Option<Icmp>,
    #[serde(rename = "notICMP")]
    pub not_icmp: Option<Icmp>,
    pub source: EntityRule,
    pub destination: EntityRule,
    /// Matching inside HTTP, which needs a proxy.
    pub http: Option<Value>,
    pub metadata: RuleMetadata,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Icmp {
    pub r#type: Option<u32>,
    pub code: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RuleMetadata {
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntityRule {
    pub nets: Vec<String>,
    pub not_nets: Vec<String>,
    pub selector: String,
    pub not_selector: String,
    pub namespace_selector: String,
    pub ports: Vec<Port>,
    pub not_ports: Vec<Port>,
    pub service_accounts: Option<ServiceAccounts>,
    pub services: Option<ServiceMatch>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServiceAccounts {
    pub names: Vec<String>,
    pub selector: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServiceMatch {
    pub name: String,
    pub namespace: String,
}

/// NetworkPolicy and GlobalNetworkPolicy, staged or not: the fields that a kind does not have stay at
/// their defaults.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicySpec {
    pub tier: String,
    pub order: Option<f64>,
    pub selector: String,
    pub namespace_selector: String,
    pub service_account_selector: String,
    pub types: Vec<String>,
    pub ingress: Vec<Rule>,
    pub egress: Vec<Rule>,
    pub do_not_track: bool,
    #[serde(rename = "preDNAT")]
    pub pre_dnat: bool,
    pub apply_on_forward: bool,
    pub performance_hints: Vec<String>,
    pub staged_action: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TierSpec {
    pub order: Option<f64>,
    pub default_action: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProfileSpec {
    pub ingress: Vec<Rule>,
    pub egress: Vec<Rule>,
    pub labels_to_apply: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NetworkSetSpec {
    pub nets: Vec<String>,
}
