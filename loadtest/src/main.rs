//! `loadtest`: opens many agent streams to real typhas and checks that all end up with the same state.
//!
//! It uses the agents' own client library, so what it measures is what a fleet would get. It writes nothing: the
//! datastore and its changes are the caller's.

mod node;

use std::time::{Duration, Instant};

use clap::Parser;
use daemon::CancellationToken;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use typha_client::ClientConfig;

use node::Node;

/// Simulated nodes against real typhas.
#[derive(Parser)]
#[command(name = "loadtest", version)]
struct Args {
    /// Addresses of the typhas, comma-separated (host:port).
    #[arg(long, env = "LOADTEST_TYPHAADDR", value_delimiter = ',', required = true)]
    typha: Vec<String>,
    /// How many nodes to simulate.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=9000))]
    nodes: u32,
    /// How long to follow changes after all nodes are in sync, in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How long all nodes may take to get in sync, in seconds.
    #[arg(long, default_value_t = 60)]
    patience: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let cancel = CancellationToken::new();
    let (count, mut counted) = watch::channel(0u32);
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for i in 0..args.nodes {
        let config = ClientConfig::new(
            args.typha.clone(),
            format!("loadtest-{i}"),
            "felix",
            concat!("bulrush-loadtest ", env!("CARGO_PKG_VERSION")),
        );
        tasks.spawn(follow(config, count.clone(), cancel.clone()));
    }
    let patience = Duration::from_secs(args.patience);
    let all = counted.wait_for(|in_sync| *in_sync == args.nodes);
    let in_time = matches!(tokio::time::timeout(patience, all).await, Ok(Ok(_)));
    let took = start.elapsed();
    if in_time {
        println!("{} nodes in sync after {:.2} s", args.nodes, took.as_secs_f64());
        tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    }
    cancel.cancel();
    let mut nodes = Vec::new();
    while let Some(node) = tasks.join_next().await {
        nodes.push(node?);
    }
    report(&nodes)?;
    anyhow::ensure!(in_time, "not all nodes were in sync within {patience:?}: are the typhas ready?");
    Ok(())
}

async fn follow(config: ClientConfig, in_sync: watch::Sender<u32>, cancel: CancellationToken) -> Node {
    let (events, mut received) = mpsc::channel(64);
    let (_acks, programmed) = watch::channel(None);
    let mut node = Node::default();
    let client = typha_client::run(config, events, programmed, cancel);
    let consumer = async {
        while let Some(event) = received.recv().await {
            let before = node.in_sync;
            node.on_event(event);
            if node.in_sync && !before {
                in_sync.send_modify(|count| *count += 1);
            }
        }
    };
    tokio::join!(client, consumer);
    node
}

fn report(nodes: &[Node]) -> anyhow::Result<()> {
    let updates: u64 = nodes.iter().map(|node| node.updates).sum();
    let reconnects: u64 = nodes.iter().map(|node| node.reconnects).sum();
    let in_sync: Vec<_> = nodes.iter().filter(|node| node.in_sync).collect();
    println!(
        "{} of {} nodes in sync, {updates} updates, {reconnects} disconnects",
        in_sync.len(),
        nodes.len()
    );
    let mistakes: Vec<_> = nodes.iter().flat_map(|node| &node.mistakes).collect();
    if let Some(first) = mistakes.first() {
        anyhow::bail!("{} mistakes in what the nodes received; the first: {first}", mistakes.len());
    }
    if let Some(first) = in_sync.first() {
        let same =
            in_sync.iter().filter(|n| (n.digest(), n.entries()) == (first.digest(), first.entries())).count();
        println!("{same} of {} hold the same {} entries", in_sync.len(), first.entries());
        anyhow::ensure!(
            same == in_sync.len(),
            "nodes ended with different states: was the datastore still changing?"
        );
    }
    Ok(())
}
