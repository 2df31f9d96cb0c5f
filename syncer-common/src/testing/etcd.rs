//! A real etcd on loopback, of one member or three: free ports, directories of their own, gone when dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::process::Process;
use super::require;
use crate::backend::config::{EtcdConfig, StoreConfig};

const READY: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);
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
    member: Member,
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
        let [member] = <[Member; 1]>::try_from(launch(1, extra, tls).await?).ok()?;
        Some(Self { member })
    }

    /// `http://127.0.0.1:port`; the same after `restart`.
    pub fn endpoint(&self) -> String {
        self.member.endpoint()
    }

    pub fn config(&self) -> StoreConfig {
        self.member.config()
    }

    /// Ends it in good order; its data stays for `restart`.
    pub fn stop(&mut self) {
        self.member.stop();
    }

    /// Kills it (-9); its data stays for `restart`.
    pub fn kill(&mut self) {
        self.member.kill();
    }

    /// Starts it again on the same data and ports, ending it first if it runs.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn restart(&mut self) {
        self.member.stop();
        self.member.spawn();
        assert!(self.member.ready().await, "etcd did not start again; its log:\n{}", self.log());
    }

    /// Throws the data away and starts empty on the same ports: another history.
    pub async fn restart_empty(&mut self) {
        self.member.stop();
        std::fs::remove_dir_all(self.member.data()).expect("the data directory can be removed");
        self.member.token = new_token();
        self.restart().await;
    }

    /// Ends it, puts a snapshot of earlier (`etcdctl snapshot save`) in the place of its data, and starts it again, as
    /// one restores a backup: the same members and ids, older revisions.
    ///
    /// # Panics
    /// When `etcdctl` does not restore it, or etcd does not start.
    pub async fn restore(&mut self, snapshot: &Path) {
        self.member.stop();
        let member = &self.member;
        std::fs::remove_dir_all(member.data()).expect("the data directory can be removed");
        let restored = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore"])
            .arg(snapshot)
            .arg("--data-dir")
            .arg(member.data())
            .args(["--name", &member.name, "--initial-cluster", &member.initial_cluster])
            .args(["--initial-advertise-peer-urls", &peer_url(member.peer_port)])
            .args(["--initial-cluster-token", &member.token])
            .output()
            .expect("etcdctl can be started");
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
        self.restart().await;
    }

    /// Stops its clock (SIGSTOP): connections stay open, nothing answers.
    pub async fn pause(&self) {
        self.member.pause().await;
    }

    pub fn resume(&self) {
        self.member.resume();
    }

    pub fn log(&self) -> String {
        self.member.log()
    }
}

/// A cluster of several members, counted from 0.
pub struct EtcdCluster {
    members: Vec<Member>,
}

impl EtcdCluster {
    /// Starts three members and waits until each answers. `None`: not installed, and the test is to return.
    ///
    /// # Panics
    /// When they do not start, or etcd is missing with `BULRUSH_REQUIRE=1`.
    pub async fn start() -> Option<Self> {
        Some(Self { members: launch(3, &[], None).await? })
    }

    pub fn endpoint(&self, member: usize) -> String {
        self.members[member].endpoint()
    }

    /// A client of these members, tried in this order.
    pub fn config(&self, members: &[usize]) -> StoreConfig {
        StoreConfig::etcd(members.iter().map(|member| self.endpoint(*member)))
    }

    /// Kills a member (-9); its data stays for `restart`.
    pub fn kill(&mut self, member: usize) {
        self.members[member].kill();
    }

    /// Starts a member that was killed, on its data and ports. It answers once a quorum is up: see `ready`.
    pub fn restart(&mut self, member: usize) {
        self.members[member].kill();
        self.members[member].spawn();
    }

    /// Waits until a member answers linearizable reads.
    ///
    /// # Panics
    /// When it does not.
    pub async fn ready(&mut self, member: usize) {
        let ready = self.members[member].ready().await;
        assert!(ready, "etcd member {member} does not answer; its log:\n{}", self.members[member].log());
    }

    /// As `EtcdServer::pause`.
    pub async fn pause(&self, member: usize) {
        self.members[member].pause().await;
    }

    pub fn resume(&self, member: usize) {
        self.members[member].resume();
    }

    /// The member that leads.
    ///
    /// # Panics
    /// When none does in time.
    pub async fn leader(&self) -> usize {
        let deadline = Instant::now() + READY;
        loop {
            for (index, member) in self.members.iter().enumerate() {
                if member.leads().await {
                    return index;
                }
            }
            assert!(Instant::now() < deadline, "no member of the etcd cluster leads");
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Starts a cluster of so many members, and waits until each answers.
async fn launch(count: usize, extra: &[&str], tls: Option<TlsFiles>) -> Option<Vec<Member>> {
    let program = require::program("etcd")?;
    for _ in 0..ATTEMPTS {
        let token = new_token();
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let urls = ports.iter().enumerate().map(|(index, (_, peer))| format!("m{index}={}", peer_url(*peer)));
        let initial_cluster = urls.collect::<Vec<_>>().join(",");
        let mut members: Vec<Member> = ports
            .into_iter()
            .enumerate()
            .map(|(index, (client_port, peer_port))| Member {
                program: program.clone(),
                dir: tempfile::tempdir().expect("a temporary directory can be made"),
                name: format!("m{index}"),
                client_port,
                peer_port,
                initial_cluster: initial_cluster.clone(),
                token: token.clone(),
                extra: extra.iter().map(|argument| (*argument).to_owned()).collect(),
                tls: tls.clone(),
                process: None,
            })
            .collect();
        members.iter_mut().for_each(Member::spawn);
        let mut all_ready = true;
        for member in &mut members {
            all_ready = all_ready && member.ready().await;
        }
        if all_ready {
            return Some(members);
        }
    }
    panic!("etcd did not start in {ATTEMPTS} attempts");
}

/// One process of etcd.
struct Member {
    program: PathBuf,
    dir: tempfile::TempDir,
    name: String,
    client_port: u16,
    peer_port: u16,
    initial_cluster: String,
    token: String,
    extra: Vec<String>,
    tls: Option<TlsFiles>,
    process: Option<Process>,
}

impl Member {
    fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    fn config(&self) -> StoreConfig {
        let mut config = EtcdConfig { endpoints: vec![self.endpoint()], ..EtcdConfig::default() };
        if let Some(tls) = &self.tls {
            config.ca_file = Some(tls.ca.clone());
            config.cert_file = Some(tls.client_cert.clone());
            config.key_file = Some(tls.client_key.clone());
        }
        StoreConfig::Etcd(config)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn spawn(&mut self) {
        let (client, peer) = (self.endpoint(), peer_url(self.peer_port));
        let mut command = Command::new(&self.program);
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth");
            command.arg("--trusted-ca-file").arg(&tls.ca);
            command.arg("--cert-file").arg(&tls.server_cert).arg("--key-file").arg(&tls.server_key);
        }
        command
            .arg("--data-dir")
            .arg(self.data())
            .args(["--name", &self.name, "--initial-cluster", &self.initial_cluster])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster-token", &self.token])
            .args(&self.extra);
        let process = Process::spawn(&mut command, &self.dir.path().join("log"));
        self.process = Some(process.expect("etcd can be started"));
    }

    /// Waits until it answers. `false`: it ended, or takes too long.
    async fn ready(&mut self) -> bool {
        let deadline = Instant::now() + READY;
        while Instant::now() < deadline {
            if self.process.as_mut().is_none_or(Process::exited) {
                self.process = None;
                return false;
            }
            if self.answers().await {
                return true;
            }
            tokio::time::sleep(POLL).await;
        }
        false
    }

    async fn answers(&self) -> bool {
        let attempt = async {
            let sources = crate::backend::config::open(&self.config()).await.ok()?.sources();
            sources.first()?.head().await.ok()
        };
        matches!(tokio::time::timeout(ANSWER, attempt).await, Ok(Some(_)))
    }

    async fn leads(&self) -> bool {
        let attempt = async {
            let mut client = etcd_client::Client::connect([self.endpoint()], None).await.ok()?;
            let status = client.status().await.ok()?;
            Some(status.leader() == status.header()?.member_id())
        };
        self.process.is_some() && matches!(tokio::time::timeout(ANSWER, attempt).await, Ok(Some(true)))
    }

    fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.stop();
        }
    }

    fn kill(&mut self) {
        self.process = None;
    }

    async fn pause(&self) {
        if let Some(process) = &self.process {
            process.pause().await;
        }
    }

    fn resume(&self) {
        if let Some(process) = &self.process {
            process.resume();
        }
    }
}

/// No two test clusters have one id.
fn new_token() -> String {
    format!("test-{}", uuid::Uuid::new_v4())
}

fn peer_url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// A port that nobody listens on at this moment.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .expect("loopback has a free port")
        .port()
}
