//! Kubernetes' objects and Calico's model: pure conversions, one object at a time.
//!
//! What the API server holds becomes what Calico's etcd would hold: a path under `/calico/` and the JSON of a
//! v3 resource (IPAM objects: of their old v1 form). So everything behind the datastore's client is the same
//! for every datastore. Pods become WorkloadEndpoints, namespaces and service accounts Profiles, nodes Nodes,
//! Kubernetes' own policies KubernetesNetworkPolicy and KubernetesClusterNetworkPolicy; custom resources of
//! either group become the resource they carry.

//!
//! An object that cannot be read is an error that names the field: it exists, and nothing is known of it. Parts
//! that cannot be used are findings beside the value. Where Calico itself would let a part that it cannot read
//! match everything, it matches nothing here.

mod cluster_network_policy;
mod custom;
mod ipam;
mod label_selector;
mod live_migration;
mod network_policy;
mod node;
mod object;
mod pod;
mod policy;
mod profile;
mod qos;
mod quantity;
mod raw;
mod resources;
mod secret;
mod uid;

use crate::apis::{ApiKind, FieldError};
use crate::model::{Key, ResourceKey};
use crate::processors::split_workload_name;

pub use ipam::{affinity_name, block_name, handle_name, host_hash};
pub use network_policy::{Spec as NetworkPolicySpec, convert as convert_network_policy};
pub use pod::{endpoint_name, interface_name};
pub use policy::PolicySpec;
pub use secret::{SecretTexts, secret_texts};
pub use uid::twin as twin_uid;

use resources::Form;

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

impl ApiResource {
    /// As objects carry it: `v1`, `networking.k8s.io/v1`.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }
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
    /// The object's own revision, which is no part of the value.
    pub resource_version: String,
}

/// Which object of the API a path stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    pub resource: ApiResource,
    /// Only of namespaced resources.
    pub namespace: Option<String>,
    pub name: String,
}

/// An object to be sent to the API.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub resource: ApiResource,
    /// Only of namespaced resources.
    pub namespace: Option<String>,
    pub name: String,
    /// Complete, except for the revision.
    pub object: serde_json::Value,
}

/// What is to be listed and watched for agents.
pub fn watched(options: &Options) -> Vec<ApiResource> {
    let all = resources::all(options);
    all.filter(|(_, form)| resources::is_watched(*form, options)).map(|(resource, _)| resource).collect()
}

/// Converts an object of `resource`, as the API server sends it.
pub fn read(resource: &ApiResource, options: &Options, object: &[u8]) -> Result<Read, FieldError> {
    match form(resource)? {
        Form::Pod => pod::read(object, options),
        Form::Node => node::read(object, options),
        Form::Namespace => profile::read_namespace(object),
        Form::ServiceAccount => profile::read_service_account(object),
        Form::NetworkPolicy => network_policy::read(object),
        Form::ClusterNetworkPolicy => cluster_network_policy::read(object),
        Form::LiveMigration => live_migration::read(object),
        Form::Raw(kind) => raw::read(kind, resource, object),
        Form::Custom(kind) => custom::read(kind, options.group, object),
        Form::Ipam(kind) => ipam::read(kind, object),
    }
}

/// The path of an object, also where it does not read otherwise: of one that was deleted, or of one to report.
pub fn path(resource: &ApiResource, _options: &Options, object: &[u8]) -> Option<String> {
    match form(resource).ok()? {
        Form::Pod => pod::path(object),
        Form::Node => node::path(object),
        Form::Namespace => profile::namespace_path(object),
        Form::ServiceAccount => profile::service_account_path(object),
        Form::NetworkPolicy => network_policy::path(object),
        Form::ClusterNetworkPolicy => cluster_network_policy::path(object),
        Form::LiveMigration => live_migration::path(object),
        Form::Raw(kind) => raw::path(kind, object),
        Form::Custom(kind) => custom::path(kind, object),
        Form::Ipam(kind) => ipam::path(kind, object),
    }
    .ok()
}

fn form(resource: &ApiResource) -> Result<Form, FieldError> {
    let unknown = || {
        let reason = format!("{} of {} are not read", resource.plural, resource.api_version());
        FieldError::new("kind", reason)
    };
    resources::form(resource).ok_or_else(unknown)
}

/// What of a Node's value Kubernetes keeps in annotations of its own object; null where there is none.
pub fn node_annotations(value: &[u8]) -> Result<serde_json::Map<String, serde_json::Value>, FieldError> {
    node::annotations(value)
}

/// The object that is at `path`, if any can be.
pub fn locate(path: &str, options: &Options) -> Option<Located> {
    let key = Key::parse_stored(path)?;
    if let Some(kind) = ipam::kind(&key) {
        let resource = resources::custom_resource(kind, options.group);
        return Some(Located { resource, namespace: None, name: ipam::name(&key)? });
    }
    let Key::Resource(key) = key else { return None };
    if key.name.is_empty() {
        return None;
    }
    let (form, namespace, name) = match key.kind.as_str() {
        "Node" => (Form::Node, None, key.name),
        "Profile" => locate_profile(&key.name)?,
        "WorkloadEndpoint" => {
            let [_, orchestrator, pod, endpoint] = split_workload_name(&key.name)?;
            let is_pod = orchestrator == pod::ORCHESTRATOR && endpoint == pod::ENDPOINT;
            is_pod.then_some((Form::Pod, Some(key.namespace), pod))?
        }
        network_policy::KIND => (Form::NetworkPolicy, Some(key.namespace), key.name),
        cluster_network_policy::KIND => (Form::ClusterNetworkPolicy, None, key.name),
        live_migration::KIND => (Form::LiveMigration, Some(key.namespace), key.name),
        kind => match resources::raw(kind) {
            Some(form) => (form, Some(key.namespace), key.name),
            None => return locate_custom(key, options),
        },
    };
    Some(Located { resource: resources::of_form(form), namespace, name })
}

fn locate_custom(key: ResourceKey, options: &Options) -> Option<Located> {
    let kind = custom_kind(&key)?;
    let namespace = kind.namespaced.then_some(key.namespace);
    Some(Located { resource: resources::custom_resource(kind, options.group), namespace, name: key.name })
}

/// Namespaces have no dots in their names; service accounts may.
fn locate_profile(name: &str) -> Option<(Form, Option<String>, String)> {
    if let Some(namespace) = name.strip_prefix(profile::NAMESPACE_PREFIX) {
        return (!namespace.is_empty()).then(|| (Form::Namespace, None, namespace.to_owned()));
    }
    let (namespace, name) = name.strip_prefix(profile::SERVICE_ACCOUNT_PREFIX)?.split_once('.')?;
    let named = !namespace.is_empty() && !name.is_empty();
    named.then(|| (Form::ServiceAccount, Some(namespace.to_owned()), name.to_owned()))
}

/// The kind of a key whose resource is kept in a custom resource.
fn custom_kind(key: &ResourceKey) -> Option<&'static ApiKind> {
    let kind = ApiKind::by_kind(&key.kind)?;
    resources::is_custom(kind).then_some(kind)
}

/// The resources whose objects may have keys that start with `prefix`, watched or not.
pub fn resources_under(prefix: &str, options: &Options) -> Vec<ApiResource> {
    let overlaps = |root: &String| root.starts_with(prefix) || prefix.starts_with(root.as_str());
    let all = resources::all(options);
    all.filter(|(_, form)| resources::roots(*form).iter().any(overlaps))
        .map(|(resource, _)| resource)
        .collect()
}

/// The object to send for the value of a path. What Kubernetes keeps in objects of its own is not written: it is
/// changed where it comes from.
pub fn write(path: &str, value: &[u8], options: &Options) -> Result<Written, FieldError> {
    let unknown = || FieldError::new("key", format!("{path} holds nothing that Kubernetes keeps"));
    let key = Key::parse_stored(path).ok_or_else(unknown)?;
    if ipam::kind(&key).is_some() {
        return ipam::write(&key, path, value, options);
    }
    let Key::Resource(key) = key else { return Err(unknown()) };
    match custom_kind(&key) {
        Some(kind) if !key.name.is_empty() => custom::write(kind, key, value, options),
        _ => Err(match locate(path, options) {
            None => unknown(),
            Some(Located { resource, name, .. }) => {
                let reason =
                    format!("{} comes from the {} {name}: change that instead", key.kind, resource.kind);
                FieldError::new("kind", reason)
            }
        }),
    }
}
