//! Objects of a manifest as today's resources, whatever form they are written in: the resources of Calico 2
//! (`apiVersion: v1`), the custom resources of a Kubernetes datastore (`crd.projectcalico.org/v1`), and, where
//! that is asked for, the network policies of Kubernetes.

use serde_json::Value;
use syncer_common::apis::{ApiKind, FieldError, Resource, v1};
use syncer_common::kubernetes::{self, ApiResource, Options};
use syncer_common::manifests::{DocumentError, Object};

const CUSTOM: &str = "crd.projectcalico.org/v1";
/// Their copies in a datastore that is not Kubernetes have always been called so.
const KUBERNETES_POLICY_PREFIX: &str = "knp.default.";

/// Which forms are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forms {
    /// Calico's own, of any age.
    Calico,
    /// Kubernetes' policies, too.
    All,
}

/// The resources of one object, and what an operator should know about how they came to be.
pub fn read(
    object: &Object,
    namespace: &str,
    forms: Forms,
) -> Result<(Vec<Resource>, Vec<String>), DocumentError> {
    if v1::is_old(&object.value) {
        let upgraded = v1::upgrade(object.value.clone()).map_err(|error| object.error(error))?;
        return Ok((upgraded.resources, upgraded.warnings));
    }
    if let Some(resource) = api_resource(&object.value, forms) {
        return converted(&resource, object, namespace).map_err(|error| object.error(error));
    }
    Ok((vec![object.resource(namespace)?], Vec::new()))
}

/// What the API calls the kind of an object, if it is one that needs conversion.
fn api_resource(object: &Value, forms: Forms) -> Option<ApiResource> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let policy = matches!(kind, "NetworkPolicy" | "ClusterNetworkPolicy");
    // As they are in a manifest for today's form: nothing to convert, and read more strictly.
    let wrapped = object.pointer("/metadata/annotations/projectcalico.org~1metadata").is_some();
    let asked = version == CUSTOM && wrapped || forms == Forms::All && policy && version.contains("k8s.io/");
    let all = || kubernetes::resources_under("/calico/", &Options::default()).into_iter();
    asked.then(|| all().find(|known| known.api_version() == version && known.kind == kind))?
}

fn converted(
    resource: &ApiResource,
    object: &Object,
    namespace: &str,
) -> Result<(Vec<Resource>, Vec<String>), FieldError> {
    let mut value = object.value.clone();
    if let (true, Some(metadata)) = (resource.namespaced, value["metadata"].as_object_mut()) {
        metadata.entry("namespace").or_insert_with(|| namespace.into());
    }
    let read = kubernetes::read(resource, &Options::default(), value.to_string().as_bytes())?;
    let Some(stored) = read.value else {
        let field = read.findings.into_iter().next();
        return Err(
            field.unwrap_or_else(|| FieldError::new("spec", "means nothing that Calico has a form for"))
        );
    };
    let mut converted = Resource::from_stored(&read.path, &stored)?;
    let name = match converted.kind.as_str() {
        "KubernetesNetworkPolicy" => Some(("NetworkPolicy", KUBERNETES_POLICY_PREFIX.to_owned())),
        "KubernetesClusterNetworkPolicy" => {
            let tier = converted.spec.get("tier").and_then(Value::as_str).unwrap_or("default");
            Some(("GlobalNetworkPolicy", format!("{tier}.")))
        }
        _ => None,
    };
    if let Some((kind, prefix)) = name {
        converted.kind = ApiKind::by_kind(kind).map_or(kind, |known| known.kind).to_owned();
        converted.metadata.name.insert_str(0, &prefix);
        let name = converted.metadata.name.clone();
        converted.set_stored_name(&name);
    }
    let id = converted.id();
    let warnings = read.findings.iter().map(|finding| format!("{id}: {finding}")).collect();
    Ok((vec![converted], warnings))
}
