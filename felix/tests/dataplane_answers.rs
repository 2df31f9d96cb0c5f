//! What the running agent says about itself over its socket.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::collections::BTreeMap;
use std::time::Duration;

use dataplane_support::node::{Node, SOCKET};
use dataplane_support::{Lab, eventually, in_namespace};
use felix::control::ask;
use felix::iptables::Backend;
use syncer_common::model::{Key, PolicyKey, Update, Value, WorkloadEndpointKey, values};

const TOOLS: [&str; 4] = ["ip", "ipset", "iptables-nft-restore", "conntrack"];
const PATIENCE: Duration = Duration::from_secs(20);

fn endpoint(name: &str, interface: &str, ip: &str) -> Update {
    let key = WorkloadEndpointKey {
        host: "n1".into(),
        orchestrator: "k8s".into(),
        workload: format!("default/{name}"),
        endpoint: "eth0".into(),
    };
    let value = values::WorkloadEndpoint {
        state: "active".into(),
        name: interface.into(),
        profile_ids: vec!["open".into()],
        ipv4_nets: vec![format!("{ip}/32")],
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        ..Default::default()
    };
    Update::set(Key::WorkloadEndpoint(key), Value::WorkloadEndpoint(value))
}

fn cluster() -> Vec<Update> {
    let allow = || vec![values::Rule { action: "allow".into(), ..Default::default() }];
    let rules = values::ProfileRules { inbound_rules: allow(), outbound_rules: allow() };
    vec![
        Update::set(Key::ProfileRules { name: "open".into() }, Value::ProfileRules(rules)),
        endpoint("web", "cali1", "10.65.0.1"),
        endpoint("db", "cali2", "10.65.0.2"),
    ]
}

/// Lets only `app == web` in.
fn policy(protocol: Option<&str>) -> Update {
    let key = PolicyKey { kind: "NetworkPolicy".into(), namespace: "default".into(), name: "db".into() };
    let protocol =
        protocol.map(|name| values::Protocol { id: Some(values::protocol::Id::Name(name.into())) });
    let rule = values::Rule {
        action: "allow".into(),
        protocol,
        src: Some(values::EntityRule { selector: "app == 'web'".into(), ..Default::default() }),
        ..Default::default()
    };
    let value = values::Policy {
        namespace: "default".into(),
        selector: "app == 'db'".into(),
        inbound_rules: vec![rule],
        types: vec!["ingress".into()],
        ..Default::default()
    };
    Update::set(Key::Policy(key), Value::Policy(value))
}

async fn answer(lab: &Lab, words: &[&str]) -> Result<String, String> {
    ask(&lab.path().join(SOCKET), words).await.map_err(|error| format!("{error:#}"))
}

#[test]
fn status_says_what_is_programmed_and_what_cannot_be() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("cali1");
        let mut node = Node::start(&lab, Backend::Nft).await;
        let waiting = answer(&lab, &["status"]).await.unwrap();
        assert!(waiting.starts_with("waiting for the first proven state"), "{waiting}");

        let mut updates = cluster();
        updates.push(policy(Some("tcp")));
        let config = |name: &str, value: &str| {
            Update::set(Key::GlobalConfig { name: name.into() }, Value::Config(value.into()))
        };
        updates.extend([
            config("Ipv6Support", "false"),
            config("IptablesBackend", "bpf"),
            config("VXLANPort", "many"),
        ]);
        node.program(updates).await;
        // A link counts as up once the kernel has told of its carrier, which may be a moment later.
        let status = eventually(PATIENCE, async || {
            let status = answer(&lab, &["status"]).await?;
            if status.contains("up    workload") { Ok(status) } else { Err(status) }
        })
        .await;
        for line in [
            "up to cut 1",
            "iptables backend nft",
            "2 endpoints, 1 active policies",
            "nothing is pending",
            "up    workload default/web eth0 (cali1)",
            "down  workload default/db eth0 (cali2)",
            "not in force: parameter Ipv6Support=\"false\" of the datastore is read at the start only",
            "not in force: parameter IptablesBackend=\"bpf\": \"bpf\" is none of auto, nft, legacy",
            "not in force: parameter VXLANPort=\"many\": not a port",
        ] {
            assert!(status.contains(line), "{line:?} is missing in\n{status}");
        }
        // The program asks the same.
        let out = tokio::process::Command::new(env!("CARGO_BIN_EXE_felix"))
            .args(["status", "--socket"])
            .arg(lab.path().join(SOCKET))
            .output()
            .await
            .unwrap();
        let printed = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success() && printed.contains("nothing is pending"), "{printed}");
        node.stop().await;
        // The socket's task ends by itself.
        eventually(PATIENCE, async || match answer(&lab, &["status"]).await {
            Err(error) if error.contains("is it running on this node?") => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    });
}

#[test]
fn a_policy_that_the_kernel_refuses_is_closed_and_named_and_the_others_work() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("cali1");
        lab.veth("cali2");
        let mut node = Node::start(&lab, Backend::Nft).await;
        let mut updates = cluster();
        updates.push(policy(Some("nonsense")));
        node.program(updates).await;
        let status = answer(&lab, &["status"]).await.unwrap();
        assert!(
            status.contains("closed by the kernel's refusal: V4 filter cali-pi-np/default/db: "),
            "{status}"
        );
        let rules = lab.sh("iptables-nft -S cali-pi-np/default/db; iptables-nft -S cali-fw-cali1");
        assert!(
            rules.contains("Refused by the kernel\" -j DROP") && rules.contains("cali-pro-open"),
            "{rules}"
        );

        node.program(vec![policy(Some("tcp"))]).await;
        let status = answer(&lab, &["status"]).await.unwrap();
        assert!(!status.contains("closed by the kernel"), "{status}");
        assert!(!lab.sh("iptables-nft -S cali-pi-np/default/db").contains("Refused"));
        node.stop().await;
    });
}

#[test]
fn the_node_explains_from_what_it_programmed() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("cali1");
        lab.veth("cali2");
        let mut node = Node::start(&lab, Backend::Nft).await;
        let mut updates = cluster();
        updates.push(policy(Some("tcp")));
        node.program(updates).await;
        let allowed = answer(&lab, &["explain", "web", "default/db", "tcp/80", ""]).await.unwrap();
        assert!(allowed.contains("NetworkPolicy default/db: rule 1: allow"), "{allowed}");
        assert!(allowed.ends_with("\nallowed by this node\n"), "{allowed}");
        let denied = answer(&lab, &["explain", "192.0.2.1", "10.65.0.2", "tcp/80", ""]).await.unwrap();
        assert!(
            denied.contains("none decided: deny") && denied.ends_with("\ndenied by this node\n"),
            "{denied}"
        );
        let spoofed = answer(&lab, &["explain", "10.65.0.2", "nobody", "tcp/80", ""]).await.unwrap_err();
        assert!(spoofed.contains("\"nobody\""), "{spoofed}");
        node.stop().await;
    });
}
