//! Nodes: tunnel addresses as host configuration, the end of encrypted tunnels, the node itself for those who
//! build routes, and the blocks that Kubernetes gave it.

use std::collections::BTreeSet;

use ipnet::IpNet;

use proto::model as v1;

use super::addresses::{interface_address, mac, parse_net};
use super::findings::Findings;
use crate::apis::network::{NodeSpec, NodeStatus};
use crate::apis::{FieldError, Resource};
use crate::model::{BlockAffinityKey, DeletionReason, Key, ResourceKey, Update, Value};

/// Given by nodes, and nowhere else.
pub(super) const TUNNEL_SETTINGS: [&str; 5] = [
    "IpInIpTunnelAddr",
    "IPv4VXLANTunnelAddr",
    "VXLANTunnelMACAddr",
    "IPv6VXLANTunnelAddr",
    "VXLANTunnelMACAddrV6",
];

fn resource_key(name: &str) -> Key {
    Key::Resource(ResourceKey { kind: "Node".to_owned(), namespace: String::new(), name: name.to_owned() })
}

fn config_key(host: &str, name: &str) -> Key {
    Key::HostConfig { host: host.to_owned(), name: name.to_owned() }
}

pub(super) fn keys(name: &str) -> Vec<Key> {
    let settings = TUNNEL_SETTINGS.iter().map(|setting| config_key(name, setting));
    settings.chain([resource_key(name), wireguard_key(name)]).collect()
}

fn wireguard_key(name: &str) -> Key {
    Key::Wireguard { node: name.to_owned() }
}

/// The networks that Kubernetes gave to a node.
pub(super) fn pod_cidrs(resource: &Resource, findings: &mut Findings) -> Result<BTreeSet<IpNet>, FieldError> {
    let status: NodeStatus = resource.typed_status()?;
    let mut cidrs = BTreeSet::new();
    for (index, text) in status.pod_cidrs.iter().enumerate() {
        match parse_net(text) {
            Ok(cidr) => drop(cidrs.insert(cidr)),
            Err(reason) => findings.note(format!("status.podCIDRs[{index}]"), reason),
        }
    }
    Ok(cidrs)
}

/// Such a network is a block of which the node has all, for routes, and an affinity, for what it announces.
pub(super) fn pod_cidr_entries(name: &str, cidr: IpNet) -> [(Key, Value); 2] {
    let affinity = format!("host:{name}");
    let block = v1::IpamBlock { cidr: cidr.to_string(), affinity, ..v1::IpamBlock::default() };
    let key = BlockAffinityKey { host: name.to_owned(), cidr, affinity_type: "host".to_owned() };
    let confirmed = v1::BlockAffinity { state: "confirmed".to_owned(), deleted: false };
    [
        (Key::Block { cidr }, Value::IpamBlock(block)),
        (Key::BlockAffinity(key), Value::BlockAffinity(confirmed)),
    ]
}

pub(super) fn convert(
    key: &ResourceKey,
    resource: &Resource,
    findings: &mut Findings,
) -> Result<Vec<Update>, FieldError> {
    let spec: NodeSpec = resource.typed_spec()?;
    let bgp = spec.bgp.clone().unwrap_or_default();
    let mut updates = Vec::new();
    // A value that does not read counts as absent and is reported; the others stand.
    let mut check =
        |field: &str, text: &str, parse: fn(&str) -> Result<String, String>| -> Result<String, ()> {
            if text.is_empty() {
                return Ok(String::new());
            }
            parse(text).map_err(|reason| findings.note(field, reason))
        };
    let tunnels = [
        (
            "spec.bgp.ipv4IPIPTunnelAddr",
            &bgp.ipv4_ipip_tunnel_addr,
            ipv4 as fn(&str) -> Result<String, String>,
        ),
        ("spec.ipv4VXLANTunnelAddr", &spec.ipv4_vxlan_tunnel_addr, ipv4),
        ("spec.vxlanTunnelMACAddr", &spec.vxlan_tunnel_mac_addr, mac),
        ("spec.ipv6VXLANTunnelAddr", &spec.ipv6_vxlan_tunnel_addr, ipv6),
        ("spec.vxlanTunnelMACAddrV6", &spec.vxlan_tunnel_mac_addr_v6, mac),
    ];
    let mut parsed = Vec::with_capacity(tunnels.len());
    for (setting, (field, text, parse)) in TUNNEL_SETTINGS.iter().zip(tunnels) {
        let key = config_key(&key.name, setting);
        let value = check(field, text, parse);
        updates.push(match &value {
            Ok(text) if text.is_empty() => Update::delete(key),
            Ok(text) => Update::set(key, Value::Config(text.clone())),
            Err(()) => Update { key, value: Err(DeletionReason::Invalid) },
        });
        parsed.push(value.unwrap_or_default());
    }
    let mut parsed = parsed.into_iter();
    let mut next = || parsed.next().unwrap_or_default();
    let (ipip, vxlan4, mac4, vxlan6, mac6) = (next(), next(), next(), next(), next());
    let ipv4_address =
        check("spec.bgp.ipv4Address", &bgp.ipv4_address, interface_address).unwrap_or_default();
    let ipv6_address =
        check("spec.bgp.ipv6Address", &bgp.ipv6_address, interface_address).unwrap_or_default();
    let status: NodeStatus = resource.typed_status()?;
    let wireguard = spec.wireguard.unwrap_or_default();
    let wireguard = v1::Wireguard {
        interface_ipv4_addr: check(
            "spec.wireguard.interfaceIPv4Address",
            &wireguard.interface_ipv4_address,
            ipv4,
        )
        .unwrap_or_default(),
        public_key: check("status.wireguardPublicKey", &status.wireguard_public_key, public_key)
            .unwrap_or_default(),
        interface_ipv6_addr: check(
            "spec.wireguard.interfaceIPv6Address",
            &wireguard.interface_ipv6_address,
            ipv6,
        )
        .unwrap_or_default(),
        public_key_v6: check("status.wireguardPublicKeyV6", &status.wireguard_public_key_v6, public_key)
            .unwrap_or_default(),
    };
    let mut addresses = Vec::with_capacity(spec.addresses.len());
    for (index, address) in spec.addresses.iter().enumerate() {
        let field = format!("spec.addresses[{index}].address");
        if let Ok(text) = check(&field, &address.address, interface_address) {
            addresses.push(v1::NodeAddress { address: text, r#type: address.r#type.clone() });
        }
    }
    let node = v1::Node {
        labels: resource.metadata.labels.clone(),
        bgp: spec.bgp.map(|bgp| v1::NodeBgp {
            as_number: bgp.as_number.map(|number| number.0),
            ipv4_address,
            ipv6_address,
            ipv4_ipip_tunnel_addr: ipip,
            route_reflector_cluster_id: bgp.route_reflector_cluster_id,
        }),
        addresses,
        ipv4_vxlan_tunnel_addr: vxlan4,
        ipv6_vxlan_tunnel_addr: vxlan6,
        vxlan_tunnel_mac: mac4,
        vxlan_tunnel_mac_v6: mac6,
    };
    updates.push(Update::set(resource_key(&key.name), Value::Node(node)));
    updates.push(if wireguard == v1::Wireguard::default() {
        Update::delete(wireguard_key(&key.name))
    } else {
        Update::set(wireguard_key(&key.name), Value::Wireguard(wireguard))
    });
    Ok(updates)
}

/// 32 bytes in base64.
fn public_key(text: &str) -> Result<String, String> {
    let digits = text.strip_suffix('=').unwrap_or_default();
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    if digits.len() == 43 && digits.bytes().all(good) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a WireGuard key: 32 bytes in base64"))
    }
}

pub(crate) fn ipv4(text: &str) -> Result<String, String> {
    let address: Result<std::net::Ipv4Addr, _> = text.parse();
    address.map(|address| address.to_string()).map_err(|_| format!("{text:?} is not an IPv4 address"))
}

pub(crate) fn ipv6(text: &str) -> Result<String, String> {
    let address: Result<std::net::Ipv6Addr, _> = text.parse();
    address.map(|address| address.to_string()).map_err(|_| format!("{text:?} is not an IPv6 address"))
}
