//! Real BIRD daemons on two nodes run what we render: sessions, kernel routes, reconfiguration, refusals.
// Helpers of tests are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use confd::bird::control::{Control, ControlError};
use confd::bird::program::{ProgramError, Programmer, Supervision};
use confd::bird::sessions::{Change, State};
use confd::bird::write::{ConfigFile, WriteError};
use confd::render::Rendered;
use syncer_common::model::Update;

use support::lab::{Lab, bird, eventually, skip};
use support::*;

const SESSION: Duration = Duration::from_secs(15);

fn cluster() -> Vec<Update> {
    vec![
        node("n1", "172.30.0.11/24", "fd30::11/64"),
        node("n2", "172.30.0.12/24", "fd30::12/64"),
        pool("10.244.0.0/16"),
        pool("fd10::/48"),
        block("n1", "10.244.140.64/26"),
        block("n1", "fd10::40/122"),
        block("n2", "10.244.7.0/26"),
    ]
}

fn with(more: impl IntoIterator<Item = Update>) -> Vec<Update> {
    let mut all = cluster();
    all.extend(more);
    all
}

/// Both nodes on the mesh, sessions up.
async fn established(lab: &mut Lab, updates: &[Update]) -> [Programmer; 2] {
    let mut programmers = lab.nodes.each_ref().map(|node| node.programmer());
    for (index, programmer) in programmers.iter_mut().enumerate() {
        programmer.want(rendered(&format!("n{}", index + 1), updates));
        let found = programmer.supervise().await;
        assert!(!found.confirmed && !found.alive, "no BIRD runs yet");
        assert!(lab.nodes[index].config().exists(), "its file is there before BIRD is: {:?}", found.error);
    }
    lab.nodes.iter_mut().for_each(|node| node.start_bird());
    let start = std::time::Instant::now();
    for (index, programmer) in programmers.iter_mut().enumerate() {
        let log = lab.nodes[index].log();
        eventually("sessions up", SESSION.saturating_sub(start.elapsed()), async || up(programmer).await)
            .await;
        assert!(!log.contains("syntax error"), "{log}");
    }
    println!("sessions Established after {:.1} s", start.elapsed().as_secs_f32());
    programmers
}

/// Supervises once; fine when confirmed and with every session up.
async fn up(programmer: &mut Programmer) -> Result<Supervision, String> {
    let found = programmer.supervise().await;
    let down: Vec<_> = programmer.sessions().iter().filter(|session| !session.is_up()).collect();
    if found.confirmed && down.is_empty() && !programmer.sessions().is_empty() {
        Ok(found)
    } else {
        Err(format!("{found:?}, not up: {down:?}"))
    }
}

async fn confirmed(programmer: &mut Programmer, rendered: Rendered) -> Supervision {
    programmer.want(rendered);
    let found = programmer.supervise().await;
    assert!(found.confirmed, "{found:?}");
    found
}

fn since(programmer: &Programmer) -> Vec<(String, State, String)> {
    let sessions = programmer.sessions().iter();
    sessions.map(|session| (session.name.clone(), session.state, session.since.clone())).collect()
}

#[tokio::test]
async fn blocks_reach_the_other_kernel_and_workload_routes_do_not() {
    if skip() {
        return;
    }
    let mut lab = Lab::up();
    let [one, two] = &lab.nodes;
    one.add_workload("cali1", "10.244.140.66/32", "boot", "1024");
    one.add_workload("cali2", "fd10::42/128", "boot", "1024");
    // A workload on the move, and an address that was borrowed from the other node's block.
    one.add_workload("cali3", "10.244.140.70/32", "boot", "512");
    one.add_workload("cali4", "10.244.7.9/32", "boot", "1024");
    // felix's own route to somewhere else, which is no news to anybody.
    one.ip(&["route", "add", "10.244.200.0/26", "via", "172.30.0.12", "proto", "80", "metric", "1024"]);
    two.add_workload("cali5", "10.244.7.2/32", "boot", "1024");
    let mut programmers = established(&mut lab, &cluster()).await;

    let [one, two] = &lab.nodes;
    let sees = async |node: &support::lab::LabNode, prefix: &str, parts: &[&str]| {
        eventually(prefix, SESSION, async || {
            let route = node.route(prefix);
            if parts.iter().all(|part| route.contains(part)) {
                Ok(())
            } else {
                Err(format!("{prefix}: {route:?}"))
            }
        })
        .await;
        println!("{prefix}: {}", node.route(prefix));
    };
    sees(two, "10.244.140.64/26", &["via 172.30.0.11", "proto bird", "metric 1024"]).await;
    sees(two, "fd10::40/122", &["via fd30::11", "proto bird"]).await;
    sees(one, "10.244.140.64/26", &["blackhole", "proto bird"]).await;
    sees(one, "10.244.7.0/26", &["via 172.30.0.12", "proto bird"]).await;
    sees(two, "10.244.7.0/26", &["blackhole", "proto bird"]).await;
    sees(two, "10.244.140.70/32", &["via 172.30.0.11", "proto bird", "metric 512"]).await;
    sees(two, "10.244.7.9/32", &["via 172.30.0.11", "proto bird"]).await;
    for (node, prefix) in
        [(two, "10.244.140.66/32"), (two, "fd10::42/128"), (two, "10.244.200.0/26"), (one, "10.244.7.2/32")]
    {
        assert_eq!(node.route(prefix), "", "{prefix} stays on its node");
    }
    let exported: u64 = {
        // A full reading comes every few supervisions.
        for _ in 0..5 {
            programmers[0].supervise().await;
        }
        programmers[0].sessions().iter().filter_map(|session| session.exported).sum()
    };
    assert_eq!(exported, 4, "two blocks, one on the move, one borrowed");
}

#[tokio::test]
async fn a_new_block_is_announced_without_touching_the_sessions() {
    if skip() {
        return;
    }
    let mut lab = Lab::up();
    let [mut one, mut two] = established(&mut lab, &cluster()).await;
    let before = (since(&one), since(&two));
    let found = confirmed(&mut one, rendered("n1", &with([block("n1", "10.244.9.64/26")]))).await;
    assert!(found.reloaded);
    eventually("the new block arrives", SESSION, async || {
        let route = lab.nodes[1].route("10.244.9.64/26");
        if route.contains("via 172.30.0.11 dev eth0 proto bird") { Ok(()) } else { Err(route) }
    })
    .await;
    let found = one.supervise().await;
    assert!(found.confirmed && !found.reloaded, "nothing left to do: {found:?}");
    two.supervise().await;
    assert_eq!((since(&one), since(&two)), before);
}

#[tokio::test]
async fn a_refused_configuration_changes_nothing_and_names_its_line() {
    if skip() {
        return;
    }
    let mut lab = Lab::up();
    let [mut one, _two] = established(&mut lab, &cluster()).await;
    let path = lab.nodes[0].config();
    let good = std::fs::read_to_string(&path).unwrap();
    let sessions = since(&one);

    let mut broken = rendered("n1", &with([block("n1", "10.244.9.64/26")]));
    broken.files[0].text = broken.text().replace("neighbor 172.30.0.12", "nieghbor 172.30.0.12");
    one.want(broken.clone());
    for _ in 0..2 {
        let found = one.supervise().await;
        let Some(ProgramError::Write(WriteError::Refused(refusal))) = &found.error else {
            panic!("{found:?}")
        };
        assert!(refusal.line.is_some(), "{refusal}");
        assert!(refusal.to_string().contains("Mesh_172_30_0_12"), "{refusal}");
        assert!(refusal.to_string().contains("Node(n2)"), "{refusal}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), good);
    let left: Vec<_> =
        std::fs::read_dir(&lab.nodes[0].dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("staged")), "{left:?}");

    // The same when only the running BIRD refuses: a checker that accepts everything.
    let file = ConfigFile::new(&path, "/bin/true");
    let mut careless = Programmer::new(file, lab.nodes[0].socket());
    careless.want(broken);
    let found = careless.supervise().await;
    let Some(ProgramError::Refused(refusal)) = &found.error else { panic!("{found:?}") };
    assert!(refusal.to_string().contains("Mesh_172_30_0_12"), "{refusal}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), good, "the old file is back");

    let mut control = Control::connect(&lab.nodes[0].socket()).await.unwrap();
    assert!(good.contains(&control.running_marker().await.unwrap().unwrap()));
    one.supervise().await;
    assert_eq!(since(&one), sessions);
    assert!(confirmed(&mut one, rendered("n1", &with([block("n1", "10.244.9.0/26")]))).await.reloaded);
}

#[tokio::test]
async fn a_bird_that_restarts_with_another_file_is_configured_again() {
    if skip() {
        return;
    }
    let mut lab = Lab::up();
    let [mut one, _two] = established(&mut lab, &cluster()).await;
    let path = lab.nodes[0].config();
    let good = std::fs::read_to_string(&path).unwrap();
    lab.nodes[0].stop_bird();
    let found = one.supervise().await;
    assert!(matches!(found.error, Some(ProgramError::Control(ControlError::Connect { .. }))), "{found:?}");
    assert!(lab.nodes[1].route("10.244.140.64/26").contains("proto bird"), "graceful restart keeps routes");

    // BIRD comes back with a file that somebody else wrote; the file is repaired, and BIRD is told.
    std::fs::write(&path, "router id 127.0.0.9;\nprotocol device {}\n").unwrap();
    lab.nodes[0].start_bird();
    eventually("BIRD answers", SESSION, async || {
        Control::connect(&lab.nodes[0].socket()).await.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
    let found = one.supervise().await;
    assert!(found.confirmed && found.reloaded, "{found:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), good);
    let (found, took) = eventually("sessions up again", SESSION, async || up(&mut one).await).await;
    println!("up again after {:.1} s: {:?}", took.as_secs_f32(), found.changes);
}

#[tokio::test]
async fn a_session_that_ends_is_reported_with_its_reason() {
    if skip() {
        return;
    }
    let mut lab = Lab::up();
    let [mut one, _two] = established(&mut lab, &cluster()).await;
    lab.nodes[1].stop_bird();
    let (change, _) = eventually("the end of the session", SESSION, async || {
        let found = one.supervise().await;
        found
            .changes
            .into_iter()
            .find(|change| matches!(change, Change::Down { .. }))
            .ok_or("no change".into())
    })
    .await;
    let Change::Down { name, reason, .. } = change else { unreachable!("found above") };
    println!("{name}: {reason:?}");
    assert!(name.starts_with("Mesh_") && reason.is_some());
}

#[tokio::test]
async fn a_silent_or_absent_bird_is_an_error_that_says_what_to_check() {
    let dir = tempfile::tempdir().unwrap();
    let file = ConfigFile::new(dir.path().join("bird.cfg"), bird().unwrap_or_else(|| "bird".into()));
    let mut alone = Programmer::new(file, dir.path().join("bird.ctl"));
    let found = alone.supervise().await;
    let text = found.error.unwrap().to_string();
    assert!(text.contains("is it running"), "{text}");
    assert!(!dir.path().join("bird.cfg").exists(), "nothing was wanted, nothing is written");
}
