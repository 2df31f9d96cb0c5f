//! A BIRD that is killed and started again, as in a crash or an upgrade, or as another version: its neighbour's
//! kernel sees nothing.
// Helpers of tests are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use confd::render::{Syntax, render};
use support::lab::{Lab, LabNode, bird1, eventually, run, skip};
use support::*;
use syncer_common::model::Update;

const SESSION: Duration = Duration::from_secs(20);

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// `confd bird`, which becomes BIRD.
fn launch(node: &LabNode) -> Killed {
    let child = Command::new("ip")
        .args(["netns", "exec", &node.netns, env!("CARGO_BIN_EXE_confd"), "bird", "-f", "-c"])
        .arg(node.config())
        .arg("-s")
        .arg(node.socket())
        .env("NODENAME", "n1")
        .stderr(std::fs::File::create(node.dir.join("launch.log")).unwrap())
        .spawn()
        .unwrap();
    Killed(child)
}

fn launched_with(child: &Killed) -> Vec<String> {
    let line = std::fs::read(format!("/proc/{}/cmdline", child.0.id())).unwrap();
    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

async fn route(node: &LabNode, prefix: &str, part: &str) {
    eventually(prefix, SESSION, async || {
        let route = node.route(prefix);
        if route.contains(part) { Ok(()) } else { Err(format!("{prefix}: {route:?}")) }
    })
    .await;
}

#[tokio::test]
async fn killed_and_started_again_it_takes_no_route_from_its_neighbour() {
    if skip() {
        return;
    }
    restarted(|node, _| launch(node)).await;
}

/// A node that kept the classic BIRD moves to BIRD 2.
#[tokio::test]
async fn swapped_for_another_version_it_takes_no_route_from_its_neighbour() {
    if skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(bird1) = bird1(dir.path()) else { return };
    restarted(|node, cluster| {
        let folder = node.dir.join("classic");
        std::fs::create_dir(&folder).unwrap();
        let rendered = render(&compute("n1", cluster), Syntax::Classic);
        for file in rendered.into_iter().flat_map(|daemon| daemon.files) {
            std::fs::write(folder.join(file.name), file.text).unwrap();
        }
        let child = Command::new("ip")
            .args(["netns", "exec", &node.netns])
            .arg(bird1.join("bird"))
            .arg("-f")
            .arg("-c")
            .arg(folder.join("bird.cfg"))
            .arg("-s")
            .arg(node.socket())
            .stderr(std::fs::File::create(node.dir.join("classic.log")).unwrap())
            .spawn()
            .unwrap();
        Killed(child)
    })
    .await;
}

/// `first` is killed, and `confd bird` takes its place.
async fn restarted(first: impl FnOnce(&LabNode, &[Update]) -> Killed) {
    let mut lab = Lab::up();
    let cluster = [
        node("n1", "172.30.0.11/24", ""),
        node("n2", "172.30.0.12/24", ""),
        pool("10.244.0.0/16"),
        block("n1", "10.244.140.64/26"),
        block("n2", "10.244.7.0/26"),
    ];
    for (index, name) in ["n1", "n2"].into_iter().enumerate() {
        std::fs::write(lab.nodes[index].config(), rendered(name, &cluster).text()).unwrap();
    }
    lab.nodes[1].start_bird();
    let first = first(&lab.nodes[0], &cluster);
    let [one, two] = &lab.nodes;
    route(two, "10.244.140.64/26", "via 172.30.0.11").await;
    route(one, "10.244.7.0/26", "via 172.30.0.12").await;
    assert!(!launched_with(&first).contains(&"-R".to_owned()), "a fresh node waits for nobody");

    let log = two.dir.join("monitor.log");
    let _monitor = Killed(
        Command::new("ip")
            .args(["-n", &two.netns, "-4", "monitor", "route"])
            .stdout(std::fs::File::create(&log).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let established = async |since: &str| {
        eventually("the session is up again", SESSION, async || {
            let said = run("birdc", &["-s", &two.socket().display().to_string(), "show", "protocols"]);
            let row = said.lines().find(|line| line.starts_with("Mesh_")).unwrap_or_default().to_owned();
            if row.contains("Established") && !row.contains(since) { Ok(row) } else { Err(row) }
        })
        .await
        .0
    };
    let before = established("never").await;
    let since = before.split_whitespace().nth(4).unwrap().to_owned();
    drop(first);
    let second = launch(&lab.nodes[0]);
    eventually("BIRD is there again", SESSION, async || {
        let words = launched_with(&second);
        if words[0].ends_with("bird") { Ok(()) } else { Err(format!("{words:?}")) }
    })
    .await;
    assert!(launched_with(&second).contains(&"-R".to_owned()), "the kernel held its routes");
    established(&since).await;
    // Once the restarted one has finished, nothing may have gone, on either side.
    route(two, "10.244.140.64/26", "via 172.30.0.11").await;
    route(one, "10.244.7.0/26", "via 172.30.0.12").await;
    let events = std::fs::read_to_string(&log).unwrap();
    assert!(!events.lines().any(|line| line.starts_with("Deleted 10.244.140.64/26")), "{events}");
}
