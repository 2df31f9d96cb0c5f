//! Replicas even out their clients, and one that stops hands its clients over: real processes, agents that keep account.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use std::time::{Duration, Instant};

use harness::process::{Typha, free_port};
use harness::*;
use proto::admin::LoadRequest;
use proto::admin::admin_client::AdminClient;
use tonic::transport::Channel;

const AGENTS: usize = 60;

async fn clients(server: &str) -> u64 {
    let channel = Channel::from_shared(format!("http://{server}")).unwrap().connect().await.unwrap();
    AdminClient::new(channel).load(LoadRequest {}).await.unwrap().into_inner().clients
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_even_out_over_new_replicas_and_leave_one_that_stops() {
    let store = tempfile::tempdir().unwrap();
    let manifest = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: pool}\nspec: {cidr: 10.65.0.0/16}\n";
    std::fs::write(store.path().join("pool.yaml"), manifest).unwrap();
    let folder = store.path().display().to_string();
    let ports = [free_port(), free_port(), free_port()].map(|port| port.to_string());
    let servers = ports.clone().map(|port| format!("127.0.0.1:{port}"));
    let replicas = servers.join(",");
    let start = |port: &str| {
        Typha::start(&[
            ("TYPHA_DATASTORETYPE", "directory"),
            ("TYPHA_DIRECTORY", folder.as_str()),
            ("TYPHA_SERVERPORT", port),
            ("TYPHA_REPLICAS", replicas.as_str()),
            ("TYPHA_K8SSERVICEPOLLINTERVALSECS", "0.5"),
        ])
    };
    let mut first = start(&ports[0]);
    first.ready().await;
    let agents: Vec<Agent> =
        (0..AGENTS).map(|n| Agent::start_on(&format!("node-{n}"), &servers[..1], "felix")).collect();
    for agent in &agents {
        eventually("a proven state", || agent.look().in_sync == 1).await;
    }
    let (second, third) = (start(&ports[1]), start(&ports[2]));
    second.ready().await;
    third.ready().await;

    let began = Instant::now();
    let mut counts = Vec::new();
    eventually_async("every replica to have a third, more or less a tenth", async || {
        counts.clear();
        for server in &servers {
            counts.push(clients(server).await);
        }
        counts.iter().sum::<u64>() == AGENTS as u64 && counts.iter().all(|count| (18..=22).contains(count))
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(60), "{counts:?}");

    assert!(first.process.terminate().success());
    eventually_async("all clients at the two others", async || {
        clients(&servers[1]).await + clients(&servers[2]).await == AGENTS as u64
    })
    .await;
    for agent in &agents {
        let account = agent.look();
        assert!(account.deletions.is_empty() && account.spurious.is_empty(), "{account:?}");
        assert_eq!((account.in_sync, account.updates), (1, account.state.len()));
    }
}
