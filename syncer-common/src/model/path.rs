//! `Key` → path: the canonical one, and those to delete with it.
//!
//! Names that may hold a slash (endpoints, orchestrators, workloads, profiles, network sets) are escaped;
//! hosts, policy parts and configuration names are written as they are, as the datastore has them.
//! `parse.rs` is the way back. A key that lacks a field has no path: an error that names the field.

use std::net::IpAddr;

use ipnet::IpNet;

use super::resource_kind::ResourceKind;
use super::{BlockAffinityKey, HostEndpointKey, Key, KeyError, PolicyKey, ResourceKey, WorkloadEndpointKey};

pub(super) const RESOURCE_ROOT: &str = "/calico/resources/v3/projectcalico.org";
/// The affinity type of a key that names none.
pub(super) const HOST_AFFINITY: &str = "host";
const BGP_PORT: u16 = 179;

impl Key {
    /// The canonical path, or which field is missing.
    pub fn path(&self) -> Result<String, KeyError> {
        Ok(match self {
            Key::WorkloadEndpoint(key) => workload_endpoint(key)?,
            Key::HostEndpoint(HostEndpointKey { host, endpoint }) => {
                let need = Need("HostEndpoint");
                let (host, endpoint) = (need.field("host", host)?, need.field("endpoint", endpoint)?);
                format!("/calico/v1/host/{host}/endpoint/{}", escape(endpoint))
            }
            Key::Policy(policy) | Key::LegacyPolicy { policy, .. } => policy_path(policy)?,
            Key::Tier { name } => {
                format!("/calico/v1/policy/tier/{}/metadata", Need("Tier").field("name", name)?)
            }
            Key::ProfileRules { name } => format!("{}/rules", profile("ProfileRules", name)?),
            Key::ProfileLabels { name } => format!("{}/labels", profile("ProfileLabels", name)?),
            Key::NetworkSet { name } => {
                format!("/calico/v1/netset/{}", escape(Need("NetworkSet").field("name", name)?))
            }
            Key::IpPool { cidr } => format!("/calico/v1/ipam/v{}/pool/{}", version(cidr), segment(cidr)),
            Key::GlobalConfig { name } => {
                format!("/calico/v1/config/{}", Need("GlobalConfig").field("name", name)?)
            }
            Key::HostConfig { host, name } => {
                let need = Need("HostConfig");
                let (host, name) = (need.field("host", host)?, need.field("name", name)?);
                format!("/calico/v1/host/{host}/config/{name}")
            }
            Key::ReadyFlag => "/calico/v1/Ready".to_owned(),
            Key::Block { cidr } => {
                format!("/calico/ipam/v2/assignment/ipv{}/block/{}", version(cidr), segment(cidr))
            }
            Key::BlockAffinity(BlockAffinityKey { host, cidr, affinity_type }) => {
                let host = Need("BlockAffinity").field("host", host)?;
                let kind = if affinity_type.is_empty() { HOST_AFFINITY } else { affinity_type };
                format!("/calico/ipam/v2/{kind}/{host}/ipv{}/block/{}", version(cidr), segment(cidr))
            }
            Key::Resource(key) => resource(key)?,
            Key::Wireguard { node } => {
                format!("/calico/v1/host/{}/wireguard", Need("Wireguard").field("node", node)?)
            }
            Key::IpamHandle { id } => {
                format!("/calico/ipam/v2/handle/{}", Need("IPAMHandle").field("id", id)?)
            }
            Key::IpamConfig => "/calico/ipam/v2/config".to_owned(),
            Key::IpamHost { host } => {
                format!("/calico/ipam/v2/host/{}", Need("IPAMHost").field("host", host)?)
            }
            Key::HostMetadata { host } => {
                format!("/calico/v1/host/{}/metadata", Need("HostMetadata").field("host", host)?)
            }
            Key::OrchRefs { host } => {
                format!("/calico/v1/host/{}/orchestrator_refs", Need("OrchRefs").field("host", host)?)
            }
            Key::GlobalBgpConfig { name } => {
                format!("/calico/bgp/v1/global/{}", Need("GlobalBGPConfig").field("name", name)?)
            }
            Key::NodeBgpConfig { node, name } => {
                let need = Need("NodeBGPConfig");
                let (node, name) = (need.field("node", node)?, need.field("name", name)?);
                format!("/calico/bgp/v1/host/{node}/{name}")
            }
            Key::BgpNode { host } => {
                format!("/calico/bgp/v1/host/{}", Need("BGPNode").field("host", host)?)
            }
            Key::GlobalBgpPeer { peer_ip, port } => {
                format!("/calico/bgp/v1/global/{}", bgp_peer(*peer_ip, *port))
            }
            Key::NodeBgpPeer { node, peer_ip, port } => {
                let node = Need("NodeBGPPeer").field("node", node)?;
                format!("/calico/bgp/v1/host/{node}/{}", bgp_peer(*peer_ip, *port))
            }
            Key::ActiveStatusReport { region, host } => {
                format!("{}/status", status_root("ActiveStatusReport", region, host)?)
            }
            Key::LastStatusReport { region, host } => {
                format!("{}/last_reported_status", status_root("LastStatusReport", region, host)?)
            }
            Key::HostEndpointStatus { host, endpoint } => {
                let need = Need("HostEndpointStatus");
                let (host, endpoint) = (need.field("host", host)?, need.field("endpoint", endpoint)?);
                format!("/calico/felix/v1/host/{host}/endpoint/{}", escape(endpoint))
            }
            Key::WorkloadEndpointStatus { region, host, orchestrator, workload, endpoint } => {
                let need = Need("WorkloadEndpointStatus");
                format!(
                    "{}/workload/{}/{}/endpoint/{}",
                    status_root(need.0, region, host)?,
                    escape(need.field("orchestrator", orchestrator)?),
                    escape(need.field("workload", workload)?),
                    escape(need.field("endpoint", endpoint)?),
                )
            }
        })
    }

    /// The path to delete (with everything below it) when the entry goes: above the entry's own path
    /// for those that own a subtree.
    pub fn delete_path(&self) -> Result<String, KeyError> {
        let path = self.path()?;
        let own_leaf = match self {
            Key::Tier { .. } | Key::HostMetadata { .. } => "/metadata",
            Key::ProfileRules { .. } => "/rules",
            Key::ProfileLabels { .. } => "/labels",
            _ => "",
        };
        Ok(path.strip_suffix(own_leaf).map_or(path.clone(), str::to_owned))
    }

    /// The directories to remove afterwards if nothing is left in them, innermost first.
    pub fn delete_parent_paths(&self) -> Result<Vec<String>, KeyError> {
        if !matches!(self, Key::WorkloadEndpoint(_) | Key::WorkloadEndpointStatus { .. }) {
            return Ok(Vec::new());
        }
        let path = self.path()?;
        let endpoints = parent(&path);
        Ok(vec![endpoints.to_owned(), parent(endpoints).to_owned()])
    }

    /// The modern key of a legacy one; every other key is already modern. The tier of a legacy policy
    /// path (`legacy_tier`) overrides the one in its value.
    pub fn upgrade(self) -> Key {
        match self {
            Key::LegacyPolicy { policy, .. } => Key::Policy(policy),
            modern => modern,
        }
    }

    /// The tier that a legacy policy path names.
    pub fn legacy_tier(&self) -> Option<&str> {
        match self {
            Key::LegacyPolicy { tier, .. } => Some(tier),
            _ => None,
        }
    }
}

/// Fields of one kind of key that must not be empty.
#[derive(Clone, Copy)]
struct Need(&'static str);

impl Need {
    fn field<'a>(self, field: &'static str, value: &'a str) -> Result<&'a str, KeyError> {
        if value.is_empty() { Err(KeyError { kind: self.0, field }) } else { Ok(value) }
    }
}

fn workload_endpoint(key: &WorkloadEndpointKey) -> Result<String, KeyError> {
    let need = Need("WorkloadEndpoint");
    Ok(format!(
        "/calico/v1/host/{}/workload/{}/{}/endpoint/{}",
        need.field("host", &key.host)?,
        escape(need.field("orchestrator", &key.orchestrator)?),
        escape(need.field("workload", &key.workload)?),
        escape(need.field("endpoint", &key.endpoint)?),
    ))
}

fn policy_path(key: &PolicyKey) -> Result<String, KeyError> {
    let need = Need("Policy");
    let (kind, name) = (need.field("kind", &key.kind)?, need.field("name", &key.name)?);
    if matches!(kind, "NetworkPolicy" | "StagedNetworkPolicy" | "StagedKubernetesNetworkPolicy") {
        need.field("namespace", &key.namespace)?;
    }
    Ok(format!("/calico/v1/policy/{kind}/{}/{name}", key.namespace))
}

fn profile(kind: &'static str, name: &str) -> Result<String, KeyError> {
    Ok(format!("/calico/v1/policy/profile/{}", escape(Need(kind).field("name", name)?)))
}

fn resource(key: &ResourceKey) -> Result<String, KeyError> {
    let known = ResourceKind::by_kind(&key.kind)
        .ok_or(KeyError { kind: "Resource", field: "a kind that is stored" })?;
    let ResourceKey { namespace, name, .. } = key;
    Ok(if known.namespaced {
        format!("{RESOURCE_ROOT}/{}/{namespace}/{name}", known.plural)
    } else {
        format!("{RESOURCE_ROOT}/{}/{name}", known.plural)
    })
}

fn status_root(kind: &'static str, region: &str, host: &str) -> Result<String, KeyError> {
    let need = Need(kind);
    let (host, region) = (need.field("host", host)?, need.field("region", region)?);
    if region.contains('/') {
        return Err(KeyError { kind, field: "a region without slash" });
    }
    Ok(format!("/calico/felix/v2/{region}/host/{host}"))
}

fn bgp_peer(address: IpAddr, port: u16) -> String {
    let version = if address.is_ipv4() { 4 } else { 6 };
    if port == 0 || port == BGP_PORT {
        format!("peer_v{version}/{address}")
    } else {
        format!("peer_v{version}/{address}-{port}")
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

pub(super) fn version(cidr: &IpNet) -> u8 {
    match cidr {
        IpNet::V4(_) => 4,
        IpNet::V6(_) => 6,
    }
}

/// A CIDR as one path segment, host bits masked: `10.65.0.0-16`.
pub(super) fn segment(cidr: &IpNet) -> String {
    format!("{}-{}", cidr.network(), cidr.prefix_len())
}

pub(super) fn escape(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2f")
}

pub(super) fn unescape(name: &str) -> String {
    name.replace("%2f", "/").replace("%25", "%")
}
