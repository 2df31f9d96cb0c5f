//! A running Bulrush in a lab: a datastore and two typhas in the control namespace; felix, confd and BIRD on
//! every node.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::Signal;

use crate::lab::{CONTROL, Lab, Node, Workload};
use crate::probe::within;
use crate::process::{Process, patience, run, wait_for};

const ETCD: &str = "http://172.30.0.2:2379";
const SYNC_PORT: u16 = 5473;
/// Ports that every workload of the lab answers on.
pub const TCP_PORTS: [u16; 3] = [80, 8080, 5432];
pub const UDP_PORTS: [u16; 1] = [53];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Etcd,
    Directory,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub store: Store,
    pub nodes: usize,
    /// `nft` or `legacy`.
    pub backend: &'static str,
    /// Whether nodes run BIRD and confd.
    pub bgp: bool,
    /// How many of the nodes, the last ones, are in the second subnet.
    pub far: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { store: Store::Etcd, nodes: 3, backend: "nft", bgp: true, far: 0 }
    }
}

pub struct Cluster {
    // Processes come first: they are stopped before the lab goes.
    processes: BTreeMap<String, Process>,
    pub lab: Lab,
    pub options: Options,
    bin: PathBuf,
}

impl Cluster {
    /// Brings everything up and waits until every node is in sync.
    pub fn up(prefix: &str, options: Options) -> Result<Cluster> {
        let mut lab = Lab::up(prefix, options.nodes - options.far)?;
        for _ in 0..options.far {
            lab.add_node_in(1)?;
        }
        let mut cluster = Cluster { processes: BTreeMap::new(), lab, options, bin: binaries()? };
        cluster.start_store()?;
        cluster.apply(&cluster_manifests())?;
        for node in cluster.lab.nodes.clone() {
            cluster.declare_node(&node)?;
        }
        for i in 0..CONTROL.len() {
            cluster.start_typha(i)?;
        }
        for i in 0..CONTROL.len() {
            cluster.wait_typha(i)?;
        }
        for node in cluster.lab.nodes.clone() {
            cluster.start_node(&node)?;
        }
        cluster.wait_nodes()?;
        Ok(cluster)
    }

    // === datastore ===

    pub fn start_store(&mut self) -> Result<()> {
        match self.options.store {
            Store::Directory => Ok(std::fs::create_dir_all(self.store_dir())?),
            Store::Etcd => {
                let etcd = crate::require::find("etcd").context("etcd is not installed")?;
                let mut command = self.lab.exec(&self.lab.ns("ctl"), &etcd);
                command
                    .arg("--data-dir")
                    .arg(self.lab.dir.join("etcd"))
                    .args(["--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", ETCD])
                    .args(["--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "warn"]);
                self.start("etcd", command)?;
                let health = "ETCDCTL_API=3 etcdctl --endpoints 172.30.0.2:2379 endpoint health";
                wait_for("etcd to answer", patience(), || self.lab.sh(&self.lab.ns("ctl"), health))?;
                Ok(())
            }
        }
    }

    /// The datastore stops answering, or answers again: etcd is stopped, a folder is away, as if unmounted.
    pub fn freeze_store(&mut self, frozen: bool) -> Result<()> {
        match self.options.store {
            Store::Etcd => {
                let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
                self.process("etcd")?.signal(signal)
            }
            Store::Directory => {
                let (here, away) = (self.store_dir(), self.lab.dir.join("store.away"));
                let (from, to) = if frozen { (here, away) } else { (away, here) };
                std::fs::rename(&from, &to).with_context(|| format!("move {}", from.display()))
            }
        }
    }

    fn store_dir(&self) -> PathBuf {
        self.lab.dir.join("store")
    }

    fn store_settings(&self) -> Vec<(&'static str, String)> {
        match self.options.store {
            Store::Etcd => vec![("DATASTORE_TYPE", "etcdv3".into()), ("ETCD_ENDPOINTS", ETCD.into())],
            Store::Directory => vec![
                ("DATASTORE_TYPE", "directory".into()),
                ("BULRUSH_DIRECTORY", self.store_dir().display().to_string()),
            ],
        }
    }

    /// `bulrushctl` with the lab's datastore settings.
    pub fn bulrushctl(&self, args: &[&str]) -> Command {
        let mut command = self.lab.exec(&self.lab.ns("ctl"), &self.bin.join("bulrushctl"));
        command.args(args).envs(self.store_settings());
        command
    }

    /// `bulrushctl apply` of the given documents.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let file = self.lab.dir.join("apply.yaml");
        std::fs::write(&file, manifests)?;
        run(&mut self.bulrushctl(&["apply", "-f", &file.display().to_string()]))
    }

    /// Writes a raw value into etcd, past every check.
    pub fn etcd_put(&self, key: &str, value_file: &Path) -> Result<()> {
        let line = format!(
            "ETCDCTL_API=3 etcdctl --endpoints 172.30.0.2:2379 put '{key}' < {}",
            value_file.display()
        );
        self.lab.sh(&self.lab.ns("ctl"), &line).map(drop)
    }

    fn declare_node(&self, node: &Node) -> Result<()> {
        let mut text = String::new();
        write!(
            text,
            "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {{name: {name}}}\nspec:\n  bgp: {{ipv4Address: {ip}/16}}\n---\n",
            name = node.name,
            ip = node.ip
        )?;
        self.apply(&(text + &block_manifests(node)))?;
        Ok(())
    }

    // === typha ===

    fn typha_name(i: usize) -> String {
        format!("typha-{}", i + 1)
    }

    pub fn start_typha(&mut self, i: usize) -> Result<()> {
        let mut command = self.lab.exec(&self.lab.ns("ctl"), &self.bin.join("typha"));
        command
            .env("TYPHA_SERVERHOST", CONTROL[i].to_string())
            .env("TYPHA_SERVERPORT", SYNC_PORT.to_string())
            .env("TYPHA_REPLICANAME", Self::typha_name(i))
            .env("TYPHA_HEALTHENABLED", "true")
            .env("TYPHA_HEALTHHOST", CONTROL[i].to_string())
            .env("TYPHA_PROMETHEUSMETRICSENABLED", "true")
            .env("TYPHA_PROMETHEUSMETRICSHOST", CONTROL[i].to_string())
            .env("TYPHA_LOGSEVERITYSCREEN", "info");
        match self.options.store {
            Store::Etcd => command.env("TYPHA_DATASTORETYPE", "etcdv3").env("TYPHA_ETCDENDPOINTS", ETCD),
            Store::Directory => {
                command.env("TYPHA_DATASTORETYPE", "directory").env("TYPHA_DIRECTORY", self.store_dir())
            }
        };
        self.start(&Self::typha_name(i), command)
    }

    /// Waits until the replica says that it is ready.
    pub fn wait_typha(&mut self, i: usize) -> Result<()> {
        let ask = format!(
            "exec 3<>/dev/tcp/{}/9098; printf 'GET /readiness HTTP/1.0\\r\\n\\r\\n' >&3; head -1 <&3",
            CONTROL[i]
        );
        wait_for(&format!("{} to be ready", Self::typha_name(i)), patience(), || {
            self.check(&Self::typha_name(i))?;
            let answer =
                run(Command::new("ip").args(["netns", "exec", &self.lab.ns("ctl"), "bash", "-c", &ask]))?;
            ensure!(answer.contains(" 20"), "not ready: {answer}");
            Ok(())
        })
    }

    /// What a replica answers on its health port (`/status.json`), or that of its metrics.
    pub fn ask_typha(&self, i: usize, port: u16, path: &str) -> Result<String> {
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        let asked = within(&self.lab.ns("ctl"), move || -> Result<String> {
            let address = SocketAddr::from((CONTROL[i], port));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        let answer = asked.join().map_err(|_| anyhow!("the question panicked"))???;
        let (head, body) = answer.split_once("\r\n\r\n").context("not HTTP")?;
        ensure!(head.contains(" 200 "), "{} answers {head}", Self::typha_name(i));
        Ok(body.to_owned())
    }

    /// A counter of a replica, all its series together, or those whose labels contain `label`.
    pub fn metric(&self, i: usize, name: &str, label: &str) -> Result<f64> {
        let text = self.ask_typha(i, 9093, "/metrics")?;
        let of = |line: &str| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            let series = labels.is_empty() || labels.starts_with('{');
            if series && labels.contains(label) { value.parse::<f64>().ok() } else { None }
        };
        let values: Vec<f64> = text.lines().filter_map(of).collect();
        ensure!(!values.is_empty(), "{} has no metric {name}", Self::typha_name(i));
        Ok(values.iter().sum())
    }

    /// The typha that most agents are connected to, and how many each has.
    pub fn connections(&self) -> Result<[usize; 2]> {
        let out = self.lab.sh(&self.lab.ns("ctl"), "ss -Htn state established")?;
        Ok(CONTROL.map(|address| {
            let local = format!("{address}:{SYNC_PORT}");
            out.lines().filter(|line| line.split_whitespace().nth(2) == Some(local.as_str())).count()
        }))
    }

    // === nodes ===

    /// Starts BIRD, confd and felix on a node.
    pub fn start_node(&mut self, node: &Node) -> Result<()> {
        if self.options.bgp {
            self.start_bird(node)?;
            self.start_confd(node)?;
        }
        self.start_felix(node)
    }

    /// Where the node's programs keep their files.
    pub fn node_dir(&self, node: &Node) -> PathBuf {
        self.lab.dir.join(&node.name)
    }

    /// Addresses of the replicas, as agents are given them.
    pub fn servers() -> String {
        CONTROL.map(|address| format!("{address}:{SYNC_PORT}")).join(",")
    }

    pub fn start_bird(&mut self, node: &Node) -> Result<()> {
        let dir = self.node_dir(node);
        let config = dir.join("bird.cfg");
        if !config.exists() {
            // What BIRD runs until confd has rendered its configuration: nothing.
            std::fs::write(&config, format!("router id {};\nprotocol device {{}}\n", node.ip))?;
        }
        let bird = crate::require::find("bird").context("bird is not installed")?;
        let mut command = self.lab.exec(&node.netns, &bird);
        command
            .arg("-f")
            .arg("-c")
            .arg(&config)
            .arg("-s")
            .arg(dir.join("bird.ctl"))
            .arg("-P")
            .arg(dir.join("bird.pid"));
        self.start(&format!("bird-{}", node.name), command)
    }

    pub fn start_confd(&mut self, node: &Node) -> Result<()> {
        let dir = self.node_dir(node);
        let mut command = self.lab.exec(&node.netns, &self.bin.join("confd"));
        command
            .env("NODENAME", &node.name)
            .env("CONFD_TYPHAADDR", Self::servers())
            .env("CONFD_SECRETSDIR", dir.join("secrets"))
            .env("CONFD_ENDPOINTSTATUSPATHPREFIX", dir.join("status"))
            .arg("--bird-config")
            .arg(dir.join("bird.cfg"))
            .arg("--bird-socket")
            .arg(dir.join("bird.ctl"));
        self.start(&format!("confd-{}", node.name), command)
    }

    /// In another run of the kernel than the machine's, if a file `boot_id` of the node says so.
    pub fn start_felix(&mut self, node: &Node) -> Result<()> {
        let felix = self.bin.join("felix");
        let boot_id = self.node_dir(node).join("boot_id");
        let mut command = match boot_id.exists() {
            true => {
                let mut command = self.lab.exec(&node.netns, Path::new("sh"));
                let line = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$1\"";
                command.args(["-c", line]).arg(&boot_id).arg(&felix);
                command
            }
            false => self.lab.exec(&node.netns, &felix),
        };
        command
            .env("FELIX_FELIXHOSTNAME", &node.name)
            .env("FELIX_TYPHAADDR", Self::servers())
            .env("FELIX_IPTABLESBACKEND", self.options.backend)
            .env("FELIX_HEALTHENABLED", "true")
            .env("FELIX_ENDPOINTSTATUSPATHPREFIX", self.node_dir(node).join("status"))
            .env("FELIX_STATEFILE", self.node_dir(node).join("felix.state"))
            .env("XTABLES_LOCKFILE", self.node_dir(node).join("xtables.lock"));
        self.start(&format!("felix-{}", node.name), command)
    }

    /// Waits until every felix says that it has programmed its node.
    pub fn wait_nodes(&mut self) -> Result<()> {
        for node in self.lab.nodes.clone() {
            self.wait_node(&node)?;
        }
        Ok(())
    }

    pub fn wait_node(&mut self, node: &Node) -> Result<()> {
        let ask = "exec 3<>/dev/tcp/127.0.0.1/9099; printf 'GET /readiness HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' >&3; head -1 <&3";
        wait_for(&format!("felix on {} to be ready", node.name), patience(), || {
            self.check(&format!("felix-{}", node.name))?;
            let answer = run(Command::new("ip").args(["netns", "exec", &node.netns, "bash", "-c", ask]))?;
            ensure!(answer.contains(" 20"), "not ready: {answer}");
            Ok(())
        })
    }

    /// Waits until each node's kernel has a BIRD route to every other node's block.
    pub fn wait_bgp(&self, limit: Duration) -> Result<()> {
        for node in &self.lab.nodes {
            for other in self.lab.nodes.iter().filter(|n| n.name != node.name) {
                let want = format!("{} via {} ", other.cidr(), other.ip);
                wait_for(&format!("{} on {}", want.trim(), node.name), limit, || {
                    let routes = self.lab.sh(&node.netns, "ip route")?;
                    ensure!(
                        routes.lines().any(|l| l.starts_with(&want) && l.contains("proto bird")),
                        "routes:\n{routes}"
                    );
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    // === workloads ===

    /// Wires a workload, starts its echo servers, and declares its endpoint.
    pub fn add_workload(&mut self, node: &str, name: &str, labels: &[(&str, &str)]) -> Result<Workload> {
        let workload = self.lab.add_workload(node, name, labels)?;
        self.serve(&workload.netns, name)?;
        self.apply(&endpoint_manifest(&workload))?;
        Ok(workload)
    }

    /// Runs echo servers in a namespace.
    pub fn serve(&mut self, netns: &str, name: &str) -> Result<()> {
        let mut command = self.lab.exec(netns, &self.bin.join("probe"));
        command.arg("serve");
        for port in TCP_PORTS {
            command.args(["--tcp", &port.to_string()]);
        }
        for port in UDP_PORTS {
            command.args(["--udp", &port.to_string()]);
        }
        self.start(&format!("serve-{name}"), command)
    }

    /// Waits until a local route to the workload is in its node's kernel.
    pub fn wait_workload(&self, workload: &Workload) -> Result<()> {
        let node = self.lab.node(&workload.node);
        let want = format!("{} dev {}", workload.ip, workload.interface);
        wait_for(&format!("route {want} on {}", node.name), patience(), || {
            let routes = self.lab.sh(&node.netns, "ip route")?;
            ensure!(routes.contains(&want), "routes:\n{routes}");
            Ok(())
        })
    }

    // === processes ===

    /// One of our programs, to be run in the control namespace.
    pub fn program(&self, name: &str) -> Command {
        self.lab.exec(&self.lab.ns("ctl"), &self.bin.join(name))
    }

    /// Runs until the cluster goes, or until `stop`ped by name.
    pub fn start(&mut self, name: &str, command: Command) -> Result<()> {
        let process = Process::start(name, command, &self.log(name))?;
        self.processes.insert(name.into(), process);
        Ok(())
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.lab.dir.join(format!("{name}.log"))
    }

    /// A running program, by name: `etcd`, `typha-1`, `felix-n1`, `confd-n1`, `bird-n1`.
    pub fn process(&mut self, name: &str) -> Result<&mut Process> {
        self.processes.get_mut(name).with_context(|| format!("{name} was never started"))
    }

    pub fn check(&mut self, name: &str) -> Result<()> {
        self.process(name)?.check()
    }

    /// A node leaves: its processes, its namespaces, its objects.
    pub fn remove_node(&mut self, name: &str) -> Result<()> {
        self.processes.retain(|process, _| !process.ends_with(&format!("-{name}")));
        let node = self.lab.remove_node(name)?;
        for workload in &node.workloads {
            self.processes.remove(&format!("serve-{}", workload.name));
            let file = self.lab.dir.join("delete.yaml");
            std::fs::write(&file, endpoint_manifest(workload))?;
            run(&mut self.bulrushctl(&["delete", "-f", &file.display().to_string()]))?;
        }
        let file = self.lab.dir.join("delete.yaml");
        std::fs::write(&file, block_manifests(&node))?;
        run(&mut self.bulrushctl(&["delete", "-f", &file.display().to_string()]))?;
        run(&mut self.bulrushctl(&["delete", "node", name]))?;
        Ok(())
    }

    /// A node joins.
    pub fn add_node(&mut self) -> Result<Node> {
        let node = self.lab.add_node()?.clone();
        self.declare_node(&node)?;
        self.start_node(&node)?;
        self.wait_node(&node)?;
        Ok(node)
    }

    /// Leaves everything running.
    pub fn keep(mut self) {
        self.lab.keep();
        for (_, process) in std::mem::take(&mut self.processes) {
            process.release();
        }
    }
}

/// Where cargo put the binaries: beside the running test or demo.
pub fn binaries() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let mut dir = exe.parent().context("the test has a folder")?;
    if dir.ends_with("deps") {
        dir = dir.parent().context("deps has a parent")?;
    }
    for name in ["typha", "felix", "confd", "bulrushctl", "loadtest", "probe"] {
        ensure!(dir.join(name).is_file(), "{name} is not built: run `cargo build --workspace` first");
    }
    Ok(dir.into())
}

fn cluster_manifests() -> String {
    "apiVersion: projectcalico.org/v3\nkind: ClusterInformation\nmetadata: {name: default}\nspec: {datastoreReady: true}\n---\n\
     apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: default-ipv4-ippool}\nspec: {cidr: 10.244.0.0/16, natOutgoing: false}\n---\n\
     apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: default}\nspec: {order: 1000000, defaultAction: Deny}\n---\n\
     apiVersion: projectcalico.org/v3\nkind: Profile\nmetadata: {name: kns.default}\nspec:\n  ingress: [{action: Allow}]\n  egress: [{action: Allow}]\n  labelsToApply: {pcns.projectcalico.org/name: default}\n"
        .into()
}

/// The node's block and its affinity, as Calico's IPAM writes them.
pub fn block_manifests(node: &Node) -> String {
    let (name, cidr) = (&node.name, node.cidr());
    let slug = cidr.replace(['.', '/'], "-");
    format!(
        "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {{name: {name}-{slug}}}\n\
         spec: {{state: confirmed, node: {name}, cidr: {cidr}, deleted: \"false\"}}\n---\n\
         apiVersion: projectcalico.org/v3\nkind: IPAMBlock\nmetadata: {{name: {slug}}}\n\
         spec: {{cidr: {cidr}, affinity: \"host:{name}\", allocations: [], unallocated: [], attributes: [], deleted: false}}\n"
    )
}

/// A workload's endpoint, as Calico's CNI plugin writes it.
pub fn endpoint_manifest(workload: &Workload) -> String {
    let Workload { name, node, ip, interface, labels, .. } = workload;
    let mut text = format!(
        "apiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\nmetadata:\n  name: {node}-k8s-{pod}-eth0\n  namespace: default\n  labels:\n    \
         projectcalico.org/namespace: default\n    projectcalico.org/orchestrator: k8s\n",
        pod = name.replace('-', "--"),
    );
    for (label, value) in labels {
        text += &format!("    {label}: \"{value}\"\n");
    }
    text + &format!(
        "spec:\n  orchestrator: k8s\n  node: {node}\n  pod: {name}\n  endpoint: eth0\n  containerID: {name}\n  ipNetworks: [{ip}/32]\n  \
         profiles: [kns.default]\n  interfaceName: {interface}\n"
    )
}
