//! KubeVirt's migrations of virtual machines, as LiveMigrations.

use serde::{Deserialize, Serialize};

use super::object::{Meta, Stored, StoredMeta, Text, parse, resource_path};
use super::{Read, pod};
use crate::apis::FieldError;

pub const KIND: &str = "LiveMigration";
/// From when a target pod may exist to when the machine runs in it alone. A failed one still counts: until the
/// migration is deleted the source has to be told that it keeps the address.
const COUNTING_PHASES: [&str; 6] =
    ["Scheduling", "Scheduled", "PreparingTarget", "TargetReady", "Running", "Failed"];
/// What KubeVirt puts on the pods of a machine, and on the target pod of a migration.
const MACHINE_LABEL: &str = "vmi.kubevirt.io/id";
const MIGRATION_LABEL: &str = "kubevirt.io/migrationJobUID";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Object<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
    spec: Spec<'a>,
    status: Status<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec<'a> {
    #[serde(borrow)]
    vmi_name: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status<'a> {
    #[serde(borrow)]
    phase: Text<'a>,
    migration_state: Option<State<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct State<'a> {
    #[serde(borrow)]
    source_pod: Text<'a>,
}

/// With the names that Go gives to fields without a tag: what others write to etcd.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Migration {
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    target: Target,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Source {
    workload: Workload,
}

#[derive(Debug, Serialize)]
struct Workload {
    #[serde(rename = "OrchestratorID")]
    orchestrator: &'static str,
    #[serde(rename = "WorkloadID")]
    id: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Target {
    selector: String,
}

pub(super) fn path(object: &[u8]) -> Result<String, FieldError> {
    let Object { metadata, .. } = parse(object)?;
    resource_path(KIND, &metadata.namespace, &metadata.name)
}

pub(super) fn read(object: &[u8]) -> Result<Read, FieldError> {
    let Object { metadata, spec, status } = parse(object)?;
    let path = resource_path(KIND, &metadata.namespace, &metadata.name)?;
    let resource_version = metadata.resource_version.to_string();
    let counts = COUNTING_PHASES.contains(&&*status.phase)
        && [&spec.vmi_name, &metadata.uid].iter().all(|part| !part.is_empty());
    if !counts {
        return Ok(Read { path, value: None, findings: Vec::new(), resource_version });
    }
    // Neither a name nor a uid can hold a quote.
    let selector =
        format!("{MACHINE_LABEL} == '{}' && {MIGRATION_LABEL} == '{}'", &*spec.vmi_name, &*metadata.uid);
    let source = status.migration_state.filter(|state| !state.source_pod.is_empty()).map(|state| {
        let id = format!("{}/{}", &*metadata.namespace, &*state.source_pod);
        Source { workload: Workload { orchestrator: pod::ORCHESTRATOR, id } }
    });
    let stored = StoredMeta {
        name: &metadata.name,
        namespace: &metadata.namespace,
        uid: &metadata.uid,
        creation_timestamp: &metadata.creation_timestamp,
        labels: metadata.labels.clone(),
        annotations: metadata.annotations.clone(),
        ..StoredMeta::default()
    };
    let value = Stored::new(KIND, stored, Migration { source, target: Target { selector } }, None::<()>);
    Ok(Read { path, value: Some(value.to_vec()), findings: Vec::new(), resource_version })
}
