//! Programs that fail, are slow or locked: what is wanted gets into the kernel all the same, and the error is told.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dataplane_support::in_namespace;
use dataplane_support::node::{Node, SOCKET};
use felix::commands::{CommandError, Commands};
use felix::control::ask;
use felix::iptables::Backend;
use syncer_common::model::{Key, Update, Value, WorkloadEndpointKey, values};

const TOOLS: [&str; 6] =
    ["ip", "ipset", "iptables-nft-restore", "iptables-legacy-restore", "conntrack", "flock"];

/// Fails the first calls of a program with an argument, then lets them through, slowly.
struct Failing {
    commands: Arc<dyn Commands>,
    program: &'static str,
    argument: &'static str,
    left: AtomicUsize,
    pause: Duration,
}

#[async_trait]
impl Commands for Failing {
    async fn run(&self, program: &str, args: &[&str], stdin: &str) -> Result<String, CommandError> {
        if program == self.program && args.contains(&self.argument) {
            let fails = |left: usize| left.checked_sub(1);
            if self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
                let stderr = "refused for the test's sake".to_owned();
                return Err(CommandError::Failed { command: program.to_owned(), status: 1, stderr });
            }
            tokio::time::sleep(self.pause).await;
        }
        self.commands.run(program, args, stdin).await
    }
}

fn cluster() -> Vec<Update> {
    let allow = || vec![values::Rule { action: "allow".into(), ..Default::default() }];
    let rules = values::ProfileRules { inbound_rules: allow(), outbound_rules: allow() };
    let key = WorkloadEndpointKey {
        host: "n1".into(),
        orchestrator: "k8s".into(),
        workload: "default/web".into(),
        endpoint: "eth0".into(),
    };
    let value = values::WorkloadEndpoint {
        state: "active".into(),
        name: "cali1".into(),
        profile_ids: vec!["open".into()],
        ipv4_nets: vec!["10.65.0.1/32".into()],
        labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
        ..Default::default()
    };
    vec![
        Update::set(Key::ProfileRules { name: "open".into() }, Value::ProfileRules(rules)),
        Update::set(Key::WorkloadEndpoint(key), Value::WorkloadEndpoint(value)),
    ]
}

/// A program fails more often than one pass tries it; the state gets there, and `felix status` tells why it was late.
fn overcomes(program: &'static str, argument: &'static str, failures: usize) {
    in_namespace(&TOOLS, move |mut lab| async move {
        lab.veth("cali1");
        lab.commands = Arc::new(Failing {
            commands: lab.commands.clone(),
            program,
            argument,
            left: AtomicUsize::new(failures),
            pause: Duration::from_millis(200),
        });
        let mut node = Node::start(&lab, Backend::Nft).await;
        node.program(cluster()).await;
        assert!(lab.sh("iptables-nft -S").contains("-A cali-fw-cali1"));
        assert!(lab.sh("ipset list -name").contains("cali40this-host"));
        let status = ask(&lab.path().join(SOCKET), &["status"]).await.unwrap();
        assert!(status.contains("nothing is pending"), "{status}");
        assert!(status.contains("last error") && status.contains("refused for the test's sake"), "{status}");
        node.stop().await;
    });
}

#[test]
fn a_refused_and_slow_iptables_restore_is_overcome() {
    overcomes("iptables-nft-restore", "--noflush", 8);
}

#[test]
fn a_refused_and_slow_ipset_is_overcome() {
    overcomes("ipset", "restore", 3);
}

#[test]
fn a_table_that_cannot_be_read_is_not_written_blindly() {
    overcomes("iptables-nft-save", "filter", 7);
}

#[test]
fn somebody_elses_lock_is_waited_for() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("cali1");
        let lock = lab.path().join("xtables.lock");
        let mut node = Node::start(&lab, Backend::Legacy).await;
        let mut holder = std::process::Command::new("flock").arg(&lock).args(["sleep", "2"]).spawn().unwrap();
        node.program(cluster()).await;
        assert!(lab.sh("iptables-legacy -S").contains("-A cali-fw-cali1"));
        assert!(holder.wait().unwrap().success());
        node.stop().await;
    });
}
