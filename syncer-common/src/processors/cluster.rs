//! The description of the cluster: the ready flag, and what else goes into configuration. What its nodes are
//! asked to report.

use proto::model as v1;

use crate::apis::bgp::ClusterInformationSpec;
use crate::apis::operations::CalicoNodeStatusSpec;
use crate::apis::{FieldError, Resource};
use crate::model::{Key, ResourceKey, Update, Value};

/// Where the parameters of a configuration object of this name apply.
pub(super) enum Target<'a> {
    Everywhere,
    Host(&'a str),
    /// By a selector of the object.
    Selected,
}

impl<'a> Target<'a> {
    pub fn of(name: &'a str) -> Self {
        match (name, name.strip_prefix("node.")) {
            ("default", _) => Target::Everywhere,
            (_, Some(host)) if !host.is_empty() => Target::Host(host),
            _ => Target::Selected,
        }
    }

    pub fn key(&self, parameter: &str) -> Option<Key> {
        let name = parameter.to_owned();
        match self {
            Target::Everywhere => Some(Key::GlobalConfig { name }),
            Target::Host(host) => Some(Key::HostConfig { host: (*host).to_owned(), name }),
            Target::Selected => None,
        }
    }
}

/// The parameters that are given here, and nowhere else.
pub(super) const PARAMETERS: [&str; 4] = ["CalicoVersion", "ClusterGUID", "ClusterType", "Variant"];

pub(super) fn convert(key: &ResourceKey, resource: &Resource) -> Result<Vec<Update>, FieldError> {
    let spec: ClusterInformationSpec = resource.typed_spec()?;
    let target = Target::of(&key.name);
    let mut updates = Vec::new();
    if let (Target::Everywhere, Some(ready)) = (&target, spec.datastore_ready) {
        updates.push(Update::set(Key::ReadyFlag, Value::Ready(ready)));
    }
    let values = [spec.calico_version, spec.cluster_guid, spec.cluster_type, spec.variant];
    for (parameter, value) in PARAMETERS.into_iter().zip(values) {
        if let (Some(key), false) = (target.key(parameter), value.is_empty()) {
            updates.push(Update::set(key, Value::Config(value)));
        }
    }
    Ok(updates)
}

pub(super) fn convert_node_status(key: &ResourceKey, resource: &Resource) -> Result<Update, FieldError> {
    let CalicoNodeStatusSpec { node, classes, update_period_seconds } = resource.typed_spec()?;
    let status = v1::CalicoNodeStatus { node, classes, update_period_seconds };
    Ok(Update::set(Key::Resource(key.clone()), Value::CalicoNodeStatus(status)))
}
