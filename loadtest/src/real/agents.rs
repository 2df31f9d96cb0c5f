//! The programs of one real node: felix, and confd with its BIRD where that is installed.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

use super::netns::{Namespace, output};
use crate::local::{cpu_and_memory, spawn};
use crate::report::RealUsage;

/// What all real nodes have in common.
pub struct Programs {
    pub felix: PathBuf,
    pub confd: PathBuf,
    pub bird: Option<PathBuf>,
    /// `nft`, or `legacy`.
    pub backend: &'static str,
    /// host:port of the typhas, with commas.
    pub typhas: String,
    pub logs: PathBuf,
}

pub struct Agents {
    running: Vec<Agent>,
    /// What those used that have ended.
    before: RealUsage,
}

struct Agent {
    name: &'static str,
    child: Child,
    since: Instant,
    log: PathBuf,
}

impl Programs {
    pub fn find(typhas: String, logs: &Path) -> Result<Programs> {
        let beside = |name: &str| {
            let program = std::env::current_exe()?.with_file_name(name);
            match program.is_file() {
                true => Ok(program),
                false => bail!("--real needs {}: build it (`make build`)", program.display()),
            }
        };
        for (tool, package) in [("ip", "iproute2"), ("ipset", "ipset"), ("iptables-save", "iptables")] {
            on_path(tool).with_context(|| format!("--real needs {tool}: install the package {package}"))?;
        }
        let backend = if on_path("iptables-nft-save").is_some() { "nft" } else { "legacy" };
        let bird = on_path("bird").filter(|_| on_path("birdc").is_some());
        let (felix, confd) = (beside("felix")?, beside("confd")?);
        Ok(Programs { felix, confd, bird, backend, typhas, logs: logs.to_owned() })
    }

    /// Agents that take part.
    pub fn agents(&self) -> &'static [&'static str] {
        if self.bird.is_some() { &["felix", "confd"] } else { &["felix"] }
    }
}

/// Where a program is, on the path and in the system folders that a user's path may lack.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|file| file.is_file())
}

impl Agents {
    /// `address`: the node's; `folder`: for what they keep, and may have kept; `before`: what this node's used so far.
    pub fn start(
        programs: &Programs,
        namespace: &Namespace,
        address: &str,
        folder: &Path,
        before: RealUsage,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let node = &before.node;
        let command = |program: &Path| {
            let mut command = Command::new(program);
            command.env_clear().env("PATH", &path).env("NODENAME", node);
            command.env("FELIX_TYPHAADDR", &programs.typhas);
            command
        };
        let mut felix = command(&programs.felix);
        felix
            .env("FELIX_IPTABLESBACKEND", programs.backend)
            .env("FELIX_ENDPOINTSTATUSPATHPREFIX", folder.join("felix-status"))
            .env("FELIX_STATEFILE", folder.join("felix.state"))
            // The machine's own is for its own network.
            .env("XTABLES_LOCKFILE", folder.join("xtables.lock"));
        let mut commands = vec![("felix", felix)];
        if let Some(bird) = &programs.bird {
            let (config, socket) = (folder.join("bird.cfg"), socket(folder));
            // Until confd has written its own.
            let nothing = format!("router id {address};\nprotocol device {{}}\n");
            std::fs::write(&config, nothing).with_context(|| format!("writing {}", config.display()))?;
            let mut bird = command(bird);
            bird.arg("-f")
                .arg("-c")
                .arg(&config)
                .arg("-s")
                .arg(&socket)
                .arg("-P")
                .arg(folder.join("bird.pid"));
            let mut confd = command(&programs.confd);
            confd
                .env("CONFD_SECRETSDIR", folder.join("secrets"))
                .env("CONFD_ENDPOINTSTATUSPATHPREFIX", folder.join("confd-status"))
                .arg("--bird-config")
                .arg(config)
                .arg("--bird-socket")
                .arg(socket);
            commands.extend([("bird", bird), ("confd", confd)]);
        }
        let runtime = Handle::current();
        let mut running = Vec::new();
        for (name, mut command) in commands {
            let log = programs.logs.join(format!("{name}-{node}.log"));
            let since = Instant::now();
            let child = namespace.inside(|| {
                let _entered = runtime.enter();
                spawn(&mut command, &log).with_context(|| format!("starting {name} of {node}"))
            })?;
            running.push(Agent { name, child, since, log });
        }
        Ok(Agents { running, before })
    }

    /// Kills them: what they keep on disk and what is in the kernel stays. Returns what they used.
    pub async fn kill(self) -> Result<RealUsage> {
        let used = self.usage();
        for mut agent in self.running {
            agent.child.kill().await.with_context(|| format!("killing {}", agent.name))?;
        }
        Ok(used)
    }

    /// When the agent was started.
    pub fn since(&self, name: &str) -> Option<Instant> {
        self.running.iter().find(|agent| agent.name == name).map(|agent| agent.since)
    }

    /// Those that have ended by themselves.
    pub fn ended(&mut self) -> Vec<String> {
        let node = &self.before.node;
        let ended = self.running.iter_mut().filter_map(|agent| {
            let status = agent.child.try_wait().ok().flatten()?;
            Some(format!("{node}: {} ended with {status}: see {}", agent.name, agent.log.display()))
        });
        ended.collect()
    }

    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        let agent = self.running.iter().find(|agent| agent.name == name).context("no such agent")?;
        let pid = agent.child.id().with_context(|| format!("{name} has ended by itself"))?;
        kill(Pid::from_raw(pid as i32), signal).with_context(|| format!("signalling {name}"))
    }

    /// Of felix: CPU in all, and its most memory.
    pub fn usage(&self) -> RealUsage {
        let mut usage = self.before.clone();
        let felix = self.running.iter().find(|agent| agent.name == "felix");
        if let Some(pid) = felix.and_then(|agent| agent.child.id()) {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let peak = crate::limits::field(&status, "VmHWM:").map_or(0.0, |kb| kb as f64 / 1e3);
            usage.felix_cpu_seconds += cpu_and_memory(pid).map_or(0.0, |(cpu, _)| cpu);
            usage.felix_peak_mb = usage.felix_peak_mb.max(peak);
        }
        usage
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("bird.ctl")
}

/// How many BGP sessions of the BIRD in this folder are established.
pub fn sessions(folder: &Path) -> Result<usize> {
    let said = output("birdc", &["-s", &socket(folder).display().to_string(), "show", "protocols"])?;
    let of = |line: &&str| line.contains(" BGP ") && line.contains("Established");
    Ok(said.lines().filter(of).count())
}
