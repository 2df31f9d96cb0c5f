//! Two network namespaces joined by a veth pair, with a BIRD in each.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use confd::agent::Outputs;
use confd::bird::program::Programmer;
use confd::bird::write::ConfigFile;
use confd::local::LocalFiles;
use confd::render::Syntax;
use tempfile::TempDir;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Why this machine cannot run the test; with `BULRUSH_REQUIRE=1` that is a failure.
pub fn skip() -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
    let reason = if !root {
        "not root: network namespaces need it"
    } else if bird().is_none() {
        "BIRD is not installed"
    } else if !quiet("ip", &["netns", "list"]) {
        "ip netns does not work here"
    } else {
        return false;
    };
    assert!(std::env::var_os("BULRUSH_REQUIRE").is_none_or(|value| value != "1"), "{reason}");
    println!("SKIPPED: {reason}");
    true
}

/// BIRD's binary, also where a user's path does not lead.
pub fn bird() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|directory| directory.join("bird"))
        .find(|file| file.is_file())
}

/// The folder of `bird` and `bird6` of the classic syntax: the one that `BULRUSH_BIRD1` names, or BIRD 1.6.8 by `apt-get
/// download`, unpacked into `dir` (Debian's packages of both versions conflict). Nothing: said, and a failure if required.
pub fn bird1(dir: &Path) -> Option<PathBuf> {
    let folder = std::env::var_os("BULRUSH_BIRD1").map(PathBuf::from).or_else(|| {
        let shell = "apt-get download bird >/dev/null 2>&1 && dpkg -x bird_1.*.deb unpacked";
        let unpacked = Command::new("sh").args(["-c", shell]).current_dir(dir).status().ok()?.success();
        unpacked.then(|| dir.join("unpacked/usr/sbin"))
    });
    let folder = folder.filter(|folder| folder.join("bird6").exists());
    if folder.is_none() {
        let required = std::env::var_os("BULRUSH_REQUIRE").is_some_and(|value| value == "1");
        assert!(!required, "BIRD 1.6 can not be had");
        println!("SKIPPED: BIRD 1.6 can not be had");
    }
    folder
}

fn quiet(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

pub struct Lab {
    pub dir: TempDir,
    pub nodes: [LabNode; 2],
}

pub struct LabNode {
    pub netns: String,
    pub dir: PathBuf,
    bird: Option<Child>,
}

impl Lab {
    /// `172.30.0.11/24` and `.12`, `fd30::11/64` and `::12`, on `eth0`.
    pub fn up() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let node = |index: u32| {
            let dir = dir.path().join(format!("n{index}"));
            std::fs::create_dir(&dir).unwrap();
            LabNode { netns: format!("confd-{}-{number}-n{index}", std::process::id()), dir, bird: None }
        };
        let nodes = [node(1), node(2)];
        let lab = Lab { nodes, dir };
        for node in &lab.nodes {
            run("ip", &["netns", "add", &node.netns]);
            node.ip(&["link", "set", "lo", "up"]);
        }
        let [one, two] = &lab.nodes;
        one.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &two.netns]);
        for (index, node) in lab.nodes.iter().enumerate() {
            let last = 11 + index;
            node.ip(&["addr", "add", &format!("172.30.0.{last}/24"), "dev", "eth0"]);
            node.ip(&["addr", "add", &format!("fd30::{last}/64"), "dev", "eth0", "nodad"]);
            node.ip(&["link", "set", "eth0", "up"]);
        }
        lab
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.stop_bird();
            quiet("ip", &["netns", "del", &node.netns]);
        }
    }
}

impl LabNode {
    pub fn config(&self) -> PathBuf {
        self.dir.join("bird.cfg")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("bird.ctl")
    }

    pub fn programmer(&self) -> Programmer {
        Programmer::new(ConfigFile::new(self.config(), bird().unwrap()), self.socket())
    }

    /// For an agent; Secrets are looked for in the node's folder.
    pub fn outputs(&self) -> Outputs {
        Outputs {
            syntax: Syntax::Bird2,
            programmers: vec![self.programmer()],
            local_files: LocalFiles {
                secrets: self.dir.join("secrets"),
                endpoint_status: self.dir.join("endpoint-status"),
            },
        }
    }

    /// Starts BIRD on what its file holds, or on nothing at all.
    pub fn start_bird(&mut self) {
        if !self.config().exists() {
            std::fs::write(self.config(), "router id 127.0.0.9;\nprotocol device {}\n").unwrap();
        }
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("bird.log")).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.netns])
            .arg(bird().unwrap())
            .arg("-d")
            .arg("-c")
            .arg(self.config())
            .arg("-s")
            .arg(self.socket())
            .arg("-P")
            .arg(self.dir.join("bird.pid"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.bird = Some(child);
    }

    pub fn signal_bird(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.dir.join("bird.pid")).unwrap();
        run("kill", &[&format!("-{signal}"), pid.trim()]);
    }

    /// Ends BIRD as a crash would: it cannot take its routes away.
    pub fn stop_bird(&mut self) {
        if let Some(mut child) = self.bird.take() {
            // It may have ended by itself.
            child.kill().ok();
            child.wait().unwrap();
        }
    }

    pub fn ip(&self, args: &[&str]) -> String {
        run("ip", &[&["-n", self.netns.as_str()], args].concat())
    }

    /// What the kernel knows of a route, on one line; empty when nothing.
    pub fn route(&self, prefix: &str) -> String {
        let family = if prefix.contains(':') { "-6" } else { "-4" };
        let out = self.ip(&[family, "route", "show", prefix]);
        out.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("bird.log")).unwrap_or_default()
    }

    /// A workload: a `cali` interface and felix's route to an address behind it.
    pub fn add_workload(&self, interface: &str, address: &str, protocol: &str, metric: &str) {
        let peer = format!("w-{interface}");
        self.ip(&["link", "add", interface, "type", "veth", "peer", "name", &peer]);
        self.ip(&["link", "set", interface, "up"]);
        self.ip(&["link", "set", &peer, "up"]);
        self.ip(&[
            "route", "add", address, "dev", interface, "scope", "link", "proto", protocol, "metric", metric,
        ]);
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {}: {stderr}", args.join(" "));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Asks again and again until there is an answer; the last refusal is the panic's text.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> (T, Duration) {
    let start = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return (answer, start.elapsed()),
            Err(why) if start.elapsed() > within => panic!("{what} did not happen within {within:?}: {why}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
