//! Servers of a run's own: an etcd and typhas on loopback, gone with the run.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use syncer_common::backend::config::{StoreConfig, open};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

const READY: Duration = Duration::from_secs(60);
/// Where etcd and the typhas' side ports are.
pub const LOOPBACK: &str = "127.0.0.1";
const POLL: Duration = Duration::from_millis(50);
/// USER_HZ, which is 100 on every architecture that Linux runs on today.
const TICKS_PER_SECOND: f64 = 100.0;

pub struct Local {
    pub store: StoreConfig,
    pub etcd: Server,
    pub typhas: Vec<Server>,
    /// Of the typhas: where they serve agents, and health and metrics.
    ports: Vec<(u16, u16)>,
    /// Where clients, and typhas one another, reach them.
    replicas: String,
    program: PathBuf,
    endpoint: String,
    /// The address that the typhas serve agents at.
    host: String,
    logs: PathBuf,
    /// etcd's data.
    folder: tempfile::TempDir,
}

pub struct Server {
    pub name: String,
    port: u16,
    /// Health and metrics; etcd: its peers.
    side: u16,
    process: Child,
}

fn free_port(host: &str) -> Result<u16> {
    let listener = TcpListener::bind((host, 0)).with_context(|| format!("no free port on {host}"))?;
    Ok(listener.local_addr()?.port())
}

impl Local {
    /// Starts etcd; the typhas have their addresses, on `host`. `logs`: where the servers' output goes.
    pub async fn start(typhas: usize, host: &str, logs: &Path) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("typha");
        ensure!(
            program.is_file(),
            "there is no {}: build it (`make build`), or name running typhas with --typha",
            program.display()
        );
        std::fs::create_dir_all(logs).with_context(|| format!("making {}", logs.display()))?;
        let folder = tempfile::tempdir()?;
        let (port, peer) = (free_port(LOOPBACK)?, free_port(LOOPBACK)?);
        let endpoint = format!("http://127.0.0.1:{port}");
        let etcd = start_etcd(folder.path(), port, peer, logs)?;
        let store = StoreConfig::etcd([endpoint.clone()]);
        let client = open(&store).await?;
        let deadline = Instant::now() + READY;
        while let Err(error) = client.get("/calico/").await {
            ensure!(Instant::now() < deadline, "etcd does not answer: {error}; see {}", logs.display());
            tokio::time::sleep(POLL).await;
        }
        let ports =
            (0..typhas).map(|_| Ok((free_port(host)?, free_port(LOOPBACK)?))).collect::<Result<_>>()?;
        Ok(Local {
            store,
            etcd,
            typhas: Vec::new(),
            ports,
            replicas: String::new(),
            program,
            endpoint,
            host: host.to_owned(),
            logs: logs.to_owned(),
            folder,
        })
    }

    /// Where the typhas serve agents.
    pub fn addresses(&self) -> Vec<String> {
        self.ports.iter().map(|(port, _)| format!("{}:{port}", self.host)).collect()
    }

    /// Starts the typhas. `reached`: where clients, and typhas one another, reach them.
    pub fn serve(&mut self, reached: &[String]) -> Result<()> {
        self.replicas = reached.join(",");
        for index in 0..self.ports.len() {
            let server = self.start_typha(index)?;
            self.typhas.push(server);
        }
        Ok(())
    }

    fn start_typha(&self, index: usize) -> Result<Server> {
        let (port, side) = self.ports[index];
        let name = format!("typha-{}", index + 1);
        let mut command = Command::new(&self.program);
        command.env_clear().envs([
            ("TYPHA_DATASTORETYPE", "etcdv3"),
            ("TYPHA_ETCDENDPOINTS", &self.endpoint),
            ("TYPHA_REPLICANAME", &name),
            ("TYPHA_SERVERHOST", &self.host),
            ("TYPHA_SERVERPORT", &port.to_string()),
            ("TYPHA_HEALTHHOST", "127.0.0.1"),
            ("TYPHA_HEALTHPORT", &side.to_string()),
            ("TYPHA_PROMETHEUSMETRICSENABLED", "true"),
            ("TYPHA_PROMETHEUSMETRICSHOST", "127.0.0.1"),
            ("TYPHA_PROMETHEUSMETRICSPORT", &side.to_string()),
            // Every node is to be sent on, even by a machine on which a thousand of them are late.
            ("TYPHA_SHUTDOWNTIMEOUTSECS", "40"),
            ("TYPHA_REPLICAS", &self.replicas),
            ("TYPHA_K8SSERVICEPOLLINTERVALSECS", "1"),
            // All nodes have one address here.
            ("TYPHA_MAXCONNECTIONSPERADDRESS", "none"),
            // What a phase does to streams is to be what it says.
            ("TYPHA_CONNECTIONREBALANCING", "false"),
        ]);
        let process =
            spawn(&mut command, &self.logs.join(format!("{name}.log"))).context("starting typha")?;
        Ok(Server { name, port, side, process })
    }

    /// Waits until every typha holds the datastore's content.
    pub async fn ready(&mut self) -> Result<()> {
        for server in &mut self.typhas {
            server.ready(&self.logs).await?;
        }
        Ok(())
    }

    /// Waits until each typha knows that all of them take clients.
    pub async fn acquainted(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        for server in &self.typhas {
            while server.probe().open_replicas().await != Some(self.typhas.len()) {
                ensure!(Instant::now() < deadline, "{} does not find the other replicas", server.name);
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// etcd forgets all revisions but the present one.
    pub async fn compact(&self) -> Result<()> {
        // The whole of an empty range is the header with the revision.
        let answer = self.etcd_post("/v3/kv/range", json!({ "key": "AA==" })).await?;
        let revision = answer["header"]["revision"].as_str().context("etcd says no revision")?;
        self.etcd_post("/v3/kv/compaction", json!({ "revision": revision, "physical": true })).await?;
        Ok(())
    }

    async fn etcd_post(&self, path: &str, body: serde_json::Value) -> Result<serde_json::Value> {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let ask = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.etcd.port)).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer =
            tokio::time::timeout(Duration::from_secs(10), ask).await.context("etcd does not answer")??;
        let (head, body) = answer.split_once("\r\n\r\n").context("etcd's answer is no HTTP")?;
        ensure!(head.contains(" 200 "), "etcd answers {path} with {head}: {body}");
        Ok(serde_json::from_str(body)?)
    }

    /// Ends etcd and starts it again with its data: whoever watches has to ask again from where he was.
    pub async fn restart_etcd(&mut self) -> Result<()> {
        self.etcd.signal(Signal::SIGTERM)?;
        if tokio::time::timeout(READY, self.etcd.process.wait()).await.is_err() {
            bail!("etcd does not end on SIGTERM");
        }
        self.etcd = start_etcd(self.folder.path(), self.etcd.port, self.etcd.side, &self.logs)?;
        let deadline = Instant::now() + READY;
        while let Err(error) = self.etcd_post("/v3/kv/range", json!({ "key": "AA==" })).await {
            ensure!(Instant::now() < deadline, "etcd does not come back: {error:#}");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Ends one typha in good order, and starts it again on the same port.
    pub async fn restart(&mut self, index: usize) -> Result<()> {
        let server = &mut self.typhas[index];
        server.signal(Signal::SIGTERM)?;
        if tokio::time::timeout(READY, server.process.wait()).await.is_err() {
            bail!("{} does not end on SIGTERM", server.name);
        }
        self.typhas[index] = self.start_typha(index)?;
        let logs = self.logs.clone();
        self.typhas[index].ready(&logs).await
    }
}

fn start_etcd(folder: &Path, port: u16, peer: u16, logs: &Path) -> Result<Server> {
    let endpoint = format!("http://127.0.0.1:{port}");
    let peers = format!("http://127.0.0.1:{peer}");
    let mut command = Command::new("etcd");
    command
        .args(["--data-dir", &folder.display().to_string()])
        .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
        .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("default={peers}")])
        // The data lives as long as the run: what it costs to make it durable is the disk's number, not ours.
        .args(["--unsafe-no-fsync", "--log-level", "warn"]);
    let process = spawn(&mut command, &logs.join("etcd.log"))
        .context("starting etcd: install the package etcd-server, or name a datastore with --etcd")?;
    Ok(Server { name: "etcd".into(), port, side: peer, process })
}

/// Killed when dropped; its output goes to the end of `log`.
pub fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(log)?;
    let child =
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true).spawn()?;
    Ok(child)
}

impl Server {
    pub fn probe(&self) -> Probe {
        Probe { name: self.name.clone(), pid: self.process.id(), side: Some(self.side) }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.process.id() else { bail!("{} has ended by itself: see its log", self.name) };
        kill(Pid::from_raw(pid as i32), signal).with_context(|| format!("signalling {}", self.name))
    }

    async fn ready(&mut self, logs: &Path) -> Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            if let Ok(Some(status)) = self.process.try_wait() {
                bail!("{} ended with {status}: see {}", self.name, logs.display());
            }
            if self.probe().get("/readiness").await.is_some_and(|answer| answer.contains(" 200 ")) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} is not ready: see {}", self.name, logs.display());
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Where to ask how a typha fares.
#[derive(Clone, Debug)]
pub struct Probe {
    pub name: String,
    pub pid: Option<u32>,
    /// Nothing: it is only looked at from outside.
    side: Option<u16>,
}

impl Probe {
    pub fn of_process(pid: u32) -> Probe {
        Probe { name: format!("process {pid}"), pid: Some(pid), side: None }
    }

    /// The answer of its side port.
    async fn get(&self, path: &str) -> Option<String> {
        let ask = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.side?)).await.ok()?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            Some(answer)
        };
        tokio::time::timeout(Duration::from_secs(2), ask).await.ok()?
    }

    /// All its metrics, in Prometheus' text format.
    pub async fn metrics(&self) -> Option<String> {
        self.get("/metrics").await
    }

    /// Replicas that it knows to take clients, itself included.
    async fn open_replicas(&self) -> Option<usize> {
        let answer = self.get("/status.json").await?;
        let status: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        let replicas = status["replicas"].as_array()?;
        Some(replicas.iter().filter(|replica| replica["state"] == "in sync").count())
    }

    /// Seconds of CPU since its start, and resident bytes.
    pub fn usage(&self) -> Option<(f64, u64)> {
        cpu_and_memory(self.pid?)
    }
}

/// Of a process: seconds of CPU since its start, and resident bytes.
pub fn cpu_and_memory(pid: u32) -> Option<(f64, u64)> {
    let folder = Path::new("/proc").join(pid.to_string());
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th fields after it (proc(5)).
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    let kb = crate::limits::field(&std::fs::read_to_string(folder.join("status")).ok()?, "VmRSS:")?;
    Some((ticks / TICKS_PER_SECOND, (kb as u64) << 10))
}

/// A metric in the text format, summed over the series whose labels contain `label`.
pub fn metric(text: &str, name: &str, label: &str) -> Option<f64> {
    let of = |line: &str| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let named = labels.is_empty() || labels.starts_with('{');
        if named && labels.contains(label) { value.parse::<f64>().ok() } else { None }
    };
    let values: Vec<f64> = text.lines().filter_map(of).collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_by_label() {
        let text = "# HELP a_total x\na_total{v=\"x\"} 2\na_total{v=\"y\"} 3\na_total_more 7\nb 4\n";
        assert_eq!(metric(text, "a_total", ""), Some(5.0));
        assert_eq!(metric(text, "a_total", "\"y\""), Some(3.0));
        assert_eq!((metric(text, "b", ""), metric(text, "c", "")), (Some(4.0), None));
    }
}
