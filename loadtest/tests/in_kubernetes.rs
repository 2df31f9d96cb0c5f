//! The program on a real Kubernetes API server and a real typha.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use syncer_common::backend::config::open;
use syncer_common::kubernetes::ApiGroup;
use syncer_common::testing::kubernetes::KubeServer;

const PATIENCE: Duration = Duration::from_secs(60);

/// Killed when the test ends, however it ends.
struct Typha {
    process: Child,
    address: String,
    log: PathBuf,
}

impl Drop for Typha {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        if std::thread::panicking() {
            println!("typha's log:\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

impl Typha {
    async fn start(kubeconfig: &Path, log: PathBuf) -> Typha {
        let program = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("typha");
        assert!(program.is_file(), "{} is not built: cargo build --workspace", program.display());
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (port, health) = (free(), free());
        let process = Command::new(program)
            .env_clear()
            .envs([("TYPHA_DATASTORETYPE", "kubernetes"), ("TYPHA_MAXCONNECTIONSPERADDRESS", "none")])
            .envs([("TYPHA_SERVERHOST", "127.0.0.1"), ("TYPHA_HEALTHHOST", "127.0.0.1")])
            .env("TYPHA_SERVERPORT", port.to_string())
            .env("TYPHA_HEALTHPORT", health.to_string())
            .env("TYPHA_KUBECONFIG", kubeconfig)
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut typha = Typha { process, address: format!("127.0.0.1:{port}"), log };
        let deadline = Instant::now() + PATIENCE;
        while !ready(health).is_some_and(|answer| answer.starts_with("HTTP/1.0 200")) {
            let ended = typha.process.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "typha is not ready: {ended:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        typha
    }
}

fn ready(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /readiness HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

async fn loadtest(arguments: &[&str]) -> Output {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output();
    tokio::time::timeout(4 * PATIENCE, output).await.expect("the run ends").unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A small cluster, whose sizes need a file.
const SHAPE: &str = "nodes: 20\npods: 60\nnamespaces: 4\npolicies: 2\nglobal_policies: 4\nnetwork_sets: 3\n";

struct Desk {
    server: KubeServer,
    typha: Typha,
    folder: tempfile::TempDir,
    kubeconfig: String,
    shape: String,
    report: String,
}

impl Desk {
    async fn new(server: KubeServer, group: ApiGroup) -> Desk {
        server.install_crds(group).await;
        let kubeconfig = server.kubeconfig();
        let folder = tempfile::tempdir().unwrap();
        let typha = Typha::start(&kubeconfig, folder.path().join("typha.log")).await;
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (shape, report) = (path("shape.yaml"), path("report"));
        std::fs::write(&shape, SHAPE).unwrap();
        Desk { server, typha, folder, kubeconfig: kubeconfig.display().to_string(), shape, report }
    }

    async fn run(&self, more: &[&str]) -> Output {
        let mut arguments = vec!["run", "--typha", &self.typha.address, "--kubeconfig", &self.kubeconfig];
        arguments.extend(["--shape", &self.shape, "--report", &self.report]);
        arguments.extend(more);
        loadtest(&arguments).await
    }

    fn results(&self) -> Json {
        let file = self.folder.path().join("report/report.json");
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }

    async fn held(&self) -> Vec<String> {
        held(&self.server).await
    }
}

/// What the API server holds of Calico's model, but for what it makes itself.
async fn held(server: &KubeServer) -> Vec<String> {
    let all = open(&server.config()).await.unwrap().get_prefix("/calico/").await.unwrap();
    let own = ["/profiles/kns.default", "/profiles/kns.kube-", "/default/kubernetes"];
    let keys = all.into_iter().map(|object| object.key);
    keys.filter(|key| !own.iter().any(|own| key.contains(own))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_in_kubernetes_is_made_changed_followed_and_removed() {
    let Some(server) = KubeServer::start().await else { return };
    let desk = Desk::new(server, ApiGroup::V1).await;
    let phases = [
        "churn:seconds=3,rate=15",
        "rollout:count=3",
        "namespaces:count=1",
        "nodes:count=3",
        "reconnect",
        "idle:seconds=1",
    ];
    let ended = desk.run(&phases.iter().flat_map(|phase| ["--phase", phase]).collect::<Vec<_>>()).await;
    assert!(ended.status.success(), "{}", text(&ended));
    assert!(text(&ended).contains("PASSED: 20 of 20 nodes"), "{}", text(&ended));
    let report = desk.results();
    let number = |phase: usize, name: &str| report["phases"][phase][name].as_f64().unwrap();
    assert!(report["entries"].as_u64() > Some(100), "{report}");
    // What a pod is made of arrives once: that it runs is no news to agents.
    assert!(number(1, "writes") >= 30.0 && number(1, "deletions") > 0.0, "{}", report["phases"][1]);
    assert!(report["phases"][1]["latency"]["count"].as_u64() > Some(100), "{}", report["phases"][1]);
    assert!(number(2, "writes") == 3.0 && number(2, "updates") >= 20.0, "{}", report["phases"][2]);
    assert!(number(3, "deletions") >= 20.0 * 4.0, "{}", report["phases"][3]);
    assert!(number(4, "deletions") >= 17.0 * 3.0, "{}", report["phases"][4]);
    assert_eq!((number(5, "disconnects"), number(5, "updates")), (20.0, 0.0), "{}", report["phases"][5]);
    // Removed to the last namespace.
    assert_eq!(desk.held().await, [""; 0]);

    let foreign = "apiVersion: v1\nkind: Node\nmetadata: {name: somebodys}\n";
    desk.server.apply(foreign).await;
    let refused = desk.run(&[]).await;
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    let said = text(&refused);
    assert!(said.contains("holds 1 objects already (the first: Node somebodys)"), "{said}");
    assert!(said.contains("leave the datastore's flags out"), "{said}");
    assert_eq!(desk.held().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_found_in_kubernetes_and_what_cannot_be_filled_is_refused() {
    let Some(server) = KubeServer::start().await else { return };
    refuse_what_cannot_be_filled(&server).await;
    let desk = Desk::new(server, ApiGroup::V3).await;
    for (fault, phase, words) in [
        ("corrupt", "idle:seconds=1", "has another value"),
        ("drop-deletion", "namespaces:count=1", "should be gone"),
    ] {
        let ended = desk.run(&["--patience", "5", "--phase", phase, "--plant", fault]).await;
        let said = text(&ended);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains("FAILED, seed 1") && said.contains("node-00000: 1 entries differ"), "{said}");
        assert!(said.contains(words), "{said}");
        assert_eq!(desk.held().await, [""; 0]);
    }
}

/// The server knows none of Calico's kinds.
async fn refuse_what_cannot_be_filled(server: &KubeServer) {
    let kubeconfig = server.kubeconfig().display().to_string();
    let base = ["run", "--typha", "127.0.0.1:1", "--preset", "100"];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    std::fs::write(&file, "{").unwrap();
    let file = file.display().to_string();
    for (more, words) in [
        (&["--kubeconfig", "/none"][..], "/none"),
        (&["--kubeconfig", &file], "is not a kubeconfig in YAML"),
        (&["--kubeconfig", &kubeconfig, "--context", "other"], "has no context \"other\" (it has: test)"),
        (&["--kubeconfig", &kubeconfig, "--etcd", "http://127.0.0.1:1"], "cannot be used with"),
        (&["--kubeconfig", &kubeconfig], "install the CRDs"),
    ] {
        let refused = loadtest(&[&base[..], more].concat()).await;
        assert_eq!(refused.status.code(), Some(2), "{more:?}: {}", text(&refused));
        assert!(text(&refused).contains(words), "{more:?}: {}", text(&refused));
    }
    // What could be written was removed.
    assert_eq!(held(server).await, [""; 0]);
}
