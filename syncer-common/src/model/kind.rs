//! Kinds of entries on the wire: what a stream subscribes to and what is in sync, kind by kind.

use super::Key;

/// A kind of entry. The names are those that hellos, snapshots and status messages carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    ReadyFlag,
    GlobalConfig,
    HostConfig,
    Tier,
    Policy,
    ProfileRules,
    ProfileLabels,
    NetworkSet,
    WorkloadEndpoint,
    HostEndpoint,
    IpPool,
    Block,
    BlockAffinity,
    Node,
    FelixConfiguration,
    BgpConfiguration,
    BgpPeer,
    BgpFilter,
    Wireguard,
    Service,
    EndpointSlice,
    CalicoNodeStatus,
    LiveMigration,
}

impl Kind {
    pub const ALL: [Kind; 23] = [
        Kind::ReadyFlag,
        Kind::GlobalConfig,
        Kind::HostConfig,
        Kind::Tier,
        Kind::Policy,
        Kind::ProfileRules,
        Kind::ProfileLabels,
        Kind::NetworkSet,
        Kind::WorkloadEndpoint,
        Kind::HostEndpoint,
        Kind::IpPool,
        Kind::Block,
        Kind::BlockAffinity,
        Kind::Node,
        Kind::FelixConfiguration,
        Kind::BgpConfiguration,
        Kind::BgpPeer,
        Kind::BgpFilter,
        Kind::Wireguard,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::CalicoNodeStatus,
        Kind::LiveMigration,
    ];

    /// What felix reads. BGP configuration: ranges of Services that must not loop. Rules of Services need their slices only.
    pub const FELIX: [Kind; 16] = [
        Kind::ReadyFlag,
        Kind::GlobalConfig,
        Kind::HostConfig,
        Kind::Tier,
        Kind::Policy,
        Kind::ProfileRules,
        Kind::ProfileLabels,
        Kind::NetworkSet,
        Kind::WorkloadEndpoint,
        Kind::HostEndpoint,
        Kind::IpPool,
        Kind::Block,
        Kind::Node,
        Kind::FelixConfiguration,
        Kind::BgpConfiguration,
        Kind::EndpointSlice,
    ];

    /// What confd reads.
    pub const CONFD: [Kind; 9] = [
        Kind::IpPool,
        Kind::BlockAffinity,
        Kind::Node,
        Kind::BgpConfiguration,
        Kind::BgpPeer,
        Kind::BgpFilter,
        Kind::Wireguard,
        Kind::Service,
        Kind::EndpointSlice,
    ];

    /// What the part of a node that reports about itself reads.
    pub const NODE_STATUS: [Kind; 1] = [Kind::CalicoNodeStatus];

    /// The kinds that an agent's name stands for; all of them for a name we do not know.
    pub fn for_agent(agent: &str) -> &'static [Kind] {
        match agent {
            "felix" => &Self::FELIX,
            "confd" => &Self::CONFD,
            "node-status" => &Self::NODE_STATUS,
            _ => &Self::ALL,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::ReadyFlag => "ReadyFlag",
            Kind::GlobalConfig => "GlobalConfig",
            Kind::HostConfig => "HostConfig",
            Kind::Tier => "Tier",
            Kind::Policy => "Policy",
            Kind::ProfileRules => "ProfileRules",
            Kind::ProfileLabels => "ProfileLabels",
            Kind::NetworkSet => "NetworkSet",
            Kind::WorkloadEndpoint => "WorkloadEndpoint",
            Kind::HostEndpoint => "HostEndpoint",
            Kind::IpPool => "IPPool",
            Kind::Block => "Block",
            Kind::BlockAffinity => "BlockAffinity",
            Kind::Node => "Node",
            Kind::FelixConfiguration => "FelixConfiguration",
            Kind::BgpConfiguration => "BGPConfiguration",
            Kind::BgpPeer => "BGPPeer",
            Kind::BgpFilter => "BGPFilter",
            Kind::Wireguard => "Wireguard",
            Kind::Service => "KubernetesService",
            Kind::EndpointSlice => "KubernetesEndpointSlice",
            Kind::CalicoNodeStatus => "CalicoNodeStatus",
            Kind::LiveMigration => "LiveMigration",
        }
    }

    pub fn from_name(name: &str) -> Option<Kind> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kind of a key; `None` for keys that never travel.
    pub fn of(key: &Key) -> Option<Kind> {
        Some(match key {
            Key::ReadyFlag => Kind::ReadyFlag,
            Key::GlobalConfig { .. } => Kind::GlobalConfig,
            Key::HostConfig { .. } => Kind::HostConfig,
            Key::Tier { .. } => Kind::Tier,
            Key::Policy(_) => Kind::Policy,
            Key::ProfileRules { .. } => Kind::ProfileRules,
            Key::ProfileLabels { .. } => Kind::ProfileLabels,
            Key::NetworkSet { .. } => Kind::NetworkSet,
            Key::WorkloadEndpoint(_) => Kind::WorkloadEndpoint,
            Key::HostEndpoint(_) => Kind::HostEndpoint,
            Key::IpPool { .. } => Kind::IpPool,
            Key::Block { .. } => Kind::Block,
            Key::BlockAffinity(_) => Kind::BlockAffinity,
            Key::Wireguard { .. } => Kind::Wireguard,
            Key::Resource(resource) => match resource.kind.as_str() {
                "Node" => Kind::Node,
                "FelixConfiguration" => Kind::FelixConfiguration,
                "BGPConfiguration" => Kind::BgpConfiguration,
                "BGPPeer" => Kind::BgpPeer,
                "BGPFilter" => Kind::BgpFilter,
                "KubernetesService" => Kind::Service,
                "KubernetesEndpointSlice" => Kind::EndpointSlice,
                "CalicoNodeStatus" => Kind::CalicoNodeStatus,
                "LiveMigration" => Kind::LiveMigration,
                _ => return None,
            },
            _ => return None,
        })
    }
}
