//! A node with two hundred peers, as in a mesh that is too large: real sessions, real routes, and how much the agent
//! and BIRD do while nothing happens. Times are printed, not asserted: `cargo test … --test bird_many -- --nocapture`.
// Helpers of tests are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use confd::bird::control::Control;
use confd::bird::sessions::Session;
use syncer_common::model::{Key, Update, Value};
use typha_client::ClientEvent;

use support::agent::{cut, start};
use support::lab::{Lab, bird, eventually, skip};
use support::*;

const PEERS: usize = 200;
const PATIENCE: Duration = Duration::from_secs(60);
/// Clock ticks of /proc: 100 a second on every Linux.
const TICK: Duration = Duration::from_millis(10);

fn address(peer: usize) -> String {
    format!("10.77.0.{}", peer + 1)
}

fn their_block(peer: usize) -> String {
    format!("10.244.{peer}.0/26")
}

/// The BIRD of another node: a BIRD has one session to an address.
fn peer_config(peer: usize) -> String {
    let (own, block) = (address(peer), their_block(peer));
    format!(
        "router id {own};\nprotocol device {{ scan time 10; }}\n\
         protocol static {{ ipv4; route 172.30.0.11/32 via \"eth0\"; route {block} blackhole; }}\n\
         protocol bgp n1 {{ local {own} as 64512; neighbor 172.30.0.11 as 64512; strict bind on; multihop; passive on; \
         ipv4 {{ import all; export where net = {block}; }}; }}\n"
    )
}

/// Ends with the test.
struct Peers(Vec<Child>);

impl Drop for Peers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn start_peers(lab: &Lab) -> Peers {
    let start = |peer| {
        let name = |end: &str| lab.dir.path().join(format!("peer-{peer}.{end}"));
        std::fs::write(name("cfg"), peer_config(peer)).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &lab.nodes[1].netns]).arg(bird().unwrap());
        command.arg("-f").arg("-c").arg(name("cfg")).arg("-s").arg(name("ctl"));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    Peers((0..PEERS).map(start).collect())
}

fn cluster() -> Vec<Update> {
    let mut updates =
        vec![node("n1", "172.30.0.11/24", ""), pool("10.244.0.0/16"), block("n1", "10.244.240.0/26")];
    updates
        .extend((0..PEERS).map(|peer| node(&format!("peer-{peer}"), &format!("{}/32", address(peer)), "")));
    updates
}

async fn sessions(lab: &Lab) -> Result<Vec<Session>, String> {
    let mut control = Control::connect(&lab.nodes[0].socket()).await.map_err(|error| error.to_string())?;
    control.sessions(false).await.map_err(|error| error.to_string())
}

/// What a process has used of the processors.
fn used(pid: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    TICK * (fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap())
}

#[tokio::test]
async fn two_hundred_sessions_come_up_and_a_change_touches_none_of_them() {
    if skip() {
        return;
    }
    let mut lab = Lab::up();
    for peer in 0..PEERS {
        lab.nodes[1].ip(&["addr", "add", &format!("{}/32", address(peer)), "dev", "eth0"]);
    }
    lab.nodes[0].ip(&["route", "add", "10.77.0.0/16", "dev", "eth0"]);
    let _peers = start_peers(&lab);
    lab.nodes[0].start_bird();
    let mut agent = start(&lab.nodes[0]);

    let began = Instant::now();
    agent.send([ClientEvent::Updates(cluster()), ClientEvent::InSync, ClientEvent::Cut(cut(1))]).await;
    eventually("all sessions", PATIENCE, async || {
        let up = sessions(&lab).await?.iter().filter(|session| session.is_up()).count();
        if up == PEERS { Ok(()) } else { Err(format!("{up} are up")) }
    })
    .await;
    println!("{PEERS} sessions up after {:.1} s", began.elapsed().as_secs_f32());
    eventually("all routes", PATIENCE, async || {
        let routes = lab.nodes[0].ip(&["route", "show", "proto", "bird"]);
        let count = routes.lines().filter(|line| line.contains(" via 10.77.0.")).count();
        if count == PEERS { Ok(()) } else { Err(format!("{count} routes")) }
    })
    .await;
    println!("{PEERS} routes in the kernel after {:.1} s", began.elapsed().as_secs_f32());
    agent.acknowledged(1).await;

    // A new block goes to everybody, over the sessions that there are; what BIRD has no use for does not reach it.
    let states = || lab.nodes[0].log().matches("State changed to").count();
    let reloads = || lab.nodes[0].log().matches("bird: Reconfigured").count();
    let (before, loaded) = (states(), reloads());
    let began = Instant::now();
    agent.send([ClientEvent::Updates(vec![block("n1", "10.244.250.0/26")]), ClientEvent::Cut(cut(2))]).await;
    agent.acknowledged(2).await;
    println!("a new block is confirmed after {:.0} ms", began.elapsed().as_secs_f32() * 1000.0);
    assert_eq!(reloads(), loaded + 1);
    let mut labelled = node("peer-7", &format!("{}/32", address(7)), "");
    if let Ok(Value::Node(node)) = &mut labelled.value {
        node.labels.insert("zone".into(), "b".into());
    }
    assert!(matches!(&labelled.key, Key::Resource(key) if key.name == "peer-7"));
    agent.send([ClientEvent::Updates(vec![labelled]), ClientEvent::Cut(cut(3))]).await;
    agent.acknowledged(3).await;
    assert_eq!(reloads(), loaded + 1, "a label of another node is no reason to reload");
    assert_eq!(states(), before, "no session began anew");

    // At rest: four supervisions, each of which reads all sessions, one of them with their routes.
    let bird = std::fs::read_to_string(lab.nodes[0].dir.join("bird.pid")).unwrap();
    let pids = ["self", bird.trim()];
    let began = pids.map(used);
    tokio::time::sleep(Duration::from_secs(10)).await;
    for (name, (pid, began)) in ["confd and this test", "BIRD"].into_iter().zip(pids.into_iter().zip(began)) {
        println!("{name}: {:.1} % of a core at rest", (used(pid) - began).as_secs_f32() * 10.0);
    }
    agent.stop().await;
}
