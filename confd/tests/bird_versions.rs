//! The second opinion on the two writers: for every conformance step that BIRD can run, a node on the expected
//! classic files under BIRD 1.6.8, and one on what we render for BIRD 2. A peer's kernel must learn the same
//! routes from both.
//!
// Helpers of tests are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use confd::bgp::{BgpModel, Direction, Family, FamilyModel, Model, Peer};
use confd::render::{Syntax, render};

use support::cases::{Case, Step, cases};
use support::lab::{bird, bird1, run, skip};

const PATIENCE: Duration = Duration::from_secs(25);
/// Both sides have been equal for so long.
const SETTLED: Duration = Duration::from_millis(1500);

/// What has one name for each family.
struct Names {
    flag: &'static str,
    channel: &'static str,
    bird1: &'static str,
    main: &'static str,
    /// An address by itself, usable at once.
    host: &'static str,
}

fn names(family: Family) -> Names {
    match family {
        Family::V4 => Names { flag: "-4", channel: "ipv4", bird1: "bird", main: "bird.cfg", host: "/32" },
        Family::V6 => {
            Names { flag: "-6", channel: "ipv6", bird1: "bird6", main: "bird6.cfg", host: "/128 nodad" }
        }
    }
}

/// A node under test and its peer, joined by a veth pair.
struct Pair {
    under_test: String,
    peer: String,
    dir: PathBuf,
    family: Family,
    birds: Vec<Child>,
}

impl Pair {
    fn up(name: &str, dir: &Path, all: &BgpModel, model: &FamilyModel) -> Pair {
        let ns = |who: &str| format!("confdv-{}-{name}-{who}", std::process::id());
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let pair = Pair { under_test: ns("t"), peer: ns("p"), dir, family: model.family, birds: Vec::new() };
        let host = names(model.family).host;
        run("ip", &["netns", "add", &pair.under_test]);
        run("ip", &["netns", "add", &pair.peer]);
        let of = |ns: &str, words: &str| {
            run("ip", &[&["-n", ns], &words.split(' ').collect::<Vec<_>>()[..]].concat())
        };
        of(&pair.under_test, &format!("link add eth0 type veth peer name eth0 netns {}", pair.peer));
        for ns in [&pair.under_test, &pair.peer] {
            of(ns, "link set lo up");
            of(ns, "link set eth0 up");
        }
        let own = model.address.unwrap();
        of(&pair.under_test, &format!("addr add {own}{host} dev eth0"));
        of(&pair.peer, &format!("route add {own} dev eth0"));
        // Two sessions may go to two ports of one address. All are neighbours, whatever their networks.
        for address in model.peers.iter().map(|peer| peer.address).collect::<BTreeSet<_>>() {
            of(&pair.peer, &format!("addr add {address}{host} dev eth0"));
            of(&pair.under_test, &format!("route add {address} dev eth0"));
        }
        // A workload in every own block: it must not leave; and one on the move, which must.
        of(&pair.under_test, "link add cali1 type veth peer name w1");
        of(&pair.under_test, "link set cali1 up");
        of(&pair.under_test, "link set w1 up");
        let route = |net: &dyn std::fmt::Display, metric| {
            of(&pair.under_test, &format!("route replace {net} dev cali1 proto 80 metric {metric}"));
        };
        for block in model.blocks.iter().filter(|block| block.aggregated && block.has_blackhole()) {
            let mut hosts = block.cidr.hosts();
            for metric in [1024, 512] {
                route(&hosts.next().unwrap(), metric);
            }
        }
        // Something for every filter to decide about, and for every pool to let through.
        let filters = all.filters.values().flat_map(|filter| {
            let rules = [Direction::Import, Direction::Export].map(|way| filter.rules(way, model.family));
            rules.into_iter().flatten().filter_map(|rule| Some(rule.net.as_ref()?.net))
        });
        let mut nets: BTreeSet<_> = filters.chain(model.pools.iter().map(|pool| pool.cidr)).collect();
        // Not what the node itself has a route to.
        nets.retain(|net| !model.blocks.iter().any(|block| block.cidr == *net) && net.prefix_len() > 0);
        nets.iter().for_each(|net| route(net, 1024));
        pair
    }

    fn start(&mut self, ns: &str, name: &str, bird: &Path, config: &Path) {
        let log = std::fs::File::create(self.dir.join(format!("{name}.log"))).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", ns])
            .arg(bird)
            .arg("-f")
            .arg("-c")
            .arg(config)
            .arg("-s")
            .arg(self.dir.join(format!("{name}.ctl")))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.birds.push(child);
    }

    /// What the peer's kernel has learned.
    fn learned(&self) -> Vec<String> {
        let routes = run(
            "ip",
            &["-n", &self.peer, names(self.family).flag, "route", "show", "table", "all", "proto", "bird"],
        );
        let mut routes: Vec<String> =
            routes.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        routes.sort();
        routes
    }
}

impl Pair {
    /// How many of the peers' sessions are up.
    fn established(&self, peers: usize) -> usize {
        let is_up = |index: &usize| {
            let mut ask = Command::new("birdc");
            ask.arg("-s").arg(self.dir.join(format!("p{index}.ctl"))).args(["show", "protocols"]);
            let said = ask.output().map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
            said.is_ok_and(|said| {
                said.lines().any(|line| line.contains("BGP") && line.contains("Established"))
            })
        };
        (0..peers).filter(is_up).count()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in &mut self.birds {
            child.kill().ok();
            child.wait().ok();
        }
        for ns in [&self.under_test, &self.peer] {
            Command::new("ip").args(["netns", "del", ns]).stderr(Stdio::null()).status().ok();
        }
    }
}

/// One peer, a BIRD of its own: a BIRD has one session to an address. What it learns goes into a table of its own.
fn peer_config(model: &BgpModel, family: &FamilyModel, index: usize, peer: &Peer) -> String {
    let (own, channel, version) =
        (family.address.unwrap(), names(family.family).channel, family.family.version());
    let table = 100 + index;
    let password =
        peer.password.as_ref().map(|it| format!("password \"{}\"; ", it.reveal())).unwrap_or_default();
    let port = peer.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let remote = model.listen_port.map(|port| format!(" port {port}")).unwrap_or_default();
    let ttl = if peer.ttl_security.is_some() { "ttl security on; " } else { "" };
    let hops = peer.ttl_security.map(|hops| format!(" {hops}")).unwrap_or_default();
    format!(
        "router id 1.2.3.{};\nprotocol device {{ scan time 1; }}\n\
         protocol static {{ {channel}; route {own}/{} via \"eth0\"; }}\n{channel} table t{table};\n\
         protocol kernel {{ metric 0; kernel table {table}; {channel} {{ table t{table}; import none; export all; }}; }}\n\
         protocol bgp p {{ strict bind on; local {}{port} as {}; neighbor {own}{remote} as {}; multihop{hops}; {ttl}{password}\
         connect delay time 1; connect retry time 1; error wait time 1, 2; \
         {channel} {{ table t{table}; igp table master{version}; gateway recursive; import all; export none; }}; }}\n",
        index + 1,
        family.family.bits(),
        peer.address,
        peer.remote_as,
        peer.local_as.unwrap_or(model.local_as),
    )
}

fn compute(case: &Case, step: &Step) -> (BgpModel, Vec<confd::render::Rendered>) {
    let read = step.manifests();
    let mut model = Model::default();
    read.updates.into_iter().for_each(|update| {
        model.on_update(update);
    });
    model.set_secrets(read.secrets);
    model.set_workloads(case.state().workloads);
    let computed = model.compute(&case.local());
    let rendered = render(&computed, Syntax::Bird2);
    (computed, rendered)
}

/// Why a step cannot be run, if so.
fn left_out(step: &Step, family: &FamilyModel) -> Option<&'static str> {
    if step.expected(names(family.family).main).is_none() {
        Some("it expects no files")
    } else if !step.bird1 {
        Some("its files need Calico's BIRD")
    } else if family.address.is_none() || family.peers.is_empty() {
        Some("the node has no peers of the family")
    } else if family.peers.iter().any(|peer| peer.address.is_multicast()) {
        Some("a peer's address is a multicast one")
    } else {
        None
    }
}

/// Waits until every session is up on both sides, and both kernels stay equal; the number of routes.
fn compare(name: &str, model: &FamilyModel, pairs: &[Pair; 2]) -> Result<usize, String> {
    let [one, two] = pairs;
    let deadline = Instant::now() + PATIENCE;
    let mut equal_since = None;
    loop {
        let (classic, ours) = (one.learned(), two.learned());
        let up = [one, two].map(|pair| pair.established(model.peers.len()));
        if up != [model.peers.len(); 2] || classic != ours {
            equal_since = None;
        } else if equal_since.get_or_insert_with(Instant::now).elapsed() > SETTLED {
            return Ok(ours.len());
        }
        if Instant::now() > deadline {
            let log =
                |pair: &Pair, name: &str| std::fs::read_to_string(pair.dir.join(name)).unwrap_or_default();
            return Err(format!(
                "{name}: {up:?} of {} sessions are up\nclassic {classic:#?}\nours    {ours:#?}\n{}\n{}",
                model.peers.len(),
                log(one, "t.log"),
                log(two, "t.log"),
            ));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// One step and family; nothing: it cannot be run.
fn run_step(
    number: usize,
    (case, step, of): (&Case, &Step, Family),
    bird1: &Path,
    bird2: &Path,
    dir: &Path,
) -> Result<Option<usize>, String> {
    let (model, rendered) = compute(case, step);
    let family = if of == Family::V4 { &model.v4 } else { &model.v6 };
    let name = format!("{} ({of:?})", step.name);
    if let Some(why) = left_out(step, family) {
        println!("left out: {name}: {why}");
        return Ok(None);
    }
    let mut pairs = ["a", "b"].map(|one| Pair::up(&format!("{number}{one}"), dir, &model, family));
    let bird1 = bird1.join(names(of).bird1);
    let classic = step.dir.join("expected").join(names(of).main);
    let ours = pairs[1].dir.join("bird.cfg");
    std::fs::write(&ours, rendered[0].text()).unwrap();
    for (pair, (bird, config)) in pairs.iter_mut().zip([(&*bird1, &classic), (bird2, &ours)]) {
        let (under_test, peer) = (pair.under_test.clone(), pair.peer.clone());
        pair.start(&under_test, "t", bird, config);
        for (index, of) in family.peers.iter().enumerate() {
            let name = format!("p{index}");
            let config = pair.dir.join(format!("{name}.cfg"));
            std::fs::write(&config, peer_config(&model, family, index, of)).unwrap();
            pair.start(&peer, &name, bird2, &config);
        }
    }
    compare(&name, family, &pairs).map(Some)
}

#[test]
fn a_peer_learns_the_same_from_both_syntaxes() {
    if skip() {
        return;
    }
    let Some(cases) = cases() else { return };
    let dir = tempfile::tempdir().unwrap();
    let Some(bird1) = bird1(dir.path()) else { return };
    let bird2 = bird().unwrap();
    let steps = cases.iter().flat_map(|case| case.steps.iter().map(move |step| (case, step)));
    let steps: Vec<(&Case, &Step, Family)> =
        steps.flat_map(|(case, step)| [Family::V4, Family::V6].map(|family| (case, step, family))).collect();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    // Most of the time is waiting for BIRDs to meet.
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(step) = steps.get(number) else { return };
                    let result = run_step(number, *step, &bird1, &bird2, dir.path());
                    results.lock().unwrap().push(result);
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    let failed: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let routes: Vec<usize> = results.into_iter().filter_map(|result| result.unwrap()).collect();
    println!("{} steps compared, {} routes learned", routes.len(), routes.iter().sum::<usize>());
    assert!(routes.len() > 40 && routes.iter().sum::<usize>() > 100, "{routes:?}");
}
