//! Nodes: Calico keeps what it knows about a node in annotations of Kubernetes' own object.
//!
//! An annotation that does not read counts as absent and is reported. What a kubelet reports all the time
//! (conditions, images, heartbeats) is not in the value.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::object::{Meta, Stored, StoredMeta, Text, error, or_default, parse, resource_path};
use super::{Options, Read};
use crate::apis::FieldError;
use crate::apis::scalars::AsNumber;
use crate::processors::mac;

const KIND: &str = "Node";
const PREFIX: &str = "projectcalico.org/";
const KUBERNETES_LABELS: &str = "projectcalico.org/kube-labels";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Object<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    spec: Spec<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    status: Status<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec<'a> {
    #[serde(borrow, rename = "podCIDR")]
    pod_cidr: Text<'a>,
    #[serde(rename = "podCIDRs", deserialize_with = "or_default")]
    pod_cidrs: Vec<Text<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    addresses: Vec<KubernetesAddress<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KubernetesAddress<'a> {
    #[serde(borrow)]
    address: Text<'a>,
    r#type: Text<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeSpec {
    #[serde(skip_serializing_if = "is_default")]
    bgp: Bgp,
    #[serde(rename = "ipv4VXLANTunnelAddr", skip_serializing_if = "String::is_empty")]
    ipv4_vxlan_tunnel_addr: String,
    #[serde(rename = "vxlanTunnelMACAddr", skip_serializing_if = "String::is_empty")]
    vxlan_tunnel_mac_addr: String,
    #[serde(rename = "ipv6VXLANTunnelAddr", skip_serializing_if = "String::is_empty")]
    ipv6_vxlan_tunnel_addr: String,
    #[serde(rename = "vxlanTunnelMACAddrV6", skip_serializing_if = "String::is_empty")]
    vxlan_tunnel_mac_addr_v6: String,
    orch_refs: [OrchRef; 1],
    #[serde(skip_serializing_if = "is_default")]
    wireguard: Wireguard,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<Interface>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Bgp {
    #[serde(rename = "asNumber", skip_serializing_if = "Option::is_none")]
    as_number: Option<u32>,
    #[serde(rename = "ipv4Address", skip_serializing_if = "String::is_empty")]
    ipv4_address: String,
    #[serde(rename = "ipv6Address", skip_serializing_if = "String::is_empty")]
    ipv6_address: String,
    #[serde(rename = "ipv4IPIPTunnelAddr", skip_serializing_if = "String::is_empty")]
    ipv4_ipip_tunnel_addr: String,
    #[serde(rename = "routeReflectorClusterID", skip_serializing_if = "String::is_empty")]
    route_reflector_cluster_id: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OrchRef {
    node_name: String,
    orchestrator: &'static str,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Wireguard {
    #[serde(rename = "interfaceIPv4Address", skip_serializing_if = "String::is_empty")]
    ipv4: String,
    #[serde(rename = "interfaceIPv6Address", skip_serializing_if = "String::is_empty")]
    ipv6: String,
}

#[derive(Debug, Serialize)]
struct Address {
    address: String,
    r#type: &'static str,
}

#[derive(Debug, Serialize, Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    wireguard_public_key: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    wireguard_public_key_v6: &'a str,
    #[serde(rename = "podCIDRs", skip_serializing_if = "<[_]>::is_empty")]
    pod_cidrs: &'a [Text<'a>],
}

pub(super) fn path(object: &[u8]) -> Result<String, FieldError> {
    let Object { metadata, .. } = parse(object)?;
    resource_path(KIND, "", &metadata.name)
}

pub(super) fn read(object: &[u8], options: &Options) -> Result<Read, FieldError> {
    let Object { metadata, spec, status } = parse(object)?;
    let path = resource_path(KIND, "", &metadata.name)?;
    let mut own = Annotations { meta: &metadata, findings: Vec::new() };
    let mut node = own.spec();
    let node_status = NodeStatus {
        wireguard_public_key: own.text("WireguardPublicKey"),
        wireguard_public_key_v6: own.text("WireguardPublicKeyV6"),
        pod_cidrs: &spec.pod_cidrs,
    };
    if options.use_pod_cidr
        && let Some(address) = first_address(&spec.pod_cidr)
    {
        if !node_status.wireguard_public_key.is_empty() {
            node.wireguard.ipv4.clone_from(&address);
        }
        node.bgp.ipv4_ipip_tunnel_addr = address;
    }
    node.addresses = addresses(&node.bgp, &status.addresses);
    let (labels, mut annotations) = (own.map("labels"), own.map("annotations"));
    annotations.insert(KUBERNETES_LABELS.to_owned(), kubernetes_labels(&metadata));
    let stored = StoredMeta {
        name: &metadata.name,
        uid: &metadata.uid,
        creation_timestamp: &metadata.creation_timestamp,
        labels: borrowed(&labels).chain(metadata.labels.clone()).collect(),
        annotations: borrowed(&annotations).collect(),
        ..StoredMeta::default()
    };
    let value = Stored::new(KIND, stored, node, Some(node_status)).to_vec();
    let resource_version = metadata.resource_version.to_string();
    Ok(Read { path, value: Some(value), findings: own.findings, resource_version })
}

/// Where the fields of a Node are in annotations.
const FIELDS: [(&str, &str); 11] = [
    ("/spec/bgp/ipv4Address", "IPv4Address"),
    ("/spec/bgp/ipv6Address", "IPv6Address"),
    ("/spec/bgp/asNumber", "ASNumber"),
    ("/spec/bgp/ipv4IPIPTunnelAddr", "IPv4IPIPTunnelAddr"),
    ("/spec/bgp/routeReflectorClusterID", "RouteReflectorClusterID"),
    ("/spec/ipv4VXLANTunnelAddr", "IPv4VXLANTunnelAddr"),
    ("/spec/vxlanTunnelMACAddr", "VXLANTunnelMACAddr"),
    ("/spec/ipv6VXLANTunnelAddr", "IPv6VXLANTunnelAddr"),
    ("/spec/vxlanTunnelMACAddrV6", "VXLANTunnelMACAddrV6"),
    ("/spec/wireguard/interfaceIPv4Address", "IPv4WireguardInterfaceAddr"),
    ("/spec/wireguard/interfaceIPv6Address", "IPv6WireguardInterfaceAddr"),
];

/// The annotations that say what a Node's value says, the other way round than `read`. Labels and annotations of
/// Kubernetes' own are not to be changed from here.
pub(super) fn annotations(value: &[u8]) -> Result<Map<String, Value>, FieldError> {
    let node: Value =
        serde_json::from_slice(value).map_err(|reason| error("the value", reason.to_string()))?;
    let mut found = Map::new();
    for (field, name) in FIELDS {
        let text = match node.pointer(field) {
            None | Some(Value::Null) => Value::Null,
            Some(Value::String(text)) if text.is_empty() => Value::Null,
            Some(Value::String(text)) => text.as_str().into(),
            Some(other) => other.to_string().into(),
        };
        found.insert(format!("{PREFIX}{name}"), text);
    }
    let interfaces = node.pointer("/spec/interfaces").filter(|list| !list.is_null());
    found.insert(
        format!("{PREFIX}Interfaces"),
        interfaces.map_or(Value::Null, |list| list.to_string().into()),
    );

    let map = |field: &str| node.pointer(field).and_then(Value::as_object).cloned().unwrap_or_default();
    let (mut labels, mut annotations) = (map("/metadata/labels"), map("/metadata/annotations"));
    let kubernetes = annotations.remove(KUBERNETES_LABELS);
    let kubernetes: BTreeMap<String, String> = kubernetes
        .as_ref()
        .and_then(Value::as_str)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    for (name, value) in &kubernetes {
        if labels.remove(name).as_ref().and_then(Value::as_str) != Some(value) {
            let reason = format!("is Kubernetes' own ({value}): change it there, with kubectl label node");
            return Err(error(format!("metadata.labels[{name}]"), reason));
        }
    }
    for (name, own) in [("labels", labels), ("annotations", annotations)] {
        let text = (!own.is_empty()).then(|| Value::Object(own).to_string());
        found.insert(format!("{PREFIX}{name}"), text.into());
    }
    Ok(found)
}

fn borrowed(map: &BTreeMap<String, String>) -> impl Iterator<Item = (Text<'_>, Text<'_>)> {
    map.iter().map(|(name, value)| (Text::from(name.as_str()), Text::from(value.as_str())))
}

/// As Go writes a map: one without entries was never made.
fn kubernetes_labels(metadata: &Meta<'_>) -> String {
    if metadata.labels.is_empty() {
        return "null".to_owned();
    }
    serde_json::to_string(&metadata.labels).expect("labels are strings")
}

/// Where no pool gives the node's tunnel an address, it is the first of the node's own network.
fn first_address(pod_cidr: &str) -> Option<String> {
    let net = pod_cidr.parse::<Ipv4Net>().ok()?;
    Some(Ipv4Addr::from(u32::from(net.network()).checked_add(1)?).to_string())
}

fn addresses(bgp: &Bgp, kubernetes: &[KubernetesAddress<'_>]) -> Vec<Address> {
    let calico = [&bgp.ipv4_address, &bgp.ipv6_address].into_iter().filter(|address| !address.is_empty());
    let mut addresses: Vec<Address> =
        calico.map(|address| Address { address: address.clone(), r#type: "CalicoNodeIP" }).collect();
    for KubernetesAddress { address, r#type } in kubernetes {
        let r#type = match &**r#type {
            "InternalIP" => "InternalIP",
            "ExternalIP" => "ExternalIP",
            _ => continue,
        };
        addresses.push(Address { address: address.to_string(), r#type });
    }
    addresses
}

/// What Calico noted about the node.
struct Annotations<'m> {
    meta: &'m Meta<'m>,
    findings: Vec<FieldError>,
}

impl<'m> Annotations<'m> {
    fn text(&self, name: &str) -> &'m str {
        self.meta.annotation(&format!("{PREFIX}{name}"))
    }

    fn note(&mut self, name: &str, reason: impl Into<String>) {
        self.findings.push(error(format!("metadata.annotations[{PREFIX}{name}]"), reason));
    }

    /// The text, if it is what it must be.
    fn checked(&mut self, name: &str, what: &str, good: impl Fn(&str) -> bool) -> String {
        let text = self.text(name);
        if text.is_empty() || good(text) {
            return text.to_owned();
        }
        self.note(name, format!("{text:?} is not {what}"));
        String::new()
    }

    fn spec(&mut self) -> NodeSpec {
        let ipv4 = |text: &str| text.parse::<Ipv4Addr>().is_ok();
        let ipv6 = |text: &str| text.parse::<Ipv6Addr>().is_ok();
        let ipv4_or_net = |text: &str| ipv4(text) || text.parse::<Ipv4Net>().is_ok();
        let ipv6_or_net = |text: &str| ipv6(text) || text.parse::<Ipv6Net>().is_ok();
        let is_mac = |text: &str| mac(text).is_ok();
        NodeSpec {
            bgp: Bgp {
                as_number: self.as_number(),
                ipv4_address: self.checked("IPv4Address", "an IPv4 address or address/length", ipv4_or_net),
                ipv6_address: self.checked("IPv6Address", "an IPv6 address or address/length", ipv6_or_net),
                ipv4_ipip_tunnel_addr: self.checked("IPv4IPIPTunnelAddr", "an IPv4 address", ipv4),
                route_reflector_cluster_id: self.checked("RouteReflectorClusterID", "an IPv4 address", ipv4),
            },
            ipv4_vxlan_tunnel_addr: self.checked("IPv4VXLANTunnelAddr", "an IPv4 address", ipv4),
            vxlan_tunnel_mac_addr: self.checked("VXLANTunnelMACAddr", "a MAC address", is_mac),
            ipv6_vxlan_tunnel_addr: self.checked("IPv6VXLANTunnelAddr", "an IPv6 address", ipv6),
            vxlan_tunnel_mac_addr_v6: self.checked("VXLANTunnelMACAddrV6", "a MAC address", is_mac),
            orch_refs: [OrchRef { node_name: self.meta.name.to_string(), orchestrator: "k8s" }],
            wireguard: Wireguard {
                ipv4: self.checked("IPv4WireguardInterfaceAddr", "an IPv4 address", ipv4),
                ipv6: self.checked("IPv6WireguardInterfaceAddr", "an IPv6 address", ipv6),
            },
            addresses: Vec::new(),
            interfaces: self.interfaces(),
        }
    }

    fn as_number(&mut self) -> Option<u32> {
        let text = self.text("ASNumber");
        if text.is_empty() {
            return None;
        }
        text.parse().map(|AsNumber(number)| number).map_err(|reason| self.note("ASNumber", reason)).ok()
    }

    fn interfaces(&mut self) -> Vec<Interface> {
        let text = self.text("Interfaces");
        if text.is_empty() {
            return Vec::new();
        }
        let mut interfaces: Vec<Interface> = match serde_json::from_str(text) {
            Ok(interfaces) => interfaces,
            Err(reason) => {
                self.note("Interfaces", format!("not a list of interfaces: {reason}"));
                return Vec::new();
            }
        };
        for interface in &mut interfaces {
            interface.addresses.retain(|address| {
                let good = address.parse::<IpAddr>().is_ok() || address.parse::<IpNet>().is_ok();
                if !good {
                    self.note("Interfaces", format!("{}: {address:?} is not an IP address", interface.name));
                }
                good
            });
        }
        interfaces
    }

    /// Labels and annotations that are Calico's own.
    fn map(&mut self, name: &str) -> BTreeMap<String, String> {
        let text = self.text(name);
        if text.is_empty() {
            return BTreeMap::new();
        }
        serde_json::from_str(text).unwrap_or_else(|reason| {
            self.note(name, format!("not a JSON object of strings: {reason}"));
            BTreeMap::new()
        })
    }
}
