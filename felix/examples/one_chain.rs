//! What one changed chain costs in a table of 20,000 rules, beside reading the table and writing the chain with the
//! programs: `cargo run -p felix --example one_chain -- [nft|legacy] [rules]`, as root; in a network namespace of its own.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use felix::commands::{Commands, Processes};
use felix::iptables::chains::Owner;
use felix::iptables::tables::Tables;
use felix::iptables::{Backend, Chain, IpVersion, Rule, TableName};
use nix::sched::{CloneFlags, unshare};
use syncer_common::model::PolicyKey;

const RULES_OF_A_CHAIN: usize = 50;
const ROUNDS: u16 = 20;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let backend = match arguments.next().as_deref() {
        Some("legacy") => Backend::Legacy,
        _ => Backend::Nft,
    };
    let rules: usize = arguments.next().map_or(Ok(20_000), |text| text.parse())?;
    unshare(CloneFlags::CLONE_NEWNET).context("root is needed, for a network namespace")?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(backend, rules))
}

async fn measure(backend: Backend, rules: usize) -> Result<()> {
    let commands: Arc<dyn Commands> = Arc::new(Processes::default());
    let mut tables = Tables::open(&commands, backend, &[IpVersion::V4]).await?;
    let chains = rules / RULES_OF_A_CHAIN;
    for number in 0..chains {
        offer(&mut tables, number, 0)?;
    }
    let started = Instant::now();
    apply(&mut tables).await?;
    println!("{}: {rules} rules loaded in {:.0?}", backend.name(), started.elapsed());

    let mut ours = Vec::new();
    for round in 1..=ROUNDS {
        offer(&mut tables, usize::from(round) % chains, round)?;
        let started = Instant::now();
        apply(&mut tables).await?;
        ours.push(started.elapsed());
    }
    report("one chain changed and verified", ours);

    let (mut whole, mut written) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let text =
            format!("*filter\n:bench - -\n-A bench -p tcp --dport {} -j ACCEPT\nCOMMIT\n", 1000 + round);
        let started = Instant::now();
        run(&format!("iptables-{}-save", backend.name()), &["-t", "filter"], "")?;
        let read = Instant::now();
        run(&format!("iptables-{}-restore", backend.name()), &["--noflush"], &text)?;
        whole.push(started.elapsed());
        written.push(read.elapsed());
    }
    report("iptables-save and iptables-restore of one chain", whole);
    report("  of that iptables-restore, which nobody can do without", written);
    Ok(())
}

fn offer(tables: &mut Tables, number: usize, round: u16) -> Result<()> {
    let rule = |n: usize| Rule {
        matches: format!("-p tcp --dport {}", 1000 + n + usize::from(round)),
        action: "--jump ACCEPT".into(),
        ..Rule::default()
    };
    let rules = (0..RULES_OF_A_CHAIN).map(rule).collect();
    let name = format!("p{number}");
    let chain = Chain { name: format!("cali-pi-{name}"), rules };
    let key = PolicyKey { kind: "GlobalNetworkPolicy".into(), namespace: String::new(), name };
    let table = tables.get_mut(IpVersion::V4, TableName::Filter).context("the table is there")?;
    table.offer(Owner::Policy(key), vec![chain], true);
    Ok(())
}

async fn apply(tables: &mut Tables) -> Result<()> {
    let pass = tables.apply().await;
    ensure!(pass.errors.is_empty(), "{:?}", pass.errors);
    Ok(())
}

fn run(program: &str, arguments: &[&str], stdin: &str) -> Result<()> {
    use std::io::Write as _;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {program}"))?;
    child.stdin.take().context("its input is piped")?.write_all(stdin.as_bytes())?;
    let out = child.wait_with_output()?;
    ensure!(out.status.success(), "{program} failed");
    Ok(())
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!("{what}: median {:.1?}, worst {:.1?}", times[times.len() / 2], times[times.len() - 1]);
}
