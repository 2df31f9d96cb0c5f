//! A real etcd on loopback: free ports, a directory of its own, gone when dropped.

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::process::Process;
use super::require;
use crate::backend::config::{EtcdConfig, StoreConfig};

const READY: Duration = Duration::from_secs(30);
/// Between choosing free ports and binding them another process may take one: then choose again.
const ATTEMPTS: usize = 5;

/// PEM files of a server and a client that trust one CA. The server's names 127.0.0.1.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub server_cert: PathBuf,
    pub server_key: PathBuf,
    pub client_cert: PathBuf,
    pub client_key: PathBuf,
}

/// A single-member etcd cluster.
pub struct EtcdServer {
    program: PathBuf,
    dir: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    extra: Vec<String>,
    tls: Option<TlsFiles>,
    process: Option<Process>,
}

impl EtcdServer {
    /// Starts etcd and waits until it answers. `None`: not installed, and the test is to return.
    ///
    /// # Panics
    /// When it does not start, or is missing with `BULRUSH_REQUIRE=1`.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// The same with more arguments, e.g. `--max-request-bytes=8388608`.
    pub async fn start_with(extra: &[&str]) -> Option<Self> {
        Self::launch(extra, None).await
    }

    /// With TLS: it asks clients for a certificate.
    pub async fn start_tls(tls: TlsFiles) -> Option<Self> {
        Self::launch(&[], Some(tls)).await
    }

    async fn launch(extra: &[&str], tls: Option<TlsFiles>) -> Option<Self> {
        let program = require::program("etcd")?;
        for _ in 0..ATTEMPTS {
            let mut server = Self {
                program: program.clone(),
                dir: tempfile::tempdir().expect("a temporary directory can be made"),
                client_port: free_port(),
                peer_port: free_port(),
                extra: extra.iter().map(|argument| (*argument).to_owned()).collect(),
                tls: tls.clone(),
                process: None,
            };
            if server.try_restart().await {
                return Some(server);
            }
        }
        panic!("etcd did not start in {ATTEMPTS} attempts");
    }

    /// `http://127.0.0.1:port`; the same after `restart`.
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    pub fn config(&self) -> StoreConfig {
        let mut config = EtcdConfig { endpoints: vec![self.endpoint()], ..EtcdConfig::default() };
        if let Some(tls) = &self.tls {
            config.ca_file = Some(tls.ca.clone());
            config.cert_file = Some(tls.client_cert.clone());
            config.key_file = Some(tls.client_key.clone());
        }
        StoreConfig::Etcd(config)
    }

    /// Ends it in good order; its data stays for `restart`.
    pub fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.stop();
        }
    }

    /// Kills it (-9); its data stays for `restart`.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again on the same data and ports, ending it first if it runs.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn restart(&mut self) {
        self.stop();
        assert!(self.try_restart().await, "etcd did not start again; its log:\n{}", self.log());
    }

    /// Throws the data away and starts empty on the same ports: another history.
    pub async fn restart_empty(&mut self) {
        self.stop();
        std::fs::remove_dir_all(self.dir.path().join("data")).expect("the data directory can be removed");
        self.restart().await;
    }

    /// Stops its clock (SIGSTOP): connections stay open, nothing answers.
    pub async fn pause(&self) {
        if let Some(process) = &self.process {
            process.pause().await;
        }
    }

    pub fn resume(&self) {
        if let Some(process) = &self.process {
            process.resume();
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn spawn(&mut self) -> io::Result<()> {
        let (client, peer) = (self.endpoint(), format!("http://127.0.0.1:{}", self.peer_port));
        let mut command = Command::new(&self.program);
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth");
            command.arg("--trusted-ca-file").arg(&tls.ca);
            command.arg("--cert-file").arg(&tls.server_cert).arg("--key-file").arg(&tls.server_key);
        }
        command
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .args(["--name", "test", "--initial-cluster", &format!("test={peer}")])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            // A token of its own, so that no two test clusters have one id.
            .args(["--initial-cluster-token", &format!("test-{}", uuid::Uuid::new_v4())])
            .args(&self.extra);
        self.process = Some(Process::spawn(&mut command, &self.dir.path().join("log"))?);
        Ok(())
    }

    async fn try_restart(&mut self) -> bool {
        self.spawn().expect("etcd can be started");
        let deadline = Instant::now() + READY;
        while Instant::now() < deadline {
            if self.process.as_mut().is_none_or(Process::exited) {
                self.process = None;
                return false;
            }
            if self.answers().await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    async fn answers(&self) -> bool {
        let attempt = async {
            let sources = crate::backend::config::open(&self.config()).await.ok()?.sources();
            sources.first()?.head().await.ok()
        };
        matches!(tokio::time::timeout(Duration::from_secs(1), attempt).await, Ok(Some(_)))
    }
}

/// A port that nobody listens on at this moment.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .expect("loopback has a free port")
        .port()
}
