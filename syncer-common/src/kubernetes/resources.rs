//! Which resources of the API there are, what they become, and where in Calico's key space.

use super::{ApiGroup, ApiResource, Options, profile};
use crate::apis::ApiKind;

const CRD_GROUP: &str = "crd.projectcalico.org";
const V3_GROUP: &str = "projectcalico.org";
const RESOURCE_ROOT: &str = "/calico/resources/v3/projectcalico.org/";

/// How the objects of a resource are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Pod,
    Node,
    Namespace,
    ServiceAccount,
    NetworkPolicy,
    ClusterNetworkPolicy,
    LiveMigration,
    /// Kept as it is, under a kind of its own.
    Raw(&'static str),
    /// A custom resource that holds a v3 resource.
    Custom(&'static ApiKind),
    /// A custom resource whose place in etcd is an old one.
    Ipam(&'static ApiKind),
}

const fn core(
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
) -> ApiResource {
    ApiResource { group, version, plural, kind, namespaced: true }
}

const fn cluster_wide(resource: ApiResource) -> ApiResource {
    ApiResource { namespaced: false, ..resource }
}

/// Those of others: Kubernetes' own, and KubeVirt's.
pub(super) const KUBERNETES: [(ApiResource, Form); 9] = [
    (core("", "v1", "pods", "Pod"), Form::Pod),
    (cluster_wide(core("", "v1", "nodes", "Node")), Form::Node),
    (cluster_wide(core("", "v1", "namespaces", "Namespace")), Form::Namespace),
    (core("", "v1", "serviceaccounts", "ServiceAccount"), Form::ServiceAccount),
    (core("", "v1", "services", "Service"), Form::Raw("KubernetesService")),
    (core("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"), Form::Raw("KubernetesEndpointSlice")),
    (core("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"), Form::NetworkPolicy),
    (
        cluster_wide(core(
            "policy.networking.k8s.io",
            "v1alpha2",
            "clusternetworkpolicies",
            "ClusterNetworkPolicy",
        )),
        Form::ClusterNetworkPolicy,
    ),
    (
        core("kubevirt.io", "v1", "virtualmachineinstancemigrations", "VirtualMachineInstanceMigration"),
        Form::LiveMigration,
    ),
];

/// Kinds of Calico that Kubernetes keeps in objects of its own.
const NOT_CUSTOM: [&str; 4] = ["Node", "Profile", "WorkloadEndpoint", "LiveMigration"];
/// Kept for allocators and controllers; nothing that agents read.
const NOT_WATCHED: [&str; 4] = ["IPAMHandle", "IPAMConfig", "IPReservation", "KubeControllersConfiguration"];

/// Everything that can be read and written.
pub(super) fn all(options: &Options) -> impl Iterator<Item = (ApiResource, Form)> + use<> {
    let group = options.group;
    let custom = ApiKind::all()
        .filter(|kind| !NOT_CUSTOM.contains(&kind.kind))
        .map(move |kind| (custom_resource(kind, group), custom_form(kind)));
    KUBERNETES.into_iter().chain(custom)
}

pub(super) fn is_watched(form: Form, options: &Options) -> bool {
    match form {
        Form::Ipam(kind) if kind.kind == "IPAMBlock" => !options.use_pod_cidr,
        Form::Ipam(kind) | Form::Custom(kind) => !NOT_WATCHED.contains(&kind.kind),
        _ => true,
    }
}

pub(super) fn custom_resource(kind: &ApiKind, group: ApiGroup) -> ApiResource {
    let (plural, name) = match (kind.kind, group) {
        ("IPAMConfig", ApiGroup::V3) => ("ipamconfigurations", "IPAMConfiguration"),
        _ => (kind.plural, kind.kind),
    };
    let (group, version) = match group {
        ApiGroup::V1 => (CRD_GROUP, "v1"),
        ApiGroup::V3 => (V3_GROUP, "v3"),
    };
    ApiResource { group, version, plural, kind: name, namespaced: kind.namespaced }
}

fn custom_form(kind: &'static ApiKind) -> Form {
    if kind.is_v3_stored() { Form::Custom(kind) } else { Form::Ipam(kind) }
}

/// Whether it is a v3 resource in a custom resource.
pub(super) fn is_custom(kind: &ApiKind) -> bool {
    kind.is_v3_stored() && !NOT_CUSTOM.contains(&kind.kind)
}

pub(super) fn raw(kind: &str) -> Option<Form> {
    let form = |(_, form)| matches!(form, Form::Raw(own) if own == kind).then_some(form);
    KUBERNETES.into_iter().find_map(form)
}

pub(super) fn form(resource: &ApiResource) -> Option<Form> {
    if matches!(resource.group, CRD_GROUP | V3_GROUP) {
        let kind = ApiKind::by_kind(resource.kind)?;
        return (!NOT_CUSTOM.contains(&kind.kind)).then(|| custom_form(kind));
    }
    KUBERNETES.iter().find(|(known, _)| known == resource).map(|(_, form)| *form)
}

pub(super) fn of_form(wanted: Form) -> ApiResource {
    let known = KUBERNETES.into_iter().find(|(_, form)| *form == wanted);
    known.map(|(resource, _)| resource).expect("every form of Kubernetes' own has a resource")
}

/// What the keys of a resource start with.
pub(super) fn roots(form: Form) -> Vec<String> {
    let below = |rest: &str| vec![format!("{RESOURCE_ROOT}{rest}")];
    match form {
        Form::Pod => below("workloadendpoints/"),
        Form::Node => below("nodes/"),
        Form::Namespace => below(&format!("profiles/{}", profile::NAMESPACE_PREFIX)),
        Form::ServiceAccount => below(&format!("profiles/{}", profile::SERVICE_ACCOUNT_PREFIX)),
        Form::NetworkPolicy => below("kubernetesnetworkpolicies/"),
        Form::ClusterNetworkPolicy => below("kubernetesclusternetworkpolicies/"),
        Form::LiveMigration => below("livemigrations/"),
        Form::Raw("KubernetesService") => below("kubernetesservice/"),
        Form::Raw(_) => below("kubernetesendpointslices/"),
        Form::Custom(kind) => below(&format!("{}/", kind.plural)),
        Form::Ipam(kind) => match kind.kind {
            "IPAMBlock" => vec!["/calico/ipam/v2/assignment/".to_owned()],
            "BlockAffinity" => {
                vec!["/calico/ipam/v2/host/".to_owned(), "/calico/ipam/v2/virtual/".to_owned()]
            }
            "IPAMHandle" => vec!["/calico/ipam/v2/handle/".to_owned()],
            _ => vec!["/calico/ipam/v2/config".to_owned()],
        },
    }
}
