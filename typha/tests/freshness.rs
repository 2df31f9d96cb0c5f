//! Agents and the age of data: they leave a replica that was cut off from its datastore for one that was not, stay
//! where there is none, and withdraw nothing. On real processes and a real etcd of three members.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use harness::process::Typha;
use harness::*;
use syncer_common::backend::config::open;
use syncer_common::model::Key;
use syncer_common::testing::etcd::EtcdCluster;

const POOL: &str = r#"{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"pool"},"spec":{"cidr":"10.65.0.0/16"}}"#;
const PATH: &str = "/calico/resources/v3/projectcalico.org/ippools/pool";

fn pool() -> Key {
    Key::parse("/calico/v1/ipam/v4/pool/10.65.0.0-16").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_leave_a_stale_replica_for_a_fresher_one_and_stay_when_there_is_none() {
    let Some(etcd) = EtcdCluster::start().await else { return };
    // Each replica has a member of its own; the third keeps the quorum.
    let leader = etcd.leader().await;
    let (first, second) = ((leader + 1) % 3, (leader + 2) % 3);
    let store = open(&etcd.config(&[leader])).await.unwrap();
    store.create(PATH, POOL.into()).await.unwrap();
    let start = |member: usize| {
        let endpoint = etcd.endpoint(member);
        Typha::start(&[("TYPHA_ETCDENDPOINTS", endpoint.as_str())])
    };
    let (one, two) = (start(first), start(second));
    one.ready().await;
    two.ready().await;
    let servers = [one.server.to_string(), two.server.to_string()];
    let agents: Vec<Agent> =
        (0..6).map(|n| Agent::start_on(&format!("node-{n}"), &servers, "felix")).collect();
    let at = |agent: &Agent| agent.look().connected.last().cloned();
    for agent in &agents {
        eventually("the pool", || agent.look().state.contains_key(&pool())).await;
        eventually("a proven state", || agent.look().in_sync == 1).await;
    }
    let on_first = agents.iter().filter(|agent| at(agent) == Some(servers[0].clone())).count();
    assert!((1..6).contains(&on_first), "{on_first} of 6 agents at the first replica");

    etcd.pause(first).await;
    for agent in &agents {
        eventually("all at the fresh replica", || at(agent) == Some(servers[1].clone())).await;
    }
    // Now there is no fresher one: everybody stays.
    etcd.pause(leader).await;
    let before: Vec<usize> = agents.iter().map(|agent| agent.look().connected.len()).collect();
    let old = || {
        two.get("/metrics").is_some_and(|text| {
            let age = text.lines().find_map(|line| line.strip_prefix("typha_data_age_seconds "));
            age.is_some_and(|age| age.parse::<f64>().is_ok_and(|age| age > 12.0))
        })
    };
    eventually("the data of the second to be old, too", old).await;
    for (agent, before) in agents.iter().zip(before) {
        let account = agent.look();
        assert_eq!(account.connected.len(), before, "{:?}", account.disconnected);
        assert!(account.deletions.is_empty() && account.spurious.is_empty() && account.in_sync == 1);
        assert!(account.state.contains_key(&pool()));
    }
    etcd.resume(first);
    etcd.resume(leader);
}
