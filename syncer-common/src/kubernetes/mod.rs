//! Kubernetes' objects and Calico's model: pure conversions, one object at a time.
//!
//! What the API server holds becomes what Calico's etcd would hold: a path under `/calico/` and the JSON of a
//! v3 resource (IPAM objects: of their old v1 form). So everything behind the datastore's client is the same
//! for every datastore. Pods become WorkloadEndpoints, namespaces and service accounts Profiles, nodes Nodes,
//! Kubernetes' own policies KubernetesNetworkPolicy and KubernetesClusterNetworkPolicy; custom resources of
//! either group become the resource they carry.

use crate::apis::FieldError;

/// Which group serves Calico's custom resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApiGroup {
    /// `crd.projectcalico.org/v1`: the resource is wrapped (metadata in an annotation, other uids).
    V1,
    /// `projectcalico.org/v3`, as custom resources or from Calico's own API server: used as they are.
    V3,
}

/// An endpoint of the API.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ApiResource {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    /// Path segment: `pods`.
    pub plural: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
}

/// Settings that change what an object becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub group: ApiGroup,
    /// Blocks come from `Node.spec.podCIDR` instead of Calico's IPAM.
    pub use_pod_cidr: bool,
    /// First prefix of the names of workload interfaces.
    pub interface_prefix: String,
}

impl Default for Options {
    fn default() -> Self {
        Options { group: ApiGroup::V1, use_pod_cidr: false, interface_prefix: "cali".into() }
    }
}

/// What an object of the API becomes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Read {
    /// Path in Calico's key space. Always known, also for an object that does not count.
    pub path: String,
    /// The value. `None`: the object is none of ours (a pod with the host's network, a pod without a node):
    /// whatever was at the path is deleted.
    pub value: Option<Vec<u8>>,
    /// Parts that could not be used. Beside a value: the rest of the object is used.
    pub findings: Vec<FieldError>,
}
