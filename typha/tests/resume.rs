//! Coming back: what it costs when nothing changed, and what is found when history does not tell.

mod harness;

use std::time::{Duration, Instant};

use harness::proxy::Proxy;
use harness::*;
use proto::sync::{DigestAnswer, ResumeVerdict, client_message, server_message::Message as Down};
use syncer_common::model::{Kind, Update};
use typha::snapcache::KindSet;
use typha::syncserver::Options;
use typha_client::ClientConfig;

fn some(count: u32) -> Vec<Update> {
    (0..count).map(|n| set(n, "first")).collect()
}

/// The names of the sources of a Kubernetes datastore, or as many others of that length.
fn kubernetes() -> Vec<String> {
    (0..25).map(|n| format!("kubernetes/globalnetworkset{n:02}")).collect()
}

/// All sources at realistic revisions, each quiet since another one.
fn list_all(replica: &Replica, sources: &[String], count: u32) {
    replica.cache.update(|cache| {
        for source in 0..sources.len() {
            let effect = 41_000_000 + source as u64 * 9_999;
            let updates = if source == 0 { some(count) } else { Vec::new() };
            cache.listing(source, "0f6f6a2e-6f53-4e0f-9d5b-6a5a7e0b6f11", effect - 1_000);
            cache.apply_listing(source, effect - 1_000, updates, Instant::now());
            cache.apply_revision(
                source,
                effect,
                vec![set(900_000 + source as u32, "x")],
                0xdead_beef,
                Instant::now(),
            );
            // Bookmarks come at different times.
            let now = 52_000_000 + (source as u64 * 7_919) % 3_000;
            cache.progressed(source, now, Instant::now());
            cache.proof(source, now, Instant::now());
        }
    });
}

/// An agent that is in no hurry, behind a wire.
fn agent(proxy: &Proxy) -> Agent {
    let mut config =
        ClientConfig::new(vec![proxy.name()], "worker-node-0123", "felix", "bulrush-felix 0.1.0");
    config.read_timeout = PATIENCE;
    Agent::start_with(config)
}

/// No heartbeats: they are not part of what a reconnect costs.
fn silent() -> Options {
    Options { heartbeat: PATIENCE, replica: "typha-7d9c6b5f4-x2x7p".into(), ..options() }
}

#[tokio::test]
async fn reconnect_without_a_change_costs_a_kilobyte() {
    let sources = kubernetes();
    let names: Vec<&str> = sources.iter().map(String::as_str).collect();
    let [a, b] = [(), ()].map(|()| {
        let replica = Replica::start_of(silent(), &names);
        list_all(&replica, &sources, 1_000);
        replica
    });
    let proxy = Proxy::start(a.address).await;
    let agent = agent(&proxy);
    agent.settle(&a).await;
    let updates = agent.look().updates;
    proxy.lead_to(b.address);
    agent.settle(&b).await;
    let (up, down) = proxy.bytes();
    println!("reconnect by DELTA, 25 sources: {up} B up, {down} B down");
    assert!(up + down <= 1_024, "{up} B up, {down} B down");
    assert_eq!((agent.look().updates, agent.look().in_sync), (updates, 1));
}

#[tokio::test]
async fn equal_states_are_found_equal_in_two_kilobytes() {
    let sources = kubernetes();
    let names: Vec<&str> = sources.iter().map(String::as_str).collect();
    let a = Replica::start_of(silent(), &names);
    list_all(&a, &sources, 1_000);
    let proxy = Proxy::start(a.address).await;
    let agent = agent(&proxy);
    agent.settle(&a).await;
    let updates = agent.look().updates;
    // It has listed later than the agent has heard: what was deleted in between it can not know.
    let b = Replica::start_of(silent(), &names);
    let mut state = some(1_000);
    state.extend((0..25).map(|source| set(900_000 + source, "x")));
    b.cache.update(|cache| {
        for source in 0..sources.len() {
            let updates = if source == 0 { std::mem::take(&mut state) } else { Vec::new() };
            cache.listing(source, "0f6f6a2e-6f53-4e0f-9d5b-6a5a7e0b6f11", 53_000_000);
            cache.apply_listing(source, 53_000_000, updates, Instant::now());
            cache.proof(source, 53_000_000, Instant::now());
        }
    });
    proxy.lead_to(b.address);
    agent.settle(&b).await;
    let (up, down) = proxy.bytes();
    println!("reconnect by equal digest, 25 sources: {up} B up, {down} B down");
    assert!(up + down <= 2_048, "{up} B up, {down} B down");
    assert_eq!((agent.look().updates, agent.look().in_sync), (updates, 1));
}

/// An agent that held `before` comes to a replica that has only ever seen `after`. What it is told, and the bytes.
async fn compared(before: Vec<Update>, after: Vec<Update>) -> (Account, u64) {
    let old = Replica::listed(silent(), 10, before);
    let new = Replica::listed(silent(), 90, after);
    let proxy = Proxy::start(old.address).await;
    let agent = agent(&proxy);
    agent.settle(&old).await;
    let told = agent.look().updates;
    proxy.lead_to(new.address);
    agent.settle(&new).await;
    // From here on as ever.
    let bytes = proxy.bytes();
    new.apply(91, vec![set(7, "later")]);
    agent.settle(&new).await;
    let mut account = agent.look();
    assert!(account.spurious.is_empty(), "{:?}", account.spurious);
    assert_eq!(account.in_sync, 1);
    account.updates -= told + 1;
    (account, bytes.0 + bytes.1)
}

#[tokio::test]
async fn few_differences_among_many_entries_are_found() {
    let before = some(20_000);
    let mut after = before.clone();
    for n in 0..10 {
        after[n * 1_000] = set(n as u32 * 1_000, "second");
    }
    // Deleted while the agent was away, and before the replica's time: no tombstone anywhere.
    after.retain(|update| ![key(77), key(7_777)].contains(&update.key));
    let (account, bytes) = compared(before, after).await;
    println!("12 differences among 20,000 entries: {bytes} B");
    assert_eq!((account.updates, account.deletions), (12, vec![key(77), key(7_777)]));
    assert!(bytes < 16 << 10, "{bytes} B");
}

#[tokio::test]
async fn most_of_a_kind_is_sent_whole_and_the_rest_swept() {
    let before = some(3_000);
    let after: Vec<Update> = (0..2_000).map(|n| set(n, "second")).collect();
    let (account, _) = compared(before, after).await;
    assert_eq!((account.updates, account.deletions.len()), (3_000, 1_000));
}

#[tokio::test]
async fn agent_that_held_nothing_of_it_or_all_too_much_ends_with_the_state() {
    for (before, after) in [(0, 3), (3, 0), (700, 1), (0, 2_000), (2_000, 8)] {
        let (account, _) = compared(some(before), some(after.max(1))).await;
        let differ = before.abs_diff(after.max(1)) as usize;
        assert_eq!(account.updates, differ, "{before} to {after}");
    }
}

#[tokio::test]
async fn change_while_digests_are_compared_arrives_and_so_does_a_deletion() {
    let (old, new) = (Replica::listed(options(), 10, some(600)), Replica::listed(options(), 90, some(600)));
    let token = old.cache.read().token(Kind::for_agent("felix").iter().copied().collect());
    new.apply(91, vec![set(1, "second")]);
    let mut raw = Raw::open(&new).await;
    let mut hello = hello();
    (hello.resume, hello.features) = (Some(token), vec!["digest".into()]);
    raw.say(client_message::Message::Hello(hello)).await;
    let Some(Down::Hello(answer)) = raw.next().await.unwrap() else { panic!("no hello") };
    assert_eq!(answer.verdict(), ResumeVerdict::ResumeDigest);
    // This client holds nothing but one key that the server does not have; root and branches say "different".
    let digest = |kind: &str, depth, sums: Vec<u64>, hashes| {
        client_message::Message::Digest(DigestAnswer { kind: kind.into(), depth, sums, hashes, last: true })
    };
    let roots = answer.kinds.len() * 2;
    raw.say(digest("", 0, vec![1; roots], vec![])).await;
    // Of every kind it is asked; all but one have nothing.
    let mut asked = 0;
    let mut large = None;
    while asked < answer.kinds.len() {
        let Some(Down::Digest(request)) = raw.next().await.unwrap() else { panic!("no question") };
        asked += 1;
        match request.depth {
            3 => raw.say(digest(&request.kind, 3, vec![], vec![])).await,
            _ => large = Some(request),
        }
    }
    let large = large.expect("600 entries are compared by branches");
    assert_eq!((large.kind.as_str(), large.depth), ("GlobalConfig", 1));
    // Meanwhile things happen.
    new.apply(92, vec![unset(2), set(3, "second")]);
    raw.say(digest(&large.kind, 1, vec![0; 64], vec![])).await;
    let Some(Down::Digest(request)) = raw.next().await.unwrap() else { panic!("no question") };
    assert_eq!((request.depth, request.buckets.len()), (2, 64));
    raw.say(digest(&large.kind, 2, vec![0; 4_096], vec![])).await;
    let mut held = std::collections::BTreeMap::new();
    let mut ended = false;
    loop {
        match raw.next().await.unwrap().unwrap() {
            Down::Batch(batch) => {
                for entry in batch.entries {
                    match entry.value {
                        Some(value) => drop(held.insert(entry.key, value)),
                        None => drop(held.remove(&entry.key)),
                    }
                }
            }
            Down::SnapshotEnd(end) => {
                assert_eq!(end.kinds, ["GlobalConfig"]);
                ended = true;
            }
            Down::Cut(_) => break,
            Down::Status(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(ended);
    let state = new.cache.read().iter_live().map(|(key, _)| key.to_owned()).collect::<Vec<_>>();
    assert_eq!(held.keys().cloned().collect::<Vec<_>>(), state);
}

#[tokio::test]
async fn stream_that_stood_still_for_too_long_misses_no_deletion() {
    let replica = Replica::listed(options(), 10, some(200));
    let proxy = Proxy::start(replica.address).await;
    let agent = agent(&proxy);
    agent.settle(&replica).await;
    // More than all buffers between them hold: the cursor stands still.
    proxy.stop(true);
    for revision in 11..211 {
        replica.apply(revision, vec![set(revision as u32 % 50, &noise(revision, 100_000))]);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    replica.apply(211, vec![unset(150)]);
    // Half an hour passes.
    replica.cache.update(|cache| cache.trim(Instant::now() + Duration::from_secs(31 * 60)));
    assert_eq!(replica.cache.read().tombstones(), 0);
    proxy.stop(false);
    agent.settle(&replica).await;
    let account = agent.look();
    assert_eq!(account.deletions, [key(150)]);
    assert!(
        account.disconnected.iter().any(|reason| reason.contains("resync")),
        "{:?}",
        account.disconnected
    );
}

#[tokio::test]
async fn client_that_does_not_know_digests_gets_a_snapshot() {
    let old = Replica::listed(options(), 10, some(5));
    let token = old.cache.read().token(KindSet::all());
    let new = Replica::listed(options(), 90, some(5));
    let mut raw = Raw::greet(&new, Some(token)).await;
    let Some(Down::Hello(hello)) = raw.next().await.unwrap() else { panic!("no hello") };
    assert_eq!((hello.verdict(), hello.features.len()), (ResumeVerdict::ResumeSnapshot, 0));
}

#[tokio::test]
async fn digest_that_nobody_asked_for_ends_the_stream() {
    let replica = Replica::listed(options(), 10, some(5));
    let mut raw = Raw::greet(&replica, None).await;
    raw.say(client_message::Message::Digest(DigestAnswer::default())).await;
    let status = loop {
        match raw.next().await {
            Ok(message) => assert!(message.is_some(), "ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}
