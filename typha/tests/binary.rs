//! The program itself, on real datastores: it becomes ready, serves what is stored, and ends on SIGTERM.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use harness::process::Typha;
use harness::*;
use proto::sync::sync_client::SyncClient;
use proto::sync::{ClientMessage, Token, client_message, server_message};
use syncer_common::backend::config::open;
use syncer_common::model::{Key, Kind, Value};
use syncer_common::testing::etcd::EtcdServer;

const POOL: &str = r#"{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"pool"},"spec":{"cidr":"10.65.0.0/16"}}"#;
const POOL_PATH: &str = "/calico/resources/v3/projectcalico.org/ippools/pool";

fn pool() -> Key {
    Key::parse("/calico/v1/ipam/v4/pool/10.65.0.0-16").unwrap()
}

fn holds_pool(agent: &Agent) -> bool {
    matches!(agent.look().state.get(&pool()), Some(Value::IpPool(pool)) if pool.cidr == "10.65.0.0/16")
}

#[tokio::test]
async fn etcd_is_served_and_what_cannot_be_read_keeps_its_last_value() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let store = open(&etcd.config()).await.unwrap();
    let revision = store.create(POOL_PATH, POOL.into()).await.unwrap();
    let endpoint = etcd.endpoint();
    let settings = [("TYPHA_ETCDENDPOINTS", endpoint.as_str())];
    let (mut one, two) = (Typha::start(&settings), Typha::start(&settings));
    one.ready().await;
    two.ready().await;
    let agent = Agent::start(&[one.server.to_string(), two.server.to_string()], "felix");
    eventually("the pool", || holds_pool(&agent)).await;
    eventually("a proven state", || agent.look().in_sync == 1).await;

    store.replace(POOL_PATH, Bytes::from_static(b"{\"kind\":"), revision).await.unwrap();
    let counted = |typha: &Typha| {
        typha
            .get("/metrics")
            .is_some_and(|text| text.lines().any(|line| line == "typha_updates_invalid_total 1"))
    };
    eventually("the bad value to be counted", || counted(&one) && counted(&two)).await;
    assert!(holds_pool(&agent));

    assert!(one.process.terminate().success(), "SIGTERM ends it with status 0");
    store.delete(POOL_PATH, None).await.unwrap();
    eventually("the deletion, through the other", || agent.look().deletions == [pool()]).await;
    let account = agent.look();
    assert!(account.spurious.is_empty() && account.in_sync == 1);
}

#[tokio::test]
async fn directory_is_served_alike_by_two_replicas() {
    let store = tempfile::tempdir().unwrap();
    write_pool(store.path(), "10.65.0.0/16");
    let path = store.path().display().to_string();
    let settings = [("TYPHA_DATASTORETYPE", "directory"), ("TYPHA_DIRECTORY", path.as_str())];
    let mut replicas = [Typha::start(&settings), Typha::start(&settings)];
    for replica in &replicas {
        replica.ready().await;
    }
    let servers: Vec<String> = replicas.iter().map(|replica| replica.server.to_string()).collect();
    let agent = Agent::start(&servers, "confd");
    eventually("the pool", || holds_pool(&agent)).await;
    for (cidr, held) in [("10.66.0.0/16", false), ("10.65.0.0/16", true)] {
        write_pool(store.path(), cidr);
        eventually("the edit", || agent.look().in_sync == 1 && holds_pool(&agent) == held).await;
    }
    assert!(
        agent.look().state.keys().all(|key| Kind::of(key).is_some_and(|kind| Kind::CONFD.contains(&kind)))
    );

    // Both say the same about where they are and how they came there, so either can take over from the other.
    // Either of them may be the one that lags a moment: both are asked until they agree.
    let mut tokens = Vec::new();
    eventually_async("the same revision on both", async || {
        tokens = vec![token_of(replicas[0].server).await, token_of(replicas[1].server).await];
        tokens[0].positions == tokens[1].positions
    })
    .await;
    assert_eq!(tokens[0].history, tokens[1].history);
    assert!(tokens[0].positions()[0].witness.is_some());

    let connected = agent.look().connected.last().cloned();
    let server = servers.iter().position(|server| Some(server) == connected.as_ref()).unwrap();
    let before = agent.look().updates;
    assert!(replicas[server].process.terminate().success());
    std::fs::remove_file(store.path().join("pool.yaml")).unwrap();
    eventually("the deletion, through the other", || agent.look().state.is_empty()).await;
    assert_eq!((agent.look().updates, agent.look().spurious.len()), (before + 1, 0));
}

/// The token of the first cut of a new stream.
async fn token_of(server: SocketAddr) -> Token {
    let channel = tonic::transport::Channel::from_shared(format!("http://{server}")).unwrap();
    let first = client_message::Message::Hello(hello());
    let up = tokio_stream::iter([ClientMessage { message: Some(first) }]);
    let mut client = SyncClient::new(channel.connect().await.unwrap());
    let mut down = client.stream(up).await.unwrap().into_inner();
    loop {
        let message = patiently(down.message()).await.unwrap().unwrap().message;
        if let Some(server_message::Message::Cut(cut)) = message {
            return cut.token.unwrap();
        }
    }
}

fn write_pool(store: &Path, cidr: &str) {
    let manifest = format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: pool}}\nspec: {{cidr: {cidr}}}\n"
    );
    std::fs::write(store.join("pool.yaml"), manifest).unwrap();
}

#[test]
fn help_explains_every_setting_and_bad_values_are_named() {
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_typha"));
        command.env_clear().args(arguments).envs(variables.iter().copied()).output().unwrap()
    };
    let help = String::from_utf8(run(&["--help"], &[]).stdout).unwrap();
    for spec in typha::config::SPECS {
        assert!(help.contains(&format!("TYPHA_{}", spec.name.to_ascii_uppercase())), "{}", spec.name);
    }
    let refused = run(&[], &[("TYPHA_SERVERPORT", "many")]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && text.contains("TYPHA_SERVERPORT"), "{text}");
}

/// It may live for an hour when it is asked to end, which is far longer than the test waits for its end.
#[tokio::test(flavor = "multi_thread")]
async fn drain_ends_with_the_last_agent_and_at_once_without_any() {
    let store = tempfile::tempdir().unwrap();
    write_pool(store.path(), "10.65.0.0/16");
    let path = store.path().display().to_string();
    let settings = [
        ("TYPHA_DATASTORETYPE", "directory"),
        ("TYPHA_DIRECTORY", path.as_str()),
        ("TYPHA_SHUTDOWNTIMEOUTSECS", "3600"),
    ];
    let mut unused = Typha::start(&settings);
    unused.ready().await;
    assert!(unused.process.terminate().success());
    let mut used = Typha::start(&settings);
    used.ready().await;
    let agent = Agent::start(&[used.server.to_string()], "felix");
    eventually("the pool", || holds_pool(&agent)).await;
    assert!(used.process.terminate().success());
    eventually("the word of it", || {
        agent.look().disconnected.first().is_some_and(|reason| reason.contains("draining"))
    })
    .await;
    assert!(holds_pool(&agent) && agent.look().deletions.is_empty());
}

/// The status line of an answer, and the text.
fn answer(typha: &Typha, path: &str) -> (String, String) {
    let text = typha.get(path).unwrap();
    (text.lines().next().unwrap().to_owned(), text)
}

#[tokio::test]
async fn datastore_that_is_down_at_the_start_is_waited_for() {
    let Some(mut etcd) = EtcdServer::start().await else { return };
    let store = open(&etcd.config()).await.unwrap();
    store.create(POOL_PATH, POOL.into()).await.unwrap();
    etcd.stop();
    let endpoint = etcd.endpoint();
    let typha = Typha::start(&[("TYPHA_ETCDENDPOINTS", endpoint.as_str())]);
    // Where it has looked, and that it goes on looking.
    eventually("the reason", || typha.logged(&endpoint) && typha.logged("trying again")).await;
    let (line, text) = answer(&typha, "/readiness");
    assert!(line.contains(" 503 ") && text.contains("not in sync with the datastore yet"), "{text}");
    assert!(answer(&typha, "/liveness").0.contains(" 200 "), "a restart would not help");
    let agent = Agent::start(&[typha.server.to_string()], "felix");
    eventually("a stream", || !agent.look().connected.is_empty()).await;

    etcd.restart().await;
    typha.ready().await;
    eventually("the pool", || holds_pool(&agent)).await;
    eventually("a proven state", || agent.look().in_sync == 1).await;
    assert!(agent.look().deletions.is_empty());
}

#[tokio::test]
async fn endpoint_that_is_none_is_refused_and_one_where_nobody_answers_is_named() {
    let refused = Command::new(env!("CARGO_BIN_EXE_typha"))
        .env_clear()
        .env("TYPHA_ETCDENDPOINTS", "ftp://example.org:21")
        .arg("--check-config")
        .output()
        .unwrap();
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && text.contains("ftp://example.org:21"), "{text}");

    let nobody = format!("http://127.0.0.1:{}", harness::process::free_port());
    let mut typha = Typha::start(&[("TYPHA_ETCDENDPOINTS", nobody.as_str())]);
    eventually("the endpoint to be named", || typha.logged(&nobody)).await;
    assert!(answer(&typha, "/liveness").0.contains(" 200 "));
    assert!(answer(&typha, "/readiness").0.contains(" 503 "));
    assert!(typha.process.terminate().success(), "it ends when it is asked to, all the same");
}

#[test]
fn settings_are_checked_without_starting_anything() {
    let run = |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_typha"));
        command.env_clear().arg("--check-config").envs(variables.iter().copied()).output().unwrap()
    };
    let good = run(&[("TYPHA_ETCDUSERNAME", "u"), ("TYPHA_ETCDPASSWORD", "hunter2")]);
    let text = String::from_utf8(good.stdout).unwrap();
    assert!(good.status.success() && text.contains("EtcdUsername = u    (TYPHA_ETCDUSERNAME)"), "{text}");
    assert!(!text.contains("hunter2"));
    let bad = run(&[("TYPHA_CAFILE", "/nonexistent")]);
    let text = String::from_utf8(bad.stderr).unwrap();
    assert!(!bad.status.success() && text.contains("ServerCertFile"), "{text}");
}

#[tokio::test]
async fn page_shows_clients_and_the_log_level_changes_while_it_runs() {
    let store = tempfile::tempdir().unwrap();
    write_pool(store.path(), "10.65.0.0/16");
    let path = store.path().display().to_string();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("typha.cfg");
    std::fs::write(&file, "LogSeverityScreen = warn\n").unwrap();
    let settings = [("TYPHA_DATASTORETYPE", "directory"), ("TYPHA_DIRECTORY", path.as_str())];
    let typha = Typha::start_with(&["-c", file.to_str().unwrap()], &settings);
    typha.ready().await;
    let agent = Agent::start(&[typha.server.to_string()], "felix");
    eventually("the pool", || holds_pool(&agent)).await;
    let page = typha.get("/").unwrap();
    assert!(page.starts_with("HTTP/1.0 200") && page.contains("<title>typha</title>"), "{page}");
    let status = typha.get("/status.json").unwrap();
    let status: serde_json::Value = serde_json::from_str(status.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((&status["clients"][0]["agent"], &status["inSync"]), (&"felix".into(), &true.into()));
    assert_eq!(status["entries"]["IPPool"], 1, "{status}");

    assert!(!typha.logged("settings read again") && !typha.logged("agent connected"));
    std::fs::write(&file, "LogSeverityScreen = info\nReplicaName = other\n").unwrap();
    eventually("the change of the file to be seen", || typha.logged("settings read again")).await;
    eventually("what needs a restart to be named", || typha.logged("ReplicaName")).await;
    let _second = Agent::start_on("n2", &[typha.server.to_string()], "felix");
    eventually("the new level", || typha.logged("agent connected")).await;
    std::fs::write(&file, "LogSeverityScreen = typha=loud\n").unwrap();
    Command::new("kill").args(["-HUP", &typha.process.0.id().to_string()]).status().unwrap();
    eventually("the refusal", || typha.logged("settings cannot be used")).await;
}
