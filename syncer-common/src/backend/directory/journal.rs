//! The revision journal of a folder: `.bulrush/journal`, JSON lines.
//!
//! The first line is a header (history, base revision), then the objects at the base, then one line per
//! revision. Only the holder of the lock writes; a line counts once it ends in a newline, so that what a
//! crash left half-written is cut off by the next writer. Past a bounded length the journal is written anew
//! with a later base, and replaced by a rename: whoever needs older revisions is told `Compacted`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::backend::{Error, Event, KeyValue, Listing, Result, Revision};

pub(super) const STATE_DIR: &str = ".bulrush";
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(5);
const FORMAT: u32 = 1;

/// One object, and the manifest it is in (none: only the journal has it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) item: KeyValue,
    pub(super) file: Option<String>,
}

type Objects = BTreeMap<String, Object>;

/// A change of one object. No value: it was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Change {
    pub(super) key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<String>,
    /// Path inside the folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Header { format: u32, history: String, base: Revision },
    Base { object: Change, created: Revision, modified: Revision },
    Revision { revision: Revision, changes: Vec<Change> },
}

/// A revision as it was read.
struct Entry {
    revision: Revision,
    events: Vec<(Event, Option<String>)>,
}

/// The journal as far as it was read.
pub(super) struct Journal {
    path: PathBuf,
    /// Inode and offset of what was read.
    inode: u64,
    offset: u64,
    pub(super) history: String,
    pub(super) revision: Revision,
    pub(super) objects: Objects,
    base: Revision,
    base_objects: Objects,
    entries: Vec<Entry>,
    keep: usize,
}

fn failed(path: &Path, doing: &str, error: impl std::fmt::Display) -> Error {
    Error::Unavailable { what: format!("{doing} {}", path.display()), reason: error.to_string() }
}

/// The exclusive lock of the folder, for the life of the value. It does not make the folder: one that was
/// unmounted must not look like an empty one.
pub(super) fn lock(root: &Path) -> Result<Flock<File>> {
    let path = root.join(STATE_DIR).join("lock");
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| failed(&path, "opening", error))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, error)) if Instant::now() >= deadline => {
                return Err(failed(&path, "locking", format!("held by another process: {error}")));
            }
            Err((back, _)) => file = back,
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

impl Journal {
    /// Opens the journal, or begins one. The caller holds the lock.
    pub(super) fn open(root: &Path, keep: usize) -> Result<Self> {
        let mut journal = Self {
            path: root.join(STATE_DIR).join("journal"),
            inode: 0,
            offset: 0,
            history: String::new(),
            revision: 0,
            objects: Objects::new(),
            base: 0,
            base_objects: Objects::new(),
            entries: Vec::new(),
            keep,
        };
        if !journal.path.exists() {
            journal.history = uuid::Uuid::new_v4().to_string();
            // As in etcd, the empty datastore is at revision 1.
            journal.base = 1;
            journal.rewrite()?;
        }
        journal.catch_up()?;
        Ok(journal)
    }

    /// Reads what others have appended. The caller holds the lock.
    pub(super) fn catch_up(&mut self) -> Result<()> {
        let mut file = File::open(&self.path).map_err(|error| failed(&self.path, "opening", error))?;
        let metadata = file.metadata().map_err(|error| failed(&self.path, "reading", error))?;
        if metadata.ino() != self.inode || metadata.len() < self.offset {
            self.inode = metadata.ino();
            self.offset = 0;
            self.objects.clear();
            self.base_objects.clear();
            self.entries.clear();
        }
        if metadata.len() == self.offset {
            return Ok(());
        }
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(self.offset))
            .and_then(|_| file.read_to_end(&mut text))
            .map_err(|error| failed(&self.path, "reading", error))?;
        for line in text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            let parsed = serde_json::from_slice(line).map_err(|error| self.damaged(error))?;
            self.take(parsed)?;
            self.offset += line.len() as u64;
        }
        Ok(())
    }

    fn damaged(&self, reason: impl std::fmt::Display) -> Error {
        Error::Invalid {
            what: format!("journal {} at byte {}", self.path.display(), self.offset),
            reason: format!(
                "{reason}; stop every process that uses the folder and remove the file to begin a new history"
            ),
        }
    }

    fn take(&mut self, line: Line) -> Result<()> {
        match line {
            Line::Header { format: FORMAT, history, base } if self.offset == 0 => {
                self.history = history;
                self.base = base;
                self.revision = base;
            }
            Line::Header { format, .. } => return Err(self.damaged(format!("header of format {format}"))),
            _ if self.offset == 0 => return Err(self.damaged("no header")),
            Line::Base { object: Change { key, value, file }, created, modified } => {
                let item = KeyValue {
                    key: key.clone(),
                    value: Bytes::from(value.unwrap_or_default()),
                    create_revision: created,
                    mod_revision: modified,
                };
                let object = Object { item, file };
                self.base_objects.insert(key.clone(), object.clone());
                self.objects.insert(key, object);
            }
            Line::Revision { revision, changes } => {
                if revision != self.revision + 1 {
                    return Err(self.damaged(format!("revision {revision} after {}", self.revision)));
                }
                let events = changes.into_iter().map(|change| self.event(revision, change)).collect();
                let entry = Entry { revision, events };
                apply(&mut self.objects, &entry);
                self.entries.push(entry);
                self.revision = revision;
            }
        }
        Ok(())
    }

    fn event(&self, mod_revision: Revision, change: Change) -> (Event, Option<String>) {
        let Change { key, value, file } = change;
        let Some(value) = value else { return (Event::Delete { key, mod_revision }, None) };
        let create_revision =
            self.objects.get(&key).map_or(mod_revision, |object| object.item.create_revision);
        (Event::Put(KeyValue { key, value: Bytes::from(value), create_revision, mod_revision }), file)
    }

    /// Appends one revision, durably. The caller holds the lock and has caught up.
    pub(super) fn append(&mut self, changes: Vec<Change>) -> Result<Revision> {
        let revision = self.revision + 1;
        let line = Line::Revision { revision, changes };
        let mut text = serde_json::to_vec(&line).map_err(|error| self.damaged(error))?;
        text.push(b'\n');
        let write = || -> std::io::Result<()> {
            let mut file = File::options().write(true).open(&self.path)?;
            // What follows the last whole line was left by a crash.
            file.set_len(self.offset)?;
            file.seek(SeekFrom::Start(self.offset))?;
            file.write_all(&text)?;
            file.sync_data()
        };
        write().map_err(|error| failed(&self.path, "writing", error))?;
        self.take(line)?;
        self.offset += text.len() as u64;
        if self.entries.len() >= self.keep.saturating_mul(2).max(1)
            && let Err(error) = self.trim()
        {
            // The revision is written; a journal that is too long is not its problem.
            tracing::error!(%error, "the journal of the folder can not be trimmed");
        }
        Ok(revision)
    }

    /// Moves the base forward, so that `keep` revisions remain.
    fn trim(&mut self) -> Result<()> {
        let remaining = self.entries.split_off(self.entries.len().saturating_sub(self.keep));
        for entry in std::mem::replace(&mut self.entries, remaining) {
            apply(&mut self.base_objects, &entry);
            self.base = entry.revision;
        }
        self.rewrite()?;
        // Read back at once: a journal that can not be read is to be known of now.
        self.catch_up()?;
        tracing::info!(base = self.base, revision = self.revision, "trimmed the journal of the folder");
        Ok(())
    }

    /// Writes the whole journal beside the old one and replaces it.
    fn rewrite(&self) -> Result<()> {
        let header = Line::Header { format: FORMAT, history: self.history.clone(), base: self.base };
        let base = self.base_objects.values().map(|object| Line::Base {
            object: change(&object.item, object.file.clone()),
            created: object.item.create_revision,
            modified: object.item.mod_revision,
        });
        let entries = self.entries.iter().map(|entry| Line::Revision {
            revision: entry.revision,
            changes: entry
                .events
                .iter()
                .filter_map(|(event, file)| match event {
                    Event::Put(item) => Some(change(item, file.clone())),
                    Event::Delete { key, .. } => Some(Change { key: key.clone(), value: None, file: None }),
                    Event::Finding(_) => None,
                })
                .collect(),
        });
        let mut text = Vec::new();
        for line in std::iter::once(header).chain(base).chain(entries) {
            serde_json::to_writer(&mut text, &line).map_err(|error| self.damaged(error))?;
            text.push(b'\n');
        }
        replace_file(&self.path, &text).map_err(|error| failed(&self.path, "writing", error))
    }

    /// Everything at `at`.
    pub(super) fn list(&self, at: Option<Revision>) -> Result<Listing> {
        let at = at.unwrap_or(self.revision);
        if at > self.revision {
            return Err(Error::Invalid {
                what: format!("listing at revision {at}"),
                reason: format!("the newest is {}", self.revision),
            });
        }
        if at < self.base {
            return Err(Error::Compacted { compacted: self.base });
        }
        let items = if at == self.revision {
            self.objects.values().map(|object| object.item.clone()).collect()
        } else {
            let mut objects = self.base_objects.clone();
            self.entries
                .iter()
                .take_while(|entry| entry.revision <= at)
                .for_each(|entry| apply(&mut objects, entry));
            objects.into_values().map(|object| object.item).collect()
        };
        Ok(Listing { revision: at, items, ..Listing::default() })
    }

    /// The revisions after `after`, each with its events.
    pub(super) fn after(&self, after: Revision) -> Result<Vec<(Revision, Vec<Event>)>> {
        if after > self.revision {
            return Err(Error::Rewound { head: self.revision, seen: after });
        }
        if after < self.base {
            return Err(Error::Compacted { compacted: self.base });
        }
        let first = self.entries.partition_point(|entry| entry.revision <= after);
        let events = |entry: &Entry| entry.events.iter().map(|(event, _)| event.clone()).collect();
        Ok(self.entries[first..].iter().map(|entry| (entry.revision, events(entry))).collect())
    }
}

fn change(item: &KeyValue, file: Option<String>) -> Change {
    // It came from a string: nothing is lost.
    let value = String::from_utf8_lossy(&item.value).into_owned();
    Change { key: item.key.clone(), value: Some(value), file }
}

fn apply(objects: &mut Objects, entry: &Entry) {
    for (event, file) in &entry.events {
        match event {
            Event::Put(item) => {
                let object = Object { item: item.clone(), file: file.clone() };
                objects.insert(item.key.clone(), object);
            }
            Event::Delete { key, .. } => drop(objects.remove(key)),
            Event::Finding(_) => {}
        }
    }
}

/// Replaces a file in one step: readers see the old or the new content, also after a crash.
pub(super) fn replace_file(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    // Hidden, so that no reader of the folder takes it for a manifest.
    let partial = dir.join(format!(".{name}.{}.partial", std::process::id()));
    let written = (|| {
        let mut file = File::create(&partial)?;
        if let Ok(metadata) = path.metadata() {
            file.set_permissions(metadata.permissions())?;
        }
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)?;
        File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        // The first error is the one to tell.
        std::fs::remove_file(&partial).ok();
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Vec<Change> {
        vec![Change { key: key.into(), value: Some(value.into()), file: None }]
    }

    fn open(root: &Path, keep: usize) -> Journal {
        std::fs::create_dir_all(root.join(STATE_DIR)).unwrap();
        let _lock = lock(root).unwrap();
        Journal::open(root, keep).unwrap()
    }

    #[test]
    fn torn_last_line_is_cut_off_by_the_next_writer() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(dir.path(), 100);
        journal.append(put("/calico/a", "1")).unwrap();
        let mut file = File::options().append(true).open(&journal.path).unwrap();
        file.write_all(b"{\"revision\":{\"revision\":3,\"cha").unwrap();
        let mut other = open(dir.path(), 100);
        assert_eq!(other.revision, 2);
        other.append(put("/calico/b", "2")).unwrap();
        journal.catch_up().unwrap();
        assert_eq!((journal.revision, journal.objects.len()), (3, 2));
        assert_eq!(journal.objects, open(dir.path(), 100).objects);
    }

    #[test]
    fn trimmed_revisions_are_compacted_and_the_rest_is_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, mut reader) = (open(dir.path(), 5), open(dir.path(), 5));
        let mut listings = Vec::new();
        for round in 0..33 {
            let key = format!("/calico/{}", round % 3);
            let revision = match round % 4 {
                3 => writer.append(vec![Change { key, value: None, file: None }]).unwrap(),
                _ => writer.append(put(&key, &round.to_string())).unwrap(),
            };
            listings.push((revision, writer.list(None).unwrap()));
        }
        reader.catch_up().unwrap();
        let mut compacted = 0;
        for (revision, listing) in listings {
            match reader.list(Some(revision)) {
                Ok(found) => assert_eq!(found, listing),
                Err(Error::Compacted { .. }) => {
                    compacted += 1;
                    assert!(matches!(reader.after(revision), Err(Error::Compacted { .. })));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(compacted > 20, "{compacted}");
        assert_eq!(reader.objects, open(dir.path(), 5).objects);
    }

    #[test]
    fn damaged_journal_is_named_and_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(dir.path(), 100);
        journal.append(put("/calico/a", "1")).unwrap();
        let text = std::fs::read_to_string(&journal.path).unwrap();
        std::fs::write(&journal.path, text.replace("\"changes\"", "\"chances\"")).unwrap();
        assert!(matches!(Journal::open(dir.path(), 100), Err(Error::Invalid { .. })));
    }

    #[test]
    fn held_lock_is_an_error_in_time() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(STATE_DIR)).unwrap();
        let _held = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(Error::Unavailable { .. })));
    }
}
