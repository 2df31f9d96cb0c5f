//! What many local workloads cost from empty, at a restart, and what one more does to the others:
//! `cargo run --example workloads -- [workloads] [nft|legacy]`, as root; in a network namespace of its own.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use daemon::{CancellationToken, Health};
use felix::commands::Processes;
use felix::dataplane::event_loop::Fixed;
use felix::dataplane::status::StatusFiles;
use felix::dataplane::{Batch, Dataplane};
use felix::iptables::{Backend, IpVersion};
use felix_calc::Graph;
use nix::sched::{CloneFlags, unshare};
use syncer_common::model::{Key, PolicyKey, Update, Value, WorkloadEndpointKey, values};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use typha_client::CutId;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let count: u32 = words.next().map_or(Ok(500), |text| text.parse())?;
    let backend = if words.next().as_deref() == Some("legacy") { Backend::Legacy } else { Backend::Nft };
    unshare(CloneFlags::CLONE_NEWNET).context("root is needed, for a network namespace")?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(count, backend))
}

async fn measure(count: u32, backend: Backend) -> Result<()> {
    let mut lines = String::new();
    for n in 0..=count {
        lines += &format!(
            "link add cali{n} type veth peer name far{n}\nlink set far{n} up\nlink set cali{n} up\n"
        );
    }
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("ip")?;
    ip.stdin.take().context("a pipe")?.write_all(lines.as_bytes())?;
    ensure!(ip.wait()?.success(), "the interfaces could not be made");

    let folder = tempfile::tempdir()?;
    let mut all: Vec<Update> = shared();
    all.extend((0..count).map(endpoint));
    let mut felix = Felix::start(folder.path(), backend).await?;
    let took = felix.program(all.clone()).await?;
    println!("{count} workloads from empty: {took:.1?}");
    felix.stop().await?;
    let mut felix = Felix::start(folder.path(), backend).await?;
    let took = felix.program(all).await?;
    println!("a restart: {took:.1?}");
    let took = felix.program(vec![endpoint(count)]).await?;
    println!("one more: {took:.1?}");
    let Update { key, .. } = endpoint(count);
    let took = felix.program(vec![Update::delete(key)]).await?;
    println!("it goes: {took:.1?}");
    let before = processor_time()?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let used = processor_time()? - before;
    println!("at rest: {:.1} % of a core", used.as_secs_f64() / 0.15);
    felix.stop().await
}

/// Of this process and the programs that it ran.
fn processor_time() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = text.rsplit(')').next().context("a name")?.split_whitespace().collect();
    let ticks = fields.get(11..15).context("times")?.iter().map(|ticks| ticks.parse::<u64>());
    Ok(Duration::from_millis(ticks.sum::<Result<u64, _>>()? * 10))
}

/// A profile, and ten policies that let some workloads in to others.
fn shared() -> Vec<Update> {
    let allow = || vec![values::Rule { action: "allow".into(), ..Default::default() }];
    let rules = values::ProfileRules { inbound_rules: allow(), outbound_rules: allow() };
    let mut all = vec![Update::set(Key::ProfileRules { name: "open".into() }, Value::ProfileRules(rules))];
    for n in 0..10 {
        let key =
            PolicyKey { kind: "GlobalNetworkPolicy".into(), namespace: "".into(), name: format!("p{n}") };
        let side =
            values::EntityRule { selector: format!("app == 'a{}'", (n + 1) % 10), ..Default::default() };
        let rule = values::Rule { action: "allow".into(), src: Some(side), ..Default::default() };
        let policy = values::Policy {
            tier: "default".into(),
            selector: format!("app == 'a{n}'"),
            inbound_rules: vec![rule],
            types: vec!["ingress".into()],
            ..Default::default()
        };
        all.push(Update::set(Key::Policy(key), Value::Policy(policy)));
    }
    all
}

fn endpoint(n: u32) -> Update {
    let key = WorkloadEndpointKey {
        host: "n1".into(),
        orchestrator: "k8s".into(),
        workload: format!("default/w{n}"),
        endpoint: "eth0".into(),
    };
    let value = values::WorkloadEndpoint {
        state: "active".into(),
        name: format!("cali{n}"),
        mac: "02:00:00:00:00:01".into(),
        profile_ids: vec!["open".into()],
        ipv4_nets: vec![format!("10.65.{}.{}/32", n / 250, n % 250 + 1)],
        ipv6_nets: vec![format!("fd65::{:x}/128", n + 1)],
        labels: BTreeMap::from([("app".to_owned(), format!("a{}", n % 10))]),
        ..Default::default()
    };
    Update::set(Key::WorkloadEndpoint(key), Value::WorkloadEndpoint(value))
}

struct Felix {
    graph: Graph,
    seq: u64,
    batches: mpsc::Sender<Batch>,
    acks: watch::Receiver<Option<CutId>>,
    cancel: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Felix {
    async fn start(folder: &std::path::Path, backend: Backend) -> Result<Felix> {
        let dataplane = Dataplane::open(Fixed {
            commands: Arc::new(Processes { environment: Vec::new() }),
            backend,
            versions: IpVersion::ALL.to_vec(),
            local: BTreeMap::new(),
            status: StatusFiles::new(folder),
        })
        .await?;
        let (batches, batches_in) = mpsc::channel(1);
        let (acks_out, acks) = watch::channel(None);
        let cancel = CancellationToken::new();
        let reporter = Health::new().register("dataplane", None);
        let task = tokio::spawn(dataplane.run(batches_in, acks_out, reporter, cancel.clone()));
        Ok(Felix { graph: Graph::new("n1"), seq: 0, batches, acks, cancel, task })
    }

    /// How long it takes until this is in the kernel, the calculation included.
    async fn program(&mut self, updates: Vec<Update>) -> Result<Duration> {
        let started = Instant::now();
        updates.into_iter().for_each(|update| self.graph.on_update(update));
        self.graph.on_in_sync();
        self.seq += 1;
        let cut = CutId { epoch: "e".into(), seq: self.seq };
        let batch = Batch { outputs: self.graph.flush(), cut: Some(cut.clone()), arrived: started };
        self.batches.send(batch).await.context("the dataplane ended")?;
        self.acks.wait_for(|ack| ack.as_ref() == Some(&cut)).await?;
        Ok(started.elapsed())
    }

    async fn stop(self) -> Result<()> {
        self.cancel.cancel();
        self.task.await?
    }
}
