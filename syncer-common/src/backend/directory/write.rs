//! Writes through the API: the manifest first, the journal after it. The caller holds the lock.

use std::path::Path;

use super::Replica;
use super::edit;
use super::folder::{objects_of, same_json};
use super::journal::{Change, replace_file};
use crate::apis::Resource;
use crate::backend::{Error, Result, Revision};

impl Replica {
    /// The object exists, at `expected` if given.
    pub(super) fn expect(&self, key: &str, expected: Option<Revision>) -> Result<()> {
        let Some(object) = self.journal.objects.get(key) else {
            return Err(Error::NotFound { key: key.into() });
        };
        let found = object.item.mod_revision;
        match expected {
            Some(expected) if expected != found => Err(Error::Conflict {
                key: key.into(),
                reason: format!("changed: at revision {found}, expected {expected}"),
            }),
            _ => Ok(()),
        }
    }

    pub(super) fn put(&mut self, root: &Path, key: String, value: String) -> Result<Revision> {
        let resource = match Resource::from_stored(&key, value.as_bytes()) {
            Ok(resource) => Some(resource),
            Err(error) if key.starts_with("/calico/resources/v3/") => {
                return Err(Error::Invalid { what: format!("write of {key}"), reason: error.to_string() });
            }
            Err(_) => None,
        };
        // The journal holds what a reader of the manifest gets, so that reading it later is no change. What
        // a manifest would not give back stays in the journal.
        let canonical = resource.filter(|_| self.manifest_allowed(&key)).and_then(|resource| {
            let parsed = objects_of(&crate::manifests::to_yaml(&resource)).ok()?;
            let value = parsed.get(&key)?.clone();
            Some((resource, value))
        });
        let change = match canonical {
            Some((resource, value)) => {
                let file = self.write_manifest(root, &key, &resource)?;
                Change { key, value: Some(value), file: Some(file) }
            }
            None => Change { key, value: Some(value), file: None },
        };
        self.journal.append(vec![change])
    }

    /// What lives in the journal alone goes on living there.
    fn manifest_allowed(&self, key: &str) -> bool {
        self.journal.objects.get(key).is_none_or(|object| object.file.is_some())
    }

    pub(super) fn remove(&mut self, root: &Path, key: String) -> Result<Revision> {
        // Every file that holds it, or the next one would bring it back.
        let mut files = self.folder.holding(&key);
        if let Some(file) = self.journal.objects.get(&key).and_then(|object| object.file.clone()) {
            files.insert(file);
        }
        for file in files {
            self.edit_manifest(root, &file, &key, None)?;
        }
        self.journal.append(vec![Change { key, value: None, file: None }])
    }

    /// Writes the object where it is, or to a new file. Returns the file.
    fn write_manifest(&self, root: &Path, key: &str, resource: &Resource) -> Result<String> {
        if let Some(file) = self.journal.objects.get(key).and_then(|object| object.file.clone()) {
            self.edit_manifest(root, &file, key, Some(resource))?;
            return Ok(file);
        }
        let cannot = |reason: String| Error::Unavailable { what: format!("write of {key}"), reason };
        let mut file = edit::file_name(resource).ok_or_else(|| cannot("no file name for it".into()))?;
        if root.join(&file).exists() {
            // Something else has the name.
            let hash = blake3::hash(key.as_bytes()).to_hex();
            file = format!("{}-{}.yaml", file.trim_end_matches(".yaml"), &hash[..12]);
        }
        let path = root.join(&file);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|error| cannot(error.to_string()))?;
        }
        replace_file(&path, crate::manifests::to_yaml(resource).as_bytes())
            .map_err(|error| cannot(format!("{file}: {error}")))?;
        Ok(file)
    }

    fn edit_manifest(&self, root: &Path, file: &str, key: &str, resource: Option<&Resource>) -> Result<()> {
        let conflict =
            |reason: String| Error::Conflict { key: key.into(), reason: format!("{file}: {reason}") };
        let failed = |error: std::io::Error| Error::Unavailable {
            what: format!("write of {key} to {file}"),
            reason: error.to_string(),
        };
        let path = root.join(file);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && resource.is_none() => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        // An edit by hand that has no revision yet must not be lost.
        let known = self.journal.objects.get(key).filter(|object| object.file.as_deref() == Some(file));
        if let Some(known) = known {
            let there = objects_of(&text).map_err(conflict)?;
            let same = there.get(key).is_some_and(|value| same_json(&known.item.value, value.as_bytes()));
            if !same {
                return Err(conflict("edited by hand a moment ago; try again".into()));
            }
        }
        let json = path.extension().is_some_and(|extension| extension == "json");
        match edit::rewrite(&text, json, key, resource).map_err(conflict)? {
            Some(text) => replace_file(&path, text.as_bytes()).map_err(failed),
            None => std::fs::remove_file(&path).map_err(failed),
        }
    }
}
