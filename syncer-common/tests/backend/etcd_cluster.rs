//! Three members: what a client loses when some of them die, pause, lag behind or lose their quorum. Nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions};
use syncer_common::backend::config::open;
use syncer_common::backend::{Datastore, Error, Revision};
use syncer_common::testing::etcd::EtcdCluster;
use tokio_util::sync::CancellationToken;

use crate::etcd::Followed;
use crate::support::{OneSource, State, eventually, key, next, value};

/// Within this a client is to have left a member that does not answer.
const MOVED: Duration = Duration::from_secs(20);

async fn store(cluster: &EtcdCluster, members: &[usize]) -> Arc<dyn Datastore> {
    open(&cluster.config(members)).await.unwrap()
}

/// The members, the leader first.
async fn leader_first(cluster: &EtcdCluster) -> [usize; 3] {
    let leader = cluster.leader().await;
    [leader, (leader + 1) % 3, (leader + 2) % 3]
}

/// Writes the object until that has worked for certain.
async fn put(store: &Arc<dyn Datastore>, name: &str, net: &str) -> Revision {
    eventually("a write", || async {
        match store.get(&key(name)).await.ok()? {
            None => store.create(&key(name), value(name, net)).await.ok(),
            Some(item) => store.replace(&key(name), value(name, net), item.mod_revision).await.ok(),
        }
    })
    .await
}

/// Goes on changing ten objects. Deletes none.
struct Churn {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Revision>,
}

impl Churn {
    fn start(store: Arc<dyn Datastore>) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            for round in 0u32.. {
                let last =
                    put(&store, &format!("o{}", round % 10), &format!("10.0.{}.0/24", round % 256)).await;
                if stopped.is_cancelled() {
                    return last;
                }
            }
            0
        });
        Self { stop, task }
    }

    /// The revision of the last write.
    async fn end(self) -> Revision {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_members_cost_no_change_and_no_listing() {
    let Some(mut cluster) = EtcdCluster::start().await else { return };
    let [leader, used, other] = leader_first(&cluster).await;
    let churn = Churn::start(store(&cluster, &[other, leader, used]).await);
    let mut followed = Followed::start(store(&cluster, &[used, leader, other]).await);
    followed.until("all objects", |f| f.state.items.len() == 10).await;

    cluster.kill(used);
    let before = followed.state.revision;
    followed.until("changes after the loss of the member in use", |f| f.state.revision > before + 50).await;
    assert_eq!(followed.outages, 1);
    cluster.restart(used);
    cluster.ready(used).await;

    // The client is at the leader now.
    cluster.kill(leader);
    let before = followed.state.revision;
    followed.until("changes after the loss of the leader", |f| f.state.revision > before + 50).await;
    let last = churn.end().await;
    followed.until("the last change", |f| f.state.revision >= last).await;
    assert_eq!(followed.state, State::from(store(&cluster, &[used]).await.list(None).await.unwrap()));
    assert_eq!(followed.snapshots, 1);
    assert!(followed.withdrawn.is_empty(), "{:?}", followed.withdrawn);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_member_is_left_by_reads_and_watch() {
    let Some(cluster) = EtcdCluster::start().await else { return };
    let [leader, second, third] = leader_first(&cluster).await;
    // Once the leader, which the others have to replace first, and once a member that follows.
    for (round, paused) in [second, leader].into_iter().enumerate() {
        let rest: Vec<usize> =
            [leader, second, third].into_iter().filter(|member| *member != paused).collect();
        let client = store(&cluster, &[paused, rest[0], rest[1]]).await;
        let first = put(&client, "a", &format!("10.{round}.0.0/24")).await;
        let mut followed = Followed::start(client.clone());
        followed.until("first object", |f| f.state.revision >= first).await;
        cluster.pause(paused).await;
        let began = Instant::now();
        // A member that lives says at once that it has no leader, while the next one is elected.
        while let Err(error) = client.head().await {
            assert!(began.elapsed() < MOVED, "no head after {:?}: {error}", began.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let last = put(&store(&cluster, &rest).await, "b", &format!("10.{round}.0.0/24")).await;
        followed.until("what was written during the pause", |f| f.state.revision >= last).await;
        assert!(began.elapsed() < MOVED, "the watch took {:?}", began.elapsed());
        assert_eq!((followed.snapshots, followed.outages), (1, 1));
        followed.stop().await;
        cluster.resume(paused);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_quorum_withdraws_nothing_and_needs_no_listing() {
    let Some(mut cluster) = EtcdCluster::start().await else { return };
    let client = store(&cluster, &[0, 1, 2]).await;
    let first = put(&client, "a", "10.0.0.0/24").await;
    let mut followed = Followed::start(client.clone());
    followed.until("first object", |f| f.state.revision >= first).await;
    cluster.kill(1);
    cluster.kill(2);
    let began = Instant::now();
    let head = client.head().await;
    assert!(matches!(head, Err(Error::Unavailable { .. })), "{head:?}");
    assert!(began.elapsed() < MOVED, "{:?}", began.elapsed());
    followed.until("the outage", |f| f.outages == 1).await;
    cluster.restart(1);
    cluster.ready(1).await;
    let last = put(&store(&cluster, &[1]).await, "b", "10.0.0.0/24").await;
    followed.until("what was written after the outage", |f| f.state.revision >= last).await;
    assert_eq!((followed.snapshots, followed.outages), (1, 1));
    assert!(followed.withdrawn.is_empty(), "{:?}", followed.withdrawn);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lagging_member_is_no_rewound_history() {
    let Some(cluster) = EtcdCluster::start().await else { return };
    let [leader, second, lagging] = leader_first(&cluster).await;
    let (writer, late) = (store(&cluster, &[leader, second]).await, store(&cluster, &[lagging]).await);
    put(&writer, "a", "10.0.0.0/24").await;
    cluster.pause(lagging).await;
    // More than waits for it in the sockets' buffers; with the others paused it can not ask for the rest.
    let mut raw = Client::connect([cluster.endpoint(leader)], None).await.unwrap();
    for _ in 0..20 {
        raw.put("/elsewhere", vec![b'x'; 1_000_000], None).await.unwrap();
    }
    let newest = put(&writer, "a", "10.1.0.0/24").await;
    cluster.pause(leader).await;
    cluster.pause(second).await;
    cluster.resume(lagging);
    let mut client = Client::connect([cluster.endpoint(lagging)], None).await.unwrap();
    let own = client.get("/calico/", Some(GetOptions::new().with_serializable())).await.unwrap();
    assert!((own.header().unwrap().revision() as Revision) < newest, "it does lag");
    let watch = late.watch(newest).await.map(|_| ());
    assert!(matches!(watch, Err(Error::Unavailable { .. })), "{watch:?}");
    cluster.resume(leader);
    cluster.resume(second);
    let mut watch = eventually("a watch at the member that lagged", || async {
        match late.watch(newest).await {
            Ok(watch) => Some(watch),
            Err(Error::Unavailable { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    let last = put(&writer, "a", "10.2.0.0/24").await;
    let mut state = State::from(writer.list(Some(newest)).await.unwrap());
    state.apply(next(&mut watch).await.unwrap());
    assert_eq!(state.revision, last);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_compacted_while_cut_off_is_found_by_a_listing() {
    let Some(mut cluster) = EtcdCluster::start().await else { return };
    let [leader, second, used] = leader_first(&cluster).await;
    let (writer, client) = (store(&cluster, &[leader, second]).await, store(&cluster, &[used]).await);
    let mut first = 0;
    for name in ["gone", "kept", "replaced"] {
        first = put(&writer, name, "10.0.0.0/24").await;
    }
    let mut followed = Followed::start(client.clone());
    followed.until("all objects", |f| f.state.revision >= first).await;

    cluster.kill(used);
    followed.until("the outage", |f| f.outages == 1).await;
    assert!(followed.withdrawn.is_empty(), "{:?}", followed.withdrawn);
    let deleted = writer.delete(&key("gone"), None).await.unwrap();
    put(&writer, "replaced", "10.1.0.0/24").await;
    let last = put(&writer, "new", "10.0.0.0/24").await;
    Client::connect([cluster.endpoint(leader)], None)
        .await
        .unwrap()
        .compact(last as i64, None)
        .await
        .unwrap();
    assert!(deleted > first && deleted < last, "the deletion is among what was compacted");
    cluster.restart(used);
    followed.until("the state after the compaction", |f| f.state.revision >= last).await;
    assert_eq!(followed.state, State::from(writer.list(None).await.unwrap()));
    assert_eq!((followed.snapshots, followed.outages), (2, 1));
    assert_eq!(followed.withdrawn.iter().collect::<Vec<_>>(), [&key("gone")]);
    followed.stop().await;

    // A syncer that starts now finds the past gone, where it would have listed.
    let mut late = Followed::start(client);
    let next = put(&writer, "new", "10.2.0.0/24").await;
    late.until("the next change", |f| f.state.revision >= next).await;
    assert_eq!(late.state, State::from(writer.list(None).await.unwrap()));
    assert_eq!((late.snapshots, late.outages), (1, 0));
    late.stop().await;
}
