//! The status page in a browser: headless Chromium loads it from a real typha with agents. `BULRUSH_SCREENSHOT` names a
//! file for a picture of it (docs/typha-status-page.png).

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use std::process::{Command, Output, Stdio};

use harness::process::Typha;
use harness::*;
use syncer_common::testing::require;

const BROWSER: &str = "chromium-headless-shell";

async fn browse(page: &str, what: &str) -> Output {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(BROWSER);
    command
        // Root may not have a sandbox; the page is ours.
        .args(["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1000"])
        // Of its own time: it does not pass while a request is under way.
        .args(["--virtual-time-budget=6000", what])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(page)
        .stdin(Stdio::null());
    let browsing = tokio::task::spawn_blocking(move || command.output().unwrap());
    patiently(browsing).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_shows_replica_clients_lag_and_size() {
    if require::program(BROWSER).is_none() {
        return;
    }
    let store = tempfile::tempdir().unwrap();
    for n in 0..40 {
        let text = format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: pool-{n}}}\nspec: {{cidr: 10.{n}.0.0/16}}\n"
        );
        std::fs::write(store.path().join(format!("pool-{n}.yaml")), text).unwrap();
    }
    let folder = store.path().display().to_string();
    let typha = Typha::start(&[
        ("TYPHA_DATASTORETYPE", "directory"),
        ("TYPHA_DIRECTORY", &folder),
        ("TYPHA_REPLICANAME", "typha-1"),
    ]);
    // The first listing of a new folder is an empty one: its files get their revisions then.
    eventually("the pools", || typha.get("/status.json").is_some_and(|text| text.contains(r#""IPPool":40"#)))
        .await;
    let servers = [typha.server.to_string()];
    // What a client calls itself is text, and no markup.
    let nodes = ["rack1-node1", "rack1-node2", "rack2-node1", "<b>bold</b>"];
    let agents: Vec<Agent> = nodes
        .into_iter()
        .flat_map(|node| ["felix", "confd"].map(|agent| Agent::start_on(node, &servers, agent)))
        .collect();
    for agent in &agents {
        eventually("the pools", || agent.look().state.len() >= 40 && agent.look().in_sync == 1).await;
        agent.acks.send_replace(agent.look().cuts.last().cloned());
    }
    eventually("the acks", || {
        typha.get("/status.json").is_some_and(|text| text.matches("\"lagMillis\":0").count() == agents.len())
    })
    .await;

    let page = format!("http://{}/", typha.health);
    let seen = browse(&page, "--dump-dom").await;
    let text = String::from_utf8_lossy(&seen.stdout);
    let fact = |name: &str| {
        let (_, after) =
            text.split_once(&format!("<dt>{name}</dt>")).unwrap_or_else(|| panic!("{name}: {text}"));
        let value = after.split_once('>').unwrap().1;
        value.split_once("</dd>").unwrap().0.to_owned()
    };
    assert!(text.contains("<h1 id=\"title\">typha typha-1</h1>"), "{text}");
    assert_eq!(
        (fact("In sync"), fact("Clients"), fact("State")),
        ("yes".into(), "8".into(), "serving".into())
    );
    assert_eq!(fact("Lag p50 / p99 / max"), "0.0 s / 0.0 s / 0.0 s");
    assert!(fact("Snapshot").ends_with(" kB") && fact("Sent per second").ends_with(" kB"), "{text}");
    let (packed, share) = fact("Snapshot, compressed")
        .split_once(" kB (")
        .map(|(size, share)| {
            (size.parse::<f64>().unwrap(), share.strip_suffix(" %)").unwrap().parse::<f64>().unwrap())
        })
        .unwrap();
    let plain: f64 = fact("Snapshot").strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(
        packed > 0.0 && packed < plain && (1.0..100.0).contains(&share),
        "{packed} kB, {share} % of {plain} kB"
    );
    // In the time that the browser makes up, too little passes for a heartbeat.
    assert!(fact("Frames per second").parse::<f64>().is_ok(), "{text}");
    assert_eq!(fact("Snapshots under way / waiting"), "0 / 0");
    assert!(text.contains("<td>IPPool</td><td>40</td>"), "{text}");
    assert_eq!(text.matches("<td>rack1-node1</td>").count(), 2);
    assert!(text.contains("<td>&lt;b&gt;bold&lt;/b&gt;</td>") && !text.contains("<b>bold"), "{text}");
    assert!(text.contains("<p id=\"error\" class=\"bad\" role=\"alert\"></p>"), "{text}");

    if let Some(file) = std::env::var_os("BULRUSH_SCREENSHOT") {
        let file = file.to_str().unwrap();
        let seen = browse(&page, &format!("--screenshot={file}")).await;
        assert!(seen.status.success(), "{}", String::from_utf8_lossy(&seen.stderr));
    }
}
