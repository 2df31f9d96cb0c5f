//! The program, as a load tester runs it: a real etcd, real typhas, faults planted and found.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value as Json;

/// etcd is needed; without it the test says so.
fn installed() -> bool {
    syncer_common::testing::require::program("etcd").is_some()
}

fn loadtest(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn report(folder: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap()
}

/// On servers of its own, with a small cluster.
fn small(folder: &Path, more: &[&str]) -> Output {
    let folder = folder.display().to_string();
    let mut arguments = vec!["run", "--local", "2", "--nodes", "30", "--pods", "200", "--report", &folder];
    arguments.extend(more);
    loadtest(&arguments)
}

#[test]
fn every_phase_ends_with_every_node_right() {
    if !installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let phases = [
        "churn:seconds=2",
        "rollout:count=3",
        "cut:seconds=1",
        "reconnect",
        "stall:percent=20,seconds=2",
        "slow:percent=20,seconds=2,pause=100",
        "namespaces",
        "rolling:rate=20",
        "storm",
        "freeze:seconds=3",
        "idle:seconds=1",
        "failover:seconds=2",
        "partition:seconds=3",
        "nodes:count=5",
        "compact:seconds=2",
        "day:seconds=5",
    ];
    let arguments: Vec<&str> = phases.iter().flat_map(|phase| ["--phase", phase]).collect();
    let ended = small(folder.path(), &arguments);
    assert!(ended.status.success(), "{}", text(&ended));
    assert!(text(&ended).contains("PASSED: 30 of 30 nodes"), "{}", text(&ended));

    let report = report(folder.path());
    let results = report["phases"].as_array().unwrap();
    assert_eq!(results.len(), 1 + phases.len());
    let phase = |name: &str| {
        results.iter().find(|result| result["phase"].as_str().unwrap().starts_with(name)).unwrap()
    };
    let number = |value: &Json| value.as_f64().unwrap();
    assert!(number(&phase("churn")["latency"]["count"]) >= 30.0, "{}", phase("churn"));
    assert!(number(&phase("churn")["servers"]["sent_bytes"]) > 10_000.0);
    // Whoever was cut off came back with what it held.
    assert_eq!(number(&phase("cut")["disconnects"]), 30.0);
    assert_eq!(number(&phase("cut")["servers"]["by_snapshot"]), 0.0, "{}", phase("cut"));
    // Nothing had changed: each was told so, in a few bytes.
    let reconnect = phase("reconnect");
    assert_eq!(number(&reconnect["servers"]["by_delta"]) + number(&reconnect["servers"]["by_digest"]), 30.0);
    assert_eq!(
        (number(&reconnect["disconnects"]), number(&reconnect["updates"])),
        (30.0, 0.0),
        "{reconnect}"
    );
    let bytes = number(&reconnect["servers"]["sent_bytes"]);
    assert!(bytes > 0.0 && bytes < 30.0 * 2_000.0, "{reconnect}");
    assert_eq!(number(&phase("storm")["servers"]["by_snapshot"]), 30.0, "{}", phase("storm"));
    assert_eq!(number(&phase("freeze")["deletions"]), 0.0);
    // Both replicas in turn: whoever was there went to the other one with what it held.
    assert!(number(&phase("failover")["disconnects"]) >= 30.0, "{}", phase("failover"));
    assert_eq!(number(&phase("failover")["servers"]["by_snapshot"]), 0.0, "{}", phase("failover"));
    // A path that is silent for less than the nodes' patience costs no stream.
    assert_eq!(number(&phase("partition")["disconnects"]), 0.0, "{}", phase("partition"));
    assert_eq!(number(&phase("nodes")["servers"]["by_snapshot"]), 5.0, "{}", phase("nodes"));
    assert!(number(&phase("compact")["servers"]["listings"]) >= 2.0, "{}", phase("compact"));
    assert_eq!(number(&phase("day")["servers"]["listings"]), 0.0, "{}", phase("day"));
    assert!(!report["samples"].as_array().unwrap().is_empty());
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("passed") && !page.contains("http"), "{page}");

    let compared =
        loadtest(&["compare", &folder.path().display().to_string(), &folder.path().display().to_string()]);
    assert!(compared.status.success() && text(&compared).contains("1.00"), "{}", text(&compared));
}

/// `BULRUSH_ROLLING` sets the number of nodes (at most 1,000, which is the default).
#[test]
fn rolling_restart_under_churn_sends_a_thousand_nodes_on_and_tells_none_a_deletion_that_was_none() {
    if !installed() {
        return;
    }
    let nodes = std::env::var("BULRUSH_ROLLING").unwrap_or_else(|_| "1000".into());
    let folder = tempfile::tempdir().unwrap();
    let ended = loadtest(
        &[
            &[
                "run",
                "--local",
                "2",
                "--preset",
                "1000",
                "--nodes",
                &nodes,
                "--pods",
                "3000",
                "--patience",
                "120",
            ][..],
            &[
                "--sample",
                "1",
                "--phase",
                "rolling:rate=20",
                "--report",
                &folder.path().display().to_string(),
            ],
        ]
        .concat(),
    );
    // Every node holds what the datastore holds; a deletion that nobody made would have been a failure.
    assert!(ended.status.success(), "{}", text(&ended));
    println!("{}", text(&ended));
    let nodes: f64 = nodes.parse().unwrap();
    let report = report(folder.path());
    let rolling = &report["phases"][1];
    let number = |name: &str| rolling[name].as_f64().unwrap();
    assert!(number("writes") > 100.0 && number("deletions") > nodes, "{rolling}");
    // All left the replica that they were on, half of them twice, and nobody else for being late himself.
    assert!((1.4 * nodes..1.6 * nodes).contains(&number("disconnects")), "{rolling}");
    // Told where to go; but a node that is seconds behind on a busy machine may find the replica closed before it
    // reads that.
    assert!(number("sent_on") >= 0.5 * number("disconnects"), "{rolling}");
    let served = |name: &str| rolling["servers"][name].as_f64().unwrap();
    assert_eq!(served("by_snapshot"), 0.0, "{rolling}");
    // The other replica's share went with its process.
    assert!(served("by_delta") >= 0.99 * nodes, "{rolling}");
}

#[test]
fn planted_faults_are_found_and_named() {
    if !installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (fault, phase, words) in [
        ("corrupt", "idle:seconds=1", "has another value"),
        ("drop-deletion", "namespaces", "should be gone"),
    ] {
        let ended = small(folder.path(), &["--patience", "3", "--phase", phase, "--plant", fault]);
        let said = text(&ended);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains("FAILED, seed 1") && said.contains("node-00000: 1 entries differ"), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(!report(folder.path())["failures"].as_array().unwrap().is_empty());
    }
}

#[test]
fn what_cannot_work_is_refused_before_anything_starts() {
    for (arguments, words) in [
        (&["run"][..], "--local"),
        (&["run", "--local", "1", "--phase", "chrun"], "there are idle, day, churn"),
        (&["run", "--local", "1", "--nodes", "101"], "--preset"),
        (&["run", "--local", "1", "--pods", "100000"], "fewer pods"),
        (&["run", "--typha", "127.0.0.1:1", "--phase", "churn"], "--etcd"),
        (&["run", "--typha", "127.0.0.1:1", "--phase", "rolling"], "--local"),
        (&["compare", "/none", "/none"], "/none"),
    ] {
        let refused = loadtest(arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {}", text(&refused));
        assert!(text(&refused).contains(words), "{arguments:?}: {}", text(&refused));
    }
}

/// Killed when the test ends, however it ends.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn followers_say_who_received_what_until_they_are_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let tier = |order: u32| {
        let text = format!(
            "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {{name: a}}\nspec: {{order: {order}}}\n"
        );
        std::fs::write(folder.path().join("tier.yaml"), text).unwrap();
    };
    tier(1);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let program = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("typha");
    assert!(program.is_file(), "{} is not built: cargo build --workspace", program.display());
    let _typha = Running(
        Command::new(program)
            .env_clear()
            .envs([("TYPHA_DATASTORETYPE", "directory"), ("TYPHA_SERVERHOST", "127.0.0.1")])
            .envs([("TYPHA_SERVERPORT", port.as_str()), ("TYPHA_HEALTHENABLED", "false")])
            .env("TYPHA_DIRECTORY", folder.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap(),
    );
    let address = format!("127.0.0.1:{port}");
    let mut followers = Running(
        Command::new(env!("CARGO_BIN_EXE_loadtest"))
            .args(["follow", "--typha", &address, "--nodes", "5", "--watch", "tier/a/"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(followers.0.stdout.take().unwrap()).lines();
    let mut until = |done: &dyn Fn(&Json) -> bool| {
        let read = lines.by_ref().map(|line| serde_json::from_str::<Json>(&line.unwrap()).unwrap());
        read.into_iter().find(|line| done(line)).expect("the followers ended")
    };
    let received = |line: &Json| line["watched"]["received_unix_micros"].as_array().map_or(0, Vec::len);
    let first = until(&|line| line["in_sync"] == 5 && line["alike"] == 5 && received(line) == 5);
    assert!(first["entries"].as_u64() > Some(0) && first["connected"] == 5, "{first}");
    tier(2);
    let before = first["watched"]["value"].clone();
    let second = until(&|line| line["watched"]["value"] != before && received(line) == 5);
    assert_eq!(second["deletions"], 0, "{second}");
    let stopped = Command::new("kill").arg(followers.0.id().to_string()).status().unwrap();
    assert!(stopped.success() && followers.0.wait().unwrap().success());
}
