//! Typed keys of the v1 model. Paths are in `path.rs`.

use std::fmt;

use ipnet::IpNet;

/// Identity of an entry. Ordered and hashable, so that it can index any map.
///
/// `Display` prints Calico's own short form (`WorkloadEndpoint(node=n1, …)`), for logs and errors.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    WorkloadEndpoint(WorkloadEndpointKey),
    HostEndpoint(HostEndpointKey),
    Policy(PolicyKey),
    Tier {
        name: String,
    },
    ProfileRules {
        name: String,
    },
    ProfileLabels {
        name: String,
    },
    NetworkSet {
        name: String,
    },
    IpPool {
        cidr: IpNet,
    },
    GlobalConfig {
        name: String,
    },
    HostConfig {
        host: String,
        name: String,
    },
    ReadyFlag,
    Block {
        cidr: IpNet,
    },
    BlockAffinity(BlockAffinityKey),
    /// A v3 resource that travels as it is (Node, BGPConfiguration, BGPPeer, …).
    Resource(ResourceKey),
    Wireguard {
        node: String,
    },
    IpamHandle {
        id: String,
    },
    IpamConfig,
    IpamHost {
        host: String,
    },
    HostMetadata {
        host: String,
    },
    OrchRefs {
        host: String,
    },
    GlobalBgpConfig {
        name: String,
    },
    NodeBgpConfig {
        node: String,
        name: String,
    },
    BgpNode {
        host: String,
    },
    /// Old BGP peer keys, written but never parsed (they parse as BGP config).
    GlobalBgpPeer {
        peer_ip: std::net::IpAddr,
        port: u16,
    },
    NodeBgpPeer {
        node: String,
        peer_ip: std::net::IpAddr,
        port: u16,
    },
    ActiveStatusReport {
        region: String,
        host: String,
    },
    LastStatusReport {
        region: String,
        host: String,
    },
    HostEndpointStatus {
        host: String,
        endpoint: String,
    },
    WorkloadEndpointStatus {
        region: String,
        host: String,
        orchestrator: String,
        workload: String,
        endpoint: String,
    },
    /// A policy path of Typha before 3.32; `Key::upgrade` gives the modern key.
    LegacyPolicy {
        tier: String,
        policy: PolicyKey,
    },
}

/// `/calico/v1/host/<host>/workload/<orchestrator>/<workload>/endpoint/<endpoint>`; the workload of a pod
/// is `namespace/pod`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadEndpointKey {
    pub host: String,
    pub orchestrator: String,
    pub workload: String,
    pub endpoint: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostEndpointKey {
    pub host: String,
    pub endpoint: String,
}

/// A policy: kind (`NetworkPolicy`, `GlobalNetworkPolicy`, `KubernetesNetworkPolicy`, …), namespace (empty
/// for global kinds) and name. The tier is in the value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockAffinityKey {
    pub host: String,
    pub cidr: IpNet,
    /// `host` or `virtual`.
    pub affinity_type: String,
}

/// Kind, namespace (empty when cluster-wide) and name of a v3 resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceKey {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

/// A key that has no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} key lacks {field}: set it before writing")]
pub struct KeyError {
    pub kind: &'static str,
    pub field: &'static str,
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_namespaced() {
            write!(f, "{}({}/{})", self.kind, self.namespace, self.name)
        } else {
            write!(f, "{}({})", self.kind, self.name)
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::WorkloadEndpoint(WorkloadEndpointKey { host, orchestrator, workload, endpoint }) => write!(
                f,
                "WorkloadEndpoint(node={host}, orchestrator={orchestrator}, workload={workload}, name={endpoint})"
            ),
            Key::HostEndpoint(HostEndpointKey { host, endpoint }) => {
                write!(f, "HostEndpoint(node={host}, name={endpoint})")
            }
            Key::Policy(PolicyKey { kind, namespace, name }) => {
                write!(f, "Policy(Name={name}, Namespace={namespace}, Kind={kind})")
            }
            Key::LegacyPolicy { tier, policy: PolicyKey { kind, namespace, name } } => {
                write!(f, "LegacyPolicy(Tier={tier}, Name={name}, Namespace={namespace}, Kind={kind})")
            }
            Key::Tier { name } => write!(f, "Tier(name={name})"),
            Key::ProfileRules { name } => write!(f, "ProfileRules(name={name})"),
            Key::ProfileLabels { name } => write!(f, "ProfileLabels(name={name})"),
            Key::NetworkSet { name } => write!(f, "NetworkSet(name={name})"),
            Key::IpPool { cidr } => write!(f, "IPPool(cidr={cidr})"),
            Key::GlobalConfig { name } => write!(f, "GlobalFelixConfig(name={name})"),
            Key::HostConfig { host, name } => write!(f, "HostConfig(node={host},name={name})"),
            Key::ReadyFlag => f.write_str("ReadyFlagKey()"),
            Key::Block { cidr } => write!(f, "BlockKey(cidr={cidr})"),
            Key::BlockAffinity(BlockAffinityKey { host, cidr, affinity_type }) => {
                write!(f, "BlockAffinityKey(cidr={cidr}, host={host}, affinityType={affinity_type})")
            }
            Key::Resource(resource) => write!(f, "{resource}"),
            Key::Wireguard { node } => write!(f, "Node(nodename={node})"),
            Key::IpamHandle { id } => write!(f, "IPAMHandleKey(id={id})"),
            Key::IpamConfig => f.write_str("IPAMConfigKey()"),
            Key::IpamHost { host } => write!(f, "IPAMHostKey(host={host})"),
            Key::HostMetadata { host } => write!(f, "Node(name={host})"),
            Key::OrchRefs { host } => write!(f, "OrchRefs(nodename={host})"),
            Key::GlobalBgpConfig { name } => write!(f, "GlobalBGPConfig(name={name})"),
            Key::NodeBgpConfig { node, name } => write!(f, "HostBGPConfig(node={node}; name={name})"),
            Key::BgpNode { host } => write!(f, "BGPNodeKey(host={host})"),
            Key::GlobalBgpPeer { peer_ip, port } => write!(f, "BGPPeer(global, ip={peer_ip}, port={port})"),
            Key::NodeBgpPeer { node, peer_ip, port } => {
                write!(f, "BGPPeer(node={node}, ip={peer_ip}, port={port})")
            }
            Key::ActiveStatusReport { host, .. } | Key::LastStatusReport { host, .. } => {
                write!(f, "StatusReport(hostname={host})")
            }
            Key::HostEndpointStatus { host, endpoint } => {
                write!(f, "HostEndpointStatus(hostname={host}, name={endpoint})")
            }
            Key::WorkloadEndpointStatus { host, orchestrator, workload, endpoint, .. } => write!(
                f,
                "WorkloadEndpointStatus(hostname={host}, orchestrator={orchestrator}, workload={workload}, name={endpoint})"
            ),
        }
    }
}
