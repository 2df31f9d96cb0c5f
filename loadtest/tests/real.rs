//! Real nodes beside simulated ones: felix, confd and BIRD in network namespaces, as a load tester runs them.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value as Json;
use syncer_common::testing::require;

/// Root and everything that a node runs are needed; without them the test says so.
fn possible() -> bool {
    if !nix::unistd::Uid::effective().is_root() {
        assert!(!require::required(), "network namespaces need root");
        println!("SKIPPED: not root: network namespaces need root");
        return false;
    }
    ["etcd", "ip", "ipset", "iptables-save", "bird"].iter().all(|name| require::program(name).is_some())
}

/// A run of 20 simulated nodes and two real ones, on two typhas.
fn run(folder: &Path, more: &[&str]) -> Output {
    let folder = folder.display().to_string();
    let mut arguments =
        vec!["run", "--local", "2", "--real", "2", "--nodes", "20", "--pods", "200", "--report", &folder];
    arguments.extend(more);
    Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn report(folder: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap()
}

/// Processes on this machine whose environment names one of the run's files.
fn left_over(folder: &Path) -> Vec<String> {
    let mark = folder.display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let of = |process: std::fs::DirEntry| {
        let command = std::fs::read(process.path().join("cmdline")).ok()?;
        // Their logs are open in the run's folder.
        let log = std::fs::read_link(process.path().join("fd/2")).ok()?;
        let own = log.display().to_string().starts_with(&mark);
        own.then(|| String::from_utf8_lossy(&command).replace('\0', " "))
    };
    processes.filter_map(of).collect()
}

#[test]
fn real_nodes_are_in_step_and_their_kernels_right_after_every_phase() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let phases = ["churn:seconds=2,rate=20", "rollout:count=3", "cut", "rolling:rate=20", "storm"];
    let arguments: Vec<&str> = phases.iter().flat_map(|phase| ["--phase", phase]).collect();
    let ended = run(folder.path(), &arguments);
    assert!(ended.status.success(), "{}", text(&ended));
    println!("{}", text(&ended));
    assert!(text(&ended).contains("2 real nodes (felix, confd, BIRD)"), "{}", text(&ended));

    let report = report(folder.path());
    let (real, results) = (&report["real"], report["phases"].as_array().unwrap());
    // Each node after each phase.
    assert_eq!(real["compared"], 2 * results.len(), "{real}");
    for result in results {
        let in_step = &result["real"];
        assert!(in_step["settled_ms"].as_f64().is_some(), "{result}");
        let edits = in_step["applied"]["count"].as_u64().unwrap();
        let name = result["phase"].as_str().unwrap();
        // One at least, on each node.
        let writes = ["churn", "rollout", "rolling"].iter().any(|writing| name.starts_with(writing));
        assert!(if writes { edits >= 2 } else { edits == 0 }, "{result}");
    }
    assert!(real["applied"]["max_ms"].as_f64() > Some(0.0), "{real}");
    for usage in real["usage"].as_array().unwrap() {
        assert!(usage["felix_cpu_seconds"].as_f64() > Some(0.0), "{usage}");
        assert!(usage["felix_peak_mb"].as_f64() > Some(1.0), "{usage}");
    }
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("2 real nodes"), "{page}");
    assert_eq!(left_over(folder.path()), Vec::<String>::new());
}

#[test]
fn real_node_whose_felix_stands_still_is_named() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ended = run(folder.path(), &["--stop-felix", "--patience", "20", "--phase", "rollout:count=2"]);
    let said = text(&ended);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("rollout:count=2: node-00001 is not in step: its felix"), "{said}");
    // The other one is.
    assert!(!said.contains("node-00002"), "{said}");
    assert!(!report(folder.path())["failures"].as_array().unwrap().is_empty());
    assert_eq!(left_over(folder.path()), Vec::<String>::new());
}
