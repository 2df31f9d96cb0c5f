//! The adapter to Calico's Typha against a stand-in (`tests/calico-typha`): a Go program with Go's own encoding/gob and
//! other people's snappy and zstd. What it serves is what Calico's conversion makes of a real etcd's content.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value as Json, json};
use syncer_common::backend::Datastore;
use syncer_common::model::{Key, Kind, Value, calico_json};
use syncer_common::processors::Processors;
use syncer_common::testing::etcd::EtcdServer;
use syncer_common::testing::require;

fn module() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/calico-typha")
}

fn go() -> Option<Command> {
    let usual = Path::new("/usr/local/go/bin/go");
    let program = if usual.is_file() { usual.to_owned() } else { require::program("go")? };
    let mut command = Command::new(program);
    // Fetching another toolchain is not ours to do.
    command.current_dir(module()).env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0");
    Some(command)
}

/// Built once, beside the other programs.
fn stand_in() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let program = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("calico-typha-stand-in");
        let built =
            go()?.args(["build", "-mod=readonly", "-buildvcs=false", "-o"]).arg(&program).arg(".").output();
        let built = built.unwrap();
        if built.status.success() {
            return Some(program);
        }
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        assert!(!require::required(), "the stand-in does not build: {said}");
        println!("SKIPPED: the stand-in does not build: {said}");
        None
    };
    BUILT.get_or_init(build).as_deref()
}

#[test]
fn fixtures_are_what_the_generator_writes() {
    let Some(mut go) = go() else { return };
    let written = go.args(["run", ".", "fixtures"]).output().unwrap();
    let said = String::from_utf8_lossy(&written.stderr);
    if !written.status.success() && !require::required() {
        println!("SKIPPED: the generator does not run: {said}");
        return;
    }
    assert!(written.status.success(), "{said}");
    let kept = std::fs::read(module().join("fixtures.json")).unwrap();
    assert!(written.stdout == kept, "go run . fixtures > fixtures.json");
}

/// A stand-in that is told what an etcd holds, several times a second. Ended when the test ends, however it ends.
struct StandIn {
    process: Child,
    address: String,
    stop: Arc<AtomicBool>,
}

impl StandIn {
    fn start(store: Arc<dyn Datastore>, compression: &str) -> Option<StandIn> {
        let mut process = Command::new(stand_in()?)
            .args(["-compression", compression])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let mut input = process.stdin.take().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        tokio::spawn(async move {
            let mut told = HashMap::new();
            while !stopped.load(Ordering::Relaxed) {
                // etcd may be busy: it is asked again.
                if let Ok(now) = entries(&*store).await {
                    for line in differences(&mut told, now) {
                        if writeln!(input, "{line}").is_err() {
                            return;
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Some(StandIn { process, address: address.trim().to_owned(), stop })
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// What Calico's Typha would serve to felix of what a datastore holds.
async fn entries(store: &dyn Datastore) -> Result<HashMap<String, Vec<u8>>, syncer_common::backend::Error> {
    let mut processors = Processors::verbatim();
    let mut all = HashMap::new();
    let mut put = |key: &Key, value: &Value, object: &[u8]| {
        if Kind::of(key).is_none_or(|kind| !Kind::FELIX.contains(&kind)) {
            return;
        }
        let sent = match (value, calico_json(value)) {
            (Value::Config(text), _) => text.clone().into_bytes(),
            (Value::Ready(ready), _) => ready.to_string().into_bytes(),
            (_, Some(json)) if !matches!(key, Key::Block { .. }) => json.to_string().into_bytes(),
            _ => object.to_vec(),
        };
        all.insert(key.path().unwrap(), sent);
    };
    for object in store.get_prefix("/calico/").await? {
        for update in processors.put(&object.key, &object.value).updates {
            if let Ok(value) = &update.value {
                put(&update.key, value, &object.value);
            }
        }
    }
    // Of kinds that we do not know.
    all.insert("/calico/resources/v3/projectcalico.org/profiles/kns.x".into(), b"{}".to_vec());
    Ok(all)
}

fn differences(told: &mut HashMap<String, Vec<u8>>, now: HashMap<String, Vec<u8>>) -> Vec<Json> {
    let text = |value: &[u8]| base64::engine::general_purpose::STANDARD.encode(value);
    let gone =
        told.keys().filter(|key| !now.contains_key(*key)).map(|key| json!({ "key": key, "value": null }));
    let changed = now.iter().filter(|(key, value)| told.get(*key) != Some(*value));
    let lines = gone.chain(changed.map(|(key, value)| json!({ "key": key, "value": text(value) }))).collect();
    *told = now;
    lines
}

async fn run(address: &str, etcd: &str, folder: &Path, more: &'static [&'static str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command
        .args(["run", "--target", &format!("calico-typha={address}"), "--etcd", etcd])
        .args(["--nodes", "20", "--pods", "150", "--sample", "20", "--report", &folder.display().to_string()])
        .args(more);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_follow_calicos_typha_and_hold_what_the_datastore_holds() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let store = syncer_common::backend::config::open(&etcd.config()).await.unwrap();
    for compression in ["snappy", "zstd", "none", "plain"] {
        let Some(server) = StandIn::start(store.clone(), compression) else { return };
        let folder = tempfile::tempdir().unwrap();
        let more: &[&str] = match compression {
            "snappy" => &[
                "--phase",
                "churn:seconds=3,rate=30",
                "--phase",
                "rollout:count=3",
                "--phase",
                "namespaces",
                "--phase",
                "reconnect",
                "--phase",
                "nodes:count=3",
                "--phase",
                "storm",
                "--phase",
                "stall:percent=20,seconds=2",
            ],
            _ => &["--phase", "churn:seconds=1,rate=30", "--phase", "reconnect", "--phase", "storm"],
        };
        let ended = run(&server.address, &etcd.endpoint(), folder.path(), more).await;
        assert!(ended.status.success(), "{compression}: {}", text(&ended));
        assert!(text(&ended).contains("PASSED: 20 of 20 nodes"), "{}", text(&ended));
        let report: Json =
            serde_json::from_slice(&std::fs::read(folder.path().join("report.json")).unwrap()).unwrap();
        assert_eq!(report["protocol"], "calico-typha");
        assert!(report["entries"].as_u64() > Some(300), "{report}");
        let phase = |name: &str| {
            let all = report["phases"].as_array().unwrap();
            all.iter().find(|phase| phase["phase"].as_str().unwrap().starts_with(name)).unwrap().clone()
        };
        assert!(phase("churn")["latency"]["count"].as_u64() > Some(20), "{}", phase("churn"));
        // This protocol knows no resuming: whoever was cut off is sent everything again.
        let bytes = |name: &str| phase(name)["received_bytes"].as_u64().unwrap();
        assert_eq!(phase("reconnect")["disconnects"], 20);
        for phase in ["reconnect", "storm"] {
            assert!(bytes(phase) > bytes("join") / 2 && bytes("join") > 20_000, "{phase}: {report}");
        }
        assert_eq!(phase("reconnect")["updates"], 0, "{}", phase("reconnect"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_faults_are_found_with_this_protocol_too() {
    let Some(etcd) = EtcdServer::start().await else { return };
    let store = syncer_common::backend::config::open(&etcd.config()).await.unwrap();
    let Some(server) = StandIn::start(store, "snappy") else { return };
    let folder = tempfile::tempdir().unwrap();
    let corrupt: &[&str] = &["--patience", "5", "--phase", "idle:seconds=1", "--plant", "corrupt"];
    let dropped: &[&str] = &["--patience", "5", "--phase", "namespaces", "--plant", "drop-deletion"];
    for (more, words) in [(corrupt, "has another value"), (dropped, "should be gone")] {
        let ended = run(&server.address, &etcd.endpoint(), folder.path(), more).await;
        assert_eq!(ended.status.code(), Some(1), "{}", text(&ended));
        assert!(text(&ended).contains("node-00000: 1 entries differ"), "{}", text(&ended));
        assert!(text(&ended).contains(words), "{}", text(&ended));
    }
}
