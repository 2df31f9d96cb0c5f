//! `loadtest`: simulates the nodes of a cluster against real typhas, and checks everything that they receive.
//!
//! It uses the agents' own client library, so what it measures is what a fleet would get.

mod baseline;
mod bench;
mod cluster;
mod compare;
mod fleet;
mod follow;
mod html;
mod incumbent;
mod kubernetes;
mod latency;
mod limits;
mod local;
mod node;
mod phase;
mod real;
mod relay;
mod report;
mod run;
mod sampler;
mod shape;
mod source;
mod writers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use syncer_common::backend::config::{KubernetesConfig, StoreConfig};

use node::Fault;
use phase::Phase;
use report::Report;
use run::{Plan, Servers};
use shape::Shape;

const EXAMPLES: &str = "\
Examples:
  loadtest run --local 2 --preset 100
      A hundred nodes, two typhas and an etcd, all on this machine and gone afterwards.
  loadtest run --local 3 --preset 500 --phase churn:seconds=60,rate=100 --phase rolling --phase storm --report out
      Pods come and go, then the typhas are restarted one by one, then all nodes join anew.
  loadtest run --local 2 --real 8 --preset 1000 --phase churn:seconds=60,rate=50 --phase rolling
      Eight of the nodes are felix, confd and BIRD, each in a network of its own (as root): their kernels are checked.
  loadtest run --typha 10.0.0.5:5473,10.0.0.6:5473 --etcd http://10.0.0.9:2379 --preset 1000
      Against typhas that serve an otherwise empty etcd; what was written is removed afterwards.
  loadtest run --typha 10.0.0.5:5473 --kubeconfig admin.conf --preset 100
      The same in Kubernetes: nodes, namespaces and running pods as such, the rest as Calico's custom resources. An API
      server (with its etcd and Calico's CRDs) is enough: there need be no kubelet, scheduler or controller.
  loadtest run --typha 10.0.0.5:5473 --nodes 200 --phase idle:seconds=60
      Follows what is there, without writing.
  loadtest follow --typha 10.0.0.5:5473 --nodes 500 --watch default-deny
      Nodes that stay until interrupted, and a line of JSON whenever something changed: for scripts.
  loadtest run --target calico-typha=10.0.0.7:5473 --etcd http://10.0.0.9:2379 --preset 500 --pid 4711 --report calico
      The same work and the same checks with Calico's own Typha, by its protocol, to compare the two.
  loadtest compare before after
      Two runs beside one another.

Phases, each with what it is without more words:
  idle:seconds=10            nothing changes
  churn:seconds=20,rate=50   pods start, end and change labels (changes per second)
  rollout:count=10           new versions of policies that concern every node
  namespaces:count=1         a namespace goes, with everything in it
  nodes:count=10             nodes leave with their pods, and come back empty
  storm                      all nodes die and join anew at once
  reconnect                  all streams end, nothing has changed when the nodes are back: bytes and time of that
  cut:seconds=0              the network cuts all streams at once, and lets nobody through for so long
  failover:seconds=5         the network cuts off each replica in turn; its nodes resume on the others
  partition:seconds=40       the network drops what passes to and from each replica in turn, and tells nobody; simulated
                             nodes give a silent server up after 20 to 30 s
  stall:percent=10,seconds=20,rate=50
                             a part of the nodes stops reading, under churn
  slow:percent=10,seconds=20,rate=50,pause=500
                             a part of the nodes reads one event every so many milliseconds, under churn
  rolling:rate=50            the typhas are restarted one by one, under churn (--local)
  freeze:seconds=10          the datastore stops answering (--local)
  compact:seconds=5,rate=50  it forgets its history while the typhas stand still (--local)
  day:seconds=48             24 single changes, each with a compaction (--local)
After each of them every node has to hold exactly what the datastore holds.

Exit status: 0 passed, 1 a node ended with something else or a rule was broken, 2 wrong usage.";

/// Simulates nodes against real typhas, checks everything that they receive, and measures.
#[derive(Parser)]
#[command(name = "loadtest", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs phases, and reports.
    #[command(after_help = EXAMPLES)]
    Run(Box<RunArgs>),
    /// Simulates nodes that stay until interrupted, and says what they hold: a line of JSON per change.
    Follow(FollowArgs),
    /// Runs the set of docs/performance.md and writes its numbers there.
    #[command(hide = true)]
    Bench(BenchArgs),
    /// A server of a baseline; started by `run --baseline`.
    #[command(hide = true)]
    BaselineServer { kind: baseline::Kind, size: usize, messages: u64, apart_micros: u64 },
    /// Shows two runs beside one another: folders or report.json files.
    Compare { a: PathBuf, b: PathBuf },
}

#[derive(Args)]
struct RunArgs {
    /// Start an etcd and so many typhas for this run, on loopback.
    #[arg(long, value_name = "TYPHAS", value_parser = clap::value_parser!(u8).range(1..=9), conflicts_with_all = ["typha", "target"], required_unless_present_any = ["typha", "target"])]
    local: Option<u8>,
    /// Addresses of running typhas, comma-separated (host:port).
    #[arg(long, env = "LOADTEST_TYPHAADDR", value_delimiter = ',')]
    typha: Vec<String>,
    /// Servers by what they speak: typha=ADDR[,ADDR…] or calico-typha=ADDR[,ADDR…], which is Calico's own Typha.
    #[arg(long, value_name = "KIND=ADDR", conflicts_with = "typha")]
    target: Option<Target>,
    /// Process of a server on this machine, to measure its CPU and memory; may be given several times.
    #[arg(long = "pid", value_name = "PID", conflicts_with = "local")]
    pids: Vec<u32>,
    /// The etcd that those typhas follow: it has to be empty.
    #[arg(long, value_name = "URL", conflicts_with_all = ["local", "directory", "kubeconfig"])]
    etcd: Option<String>,
    /// Kubeconfig file of the API server that those typhas follow: it has to be empty but for what Kubernetes makes.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["local", "directory"])]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, requires = "kubeconfig")]
    context: Option<String>,
    /// The folder that those typhas follow: it has to be empty.
    #[arg(long, conflicts_with = "local")]
    directory: Option<PathBuf>,
    /// Size of the synthetic cluster: 100, 500, 1000 or 5000 nodes.
    #[arg(long, default_value = "100")]
    preset: Shape,
    /// Sizes from a YAML file in place of the preset's: nodes, pods, namespaces, policies, global_policies,
    /// network_sets; those left out are the preset's.
    #[arg(long, value_name = "FILE")]
    shape: Option<PathBuf>,
    /// So many of the cluster's nodes are real: felix and, where BIRD is installed, confd, each node in a network namespace
    /// (root only). After each phase they have to be in step, and their kernels right.
    #[arg(long, value_name = "NODES", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=100), requires = "local")]
    real: u8,
    /// How many nodes to simulate [default: all of the cluster that are not real].
    #[arg(long)]
    nodes: Option<usize>,
    /// Pods, in place of the preset's.
    #[arg(long)]
    pods: Option<usize>,
    /// What is to happen, in order; may be given several times [default: churn, rollout, reconnect].
    #[arg(long = "phase", value_name = "PHASE")]
    phases: Vec<Phase>,
    /// Two runs with one seed write the same things in the same order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Percent of the nodes that read every value as felix does; the others hash what they receive.
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    sample: f64,
    /// Measure afterwards what the traffic of the last churn costs as raw TCP and with a stock tonic service.
    #[arg(long)]
    baseline: bool,
    /// How long nodes may take to hold what they should after a phase, in seconds.
    #[arg(long, default_value_t = 60)]
    patience: u64,
    /// Folder for report.json, report.html and, with --local, the servers' logs.
    #[arg(long, default_value = "loadtest-report")]
    report: PathBuf,
    /// Plants a fault into the first node, to see that it is found.
    #[arg(long, hide = true)]
    plant: Option<Fault>,
    /// Stops the felix of the first real node, to see that it is found.
    #[arg(long, hide = true, requires = "real")]
    stop_felix: bool,
}

#[derive(Clone)]
struct Target {
    calico: bool,
    addresses: Vec<String>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (kind, addresses) = text.split_once('=').unwrap_or((text, ""));
        let calico = match kind {
            "typha" => false,
            "calico-typha" => true,
            other => return Err(format!("there is no kind {other:?}: typha=ADDR or calico-typha=ADDR")),
        };
        let addresses: Vec<String> = addresses.split(',').map(|address| address.trim().to_owned()).collect();
        match addresses.iter().find(|address| !address.contains(':')) {
            Some(address) => Err(format!("{address:?} is no host:port")),
            None => Ok(Target { calico, addresses }),
        }
    }
}

#[derive(Args)]
struct BenchArgs {
    /// What `cargo bench --bench fanout` printed.
    #[arg(long)]
    fanout: PathBuf,
    /// What `demo --datastore etcd --real 8 --simulated 1000` printed.
    #[arg(long)]
    demo: Option<PathBuf>,
    /// The file whose table is written anew.
    #[arg(long, default_value = "docs/performance.md")]
    write: PathBuf,
    /// Folder for the runs' reports.
    #[arg(long, default_value = "target/bench")]
    report: PathBuf,
    /// Stalls of 10 minutes, and 5,000 nodes.
    #[arg(long)]
    long: bool,
}

#[derive(Args)]
struct FollowArgs {
    /// Addresses of running typhas, comma-separated (host:port).
    #[arg(long, env = "LOADTEST_TYPHAADDR", value_delimiter = ',', required = true)]
    typha: Vec<String>,
    /// How many nodes to simulate.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// What their names begin with; a number follows.
    #[arg(long, default_value = "sim-")]
    prefix: String,
    /// Say when each node received the latest value of the entry whose key (/calico/v1/…) contains this.
    #[arg(long)]
    watch: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Run(args) => run(*args),
        Command::Follow(args) => follow(args),
        Command::Bench(args) => {
            bench::bench(&args.fanout, args.demo.as_deref(), &args.write, &args.report, args.long)
                .map(|()| true)
        }
        Command::BaselineServer { kind, size, messages, apart_micros } => {
            baseline_server(kind, size, messages, Duration::from_micros(apart_micros))
        }
        Command::Compare { a, b } => compare(&a, &b),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn follow(args: FollowArgs) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(follow::follow(args.typha, args.nodes, &args.prefix, args.watch))
}

fn baseline_server(kind: baseline::Kind, size: usize, messages: u64, apart: Duration) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(baseline::serve(kind, size, messages, apart))?;
    Ok(true)
}

fn compare(a: &std::path::Path, b: &std::path::Path) -> Result<bool> {
    print!("{}", compare::table(&Report::read(a)?, &Report::read(b)?));
    Ok(true)
}

fn run(args: RunArgs) -> Result<bool> {
    let mut shape = match &args.shape {
        Some(file) => args.preset.changed_by(file)?,
        None => args.preset,
    };
    shape.pods = args.pods.unwrap_or(shape.pods);
    let servers = match args.local {
        Some(typhas) => Servers::Local(typhas.into()),
        None => {
            let kubernetes = args.kubeconfig.map(|file| KubernetesConfig {
                kubeconfig: Some(file),
                context: args.context,
                ..KubernetesConfig::default()
            });
            let store = (args.etcd.map(|endpoint| StoreConfig::etcd([endpoint])))
                .or(args.directory.map(StoreConfig::directory))
                .or(kubernetes.map(StoreConfig::Kubernetes));
            let given = Target { calico: false, addresses: args.typha };
            let Target { calico, addresses } = args.target.unwrap_or(given);
            Servers::Given { typhas: addresses, calico, pids: args.pids, store }
        }
    };
    let follows = matches!(&servers, Servers::Given { store: None, .. });
    if follows {
        // Their names are all that the cluster is for.
        shape.nodes = shape.nodes.max(args.nodes.unwrap_or(0));
    }
    let phases = match args.phases {
        phases if !phases.is_empty() => phases,
        _ if follows => vec![Phase::Idle { seconds: 10 }, Phase::Reconnect],
        _ => vec![Phase::Churn { seconds: 20, rate: 50.0 }, Phase::Rollout { count: 10 }, Phase::Reconnect],
    };
    let real = usize::from(args.real);
    let plan = Plan {
        servers,
        shape,
        nodes: args.nodes.unwrap_or(shape.nodes.saturating_sub(real)),
        real,
        stop_felix: args.stop_felix,
        phases,
        seed: args.seed,
        patience: Duration::from_secs(args.patience),
        sample: args.sample,
        baseline: args.baseline,
        fault: args.plant,
        logs: args.report.join("logs"),
        command: std::env::args().collect::<Vec<_>>().join(" "),
    };
    plan.check()?;
    if real > 0 {
        real::installed()?;
        real::netns::leave()?;
    }
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let (own, nodes) = (runtime()?, runtime()?);
    let report = own.block_on(async {
        // Servers of the run's own end when it is dropped, which a signal by itself would not do.
        tokio::select! {
            report = run::run(plan, nodes.handle().clone()) => report,
            () = follow::interrupted() => Err(anyhow::anyhow!(
                "interrupted: what was written to a datastore of yours is still there (keys under /calico/; in Kubernetes \
                 nodes node-*, namespaces team-* and Calico's resources)"
            )),
        }
    })?;
    nodes.shutdown_background();
    print!("{}", report.table());
    let folder = &args.report;
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let write = |name: &str, content: String| {
        let file = folder.join(name);
        std::fs::write(&file, content).with_context(|| format!("writing {}", file.display()))
    };
    write("report.json", serde_json::to_string_pretty(&report)?)?;
    write("report.html", html::page(&report))?;
    println!("Report: {0}/report.html, {0}/report.json", folder.display());
    Ok(report.failures.is_empty())
}
