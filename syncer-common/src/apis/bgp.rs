//! Specs of BGP resources and of the cluster's description.

use serde::Deserialize;

use super::scalars::{AsNumber, GoDuration};

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpConfigurationSpec {
    pub log_severity_screen: String,
    pub node_to_node_mesh_enabled: Option<bool>,
    pub as_number: Option<AsNumber>,
    pub listen_port: Option<u16>,
    pub bind_mode: String,
    #[serde(rename = "serviceClusterIPs")]
    pub service_cluster_ips: Vec<CidrItem>,
    #[serde(rename = "serviceExternalIPs")]
    pub service_external_ips: Vec<CidrItem>,
    #[serde(rename = "serviceLoadBalancerIPs")]
    pub service_load_balancer_ips: Vec<CidrItem>,
    pub service_load_balancer_aggregation: String,
    pub communities: Vec<Community>,
    pub prefix_advertisements: Vec<PrefixAdvertisement>,
    pub node_mesh_password: Option<Password>,
    pub node_mesh_max_restart_time: Option<GoDuration>,
    pub ignored_interfaces: Vec<String>,
    pub program_cluster_routes: String,
    #[serde(rename = "ipv4NormalRoutePriority")]
    pub ipv4_normal_route_priority: Option<u32>,
    #[serde(rename = "ipv6NormalRoutePriority")]
    pub ipv6_normal_route_priority: Option<u32>,
    #[serde(rename = "localWorkloadPeeringIPV4")]
    pub local_workload_peering_ip_v4: String,
    #[serde(rename = "localWorkloadPeeringIPV6")]
    pub local_workload_peering_ip_v6: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CidrItem {
    pub cidr: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Community {
    pub name: String,
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PrefixAdvertisement {
    pub cidr: String,
    pub communities: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Password {
    pub secret_key_ref: Option<SecretKeyRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SecretKeyRef {
    pub name: String,
    pub key: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpPeerSpec {
    pub node: String,
    pub node_selector: String,
    #[serde(rename = "peerIP")]
    pub peer_ip: String,
    pub peer_selector: String,
    pub local_workload_selector: String,
    pub as_number: Option<AsNumber>,
    #[serde(rename = "localASNumber")]
    pub local_as_number: Option<AsNumber>,
    pub password: Option<Password>,
    pub source_address: String,
    pub keep_original_next_hop: bool,
    pub next_hop_mode: String,
    pub max_restart_time: Option<GoDuration>,
    pub keepalive_time: Option<GoDuration>,
    pub filters: Vec<String>,
    pub ttl_security: Option<u8>,
    pub reachable_by: String,
    #[serde(rename = "numAllowedLocalASNumbers")]
    pub num_allowed_local_as_numbers: Option<u32>,
    pub reverse_peering: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpFilterSpec {
    pub export_v4: Vec<BgpFilterRule>,
    pub import_v4: Vec<BgpFilterRule>,
    pub export_v6: Vec<BgpFilterRule>,
    pub import_v6: Vec<BgpFilterRule>,
}

impl BgpFilterSpec {
    /// Field, rules, and whether they are of IPv6.
    pub fn lists(&self) -> [(&'static str, &[BgpFilterRule], bool); 4] {
        [
            ("exportV4", &self.export_v4, false),
            ("importV4", &self.import_v4, false),
            ("exportV6", &self.export_v6, true),
            ("importV6", &self.import_v6, true),
        ]
    }
}

/// Members that are not known are refused: such a rule would match more than it says.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct BgpFilterRule {
    pub action: String,
    pub cidr: String,
    pub match_operator: String,
    pub prefix_length: Option<PrefixLength>,
    pub interface: String,
    pub source: String,
    pub peer_type: String,
    pub communities: Option<CommunityMatch>,
    #[serde(rename = "asPathPrefix")]
    pub as_path_prefix: Vec<AsNumber>,
    pub priority: Option<u32>,
    pub operations: Vec<BgpFilterOperation>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefixLength {
    pub min: Option<u32>,
    pub max: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommunityMatch {
    pub values: Vec<String>,
}

/// Exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct BgpFilterOperation {
    pub add_community: Option<AddCommunity>,
    #[serde(rename = "prependASPath")]
    pub prepend_as_path: Option<PrependAsPath>,
    pub set_priority: Option<SetPriority>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AddCommunity {
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrependAsPath {
    pub prefix: Vec<AsNumber>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SetPriority {
    pub value: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterInformationSpec {
    #[serde(rename = "clusterGUID")]
    pub cluster_guid: String,
    pub cluster_type: String,
    pub calico_version: String,
    pub datastore_ready: Option<bool>,
    pub variant: String,
}
