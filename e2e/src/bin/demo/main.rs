//! `make demo`: the main job end to end, told so that a person can follow it.
//!
//! Here: the shop on three real nodes. `crowd`: 500 simulated nodes beside them.

mod crowd;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use e2e::cluster::{Cluster, Options, Store};
use e2e::flow::Flow;
use e2e::lab;
use e2e::probe::Via;
use e2e::process::wait_for;
use e2e::watch::Monitor;

const PREFIX: &str = "brdemo";

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Datastore {
    /// A folder of manifests (no server to install).
    Directory,
    /// A real etcd.
    Etcd,
}

/// Three nodes, two typhas, a small shop and 500 simulated nodes on one machine.
#[derive(Parser)]
struct Args {
    #[arg(long, value_enum, default_value = "directory")]
    datastore: Datastore,
    /// Real nodes: felix, confd and BIRD in a namespace each.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=20))]
    real: u8,
    /// Simulated nodes beside them.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(10..=5000))]
    simulated: u16,
    /// Leave everything running at the end.
    #[arg(long)]
    keep: bool,
    /// Clear away what an earlier run left, and nothing else.
    #[arg(long)]
    down: bool,
}

/// Where the shop runs, and on which port each part answers.
const SHOP: [(&str, &str, &str); 6] = [
    ("n1", "frontend-1", "frontend"),
    ("n1", "debug", "debug"),
    ("n2", "frontend-2", "frontend"),
    ("n2", "backend-1", "backend"),
    ("n3", "backend-2", "backend"),
    ("n3", "database", "database"),
];
const SHOP_NODES: usize = 3;
const ASKED: [(&str, Via); 5] = [
    ("frontend-1", Via::Tcp(80)),
    ("frontend-2", Via::Tcp(80)),
    ("backend-1", Via::Tcp(8080)),
    ("backend-2", Via::Tcp(8080)),
    ("database", Via::Tcp(5432)),
];
const ASKING: [&str; 7] =
    ["outside", "frontend-1", "frontend-2", "backend-1", "backend-2", "database", "debug"];

const POLICIES: &str = include_str!("shop.yaml");

fn main() -> ExitCode {
    let args = Args::parse();
    let screen = Screen { color: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() };
    match demo(&args, &screen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{} {error:#}", screen.red("demo failed:"));
            ExitCode::FAILURE
        }
    }
}

fn demo(args: &Args, screen: &Screen) -> Result<()> {
    if let Some(reason) = e2e::require::missing(&[
        "ip", "bird", "birdc", "iptables", "ipset", "nft", "ss", "ping", "etcd", "etcdctl",
    ]) {
        anyhow::bail!("this machine can not run it: {reason}");
    }
    if args.down {
        lab::down(PREFIX)?;
        println!("Nothing of the demo is left.");
        return Ok(());
    }
    clean_up_when_interrupted()?;
    let begin = Instant::now();
    let store = match args.datastore {
        Datastore::Directory => Store::Directory,
        Datastore::Etcd => Store::Etcd,
    };
    let mut story = Story {
        screen,
        store,
        real: args.real.into(),
        simulated: args.simulated.into(),
        facts: Vec::new(),
        chapter: 0,
    };
    println!("{}", screen.bold("Bulrush: policy and routes from one datastore to every node's kernel"));
    println!(
        "
     {:<28}one watch per typha
        |            |
     typha-1      typha-2        one gRPC stream per agent
        |  \\      /  |
     n1: felix, confd, BIRD      routes, IP sets, iptables; BGP
     n2: felix, confd, BIRD
     n3: felix, confd, BIRD
     and {} simulated nodes with the agents' client library

   Each box is a network namespace on this machine; nothing leaves it.",
        match store {
            Store::Etcd => "etcd",
            Store::Directory => "folder of manifests",
        },
        story.simulated
    );
    let mut cluster = story.start()?;
    story.shop(&mut cluster)?;
    story.routes(&cluster)?;
    story.restart_felix(&mut cluster)?;
    let crowd = story.crowd(&mut cluster)?;
    story.edit(&cluster, &crowd)?;
    story.lose_a_typha(&mut cluster, &crowd)?;
    story.freeze(&mut cluster, &crowd)?;

    println!("\n{}", screen.bold("Summary"));
    for (what, value) in &story.facts {
        println!("  {} {what:<50} {value}", screen.green("✓"));
    }
    println!("  {} {:<50} {:.1} s", screen.green("✓"), "the whole demo took", begin.elapsed().as_secs_f64());
    if args.keep {
        println!("\n{}", screen.bold("It is still running. Try:"));
        for line in [
            "ip netns exec brdemo-n1 iptables -S cali-FORWARD".to_owned(),
            "ip netns exec brdemo-n1 ip route".to_owned(),
            "ip netns exec brdemo-n1 birdc -s /run/bulrush/brdemo/n1/bird.ctl show protocols".to_owned(),
            format!(
                "ip netns exec brdemo-ctl env {} target/debug/bulrushctl get networkpolicy -A",
                settings(store)
            ),
            "tail -f /run/bulrush/brdemo/felix-n1.log".to_owned(),
            "make demo-down".to_owned(),
        ] {
            println!("  {line}");
        }
        cluster.keep();
    } else {
        drop(cluster);
        ensure!(lab::namespaces(PREFIX)?.is_empty(), "some namespaces are left: make demo-down");
        println!("  {} everything is cleaned up", screen.green("✓"));
    }
    Ok(())
}

/// Ctrl-C or SIGTERM: nothing is to be left behind.
fn clean_up_when_interrupted() -> Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            eprintln!("\ninterrupted: cleaning up");
            if let Err(error) = lab::down(PREFIX) {
                eprintln!("{error:#}: `make demo-down` tries again");
            }
            std::process::exit(130);
        }
    });
    Ok(())
}

fn settings(store: Store) -> &'static str {
    match store {
        Store::Etcd => "DATASTORE_TYPE=etcdv3 ETCD_ENDPOINTS=http://172.30.0.2:2379",
        Store::Directory => "DATASTORE_TYPE=directory BULRUSH_DIRECTORY=/run/bulrush/brdemo/store",
    }
}

struct Story<'a> {
    screen: &'a Screen,
    store: Store,
    /// Nodes.
    real: usize,
    simulated: usize,
    /// What was shown, for the summary.
    facts: Vec<(String, String)>,
    chapter: usize,
}

impl Story<'_> {
    fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        println!("\n{}", self.screen.bold(&format!("{}. {title}", self.chapter)));
    }

    fn fact(&mut self, what: &str, value: impl Into<String>) {
        self.facts.push((what.into(), value.into()));
    }

    fn start(&mut self) -> Result<Cluster> {
        self.chapter(&format!("Start: two typhas, {} nodes, six workloads", self.real));
        let start = Instant::now();
        let mut cluster =
            Cluster::up(PREFIX, Options { store: self.store, nodes: self.real, ..Options::default() })?;
        println!("   control plane and nodes are in sync after {:.1} s", start.elapsed().as_secs_f64());
        for (node, name, app) in SHOP {
            let workload = cluster.add_workload(node, name, &[("app", app)])?;
            println!("   {node}  {name:<11} {:<16} {}", workload.ip, workload.interface);
        }
        // The policies are active on further nodes, too, where something is for them to decide about.
        for node in SHOP_NODES + 1..=self.real {
            cluster.add_workload(&format!("n{node}"), &format!("other-{node}"), &[("app", "other")])?;
        }
        for workload in cluster.lab.workloads() {
            cluster.wait_workload(workload)?;
        }
        cluster.wait_bgp(Duration::from_secs(30))?;
        println!(
            "   every node has BGP routes to the others' blocks after {:.1} s",
            start.elapsed().as_secs_f64()
        );
        Ok(cluster)
    }

    fn shop(&mut self, cluster: &mut Cluster) -> Result<()> {
        self.chapter("Before: no policy, everybody reaches everybody");
        let all: BTreeMap<_, _> = pairs().map(|pair| (pair, true)).collect();
        self.matrix(cluster, &all)?;

        self.chapter("The shop's policies: default deny, a tier, a network set, three services");
        let start = Instant::now();
        for line in cluster.apply(POLICIES)?.lines() {
            println!("   bulrushctl: {line}");
        }
        let expected: BTreeMap<_, _> =
            pairs().map(|pair| (pair.clone(), allowed(&pair.0, &pair.1))).collect();
        self.matrix(cluster, &expected)?;
        let open = expected.values().filter(|open| **open).count();
        self.fact("reachability as the policies say", format!("{open} of {} pairs open", expected.len()));
        println!("   enforced and checked {:.1} s after the write", start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Asks until the answers are as expected, prints them, and fails with the difference otherwise.
    fn matrix(&self, cluster: &Cluster, expected: &BTreeMap<(String, String), bool>) -> Result<()> {
        let mut last = BTreeMap::new();
        let outcome = wait_for("the expected reachability", Duration::from_secs(20), || {
            last = cluster.lab.matrix(&ASKING, &ASKED)?;
            let wrong: Vec<_> =
                expected.iter().filter(|(pair, open)| last.get(*pair) != Some(open)).collect();
            ensure!(wrong.is_empty(), "not as expected: {wrong:?}");
            Ok(())
        });
        print!("   {:<12}", "from \\ to");
        for (to, via) in ASKED {
            let Via::Tcp(port) = via else { continue };
            print!("{:<17}", format!("{to}:{port}"));
        }
        println!();
        for from in ASKING {
            print!("   {from:<12}");
            for (to, _) in ASKED {
                match last.get(&(from.to_owned(), to.to_owned())) {
                    None => print!("{:<17}", "-"),
                    Some(true) => print!("{}", self.screen.green(&format!("{:<17}", "open"))),
                    Some(false) => print!("{}", self.screen.red(&format!("{:<17}", "closed"))),
                }
            }
            println!();
        }
        outcome
    }

    fn routes(&mut self, cluster: &Cluster) -> Result<()> {
        self.chapter("Routes and BGP sessions");
        let node = &cluster.lab.nodes[0];
        println!("   $ ip route                                   (on {})", node.name);
        for line in cluster.lab.sh(&node.netns, "ip route")?.lines() {
            println!("     {line}");
        }
        let mut sessions = 0;
        for node in &cluster.lab.nodes {
            let socket = cluster.lab.dir.join(&node.name).join("bird.ctl");
            let out =
                cluster.lab.sh(&node.netns, &format!("birdc -s {} show protocols", socket.display()))?;
            for line in out.lines().filter(|line| line.contains(" BGP ")) {
                println!("   {}  {line}", node.name);
                sessions += usize::from(line.contains("Established"));
            }
        }
        let want = cluster.lab.nodes.len() * (cluster.lab.nodes.len() - 1);
        ensure!(sessions == want, "{sessions} of {want} sessions are established");
        self.fact("BGP sessions established", format!("{sessions} of {want}"));
        Ok(())
    }

    fn restart_felix(&mut self, cluster: &mut Cluster) -> Result<()> {
        self.chapter("Restart felix under an open TCP connection");
        let node = cluster.lab.nodes[0].clone();
        let (udp, tcp) = flows(cluster);
        let watched = watch(cluster)?;
        cluster.process(&format!("felix-{}", node.name))?.kill();
        cluster.start_felix(&node)?;
        cluster.wait_node(&node)?;
        let (udp, tcp) = (udp.finish()?, tcp.finish()?);
        println!("   felix on {} was killed with -9 and is ready again", node.name);
        println!(
            "   UDP {} sent, {} lost; TCP {} asked, {} lost, longest wait {} ms",
            udp.sent,
            udp.lost(),
            tcp.sent,
            tcp.lost(),
            tcp.gap.as_millis()
        );
        ensure!(udp.lost() == 0 && tcp.lost() == 0, "an established flow lost packets");
        let gone: Vec<_> = watched.iter().flat_map(Monitor::deletions).collect();
        ensure!(gone.is_empty(), "withdrawn from a kernel:\n{}", gone.join("\n"));
        self.fact("felix restarted under open connections", "0 packets lost, 0 rules withdrawn");
        Ok(())
    }
}

/// Flows that the policies allow, across nodes.
fn flows(cluster: &Cluster) -> (Flow, Flow) {
    (
        Flow::udp(&cluster.lab, "frontend-1", "backend-1", 53),
        Flow::tcp(&cluster.lab, "frontend-1", "backend-1", 8080),
    )
}

fn watch(cluster: &Cluster) -> Result<Vec<Monitor>> {
    let mut all = Vec::new();
    for node in &cluster.lab.nodes {
        all.push(Monitor::routes(&cluster.lab, &node.netns)?);
        all.push(Monitor::rules(&cluster.lab, &node.netns)?);
    }
    Ok(all)
}

fn pairs() -> impl Iterator<Item = (String, String)> {
    ASKING.into_iter().flat_map(|from| {
        ASKED
            .into_iter()
            .filter(move |(to, _)| *to != from)
            .map(move |(to, _)| (from.to_owned(), to.to_owned()))
    })
}

/// What `shop.yaml` means.
fn allowed(from: &str, to: &str) -> bool {
    let app = |name: &str| name.split('-').next().unwrap_or_default().to_owned();
    match app(to).as_str() {
        "frontend" => ["outside", "debug"].contains(&from),
        "backend" => app(from) == "frontend",
        "database" => app(from) == "backend",
        _ => false,
    }
}

struct Screen {
    color: bool,
}

impl Screen {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
    fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }
    fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }
    fn red(&self, text: &str) -> String {
        self.paint("31", text)
    }
}
