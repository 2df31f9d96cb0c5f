//! The manifests: what the folder says, and how an object is written into it.
//!
//! A file counts once it has been quiet for a moment and every document in it can be read; until then what was known
//! of it stands. A file that is gone takes its objects with it. An object that two files hold is that of the first one,
//! by path.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::journal::{Stored, replace};
use crate::apis::{ApiKind, DEFAULT_NAMESPACE, Resource};
use crate::backend::{Error, Result};
use crate::manifests::{Document, is_manifest_name, numbered, read_text, split_documents, to_yaml};

/// An editor, or a copy, may still be at work on a file that changed this recently.
const QUIET: Duration = Duration::from_millis(150);

/// What tells a changed file from an unchanged one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Print {
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

#[derive(Debug)]
struct Manifest {
    print: Print,
    /// By key: what the datastore holds. `None`: the file can not be read as it is.
    objects: Option<BTreeMap<String, Bytes>>,
}

/// The manifests below a folder, re-read where they changed.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    manifests: BTreeMap<String, Manifest>,
    /// Something was left for later: look again soon.
    pub unsettled: bool,
}

/// What the folder says that the journal does not, as changes.
pub type Edits = Vec<(String, Option<(Bytes, String)>)>;

impl Folder {
    pub fn new(dir: PathBuf) -> Self {
        Folder { dir, manifests: BTreeMap::new(), unsettled: false }
    }

    /// Compares the manifests with the objects that are known.
    pub fn edits(&mut self, known: &BTreeMap<String, Stored>) -> std::io::Result<Edits> {
        self.unsettled = false;
        let mut paths = Vec::new();
        collect(&self.dir, &mut paths)?;
        let mut waiting = std::collections::BTreeSet::new();
        let mut present = std::collections::BTreeSet::new();
        for path in &paths {
            let name = self.name(path);
            // It may go while we look: then it is gone.
            let Ok(metadata) = path.metadata() else { continue };
            present.insert(name.clone());
            let print = Print {
                inode: metadata.ino(),
                len: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
            };
            if self.manifests.get(&name).is_some_and(|manifest| manifest.print == print) {
                continue;
            }
            let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            if age.is_some_and(|age| age < QUIET) {
                self.unsettled = true;
                waiting.insert(name);
                continue;
            }
            let objects = read(path);
            self.manifests.insert(name, Manifest { print, objects });
        }
        self.manifests.retain(|name, _| present.contains(name));
        waiting
            .extend(self.manifests.iter().filter(|(_, m)| m.objects.is_none()).map(|(name, _)| name.clone()));
        Ok(self.compare(known, &waiting))
    }

    fn compare(
        &self,
        known: &BTreeMap<String, Stored>,
        waiting: &std::collections::BTreeSet<String>,
    ) -> Edits {
        let mut edits = Edits::new();
        let mut said: BTreeMap<&str, (&Bytes, &str)> = BTreeMap::new();
        for (name, manifest) in self.manifests.iter().filter(|(name, _)| !waiting.contains(*name)) {
            for (key, value) in manifest.objects.iter().flatten() {
                said.entry(key).or_insert((value, name));
            }
        }
        for (key, (value, file)) in &said {
            // While the file that holds an object waits, another one's word on it waits too.
            let other =
                known.get(*key).is_some_and(|stored| stored.file != *file && waiting.contains(&stored.file));
            let same = known.get(*key).is_some_and(|stored| stored.object.value == **value);
            if !same && !other {
                edits.push(((*key).to_owned(), Some(((*value).clone(), (*file).to_owned()))));
            }
        }
        for (key, stored) in known {
            if !said.contains_key(key.as_str()) && !waiting.contains(&stored.file) {
                edits.push((key.clone(), None));
            }
        }
        edits
    }

    /// Writes an object into its file: the one that holds it, or one of its own. Returns the file's name.
    pub fn write(&mut self, resource: &Resource, holder: Option<&str>) -> Result<String> {
        let name = holder.map_or_else(|| own_file(resource), Into::into);
        let path = self.dir.join(&name);
        let wanted = resource.key_path().map_err(|error| invalid(&name, error))?;
        let text = match holder {
            Some(_) if path.exists() => edit(&path, &wanted, Some(resource))?,
            _ => to_yaml(resource),
        };
        self.put(&name, &text)?;
        Ok(name)
    }

    /// Takes an object out of its file; the file goes with its last one.
    pub fn remove(&mut self, key: &str, holder: &str) -> Result<()> {
        let path = self.dir.join(holder);
        if !path.exists() {
            return Ok(());
        }
        let text = edit(&path, key, None)?;
        if split_documents(&text).is_empty() {
            std::fs::remove_file(&path).map_err(|error| unavailable(holder, error))?;
            self.manifests.remove(holder);
            return Ok(());
        }
        self.put(holder, &text)
    }

    fn put(&mut self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| unavailable(name, error))?;
        }
        replace(&path, &[text.to_owned()]).map_err(|error| unavailable(name, error))?;
        // Our own writes need no quiet moment.
        let metadata = path.metadata().map_err(|error| unavailable(name, error))?;
        let print = Print {
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        };
        self.manifests.insert(name.to_owned(), Manifest { print, objects: read(&path) });
        Ok(())
    }

    fn name(&self, path: &Path) -> String {
        path.strip_prefix(&self.dir).unwrap_or(path).to_string_lossy().into_owned()
    }
}

/// The manifests below a folder, hidden files and folders apart.
fn collect(dir: &Path, paths: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&path, paths)?;
        } else if is_manifest_name(&path) {
            paths.push(path);
        }
    }
    Ok(())
}

/// Every object of a file, or nothing while one of them can not be read. Said once a change of the file.
fn read(path: &Path) -> Option<BTreeMap<String, Bytes>> {
    let text = match read_text(path) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!(%error, "manifest can not be read; what it held before stands");
            return None;
        }
    };
    let mut objects = BTreeMap::new();
    for object in numbered(&text, DEFAULT_NAMESPACE) {
        let keyed = object.map_err(|error| error.to_string()).and_then(|(document, resource)| {
            let key = resource.key_path().map_err(|error| format!("document {document}: {error}"))?;
            Ok((key, Bytes::from(resource.to_stored())))
        });
        match keyed {
            Ok((key, value)) => drop(objects.entry(key).or_insert(value)),
            Err(reason) => {
                tracing::warn!(file = %path.display(), reason, "manifest has a mistake; what it held before stands");
                return None;
            }
        }
    }
    Some(objects)
}

/// The text of a file with one object replaced or taken out. Other documents stay as they were written.
fn edit(path: &Path, key: &str, with: Option<&Resource>) -> Result<String> {
    let name = path.display().to_string();
    let text = read_text(path).map_err(|error| invalid(&name, error))?;
    let mut documents: BTreeMap<usize, Vec<Resource>> = BTreeMap::new();
    for object in numbered(&text, DEFAULT_NAMESPACE) {
        let (document, resource) = object.map_err(|error| invalid(&name, error))?;
        documents.entry(document).or_default().push(resource);
    }
    let mut pieces = Vec::new();
    for Document { number, text } in split_documents(&text) {
        let objects = documents.remove(&number).unwrap_or_default();
        if !objects.iter().any(|object| object.key_path().is_ok_and(|path| path == key)) {
            pieces.push(without_marker(text).to_owned());
            continue;
        }
        // The document that holds it: a list falls apart into its objects.
        for object in &objects {
            match object.key_path() {
                Ok(path) if path == key => pieces.extend(with.map(to_yaml)),
                _ => pieces.push(to_yaml(object)),
            }
        }
    }
    Ok(pieces.join("---\n"))
}

fn without_marker(text: &str) -> &str {
    match text.split_once('\n') {
        Some((first, rest)) if first.trim_end() == "---" => rest,
        _ => text,
    }
}

/// Where a new object goes: `<plural>/<namespace.><name>.yaml`.
fn own_file(resource: &Resource) -> String {
    let plural = ApiKind::by_kind(&resource.kind).map_or("other", |kind| kind.plural);
    let name = resource.stored_name().replace('/', "_");
    match resource.metadata.namespace.as_str() {
        "" => format!("{plural}/{name}.yaml"),
        namespace => format!("{plural}/{namespace}.{name}.yaml"),
    }
}

fn invalid(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Invalid { what: what.to_owned(), reason: error.to_string() }
}

pub(super) fn unavailable(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Unavailable { what: what.to_owned(), reason: error.to_string() }
}
