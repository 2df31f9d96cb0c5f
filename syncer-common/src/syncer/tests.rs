use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::backend::{Result, Watch, WatchItem};

/// Answers from a script; when it has run out, head and history go on answering and the rest hangs.
#[derive(Default)]
struct Scripted {
    script: Mutex<Script>,
}

#[derive(Default)]
struct Script {
    head: Revision,
    head_fails: bool,
    head_refused: bool,
    history: String,
    lists: VecDeque<Result<Revision>>,
    watches: VecDeque<Result<Vec<Result<WatchItem>>>>,
    /// What was asked: `list:at`, `watch:after`.
    asked: Vec<String>,
}

fn unavailable() -> Error {
    Error::Unavailable { what: "test".into(), reason: "down".into() }
}

impl Scripted {
    fn new(head: Revision) -> Arc<Self> {
        let script = Script { head, history: "h1".into(), ..Script::default() };
        Arc::new(Self { script: Mutex::new(script) })
    }
    fn with(self: &Arc<Self>, change: impl FnOnce(&mut Script)) -> Arc<Self> {
        change(&mut self.script.lock().unwrap());
        self.clone()
    }
    fn asked(&self) -> Vec<String> {
        self.script.lock().unwrap().asked.clone()
    }
}

#[async_trait]
impl Source for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }
    async fn history(&self) -> Result<String> {
        Ok(self.script.lock().unwrap().history.clone())
    }
    async fn head(&self) -> Result<Head> {
        let script = self.script.lock().unwrap();
        if script.head_fails {
            return Err(unavailable());
        }
        if script.head_refused {
            return Err(Error::Invalid { what: "test".into(), reason: "forbidden".into() });
        }
        Ok(Head { revision: script.head, started: std::time::Instant::now() })
    }
    async fn list(&self, at: Option<Revision>) -> Result<Listing> {
        let next = {
            let mut script = self.script.lock().unwrap();
            script.asked.push(format!("list:{}", at.map_or("newest".into(), |at| at.to_string())));
            script.lists.pop_front()
        };
        match next {
            Some(result) => result.map(|revision| Listing { revision, ..Listing::default() }),
            None => std::future::pending().await,
        }
    }
    async fn watch(&self, after: Revision) -> Result<Watch> {
        let next = {
            let mut script = self.script.lock().unwrap();
            script.asked.push(format!("watch:{after}"));
            script.watches.pop_front()
        };
        match next {
            Some(result) => result.map(|items| stream::iter(items).chain(stream::pending()).boxed()),
            None => Ok(stream::pending().boxed()),
        }
    }
}

/// What came out of `run` within `time` (of the paused clock), proofs left out.
async fn observe(store: Arc<Scripted>, time: Duration) -> Vec<String> {
    let (out, mut events) = mpsc::channel(16);
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let collect = async move {
        let mut seen = Vec::new();
        while let Some((_, event)) = events.recv().await {
            match event {
                SyncEvent::Snapshot { listing, history } => {
                    seen.push(format!("snapshot {} {history}", listing.revision));
                }
                SyncEvent::Events { revision, events } => {
                    seen.push(format!("events {revision} {}", events.len()));
                }
                SyncEvent::Progress { revision } => seen.push(format!("progress {revision}")),
                SyncEvent::Disconnected { .. } => seen.push("disconnected".into()),
                SyncEvent::Proof(_) => {}
            }
        }
        seen
    };
    let timer = async move {
        tokio::time::sleep(time).await;
        stop.cancel();
    };
    let ((), seen, ()) = tokio::join!(run(vec![store], out, no_asks(), cancel), collect, timer);
    seen
}

fn no_asks() -> mpsc::Receiver<usize> {
    mpsc::channel(1).1
}

fn event(revision: Revision) -> Result<WatchItem> {
    let events = vec![Event::Delete { key: "/calico/x".into(), mod_revision: revision }];
    Ok(WatchItem::Events { revision, events })
}

#[tokio::test(start_paused = true)]
async fn first_listing_lies_in_the_past() {
    let store = Scripted::new(50_000).with(|script| {
        script.lists.push_back(Ok(30_000));
        script.watches.push_back(Ok(vec![event(50_000)]));
    });
    let seen = observe(store.clone(), Duration::from_secs(2)).await;
    assert_eq!(seen, ["snapshot 30000 h1", "events 50000 1"]);
    assert_eq!(store.asked(), ["list:30000", "watch:30000"]);
}

#[tokio::test(start_paused = true)]
async fn compacted_past_falls_back_to_the_present_at_once() {
    let store = Scripted::new(50_000).with(|script| {
        script.lists.extend([Err(Error::Compacted { compacted: 40_000 }), Ok(50_000)]);
    });
    let seen = observe(store.clone(), Duration::from_millis(50)).await;
    assert_eq!(seen, ["snapshot 50000 h1"]);
    assert_eq!(store.asked(), ["list:30000", "list:newest", "watch:50000"]);
}

#[tokio::test(start_paused = true)]
async fn compaction_during_the_watch_lists_again_without_an_outage() {
    let store = Scripted::new(10).with(|script| {
        script.lists.extend([Ok(1), Ok(12)]);
        script.watches.push_back(Ok(vec![event(5), Err(Error::Compacted { compacted: 9 })]));
    });
    let seen = observe(store.clone(), Duration::from_millis(50)).await;
    assert_eq!(seen, ["snapshot 1 h1", "events 5 1", "snapshot 12 h1"]);
    assert_eq!(store.asked(), ["list:1", "watch:1", "list:newest", "watch:12"]);
}

#[tokio::test(start_paused = true)]
async fn failed_watch_resumes_where_it_was_and_reports_one_outage() {
    let store = Scripted::new(10).with(|script| {
        script.lists.push_back(Ok(1));
        script.watches.extend([
            Ok(vec![event(5), Err(unavailable())]),
            Err(unavailable()),
            Err(unavailable()),
            Ok(vec![event(10)]),
        ]);
    });
    let seen = observe(store.clone(), Duration::from_secs(4)).await;
    assert_eq!(seen, ["snapshot 1 h1", "events 5 1", "disconnected", "events 10 1"]);
    assert_eq!(store.asked(), ["list:1", "watch:1", "watch:5", "watch:5", "watch:5"]);
}

#[tokio::test(start_paused = true)]
async fn watch_that_does_not_reach_the_first_proof_lists_the_newest_revision_once() {
    // As on a shared etcd whose newest revision is somebody else's: no event and no progress will come.
    let store = Scripted::new(10).with(|script| script.lists.extend([Ok(1), Ok(10)]));
    let seen = observe(store.clone(), Duration::from_secs(30)).await;
    assert_eq!(seen, ["snapshot 1 h1", "snapshot 10 h1"]);
    assert_eq!(store.asked(), ["list:1", "watch:1", "list:newest", "watch:10"]);
}

#[tokio::test(start_paused = true)]
async fn second_outage_is_reported_again() {
    let store = Scripted::new(10).with(|script| {
        script.lists.push_back(Ok(1));
        script.watches.extend([
            Ok(vec![Err(unavailable())]),
            Ok(vec![Ok(WatchItem::Progress { revision: 6 }), Err(unavailable())]),
            Ok(vec![event(10)]),
        ]);
    });
    let seen = observe(store.clone(), Duration::from_secs(4)).await;
    assert_eq!(seen, ["snapshot 1 h1", "disconnected", "progress 6", "disconnected", "events 10 1"]);
}

#[tokio::test(start_paused = true)]
async fn silent_watch_is_left_when_reads_fail_too() {
    let store = Scripted::new(10).with(|script| script.lists.push_back(Ok(10)));
    let (out, mut events) = mpsc::channel(64);
    let cancel = CancellationToken::new();
    let running = tokio::spawn(run(vec![store.clone()], out, no_asks(), cancel.clone()));
    while store.asked().len() < 2 {
        events.recv().await.unwrap();
    }
    store.with(|script| script.head_fails = true);
    let disconnected = tokio::time::timeout(Duration::from_secs(10), async {
        while !matches!(events.recv().await, Some((_, SyncEvent::Disconnected { .. }))) {}
    });
    disconnected.await.expect("a dead datastore is seen within 10 s");
    store.with(|script| script.head_fails = false);
    tokio::time::timeout(Duration::from_secs(10), async {
        while store.asked().len() < 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(store.asked().last().unwrap(), "watch:10");
    cancel.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn refused_reads_of_some_sources_cost_the_others_no_watch() {
    let stores: Vec<_> =
        (0..6).map(|_| Scripted::new(10).with(|script| script.lists.push_back(Ok(10)))).collect();
    let (out, mut events) = mpsc::channel(64);
    let cancel = CancellationToken::new();
    let sources = stores.iter().map(|store| store.clone() as Arc<dyn Source>).collect();
    let running = tokio::spawn(run(sources, out, mpsc::channel(1).1, cancel.clone()));
    let timer = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for store in &stores[1..] {
            store.with(|script| script.head_refused = true);
        }
        tokio::time::sleep(Duration::from_secs(120)).await;
        stores[0].with(|script| script.head_refused = true);
        tokio::time::sleep(Duration::from_secs(120)).await;
        cancel.cancel();
    };
    let collect = async {
        let mut lost = Vec::new();
        while let Some((index, event)) = events.recv().await {
            if matches!(event, SyncEvent::Disconnected { .. }) {
                lost.push((index, tokio::time::Instant::now()));
            }
        }
        lost
    };
    let began = tokio::time::Instant::now();
    let ((), lost) = tokio::join!(timer, collect);
    running.await.unwrap();
    let mut sources: Vec<usize> = lost.iter().map(|(index, _)| *index).collect();
    sources.sort_unstable();
    assert_eq!(sources, [0, 1, 2, 3, 4, 5], "each once, when all were refused");
    assert!(lost.iter().all(|(_, at)| at.duration_since(began) > Duration::from_secs(121)));
}

#[tokio::test(start_paused = true)]
async fn another_history_is_listed_and_not_resumed() {
    let store = Scripted::new(10).with(|script| {
        script.lists.extend([Ok(1), Ok(3)]);
        script.watches.push_back(Ok(vec![event(5), Err(unavailable())]));
    });
    let (out, mut events) = mpsc::channel(64);
    let cancel = CancellationToken::new();
    let running = tokio::spawn(run(vec![store.clone()], out, no_asks(), cancel.clone()));
    let mut snapshots = Vec::new();
    while snapshots.len() < 2 {
        match events.recv().await.unwrap().1 {
            SyncEvent::Snapshot { listing, history } => snapshots.push((listing.revision, history)),
            SyncEvent::Events { .. } => {
                store.with(|script| script.history = "h2".into());
            }
            _ => {}
        }
    }
    assert_eq!(snapshots, [(1, "h1".to_owned()), (3, "h2".to_owned())]);
    cancel.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn rewound_history_is_listed() {
    let store = Scripted::new(10).with(|script| {
        script.lists.extend([Ok(9), Ok(4)]);
        script.watches.push_back(Err(Error::Rewound { head: 4, seen: 9 }));
    });
    let seen = observe(store, Duration::from_millis(50)).await;
    assert_eq!(seen, ["snapshot 9 h1", "snapshot 4 h1"]);
}

#[tokio::test(start_paused = true)]
async fn proofs_come_every_second() {
    let store = Scripted::new(10).with(|script| script.lists.push_back(Ok(10)));
    let (out, mut events) = mpsc::channel(64);
    let cancel = CancellationToken::new();
    let running = tokio::spawn(run(vec![store], out, no_asks(), cancel.clone()));
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    cancel.cancel();
    running.await.unwrap();
    let mut proofs = 0;
    while let Some((_, event)) = events.recv().await {
        proofs += usize::from(matches!(event, SyncEvent::Proof(head) if head.revision == 10));
    }
    assert_eq!(proofs, 5, "one at the start, then at 0, 1, 2 and 3 s");
}
