//! Faults under established flows: whatever of the control plane dies, nothing is withdrawn and no packet is lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Options};
use e2e::flow::Flow;
use e2e::probe::Via;
use e2e::process::wait_for;
use e2e::require;
use e2e::watch::Monitor;
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

/// How long both typhas, and then etcd, stay away. The issue says 30 s; `BULRUSH_OUTAGE_SECONDS` makes soaks longer.
fn outage() -> Duration {
    let seconds = std::env::var("BULRUSH_OUTAGE_SECONDS").ok().and_then(|v| v.parse().ok()).unwrap_or(30);
    Duration::from_secs(seconds)
}

struct Watched {
    flows: [Flow; 2],
    monitors: Vec<Monitor>,
}

impl Watched {
    fn start(cluster: &Cluster) -> Result<Watched> {
        let mut monitors = Vec::new();
        for node in &cluster.lab.nodes {
            monitors.push(Monitor::routes(&cluster.lab, &node.netns)?);
            monitors.push(Monitor::rules(&cluster.lab, &node.netns)?);
        }
        let flows = [
            Flow::udp(&cluster.lab, "client", "server", 53),
            Flow::tcp(&cluster.lab, "client", "server", 8080),
        ];
        Ok(Watched { flows, monitors })
    }

    fn finish(self, what: &str) -> Result<()> {
        let [udp, tcp] = self.flows.map(Flow::finish);
        let (udp, tcp) = (udp?, tcp?);
        ensure!(udp.sent > 50 && tcp.sent > 50, "{what}: the flows were too short to prove anything");
        ensure!(udp.lost() == 0, "{what}: UDP lost {} of {}", udp.lost(), udp.sent);
        // Datagrams show what was lost; a connection, that it was not reset. A busy machine may stop it for a second.
        ensure!(tcp.gap < Duration::from_secs(5), "{what}: TCP waited {:?}", tcp.gap);
        let gone: Vec<_> = self.monitors.iter().flat_map(Monitor::deletions).collect();
        ensure!(gone.is_empty(), "{what}: withdrawn from a kernel:\n{}", gone.join("\n"));
        println!(
            "{what}: {} datagrams and {} TCP exchanges, none lost, nothing withdrawn",
            udp.sent, tcp.sent
        );
        Ok(())
    }
}

fn cluster(prefix: &str) -> Result<Cluster> {
    let mut cluster = Cluster::up(prefix, Options { nodes: 2, ..Options::default() })?;
    for (node, name) in [("n1", "client"), ("n2", "server"), ("n1", "outsider")] {
        let workload = cluster.add_workload(node, name, &[("app", name)])?;
        cluster.wait_workload(&workload)?;
    }
    cluster.wait_bgp(PATIENCE)?;
    allow(&cluster, "client")?;
    closed(&cluster, "outsider", true)?;
    Ok(cluster)
}

fn allow(cluster: &Cluster, app: &str) -> Result<()> {
    cluster.apply(&format!(
        "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {{name: server, namespace: default}}\nspec: \
         {{selector: app == 'server', types: [Ingress], ingress: [{{action: Allow, source: {{selector: \"app in {{'client', '{app}'}}\"}}}}]}}\n"
    ))?;
    Ok(())
}

fn closed(cluster: &Cluster, from: &str, closed: bool) -> Result<()> {
    wait_for(&format!("{from} -> server {}", if closed { "closed" } else { "open" }), PATIENCE, || {
        ensure!(cluster.lab.reaches(from, "server", Via::Tcp(80))? != closed, "it is the other way round");
        Ok(())
    })
}

fn pause(duration: Duration) {
    // The outage itself: its length is what is being tested.
    std::thread::sleep(duration);
}

#[test]
fn nothing_is_lost_when_parts_of_the_control_plane_die() -> Result<()> {
    require!("etcd", "etcdctl", "bird", "iptables-nft", "ipset", "ping", "nft", "ss");
    let mut cluster = cluster("brfault")?;
    let agents = 2 * cluster.lab.nodes.len();

    // One typha dies: its agents move.
    let watched = Watched::start(&cluster)?;
    let before = cluster.connections()?;
    let victim = usize::from(before[1] > before[0]);
    cluster.process(&format!("typha-{}", victim + 1))?.kill();
    wait_for("all agents on the other typha", PATIENCE, || {
        let now = cluster.connections()?;
        ensure!(now[1 - victim] == agents, "connected: {now:?}");
        Ok(())
    })?;
    // They follow the other one now.
    allow(&cluster, "outsider")?;
    closed(&cluster, "outsider", false)?;
    allow(&cluster, "client")?;
    closed(&cluster, "outsider", true)?;
    watched.finish_allowing_policy_edits("typha killed")?;

    // Both typhas away.
    let watched = Watched::start(&cluster)?;
    cluster.process(&format!("typha-{}", 2 - victim))?.kill();
    pause(outage());
    for i in 0..2 {
        cluster.start_typha(i)?;
    }
    for i in 0..2 {
        cluster.wait_typha(i)?;
    }
    wait_for("all agents connected again", PATIENCE, || {
        let now = cluster.connections()?;
        ensure!(now.iter().sum::<usize>() == agents, "connected: {now:?}");
        Ok(())
    })?;
    watched.finish("both typhas down")?;

    // etcd away; afterwards changes flow again.
    let watched = Watched::start(&cluster)?;
    cluster.process("etcd")?.kill();
    pause(outage());
    cluster.start_store()?;
    watched.finish("etcd down")?;
    allow(&cluster, "outsider")?;
    closed(&cluster, "outsider", false)?;
    allow(&cluster, "client")?;
    closed(&cluster, "outsider", true)?;

    // felix dies and comes back: it finds its own objects and changes nothing that is right.
    let node = cluster.lab.node("n2").clone();
    let watched = Watched::start(&cluster)?;
    cluster.process("felix-n2")?.kill();
    cluster.start_felix(&node)?;
    cluster.wait_node(&node)?;
    watched.finish("felix killed and restarted")?;

    // The same for confd; and SIGTERM of felix leaves everything in place, too.
    let watched = Watched::start(&cluster)?;
    cluster.process("confd-n2")?.kill();
    cluster.start_confd(&node)?;
    ensure!(cluster.process("felix-n2")?.stop(PATIENCE), "felix ignored SIGTERM");
    cluster.start_felix(&node)?;
    cluster.wait_node(&node)?;
    cluster.process("typha-1")?.signal(Signal::SIGTERM)?;
    wait_for("all agents on typha-2", PATIENCE, || {
        ensure!(cluster.connections()?[1] == agents, "connected: {:?}", cluster.connections()?);
        Ok(())
    })?;
    watched.finish("confd killed, felix stopped, typha drained")
}

impl Watched {
    /// As `finish`, where the test itself edited policy: rules may be replaced, routes may not go.
    fn finish_allowing_policy_edits(mut self, what: &str) -> Result<()> {
        for monitor in self.monitors.iter().step_by(2) {
            ensure!(monitor.deletions().is_empty(), "{what}: routes withdrawn: {:?}", monitor.deletions());
        }
        self.monitors.clear();
        self.finish(what)
    }
}

#[test]
fn chains_and_sets_deleted_by_hand_come_back() -> Result<()> {
    require!("etcd", "etcdctl", "bird", "iptables-nft", "ipset", "ping", "nft");
    let cluster = cluster("brhand")?;
    let netns = cluster.lab.node("n2").netns.clone();
    let rules = |cluster: &Cluster| -> Result<Vec<String>> {
        let out = cluster.lab.sh(&netns, "iptables-nft-save -t filter")?;
        Ok(out.lines().filter(|l| l.starts_with(':') || l.starts_with('-')).map(strip_counters).collect())
    };
    let before = rules(&cluster)?;
    ensure!(before.iter().any(|l| l.contains("cali-to-wl-dispatch")), "nothing of ours is there");
    for damage in [
        "iptables-nft -F cali-to-wl-dispatch",
        "iptables-nft -D FORWARD -j cali-FORWARD 2>/dev/null || iptables-nft -F FORWARD",
        "iptables-nft -F",
    ] {
        cluster.lab.sh(&netns, damage)?;
        ensure!(rules(&cluster)? != before, "`{damage}` did no damage");
        wait_for(&format!("repair of `{damage}`"), Duration::from_secs(60), || {
            let now = rules(&cluster)?;
            ensure!(now == before, "not yet:\n{}", now.join("\n"));
            Ok(())
        })?;
    }
    closed(&cluster, "outsider", true)?;
    closed(&cluster, "client", false)
}

fn strip_counters(line: &str) -> String {
    line.split(" [").next().unwrap_or(line).to_owned()
}
