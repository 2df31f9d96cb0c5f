//! What is particular to a folder of manifests: edits by hand, half-written files, several replicas, and
//! writers that die.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use syncer_common::backend::directory::{DirectoryOptions, DirectoryStore};
use syncer_common::backend::{Datastore, Error, Event, Revision, Source, WatchItem};

use crate::support::{State, eventually, key, net, next, value};

const OPTIONS: DirectoryOptions = DirectoryOptions {
    rest: Duration::from_millis(100),
    rescan: Duration::from_secs(1),
    keep_revisions: 1_000,
};

async fn replica(dir: &Path) -> DirectoryStore {
    DirectoryStore::open_with(dir.to_owned(), OPTIONS).await.unwrap()
}

fn manifest(name: &str, net: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata:\n  name: {name}\nspec:\n  nets: [{net}]\n"
    )
}

async fn has(store: &DirectoryStore, name: &str, expected: Option<&str>) {
    eventually(&format!("{name} is {expected:?}"), || async {
        let found = store.get(&key(name)).await.unwrap();
        (found.map(|item| net(&item)).as_deref() == expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_by_hand_reach_the_watch() {
    let dir = tempfile::tempdir().unwrap();
    let store = replica(dir.path()).await;
    let mut state = State::from(store.list(None).await.unwrap());
    let mut watch = store.watch(state.revision).await.unwrap();
    let file = dir.path().join("sets.yaml");
    let two = format!("{}---\n{}", manifest("a", "10.0.0.0/24"), manifest("b", "10.1.0.0/24"));
    std::fs::write(&file, two).unwrap();
    state.apply(next(&mut watch).await.unwrap());
    assert_eq!(
        state.items.keys().cloned().collect::<Vec<_>>(),
        [key("a"), key("b")],
        "one file, one revision"
    );
    std::fs::write(&file, manifest("b", "10.2.0.0/24")).unwrap();
    state.apply(next(&mut watch).await.unwrap());
    assert_eq!(state.items.len(), 1);
    assert_eq!(net(&state.items[&key("b")]), "10.2.0.0/24");
    std::fs::remove_file(&file).unwrap();
    state.apply(next(&mut watch).await.unwrap());
    assert!(state.items.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_file_keeps_its_last_good_objects() {
    let dir = tempfile::tempdir().unwrap();
    let store = replica(dir.path()).await;
    let file = dir.path().join("a.yaml");
    std::fs::write(&file, manifest("a", "10.0.0.0/24")).unwrap();
    has(&store, "a", Some("10.0.0.0/24")).await;
    let good = store.head().await.unwrap().revision;
    std::fs::write(&file, "apiVersion: projectcalico.org/v3\nkind: [").unwrap();
    eventually("the problem is known", || async {
        store.problems().await.unwrap().iter().any(|(file, _)| file == Path::new("a.yaml")).then_some(())
    })
    .await;
    has(&store, "a", Some("10.0.0.0/24")).await;
    assert_eq!(store.head().await.unwrap().revision, good);
    let refused = store.replace(&key("a"), value("a", "10.9.0.0/24"), good).await;
    assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");
    std::fs::write(&file, manifest("a", "10.3.0.0/24")).unwrap();
    has(&store, "a", Some("10.3.0.0/24")).await;
    assert!(store.problems().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn write_changes_the_document_where_the_object_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = replica(dir.path()).await;
    let file = dir.path().join("sets.yaml");
    let text =
        format!("# ours\n{}---\n# theirs\n{}", manifest("a", "10.0.0.0/24"), manifest("b", "10.1.0.0/24"));
    std::fs::write(&file, text).unwrap();
    has(&store, "a", Some("10.0.0.0/24")).await;
    let item = store.get(&key("a")).await.unwrap().unwrap();
    store.replace(&key("a"), value("a", "10.7.0.0/24"), item.mod_revision).await.unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("10.7.0.0/24") && text.contains("# theirs"), "{text}");
    store.create(&key("c"), value("c", "10.8.0.0/24")).await.unwrap();
    assert!(dir.path().join("globalnetworksets/c.yaml").is_file());
    store.delete(&key("c"), None).await.unwrap();
    assert!(!dir.path().join("globalnetworksets/c.yaml").exists());
    store.delete(&key("a"), None).await.unwrap();
    let revision = store.head().await.unwrap().revision;
    tokio::time::sleep(OPTIONS.rest * 3).await;
    assert_eq!(store.head().await.unwrap().revision, revision, "own writes are not taken for edits");
    assert_eq!(store.list(None).await.unwrap().items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_replicas_agree_on_every_revision() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (replica(dir.path()).await, replica(dir.path()).await);
    let start = one.head().await.unwrap().revision;
    let mut watches = [one.watch(start).await.unwrap(), two.watch(start).await.unwrap()];
    let path = dir.path().to_owned();
    let by_hand = async {
        for round in 0..10 {
            let text = manifest("hand", &format!("10.{round}.0.0/24"));
            tokio::fs::write(path.join("hand.yaml"), text).await.unwrap();
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    };
    let write = async |store: DirectoryStore, name: &'static str| {
        let mut expected = store.create(&key(name), value(name, "10.0.0.0/24")).await.unwrap();
        for round in 1..15 {
            let content = value(name, &format!("10.{round}.0.0/24"));
            expected = store.replace(&key(name), content, expected).await.unwrap();
        }
    };
    tokio::join!(by_hand, write(one.clone(), "x"), write(two.clone(), "y"));
    has(&one, "hand", Some("10.9.0.0/24")).await;
    let last = one.head().await.unwrap().revision;
    let mut seen = Vec::new();
    for watch in &mut watches {
        let mut state = State { revision: start, ..State::default() };
        let mut states: Vec<(Revision, State)> = Vec::new();
        while state.revision < last {
            state.apply(next(watch).await.unwrap());
            states.push((state.revision, state.clone()));
        }
        seen.push(states);
    }
    assert_eq!(seen[0], seen[1]);
    for (revision, state) in &seen[0] {
        let listed = State::from(two.list(Some(*revision)).await.unwrap());
        assert_eq!(&listed, state, "at {revision}");
    }
    assert!(seen[0].len() >= 31, "{}", seen[0].len());
}

#[tokio::test(flavor = "multi_thread")]
async fn trimmed_history_is_told_to_list_and_watch() {
    let dir = tempfile::tempdir().unwrap();
    let options = DirectoryOptions { keep_revisions: 5, ..OPTIONS };
    let store = DirectoryStore::open_with(dir.path().to_owned(), options).await.unwrap();
    let mut revision = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let first = revision;
    for round in 0..30 {
        let content = value("a", &format!("10.{round}.1.0/24"));
        revision = store.replace(&key("a"), content, revision).await.unwrap();
    }
    assert!(matches!(store.list(Some(first)).await, Err(Error::Compacted { .. })));
    assert!(matches!(store.watch(first).await.err(), Some(Error::Compacted { .. })));
    assert_eq!(store.list(Some(revision - 3)).await.unwrap().items.len(), 1);
    assert!(matches!(store.watch(revision + 9).await.err(), Some(Error::Rewound { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_died_before_the_journal_is_taken_in_as_an_edit() {
    let dir = tempfile::tempdir().unwrap();
    let store = replica(dir.path()).await;
    store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let file = dir.path().join("globalnetworksets/a.yaml");
    let text = std::fs::read_to_string(&file).unwrap().replace("10.0.0.0/24", "10.5.0.0/24");
    std::fs::write(&file, text).unwrap();
    let fresh = replica(dir.path()).await;
    has(&fresh, "a", Some("10.5.0.0/24")).await;
    has(&store, "a", Some("10.5.0.0/24")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_state_waits_for_manifests_that_were_just_written() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), manifest("a", "10.0.0.0/24")).unwrap();
    let listing = replica(dir.path()).await.list(None).await.unwrap();
    assert_eq!(listing.items.iter().map(|item| item.key.clone()).collect::<Vec<_>>(), [key("a")]);
    // Nor is the position of a part of them told to anybody.
    std::fs::write(dir.path().join("b.yaml"), manifest("b", "10.1.0.0/24")).unwrap();
    let another = replica(dir.path()).await;
    let head = another.head().await.unwrap();
    assert_eq!(another.list(Some(head.revision)).await.unwrap().items.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn edit_by_hand_is_not_overwritten_by_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let options = DirectoryOptions { rest: Duration::from_secs(60), ..OPTIONS };
    let store = DirectoryStore::open_with(dir.path().to_owned(), options).await.unwrap();
    let created = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let file = dir.path().join("globalnetworksets/a.yaml");
    std::fs::write(&file, manifest("a", "10.6.0.0/24")).unwrap();
    let refused = store.replace(&key("a"), value("a", "10.1.0.0/24"), created).await;
    assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");
    assert!(std::fs::read_to_string(&file).unwrap().contains("10.6.0.0/24"));
}

#[tokio::test(flavor = "multi_thread")]
async fn editor_that_replaces_a_file_deletes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = DirectoryOptions { rest: Duration::from_millis(500), ..OPTIONS };
    let store = DirectoryStore::open_with(dir.path().to_owned(), options).await.unwrap();
    let file = dir.path().join("a.yaml");
    std::fs::write(&file, manifest("a", "10.0.0.0/24")).unwrap();
    has(&store, "a", Some("10.0.0.0/24")).await;
    let start = store.head().await.unwrap().revision;
    let mut watch = store.watch(start).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    store.head().await.unwrap();
    std::fs::write(&file, manifest("a", "10.1.0.0/24")).unwrap();
    let WatchItem::Events { events, .. } = next(&mut watch).await.unwrap() else { panic!("no events") };
    assert!(matches!(&events[..], [Event::Put(item)] if net(item) == "10.1.0.0/24"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_files_with_one_object_the_later_counts_until_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let store = replica(dir.path()).await;
    std::fs::write(dir.path().join("b.yaml"), manifest("a", "10.2.0.0/24")).unwrap();
    has(&store, "a", Some("10.2.0.0/24")).await;
    std::fs::write(dir.path().join("a.yaml"), manifest("a", "10.1.0.0/24")).unwrap();
    std::fs::write(dir.path().join("c.yaml"), manifest("a", "10.3.0.0/24")).unwrap();
    has(&store, "a", Some("10.3.0.0/24")).await;
    std::fs::remove_file(dir.path().join("c.yaml")).unwrap();
    has(&store, "a", Some("10.2.0.0/24")).await;
    store.delete(&key("a"), None).await.unwrap();
    tokio::time::sleep(OPTIONS.rest * 3).await;
    has(&store, "a", None).await;
}

/// Policies were once stored under another name than their own: a manifest can not say so.
#[tokio::test(flavor = "multi_thread")]
async fn object_stored_under_an_old_name_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = replica(dir.path()).await;
    let key = "/calico/resources/v3/projectcalico.org/globalnetworkpolicies/default.allow";
    let text = r#"{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.allow"},"spec":{"order":10}}"#;
    let created = store.create(key, text.into()).await.unwrap();
    tokio::time::sleep(OPTIONS.rest * 3).await;
    let listing = replica(dir.path()).await.list(None).await.unwrap();
    assert_eq!(listing.revision, created, "nothing was made of it by reading it");
    assert_eq!(listing.items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), [key]);
}

/// Taking the lock, reading the journal and the manifests must not look like changes.
#[tokio::test(flavor = "multi_thread")]
async fn quiet_folder_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let options = DirectoryOptions { rescan: Duration::from_secs(60), ..OPTIONS };
    let store = DirectoryStore::open_with(dir.path().to_owned(), options).await.unwrap();
    let created = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let mut watch = store.watch(created).await.unwrap();
    let silent = tokio::time::timeout(OPTIONS.rest * 6, watch.next()).await;
    assert!(silent.is_err());
    let looks = store.looks();
    let silent = tokio::time::timeout(OPTIONS.rest * 6, watch.next()).await;
    assert!(silent.is_err());
    assert_eq!(store.looks(), looks);
}

#[tokio::test(flavor = "multi_thread")]
async fn vanished_folder_deletes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("manifests");
    let store = replica(&root).await;
    store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    std::fs::rename(&root, dir.path().join("elsewhere")).unwrap();
    assert!(matches!(store.list(None).await, Err(Error::Unavailable { .. })));
    std::fs::remove_dir_all(&root).ok();
    std::fs::rename(dir.path().join("elsewhere"), &root).unwrap();
    has(&store, "a", Some("10.0.0.0/24")).await;
}

/// Processes that write one folder at a time: this test binary, run again as a writer.
#[tokio::test(flavor = "multi_thread")]
async fn processes_on_one_folder_lose_no_write() {
    let dir = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..3 {
        let mut command = tokio::process::Command::new(&program);
        command
            .args(["--exact", "directory::writer_process", "--nocapture"])
            .env("BULRUSH_TEST_WRITER", format!("w{writer}"))
            .env("BULRUSH_TEST_FOLDER", dir.path())
            .kill_on_drop(true);
        writers.spawn(async move { command.output().await.unwrap() });
    }
    while let Some(output) = writers.join_next().await {
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let store = replica(dir.path()).await;
    let listing = store.list(None).await.unwrap();
    assert_eq!(listing.items.len(), 30);
    assert_eq!(listing.revision, 31, "one revision for each write");
}

#[tokio::test(flavor = "multi_thread")]
async fn writer_process() {
    let Ok(name) = std::env::var("BULRUSH_TEST_WRITER") else { return };
    let dir = std::env::var("BULRUSH_TEST_FOLDER").unwrap();
    let store = replica(Path::new(&dir)).await;
    for round in 0..10 {
        let name = format!("{name}-{round}");
        store.create(&key(&name), value(&name, "10.0.0.0/24")).await.unwrap();
    }
}
