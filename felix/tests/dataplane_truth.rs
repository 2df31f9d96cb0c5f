//! Three answers for every packet, and no two of them may differ: what the kernel does with it, what `explain` says,
//! and what the semantics ask for by brute force.
//!
//! Clusters are made up at random from a seed; the running dataplane moves the kernel from one to the next, so what
//! is judged has also come about by differences. `BULRUSH_TRUTH_SEED` and `BULRUSH_TRUTH_ROUNDS` say which and how
//! many; `BULRUSH_TRUTH_DUMP` names a file for the kernel's rules at a disagreement.

mod dataplane_support;
#[path = "truth/entries.rs"]
mod entries;
#[path = "truth/judge.rs"]
mod judge;
#[path = "truth/wire.rs"]
mod wire;
#[path = "truth/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane_support::node::Node;
use dataplane_support::{Lab, in_namespace};
use felix::iptables::Backend;
use felix_calc::explain::{Collected, Packet, Place, Protocol, Verdict, verdict};
use judge::{End, judge};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use syncer_common::model::{Key, Update, Value};
use wire::{FarEnds, Inside, far_mac};
use world::{LOCALS, PORTS, REMOTES, STRANGERS, World, pick};

const TOOLS: [&str; 5] = ["ip", "ipset", "iptables-nft-restore", "iptables-legacy-restore", "conntrack"];
const POLICIES: usize = 14;
const FLOWS: usize = 100;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn kernel_explanation_and_semantics_agree_on_nft() {
    run(Backend::Nft);
}

#[test]
fn kernel_explanation_and_semantics_agree_on_legacy() {
    run(Backend::Legacy);
}

fn run(backend: Backend) {
    in_namespace(&TOOLS, move |lab| async move {
        let seed = setting("BULRUSH_TRUTH_SEED", 1);
        let rounds = setting("BULRUSH_TRUTH_ROUNDS", 40);
        let mut truth = Truth::new(lab, backend).await;
        let (mut packets, mut allowed) = (0, 0);
        for round in 0..rounds {
            let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(round));
            let world = World::random(&mut rng, POLICIES);
            // What the machine does with packets that no policy concerns must not matter to those that one allows. With
            // a host endpoint there are some that its policies only pass on.
            let others = if world.host.is_none() { "DROP" } else { "ACCEPT" };
            let b = backend.name();
            truth.lab.sh(&format!("iptables-{b} -P FORWARD {others}; ip6tables-{b} -P FORWARD {others}"));
            let (sent, passed) = truth.round(&mut rng, &world, &format!("seed {seed}, round {round}")).await;
            packets += sent;
            allowed += passed;
        }
        println!(
            "{rounds} rounds of {POLICIES} policies: {packets} packets, {allowed} allowed, no disagreement"
        );
        // A suite in which everything is denied, or nothing is, would prove little.
        assert!(allowed * 20 > packets && allowed * 20 < packets * 19, "{allowed} of {packets} allowed");
        truth.node.stop().await;
    });
}

struct Truth {
    lab: Lab,
    node: Node,
    far: FarEnds,
    inside: Inside,
    held: Collected,
    entries: BTreeMap<Key, Value>,
    next: u32,
}

struct Case {
    id: u32,
    packet: Packet,
    from: End,
    to: End,
    expected: bool,
}

const UPLINK: usize = LOCALS;

impl Truth {
    async fn new(lab: Lab, backend: Backend) -> Truth {
        // Felix writes these for workloads' interfaces; the rest is the machine's business.
        lab.sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0");
        lab.sh("sysctl -qw net.ipv4.icmp_ratelimit=0; conntrack -L >/dev/null 2>&1; sysctl -qw net.netfilter.nf_conntrack_checksum=0");
        let mut names: Vec<String> = (0..LOCALS).map(entries::interface).collect();
        names.push("eth0".into());
        let far = FarEnds::attach(&names);
        let mac = far_mac(UPLINK);
        lab.sh("ip addr add 172.30.0.1/24 dev eth0; ip addr add fd30::1/64 dev eth0 nodad");
        lab.sh(&format!("ip neigh replace 172.30.0.254 lladdr {mac} dev eth0 nud permanent; ip neigh replace fd30::fe lladdr {mac} dev eth0 nud permanent"));
        lab.sh(
            "ip route replace default via 172.30.0.254; ip -6 route replace default via fd30::fe dev eth0",
        );
        for n in 0..LOCALS {
            for at in [2 * n, 2 * n + 1] {
                let ip = entries::local_ip(at, false);
                lab.sh(&format!("ip neigh replace {ip} lladdr {} dev cali{n} nud permanent", far_mac(n)));
                let ip = entries::local_ip(at, true);
                lab.sh(&format!("ip neigh replace {ip} lladdr {} dev cali{n} nud permanent", far_mac(n)));
            }
        }
        let node = Node::start(&lab, backend).await;
        let inside = Inside::open();
        Truth { lab, node, far, inside, held: Collected::default(), entries: BTreeMap::new(), next: 1 }
    }

    async fn round(&mut self, rng: &mut StdRng, world: &World, name: &str) -> (usize, usize) {
        let wanted = entries::entries(world);
        let gone = self.entries.keys().filter(|key| !wanted.contains_key(*key)).cloned().map(Update::delete);
        let changed = wanted.iter().filter(|(key, value)| self.entries.get(*key) != Some(*value));
        let changed = changed.map(|(key, value)| Update::set(key.clone(), value.clone()));
        let updates: Vec<Update> = gone.chain(changed).collect();
        self.entries = wanted;
        for output in self.node.program(updates).await {
            self.held.on_output(output);
        }
        self.lab.sh("conntrack -F 2>/dev/null; conntrack -F -f ipv6 2>/dev/null");

        let cases = self.cases(rng, world);
        for case in &cases {
            match case.from {
                End::Local(n) => self.far.send(n, &case.packet, case.id),
                End::Out => self.far.send(UPLINK, &case.packet, case.id),
                End::Host => Inside::send(&case.packet, case.id),
            }
        }
        let expected =
            |to_host| cases.iter().filter(|case| case.expected && (case.to == End::Host) == to_host).count();
        let mut far = self.far.collect(expected(false));
        let inside = self.inside.collect(expected(true));
        let mut disagreements = Vec::new();
        for case in &cases {
            // An error that the node answers with comes out, too, and quotes the packet.
            let out = far.remove(&case.id);
            let through = match case.to {
                End::Local(n) => out == Some(n),
                End::Out => out == Some(UPLINK),
                End::Host => inside.contains_key(&case.id),
            };
            let stages =
                self.held.node().path(&case.packet, &place(world, case.from), &place(world, case.to));
            let explained = verdict(&stages) == Verdict::Allow;
            if through != case.expected || explained != case.expected {
                let Case { packet, from, to, expected, .. } = case;
                let stages: String = stages.iter().map(|stage| format!("{stage}\n")).collect();
                disagreements.push(format!("{packet} ({from:?} to {to:?})\nkernel {through}, explain {explained}, semantics {expected}\n{stages}"));
            }
        }
        if !disagreements.is_empty() {
            if let Some(file) = std::env::var_os("BULRUSH_TRUTH_DUMP") {
                let dump = self.lab.sh("for t in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do $t-save -c 2>/dev/null; done; ipset save");
                std::fs::write(file, dump).expect("the file can be written");
            }
            let shown = disagreements.len().min(10);
            panic!(
                "{name}: {} of {FLOWS} packets\n{}\n{world:#?}",
                disagreements.len(),
                disagreements[..shown].join("\n")
            );
        }
        assert!(far.is_empty(), "{name}: packets of former rounds arrived: {far:?}");
        (cases.len(), cases.iter().filter(|case| case.expected).count())
    }

    fn cases(&mut self, rng: &mut StdRng, world: &World) -> Vec<Case> {
        let mut seen = BTreeSet::new();
        let mut cases = Vec::new();
        while cases.len() < FLOWS {
            let (from, to) = ends(rng);
            let v4 = rng.random_bool(0.5);
            let (src, dst) = (source(rng, from, v4), destination(rng, to, v4));
            let protocol = protocol(rng, v4, from == End::Host, to == End::Host);
            let packet = Packet { src, dst, protocol };
            // The second packet of a connection, in either direction, would ask nobody.
            let (a, b, kind) = match protocol {
                Protocol::Ports { src: sport, dst: dport, .. } => ((src, sport), (dst, dport), 0),
                Protocol::Icmp { kind, .. } | Protocol::IcmpV6 { kind, .. } => ((src, 0), (dst, 0), kind),
                Protocol::Other(_) => ((src, 0), (dst, 0), 0),
            };
            if !seen.insert((protocol.number(), a.min(b), a.max(b), kind)) {
                continue;
            }
            let expected = judge(world, &packet, from, to);
            cases.push(Case { id: self.next, packet, from, to, expected });
            self.next += 1;
        }
        cases
    }
}

fn place(world: &World, end: End) -> Place {
    match end {
        End::Local(n) => Place::Workload(entries::local_key(n)),
        End::Host => Place::Host,
        End::Out => {
            let named = world.host.as_ref().is_some_and(|host| host.interface == "eth0");
            Place::Outside(named.then(entries::host_key))
        }
    }
}

fn ends(rng: &mut StdRng) -> (End, End) {
    let n = rng.random_range(0..LOCALS);
    let other = (n + rng.random_range(1..LOCALS)) % LOCALS;
    match rng.random_range(0..20) {
        0..8 => (End::Local(n), End::Local(other)),
        8..11 => (End::Local(n), End::Out),
        11..15 => (End::Out, End::Local(n)),
        15 | 16 => (End::Local(n), End::Host),
        17 => (End::Out, End::Host),
        18 => (End::Host, End::Out),
        _ => (End::Host, End::Local(n)),
    }
}

fn source(rng: &mut StdRng, from: End, v4: bool) -> IpAddr {
    match from {
        // Now and then somebody else's address.
        End::Local(n) if rng.random_bool(0.03) => entries::local_ip(2 * ((n + 1) % LOCALS), v4),
        from => destination(rng, from, v4),
    }
}

fn destination(rng: &mut StdRng, to: End, v4: bool) -> IpAddr {
    match to {
        End::Local(n) => entries::local_ip(2 * n + rng.random_range(0..2), v4),
        End::Host => entries::host_ip(v4),
        End::Out if rng.random_bool(0.6) => entries::remote_ip(rng.random_range(0..REMOTES), v4),
        End::Out => entries::stranger_ip(rng.random_range(0..STRANGERS), v4),
    }
}

fn protocol(rng: &mut StdRng, v4: bool, from_host: bool, to_host: bool) -> Protocol {
    let src = if rng.random_bool(0.4) { pick(rng, &PORTS) } else { rng.random_range(20_000..50_000) };
    let dst = pick(rng, &PORTS) + pick(rng, &[0, 0, 0, 1]);
    let ports = |number| Protocol::Ports { number, src, dst };
    if from_host {
        return ports(17);
    }
    match rng.random_range(0..10) {
        0..4 => ports(6),
        4..7 => ports(17),
        7 if !to_host => ports(132),
        8 if !to_host => Protocol::Other(pick(rng, &[253, 253, 4])),
        _ if v4 => Protocol::Icmp { kind: pick(rng, &[8, 8, 13]), code: 0 },
        _ => Protocol::IcmpV6 { kind: 128, code: pick(rng, &[0, 0, 1]) },
    }
}
