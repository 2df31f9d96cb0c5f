//! `apply`, `create`, `replace`, `delete`, and the one change of a stored object that `patch` and `label` make.
//!
//! Everything is read and checked before the first write: a file with a mistake changes nothing. Writes go in the
//! order of the documents, one compare-and-swap each; the first that fails ends the command, and the message says how
//! far it came.

use std::path::PathBuf;

use anyhow::{Result, bail};
use bytes::Bytes;
use syncer_common::apis::{ApiKind, FieldError, Resource};
use syncer_common::backend::{Datastore, Error};
use syncer_common::processors::Processors;
use syncer_common::validate;

use crate::files::{self, Purpose};
use crate::{Report, get, node};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Apply,
    Create {
        skip_exists: bool,
    },
    Replace,
    Delete {
        skip_not_exists: bool,
        /// What belongs to a node goes with it. Not where nodes are Kubernetes' own.
        release: bool,
    },
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
pub const RACES: usize = 10;

pub async fn from_files(
    store: &dyn Datastore,
    verb: Verb,
    paths: &[PathBuf],
    namespace: &str,
    skip_empty: bool,
) -> Result<Report> {
    let purpose = if matches!(verb, Verb::Delete { .. }) { Purpose::Find } else { Purpose::Write };
    let (resources, warnings) = files::read(paths, namespace, purpose)?;
    let text = match resources.is_empty() {
        false => handle(store, verb, resources).await?,
        true if skip_empty => "No resources specified\n".into(),
        true => bail!("No resources specified"),
    };
    Ok(Report { text, warnings, complete: true, exit: None })
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
            None if matches!(verb, Verb::Delete { skip_not_exists: true, .. }) => {}
            None => {
                let missing = get::missing(kind, namespace, name);
                bail!("Failed to delete '{}' resource: [{missing}]", kind.kind);
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

pub async fn handle(store: &dyn Datastore, verb: Verb, resources: Vec<Resource>) -> Result<String> {
    let total = resources.len();
    let kind = resources[0].kind.clone();
    let kind = resources.iter().all(|resource| resource.kind == kind).then_some(kind);
    let mut notes = String::new();
    for (done, resource) in resources.into_iter().enumerate() {
        let result = one(store, verb, resource).await;
        if let Ok(note) = &result {
            notes += note;
        }
        if let Err(reason) = result {
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
        Some(kind) => format!("{notes}Successfully {} {total} '{kind}' resource(s)\n", verb.past()),
        None => format!("{notes}Successfully {} {total} resource(s)\n", verb.past()),
    })
}

/// What an operator is told about one resource.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("resource already exists: {0}")]
    Exists(String),
    #[error("resource does not exist: {0}")]
    Absent(String),
    #[error("update conflict: {0}: it was changed since it was read; get it again, edit, and replace")]
    Conflict(String),
    #[error("{id}: {error}")]
    Change { id: String, error: FieldError },
    #[error("{id}: {}", list(.errors))]
    Invalid { id: String, errors: Vec<FieldError> },
    #[error("{0}")]
    Field(#[from] FieldError),
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

fn list(errors: &[FieldError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Whether somebody else wrote first: then it is worth another attempt.
pub fn lost_race<T>(result: &std::result::Result<T, Error>) -> bool {
    matches!(result, Err(Error::Conflict { .. } | Error::NotFound { .. }))
}

/// Returns what is to be told beside the success.
async fn one(store: &dyn Datastore, verb: Verb, resource: Resource) -> std::result::Result<String, Refusal> {
    let id = resource.id();
    let mut note = String::new();
    if let (Verb::Delete { release: true, .. }, "Node") = (verb, resource.kind.as_str()) {
        // The node goes last: as long as it is there, a command that was interrupted can be run again.
        note = node::release(store, &resource.metadata.name).await?;
    }
    for _ in 0..RACES {
        match attempt(store, verb, resource.clone(), &id).await {
            Err(Refusal::Store(Error::Conflict { .. } | Error::NotFound { .. })) => {}
            done => return done.map(|()| note),
        }
    }
    Err(Refusal::Conflict(id))
}

/// Changes one stored object, again if somebody else was faster. The result has to be valid, and may not have
/// another identity.
pub async fn edit(
    store: &dyn Datastore,
    kind: &'static ApiKind,
    name: &str,
    namespace: &str,
    change: &dyn Fn(&Resource) -> std::result::Result<Resource, FieldError>,
) -> Result<()> {
    for _ in 0..RACES {
        let Some((kv, old)) = get::find_stored(store, kind, name, namespace).await? else {
            bail!("{}", get::missing(kind, namespace, name));
        };
        let id = old.id();
        let wrong = |error| Refusal::Change { id: id.clone(), error };
        let mut new = change(&old).map_err(wrong)?;
        new.set_stored_name(old.stored_name());
        let identity = |resource: &Resource| {
            [&resource.kind, &resource.metadata.name, &resource.metadata.namespace].map(String::clone)
        };
        let fields = ["kind", "metadata.name", "metadata.namespace"];
        for ((field, before), after) in fields.into_iter().zip(identity(&old)).zip(identity(&new)) {
            if before != after {
                let reason = format!("cannot be changed from {before:?} to {after:?}: create another object");
                bail!(wrong(FieldError::new(field, reason)));
            }
        }
        let mut errors = validate::change(&old, &new);
        errors.extend(files::check(&new, &mut Processors::new()));
        if !errors.is_empty() {
            bail!(Refusal::Invalid { id, errors });
        }
        new.metadata.uid = old.metadata.uid;
        new.metadata.creation_timestamp = old.metadata.creation_timestamp;
        let value = Bytes::from(new.to_stored());
        if value == kv.value {
            return Ok(());
        }
        let written = store.replace(&kv.key, value, kv.mod_revision).await;
        if !lost_race(&written) {
            return Ok(written.map(drop)?);
        }
    }
    bail!(Refusal::Conflict(Resource::named(kind, namespace, name).id()))
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
        (Verb::Create { skip_exists: true }, Some(_))
        | (Verb::Delete { skip_not_exists: true, .. }, None) => Ok(()),
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
