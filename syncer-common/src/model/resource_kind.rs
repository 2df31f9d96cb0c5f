//! The v3 resource kinds that have a place in the datastore: plural, and whether they have a namespace.

use super::ResourceKey;

/// One kind of v3 resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceKind {
    pub kind: &'static str,
    /// The path segment, lower case.
    pub plural: &'static str,
    pub namespaced: bool,
}

const fn cluster_wide(kind: &'static str, plural: &'static str) -> ResourceKind {
    ResourceKind { kind, plural, namespaced: false }
}

const fn namespaced(kind: &'static str, plural: &'static str) -> ResourceKind {
    ResourceKind { kind, plural, namespaced: true }
}

const KINDS: [ResourceKind; 29] = [
    cluster_wide("BGPConfiguration", "bgpconfigurations"),
    cluster_wide("BGPFilter", "bgpfilters"),
    cluster_wide("BGPPeer", "bgppeers"),
    cluster_wide("BlockAffinity", "blockaffinities"),
    cluster_wide("CalicoNodeStatus", "caliconodestatuses"),
    cluster_wide("ClusterInformation", "clusterinformations"),
    cluster_wide("FelixConfiguration", "felixconfigurations"),
    cluster_wide("GlobalNetworkPolicy", "globalnetworkpolicies"),
    cluster_wide("GlobalNetworkSet", "globalnetworksets"),
    cluster_wide("HostEndpoint", "hostendpoints"),
    cluster_wide("IPAMConfig", "ipamconfigs"),
    cluster_wide("IPAMConfiguration", "ipamconfigurations"),
    cluster_wide("IPPool", "ippools"),
    cluster_wide("IPReservation", "ipreservations"),
    cluster_wide("KubeControllersConfiguration", "kubecontrollersconfigurations"),
    cluster_wide("KubernetesClusterNetworkPolicy", "kubernetesclusternetworkpolicies"),
    namespaced("KubernetesEndpointSlice", "kubernetesendpointslices"),
    namespaced("KubernetesNetworkPolicy", "kubernetesnetworkpolicies"),
    namespaced("KubernetesService", "kubernetesservice"),
    namespaced("LiveMigration", "livemigrations"),
    namespaced("NetworkPolicy", "networkpolicies"),
    namespaced("NetworkSet", "networksets"),
    cluster_wide("Node", "nodes"),
    cluster_wide("Profile", "profiles"),
    cluster_wide("StagedGlobalNetworkPolicy", "stagedglobalnetworkpolicies"),
    namespaced("StagedKubernetesNetworkPolicy", "stagedkubernetesnetworkpolicies"),
    namespaced("StagedNetworkPolicy", "stagednetworkpolicies"),
    cluster_wide("Tier", "tiers"),
    namespaced("WorkloadEndpoint", "workloadendpoints"),
];

impl ResourceKind {
    /// Every kind.
    pub fn all() -> impl Iterator<Item = &'static ResourceKind> {
        KINDS.iter()
    }

    /// By kind name, in any case.
    pub fn by_kind(kind: &str) -> Option<&'static ResourceKind> {
        KINDS.iter().find(|known| known.kind.eq_ignore_ascii_case(kind))
    }

    /// By path segment, which is lower case.
    pub fn by_plural(plural: &str) -> Option<&'static ResourceKind> {
        KINDS.iter().find(|known| known.plural == plural)
    }
}

impl ResourceKey {
    pub(super) fn is_namespaced(&self) -> bool {
        ResourceKind::by_kind(&self.kind).map_or(!self.namespace.is_empty(), |known| known.namespaced)
    }
}
