//! Specs of endpoints, nodes and pools.

use serde::{Deserialize, Serialize};

use super::scalars::{AsNumber, Protocol};

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEndpointSpec {
    pub orchestrator: String,
    pub workload: String,
    pub node: String,
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub pod: String,
    pub endpoint: String,
    pub service_account_name: String,
    pub ip_networks: Vec<String>,
    #[serde(rename = "ipNATs")]
    pub ip_nats: Vec<IpNat>,
    pub profiles: Vec<String>,
    pub interface_name: String,
    pub mac: String,
    pub ports: Vec<EndpointPort>,
    pub allow_spoofed_source_prefixes: Vec<String>,
    pub qos_controls: Option<QosControls>,
}

/// What felix holds traffic to and marks it with; bandwidths are others' to read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QosControls {
    pub ingress_packet_rate: i64,
    pub ingress_packet_burst: i64,
    pub egress_packet_rate: i64,
    pub egress_packet_burst: i64,
    pub ingress_max_connections: i64,
    pub egress_max_connections: i64,
    pub dscp: Option<Dscp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dscp {
    Number(u8),
    Class(String),
}

/// The annotation that gives pods and host endpoints a DSCP.
pub const DSCP_ANNOTATION: &str = "qos.projectcalico.org/dscp";

impl Dscp {
    /// A number, or the name of a class in any case. None: neither.
    pub fn parse(text: &str) -> Option<Dscp> {
        let dscp = match text.parse() {
            Ok(number) => Dscp::Number(number),
            Err(_) => Dscp::Class(text.to_ascii_uppercase()),
        };
        dscp.value().map(|_| dscp)
    }

    /// What goes into a packet. None: there is no such value.
    pub fn value(&self) -> Option<u8> {
        let class = match self {
            Dscp::Number(number) => return Some(*number).filter(|number| *number < 64),
            Dscp::Class(class) => class.to_ascii_uppercase(),
        };
        match class.as_bytes() {
            b"DF" => Some(0),
            b"EF" => Some(46),
            [b'A', b'F', class @ b'1'..=b'4', drop @ b'1'..=b'3'] => {
                Some(8 * (class - b'0') + 2 * (drop - b'0'))
            }
            [b'C', b'S', class @ b'0'..=b'7'] => Some(8 * (class - b'0')),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct IpNat {
    #[serde(rename = "internalIP")]
    pub internal_ip: String,
    #[serde(rename = "externalIP")]
    pub external_ip: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    pub name: String,
    pub protocol: Option<Protocol>,
    pub port: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostEndpointSpec {
    pub node: String,
    pub interface_name: String,
    #[serde(rename = "expectedIPs")]
    pub expected_ips: Vec<String>,
    pub profiles: Vec<String>,
    pub ports: Vec<EndpointPort>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    pub bgp: Option<NodeBgpSpec>,
    #[serde(rename = "ipv4VXLANTunnelAddr")]
    pub ipv4_vxlan_tunnel_addr: String,
    #[serde(rename = "vxlanTunnelMACAddr")]
    pub vxlan_tunnel_mac_addr: String,
    #[serde(rename = "ipv6VXLANTunnelAddr")]
    pub ipv6_vxlan_tunnel_addr: String,
    #[serde(rename = "vxlanTunnelMACAddrV6")]
    pub vxlan_tunnel_mac_addr_v6: String,
    pub addresses: Vec<NodeAddress>,
    pub wireguard: Option<NodeWireguardSpec>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    pub wireguard_public_key: String,
    #[serde(rename = "wireguardPublicKeyV6")]
    pub wireguard_public_key_v6: String,
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeWireguardSpec {
    #[serde(rename = "interfaceIPv4Address")]
    pub interface_ipv4_address: String,
    #[serde(rename = "interfaceIPv6Address")]
    pub interface_ipv6_address: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeBgpSpec {
    #[serde(rename = "asNumber")]
    pub as_number: Option<AsNumber>,
    #[serde(rename = "ipv4Address")]
    pub ipv4_address: String,
    #[serde(rename = "ipv6Address")]
    pub ipv6_address: String,
    #[serde(rename = "ipv4IPIPTunnelAddr")]
    pub ipv4_ipip_tunnel_addr: String,
    #[serde(rename = "routeReflectorClusterID")]
    pub route_reflector_cluster_id: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    pub address: String,
    pub r#type: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpPoolSpec {
    pub cidr: String,
    pub block_size: Option<u32>,
    pub ipip_mode: String,
    pub vxlan_mode: String,
    pub nat_outgoing: bool,
    pub disabled: bool,
    #[serde(rename = "disableBGPExport")]
    pub disable_bgp_export: bool,
    pub node_selector: String,
    pub namespace_selector: String,
    pub allowed_uses: Vec<String>,
    pub assignment_mode: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct IpReservationSpec {
    #[serde(rename = "reservedCIDRs")]
    pub reserved_cidrs: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpamConfigSpec {
    pub strict_affinity: bool,
    pub auto_allocate_blocks: Option<bool>,
    pub max_blocks_per_host: u32,
    pub ip_cooldown_seconds: u32,
}

/// Written by others with the names of Go's fields, which are read in either case.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LiveMigrationSpec {
    #[serde(alias = "Source")]
    pub source: Option<MigrationEnd>,
    #[serde(alias = "Target")]
    pub target: Option<MigrationEnd>,
}

/// One of its members: a source has no selector, a target no workload.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MigrationEnd {
    #[serde(alias = "Selector")]
    pub selector: Option<String>,
    #[serde(alias = "Workload")]
    pub workload: Option<MigratingWorkload>,
    #[serde(alias = "WorkloadEndpoint")]
    pub workload_endpoint: Option<MigratingWorkload>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MigratingWorkload {
    #[serde(alias = "Hostname")]
    pub hostname: String,
    #[serde(rename = "orchestratorID", alias = "OrchestratorID")]
    pub orchestrator_id: String,
    #[serde(rename = "workloadID", alias = "WorkloadID")]
    pub workload_id: String,
    #[serde(rename = "endpointID", alias = "EndpointID")]
    pub endpoint_id: String,
}
