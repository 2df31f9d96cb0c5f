//! What happens to datastores and servers, on real processes: a cut by a firewall and a compaction meanwhile, a restored
//! backup, a server killed in the middle of a snapshot. Agents are told no deletion that did not happen.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::namespace::{in_namespace, run};
use harness::process::{Typha, free_port};
use harness::proxy::Proxy;
use harness::*;
use proto::sync::{ClientHello, SyncState, client_message, server_message::Message as Down};
use syncer_common::backend::Datastore;
use syncer_common::backend::config::open;
use syncer_common::model::{Key, Kind};
use syncer_common::testing::etcd::EtcdServer;

fn path(n: u32) -> String {
    format!("/calico/resources/v3/projectcalico.org/ippools/pool-{n}")
}

async fn put(store: &Arc<dyn Datastore>, n: u32) {
    let value = format!(
        r#"{{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{{"name":"pool-{n}"}},"spec":{{"cidr":"10.{n}.0.0/16"}}}}"#
    );
    store.create(&path(n), value.into()).await.unwrap();
}

fn pool(n: u32) -> Key {
    Key::parse(&format!("/calico/v1/ipam/v4/pool/10.{n}.0.0-16")).unwrap()
}

/// Waits until these are the pools that the agent holds; else says what it holds and was told.
async fn holds(what: &str, agent: &Agent, pools: impl IntoIterator<Item = u32>) {
    let pools_only = |key: &Key| Kind::of(key) == Some(Kind::IpPool);
    let wanted: BTreeSet<Key> = pools.into_iter().map(pool).collect();
    let held = || agent.look().state.into_keys().filter(pools_only).collect::<BTreeSet<Key>>();
    let deadline = Instant::now() + PATIENCE;
    while held() != wanted {
        assert!(Instant::now() < deadline, "in vain waited for {what}: {:?}", agent.look());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A number that typha publishes.
fn metric(typha: &Typha, name: &str) -> Option<f64> {
    let text = typha.get("/metrics")?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn etcd_that_was_cut_off_and_compacted_meanwhile_is_caught_up_with() {
    in_namespace(&["iptables", "etcdctl"], async || {
        let Some(etcd) = EtcdServer::start().await else { return };
        let store = open(&etcd.config()).await.unwrap();
        for n in 0..20 {
            put(&store, n).await;
        }
        // typha has an address of etcd for itself, which the firewall can tell from the others'.
        run("iptables -w -t nat -A OUTPUT -d 127.0.0.2 -p tcp -j DNAT --to-destination 127.0.0.1");
        let beyond = etcd.endpoint().replace("127.0.0.1", "127.0.0.2");
        let port = free_port().to_string();
        let settings = [("TYPHA_ETCDENDPOINTS", beyond.as_str()), ("TYPHA_SERVERPORT", port.as_str())];
        let mut typha = Typha::start(&settings);
        typha.ready().await;
        let server = typha.server.to_string();
        let agent = Agent::start(&[server], "felix");
        holds("the pools", &agent, 0..20).await;
        eventually("a proven state", || agent.look().in_sync == 1).await;
        let listings = metric(&typha, "typha_datastore_listings_total").unwrap();

        run("iptables -w -A OUTPUT -m conntrack --ctorigdst 127.0.0.2 -j DROP");
        for n in [3, 4, 5] {
            store.delete(&path(n), None).await.unwrap();
        }
        put(&store, 20).await;
        let newest = store.clone().sources()[0].head().await.unwrap().revision;
        eventually("typha to see that it is cut off", || {
            metric(&typha, "typha_datastore_connected") == Some(0.0)
        })
        .await;
        eventually("the data to be old", || {
            metric(&typha, "typha_data_age_seconds").is_some_and(|age| age > 5.0)
        })
        .await;
        run(&format!("etcdctl --endpoints {} compact {newest}", etcd.endpoint()));
        let account = agent.look();
        assert!(account.deletions.is_empty() && account.connected.len() == 1, "{account:?}");

        run("iptables -w -D OUTPUT -m conntrack --ctorigdst 127.0.0.2 -j DROP");
        let now = || (0..21).filter(|n| ![3, 4, 5].contains(n));
        holds("what happened meanwhile", &agent, now()).await;
        eventually("another listing, because history was gone", || {
            metric(&typha, "typha_datastore_listings_total").is_some_and(|count| count > listings)
        })
        .await;
        let account = agent.look();
        assert_eq!(account.deletions, [3, 4, 5].map(pool));
        assert_eq!((account.connected.len(), account.in_sync), (1, 1));
        assert!(account.spurious.is_empty(), "{:?}", account.spurious);

        // Another process knows nothing of what was before the compaction: equal contents are found by digests.
        typha.process.0.kill().unwrap();
        typha.process.0.wait().unwrap();
        let again = Typha::start(&settings);
        again.ready().await;
        put(&store, 21).await;
        holds("the pool of after the restart", &agent, now().chain([21])).await;
        let account = agent.look();
        assert_eq!((account.deletions.len(), account.spurious.len(), account.in_sync), (3, 0, 1));
        assert_eq!(metric(&again, r#"typha_resumes_total{verdict="snapshot"}"#), Some(0.0));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_backup_adds_but_deletes_only_when_the_operator_has_accepted_it() {
    if syncer_common::testing::require::program("etcdctl").is_none() {
        return;
    }
    let Some(mut etcd) = EtcdServer::start().await else { return };
    let store = open(&etcd.config()).await.unwrap();
    put(&store, 1).await;
    put(&store, 2).await;
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("backup");
    run(&format!("etcdctl --endpoints {} snapshot save {}", etcd.endpoint(), backup.display()));
    // What is in no backup.
    put(&store, 3).await;
    store.delete(&path(2), None).await.unwrap();
    let (endpoint, port) = (etcd.endpoint(), free_port().to_string());
    let start = |accepted: &str| {
        Typha::start(&[
            ("TYPHA_ETCDENDPOINTS", endpoint.as_str()),
            ("TYPHA_SERVERPORT", port.as_str()),
            ("TYPHA_ACCEPTHISTORY", accepted),
        ])
    };
    let mut typha = start("");
    typha.ready().await;
    let agent = Agent::start(&[typha.server.to_string()], "felix");
    holds("the pools", &agent, [1, 3]).await;
    eventually("a proven state", || agent.look().in_sync == 1).await;

    etcd.restore(&backup).await;
    holds("what only the backup has, beside what only the agent has", &agent, [1, 2, 3]).await;
    assert!(typha.logged("set AcceptHistory"), "the operator is told what to do");
    let mut raw = Raw::open_at(typha.server).await;
    raw.say(client_message::Message::Hello(ClientHello { node: "onlooker".into(), ..hello() })).await;
    let forked = loop {
        match raw.next().await.unwrap().expect("the stream goes on") {
            Down::Status(status) if status.detail.contains("FORKED") => break status,
            _ => {}
        }
    };
    assert_eq!(forked.state(), SyncState::SyncInSync);
    // Updates go on, and so do deletions that nobody is to believe yet.
    put(&store, 4).await;
    holds("an update after the restoration", &agent, 1..5).await;
    store.delete(&path(1), None).await.unwrap();
    put(&store, 5).await;
    holds("the next update", &agent, 1..6).await;

    // A replica that has started since knows nothing of a fork: the agent's token does.
    assert!(typha.process.terminate().success());
    let mut typha = start("");
    typha.ready().await;
    put(&store, 6).await;
    holds("an update by another replica", &agent, 1..7).await;
    assert!(agent.look().deletions.is_empty());
    let status: serde_json::Value = {
        let answer = typha.get("/status.json").unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    };

    assert!(typha.process.terminate().success());
    let typha = start(status["history"].as_str().unwrap());
    typha.ready().await;
    holds("the accepted state", &agent, [2, 4, 5, 6]).await;
    let account = agent.look();
    assert_eq!(account.deletions.iter().collect::<BTreeSet<_>>(), [pool(1), pool(3)].iter().collect());
    assert_eq!((account.spurious.len(), account.in_sync), (0, 1));
}

const SETS: u32 = 1_000;

/// Sets that fill several snapshots' worth of windows and buffers.
fn write_sets(folder: &Path, sets: impl Iterator<Item = u32>) {
    let mut text = String::new();
    for n in sets {
        let nets: Vec<String> = (0..200u32)
            .map(|m| {
                let [_, b, c, d] = (n * 200 + m).wrapping_mul(2_654_435_761).to_be_bytes();
                format!("10.{b}.{c}.{d}/32")
            })
            .collect();
        let kind = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet";
        let nets = nets.join(", ");
        writeln!(text, "---\n{kind}\nmetadata: {{name: set-{n}}}\nspec: {{nets: [{nets}]}}").unwrap();
    }
    // In one piece: no replica sees half of it.
    std::fs::write(folder.join(".sets"), text).unwrap();
    std::fs::rename(folder.join(".sets"), folder.join("sets.yaml")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn server_killed_in_the_middle_of_a_snapshot_leaves_nothing_wrong() {
    let store = tempfile::tempdir().unwrap();
    write_sets(store.path(), 0..SETS);
    let folder = store.path().display().to_string();
    let start = || Typha::start(&[("TYPHA_DATASTORETYPE", "directory"), ("TYPHA_DIRECTORY", &folder)]);
    let (mut first, second) = (start(), start());
    let serves = async |typha: &Typha, sets: u32| {
        let text = format!("\"NetworkSet\":{sets},");
        eventually("the sets", || typha.get("/status.json").is_some_and(|answer| answer.contains(&text)))
            .await;
    };
    serves(&first, SETS).await;
    serves(&second, SETS).await;
    let proxy = Proxy::start(first.server).await;
    let agent = Agent::start(&[proxy.name()], "felix");
    // It takes one event at a time, and the stream stands still meanwhile.
    let mut busy = agent.busy.clone().lock_owned().await;
    let set = |key: &Key| Kind::of(key) == Some(Kind::NetworkSet);
    while !agent.look().state.keys().any(set) {
        drop(busy);
        busy = agent.busy.clone().lock_owned().await;
    }
    let before = agent.look();
    assert!(before.in_sync == 0 && before.updates < SETS as usize, "{} updates", before.updates);
    first.process.0.kill().unwrap();
    first.process.0.wait().unwrap();
    // Gone before the second snapshot begins: some of them the agent has had from the first.
    write_sets(store.path(), SETS / 2..SETS);
    serves(&second, SETS / 2).await;
    proxy.lead_to(second.server);
    drop(busy);

    eventually("a proven state", || agent.look().in_sync == 1).await;
    let account = agent.look();
    let sets = account.state.keys().filter(|key| set(key)).count();
    assert_eq!(sets, SETS as usize / 2, "{:?}", account.disconnected);
    assert!(before.state.keys().any(|key| !account.state.contains_key(key)), "none of them had arrived");
    // What was sent and not taken when the server died arrived all the same; every deletion is of what is gone.
    assert!(account.deletions.iter().all(|key| !account.state.contains_key(key)));
    assert!(account.spurious.is_empty());
}
