//! What the manifests of a folder hold now, compared with what the journal knows.
//!
//! A file counts when it has rested for a moment and reads without errors. Until then, and where a file
//! or a folder can not be read at all, the last good objects of it stand; each bad state of a file is
//! reported once. Of two files with one object the later in the order of paths counts, as for a manifest
//! reader.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::journal::{Change, Object};
use crate::apis::DEFAULT_NAMESPACE;
use crate::backend::{Error, Result};
use crate::kubernetes::secret_texts;
use crate::manifests::{self, is_manifest_name, objects, read_text};

/// What a manifest holds, as the datastore has it: key → value.
type Held = BTreeMap<String, String>;

/// Tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

struct Seen {
    signature: Signature,
    since: Instant,
    reading: Reading,
}

enum Reading {
    /// Not yet: it may still be written to.
    Fresh,
    Good(Held),
    Bad,
}

/// What this process has seen of the folder.
#[derive(Default)]
pub(super) struct Folder {
    files: HashMap<String, Seen>,
    /// Files of known objects that are not there, and since when.
    missing: HashMap<String, Instant>,
    problems: BTreeMap<String, String>,
}

pub(super) struct Scan {
    pub(super) changes: Vec<Change>,
    /// Something has not rested yet: look again.
    pub(super) unsettled: bool,
}

impl Folder {
    /// What is wrong with which file.
    pub(super) fn problems(&self) -> Vec<(PathBuf, String)> {
        self.problems.iter().map(|(file, reason)| (PathBuf::from(file), reason.clone())).collect()
    }

    /// Files that hold the object, as far as they were read.
    pub(super) fn holding(&self, key: &str) -> BTreeSet<String> {
        let holds = |seen: &Seen| matches!(&seen.reading, Reading::Good(held) if held.contains_key(key));
        self.files.iter().filter(|(_, seen)| holds(seen)).map(|(file, _)| file.clone()).collect()
    }

    /// Compares the folder with `known`. The caller holds the lock.
    pub(super) fn scan(
        &mut self,
        root: &Path,
        known: &BTreeMap<String, Object>,
        rest: Duration,
    ) -> Result<Scan> {
        let mut walk = Walk::default();
        walk.dir(root, "").map_err(|error| Error::Unavailable {
            what: format!("reading folder {}", root.display()),
            reason: error.to_string(),
        })?;
        for (path, reason) in &walk.unreadable {
            if self.problems.insert(path.clone(), reason.clone()).as_ref() != Some(reason) {
                tracing::error!(path, reason, "can not be looked at; its last good objects stand");
            }
        }
        for (file, signature) in &walk.files {
            self.read(root, file, *signature, rest);
        }
        self.files.retain(|file, _| walk.files.contains_key(file));
        self.problems.retain(|path, _| walk.files.contains_key(path) || walk.unreadable.contains_key(path));
        let gone = self.gone(known, &walk, rest);
        Ok(self.compare(known, &walk, &gone))
    }

    fn read(&mut self, root: &Path, file: &str, signature: Signature, rest: Duration) {
        let now = Instant::now();
        let fresh = || Seen { signature, since: now, reading: Reading::Fresh };
        let seen = self.files.entry(file.to_owned()).or_insert_with(fresh);
        if seen.signature != signature {
            *seen = fresh();
        }
        let rested = seen.since.elapsed() >= rest || signature.age() >= rest;
        if !matches!(seen.reading, Reading::Fresh) || !rested {
            return;
        }
        let text = read_text(&root.join(file)).map_err(|error| error.to_string());
        seen.reading = match text.and_then(|text| objects_of(&text)) {
            Ok(held) => {
                if self.problems.remove(file).is_some() {
                    tracing::info!(file, "manifest is readable again");
                }
                Reading::Good(held)
            }
            Err(reason) => {
                tracing::error!(file, reason, "manifest is not readable; its last good objects stand");
                self.problems.insert(file.to_owned(), reason);
                Reading::Bad
            }
        };
    }

    /// Files of known objects that have been away for long enough. An editor that replaces a file may remove
    /// it for a moment.
    fn gone(&mut self, known: &BTreeMap<String, Object>, walk: &Walk, rest: Duration) -> BTreeSet<String> {
        let absent: BTreeSet<&String> = known
            .values()
            .filter_map(|object| object.file.as_ref())
            .filter(|file| !walk.knows(file))
            .collect();
        self.missing.retain(|file, _| absent.contains(file));
        for file in absent {
            self.missing.entry(file.clone()).or_insert_with(Instant::now);
        }
        self.missing
            .iter()
            .filter(|(_, since)| since.elapsed() >= rest)
            .map(|(file, _)| file.clone())
            .collect()
    }

    fn compare(&self, known: &BTreeMap<String, Object>, walk: &Walk, gone: &BTreeSet<String>) -> Scan {
        // key → (file, value) as the folder has it; later files count.
        let mut wanted: BTreeMap<&str, (&str, &[u8])> = BTreeMap::new();
        for file in walk.files.keys() {
            let Some(Seen { reading: Reading::Good(held), .. }) = self.files.get(file) else { continue };
            for (key, value) in held {
                wanted.insert(key, (file, value.as_bytes()));
            }
        }
        // What stands because its file can not say.
        for (key, object) in known {
            let Some(file) = object.file.as_deref() else { continue };
            let good = matches!(self.files.get(file), Some(Seen { reading: Reading::Good(_), .. }));
            if !good
                && !gone.contains(file)
                && wanted.get(key.as_str()).is_none_or(|(other, _)| *other < file)
            {
                wanted.insert(key, (file, &object.item.value));
            }
        }
        let mut changes = Vec::new();
        for (key, object) in known {
            if object.file.is_some() && !wanted.contains_key(key.as_str()) {
                changes.push(Change { key: key.clone(), value: None, file: None });
            }
        }
        for (key, (file, value)) in wanted {
            let same = known.get(key).is_some_and(|object| {
                object.file.as_deref() == Some(file) && same_json(&object.item.value, value)
            });
            if !same {
                let value = Some(String::from_utf8_lossy(value).into_owned());
                changes.push(Change { key: key.to_owned(), value, file: Some(file.to_owned()) });
            }
        }
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        let fresh = self.files.values().any(|seen| matches!(seen.reading, Reading::Fresh));
        Scan { changes, unsettled: fresh || self.missing.len() > gone.len() }
    }
}

impl Signature {
    /// Time since the last change, as far as the clocks tell; a file from the future has no age.
    fn age(self) -> Duration {
        let (seconds, nanos) = self.changed.max(self.modified);
        let Ok(seconds) = u64::try_from(seconds) else { return Duration::ZERO };
        let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, u32::try_from(nanos).unwrap_or(0));
        at.elapsed().unwrap_or(Duration::ZERO)
    }
}

pub(super) fn same_json(a: &[u8], b: &[u8]) -> bool {
    let parse = |bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    a == b || matches!((parse(a), parse(b)), (Some(a), Some(b)) if a == b)
}

/// What a manifest holds. Any bad part makes the whole file wait: what is missing from it may only be
/// unreadable.
pub(super) fn objects_of(text: &str) -> std::result::Result<Held, String> {
    let mut held = Held::new();
    for object in objects(text) {
        let object = object.map_err(|error| error.to_string())?;
        // It has no key: `secret` finds it.
        if is_secret(&object.value) {
            continue;
        }
        let number = object.document;
        let resource = object.resource(DEFAULT_NAMESPACE).map_err(|error| error.to_string())?;
        let key = resource.key_path().map_err(|error| format!("document {number}: {error}"))?;
        let value = String::from_utf8(resource.to_stored()).map_err(|error| error.to_string())?;
        held.insert(key, value);
    }
    Ok(held)
}

fn is_secret(object: &serde_json::Value) -> bool {
    object["apiVersion"] == "v1" && object["kind"] == "Secret"
}

/// The texts in a Secret of the manifests; of two with one name the later in the order of paths counts.
pub(super) fn secret(root: &Path, namespace: &str, name: &str) -> Option<BTreeMap<String, String>> {
    let mut found = None;
    // What cannot be read has been named by the scan.
    for file in manifests::files(root).into_iter().flatten() {
        let Ok(text) = read_text(&file) else { continue };
        for object in objects(&text).into_iter().flatten() {
            let metadata = &object.value["metadata"];
            let of_namespace = metadata["namespace"].as_str().unwrap_or(DEFAULT_NAMESPACE) == namespace;
            if is_secret(&object.value) && of_namespace && metadata["name"] == name {
                found = Some(secret_texts(&object.value).texts);
            }
        }
    }
    found
}

#[derive(Default)]
struct Walk {
    files: BTreeMap<String, Signature>,
    /// Folders and files that refuse to be looked at, and why.
    unreadable: BTreeMap<String, String>,
}

impl Walk {
    /// Whether the file is there, or may be.
    fn knows(&self, file: &str) -> bool {
        let inside =
            |dir: &str| file == dir || file.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
        self.files.contains_key(file) || self.unreadable.keys().any(|dir| inside(dir))
    }

    fn dir(&mut self, dir: &Path, within: &str) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let relative = if within.is_empty() { name } else { format!("{within}/{name}") };
            if let Err(error) = self.entry(&entry, &relative)
                && error.kind() != ErrorKind::NotFound
            {
                self.unreadable.insert(relative, error.to_string());
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &std::fs::DirEntry, relative: &str) -> std::io::Result<()> {
        let path = entry.path();
        // Links to folders are not followed: they may lead back here.
        if entry.file_type()?.is_dir() {
            return self.dir(&path, relative);
        }
        if !is_manifest_name(&path) {
            return Ok(());
        }
        let metadata = std::fs::metadata(&path)?;
        if metadata.is_file() {
            let signature = Signature {
                inode: metadata.ino(),
                size: metadata.size(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            };
            self.files.insert(relative.to_owned(), signature);
        }
        Ok(())
    }
}
