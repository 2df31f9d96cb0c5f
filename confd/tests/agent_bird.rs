//! The agent between typha's events and a real BIRD: when it programs, what it acknowledges, what it repairs.
// Helpers of tests are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use confd::agent::Outputs;
use confd::bird::program::Programmer;
use confd::bird::write::ConfigFile;
use syncer_common::model::{Update, values};
use typha_client::{ClientEvent, Secret};

use support::agent::{REPAIR, cut, start, start_with};
use support::lab::{Lab, LabNode, bird, eventually, run, skip};
use support::*;

fn cluster() -> Vec<Update> {
    vec![
        node("n1", "172.30.0.11/24", ""),
        node("n2", "172.30.0.12/24", ""),
        pool("10.244.0.0/16"),
        block("n1", "10.244.140.64/26"),
    ]
}

fn file(node: &LabNode) -> String {
    std::fs::read_to_string(node.config()).unwrap_or_default()
}

async fn file_has(node: &LabNode, text: &str) {
    eventually(text, REPAIR, async || if file(node).contains(text) { Ok(()) } else { Err(file(node)) }).await;
}

#[tokio::test]
async fn nothing_is_written_before_the_first_proven_state() {
    if skip() {
        return;
    }
    let lab = Lab::up();
    let agent = start(&lab.nodes[0]);
    agent
        .send([
            ClientEvent::Connected { server: "t".into(), secrets: false },
            ClientEvent::Updates(cluster()),
        ])
        .await;
    agent.send([ClientEvent::Cut(cut(1))]).await;
    agent.taken().await;
    agent.send([ClientEvent::Disconnected { reason: "test".into() }]).await;
    agent.taken().await;
    assert!(!lab.nodes[0].config().exists());
    agent.send([ClientEvent::InSync, ClientEvent::Cut(cut(2))]).await;
    file_has(&lab.nodes[0], "Mesh_172_30_0_12").await;
    assert_eq!(*agent.acks.borrow(), None, "no BIRD has confirmed it");
    agent.stop().await;
}

#[tokio::test]
async fn cuts_are_acknowledged_when_bird_runs_them_and_a_lost_server_changes_nothing() {
    if skip() {
        return;
    }
    let mut lab = Lab::up();
    let mut agent = start(&lab.nodes[0]);
    agent.send([ClientEvent::Updates(cluster()), ClientEvent::InSync, ClientEvent::Cut(cut(1))]).await;
    file_has(&lab.nodes[0], "Mesh_172_30_0_12").await;
    assert!(!agent.health.readiness().good);
    lab.nodes[0].start_bird();
    agent.acknowledged(1).await;
    // BIRD runs what it should; the one peer is not there.
    eventually("the peer that is down is named", REPAIR, async || {
        let said = format!("{:?}", agent.health.readiness());
        if said.contains("Mesh_172_30_0_12") { Ok(()) } else { Err(said) }
    })
    .await;

    // A cut without a change is acknowledged at once; one with a change when BIRD runs it.
    agent.send([ClientEvent::Cut(cut(2))]).await;
    agent.acknowledged(2).await;
    let more = vec![block("n1", "10.244.9.64/26")];
    agent.send([ClientEvent::Updates(more), ClientEvent::Cut(cut(3))]).await;
    agent.acknowledged(3).await;
    assert!(file(&lab.nodes[0]).contains("route 10.244.9.64/26 blackhole"));

    let before = file(&lab.nodes[0]);
    agent.send([ClientEvent::Disconnected { reason: "both typhas are down".into() }]).await;
    agent.taken().await;
    agent
        .send([ClientEvent::Connected { server: "t2".into(), secrets: false }, ClientEvent::Cut(cut(4))])
        .await;
    agent.acknowledged(4).await;
    assert_eq!(file(&lab.nodes[0]), before);

    // A BIRD that is killed and comes back on an old file runs the right one within the promised time.
    lab.nodes[0].stop_bird();
    std::fs::write(lab.nodes[0].config(), "router id 127.0.0.9;\nprotocol device {}\n").unwrap();
    lab.nodes[0].start_bird();
    let socket = lab.nodes[0].socket();
    let (_, took) = eventually("BIRD runs our file again", REPAIR, async || {
        let mut control = confd::bird::control::Control::connect(&socket).await.map_err(|e| e.to_string())?;
        match control.running_marker().await {
            Ok(Some(marker)) if before.contains(&marker) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    println!("repaired within {:.1} s", took.as_secs_f32());
    agent.stop().await;
}

#[tokio::test]
async fn without_cuts_additions_are_programmed_and_deletions_wait() {
    if skip() {
        return;
    }
    let mut lab = Lab::up();
    lab.nodes[0].start_bird();
    let mut agent = start(&lab.nodes[0]);
    agent.send([ClientEvent::Updates(cluster()), ClientEvent::InSync, ClientEvent::Cut(cut(1))]).await;
    agent.acknowledged(1).await;
    let changes = vec![Update::delete(resource("Node", "n2")), block("n1", "10.244.9.64/26")];
    agent.send([ClientEvent::Updates(changes)]).await;
    file_has(&lab.nodes[0], "10.244.9.64/26").await;
    assert!(file(&lab.nodes[0]).contains("Mesh_172_30_0_12"), "between cuts, absence proves nothing");
    agent.send([ClientEvent::Cut(cut(2))]).await;
    agent.acknowledged(2).await;
    assert!(!file(&lab.nodes[0]).contains("Mesh_172_30_0_12"));
    agent.stop().await;
}

#[tokio::test]
async fn an_object_that_bird_refuses_is_left_out_and_everything_else_goes_on() {
    if skip() {
        return;
    }
    let mut lab = Lab::up();
    lab.nodes[0].start_bird();
    // A BIRD that does not like one address.
    let checker = lab.dir.path().join("checker");
    let script = format!(
        "#!/bin/sh\nline=$(grep -n 'neighbor 10.9.9.9' \"$3\" | head -1 | cut -d: -f1)\n\
         [ -z \"$line\" ] || {{ echo \"bird: $3:$line:3 Invalid neighbor\" >&2; exit 1; }}\nexec {} \"$@\"\n",
        bird().unwrap().display()
    );
    std::fs::write(&checker, script).unwrap();
    std::fs::set_permissions(&checker, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let node = &lab.nodes[0];
    let file = ConfigFile::new(node.config(), checker);
    let outputs = Outputs { programmers: vec![Programmer::new(file, node.socket())], ..node.outputs() };
    let mut agent = start_with(outputs);
    let explicit = |name: &str, address: &str| {
        peer(name, |peer| {
            peer.peer_ip = address.into();
            peer.as_number = 65001;
        })
    };
    let mut updates = cluster();
    updates.extend([explicit("bad", "10.9.9.9"), explicit("good", "10.9.0.1")]);
    agent.send([ClientEvent::Updates(updates), ClientEvent::InSync, ClientEvent::Cut(cut(1))]).await;
    agent.acknowledged(1).await;
    let text = self::file(node);
    assert!(text.contains("Global_10_9_0_1") && text.contains("Mesh_172_30_0_12"), "{text}");
    assert!(!text.contains("10.9.9.9"), "{text}");
    // When it changes it is tried again.
    let changes = vec![explicit("bad", "10.9.0.2")];
    agent.send([ClientEvent::Updates(changes), ClientEvent::Cut(cut(2))]).await;
    agent.acknowledged(2).await;
    assert!(self::file(node).contains("Global_10_9_0_2"));
    agent.stop().await;
}

#[tokio::test]
async fn a_peering_comes_with_its_mounted_password_and_goes_with_it() {
    if skip() {
        return;
    }
    let mut lab = Lab::up();
    lab.nodes[0].start_bird();
    let node = &lab.nodes[0];
    let mut agent = start(node);
    let mut updates = cluster();
    updates.push(peer("rack", |peer| {
        peer.peer_ip = "10.9.0.1".into();
        peer.as_number = 65001;
        peer.password = Some(values::SecretKeyRef { name: "bgp".into(), key: "rack".into() });
    }));
    agent.send([ClientEvent::Updates(updates), ClientEvent::InSync, ClientEvent::Cut(cut(1))]).await;
    agent.acknowledged(1).await;
    assert!(!file(node).contains("10.9.0.1"), "never without its password");
    let secret = node.outputs().local_files.secrets.join("bgp");
    std::fs::create_dir_all(&secret).unwrap();
    std::fs::write(secret.join("rack"), "hunter2").unwrap();
    file_has(node, "password \"hunter2\";").await;
    std::fs::remove_dir_all(&secret).unwrap();
    eventually("the peering goes", REPAIR, async || {
        if file(node).contains("10.9.0.1") { Err(file(node)) } else { Ok(()) }
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn passwords_that_typha_promises_are_waited_for_and_change_with_the_secret() {
    if skip() {
        return;
    }
    let mut lab = Lab::up();
    lab.nodes[0].start_bird();
    let node = &lab.nodes[0];
    let mut agent = start(node);
    let mut updates = cluster();
    updates.push(peer("rack", |peer| {
        peer.peer_ip = "10.9.0.1".into();
        peer.as_number = 65001;
        peer.password = Some(values::SecretKeyRef { name: "bgp".into(), key: "rack".into() });
    }));
    let secret = |value: &str| {
        let secret = Secret { name: "bgp".into(), key: "rack".into(), value: value.into() };
        ClientEvent::Secrets(vec![secret])
    };
    agent.send([ClientEvent::Connected { server: "t".into(), secrets: true }]).await;
    agent.send([ClientEvent::Updates(updates), ClientEvent::InSync, ClientEvent::Cut(cut(1))]).await;
    agent.taken().await;
    assert!(!file(node).contains("10.9.0.1"), "without its password");
    assert!(!file(node).contains("Mesh"), "without any, a peering that is up would go down");
    agent.send([secret("hunter2")]).await;
    agent.acknowledged(1).await;
    assert!(file(node).contains("password \"hunter2\";"));
    agent.send([secret("hunter3")]).await;
    file_has(node, "password \"hunter3\";").await;
    // A server that may not send any takes none away, a deleted Secret does.
    agent
        .send([ClientEvent::Connected { server: "t2".into(), secrets: false }, ClientEvent::Cut(cut(2))])
        .await;
    agent.acknowledged(2).await;
    assert!(file(node).contains("password \"hunter3\";"));
    agent.send([ClientEvent::Secrets(Vec::new())]).await;
    eventually("the peering goes", REPAIR, async || {
        if file(node).contains("10.9.0.1") { Err(file(node)) } else { Ok(()) }
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_full_disk_changes_nothing_and_is_made_good_when_there_is_room() {
    if skip() {
        return;
    }
    let mut lab = Lab::up();
    // A file system of its own for the configuration, with room for little.
    let small = lab.nodes[0].dir.clone();
    run("mount", &["-t", "tmpfs", "-o", "size=64k", "confd-test", &small.display().to_string()]);
    let _unmount = Unmount(small.clone());
    lab.nodes[0].start_bird();
    let node = &lab.nodes[0];
    let mut agent = start(node);
    agent.send([ClientEvent::Updates(cluster()), ClientEvent::InSync, ClientEvent::Cut(cut(1))]).await;
    agent.acknowledged(1).await;
    let before = file(node);
    let filler = small.join("filler");
    // As much as goes in: that it ends with an error is the point.
    std::fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    agent.send([ClientEvent::Updates(vec![block("n1", "10.244.9.64/26")]), ClientEvent::Cut(cut(2))]).await;
    eventually("the full disk is named", REPAIR, async || {
        let said = format!("{:?}", agent.health.readiness());
        if said.contains("No space left") { Ok(()) } else { Err(said) }
    })
    .await;
    assert_eq!(file(node), before);
    std::fs::remove_file(filler).unwrap();
    agent.acknowledged(2).await;
    assert!(file(node).contains("10.244.9.64/26"));
    agent.stop().await;
    lab.nodes[0].stop_bird();
}

/// Whatever happens to the test.
struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        run("umount", &["-l", &self.0.display().to_string()]);
    }
}

#[tokio::test]
async fn a_hung_bird_is_named_and_forgiven() {
    if skip() {
        return;
    }
    let mut lab = Lab::up();
    lab.nodes[0].start_bird();
    let mut agent = start(&lab.nodes[0]);
    agent.send([ClientEvent::Updates(cluster()), ClientEvent::InSync, ClientEvent::Cut(cut(1))]).await;
    agent.acknowledged(1).await;
    lab.nodes[0].signal_bird("STOP");
    agent.send([ClientEvent::Updates(vec![block("n1", "10.244.9.64/26")]), ClientEvent::Cut(cut(2))]).await;
    eventually("the silent BIRD is named", REPAIR * 3, async || {
        let said = format!("{:?}", agent.health.readiness());
        if said.contains("did not answer") { Ok(()) } else { Err(said) }
    })
    .await;
    assert!(agent.acks.borrow().as_ref() == Some(&cut(1)), "what BIRD has not read is not acknowledged");
    lab.nodes[0].signal_bird("CONT");
    agent.acknowledged(2).await;
    agent.stop().await;
}
