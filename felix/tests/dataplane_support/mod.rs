//! A network namespace for one test: a thread of its own that has left the others' network. It goes when the
//! thread ends, with everything in it.

#![allow(dead_code)] // each test binary uses its part

pub mod cluster;
pub mod node;
pub mod peer;

use std::future::Future;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use felix::commands::{Commands, Processes};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};

/// Runs a test in a new network namespace; skips it, saying why, where that cannot be.
pub fn in_namespace<F: Future<Output = ()>>(tools: &[&str], test: impl FnOnce(Lab) -> F + Send + 'static) {
    if let Some(reason) = missing(tools) {
        if std::env::var("BULRUSH_REQUIRE").is_ok_and(|value| value == "1") {
            panic!("cannot run: {reason}");
        }
        println!("SKIPPED: {reason}");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
        let lab = Lab::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test(lab));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn missing(tools: &[&str]) -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("needs root, to make network namespaces".into());
    }
    let found = |tool: &&&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let sbin = ["/usr/sbin".into(), "/sbin".into()];
        std::env::split_paths(&path).chain(sbin).any(|dir| dir.join(tool).is_file())
    };
    let absent: Vec<_> = tools.iter().filter(|tool| !found(tool)).collect();
    (!absent.is_empty()).then(|| format!("not installed: {absent:?}"))
}

pub struct Lab {
    directory: tempfile::TempDir,
    pub commands: Arc<dyn Commands>,
}

impl Lab {
    fn new() -> Lab {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let lock = directory.path().join("xtables.lock").display().to_string();
        // The legacy lock is one file for all namespaces: give this one its own.
        let environment = vec![("XTABLES_LOCKFILE".to_owned(), lock)];
        let lab = Lab { directory, commands: Arc::new(Processes { environment }) };
        lab.sh("ip link set lo up");
        lab
    }

    /// A folder that goes with the namespace.
    pub fn path(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Runs a shell line in the namespace; it has to succeed.
    pub fn sh(&self, line: &str) -> String {
        let out = Command::new("sh")
            .args(["-c", line])
            .env("XTABLES_LOCKFILE", self.directory.path().join("xtables.lock"))
            .output()
            .expect("sh runs");
        assert!(out.status.success(), "`{line}` failed: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("tools print UTF-8")
    }

    /// An interface with an address and a way out: with nothing behind it, but workloads' questions for their gateway are
    /// answered only by a host that has a route.
    pub fn uplink(&self) {
        self.veth("eth0");
        self.sh("ip addr add 172.30.0.1/24 dev eth0 && ip route add default via 172.30.0.254");
    }

    /// A veth pair as a CNI plugin makes it, the other end in the same namespace.
    pub fn veth(&self, name: &str) {
        self.sh(&format!("ip link add {name} type veth peer name p{name} && ip link set p{name} up && ip link set {name} up"));
    }
}

impl Lab {
    /// Waits until the kernel counts an interface as running, which it does some time after it was set up.
    pub async fn running(&self, name: &str) {
        eventually(Duration::from_secs(20), async || {
            let link = self.sh(&format!("ip -o link show {name}"));
            if link.contains("state UP") { Ok(()) } else { Err(link) }
        })
        .await;
    }
}

/// A file system in a folder, for the test's thread and its children alone; gone with this.
pub struct Mount {
    folder: PathBuf,
}

impl Mount {
    /// `what`: `mount`'s words before the folder.
    pub fn new(lab: &Lab, what: &str, folder: PathBuf) -> Mount {
        unshare(CloneFlags::CLONE_NEWNS).expect("root may make a mount namespace");
        let at = folder.display();
        lab.sh(&format!("mount --make-rprivate / && mount {what} {at}"));
        Mount { folder }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.folder, MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted until the thread ends: {error}", self.folder.display());
        }
    }
}

/// Waits for a condition; says what was missing when the time is up.
pub async fn eventually<T>(limit: Duration, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match check().await {
            Ok(value) => return value,
            Err(missing) if started.elapsed() > limit => panic!("after {limit:?}: {missing}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
