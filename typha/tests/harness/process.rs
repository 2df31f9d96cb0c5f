//! The program itself, as an operator runs it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{PATIENCE, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_typha");

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A process that ends with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Running {
    /// Asks it to end, and returns its exit status.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        let sent = Command::new("kill").arg(self.0.id().to_string()).status().unwrap();
        assert!(sent.success());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

pub struct Typha {
    pub process: Running,
    pub server: SocketAddr,
    pub health: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Typha {
    pub fn start(settings: &[(&str, &str)]) -> Typha {
        Typha::start_with(&[], settings)
    }

    pub fn start_with(arguments: &[&str], settings: &[(&str, &str)]) -> Typha {
        let mut command = Command::new(PROGRAM);
        command.args(arguments);
        Self::start_by(command, settings)
    }

    /// With a pod's service account: `account` holds its files. `/run` is its own, as in a container.
    pub fn start_in_pod(account: &Path, settings: &[(&str, &str)]) -> Typha {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec"]).arg(format!(
            "mount -t tmpfs none /var/run
             mkdir -p /var/run/secrets/kubernetes.io
             ln -s {} /var/run/secrets/kubernetes.io/serviceaccount
             exec {PROGRAM}",
            account.display()
        ));
        Self::start_by(command, settings)
    }

    fn start_by(mut command: Command, settings: &[(&str, &str)]) -> Typha {
        let given = settings.iter().find(|(name, _)| *name == "TYPHA_SERVERPORT");
        let server = given.map_or_else(free_port, |(_, port)| port.parse().unwrap());
        let health = free_port();
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("TYPHA_SERVERHOST", "127.0.0.1")
            .env("TYPHA_SERVERPORT", server.to_string())
            .env("TYPHA_HEALTHHOST", "127.0.0.1")
            .env("TYPHA_HEALTHPORT", health.to_string())
            .env("TYPHA_PROMETHEUSMETRICSENABLED", "true")
            .env("TYPHA_PROMETHEUSMETRICSHOST", "127.0.0.1")
            .env("TYPHA_PROMETHEUSMETRICSPORT", health.to_string())
            .envs(settings.iter().copied())
            .stderr(Stdio::piped());
        let mut process = Running(command.spawn().unwrap());
        let log = process.0.stderr.take().unwrap();
        // Shown with the test's output if it fails.
        let kept: Arc<Mutex<String>> = Arc::default();
        let keep = kept.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                println!("typha: {line}");
                *keep.lock().unwrap() += &line;
            }
        });
        Typha { process, server: address(server), health: address(health), log: kept }
    }

    /// Whether its log has this text.
    pub fn logged(&self, text: &str) -> bool {
        self.log.lock().unwrap().contains(text)
    }

    pub fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.health).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    pub async fn ready(&self) {
        eventually("typha to be ready", || {
            self.get("/readiness").is_some_and(|answer| answer.starts_with("HTTP/1.0 200"))
        })
        .await;
    }
}
