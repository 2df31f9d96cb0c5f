//! A folder of manifests, as `calicoctl` reads them: the datastore of a first run, of demos and of single
//! hosts.
//!
//! Files are the truth of today, the journal (`.bulrush/journal`) of history. Every operation takes the lock
//! of the folder, reads what others have appended, and then gives whatever was edited by hand a revision;
//! so replicas on one folder, in one process or in many, have the same content at every revision. A write
//! changes the file first and the journal after it: a crash between the two looks like an edit by hand.
//!
//! Objects that no manifest can express (status of endpoints, for one) live in the journal alone.
//!
//! No task runs in the background. All file access is blocking and runs on the blocking pool; the mutex is
//! held there only.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use notify::Watcher;
use tokio::sync::Notify;

use super::{
    Datastore, Error, Head, KeyValue, Listing, MAX_VALUE_BYTES, PREFIX, Result, Revision, Source, Watch,
    WatchItem,
};

mod edit;
mod folder;
mod journal;
mod write;

use folder::Folder;
use journal::{Journal, STATE_DIR};

/// Changes come in bursts: one look for all of them.
const BURST: Duration = Duration::from_millis(10);

/// How many rests the first state waits at most for files that are being written: one that is written all the time
/// does not hold up the others.
const FIRST_RESTS: u32 = 10;

/// How the folder is followed.
#[derive(Clone, Copy, Debug)]
pub struct DirectoryOptions {
    /// A file counts when it has not changed for so long.
    pub rest: Duration,
    /// The folder is read again at least so often, also where the kernel reports nothing (network folders).
    pub rescan: Duration,
    /// Revisions that stay readable; up to twice as many are kept.
    pub keep_revisions: usize,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        let rest = Duration::from_millis(200);
        Self { rest, rescan: Duration::from_secs(2), keep_revisions: 10_000 }
    }
}

/// A folder of manifests. Cheap to clone.
#[derive(Clone)]
pub struct DirectoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    options: DirectoryOptions,
    replica: Mutex<Option<Replica>>,
    looks: AtomicU64,
    /// Every file that was there at the start has been read, or does not come to rest.
    begun: AtomicBool,
}

struct Replica {
    journal: Journal,
    folder: Folder,
    unsettled: bool,
}

impl Shared {
    /// Runs `work` under the lock of the folder, with everything that happened before taken in.
    fn with<T>(&self, work: impl FnOnce(&mut Replica, &Path) -> Result<T>) -> Result<T> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        let mut slot = self.replica.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = journal::lock(&self.root)?;
        let replica = match slot.as_mut() {
            Some(replica) => {
                replica.journal.catch_up()?;
                replica
            }
            None => {
                let journal = Journal::open(&self.root, self.options.keep_revisions)?;
                slot.insert(Replica { journal, folder: Folder::default(), unsettled: false })
            }
        };
        replica.absorb(&self.root, self.options.rest)?;
        work(replica, &self.root)
    }
}

impl Replica {
    /// Gives edits by hand their revision.
    fn absorb(&mut self, root: &Path, rest: Duration) -> Result<()> {
        let scan = self.folder.scan(root, &self.journal.objects, rest)?;
        self.unsettled = scan.unsettled;
        if !scan.changes.is_empty() {
            let objects = scan.changes.len();
            let revision = self.journal.append(scan.changes)?;
            tracing::info!(revision, objects, "took in edits of the folder");
        }
        Ok(())
    }
}

impl DirectoryStore {
    /// Opens a folder; one that is not there is made.
    pub async fn open(path: PathBuf) -> Result<Self> {
        Self::open_with(path, DirectoryOptions::default()).await
    }

    pub async fn open_with(path: PathBuf, options: DirectoryOptions) -> Result<Self> {
        let invalid = |error: std::io::Error| Error::Invalid {
            what: format!("folder of manifests {}", path.display()),
            reason: error.to_string(),
        };
        tokio::fs::create_dir_all(path.join(STATE_DIR)).await.map_err(invalid)?;
        // The same folder when the working directory changes.
        let root = tokio::fs::canonicalize(&path).await.map_err(invalid)?;
        Ok(Self {
            shared: Arc::new(Shared {
                root,
                options,
                replica: Mutex::new(None),
                looks: AtomicU64::new(0),
                begun: AtomicBool::new(false),
            }),
        })
    }

    /// Files (relative) whose content can not be used, and why.
    pub async fn problems(&self) -> Result<Vec<(PathBuf, String)>> {
        self.blocking(|replica, _| Ok(replica.folder.problems())).await
    }

    /// How often the folder was read.
    pub fn looks(&self) -> u64 {
        self.shared.looks.load(Ordering::Relaxed)
    }

    /// Waits, once, for files that were being written when this process came: without them the first state would be
    /// a part of the folder, and in a new folder nothing, and would be taken for all there is.
    async fn begin(&self) -> Result<()> {
        let begun = &self.shared.begun;
        for _ in 0..FIRST_RESTS {
            if begun.load(Ordering::Relaxed) || self.blocking(|replica, _| Ok(!replica.unsettled)).await? {
                break;
            }
            tokio::time::sleep(self.shared.options.rest).await;
        }
        begun.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Replica, &Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || shared.with(work)).await.unwrap_or_else(|error| {
            Err(Error::Unavailable { what: "folder of manifests".into(), reason: error.to_string() })
        })
    }
}

#[async_trait]
impl Source for DirectoryStore {
    fn name(&self) -> &str {
        "directory"
    }

    async fn history(&self) -> Result<String> {
        self.blocking(|replica, _| Ok(replica.journal.history.clone())).await
    }

    async fn head(&self) -> Result<Head> {
        self.begin().await?;
        let started = Instant::now();
        self.blocking(move |replica, _| Ok(Head { revision: replica.journal.revision, started })).await
    }

    async fn list(&self, at: Option<Revision>) -> Result<Listing> {
        self.begin().await?;
        self.blocking(move |replica, _| replica.journal.list(at)).await
    }

    async fn watch(&self, after: Revision) -> Result<Watch> {
        let changed = Arc::new(Notify::new());
        let (root, signal) = (self.shared.root.clone(), changed.clone());
        // Watched before the first look, so that nothing falls between.
        let watcher = tokio::task::spawn_blocking(move || watch_folder(&root, signal)).await.ok().flatten();
        let options = self.shared.options;
        let mut follow = Follow {
            store: self.clone(),
            after,
            history: self.history().await?,
            rescan: if watcher.is_some() { options.rescan } else { options.rest },
            _watcher: watcher,
            changed,
            unsettled: false,
            ready: VecDeque::new(),
            failed: false,
        };
        follow.look().await?;
        Ok(futures::stream::unfold(follow, Follow::next).boxed())
    }
}

#[async_trait]
impl Datastore for DirectoryStore {
    fn sources(self: Arc<Self>) -> Vec<Arc<dyn Source>> {
        vec![self]
    }

    /// Of the manifests in the folder: Secrets have no key, and no revision counts their changes.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, String>>> {
        let root = self.shared.root.clone();
        let wanted = (namespace.to_owned(), name.to_owned());
        let search = tokio::task::spawn_blocking(move || folder::secret(&root, &wanted.0, &wanted.1));
        search.await.map_err(|error| Error::Unavailable {
            what: "reading the folder of manifests".into(),
            reason: error.to_string(),
        })
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        let key = key.to_owned();
        self.blocking(move |replica, _| {
            Ok(replica.journal.objects.get(&key).map(|object| object.item.clone()))
        })
        .await
    }

    async fn get_prefix(&self, prefix: &str) -> Result<Vec<KeyValue>> {
        let prefix = prefix.to_owned();
        self.blocking(move |replica, _| {
            let from = replica.journal.objects.range(prefix.clone()..);
            let within = from.take_while(|(key, _)| key.starts_with(&prefix));
            Ok(within.map(|(_, object)| object.item.clone()).collect())
        })
        .await
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<Revision> {
        let (key, value) = checked(key, value)?;
        self.blocking(move |replica, root| {
            if replica.journal.objects.contains_key(&key) {
                return Err(Error::Conflict { key, reason: "exists already".into() });
            }
            replica.put(root, key, value)
        })
        .await
    }

    async fn replace(&self, key: &str, value: Bytes, expected: Revision) -> Result<Revision> {
        let (key, value) = checked(key, value)?;
        self.blocking(move |replica, root| {
            replica.expect(&key, Some(expected))?;
            replica.put(root, key, value)
        })
        .await
    }

    async fn delete(&self, key: &str, expected: Option<Revision>) -> Result<Revision> {
        let key = key.to_owned();
        self.blocking(move |replica, root| {
            replica.expect(&key, expected)?;
            replica.remove(root, key)
        })
        .await
    }
}

/// Refuses what could not be listed again.
fn checked(key: &str, value: Bytes) -> Result<(String, String)> {
    let invalid = |reason: String| Error::Invalid { what: format!("write of {key}"), reason };
    if !key.starts_with(PREFIX) {
        return Err(invalid(format!("the key does not begin with {PREFIX}")));
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err(invalid(format!("{} bytes are more than {MAX_VALUE_BYTES}", value.len())));
    }
    let text = String::from_utf8(value.into()).map_err(|error| invalid(error.to_string()))?;
    Ok((key.to_owned(), text))
}

/// Wakes `changed` when something in the folder changes. `None`: the kernel can not tell; then the folder
/// is read often.
fn watch_folder(root: &Path, changed: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let lock = root.join(STATE_DIR).join("lock");
    let handler = move |event: notify::Result<notify::Event>| {
        let relevant = match &event {
            // Reading is no change, and taking the lock least of all: it happens at every look.
            Ok(event) => !event.kind.is_access() && event.paths.as_slice() != std::slice::from_ref(&lock),
            // Events were lost: look.
            Err(_) => true,
        };
        if relevant {
            changed.notify_one();
        }
    };
    let started = notify::recommended_watcher(handler).and_then(|mut watcher| {
        watcher.watch(root, notify::RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    started
        .inspect_err(|error| {
            tracing::warn!(folder = %root.display(), %error, "folder can not be watched; reading it often");
        })
        .ok()
}

/// A watch of the folder.
struct Follow {
    store: DirectoryStore,
    after: Revision,
    history: String,
    rescan: Duration,
    _watcher: Option<notify::RecommendedWatcher>,
    changed: Arc<Notify>,
    unsettled: bool,
    ready: VecDeque<WatchItem>,
    failed: bool,
}

impl Follow {
    async fn next(mut self) -> Option<(Result<WatchItem>, Self)> {
        if self.failed {
            return None;
        }
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some((Ok(item), self));
            }
            let rest = self.store.shared.options.rest;
            let longest = if self.unsettled { rest } else { self.rescan };
            tokio::select! {
                () = self.changed.notified() => tokio::time::sleep(BURST).await,
                () = tokio::time::sleep(longest) => {}
            }
            if let Err(error) = self.look().await {
                self.failed = true;
                return Some((Err(error), self));
            }
        }
    }

    async fn look(&mut self) -> Result<()> {
        let (after, history) = (self.after, self.history.clone());
        let looked = self.store.blocking(move |replica, _| {
            if replica.journal.history != history {
                let what = "watch of the folder".to_owned();
                return Err(Error::Unavailable { what, reason: "the folder has another history".into() });
            }
            Ok((replica.journal.after(after)?, replica.unsettled))
        });
        let (found, unsettled) = looked.await?;
        self.unsettled = unsettled;
        for (revision, events) in found {
            self.after = revision;
            self.ready.push_back(WatchItem::Events { revision, events });
        }
        Ok(())
    }
}
