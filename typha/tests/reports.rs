//! Status that agents report reaches a real etcd, through typha as an operator runs it.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use std::sync::Arc;

use harness::process::Typha;
use harness::*;
use proto::sync::{ClientHello, EndpointReport, Report, client_message, report};
use serde_json::Value;
use syncer_common::backend::Datastore;
use syncer_common::backend::config::open;
use syncer_common::model::{Key, WorkloadEndpointKey};
use syncer_common::testing::etcd::EtcdServer;
use typha_client::BgpSession;

const STATUS: &str = "/calico/felix/v2/no-region/host/n1/";
const OBJECT: &str = "/calico/resources/v3/projectcalico.org/caliconodestatuses/n1";

fn endpoint(node: &str, pod: &str) -> Key {
    Key::WorkloadEndpoint(WorkloadEndpointKey {
        host: node.into(),
        orchestrator: "k8s".into(),
        workload: format!("default/{pod}"),
        endpoint: "eth0".into(),
    })
}

fn status_key(pod: &str) -> String {
    format!("{STATUS}workload/k8s/default%2f{pod}/endpoint/eth0")
}

async fn status(store: &Arc<dyn Datastore>, pod: &str) -> Option<Value> {
    let held = store.get(&status_key(pod)).await.unwrap()?;
    Some(serde_json::from_slice::<Value>(&held.value).unwrap()["status"].take())
}

fn metric(typha: &Typha, name: &str) -> u64 {
    let text = typha.get("/metrics").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap().parse::<f64>().unwrap() as u64
}

#[tokio::test]
async fn status_of_endpoints_is_written_coalesced_and_removed() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let store = open(&etcd.config()).await.unwrap();
    let endpoint_url = etcd.endpoint();
    let mut one = Typha::start(&[("TYPHA_ETCDENDPOINTS", endpoint_url.as_str())]);
    one.ready().await;
    let two = Typha::start(&[("TYPHA_ETCDENDPOINTS", endpoint_url.as_str())]);
    two.ready().await;
    // A leftover of an endpoint that went while nobody looked.
    store.create(&status_key("old"), r#"{"status":"up"}"#.into()).await.unwrap();

    let agent = Agent::start_on("n1", &[one.server.to_string()], "felix");
    agent.reports.process(true);
    for turn in 0..100 {
        let (a, b) = if turn % 2 == 0 { ("down", "up") } else { ("up", "down") };
        agent.reports.endpoints([(endpoint("n1", "a"), a), (endpoint("n1", "b"), b)]);
        tokio::task::yield_now().await;
    }
    eventually_async("both, and not the leftover", async || {
        let all = (status(&store, "a").await, status(&store, "b").await, status(&store, "old").await);
        all == (Some("up".into()), Some("down".into()), None)
    })
    .await;
    let process = format!("{STATUS}status");
    eventually_async("the process", async || store.get(&process).await.unwrap().is_some()).await;
    let value: Value = serde_json::from_slice(&store.get(&process).await.unwrap().unwrap().value).unwrap();
    assert_eq!(value["first_update"], true);
    assert!(value["uptime"].is_number() && value["time"].as_str().unwrap().ends_with('Z'), "{value}");
    let writes = metric(&one, "typha_report_writes_total");
    assert!(writes < 50, "200 changes took {writes} writes");

    agent.reports.endpoints([(endpoint("n1", "a"), "up")]);
    eventually_async("one gone", async || status(&store, "b").await.is_none()).await;
    assert_eq!(status(&store, "a").await, Some("up".into()));
    drop(agent);

    // It goes to the other replica, and changed its mind on the way: everything is said again there.
    let agent = Agent::start_on("n1", &[one.server.to_string(), two.server.to_string()], "felix");
    agent.reports.endpoints([(endpoint("n1", "a"), "down"), (endpoint("n1", "c"), "up")]);
    eventually_async("the new state", async || status(&store, "a").await == Some("down".into())).await;
    one.process.0.kill().unwrap();
    agent.reports.endpoints([(endpoint("n1", "c"), "down")]);
    eventually_async("the rest through the other", async || {
        (status(&store, "a").await, status(&store, "c").await) == (None, Some("down".into()))
    })
    .await;
}

#[tokio::test]
async fn datastore_that_does_not_answer_holds_up_no_stream_and_is_caught_up_with() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let store = open(&etcd.config()).await.unwrap();
    let endpoint_url = etcd.endpoint();
    let typha = Typha::start(&[("TYPHA_ETCDENDPOINTS", endpoint_url.as_str())]);
    typha.ready().await;
    let agent = Agent::start_on("n1", &[typha.server.to_string()], "felix");
    eventually("a proven state", || agent.look().in_sync == 1).await;
    etcd.pause().await;
    agent.reports.endpoints([(endpoint("n1", "a"), "up")]);
    eventually("a failed write", || metric(&typha, "typha_report_writes_failed_total") > 0).await;
    let late = Agent::start_on("n2", &[typha.server.to_string()], "felix");
    eventually("a new agent in sync all the same", || late.look().in_sync == 1).await;
    assert!(agent.look().disconnected.is_empty());
    etcd.resume();
    eventually_async("the status", async || status(&store, "a").await == Some("up".into())).await;
}

#[tokio::test]
async fn report_about_another_node_is_refused_and_counted() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let store = open(&etcd.config()).await.unwrap();
    let endpoint_url = etcd.endpoint();
    let typha = Typha::start(&[("TYPHA_ETCDENDPOINTS", endpoint_url.as_str())]);
    typha.ready().await;
    let (up, messages) = tokio::sync::mpsc::channel(16);
    let say = |message| up.try_send(proto::sync::ClientMessage { message: Some(message) }).unwrap();
    say(client_message::Message::Hello(ClientHello { node: "n2".into(), ..hello() }));
    for node in ["n1", "n2"] {
        let key = endpoint(node, "a").path().unwrap();
        let report = report::Report::Endpoint(EndpointReport { key, status: "up".into(), removed: false });
        say(client_message::Message::Report(Report { report: Some(report) }));
    }
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", typha.server)).unwrap();
    let mut client = proto::sync::sync_client::SyncClient::new(channel.connect().await.unwrap());
    let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut down = client.stream(messages).await.unwrap().into_inner();
    patiently(down.message()).await.unwrap();
    let own = status_key("a").replace("/n1/", "/n2/");
    eventually_async("its own status", async || {
        // What is received is not looked at, but the stream has to be read.
        patiently(down.message()).await.unwrap();
        store.get(&own).await.unwrap().is_some()
    })
    .await;
    assert_eq!(metric(&typha, "typha_reports_refused_total"), 1);
    assert_eq!(status(&store, "a").await, None);
}

#[tokio::test]
async fn sessions_of_bgp_fill_the_object_that_asks_for_them() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let store = open(&etcd.config()).await.unwrap();
    let object = r#"{"kind":"CalicoNodeStatus","apiVersion":"projectcalico.org/v3","metadata":{"name":"n1"},"spec":{"node":"n1","classes":["BGP"],"updatePeriodSeconds":1}}"#;
    store.create(OBJECT, object.into()).await.unwrap();
    let endpoint_url = etcd.endpoint();
    let typha = Typha::start(&[("TYPHA_ETCDENDPOINTS", endpoint_url.as_str())]);
    typha.ready().await;
    let agent = Agent::start_on("n1", &[typha.server.to_string()], "confd");
    let session = |state: &str| BgpSession {
        peer: "10.0.0.2".into(),
        r#type: "node-to-node mesh".into(),
        state: state.into(),
        ..Default::default()
    };
    for (state, up) in [("Active", 0), ("Established", 1)] {
        agent.reports.bgp(vec![session(state)]);
        eventually_async("the session in the object", async || {
            let value: Value =
                serde_json::from_slice(&store.get(OBJECT).await.unwrap().unwrap().value).unwrap();
            value["status"]["bgp"]["numberEstablishedV4"] == up
        })
        .await;
    }
}
