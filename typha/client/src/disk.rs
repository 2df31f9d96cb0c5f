//! The last state that was proven, on disk: after a reboot the agent enforces it before any server answers. An agent that
//! restarts alone finds a kernel that may be ahead of the file: then the file only shortens what the server has to send.
//!
//! What is kept is what was delivered, and the token that says how far that had come, in one transaction: the first server
//! then resumes from there. Passwords of BGP sessions are not among it. A transaction is synced once a second at most, so what
//! a crash of the machine loses is asked for again. The first cut of a run is written at once: what was enforced before it is out
//! of date from then on, and an agent that starts again in this run of the kernel must not enforce it once more.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::Message;
use proto::sync::Token;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use syncer_common::model::Kind;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Whose state it is: node, agent, software.
const IDENTITY: &str = "identity";
/// In which run of the kernel it was written.
const BOOT: &str = "boot";
const TOKEN: &str = "token";
const KINDS: &str = "kinds";
/// Between transactions.
const EVERY: Duration = Duration::from_secs(1);
/// Pages of the file that are kept in memory.
const CACHE_BYTES: usize = 1 << 20;

/// A change of what is held: nothing means that it is gone.
pub(crate) type Record = (Arc<str>, Option<Bytes>);

/// What was found.
pub(crate) struct Saved {
    pub entries: Vec<(String, Bytes)>,
    pub token: Token,
    pub kinds: Vec<Kind>,
    /// The kernel has started since.
    pub rebooted: bool,
}

pub(crate) struct Disk {
    path: PathBuf,
    database: Arc<Database>,
    identity: String,
    boot: String,
    /// Since the last cut.
    pending: HashMap<Arc<str>, Option<Bytes>>,
    /// Up to the last cut, and not written yet.
    due: HashMap<Arc<str>, Option<Bytes>>,
    proven: Option<(Token, Vec<Kind>)>,
    /// The last transaction, and when it began.
    writing: Option<JoinHandle<Result<(), Fault>>>,
    began: Option<Instant>,
    /// A write failed: what is delivered now is no whole state without what that lost.
    given_up: bool,
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Database(#[from] redb::Error),
    #[error("its token cannot be read: {0}")]
    Token(#[from] prost::DecodeError),
    #[error("reading it panicked")]
    Panic,
}

fn fault(error: impl Into<redb::Error>) -> Fault {
    Fault::Database(error.into())
}

impl Disk {
    /// Opens the file, or makes it, in the run of the kernel that `boot` names. A file that cannot be read is set aside, and
    /// named.
    pub fn open(path: &Path, identity: String, boot: String) -> io::Result<(Disk, Option<Saved>)> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let existed = path.exists();
        // A file with arbitrary bytes in it may make the library panic as well.
        let opened = catch_unwind(|| {
            let database = database(path)?;
            let saved = load(&database, &identity, &boot)?;
            Ok((database, saved))
        });
        let opened = opened.unwrap_or(Err(Fault::Panic));
        let (database, saved) = match opened {
            Ok(opened) => opened,
            Err(Fault::Database(redb::Error::Io(error))) if !existed => return Err(error),
            Err(Fault::Database(error @ redb::Error::DatabaseAlreadyOpen)) => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, error));
            }
            Err(reason) => {
                let aside = aside(path);
                std::fs::rename(path, &aside)?;
                tracing::error!(
                    file = %path.display(),
                    aside = %aside.display(),
                    %reason,
                    "the state on disk cannot be read: set aside; nothing is enforced until a server answers"
                );
                let database = database(path).map_err(|error| io::Error::other(error.to_string()))?;
                (database, None)
            }
        };
        let disk = Disk {
            path: path.to_owned(),
            database: Arc::new(database),
            identity,
            boot,
            pending: HashMap::new(),
            due: HashMap::new(),
            proven: None,
            writing: None,
            began: None,
            given_up: false,
        };
        Ok((disk, saved))
    }

    pub fn record(&mut self, records: Vec<Record>) {
        if !self.given_up {
            self.pending.extend(records);
        }
    }

    /// What was recorded is proven by this token.
    pub fn cut(&mut self, token: Token, kinds: &[Kind]) {
        if self.given_up {
            return;
        }
        // Not drained: the room of a whole snapshot would stay.
        self.due.extend(std::mem::take(&mut self.pending));
        self.proven = Some((token, kinds.to_vec()));
    }

    /// Begins to write what is due, if it is time. The stream does not wait for the disk.
    pub async fn write(&mut self) {
        let early = self.began.is_some_and(|began| began.elapsed() < EVERY);
        if early || self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        self.finish().await;
        let Some((token, kinds)) = self.proven.take() else { return };
        let (database, identity, boot) = (self.database.clone(), self.identity.clone(), self.boot.clone());
        let due = std::mem::take(&mut self.due);
        self.began = Some(Instant::now());
        self.writing = Some(tokio::task::spawn_blocking(move || {
            store(&database, [&identity, &boot], &due, &token, &kinds)
        }));
    }

    /// Waits for the transaction that was begun, if there is one.
    async fn finish(&mut self) {
        let reason = match self.writing.take() {
            None => return,
            Some(writing) => match writing.await {
                Ok(Ok(())) => return,
                Ok(Err(reason)) => reason.to_string(),
                Err(reason) => reason.to_string(),
            },
        };
        // The file still holds a state that was proven, with its token: older, and as true.
        tracing::error!(
            file = %self.path.display(),
            reason,
            "the state on disk stays as it was until this agent starts again: is the disk full?"
        );
        self.given_up = true;
        (self.pending, self.due, self.proven) = (HashMap::new(), HashMap::new(), None);
    }
}

fn aside(path: &Path) -> PathBuf {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".corrupt-{seconds}"));
    path.with_file_name(name)
}

fn database(path: &Path) -> Result<Database, Fault> {
    // It says who may talk to whom: nobody's business but root's.
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(|error| fault(redb::Error::Io(error)))?;
    let file = FileBackend::new(file).map_err(fault)?;
    let mut database =
        Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(file).map_err(fault)?;
    // Every page is read once: a file that is wrong somewhere is wrong as a whole.
    if !database.check_integrity().map_err(fault)? {
        tracing::warn!(file = %path.display(), "the state on disk was not closed properly, and was repaired");
    }
    Ok(database)
}

/// Nothing: there is no proven state of this agent in it.
fn load(database: &Database, identity: &str, boot: &str) -> Result<Option<Saved>, Fault> {
    let reading = database.begin_read().map_err(fault)?;
    let meta = match reading.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(fault(error)),
    };
    let get = |name: &str| -> Result<Option<Vec<u8>>, Fault> {
        Ok(meta.get(name).map_err(fault)?.map(|value| value.value().to_vec()))
    };
    let (Some(whose), Some(token), Some(kinds)) = (get(IDENTITY)?, get(TOKEN)?, get(KINDS)?) else {
        return Ok(None);
    };
    if whose != identity.as_bytes() {
        tracing::info!(
            of = %String::from_utf8_lossy(&whose),
            "the state on disk is that of another agent or version: not used"
        );
        return Ok(None);
    }
    let token = Token::decode(token.as_slice())?;
    let kinds = String::from_utf8_lossy(&kinds).split(',').filter_map(Kind::from_name).collect();
    let table = reading.open_table(ENTRIES).map_err(fault)?;
    let mut entries = Vec::new();
    for entry in table.iter().map_err(fault)? {
        let (key, value) = entry.map_err(fault)?;
        entries.push((key.value().to_owned(), Bytes::copy_from_slice(value.value())));
    }
    let rebooted = get(BOOT)?.is_none_or(|written| written != boot.as_bytes());
    Ok(Some(Saved { entries, token, kinds, rebooted }))
}

fn store(
    database: &Database,
    [identity, boot]: [&str; 2],
    due: &HashMap<Arc<str>, Option<Bytes>>,
    token: &Token,
    kinds: &[Kind],
) -> Result<(), Fault> {
    let writing = database.begin_write().map_err(fault)?;
    {
        let mut meta = writing.open_table(META).map_err(fault)?;
        let is_own =
            meta.get(IDENTITY).map_err(fault)?.is_some_and(|whose| whose.value() == identity.as_bytes());
        if !is_own {
            // What another version left is no part of this state.
            writing.delete_table(ENTRIES).map_err(fault)?;
            meta.insert(IDENTITY, identity.as_bytes()).map_err(fault)?;
        }
        meta.insert(BOOT, boot.as_bytes()).map_err(fault)?;
        let mut entries = writing.open_table(ENTRIES).map_err(fault)?;
        for (key, value) in due {
            match value {
                Some(value) => entries.insert(&**key, &**value).map_err(fault)?,
                None => entries.remove(&**key).map_err(fault)?,
            };
        }
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        meta.insert(TOKEN, token.encode_to_vec().as_slice()).map_err(fault)?;
        meta.insert(KINDS, names.join(",").as_bytes()).map_err(fault)?;
    }
    writing.commit().map_err(fault)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    fn open(file: &Path, identity: &str) -> io::Result<(Disk, Option<Saved>)> {
        Disk::open(file, identity.into(), "boot 1".into())
    }

    fn token(seq: u64) -> Token {
        Token { history: "h".into(), epoch: "e".into(), seq, ..Token::default() }
    }

    fn record(key: &str, value: Option<&'static str>) -> Record {
        (key.into(), value.map(|value| Bytes::from_static(value.as_bytes())))
    }

    fn found(saved: &Saved) -> Vec<(&str, &[u8])> {
        saved.entries.iter().map(|(key, value)| (key.as_str(), &**value)).collect()
    }

    async fn written(disk: &mut Disk) {
        tokio::time::sleep(EVERY).await;
        disk.write().await;
        disk.finish().await;
        assert!(!disk.given_up);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_cut_proves_is_there_after_a_restart_and_what_came_after_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/state");
        let (mut disk, saved) = open(&file, "n1").unwrap();
        assert!(saved.is_none());
        disk.record(vec![record("/a", Some("1")), record("/b", Some("2"))]);
        disk.cut(token(1), &[Kind::Policy]);
        disk.record(vec![record("/a", Some("3"))]);
        written(&mut disk).await;
        drop(disk);

        let (mut disk, saved) = open(&file, "n1").unwrap();
        let saved = saved.unwrap();
        assert_eq!(found(&saved), [("/a", &b"1"[..]), ("/b", b"2")]);
        assert!(!saved.rebooted, "the kernel has it all");
        assert_eq!((saved.token, saved.kinds), (token(1), vec![Kind::Policy]));
        disk.record(vec![record("/b", None)]);
        disk.cut(token(2), &[Kind::Policy]);
        written(&mut disk).await;
        drop(disk);
        let (disk, saved) = open(&file, "n1").unwrap();
        assert_eq!(found(&saved.unwrap()), [("/a", &b"1"[..])]);
        drop(disk);

        // Another version: not its state, and nothing of it stays.
        let (mut disk, saved) = open(&file, "n1 newer").unwrap();
        assert!(saved.is_none());
        disk.record(vec![record("/c", Some("4"))]);
        disk.cut(token(3), &[Kind::Policy]);
        written(&mut disk).await;
        drop(disk);
        let (_, saved) = Disk::open(&file, "n1 newer".into(), "boot 2".into()).unwrap();
        let saved = saved.unwrap();
        assert!(saved.rebooted);
        assert_eq!(found(&saved), [("/c", &b"4"[..])]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_cut_of_a_run_is_written_at_once_and_the_next_a_second_later() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state");
        let (mut disk, _) = open(&file, "n1").unwrap();
        for (seq, value) in [(1, "1"), (2, "2")] {
            disk.record(vec![record("/a", Some(value))]);
            disk.cut(token(seq), &[Kind::Policy]);
            disk.write().await;
            disk.finish().await;
        }
        drop(disk);
        let (mut disk, saved) = Disk::open(&file, "n1".into(), "boot 2".into()).unwrap();
        let saved = saved.unwrap();
        assert_eq!((found(&saved), saved.token.clone()), (vec![("/a", &b"1"[..])], token(1)));
        assert!(saved.rebooted);
        // The same state once more, proven after a reboot: from now on it is this run's.
        disk.cut(token(1), &[Kind::Policy]);
        disk.write().await;
        disk.finish().await;
        drop(disk);
        assert!(!Disk::open(&file, "n1".into(), "boot 2".into()).unwrap().1.unwrap().rebooted);
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_cannot_be_read_is_set_aside_and_one_in_use_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state");
        let (mut disk, _) = open(&file, "n1").unwrap();
        assert!(open(&file, "n1").is_err(), "two agents");
        let keys: Vec<String> = (0..500).map(|n| format!("/key-{n}")).collect();
        disk.record(keys.iter().map(|key| record(key, Some("a value of some length"))).collect());
        disk.cut(token(1), &[Kind::Policy]);
        written(&mut disk).await;
        drop(disk);
        assert_eq!(names(dir.path()), ["state"]);
        let good = std::fs::read(&file).unwrap();

        let mut aside = 0;
        for seed in 0..60 {
            let mut bytes = good.clone();
            let mut random = StdRng::seed_from_u64(seed);
            match seed % 4 {
                0 => bytes.truncate(random.random_range(1..bytes.len())),
                _ => (0..64).for_each(|_| {
                    let place = random.random_range(0..bytes.len());
                    bytes[place] = random.random();
                }),
            }
            std::fs::write(&file, bytes).unwrap();
            let (disk, saved) = open(&file, "n1").unwrap();
            let set_aside = names(dir.path()).iter().any(|name| name.starts_with("state.corrupt-"));
            match saved {
                // What was changed is not in use.
                Some(saved) => {
                    assert!(!set_aside && saved.token == token(1) && saved.entries.len() == keys.len());
                    assert!(saved.entries.iter().all(|(_, value)| &**value == b"a value of some length"));
                }
                None => assert!(set_aside, "seed {seed}: nothing there, and nothing said"),
            }
            drop(disk);
            aside += u32::from(set_aside);
            names(dir.path()).iter().for_each(|name| std::fs::remove_file(dir.path().join(name)).unwrap());
        }
        assert!(aside > 30, "only {aside} were set aside");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_transaction_leaves_the_older_state() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state");
        let (mut disk, _) = open(&file, "n1").unwrap();
        disk.record(vec![record("/a", Some("1"))]);
        disk.cut(token(1), &[Kind::Policy]);
        written(&mut disk).await;
        // As on a full disk.
        disk.writing = Some(tokio::task::spawn_blocking(|| Err(Fault::Panic)));
        disk.finish().await;
        disk.record(vec![record("/a", Some("2"))]);
        disk.cut(token(2), &[Kind::Policy]);
        tokio::time::sleep(EVERY).await;
        disk.write().await;
        drop(disk);
        let saved = open(&file, "n1").unwrap().1.unwrap();
        assert_eq!((found(&saved), saved.token.clone()), (vec![("/a", &b"1"[..])], token(1)));
    }
}
