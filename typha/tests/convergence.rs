//! `bulrushctl status` and `bulrushctl wait` on two real typhas and a real etcd, with agents that acknowledge, lag,
//! leave or were never there.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use std::process::{Command, Stdio};
use std::sync::Arc;

use harness::process::Typha;
use harness::*;
use serde_json::Value;
use syncer_common::backend::Datastore;
use syncer_common::backend::config::open;
use syncer_common::testing::etcd::EtcdServer;
use syncer_common::testing::require;
use transport::{ClientTls, Expected, Files};

const POOL: &str = "/calico/resources/v3/projectcalico.org/ippools/pool";

fn resource(kind: &str, name: &str, spec: &str) -> String {
    format!(
        r#"{{"kind":"{kind}","apiVersion":"projectcalico.org/v3","metadata":{{"name":"{name}"}},"spec":{spec}}}"#
    )
}

async fn add_node(store: &Arc<dyn Datastore>, name: &str) {
    let path = format!("/calico/resources/v3/projectcalico.org/nodes/{name}");
    store.create(&path, resource("Node", name, "{}").into()).await.unwrap();
}

struct Ended {
    code: i32,
    out: String,
    err: String,
}

/// `bulrushctl`, from where this test's own binary is. Nothing: not built, and the test is to return.
struct Ctl {
    program: std::path::PathBuf,
    etcd: String,
    typhas: Vec<String>,
    /// More of the environment.
    more: Vec<(&'static str, String)>,
}

impl Ctl {
    fn new(etcd: &EtcdServer, typhas: &[&Typha]) -> Option<Ctl> {
        let test = std::env::current_exe().unwrap();
        let program = test.ancestors().nth(2).unwrap().join("bulrushctl");
        if !program.is_file() {
            assert!(!require::required(), "{} is not built: cargo build --workspace", program.display());
            println!("SKIPPED: {} is not built", program.display());
            return None;
        }
        let typhas = typhas.iter().map(|typha| typha.server.to_string()).collect();
        Some(Ctl { program, etcd: etcd.endpoint(), typhas, more: Vec::new() })
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("DATASTORE_TYPE", "etcdv3")
            .env("ETCD_ENDPOINTS", &self.etcd)
            .env("BULRUSH_TYPHA", self.typhas.join(","))
            .envs(self.more.clone())
            .args(arguments)
            .stdin(Stdio::null());
        let ended = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: ended.status.code().unwrap(), out: text(ended.stdout), err: text(ended.stderr) }
    }
}

/// Acknowledges every cut.
fn obedient(agent: &Agent) -> tokio::task::JoinHandle<()> {
    let (account, acks) = (agent.account.clone(), agent.acks.clone());
    tokio::spawn(async move {
        loop {
            let last = account.lock().unwrap().cuts.last().cloned();
            acks.send_if_modified(|held| std::mem::replace(held, last.clone()) != last);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_names_who_lacks_an_object_and_status_counts_live_dead_and_absent() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let store = open(&etcd.config()).await.unwrap();
    for name in ["n1", "n2", "n3"] {
        add_node(&store, name).await;
    }
    store.create(POOL, resource("IPPool", "pool", r#"{"cidr":"10.65.0.0/16"}"#).into()).await.unwrap();
    let url = etcd.endpoint();
    let (one, mut two) =
        (Typha::start(&[("TYPHA_ETCDENDPOINTS", &url)]), Typha::start(&[("TYPHA_ETCDENDPOINTS", &url)]));
    one.ready().await;
    two.ready().await;
    let Some(ctl) = Ctl::new(&etcd, &[&one, &two]) else { return };

    // Nobody is connected: expected are the Node objects.
    let nobody = ctl.run(&["wait", "ippool/pool", "--timeout", "0"]).await;
    assert_eq!(nobody.code, 1, "{} {}", nobody.out, nobody.err);
    assert!(nobody.out.contains("0 of 3") && nobody.out.contains("Absent:  n1, n2, n3"), "{}", nobody.out);

    // Spread over both replicas; one does not acknowledge.
    let agents = [("n1", &one), ("n2", &two), ("n3", &one)]
        .map(|(node, typha)| Agent::start_on(node, &[typha.server.to_string()], "felix"));
    let _obedient = [obedient(&agents[0]), obedient(&agents[1])];
    for agent in &agents {
        eventually("a proven state", || agent.look().in_sync == 1).await;
    }
    let lagging = ctl.run(&["wait", "ippool/pool", "--timeout", "3"]).await;
    assert_eq!(lagging.code, 1, "{} {}", lagging.out, lagging.err);
    assert!(lagging.out.contains("2 of 3") && lagging.out.contains("Lagging: n3 (felix)"), "{}", lagging.out);

    let _third = obedient(&agents[2]);
    let all = ctl.run(&["wait", "ippool/pool", "-o", "json"]).await;
    assert_eq!(all.code, 0, "{} {}", all.out, all.err);
    let value: Value = serde_json::from_str(&all.out).unwrap();
    assert_eq!(value["reached"], serde_json::json!(["n1", "n2", "n3"]));

    // A change is waited for by its own revision, and so is a deletion.
    let before = store.get(POOL).await.unwrap().unwrap().mod_revision;
    let newer = resource("IPPool", "pool", r#"{"cidr":"10.65.0.0/16","disabled":true}"#);
    let revision = store.replace(POOL, newer.into(), before).await.unwrap();
    let changed = ctl.run(&["wait", "ippool/pool"]).await;
    assert_eq!(changed.code, 0, "{} {}", changed.out, changed.err);
    assert!(changed.out.contains(&format!("revision {revision} of etcd")), "{}", changed.out);
    let gone = store.delete(POOL, None).await.unwrap();
    let unknown = ctl.run(&["wait", "ippool/pool"]).await;
    assert!(unknown.code == 1 && unknown.err.contains("--revision"), "{}", unknown.err);
    let deleted = ctl.run(&["wait", "ippool/pool", "--revision", &gone.to_string()]).await;
    assert_eq!(deleted.code, 0, "{} {}", deleted.out, deleted.err);

    // One leaves, and one has never been there.
    let [first, second, third] = agents;
    drop(third);
    add_node(&store, "n4").await;
    let mut status = Value::Null;
    eventually_async("the dead one to be missed", async || {
        let ended = ctl.run(&["status", "-o", "json"]).await;
        assert_eq!(ended.code, 0, "{}", ended.err);
        status = serde_json::from_str(&ended.out).unwrap();
        status["nodes"]["dead"][0]["node"] == "n3"
    })
    .await;
    assert_eq!(status["nodes"]["absent"], serde_json::json!(["n4"]));
    assert_eq!(status["nodes"]["live"], serde_json::json!(["n1", "n2"]));
    assert_eq!(status["agents"]["felix"]["inSync"], 2);
    assert_eq!(status["replicas"].as_array().unwrap().len(), 2);
    let table = ctl.run(&["status"]).await.out;
    assert!(table.contains("4 expected, 2 live, 1 dead, 1 absent"), "{table}");
    assert!(table.contains("Dead:    n3") && table.contains("Absent:  n4"), "{table}");

    // A replica that cannot be asked, and nodes that are seen nowhere else.
    two.process.0.kill().unwrap();
    two.process.0.wait().unwrap();
    let silent = ctl.run(&["wait", "node/n4", "--timeout", "0"]).await;
    assert_eq!(silent.code, 3, "{} {}", silent.out, silent.err);
    assert!(silent.err.contains(&two.server.to_string()), "{}", silent.err);
    let silent = ctl.run(&["status"]).await;
    assert_eq!(silent.code, 3);
    assert!(
        silent.out.contains("no answer") && silent.err.contains(&two.server.to_string()),
        "{}",
        silent.out
    );
    drop((first, second));
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_without_nodes_is_no_success() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let store = open(&etcd.config()).await.unwrap();
    store.create(POOL, resource("IPPool", "pool", r#"{"cidr":"10.65.0.0/16"}"#).into()).await.unwrap();
    let Some(ctl) = Ctl::new(&etcd, &[]) else { return };
    let ended = ctl.run(&["wait", "ippool/pool"]).await;
    assert!(ended.code == 1 && ended.err.contains("no Node objects"), "{} {}", ended.code, ended.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_a_lab_let_agents_in_and_operators_ask_and_nobody_else() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let store = open(&etcd.config()).await.unwrap();
    for name in ["node-1", "node-2"] {
        add_node(&store, name).await;
    }
    store.create(POOL, resource("IPPool", "pool", r#"{"cidr":"10.65.0.0/16"}"#).into()).await.unwrap();
    let Some(mut ctl) = Ctl::new(&etcd, &[]) else { return };
    let lab = tempfile::tempdir().unwrap();
    let path = |name: &str| lab.path().join("lab").join(name).display().to_string();
    let made = ctl.run(&["certs", "--out", &path(""), "--nodes", "2"]).await;
    assert_eq!(made.code, 0, "{}", made.err);
    let (url, ca, cert, key) = (etcd.endpoint(), path("ca.crt"), path("typha.crt"), path("typha.key"));
    let typha = Typha::start(&[
        ("TYPHA_ETCDENDPOINTS", &url),
        ("TYPHA_CAFILE", &ca),
        ("TYPHA_SERVERCERTFILE", &cert),
        ("TYPHA_SERVERKEYFILE", &key),
        ("TYPHA_CLIENTCN", "typha-client"),
        ("TYPHA_CLIENTNODEBINDING", "require"),
    ]);
    typha.ready().await;
    let server = typha.server.to_string();
    let agents = ["node-1", "node-2"].map(|node| {
        let [cert, key] = ["crt", "key"].map(|suffix| path(&format!("{node}/felix.{suffix}")).into());
        let files = Files { ca: path("ca.crt").into(), cert, key };
        let expected = Expected { common_name: "typha-server".into(), uri_san: String::new() };
        Agent::start_tls(
            node,
            std::slice::from_ref(&server),
            "felix",
            Some(ClientTls { files, server: expected }),
        )
    });
    let _first = obedient(&agents[0]);
    for agent in &agents {
        eventually("a proven state", || agent.look().in_sync == 1).await;
    }

    let by = |who: &str, server: &'static str| {
        vec![
            ("BULRUSH_TYPHA", typha.server.to_string()),
            ("BULRUSH_TYPHA_CA_FILE", path("ca.crt")),
            ("BULRUSH_TYPHA_CERT_FILE", path(&format!("{who}.crt"))),
            ("BULRUSH_TYPHA_KEY_FILE", path(&format!("{who}.key"))),
            ("BULRUSH_TYPHA_CN", server.to_owned()),
        ]
    };
    ctl.more = by("operator", "typha-server");
    let status = ctl.run(&["status"]).await;
    assert!(status.code == 0 && status.out.contains("2 expected, 2 live"), "{} {}", status.out, status.err);
    let lagging = ctl.run(&["wait", "ippool/pool", "--timeout", "1"]).await;
    assert!(lagging.code == 1 && lagging.out.contains("node-2"), "{} {}", lagging.out, lagging.err);
    let _second = obedient(&agents[1]);
    let reached = ctl.run(&["wait", "ippool/pool"]).await;
    assert_eq!(reached.code, 0, "{} {}", reached.out, reached.err);

    // Who is not let in, or does not trust the other end, cannot say anything: that is no success.
    let plain = vec![("BULRUSH_TYPHA", server.clone())];
    for (who, settings) in [
        ("an agent", by("node-1/felix", "typha-server")),
        ("one who expects another", by("operator", "another")),
        ("one without TLS", plain),
    ] {
        ctl.more = settings;
        for command in [&["status"][..], &["wait", "ippool/pool", "--timeout", "1"]] {
            let refused = ctl.run(command).await;
            assert_eq!(refused.code, 3, "{who}, {command:?}: {} {}", refused.out, refused.err);
            assert!(refused.err.contains(&server), "{who}, {command:?}: {}", refused.err);
        }
    }
    ctl.more = vec![("BULRUSH_TYPHA", server), ("BULRUSH_TYPHA_CA_FILE", ca)];
    let half = ctl.run(&["status"]).await;
    assert!(half.code == 1 && half.err.contains("--typha-cert"), "{} {}", half.code, half.err);
}
