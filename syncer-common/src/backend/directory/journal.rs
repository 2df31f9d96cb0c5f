//! The revision journal: `.bulrush/journal`, one JSON object a line, only ever appended to under the folder's lock.
//!
//! It is the history: revision → change, the same for every replica. The first line names the history and the revision
//! that it begins after; then come the objects of that revision (`base`), then one line per change. A line without its
//! newline is one that a writer did not finish: it does not count, and the next writer cuts it off.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::backend::{KeyValue, Revision};

/// Changes kept when the journal is cut back, …
const KEPT: usize = 10_000;
/// … which happens when it holds this many.
const MOST: usize = 30_000;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    history: String,
    /// Changes up to this revision are only in the base.
    compacted: Revision,
}

/// A change, or (in the base) an object.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    revision: Revision,
    key: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    created: Revision,
    /// The object as etcd would hold it; absent: deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Box<RawValue>>,
    /// The manifest that held it when it was written.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    file: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    base: bool,
}

fn is_zero(revision: &Revision) -> bool {
    *revision == 0
}

/// An object with the manifest it came from (relative to the folder).
#[derive(Clone, Debug)]
pub struct Stored {
    pub object: KeyValue,
    pub file: String,
}

/// One change; `None` is a deletion.
#[derive(Clone, Debug)]
pub struct Change {
    pub revision: Revision,
    pub key: String,
    pub stored: Option<Stored>,
}

/// The journal as read so far.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// Inode of the file that was read: a cut-back journal is another file.
    inode: u64,
    offset: u64,
    pub history: String,
    pub compacted: Revision,
    pub revision: Revision,
    base: BTreeMap<String, Stored>,
    pub changes: Vec<Change>,
    pub objects: BTreeMap<String, Stored>,
}

impl Journal {
    pub fn new(path: PathBuf) -> Self {
        Journal {
            path,
            inode: 0,
            offset: 0,
            history: String::new(),
            compacted: 0,
            revision: 0,
            base: BTreeMap::new(),
            changes: Vec::new(),
            objects: BTreeMap::new(),
        }
    }

    /// Makes the file if there is none. To be called under the lock.
    pub fn create(path: &Path) -> std::io::Result<()> {
        if path.exists() {
            return Ok(());
        }
        let header = Header { history: uuid::Uuid::new_v4().to_string(), compacted: 0 };
        replace(path, &[text(&header)?])
    }

    /// Reads what was appended since the last time; everything, if the file is another one.
    pub fn refresh(&mut self) -> std::io::Result<()> {
        let mut file = File::open(&self.path)?;
        let metadata = file.metadata()?;
        if metadata.ino() != self.inode || metadata.len() < self.offset {
            *self = Journal { inode: metadata.ino(), ..Journal::new(std::mem::take(&mut self.path)) };
        }
        if metadata.len() == self.offset {
            return Ok(());
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[..whole].lines() {
            if self.history.is_empty() {
                let header: Header = serde_json::from_str(line)?;
                (self.history, self.compacted, self.revision) =
                    (header.history, header.compacted, header.compacted);
            } else {
                self.take(serde_json::from_str(line)?);
            }
        }
        self.offset += whole as u64;
        Ok(())
    }

    fn take(&mut self, line: Line) {
        let stored = line.value.map(|value| Stored {
            object: KeyValue {
                key: line.key.clone(),
                value: Bytes::from(String::from(Box::<str>::from(value))),
                create_revision: line.created,
                mod_revision: line.revision,
            },
            file: line.file,
        });
        match (&stored, line.base) {
            (Some(stored), true) => {
                self.base.insert(line.key.clone(), stored.clone());
                self.objects.insert(line.key, stored.clone());
                return;
            }
            (Some(stored), false) => drop(self.objects.insert(line.key.clone(), stored.clone())),
            (None, _) => drop(self.objects.remove(&line.key)),
        }
        self.revision = line.revision;
        self.changes.push(Change { revision: line.revision, key: line.key, stored });
    }

    /// Appends changes, each with the next revision, and returns the last one. Under the lock, after `refresh`.
    pub fn append(&mut self, changes: Vec<(String, Option<(Bytes, String)>)>) -> std::io::Result<Revision> {
        let mut text = String::new();
        let mut revision = self.revision;
        for (key, change) in changes {
            revision += 1;
            let created = self.objects.get(&key).map_or(revision, |stored| stored.object.create_revision);
            let (value, file) = match change {
                Some((value, file)) => (Some(raw(&value)?), file),
                None => (None, String::new()),
            };
            let created = if value.is_some() { created } else { 0 };
            text += &self::text(&Line { revision, key, created, value, file, base: false })?;
        }
        let mut file = File::options().write(true).open(&self.path)?;
        // What an interrupted writer left is cut off.
        file.set_len(self.offset)?;
        file.seek(SeekFrom::Start(self.offset))?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        self.refresh()?;
        if self.changes.len() > MOST {
            self.cut_back(KEPT)?;
        }
        Ok(self.revision)
    }

    /// Keeps the newest changes only; the objects before them become the base.
    pub fn cut_back(&mut self, keep: usize) -> std::io::Result<()> {
        let from = self.changes.len().saturating_sub(keep);
        let Some(last) = from.checked_sub(1).map(|last| self.changes[last].revision) else { return Ok(()) };
        let base = self.at(last);
        let mut lines = vec![text(&Header { history: self.history.clone(), compacted: last })?];
        for (key, stored) in base {
            lines.push(text(&line(key, stored.object.mod_revision, Some(stored), true)?)?);
        }
        for change in &self.changes[from..] {
            lines.push(text(&line(change.key.clone(), change.revision, change.stored.clone(), false)?)?);
        }
        replace(&self.path, &lines)?;
        self.refresh()
    }

    /// The objects as they were at a revision that is not compacted.
    pub fn at(&self, revision: Revision) -> BTreeMap<String, Stored> {
        if revision >= self.revision {
            return self.objects.clone();
        }
        let mut objects = self.base.clone();
        for change in self.changes.iter().take_while(|change| change.revision <= revision) {
            match &change.stored {
                Some(stored) => drop(objects.insert(change.key.clone(), stored.clone())),
                None => drop(objects.remove(&change.key)),
            }
        }
        objects
    }
}

fn line(key: String, revision: Revision, stored: Option<Stored>, base: bool) -> std::io::Result<Line> {
    let created = stored.as_ref().map_or(0, |stored| stored.object.create_revision);
    let (value, file) = match stored {
        Some(stored) => (Some(raw(&stored.object.value)?), stored.file),
        None => (None, String::new()),
    };
    Ok(Line { revision, key, created, value, file, base })
}

fn raw(value: &[u8]) -> std::io::Result<Box<RawValue>> {
    Ok(serde_json::from_slice(value)?)
}

fn text(line: &impl Serialize) -> std::io::Result<String> {
    Ok(serde_json::to_string(line)? + "\n")
}

/// Writes a file under another name and renames it: a reader sees the old or the new one, never half of one.
pub fn replace(path: &Path, lines: &[String]) -> std::io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let staged = path.with_file_name(format!(".{name}.{}", uuid::Uuid::new_v4()));
    let mut file = File::create(&staged)?;
    for line in lines {
        file.write_all(line.as_bytes())?;
    }
    file.sync_all()?;
    std::fs::rename(&staged, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> (tempfile::TempDir, Journal) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        Journal::create(&path).unwrap();
        let mut journal = Journal::new(path);
        journal.refresh().unwrap();
        (dir, journal)
    }

    fn put(key: &str, value: &str) -> (String, Option<(Bytes, String)>) {
        (key.into(), Some((Bytes::from(value.to_owned()), "f.yaml".into())))
    }

    fn contents(journal: &Journal) -> Vec<(String, Bytes, u64, u64)> {
        let of = |s: &Stored| {
            (s.object.key.clone(), s.object.value.clone(), s.object.create_revision, s.object.mod_revision)
        };
        journal.objects.values().map(of).collect()
    }

    #[test]
    fn a_second_reader_sees_the_same_history() {
        let (_dir, mut writer) = journal();
        writer.append(vec![put("a", "{\"x\":1}"), put("b", "{}")]).unwrap();
        writer.append(vec![put("a", "{\"x\":2}"), ("b".into(), None)]).unwrap();
        let mut reader = Journal::new(writer.path.clone());
        reader.refresh().unwrap();
        assert_eq!(contents(&reader), contents(&writer));
        assert_eq!((reader.revision, &reader.history), (4, &writer.history));
        assert_eq!(reader.at(2).len(), 2);
        assert_eq!(contents(&reader), [("a".into(), Bytes::from("{\"x\":2}"), 1, 3)]);
    }

    #[test]
    fn an_unfinished_line_does_not_count_and_is_cut_off() {
        let (_dir, mut writer) = journal();
        writer.append(vec![put("a", "{}")]).unwrap();
        let mut file = File::options().append(true).open(&writer.path).unwrap();
        file.write_all(b"{\"revision\":2,\"key\":\"b\",\"val").unwrap();
        writer.refresh().unwrap();
        assert_eq!(writer.revision, 1);
        writer.append(vec![put("c", "{}")]).unwrap();
        let mut reader = Journal::new(writer.path.clone());
        reader.refresh().unwrap();
        assert_eq!(contents(&reader), contents(&writer));
    }

    #[test]
    fn cutting_back_keeps_revisions_and_the_newest_changes() {
        let (_dir, mut writer) = journal();
        for i in 0..10 {
            writer.append(vec![put(&format!("k{}", i % 3), &format!("{{\"i\":{i}}}"))]).unwrap();
        }
        let mut reader = Journal::new(writer.path.clone());
        reader.refresh().unwrap();
        let before = contents(&reader);
        writer.cut_back(4).unwrap();
        reader.refresh().unwrap();
        assert_eq!(contents(&reader), before);
        assert_eq!((reader.compacted, reader.revision, reader.changes.len()), (6, 10, 4));
        assert_eq!(reader.at(7).len(), 3);
    }
}
