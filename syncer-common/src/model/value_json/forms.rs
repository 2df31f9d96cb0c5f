//! The v1 JSON forms of policy, endpoints, pools and the small per-node values. Member order is that of the
//! datastore's own writers; what they leave out when empty is left out here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::scalars::{AsNumberText, Float, Mac, Net, Port, Protocol, is_default, is_empty, nullable};

type Map = BTreeMap<String, String>;

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct WorkloadEndpoint {
    #[serde(deserialize_with = "nullable")]
    state: String,
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    active_instance_id: String,
    mac: Option<Mac>,
    profile_ids: Option<Vec<String>>,
    ipv4_nets: Option<Vec<Net>>,
    ipv6_nets: Option<Vec<Net>>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    ipv4_nat: Vec<Nat>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    ipv6_nat: Vec<Nat>,
    labels: Option<Map>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4_gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6_gateway: Option<IpAddr>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    ports: Vec<EndpointPort>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    generate_name: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    allow_spoofed_source_ips: Vec<Net>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    annotations: Map,
    #[serde(rename = "qosControls", skip_serializing_if = "Option::is_none")]
    qos_controls: Option<Value>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Nat {
    int_ip: IpAddr,
    ext_ip: IpAddr,
}

#[derive(Serialize, Deserialize)]
pub(super) struct EndpointPort {
    name: String,
    protocol: Protocol,
    port: u16,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct HostEndpoint {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    name: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    expected_ipv4_addrs: Vec<IpAddr>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    expected_ipv6_addrs: Vec<IpAddr>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    labels: Map,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    profile_ids: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    ports: Vec<EndpointPort>,
    #[serde(rename = "qosControls", skip_serializing_if = "Option::is_none")]
    qos_controls: Option<Value>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Policy {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    namespace: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    tier: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Float>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    inbound_rules: Vec<Rule>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    outbound_rules: Vec<Rule>,
    #[serde(deserialize_with = "nullable")]
    selector: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    untracked: bool,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    annotations: Map,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pre_dnat: bool,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    apply_on_forward: bool,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    types: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    performance_hints: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    staged_action: Option<String>,
}

impl Policy {
    /// As today's software writes it: the tier in the value, single networks among the others.
    pub(super) fn upgrade(&mut self, tier: &str) {
        tier.clone_into(&mut self.tier);
        for rule in self.inbound_rules.iter_mut().chain(&mut self.outbound_rules) {
            let sides = &mut rule.sides;
            for (one, many) in [
                (&mut sides.src_net, &mut sides.src_nets),
                (&mut sides.dst_net, &mut sides.dst_nets),
                (&mut sides.not_src_net, &mut sides.not_src_nets),
                (&mut sides.not_dst_net, &mut sides.not_dst_nets),
            ] {
                many.extend(one.take());
            }
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Tier {
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Float>,
    #[serde(rename = "defaultAction", deserialize_with = "nullable", skip_serializing_if = "is_default")]
    default_action: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ProfileRules {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    inbound_rules: Vec<Rule>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    outbound_rules: Vec<Rule>,
}

/// What a rule asks of one value, and what it must not be, sit side by side: `protocol`, `!protocol`.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Rule {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_version: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_type: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_code: Option<u8>,
    #[serde(rename = "!protocol", skip_serializing_if = "Option::is_none")]
    not_protocol: Option<Protocol>,
    #[serde(rename = "!icmp_type", skip_serializing_if = "Option::is_none")]
    not_icmp_type: Option<u8>,
    #[serde(rename = "!icmp_code", skip_serializing_if = "Option::is_none")]
    not_icmp_code: Option<u8>,
    #[serde(flatten)]
    sides: Sides,
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Value>,
}

/// `src_net` and its like are the single network of old data; readers add it to the list.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Sides {
    #[serde(skip_serializing_if = "Option::is_none")]
    src_net: Option<Net>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    src_nets: Vec<Net>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    src_selector: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    src_ports: Vec<Port>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    src_service: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    src_service_ns: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_net: Option<Net>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    dst_nets: Vec<Net>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    dst_selector: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    dst_ports: Vec<Port>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    dst_service: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    dst_service_ns: String,
    #[serde(rename = "!src_net", skip_serializing_if = "Option::is_none")]
    not_src_net: Option<Net>,
    #[serde(rename = "!src_nets", deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    not_src_nets: Vec<Net>,
    #[serde(rename = "!src_selector", deserialize_with = "nullable", skip_serializing_if = "is_default")]
    not_src_selector: String,
    #[serde(rename = "!src_ports", deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    not_src_ports: Vec<Port>,
    #[serde(rename = "!dst_net", skip_serializing_if = "Option::is_none")]
    not_dst_net: Option<Net>,
    #[serde(rename = "!dst_nets", deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    not_dst_nets: Vec<Net>,
    #[serde(rename = "!dst_selector", deserialize_with = "nullable", skip_serializing_if = "is_default")]
    not_dst_selector: String,
    #[serde(rename = "!dst_ports", deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    not_dst_ports: Vec<Port>,
    #[serde(flatten)]
    original: Original,
}

/// The selectors as the user wrote them, kept for display.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Original {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    orig_src_selector: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    orig_src_namespace_selector: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    orig_dst_selector: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    orig_dst_namespace_selector: String,
    #[serde(
        rename = "!orig_src_selector",
        deserialize_with = "nullable",
        skip_serializing_if = "is_default"
    )]
    not_orig_src_selector: String,
    #[serde(
        rename = "!orig_dst_selector",
        deserialize_with = "nullable",
        skip_serializing_if = "is_default"
    )]
    not_orig_dst_selector: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    orig_src_service_acct_names: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    orig_src_service_acct_selector: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    orig_dst_service_acct_names: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    orig_dst_service_acct_selector: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct NetworkSet {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    nets: Vec<Net>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    labels: Map,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    profile_ids: Vec<String>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct IpPool {
    cidr: Net,
    #[serde(default, deserialize_with = "nullable")]
    ipip: String,
    #[serde(default, deserialize_with = "nullable")]
    ipip_mode: String,
    #[serde(default, deserialize_with = "nullable")]
    vxlan_mode: String,
    #[serde(default, deserialize_with = "nullable")]
    masquerade: bool,
    #[serde(default, deserialize_with = "nullable")]
    ipam: bool,
    #[serde(default, deserialize_with = "nullable")]
    disabled: bool,
    #[serde(default, rename = "disableBGPExport", deserialize_with = "nullable")]
    disable_bgp_export: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    assignment_mode: Option<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_empty")]
    allowed_uses: Vec<String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Wireguard {
    #[serde(rename = "interfaceIPv4Addr", skip_serializing_if = "Option::is_none")]
    interface_ipv4_addr: Option<IpAddr>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    public_key: String,
    #[serde(rename = "interfaceIPv6Addr", skip_serializing_if = "Option::is_none")]
    interface_ipv6_addr: Option<IpAddr>,
    #[serde(rename = "publicKeyV6", deserialize_with = "nullable", skip_serializing_if = "is_default")]
    public_key_v6: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct BgpPeer {
    ip: IpAddr,
    as_num: AsNumberText,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct StatusReport {
    #[serde(deserialize_with = "nullable")]
    time: String,
    #[serde(deserialize_with = "nullable")]
    uptime: Float,
    #[serde(deserialize_with = "nullable")]
    first_update: bool,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct EndpointStatus {
    #[serde(deserialize_with = "nullable")]
    status: String,
}

/// A value that only says that its key is there.
#[derive(Serialize, Deserialize)]
pub(super) struct Nothing {}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct BlockAffinity {
    #[serde(deserialize_with = "nullable")]
    state: String,
    #[serde(deserialize_with = "nullable")]
    deleted: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Block {
    cidr: Net,
    #[serde(default)]
    affinity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    affinity_claim_time: Option<String>,
    /// Before affinities had a type.
    #[serde(default, rename = "hostAffinity", skip_serializing_if = "Option::is_none")]
    host_affinity: Option<String>,
    #[serde(default)]
    allocations: Option<Vec<Option<u32>>>,
    #[serde(default)]
    unallocated: Option<Vec<u32>>,
    #[serde(default)]
    attributes: Option<Vec<AllocationAttributes>>,
    #[serde(default, rename = "sequenceNumber", deserialize_with = "nullable")]
    sequence_number: u64,
    #[serde(default, rename = "sequenceNumberForAllocation")]
    sequence_number_for_allocation: Option<BTreeMap<String, u64>>,
    #[serde(default, deserialize_with = "nullable")]
    deleted: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct AllocationAttributes {
    #[serde(default)]
    handle_id: Option<String>,
    #[serde(default)]
    secondary: Option<Map>,
    #[serde(
        default,
        rename = "alternateOwnerAttrs",
        deserialize_with = "nullable",
        skip_serializing_if = "is_default"
    )]
    alternate_owner_attrs: Map,
    #[serde(default, rename = "releasedAt", skip_serializing_if = "Option::is_none")]
    released_at: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct IpamHandle {
    block: Option<BTreeMap<String, i64>>,
    #[serde(deserialize_with = "nullable")]
    deleted: bool,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct IpamConfig {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    strict_affinity: bool,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    auto_allocate_blocks: bool,
    #[serde(rename = "maxBlocksPerHost", deserialize_with = "nullable", skip_serializing_if = "is_default")]
    max_blocks_per_host: u32,
    #[serde(rename = "ipCooldownSeconds", deserialize_with = "nullable", skip_serializing_if = "is_default")]
    ip_cooldown_seconds: u32,
}
