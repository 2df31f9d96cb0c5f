//! The real nodes among the simulated ones: a policy edit everywhere, a typha lost, the datastore frozen.
//!
//! A simulated node is a stream with the agents' own client library that checks what it receives, and has no kernel.
//! So what is said of kernels is measured on the real nodes, by `nft monitor`, and what is said of receipt on the
//! simulated ones; both count from the start of the command.

use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::cluster::Cluster;
use e2e::fleet::{self, Fleet, Stand};
use e2e::flow::Flow;
use e2e::process::{run, wait_for};
use e2e::watch::Monitor;

use super::{POLICIES, Story, flows, watch};

const EDITS: usize = 20;
const FROZEN: Duration = Duration::from_secs(8);
/// The policy that is edited, and what is replaced in it.
const POLICY: &str = "blocked-networks";
const NET: &str = "192.0.2.0/24";

pub struct Crowd {
    fleet: Fleet,
    /// Sent to a node that holds nothing.
    snapshot_bytes: f64,
}

/// What the replicas count.
#[derive(Clone, Copy, Default)]
struct Served {
    bytes: f64,
    delta: f64,
    digest: f64,
    snapshot: f64,
}

impl Served {
    fn of(cluster: &Cluster, replicas: &[usize]) -> Result<Served> {
        let mut served = Served::default();
        for i in replicas {
            let resumes = |verdict: &str| cluster.metric(*i, "typha_resumes_total", verdict);
            served.bytes += cluster.metric(*i, "typha_sent_bytes_total", "")?;
            served.delta += resumes("\"delta\"")?;
            served.digest += resumes("\"digest\"")?;
            served.snapshot += resumes("\"snapshot\"")?;
        }
        Ok(served)
    }

    fn since(self, before: Served) -> Served {
        Served {
            bytes: self.bytes - before.bytes,
            delta: self.delta - before.delta,
            digest: self.digest - before.digest,
            snapshot: self.snapshot - before.snapshot,
        }
    }
}

/// The value that so many of a hundred do not exceed.
fn percentile(all: &[Duration], percent: usize) -> Duration {
    let mut sorted = all.to_vec();
    sorted.sort_unstable();
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

impl Story<'_> {
    pub fn crowd(&mut self, cluster: &mut Cluster) -> Result<Crowd> {
        let simulated = self.simulated;
        self.chapter(&format!("{simulated} simulated nodes join the {} real ones", self.real));
        let start = Instant::now();
        cluster.apply(&fleet::manifests(simulated))?;
        println!(
            "   bulrushctl applied {simulated} Nodes and {simulated} endpoints in {:.1} s",
            start.elapsed().as_secs_f64()
        );
        let (before, joined) = (Served::of(cluster, &[0, 1])?, Instant::now());
        let fleet = Fleet::start(cluster, simulated, POLICY)?;
        let stand = wait_for("all simulated nodes to hold the same", Duration::from_secs(60), || {
            cluster.check("loadtest")?;
            let stand = fleet.stand()?;
            ensure!((stand.in_sync, stand.alike) == (simulated, simulated), "{stand:?}");
            // Each object is an entry at least: less would be an early state.
            ensure!(stand.entries > 2 * simulated, "{} entries", stand.entries);
            Ok(stand)
        })?;
        let took = joined.elapsed();
        let served = Served::of(cluster, &[0, 1])?.since(before);
        let snapshot_bytes = served.bytes / simulated as f64;
        println!(
            "   {simulated} of {simulated} in sync after {:.1} s, all with the same {} entries; {:.0} KB sent to each",
            took.as_secs_f64(),
            stand.entries,
            snapshot_bytes / 1e3
        );
        let everyone = simulated + cluster.lab.nodes.len();
        self.fact("nodes in sync", format!("{everyone} of {everyone}"));
        Ok(Crowd { fleet, snapshot_bytes })
    }

    pub fn edit(&mut self, cluster: &Cluster, crowd: &Crowd) -> Result<()> {
        let everyone = self.simulated + self.real;
        self.chapter(&format!("Edit a policy that is active on all {everyone} nodes, {EDITS} times"));
        let document = POLICIES
            .split("---\n")
            .find(|text| text.contains(&format!("name: {POLICY}")) && text.contains(NET))
            .context("the policy that is to be edited")?;
        let monitors = self.kernels(cluster)?;
        let (mut received, mut programmed) = (Vec::new(), Vec::new());
        for edit in 1..=EDITS {
            let net = format!("198.18.{edit}.0/24");
            let before = crowd.fleet.stand()?.watched.map(|watched| watched.value);
            let (start, began) = (Instant::now(), SystemTime::now());
            cluster.apply(&document.replace(NET, &net))?;
            let deadline = start + Duration::from_secs(20);
            let (stand, kernels) = loop {
                let stand = crowd.fleet.stand()?;
                let kernels: Vec<Duration> = monitors
                    .iter()
                    .filter_map(|(_, monitor)| Some(monitor.first(&net)?.duration_since(start)))
                    .collect();
                let receipts = receipts(&stand, before.as_deref(), began);
                let applied = receipts.len() + kernels.len();
                let whole = applied == everyone;
                let all = |seen: &[Duration], new: &[Duration]| percentile(&[seen, new].concat(), 99);
                let line = format!(
                    "   edit {edit:>2}: {applied} of {everyone} applied; so far p99 in kernel {} ms ({} real nodes), \
                     p99 received {} ms ({} simulated)",
                    all(&programmed, &kernels).as_millis(),
                    self.real,
                    all(&received, &receipts).as_millis(),
                    self.simulated
                );
                if self.screen.color {
                    print!("\r\x1b[K{line}");
                    std::io::stdout().flush()?;
                } else if whole && (edit == 1 || edit % 5 == 0) {
                    println!("{line}");
                }
                if whole {
                    break (receipts, kernels);
                }
                ensure!(Instant::now() < deadline, "{line}, and no more within 20 s");
                std::thread::sleep(Duration::from_millis(10));
            };
            received.extend(stand);
            programmed.extend(kernels);
        }
        if self.screen.color {
            println!();
        }
        println!("   counted from the start of `bulrushctl apply`, which takes a part of it");
        // The agents' own word, asked of both typhas.
        let typhas = Cluster::servers();
        let target = format!("globalnetworkpolicy/{POLICY}");
        let said = run(&mut cluster.bulrushctl(&["wait", &target, "--typha", &typhas, "--timeout", "20"]))?;
        println!("   bulrushctl wait: {}", said.trim());
        ensure!(said.contains(&format!("{everyone} of {everyone} node(s)")), "not everywhere: {said}");
        self.fact(
            "a policy edit, p99 from command to kernel",
            format!(
                "{} ms ({} real nodes, {EDITS} edits)",
                percentile(&programmed, 99).as_millis(),
                self.real
            ),
        );
        self.fact(
            "the same, p99 from command to receipt",
            format!("{} ms ({} simulated nodes)", percentile(&received, 99).as_millis(), self.simulated),
        );
        Ok(())
    }

    fn kernels(&self, cluster: &Cluster) -> Result<Vec<(String, Monitor)>> {
        let nodes = cluster.lab.nodes.iter();
        nodes.map(|node| Ok((node.name.clone(), Monitor::rules(&cluster.lab, &node.netns)?))).collect()
    }

    pub fn lose_a_typha(&mut self, cluster: &mut Cluster, crowd: &Crowd) -> Result<()> {
        self.chapter("Kill the typha that most streams use");
        let streams = cluster.connections()?;
        let victim = usize::from(streams[1] > streams[0]);
        let other = 1 - victim;
        println!(
            "   typha-1 has {} streams, typha-2 has {}; kill -9 typha-{}",
            streams[0],
            streams[1],
            victim + 1
        );
        let quiet = Quiet::begin(cluster, crowd)?;
        let before = Served::of(cluster, &[other])?;
        cluster.process(&format!("typha-{}", victim + 1))?.kill();
        let start = Instant::now();
        wait_for("all streams on the other typha", Duration::from_secs(30), || {
            let now = cluster.connections()?;
            ensure!(now[other] == streams[0] + streams[1], "connected: {now:?}");
            Ok(())
        })?;
        let moved = start.elapsed();
        let served = wait_for("every stream to have been answered", Duration::from_secs(10), || {
            let served = Served::of(cluster, &[other])?.since(before);
            let resumed = served.delta + served.digest + served.snapshot;
            ensure!(resumed as usize >= streams[victim], "{resumed} of {} resumed", streams[victim]);
            Ok(served)
        })?;
        println!(
            "   all {} streams are on typha-{} after {} ms",
            streams[0] + streams[1],
            other + 1,
            moved.as_millis()
        );
        let whole = crowd.snapshot_bytes * streams[victim] as f64;
        let saved = 100.0 * (1.0 - served.bytes / whole);
        println!(
            "   resumed: {} by delta, {} by digest, {} by snapshot; sent {:.0} KB instead of {:.0} KB: {saved:.1} % saved",
            served.delta,
            served.digest,
            served.snapshot,
            served.bytes / 1e3,
            whole / 1e3
        );
        ensure!(served.snapshot == 0.0, "{} streams were sent a snapshot again", served.snapshot);
        ensure!(saved > 50.0, "resuming saved only {saved:.0} %");
        quiet.end(cluster, crowd)?;
        self.fact("a typha lost: streams moved, 0 deletions", format!("{} ms", moved.as_millis()));
        self.fact(
            "resumed without a snapshot",
            format!("{} of {}, {saved:.1} % of the bytes saved", streams[victim], streams[victim]),
        );
        cluster.start_typha(victim)?;
        cluster.wait_typha(victim)
    }

    pub fn freeze(&mut self, cluster: &mut Cluster, crowd: &Crowd) -> Result<()> {
        self.chapter(match self.store {
            e2e::cluster::Store::Etcd => "Freeze the datastore: kill -STOP etcd",
            e2e::cluster::Store::Directory => "Freeze the datastore: its folder is away, as if unmounted",
        });
        let everyone = self.simulated + self.real;
        let before = crowd.fleet.stand()?;
        let quiet = Quiet::begin(cluster, crowd)?;
        cluster.freeze_store(true)?;
        let start = Instant::now();
        let mut oldest = 0.0f64;
        while start.elapsed() < FROZEN {
            std::thread::sleep(Duration::from_secs(2));
            let (ages, nodes) = ages(cluster)?;
            println!(
                "   {:>2} s  data is {:.1} s old at typha-1, {:.1} s at typha-2; {nodes} of {everyone} nodes connected",
                start.elapsed().as_secs(),
                ages[0],
                ages[1]
            );
            ensure!(nodes == everyone, "only {nodes} nodes are connected");
            ensure!(ages[0].min(ages[1]) > oldest, "the age does not rise: {ages:?}");
            oldest = ages[0].min(ages[1]);
        }
        ensure!(oldest > 5.0, "frozen for {FROZEN:?}, and the data is only {oldest:.1} s old");
        cluster.freeze_store(false)?;
        let back = Instant::now();
        wait_for("fresh data", Duration::from_secs(30), || {
            let (ages, _) = ages(cluster)?;
            ensure!(ages.iter().all(|age| *age < 3.0), "ages: {ages:?} s");
            Ok(())
        })?;
        println!("   thawed: fresh again after {:.1} s", back.elapsed().as_secs_f64());
        quiet.end(cluster, crowd)?;
        let after = crowd.fleet.stand()?;
        // Servers may be evening out their streams after the last chapter: those go to where they are sent.
        let lost = |stand: &Stand| stand.disconnects - stand.sent_on;
        ensure!(
            lost(&after) == lost(&before),
            "{} streams ended though their servers live, {} more were sent on",
            lost(&after) - lost(&before),
            after.sent_on - before.sent_on
        );
        self.fact(
            "datastore frozen: ages rise, nothing is withdrawn",
            format!("{oldest:.0} s old, {everyone} of {everyone} nodes stay"),
        );
        Ok(())
    }
}

/// How old the data is at each replica, in seconds, and how many nodes have a felix connected.
fn ages(cluster: &Cluster) -> Result<([f64; 2], usize)> {
    let mut ages = [0.0; 2];
    let mut nodes = std::collections::BTreeSet::new();
    for (i, age) in ages.iter_mut().enumerate() {
        let status: serde_json::Value = serde_json::from_str(&cluster.ask_typha(i, 9098, "/status.json")?)?;
        *age = status["ageMillis"].as_f64().context("an age")? / 1e3;
        let clients = status["clients"].as_array().context("clients")?.iter();
        let felix = clients.filter(|client| client["agent"] == "felix" && client["connected"] == true);
        nodes.extend(felix.filter_map(|client| Some(client["node"].as_str()?.to_owned())));
    }
    Ok((ages, nodes.len()))
}

/// When each simulated node received a value other than the one before.
fn receipts(stand: &Stand, before: Option<&str>, began: SystemTime) -> Vec<Duration> {
    let began = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    match &stand.watched {
        Some(watched) if Some(watched.value.as_str()) != before => {
            let at = |micros: &u64| Duration::from_micros(*micros).saturating_sub(began);
            watched.received_unix_micros.iter().map(at).collect()
        }
        _ => Vec::new(),
    }
}

/// Traffic that must lose nothing, kernels and simulated nodes from which nothing may be withdrawn.
struct Quiet {
    udp: Flow,
    tcp: Flow,
    monitors: Vec<Monitor>,
    deletions: u64,
}

impl Quiet {
    fn begin(cluster: &Cluster, crowd: &Crowd) -> Result<Quiet> {
        let (udp, tcp) = flows(cluster);
        Ok(Quiet { udp, tcp, monitors: watch(cluster)?, deletions: crowd.fleet.stand()?.deletions })
    }

    fn end(self, cluster: &mut Cluster, crowd: &Crowd) -> Result<()> {
        let (udp, tcp) = (self.udp.finish()?, self.tcp.finish()?);
        println!(
            "   meanwhile: UDP {} sent, {} lost; TCP {} asked, {} lost",
            udp.sent,
            udp.lost(),
            tcp.sent,
            tcp.lost()
        );
        ensure!(udp.lost() == 0 && tcp.lost() == 0, "an established flow lost packets");
        let gone: Vec<_> = self.monitors.iter().flat_map(Monitor::deletions).collect();
        ensure!(gone.is_empty(), "withdrawn from a kernel:\n{}", gone.join("\n"));
        cluster.check("loadtest")?;
        let stand = crowd.fleet.stand()?;
        if let Some(mistake) = stand.mistakes.first() {
            bail!("a simulated node noticed: {mistake}");
        }
        ensure!(stand.deletions == self.deletions, "{} deletions", stand.deletions - self.deletions);
        ensure!(stand.alike == stand.nodes, "{} of {} nodes hold the same", stand.alike, stand.nodes);
        println!(
            "   deletions on the {} simulated nodes: 0; routes and rules withdrawn on the real ones: 0",
            stand.nodes
        );
        Ok(())
    }
}
