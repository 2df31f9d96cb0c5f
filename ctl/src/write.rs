//! `apply`, `create`, `replace`, `delete`.
//!
//! Everything is read and checked before the first write: a file with a mistake changes nothing. Writes go in the
//! order of the documents, one compare-and-swap each; the first that fails ends the command, and the message says how
//! far it came.

use std::path::PathBuf;

use anyhow::{Result, bail};
use bytes::Bytes;
use syncer_common::apis::Resource;
use syncer_common::backend::{Datastore, Error};
use syncer_common::validate;

use crate::files::{self, Purpose};
use crate::get;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Apply,
    Create { skip_exists: bool },
    Replace,
    Delete { skip_not_exists: bool },
}

impl Verb {
    fn infinitive(self) -> &'static str {
        match self {
            Verb::Apply => "apply",
            Verb::Create { .. } => "create",
            Verb::Replace => "replace",
            Verb::Delete { .. } => "delete",
        }
    }

    fn past(self) -> &'static str {
        match self {
            Verb::Apply => "applied",
            Verb::Create { .. } => "created",
            Verb::Replace => "replaced",
            Verb::Delete { .. } => "deleted",
        }
    }
}

/// Attempts of a compare-and-swap that raced with another writer.
const RACES: usize = 10;

pub async fn from_files(
    store: &dyn Datastore,
    verb: Verb,
    paths: &[PathBuf],
    namespace: &str,
) -> Result<String> {
    let purpose = if matches!(verb, Verb::Delete { .. }) { Purpose::Find } else { Purpose::Write };
    let resources = files::read(paths, namespace, purpose)?;
    if resources.is_empty() {
        bail!("No resources specified");
    }
    handle(store, verb, resources).await
}

pub async fn delete_named(
    store: &dyn Datastore,
    verb: Verb,
    kind: &str,
    names: &[String],
    namespace: &str,
) -> Result<String> {
    let kind = get::kind(kind)?;
    let mut resources = Vec::new();
    for name in names {
        // By what the datastore holds: the objects of IPAM are found by their spec, and some policies are stored under
        // another name.
        match get::find(store, kind, name, namespace).await? {
            Some(resource) => resources.push(resource),
            None if verb == (Verb::Delete { skip_not_exists: true }) => {}
            None => {
                let place = if kind.namespaced { format!("{namespace}/") } else { String::new() };
                let id = format!("{}({place}{name})", kind.kind);
                bail!("Failed to delete '{}' resource: [{}]", kind.kind, Refusal::Absent(id));
            }
        }
    }
    if resources.is_empty() {
        return Ok(format!("Successfully deleted 0 '{}' resource(s)\n", kind.kind));
    }
    for resource in &mut resources {
        // Deleting by name means whatever is there now.
        resource.metadata.resource_version.clear();
    }
    handle(store, verb, resources).await
}

async fn handle(store: &dyn Datastore, verb: Verb, resources: Vec<Resource>) -> Result<String> {
    let total = resources.len();
    let kind = resources[0].kind.clone();
    let kind = resources.iter().all(|resource| resource.kind == kind).then_some(kind);
    for (done, resource) in resources.into_iter().enumerate() {
        if let Err(reason) = one(store, verb, resource).await {
            let what = match (&kind, total) {
                (Some(kind), 1) => format!("Failed to {} '{kind}' resource: [{reason}]", verb.infinitive()),
                (Some(kind), _) if done == 0 => {
                    format!("Failed to {} any '{kind}' resources: [{reason}]", verb.infinitive())
                }
                (None, _) if done == 0 => {
                    format!("Failed to {} any resources: [{reason}]", verb.infinitive())
                }
                (Some(kind), _) => format!(
                    "Partial success: {} the first {done} out of {total} '{kind}' resources:\nHit error: {reason}",
                    verb.past()
                ),
                (None, _) => format!(
                    "Partial success: {} the first {done} out of {total} resources:\nHit error: {reason}",
                    verb.past()
                ),
            };
            bail!("{what}");
        }
    }
    Ok(match kind {
        Some(kind) => format!("Successfully {} {total} '{kind}' resource(s)\n", verb.past()),
        None => format!("Successfully {} {total} resource(s)\n", verb.past()),
    })
}

/// What an operator is told about one resource.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("resource already exists: {0}")]
    Exists(String),
    #[error("resource does not exist: {0}")]
    Absent(String),
    #[error("update conflict: {0}: it was changed since it was read; get it again, edit, and replace")]
    Conflict(String),
    #[error("{id}: {error}")]
    Change { id: String, error: syncer_common::apis::FieldError },
    #[error("{0}")]
    Field(#[from] syncer_common::apis::FieldError),
    #[error("{id}: metadata.resourceVersion: {given:?} is not a revision")]
    Revision { id: String, given: String },
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<get::Lookup> for Refusal {
    fn from(lookup: get::Lookup) -> Self {
        match lookup {
            get::Lookup::Field(error) => Refusal::Field(error),
            get::Lookup::Store(error) => Refusal::Store(error),
        }
    }
}

async fn one(store: &dyn Datastore, verb: Verb, resource: Resource) -> std::result::Result<(), Refusal> {
    let id = resource.id();
    for _ in 0..RACES {
        match attempt(store, verb, resource.clone(), &id).await {
            Err(Refusal::Store(Error::Conflict { .. } | Error::NotFound { .. })) => {}
            done => return done,
        }
    }
    Err(Refusal::Conflict(id))
}

/// One compare-and-swap; a race with another writer comes back as the datastore's own error.
async fn attempt(
    store: &dyn Datastore,
    verb: Verb,
    mut resource: Resource,
    id: &str,
) -> std::result::Result<(), Refusal> {
    let existing = get::stored(store, &mut resource).await?;
    let given = match resource.metadata.resource_version.as_str() {
        "" => None,
        text => {
            Some(text.parse::<u64>().map_err(|_| Refusal::Revision { id: id.into(), given: text.into() })?)
        }
    };
    if let (Some(given), Some(existing)) = (given, &existing)
        && given != existing.mod_revision
        && !matches!(verb, Verb::Create { .. })
    {
        return Err(Refusal::Conflict(id.into()));
    }
    match (verb, existing) {
        (Verb::Create { skip_exists: true }, Some(_)) | (Verb::Delete { skip_not_exists: true }, None) => {
            Ok(())
        }
        (Verb::Create { .. }, Some(_)) => Err(Refusal::Exists(id.into())),
        (Verb::Replace | Verb::Delete { .. }, None) => Err(Refusal::Absent(id.into())),
        (Verb::Delete { .. }, Some(existing)) => {
            store.delete(&existing.key, Some(existing.mod_revision)).await.map(drop).map_err(Refusal::Store)
        }
        (Verb::Apply | Verb::Replace, Some(existing)) => {
            // Identity outlives the change, whatever the file says.
            if let Ok(old) = Resource::from_stored(&existing.key, &existing.value) {
                if let Some(error) = validate::change(&old, &resource).into_iter().next() {
                    return Err(Refusal::Change { id: id.into(), error });
                }
                resource.metadata.uid = old.metadata.uid;
                resource.metadata.creation_timestamp = old.metadata.creation_timestamp;
            }
            let value = Bytes::from(resource.to_stored());
            if value == existing.value {
                // As it is already: no revision, no event for anybody.
                return Ok(());
            }
            store.replace(&existing.key, value, existing.mod_revision).await.map(drop).map_err(Refusal::Store)
        }
        (Verb::Apply | Verb::Create { .. }, None) => {
            resource.metadata.uid = uuid::Uuid::new_v4().to_string();
            resource.metadata.creation_timestamp =
                humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
            store
                .create(&resource.key_path()?, Bytes::from(resource.to_stored()))
                .await
                .map(drop)
                .map_err(Refusal::Store)
        }
    }
}
