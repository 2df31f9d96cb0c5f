//! Programs that fail, are slow, locked or missing, a kernel that refuses or says too much, a full disk: what is wanted
//! gets into the kernel all the same, and the error is told.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dataplane_support::cluster::{cluster, endpoint, workload_key};
use dataplane_support::node::{Node, SOCKET};
use dataplane_support::{Lab, Mount, eventually, in_namespace};
use felix::commands::{CommandError, Commands, OnLine};
use felix::control::ask;
use felix::iptables::Backend;
use syncer_common::model::{Key, Update};

const LIMIT: Duration = Duration::from_secs(30);
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
    async fn lines(
        &self,
        program: &str,
        args: &[&str],
        stdin: &str,
        line: &mut OnLine<'_>,
    ) -> Result<(), CommandError> {
        if program == self.program && args.contains(&self.argument) {
            let fails = |left: usize| left.checked_sub(1);
            if self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
                let stderr = "refused for the test's sake".to_owned();
                return Err(CommandError::Failed { command: program.to_owned(), status: 1, stderr });
            }
            tokio::time::sleep(self.pause).await;
        }
        self.commands.lines(program, args, stdin, line).await
    }
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

async fn status(lab: &Lab) -> String {
    ask(&lab.path().join(SOCKET), &["status"]).await.unwrap()
}

/// Waits until both workloads stand as they should, as reported to typha, in `felix status` and in files.
async fn standing(lab: &Lab, node: &Node, web: &str, client: &str) -> String {
    eventually(LIMIT, async || {
        let status = status(lab).await;
        for (name, interface, state) in [("web", "cali1", web), ("client", "cali2", client)] {
            let reported = node.reports.endpoint(&Key::WorkloadEndpoint(workload_key(name)));
            let line = format!("{state:<5} workload default/{name} eth0 ({interface})");
            let file = files(lab).contains(&format!("k8s default%2F{name} eth0"));
            if reported != Some(state) || !status.contains(&line) || file != (state == "up") {
                return Err(format!("{name} is {reported:?}, file {file}:\n{status}"));
            }
        }
        Ok(status)
    })
    .await
}

fn folder(lab: &Lab) -> PathBuf {
    lab.path().join("status/endpoint-status")
}

fn files(lab: &Lab) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder(lab)) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn an_endpoint_whose_interface_cannot_be_set_up_is_in_error_and_the_others_are_not() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("cali1");
        lab.veth("cali2");
        let settings = PathBuf::from("/proc/sys/net/ipv4/conf/cali1");
        let read_only = Mount::new(&lab, &format!("--bind -o ro {}", settings.display()), settings);
        let mut node = Node::start(&lab, Backend::Nft).await;
        node.feed(cluster()).await;
        let said = standing(&lab, &node, "error", "up").await;
        assert!(said.contains("interface cali1: setting net.ipv4.conf.cali1."), "{said}");
        drop(read_only);
        standing(&lab, &node, "up", "up").await;
        node.stop().await;
    });
}

/// Refuses every input that holds a chain with rules, as the kernel does: by the number of the line.
struct Refusing {
    commands: Arc<dyn Commands>,
    chain: &'static str,
}

#[async_trait]
impl Commands for Refusing {
    async fn lines(
        &self,
        program: &str,
        args: &[&str],
        stdin: &str,
        line: &mut OnLine<'_>,
    ) -> Result<(), CommandError> {
        let rule = |line: &str| {
            line.split(' ').any(|word| word == self.chain)
                && line.starts_with("-A")
                && !line.contains("Refused by the kernel")
        };
        match stdin.lines().position(rule) {
            Some(at) => {
                let stderr = format!("line {} failed", at + 1);
                Err(CommandError::Failed { command: program.to_owned(), status: 1, stderr })
            }
            None => self.commands.lines(program, args, stdin, line).await,
        }
    }
}

#[test]
fn an_endpoint_whose_chain_is_refused_is_closed_and_in_error() {
    in_namespace(&TOOLS, |mut lab| async move {
        lab.veth("cali1");
        lab.veth("cali2");
        lab.commands = Arc::new(Refusing { commands: lab.commands.clone(), chain: "cali-tw-cali1" });
        let mut node = Node::start(&lab, Backend::Nft).await;
        node.program(cluster()).await;
        standing(&lab, &node, "error", "up").await;
        let chain = lab.sh("iptables-nft -S cali-tw-cali1");
        assert!(chain.contains("-j DROP") && !chain.contains("-j cali-pi"), "{chain}");
        node.stop().await;
    });
}

#[test]
fn endpoints_are_in_error_while_no_rule_can_be_written_and_what_was_up_stays_up() {
    in_namespace(&TOOLS, |mut lab| async move {
        lab.veth("cali1");
        lab.veth("cali2");
        let failing = Arc::new(Failing {
            commands: lab.commands.clone(),
            program: "iptables-nft-restore",
            argument: "--noflush",
            left: AtomicUsize::new(0),
            pause: Duration::ZERO,
        });
        lab.commands = failing.clone();
        let mut node = Node::start(&lab, Backend::Nft).await;
        let (web, others): (Vec<Update>, Vec<Update>) = cluster()
            .into_iter()
            .partition(|update| update.key == Key::WorkloadEndpoint(workload_key("web")));
        node.program(others).await;
        let client = Key::WorkloadEndpoint(workload_key("client"));
        eventually(LIMIT, async || match node.reports.endpoint(&client) {
            Some("up") => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        failing.left.store(usize::MAX, Ordering::SeqCst);
        node.feed(web).await;
        standing(&lab, &node, "error", "up").await;
        failing.left.store(0, Ordering::SeqCst);
        standing(&lab, &node, "up", "up").await;
        node.stop().await;
    });
}

#[test]
fn a_full_disk_delays_the_status_files_that_have_no_room_and_nothing_else() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("cali1");
        lab.veth("cali2");
        std::fs::create_dir_all(folder(&lab)).unwrap();
        // One page: one file.
        let disk = Mount::new(&lab, "-t tmpfs -o size=4k none", folder(&lab));
        let mut node = Node::start(&lab, Backend::Nft).await;
        node.program(cluster()).await;
        let full = async |only: &str| {
            let file = format!("k8s default%2F{only} eth0");
            eventually(LIMIT, async || {
                let (status, files) = (status(&lab).await, files(&lab));
                let told = status.contains("status files cannot be written")
                    && status.contains("No space left on device");
                if told && files == [file.as_str()] { Ok(()) } else { Err(format!("{files:?}\n{status}")) }
            })
            .await;
        };
        full("client").await;
        // What goes makes room for what waits.
        node.program(vec![Update::delete(Key::WorkloadEndpoint(workload_key("client")))]).await;
        eventually(LIMIT, async || {
            let files = files(&lab);
            if files == ["k8s default%2Fweb eth0"] { Ok(()) } else { Err(format!("{files:?}")) }
        })
        .await;
        node.program(vec![endpoint("client", "cali2", "10.65.0.2")]).await;
        full("web").await;
        // So does a larger disk, without any input.
        lab.sh(&format!("mount -o remount,size=64k {}", folder(&lab).display()));
        let said = standing(&lab, &node, "up", "up").await;
        assert!(!said.contains("status files cannot"), "{said}");
        node.stop().await;
        drop(disk);
    });
}

/// Whether the kernel dropped events of the agent's subscription, which is known by its groups.
fn dropped(lab: &Lab) -> bool {
    let sockets = lab.sh("awk '$4 == \"00000555\" { print $9 }' /proc/net/netlink");
    let mut drops = sockets.lines().map(|drops| drops.parse::<u64>().expect("a number")).peekable();
    assert!(drops.peek().is_some(), "no subscription");
    drops.any(|drops| drops > 0)
}

#[test]
fn events_that_the_kernel_dropped_are_made_up_for() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("cali1");
        let mut node = Node::start(&lab, Backend::Nft).await;
        node.program(cluster()).await;
        standing(&lab, &node, "up", "down").await;
        assert!(!dropped(&lab));
        let burst: String = (0..5_000u32)
            .map(|n| format!("10.200.{}.{}/32", n >> 8, n & 255))
            .map(|net| format!("route add blackhole {net}\nroute del blackhole {net}\n"))
            .collect();
        let file = lab.path().join("burst");
        std::fs::write(&file, burst).unwrap();
        // The agent runs in this thread: it reads nothing until this is over, as if it got no processor.
        for _ in 0..50 {
            if dropped(&lab) {
                break;
            }
            lab.sh(&format!("ip -batch {}", file.display()));
        }
        assert!(dropped(&lab), "the burst was too small");
        // Of this nobody hears.
        lab.sh("ip route del 10.65.0.1");
        lab.veth("cali2");
        standing(&lab, &node, "up", "up").await;
        eventually(LIMIT, async || {
            let routes = lab.sh("ip route");
            let both = ["10.65.0.1 dev cali1", "10.65.0.2 dev cali2"];
            if both.iter().all(|route| routes.contains(route)) { Ok(()) } else { Err(routes) }
        })
        .await;
        // The full socket was given up for a new one, which tells again.
        assert!(!dropped(&lab));
        lab.sh("ip link del cali2");
        standing(&lab, &node, "up", "down").await;
        node.stop().await;
    });
}

/// Starts the program with a folder of programs as all that it finds; what it says when it ends.
async fn ends_for_lack_of(lab: &Lab, programs: &[&str]) -> String {
    let path = lab.path().join("bin");
    std::fs::create_dir(&path).unwrap();
    for program in programs {
        let found = lab.sh(&format!("command -v {program}"));
        std::os::unix::fs::symlink(found.trim(), path.join(program)).unwrap();
    }
    let run = tokio::process::Command::new(env!("CARGO_BIN_EXE_felix"))
        .env_clear()
        .env("PATH", &path)
        .env("FELIX_FELIXHOSTNAME", "n1")
        .env("FELIX_IPTABLESBACKEND", "nft")
        .env("FELIX_ENDPOINTSTATUSPATHPREFIX", lab.path())
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let out = tokio::time::timeout(LIMIT, run).await.expect("it ends by itself").unwrap();
    assert!(!out.status.success());
    String::from_utf8(out.stderr).unwrap()
}

#[test]
fn without_iptables_it_does_not_start() {
    in_namespace(&TOOLS, |lab| async move {
        let said = ends_for_lack_of(&lab, &["ipset"]).await;
        assert!(said.contains("iptables-save is not installed: install the package"), "{said}");
    });
}

#[test]
fn without_ipset_it_does_not_start() {
    in_namespace(&TOOLS, |lab| async move {
        let programs = ["iptables", "ip6tables"]
            .map(|family| ["save", "restore"].map(|what| format!("{family}-nft-{what}")));
        let programs: Vec<&str> = programs.as_flattened().iter().map(String::as_str).collect();
        let said = ends_for_lack_of(&lab, &programs).await;
        assert!(said.contains("ipset is not installed: install the package"), "{said}");
    });
}

/// Never ends a program once it hangs.
struct Hanging {
    commands: Arc<dyn Commands>,
    hangs: AtomicBool,
}

#[async_trait]
impl Commands for Hanging {
    async fn lines(
        &self,
        program: &str,
        args: &[&str],
        stdin: &str,
        line: &mut OnLine<'_>,
    ) -> Result<(), CommandError> {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.commands.lines(program, args, stdin, line).await
    }
}

#[test]
fn an_agent_that_hangs_is_neither_ready_nor_live() {
    in_namespace(&TOOLS, |mut lab| async move {
        lab.veth("cali1");
        let hanging = Arc::new(Hanging { commands: lab.commands.clone(), hangs: AtomicBool::new(false) });
        lab.commands = hanging.clone();
        let mut node = Node::start_heard(&lab, Backend::Nft, Some(Duration::from_secs(3))).await;
        assert!(!node.health.readiness().good && node.health.liveness().good);
        node.program(cluster()).await;
        eventually(LIMIT, async || {
            let (ready, live) = (node.health.readiness(), node.health.liveness());
            if ready.good && live.good { Ok(()) } else { Err(ready.text) }
        })
        .await;
        hanging.hangs.store(true, Ordering::SeqCst);
        node.feed(vec![Update::delete(Key::WorkloadEndpoint(workload_key("web")))]).await;
        eventually(LIMIT, async || {
            let (ready, live) = (node.health.readiness(), node.health.liveness());
            let told = live.text.contains("has not been heard from in time");
            if !ready.good && !live.good && told { Ok(()) } else { Err(live.text) }
        })
        .await;
        node.crash().await;
    });
}
