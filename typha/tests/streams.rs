//! Agents and replicas, over real sockets: what agents are told when servers come, go, lag and drain.

mod harness;

use std::time::Duration;

use harness::*;
use proto::sync::{ResumeVerdict, SyncState, server_message::Message as Down};
use syncer_common::model::Kind;
use typha::syncserver::Options;

fn some(count: u32) -> Vec<syncer_common::model::Update> {
    (0..count).map(|n| set(n, "first")).collect()
}

/// Two replicas of the same history, and the agent's address list with the one it goes to first in front.
fn pair(revision: u64, count: u32) -> (Replica, Replica) {
    let replica = || Replica::listed(options(), revision, some(count));
    (replica(), replica())
}

/// Which of two the agent is connected to, and the other.
fn sides(agent: &Agent, a: Replica, b: Replica) -> (Replica, Replica) {
    if agent.look().connected.last() == Some(&a.name()) { (a, b) } else { (b, a) }
}

#[tokio::test]
async fn agent_holds_the_state_and_is_in_sync_once() {
    let replica = Replica::listed(options(), 10, some(2_500));
    let agent = Agent::start(&[replica.name()], "felix");
    agent.settle(&replica).await;
    replica.apply(11, vec![set(1, "second"), unset(2), set(9_999, "new")]);
    agent.settle(&replica).await;
    let account = agent.look();
    assert_eq!((account.in_sync, account.updates), (1, 2_503));
    assert!(account.spurious.is_empty());
}

#[tokio::test]
async fn killed_server_costs_no_update_and_no_deletion() {
    let (a, b) = pair(10, 500);
    let agent = Agent::start(&[a.name(), b.name()], "felix");
    eventually("the first cut", || !agent.look().cuts.is_empty()).await;
    let (mut old, new) = sides(&agent, a, b);
    let before = agent.look().updates;
    old.kill();
    agent.settle(&new).await;
    let account = agent.look();
    assert_eq!((account.updates, account.in_sync), (before, 1));
    assert!(account.deletions.is_empty() && !account.disconnected.is_empty());
    new.apply(11, vec![set(1, "second")]);
    agent.settle(&new).await;
    assert_eq!(agent.look().updates, before + 1);
}

#[tokio::test]
async fn deletion_during_the_move_arrives_as_a_delta() {
    let (a, b) = pair(10, 50);
    let agent = Agent::start(&[a.name(), b.name()], "felix");
    eventually("the first cut", || !agent.look().cuts.is_empty()).await;
    let (mut old, new) = sides(&agent, a, b);
    old.kill();
    new.apply(11, vec![unset(7)]);
    new.apply(12, vec![set(8, "second")]);
    agent.settle(&new).await;
    let account = agent.look();
    assert_eq!((account.deletions, account.updates), (vec![key(7)], 52));
    assert!(account.spurious.is_empty());
}

#[tokio::test]
async fn deletion_before_the_new_servers_time_arrives_with_its_snapshot() {
    let mut old = Replica::listed(options(), 10, some(50));
    // The replica that takes over listed after the deletion: it has no tombstone.
    let new = Replica::start(options());
    let agent = Agent::start(&[old.name(), new.name()], "felix");
    eventually("the first cut", || !agent.look().cuts.is_empty()).await;
    old.kill();
    new.list(20, some(50).into_iter().skip(1).collect());
    agent.settle(&new).await;
    let account = agent.look();
    assert_eq!((account.deletions, account.updates), (vec![key(0)], 51));
    assert!(account.spurious.is_empty());
}

#[tokio::test]
async fn lagging_replica_tells_an_agent_nothing_until_it_has_caught_up() {
    let quick = Options { behind_wait: Duration::from_millis(50), ..options() };
    let mut ahead = Replica::listed(quick.clone(), 10, some(20));
    let agent = Agent::start(&[ahead.name()], "felix");
    ahead.apply(11, vec![set(100, "new")]);
    agent.settle(&ahead).await;
    let token = ahead.cache.read().token(Kind::FELIX.into_iter().collect());
    ahead.kill();

    // It has not seen key 100: a snapshot from it would be a false deletion.
    let behind = Replica::listed(quick, 10, some(20));
    let mut raw = Raw::greet(&behind, Some(token.clone())).await;
    let Some(Down::Hello(hello)) = raw.next().await.unwrap() else { panic!("no hello") };
    assert_eq!(hello.verdict(), ResumeVerdict::ResumeBehind);
    let Some(Down::Status(status)) = raw.next().await.unwrap() else { panic!("no status") };
    assert_eq!(status.state(), SyncState::SyncResync);
    assert_eq!(raw.next().await.unwrap(), None, "and nothing else");

    behind.apply(11, vec![set(100, "new")]);
    let mut raw = Raw::greet(&behind, Some(token)).await;
    let Some(Down::Hello(hello)) = raw.next().await.unwrap() else { panic!("no hello") };
    assert_eq!(hello.verdict(), ResumeVerdict::ResumeDelta);
}

#[tokio::test]
async fn agent_holds_on_while_the_only_server_left_lags() {
    let quick = Options { behind_wait: Duration::from_millis(20), ..options() };
    let replica = || Replica::listed(quick.clone(), 10, some(20));
    let (a, b) = (replica(), replica());
    let agent = Agent::start(&[a.name(), b.name()], "felix");
    eventually("the first cut", || !agent.look().cuts.is_empty()).await;
    let (mut ahead, behind) = sides(&agent, a, b);
    ahead.apply(11, vec![set(100, "new")]);
    agent.settle(&ahead).await;
    let held = agent.look();
    ahead.kill();
    eventually("the agent to notice", || !agent.look().disconnected.is_empty()).await;
    assert_eq!(agent.look().state, held.state);
    behind.apply(11, vec![set(100, "new")]);
    agent.settle(&behind).await;
    let account = agent.look();
    assert_eq!((account.updates, account.deletions.len(), account.in_sync), (held.updates, 0, 1));
}

#[tokio::test]
async fn replica_that_is_not_in_sync_sends_status_and_heartbeats_only() {
    let replica = Replica::start(options());
    // It has content, but no proof that the content is current.
    replica.cache.update(|cache| {
        cache.listing(0, "history", 5);
        cache.apply_listing(0, 5, some(10), std::time::Instant::now());
        cache.proof(0, 9, std::time::Instant::now());
    });
    let mut raw = Raw::greet(&replica, None).await;
    let Some(Down::Hello(_)) = raw.next().await.unwrap() else { panic!("no hello") };
    let Some(Down::Status(status)) = raw.next().await.unwrap() else { panic!("no status") };
    assert_eq!(status.state(), SyncState::SyncResync);
    for _ in 0..3 {
        let message = patiently(raw.down.message()).await.unwrap().unwrap().message;
        let Some(Down::Heartbeat(beat)) = message else { panic!("{message:?}") };
        assert_eq!(beat.age_millis, None);
    }
    replica.cache.update(|cache| cache.progressed(0, 9, std::time::Instant::now()));
    let Some(Down::Batch(batch)) = raw.next().await.unwrap() else { panic!("no batch") };
    assert_eq!(batch.entries.len(), 10);
    let Some(Down::SnapshotEnd(end)) = raw.next().await.unwrap() else { panic!("no end") };
    assert_eq!(end.kinds.len(), syncer_common::model::Kind::FELIX.len());
    let Some(Down::Status(status)) = raw.next().await.unwrap() else { panic!("no status") };
    assert_eq!(status.state(), SyncState::SyncInSync);
    let Some(Down::Cut(cut)) = raw.next().await.unwrap() else { panic!("no cut") };
    let token = cut.token.unwrap();
    assert_eq!(
        (token.positions()[0].low, token.positions()[0].high, token.history.as_str()),
        (9, 5, "history")
    );
}

#[tokio::test]
async fn agents_that_join_in_the_middle_of_churn_end_with_the_state() {
    let replica = Replica::listed(options(), 10, some(300));
    let mut agents = Vec::new();
    for revision in 11..611 {
        let n = (revision * 7_919 % 400) as u32;
        let change = if revision % 3 == 0 { unset(n) } else { set(n, &format!("at {revision}")) };
        replica.apply(revision, vec![change]);
        if revision % 60 == 0 {
            agents.push(Agent::start_on(&format!("node-{revision}"), &[replica.name()], "felix"));
        }
        tokio::task::yield_now().await;
    }
    for agent in &agents {
        agent.settle(&replica).await;
        assert!(agent.look().spurious.is_empty());
    }
    assert_eq!(agents.len(), 10);
}

#[tokio::test]
async fn ten_thousand_keys_half_of_them_deleted_while_agents_join_are_exact() {
    let replica = Replica::listed(options(), 10, some(10_000));
    let mut agents = Vec::new();
    for n in 0..20 {
        agents.push(Agent::start_on(&format!("node-{n}"), &[replica.name()], "felix"));
        let part = (n * 500..(n + 1) * 500).filter(|key| key % 2 == 0);
        replica.apply(11 + u64::from(n), part.map(unset).collect());
    }
    for agent in &agents {
        agent.settle(&replica).await;
        let account = agent.look();
        assert_eq!((account.state.len(), account.spurious.len(), account.in_sync), (5_000, 0, 1));
    }
}

#[tokio::test]
async fn slow_agent_is_given_the_latest_values_and_holds_up_nobody() {
    let replica = Replica::listed(options(), 10, some(20));
    let slow = Agent::start_on("slow", &[replica.name()], "felix");
    let fast = Agent::start_on("fast", &[replica.name()], "felix");
    slow.settle(&replica).await;
    fast.settle(&replica).await;
    let busy = slow.busy.clone().lock_owned().await;
    for revision in 11..1_011 {
        replica.apply(revision, vec![set(revision as u32 % 20, &noise(revision, 20_000))]);
        if revision % 10 == 0 {
            fast.settle(&replica).await;
        }
    }
    drop(busy);
    slow.settle(&replica).await;
    let updates = slow.look().updates;
    assert!(updates < 700, "20 MB of changes to 20 keys came as {updates} updates");
    assert!(slow.look().disconnected.is_empty(), "being slow is no reason to be cut off");
}

#[tokio::test]
async fn draining_server_sends_its_agents_to_the_other_and_ends() {
    let (a, b) = pair(10, 100);
    let agent = Agent::start(&[a.name(), b.name()], "felix");
    eventually("the first cut", || !agent.look().cuts.is_empty()).await;
    let (old, new) = sides(&agent, a, b);
    old.drain();
    agent.settle(&new).await;
    eventually("the drained server to end", || old.ended()).await;
    let account = agent.look();
    assert_eq!((account.updates, account.deletions.len(), account.in_sync), (100, 0, 1));
    assert!(account.disconnected[0].contains("draining"), "{:?}", account.disconnected);
}

#[tokio::test]
async fn drain_ends_streams_that_stay() {
    let stubborn = Options { drain: Duration::from_millis(100), ..options() };
    let replica = Replica::listed(stubborn, 10, some(10));
    let mut raw = Raw::greet(&replica, None).await;
    while !matches!(raw.next().await.unwrap(), Some(Down::Cut(_))) {}
    replica.drain();
    let Some(Down::GoAway(go_away)) = raw.next().await.unwrap() else { panic!("no go-away") };
    assert_eq!(go_away.reason, "draining");
    // The stream ends, whether by its own end or with its connection.
    while let Ok(Some(_)) = raw.next().await {}
    eventually("the server to end", || replica.ended()).await;
}

#[tokio::test]
async fn drain_ends_streams_that_are_behind() {
    let drain = Duration::from_millis(100);
    let state = (0..500).map(|n| set(n, &noise(u64::from(n), 20_000))).collect();
    let replica = Replica::listed(Options { drain, ..options() }, 10, state);
    let mut raw = Raw::greet(&replica, None).await;
    assert!(matches!(raw.next().await, Ok(Some(Down::Hello(_)))));
    replica.drain();
    // Megabytes wait for a reader who comes when all is over.
    tokio::time::sleep(drain * 3).await;
    while let Ok(Some(_)) = raw.next().await {}
    eventually("the server to end", || replica.ended()).await;
}

#[tokio::test]
async fn stream_of_a_day_comes_again_and_is_told_nothing_twice() {
    // Its day is a second.
    let replica = Replica::listed(Options { renewal: Duration::from_secs(1), ..options() }, 10, some(100));
    let agent = Agent::start(&[replica.name()], "felix");
    eventually("the third connection", || agent.look().connected.len() == 3).await;
    replica.apply(11, vec![unset(1)]);
    agent.settle(&replica).await;
    let account = agent.look();
    assert!(account.disconnected.iter().all(|reason| reason.contains("renew")), "{:?}", account.disconnected);
    assert_eq!((account.updates, account.deletions, account.in_sync), (101, vec![key(1)], 1));
}

#[tokio::test]
async fn change_of_kinds_that_an_agent_does_not_read_costs_it_a_cut_at_most() {
    let replica = Replica::listed(options(), 10, some(10));
    let agent = Agent::start(&[replica.name()], "confd");
    eventually("the first cut", || !agent.look().cuts.is_empty()).await;
    assert!(agent.look().state.is_empty());
    replica.apply(11, vec![set(1, "second")]);
    // Its token keeps up, so that it can still be resumed when the tombstones of today are gone.
    let head = replica.cache.read().head();
    eventually("a cut at the head", || agent.look().cuts.last().is_some_and(|cut| cut.seq == head)).await;
    assert_eq!(agent.look().updates, 0);
}

#[tokio::test]
async fn restored_datastore_deletes_nothing() {
    let mut old = Replica::listed(options(), 100, some(50));
    let agent = Agent::start(&[old.name()], "felix");
    agent.settle(&old).await;
    let token = old.cache.read().token(typha::snapcache::KindSet::all());
    old.kill();
    // A backup from before most of it, under the same history id.
    let new = Replica::listed(options(), 40, some(5));
    let mut raw = Raw::greet(&new, Some(token)).await;
    // Linearizable reads go on; the first one after the hello shows that the datastore has not got what the
    // client has seen.
    let cache = new.cache.clone();
    let reads = tokio::spawn(async move {
        loop {
            cache.update(|cache| cache.proof(0, 41, std::time::Instant::now()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut ended = None;
    loop {
        match raw.next().await.unwrap() {
            Some(Down::SnapshotEnd(end)) => ended = Some(end),
            Some(Down::Hello(hello)) => assert_eq!(hello.verdict(), ResumeVerdict::ResumeSnapshot),
            Some(Down::Status(status)) => {
                assert!(status.state() == SyncState::SyncInSync || status.detail.contains("FORKED"));
            }
            Some(Down::Batch(_)) => {}
            Some(Down::Cut(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    reads.abort();
    assert_eq!(ended.unwrap().kinds, Vec::<String>::new(), "complete for no kind: nothing is swept");
}
