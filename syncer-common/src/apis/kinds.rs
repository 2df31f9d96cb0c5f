//! The kinds of v3 resources: names an operator may type, list kinds, and the parts of a path.

use crate::model::ResourceKind;

/// What every v3 resource carries as `apiVersion`.
pub const API_VERSION: &str = "projectcalico.org/v3";
/// Old `apiVersion` of the custom resources that hold the same objects in Kubernetes.
pub const CRD_API_VERSION: &str = "crd.projectcalico.org/v1";

/// A kind of resource that can be written in a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiKind {
    /// `IPPool`
    pub kind: &'static str,
    /// Path segment and plural name: `ippools`.
    pub plural: &'static str,
    pub namespaced: bool,
    /// Short names, lower case, each also accepted with an `s` at the end.
    pub aliases: &'static [&'static str],
}

const fn global(kind: &'static str, plural: &'static str, aliases: &'static [&'static str]) -> ApiKind {
    ApiKind { kind, plural, namespaced: false, aliases }
}

const fn in_namespace(kind: &'static str, plural: &'static str, aliases: &'static [&'static str]) -> ApiKind {
    ApiKind { kind, plural, namespaced: true, aliases }
}

const KINDS: [ApiKind; 26] = [
    global("BGPConfiguration", "bgpconfigurations", &["bgpconfig"]),
    global("BGPFilter", "bgpfilters", &[]),
    global("BGPPeer", "bgppeers", &["bgpp"]),
    global("BlockAffinity", "blockaffinities", &["affinity", "affinities"]),
    global("CalicoNodeStatus", "caliconodestatuses", &["caliconodestatus", "nodestatus"]),
    global("ClusterInformation", "clusterinformations", &["clusterinfo"]),
    global("FelixConfiguration", "felixconfigurations", &["felixconfig", "fconfig"]),
    global("GlobalNetworkPolicy", "globalnetworkpolicies", &["gnp"]),
    global("GlobalNetworkSet", "globalnetworksets", &["gns", "globalnetset", "gnetset"]),
    global("HostEndpoint", "hostendpoints", &["hep"]),
    global("IPAMBlock", "ipamblocks", &["block"]),
    global("IPAMConfig", "ipamconfigs", &["ipamconfiguration"]),
    global("IPAMHandle", "ipamhandles", &["handle"]),
    global("IPPool", "ippools", &["ipp", "pool"]),
    global("IPReservation", "ipreservations", &["ipr"]),
    global("KubeControllersConfiguration", "kubecontrollersconfigurations", &["kubecontrollersconfig"]),
    in_namespace("LiveMigration", "livemigrations", &[]),
    in_namespace("NetworkPolicy", "networkpolicies", &["np", "policy", "policies", "pol"]),
    in_namespace("NetworkSet", "networksets", &["netset"]),
    global("Node", "nodes", &["no"]),
    global("Profile", "profiles", &["pro"]),
    global("StagedGlobalNetworkPolicy", "stagedglobalnetworkpolicies", &["sgnp"]),
    in_namespace("StagedKubernetesNetworkPolicy", "stagedkubernetesnetworkpolicies", &["sknp"]),
    in_namespace("StagedNetworkPolicy", "stagednetworkpolicies", &["snp"]),
    global("Tier", "tiers", &[]),
    in_namespace("WorkloadEndpoint", "workloadendpoints", &["wep"]),
];

impl ApiKind {
    pub fn all() -> impl Iterator<Item = &'static ApiKind> {
        KINDS.iter()
    }

    /// By the `kind` of a manifest, exactly as written there. `IPAMConfiguration` is the newer name of
    /// `IPAMConfig`.
    pub fn by_kind(kind: &str) -> Option<&'static ApiKind> {
        let kind = if kind == "IPAMConfiguration" { "IPAMConfig" } else { kind };
        KINDS.iter().find(|known| known.kind == kind)
    }

    /// By what an operator types: kind, plural or short name, in any case.
    pub fn by_name(name: &str) -> Option<&'static ApiKind> {
        let name = name.to_ascii_lowercase();
        let singular = name.strip_suffix('s').unwrap_or(&name);
        KINDS.iter().find(|known| {
            let kind = known.kind.to_ascii_lowercase();
            kind == name
                || kind == singular
                || known.plural == name
                || known.aliases.iter().any(|alias| *alias == name || *alias == singular)
        })
    }

    /// `IPPoolList`
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// Whether the datastore keeps it under `/calico/resources/v3/`; IPAM objects have old paths of their own.
    pub fn is_v3_stored(&self) -> bool {
        !matches!(self.kind, "IPAMBlock" | "BlockAffinity" | "IPAMHandle" | "IPAMConfig")
            && ResourceKind::by_kind(self.kind).is_some()
    }

    /// Policies whose stored form remembers the name in an annotation.
    pub fn has_name_annotation(&self) -> bool {
        matches!(
            self.kind,
            "NetworkPolicy" | "GlobalNetworkPolicy" | "StagedNetworkPolicy" | "StagedGlobalNetworkPolicy"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_names_find_their_kind() {
        for (typed, kind) in [
            ("ippool", "IPPool"),
            ("IPPools", "IPPool"),
            ("pool", "IPPool"),
            ("pools", "IPPool"),
            ("node", "Node"),
            ("no", "Node"),
            ("bgpPeer", "BGPPeer"),
            ("workloadEndpoint", "WorkloadEndpoint"),
            ("weps", "WorkloadEndpoint"),
            ("gnp", "GlobalNetworkPolicy"),
            ("policy", "NetworkPolicy"),
            ("networkPolicies", "NetworkPolicy"),
            ("tier", "Tier"),
            ("ipamconfiguration", "IPAMConfig"),
        ] {
            assert_eq!(ApiKind::by_name(typed).map(|known| known.kind), Some(kind), "{typed}");
        }
        assert_eq!(ApiKind::by_name("pods"), None);
    }

    #[test]
    fn names_are_unambiguous() {
        let mut seen = std::collections::BTreeMap::new();
        for known in ApiKind::all() {
            for name in known.aliases.iter().copied().chain([known.plural]) {
                assert_eq!(seen.insert(name, known.kind), None, "{name}");
            }
        }
    }

    #[test]
    fn plurals_are_those_of_the_model() {
        for known in ApiKind::all() {
            if let Some(model) = ResourceKind::by_kind(known.kind) {
                assert_eq!((model.plural, model.namespaced), (known.plural, known.namespaced));
            }
        }
    }
}
