//! A node's life in fast motion: workloads, nodes, pools, policies and settings come, change and go, links flap, others
//! write into the kernel, and felix is restarted in between. In the end the kernel holds what a felix writes that
//! starts on the same state in a clean namespace, another start changes nothing, and nothing has piled up.
//!
//! About 40 s; longer by `BULRUSH_SOAK_SECONDS`, another life by `BULRUSH_SOAK_SEED`.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dataplane_support::node::Node;
use dataplane_support::{Lab, eventually, in_namespace};
use felix::iptables::Backend;
use felix::iptables::generation::Generation;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use syncer_common::model::{
    HostEndpointKey, Key, PolicyKey, ResourceKey, Update, Value, WorkloadEndpointKey, values,
};

const TOOLS: [&str; 6] =
    ["ip", "bridge", "ipset", "iptables-nft-restore", "iptables-legacy-restore", "conntrack"];
/// Longer than a foreign route's grace, a regular look at sets and tables, and a busy machine together.
const LIMIT: Duration = Duration::from_secs(90);
const SECONDS: u64 = 40;
/// What the comparisons at the end take on an idle machine.
const ENDS: Duration = Duration::from_secs(10);
const PODS: u8 = 12;
const NODES: u8 = 10;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn a_long_life_ends_as_a_new_one_begins() {
    let time = Duration::from_secs(variable("BULRUSH_SOAK_SECONDS").unwrap_or(SECONDS));
    let seed = variable("BULRUSH_SOAK_SEED").unwrap_or(1);
    println!("BULRUSH_SOAK_SEED={seed}");
    for backend in [Backend::Nft, Backend::Legacy] {
        in_namespace(&TOOLS, move |lab| async move {
            // The end of a life takes a few seconds, too.
            Life::new(lab, backend, seed).await.live(time.saturating_sub(ENDS) / 2).await;
        });
    }
}

/// What the datastore holds, and which interfaces the node has: all that the kernel's state may depend on.
#[derive(Clone, Default)]
struct World {
    entries: BTreeMap<Key, Update>,
    links: BTreeSet<u8>,
}

struct Life {
    lab: Lab,
    backend: Backend,
    rng: StdRng,
    world: World,
    node: Option<Node>,
    /// Changes that felix has not been told of.
    untold: Vec<Update>,
    steps: usize,
    restarts: usize,
}

async fn sh(lab: &Lab, line: &str) -> String {
    // Without holding up the agent, which runs in this thread.
    let lock = lab.path().join("xtables.lock");
    let run = tokio::process::Command::new("sh").args(["-c", line]).env("XTABLES_LOCKFILE", lock).output();
    let out = run.await.unwrap();
    assert!(out.status.success(), "`{line}` failed: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// A node with its uplink, and with the interfaces of a world.
async fn prepare(lab: &Lab, world: &World) {
    let lines = "ip link add eth0 type veth peer name peth0 && ip link set eth0 up && ip link set peth0 up && \
         ip addr add 172.30.0.1/24 dev eth0 && ip -6 addr add fd30::1/64 dev eth0 nodad && \
         ip route add default via 172.30.0.254";
    sh(lab, lines).await;
    for n in &world.links {
        sh(lab, &veth(*n)).await;
    }
}

fn veth(n: u8) -> String {
    format!(
        "ip link add cali{n} type veth peer name far{n} && ip link set far{n} up && ip link set cali{n} up"
    )
}

/// Everything that felix writes, without counters, indexes and order of creation.
async fn state(lab: &Lab, backend: Backend) -> String {
    let b = backend.name();
    let lines = format!(
        "for p in iptables ip6tables; do for t in raw mangle nat filter; do echo \"*$p $t\"; \
         $p-{b}-save -t $t | grep -e '^-A' -e '^:cali' | sed 's/ \\[.*//' | sort -s -k1,2; done; done; \
         ipset save | grep -v this-host.fe80 | sed 's/ hashsize.*//' | sort; \
         (ip -d route; ip -6 -d route | grep -v fe80) | sed 's/ *$//' | sort; \
         (ip neigh show nud permanent; ip -6 neigh show nud permanent) | sed 's/ *$//' | sort; \
         bridge fdb show | grep dst | sort; \
         ip -o addr show | grep calico | grep -v fe80 | sed 's/^[0-9]*: //; s/ tentative//' | sort; \
         ip -o -d link show type vxlan | sed 's/^[0-9]*: //' | sort"
    );
    sh(lab, &lines).await
}

fn difference(now: &str, wanted: &str) -> String {
    let (now, wanted): (BTreeSet<_>, BTreeSet<_>) = (now.lines().collect(), wanted.lines().collect());
    let lines = |sign: char, lines: Vec<&&str>| -> String {
        lines.iter().map(|line| format!("{sign}{line}\n")).collect()
    };
    lines('+', now.difference(&wanted).collect()) + &lines('-', wanted.difference(&now).collect())
}

/// What a felix writes that starts on this world in a clean namespace.
async fn fresh(world: World, backend: Backend) -> String {
    let result = Arc::new(Mutex::new(String::new()));
    let out = result.clone();
    let run = move || {
        in_namespace(&TOOLS, move |lab| async move {
            prepare(&lab, &world).await;
            let mut node = Node::start(&lab, backend).await;
            node.program(world.entries.values().cloned().collect()).await;
            // Addresses of the devices that felix made are told of by events.
            let mut last = String::new();
            let settled = eventually(LIMIT, async || {
                tokio::time::sleep(Duration::from_millis(700)).await;
                let now = state(&lab, backend).await;
                let before = std::mem::replace(&mut last, now.clone());
                if now == before { Ok(now) } else { Err("it goes on changing".into()) }
            });
            let settled = settled.await;
            node.stop().await;
            *out.lock().unwrap() = settled;
        })
    };
    tokio::task::spawn_blocking(run).await.unwrap();
    Arc::into_inner(result).unwrap().into_inner().unwrap()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Resident memory in KiB.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

impl Life {
    async fn new(lab: Lab, backend: Backend, seed: u64) -> Life {
        let mut world = World::default();
        for update in
            [profile(), node_entry(1, false), block(1, false), block(1, true), pool(false, "always", true)]
        {
            world.entries.insert(update.key.clone(), update);
        }
        prepare(&lab, &world).await;
        let mut life = Life {
            lab,
            backend,
            rng: StdRng::seed_from_u64(seed),
            world,
            node: None,
            untold: Vec::new(),
            steps: 0,
            restarts: 0,
        };
        life.start().await;
        life
    }

    async fn live(mut self, time: Duration) {
        let started = Instant::now();
        let mut young = None;
        while started.elapsed() < time || self.steps < 20 {
            self.step().await;
            if self.steps == 20 {
                self.tell().await;
                young = Some((descriptors(), memory()));
            }
        }
        self.tell().await;
        let wanted = fresh(self.world.clone(), self.backend).await;
        self.holds(&wanted, "at the end of its life").await;

        let generation = Generation::open().unwrap();
        let at = generation.read().unwrap();
        self.restart().await;
        self.holds(&wanted, "after another start").await;
        if self.backend == Backend::Nft {
            assert_eq!(generation.read().unwrap(), at, "the restarted felix wrote rules");
        }
        drop(generation);
        let (young_descriptors, young_memory) = young.unwrap();
        let now = eventually(LIMIT, async || {
            let now = descriptors();
            if now <= young_descriptors { Ok(now) } else { Err(format!("{young_descriptors}, then {now}")) }
        })
        .await;
        let grown = memory().saturating_sub(young_memory);
        println!(
            "{}: {} steps, {} restarts, {} objects; descriptors {young_descriptors} → {now}, memory +{grown} KiB",
            self.backend.name(),
            self.steps,
            self.restarts,
            self.world.entries.len()
        );
        // What an allocator keeps is not a leak, what grows with every step is.
        assert!(grown < 48 << 10, "{young_memory} KiB after 20 steps, {grown} KiB more at the end");
        self.node.take().unwrap().stop().await;
    }

    async fn holds(&self, wanted: &str, when: &str) {
        eventually(LIMIT, async || {
            let now = state(&self.lab, self.backend).await;
            if now == *wanted {
                return Ok(());
            }
            Err(format!("{when}, step {}, + has, - lacks:\n{}", self.steps, difference(&now, wanted)))
        })
        .await;
    }

    async fn start(&mut self) {
        let mut node = Node::start(&self.lab, self.backend).await;
        self.untold.clear();
        node.program(self.world.entries.values().cloned().collect()).await;
        self.node = Some(node);
    }

    async fn restart(&mut self) {
        self.restarts += 1;
        self.node.take().unwrap().stop().await;
        self.start().await;
    }

    /// Hands over what happened, and waits until it is in the kernel.
    async fn tell(&mut self) {
        let updates = std::mem::take(&mut self.untold);
        self.node.as_mut().unwrap().program(updates).await;
    }

    fn set(&mut self, update: Update) {
        self.world.entries.insert(update.key.clone(), update.clone());
        self.untold.push(update);
    }

    fn delete(&mut self, key: Key) {
        if self.world.entries.remove(&key).is_some() {
            self.untold.push(Update::delete(key));
        }
    }

    async fn step(&mut self) {
        self.steps += 1;
        for _ in 0..self.rng.random_range(1..=4) {
            match self.rng.random_range(0..100) {
                0..25 => self.change_pod(),
                25..45 => self.change_link().await,
                45..58 => self.change_node(),
                58..64 => self.change_pool(),
                64..78 => self.change_policy(),
                78..84 => self.change_setting(),
                84..88 => self.change_host_endpoint(),
                _ => self.damage().await,
            }
        }
        match self.rng.random_range(0..12) {
            0 => self.restart().await,
            // More than one thing happens before felix hears of it.
            1..4 => {}
            _ => self.tell().await,
        }
    }

    /// An endpoint comes, goes, or gets another address, label, floating address or limit.
    fn change_pod(&mut self) {
        let n = self.rng.random_range(0..PODS);
        if self.rng.random_bool(0.3) {
            return self.delete(Key::WorkloadEndpoint(pod_key(n)));
        }
        // Addresses go round, and two have never the same.
        let addresses: Vec<u8> = (0..3).map(|turn| 1 + n + PODS * turn).collect();
        let address = *addresses.choose(&mut self.rng).unwrap();
        let qos = values::QosControls {
            dscp: self.rng.random_bool(0.5).then_some(46),
            egress_packet_rate: self.rng.random_range(0..3),
            egress_packet_burst: 5,
            ..Default::default()
        };
        let value = values::WorkloadEndpoint {
            state: if self.rng.random_bool(0.9) { "active".into() } else { "inactive".into() },
            name: format!("cali{n}"),
            mac: if self.rng.random_bool(0.5) { format!("02:00:00:00:00:{n:02x}") } else { String::new() },
            profile_ids: vec!["open".into()],
            ipv4_nets: vec![format!("10.65.0.{address}/32")],
            ipv6_nets: if self.rng.random_bool(0.5) { vec![format!("fd65::{address}/128")] } else { vec![] },
            labels: self.labels(),
            ipv4_nats: vec![values::IpNat {
                internal_ip: format!("10.65.0.{address}"),
                external_ip: format!("192.0.2.{n}"),
            }],
            qos: self.rng.random_bool(0.3).then_some(qos),
            ..Default::default()
        };
        self.set(Update::set(Key::WorkloadEndpoint(pod_key(n)), Value::WorkloadEndpoint(value)));
    }

    fn labels(&mut self) -> BTreeMap<String, String> {
        BTreeMap::from([("app".to_owned(), format!("a{}", self.rng.random_range(0..3)))])
    }

    async fn change_link(&mut self) {
        let n = self.rng.random_range(0..PODS);
        let line = match (self.world.links.contains(&n), self.rng.random_range(0..5)) {
            (false, _) => {
                self.world.links.insert(n);
                veth(n)
            }
            (true, 0) => {
                self.world.links.remove(&n);
                format!("ip link del cali{n}")
            }
            (true, 1) => format!("ip link del cali{n} && {}", veth(n)),
            (true, 2) => format!("ip link set far{n} down && ip link set far{n} up"),
            (true, 3) => "ip link set eth0 down && ip link set eth0 up && ip -6 addr replace fd30::1/64 dev eth0 nodad && ip route replace default via 172.30.0.254".to_owned(),
            (true, _) => format!("for i in 1 2 3; do ip link set cali{n} down; ip link set cali{n} up; done"),
        };
        sh(&self.lab, &line).await;
    }

    /// Another node joins, leaves, or gets another address.
    fn change_node(&mut self) {
        let n = self.rng.random_range(2..2 + NODES);
        if self.rng.random_bool(0.4) {
            self.delete(resource("Node", &format!("n{n}")));
            self.delete(block(n, false).key);
            self.delete(block(n, true).key);
            return;
        }
        let moved = self.rng.random_bool(0.2);
        self.set(node_entry(n, moved));
        for v6 in [false, true] {
            if self.rng.random_bool(0.8) {
                self.set(block(n, v6));
            }
        }
    }

    fn change_pool(&mut self) {
        let v6 = self.rng.random_bool(0.4);
        let mode = *["always", "always", "cross-subnet", "never"].choose(&mut self.rng).unwrap();
        let update = pool(v6, mode, self.rng.random_bool(0.5));
        if v6 && self.rng.random_bool(0.3) { self.delete(update.key) } else { self.set(update) }
    }

    fn change_policy(&mut self) {
        let n = self.rng.random_range(0..6);
        let key =
            PolicyKey { kind: "GlobalNetworkPolicy".into(), namespace: String::new(), name: format!("p{n}") };
        let set = Key::NetworkSet { name: format!("set{n}") };
        if self.rng.random_bool(0.4) {
            let key = if self.rng.random_bool(0.5) { Key::Policy(key) } else { set };
            return self.delete(key);
        }
        let selector = format!("app == 'a{}'", self.rng.random_range(0..4));
        let side = values::EntityRule { selector, ..Default::default() };
        let rule = |action: &str| values::Rule {
            action: action.into(),
            src: Some(side.clone()),
            ..Default::default()
        };
        let policy = values::Policy {
            tier: "default".into(),
            order: Some(f64::from(n)),
            selector: format!("app == 'a{}'", self.rng.random_range(0..3)),
            inbound_rules: vec![rule("allow"), rule("deny")],
            types: vec!["ingress".into()],
            ..Default::default()
        };
        self.set(Update::set(Key::Policy(key), Value::Policy(policy)));
        let nets = (0..self.rng.random_range(1..20)).map(|i| format!("10.{n}.{i}.0/24")).collect();
        let nets = values::NetworkSet { nets, labels: self.labels(), ..Default::default() };
        self.set(Update::set(set, Value::NetworkSet(nets)));
    }

    fn change_setting(&mut self) {
        let ranges = resource("BGPConfiguration", "default");
        let settings = [
            ("DefaultEndpointToHostAction", "ACCEPT"),
            ("ChainInsertMode", "append"),
            ("FloatingIPs", "Enabled"),
            ("NATPortRange", "40000:40999"),
            ("ProgramClusterRoutes", "Enabled"),
            ("VXLANPort", "8472"),
            ("VXLANMTU", "1400"),
        ];
        let (name, value) = *settings.choose(&mut self.rng).unwrap();
        let key = Key::GlobalConfig { name: name.into() };
        match self.rng.random_range(0..5) {
            0 => self.delete(ranges),
            1 => {
                let cidr = format!("10.{}.0.0/16", self.rng.random_range(96..99));
                let value =
                    values::BgpConfiguration { service_cluster_ips: vec![cidr], ..Default::default() };
                self.set(Update::set(ranges, Value::BgpConfiguration(value)));
            }
            2 => self.set(Update::set(key, Value::Config(value.into()))),
            _ => self.delete(key),
        }
    }

    fn change_host_endpoint(&mut self) {
        let key = Key::HostEndpoint(HostEndpointKey { host: "n1".into(), endpoint: "n1-eth0".into() });
        if self.rng.random_bool(0.5) {
            return self.delete(key);
        }
        let name = *["eth0", "*", ""].choose(&mut self.rng).unwrap();
        let value = values::HostEndpoint {
            name: name.into(),
            expected_ipv4_addrs: vec!["172.30.0.1".into()],
            labels: self.labels(),
            profile_ids: vec!["open".into()],
            dscp: self.rng.random_bool(0.5).then_some(10),
            ..Default::default()
        };
        self.set(Update::set(key, Value::HostEndpoint(value)));
    }

    /// Somebody else writes into the kernel. What it names may not be there.
    async fn damage(&mut self) {
        let n = self.rng.random_range(0..PODS);
        let program =
            format!("ip{}tables-{}", if self.rng.random_bool(0.5) { "" } else { "6" }, self.backend.name());
        let line = match self.rng.random_range(0..10) {
            0 => format!("{program} -F"),
            1 => format!("{program} -F cali-tw-cali{n}"),
            2 => format!("{program} -t raw -D PREROUTING 1"),
            3 => format!("{program} -N cali-foreign{n}"),
            4 => "ipset flush cali40masq-ipam-pools".to_owned(),
            5 => format!("ipset add cali40this-host 198.51.100.{n}"),
            6 => format!("ip route del 10.65.0.{}", n + 1),
            7 => format!("ip route add 10.65.0.{} dev cali{n}", 200 + n),
            8 => "ip neigh flush dev vxlan.calico nud permanent".to_owned(),
            _ => "ip link del vxlan.calico".to_owned(),
        };
        sh(&self.lab, &format!("{line} 2>/dev/null || true")).await;
    }
}

fn resource(kind: &str, name: &str) -> Key {
    Key::Resource(ResourceKey { kind: kind.into(), namespace: String::new(), name: name.into() })
}

fn profile() -> Update {
    let allow = || vec![values::Rule { action: "allow".into(), ..Default::default() }];
    let rules = values::ProfileRules { inbound_rules: allow(), outbound_rules: allow() };
    Update::set(Key::ProfileRules { name: "open".into() }, Value::ProfileRules(rules))
}

fn pod_key(n: u8) -> WorkloadEndpointKey {
    WorkloadEndpointKey {
        host: "n1".into(),
        orchestrator: "k8s".into(),
        workload: format!("default/pod{n}"),
        endpoint: "eth0".into(),
    }
}

/// Every second node is in this one's subnet.
fn node_entry(n: u8, moved: bool) -> Update {
    let (subnet, host) = (1 - n % 2, if moved { n + 100 } else { n });
    let bgp = values::NodeBgp {
        ipv4_address: format!("172.30.{subnet}.{host}/24"),
        ipv6_address: format!("fd30:0:0:{subnet}::{host}/64"),
        ..Default::default()
    };
    let value = values::Node {
        bgp: Some(bgp),
        ipv4_vxlan_tunnel_addr: format!("10.65.{}.63", n - 1),
        ipv6_vxlan_tunnel_addr: format!("fd65::{}:3f", n - 1),
        ..Default::default()
    };
    Update::set(resource("Node", &format!("n{n}")), Value::Node(value))
}

fn block(n: u8, v6: bool) -> Update {
    let cidr = if v6 { format!("fd65::{}:0/122", n - 1) } else { format!("10.65.{}.0/26", n - 1) };
    let key = Key::Block { cidr: cidr.parse().unwrap() };
    let value = values::IpamBlock { cidr, affinity: format!("host:n{n}"), ..Default::default() };
    Update::set(key, Value::IpamBlock(value))
}

fn pool(v6: bool, vxlan: &str, masquerade: bool) -> Update {
    let cidr = if v6 { "fd65::/64" } else { "10.65.0.0/16" };
    let value = values::IpPool {
        cidr: cidr.into(),
        vxlan_mode: if vxlan == "never" { String::new() } else { vxlan.into() },
        masquerade,
        ..Default::default()
    };
    Update::set(Key::IpPool { cidr: cidr.parse().unwrap() }, Value::IpPool(value))
}
