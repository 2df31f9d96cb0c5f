//! What the calculation puts out: plain enums, consumed by the dataplane managers.
//!
//! Order within one flush: configuration; IP sets added, IP sets changed, policies, profiles, endpoints;
//! then endpoint, profile, policy and IP-set removals; nodes; pools, removals first; service ranges, this node; routes removed,
//! tunnel ends removed, then added, routes added. One pending entry per object, so a slow dataplane is bounded
//! by state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use syncer_common::model::{HostEndpointKey, PolicyKey, WorkloadEndpointKey};

#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Resolved configuration parameters from the datastore, by name: global, selector-scoped, per host
    /// already merged in that order. Environment and file come on top of it, in felix itself.
    Config(BTreeMap<String, String>),
    IpSetUpdate {
        id: String,
        kind: IpSetKind,
        members: BTreeSet<String>,
    },
    IpSetDelta {
        id: String,
        added: Vec<String>,
        removed: Vec<String>,
    },
    PolicyUpdate {
        key: PolicyKey,
        policy: ActivePolicy,
    },
    ProfileUpdate {
        name: String,
        profile: ActiveProfile,
    },
    WorkloadEndpointUpdate {
        key: WorkloadEndpointKey,
        endpoint: WorkloadEndpoint,
    },
    HostEndpointUpdate {
        key: HostEndpointKey,
        endpoint: HostEndpoint,
    },
    WorkloadEndpointRemove {
        key: WorkloadEndpointKey,
    },
    HostEndpointRemove {
        key: HostEndpointKey,
    },
    ProfileRemove {
        name: String,
    },
    PolicyRemove {
        key: PolicyKey,
    },
    IpSetRemove {
        id: String,
    },
    PoolUpdate {
        cidr: IpNet,
        pool: syncer_common::model::values::IpPool,
    },
    PoolRemove {
        cidr: IpNet,
    },
    /// Every node's addresses, this one's included.
    HostUpdate {
        node: String,
        host: Host,
    },
    HostRemove {
        node: String,
    },
    /// Addresses of Services: what no proxy has translated is not to be routed back out.
    ServiceCidrs(BTreeSet<IpNet>),
    /// What routing needs to know of this node itself.
    OwnNode(OwnNode),
    RouteRemove {
        dst: IpNet,
    },
    VtepRemove {
        node: String,
        family: Family,
    },
    /// The end of another node's VXLAN tunnel.
    VtepUpdate {
        node: String,
        family: Family,
        vtep: Vtep,
    },
    /// How a block of the pools, or a single address of one, is reached from here.
    RouteUpdate {
        dst: IpNet,
        route: Route,
    },
}

/// Members are text as `ipset` takes it: `10.0.0.1`, `10.0.0.0/8`, `10.0.0.1,tcp:80`. A set holds both
/// families; the dataplane splits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpSetKind {
    Ip,
    IpAndPort,
    Net,
}

/// A rule whose selectors have become IP sets. Fields as in `conformance/iptables_rules.json`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    pub action: String,
    /// 4, 6, or 0 for both.
    pub ip_version: u32,
    pub protocol: Option<Protocol>,
    pub src_nets: Vec<String>,
    pub src_ports: Vec<(u16, u16)>,
    pub src_named_port_ip_set_ids: Vec<String>,
    pub dst_nets: Vec<String>,
    pub dst_ports: Vec<(u16, u16)>,
    pub dst_named_port_ip_set_ids: Vec<String>,
    pub icmp: Option<Icmp>,
    pub src_ip_set_ids: Vec<String>,
    pub dst_ip_set_ids: Vec<String>,
    pub dst_ip_port_set_ids: Vec<String>,
    pub not_protocol: Option<Protocol>,
    pub not_src_nets: Vec<String>,
    pub not_src_ports: Vec<(u16, u16)>,
    pub not_src_named_port_ip_set_ids: Vec<String>,
    pub not_dst_nets: Vec<String>,
    pub not_dst_ports: Vec<(u16, u16)>,
    pub not_dst_named_port_ip_set_ids: Vec<String>,
    pub not_icmp: Option<Icmp>,
    pub not_src_ip_set_ids: Vec<String>,
    pub not_dst_ip_set_ids: Vec<String>,
    /// Become comments in the kernel.
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    Number(u8),
    /// Lower case: tcp, udp, icmp, icmpv6, sctp, udplite.
    Name(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    pub icmp_type: u8,
    pub code: Option<u8>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ActivePolicy {
    pub tier: String,
    pub namespace: String,
    /// Shared: the graph keeps what it said, and so does whoever was told.
    pub inbound: Arc<[Rule]>,
    pub outbound: Arc<[Rule]>,
    pub untracked: bool,
    pub pre_dnat: bool,
    /// As written in the datastore: adjacent policies with equal selectors share a group chain.
    pub original_selector: String,
    /// The hint AssumeNeededOnEveryNode: program the chains even when no local endpoint uses them.
    pub always_needed: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ActiveProfile {
    pub inbound: Arc<[Rule]>,
    pub outbound: Arc<[Rule]>,
}

/// Policies of one tier that apply to an endpoint, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tier {
    pub name: String,
    /// `Deny` or `Pass`.
    pub default_action: String,
    pub ingress: Vec<PolicyRef>,
    pub egress: Vec<PolicyRef>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PolicyRef {
    pub key: PolicyKey,
    pub original_selector: String,
}

/// A local workload endpoint with what applies to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkloadEndpoint {
    pub active: bool,
    pub interface: String,
    pub mac: String,
    pub profile_ids: Vec<String>,
    pub ipv4_nets: Vec<IpNet>,
    pub ipv6_nets: Vec<IpNet>,
    pub allow_spoofed_source_prefixes: Vec<IpNet>,
    pub nats: Vec<Nat>,
    pub ingress_limits: QosLimits,
    pub egress_limits: QosLimits,
    /// 0 to 63, for what leaves the cluster.
    pub dscp: Option<u8>,
    pub tiers: Vec<Tier>,
}

/// A floating address of a workload, and the workload's own behind it, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nat {
    pub external: IpAddr,
    pub internal: IpAddr,
}

/// Limits on one direction of a workload; zero for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QosLimits {
    /// Packets a second.
    pub packet_rate: u64,
    pub packet_burst: u64,
    pub max_connections: u64,
}

/// A local host endpoint with what applies to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostEndpoint {
    /// Interface, `*`, or empty when the expected addresses decide.
    pub name: String,
    pub expected_ips: Vec<IpAddr>,
    /// 0 to 63, for what leaves the cluster from the expected addresses.
    pub dscp: Option<u8>,
    pub profile_ids: Vec<String>,
    pub tiers: Vec<Tier>,
    pub untracked_tiers: Vec<Tier>,
    pub pre_dnat_tiers: Vec<Tier>,
    pub forward_tiers: Vec<Tier>,
}

/// A node's addresses, as routing and the built-in IP sets need them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Host {
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// This node's addresses, and its own ends of tunnels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnNode {
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    pub vxlan_v4: Option<Vtep>,
    pub vxlan_v6: Option<Vtep>,
    /// The address of `tunl0`.
    pub ipip: Option<Ipv4Addr>,
}

/// One end of VXLAN tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vtep {
    /// The node's own address, which tunnel packets go to.
    pub node_ip: IpAddr,
    /// The address within the pools.
    pub tunnel_ip: IpAddr,
    pub mac: [u8; 6],
}

/// What the pool of a route says about encapsulation. It also decides who writes the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    None,
    Vxlan,
    IpIp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub encapsulation: Encapsulation,
    pub hop: Hop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// An own block: addresses that no workload has lead nowhere, rather than out by the default route.
    Blackhole,
    /// Over the fabric, to this address of the node.
    Node(IpAddr),
    /// Through the tunnel, to this address: the tunnel's for VXLAN, the node's for IP-in-IP.
    Tunnel(IpAddr),
}
