//! Nodes on which things come, go, flap and collide, while the agent runs, starts or dies: in the end the kernel holds
//! what it should, and the metrics say so.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::collections::BTreeMap;
use std::time::Duration;

use dataplane_support::cluster::{cluster, difference, endpoint, policy, pool, profile, state, workload_key};
use dataplane_support::node::{Node, SOCKET};
use dataplane_support::{Lab, eventually, in_namespace};
use felix::control::ask;
use felix::iptables::Backend;
use metrics_exporter_prometheus::PrometheusBuilder;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use syncer_common::model::{Key, Update};

const LIMIT: Duration = Duration::from_secs(40);
const TOOLS: [&str; 5] = ["ip", "ipset", "iptables-nft-restore", "iptables-legacy-restore", "conntrack"];

fn workload(name: &str) -> Key {
    Key::WorkloadEndpoint(workload_key(name))
}

/// Waits for a line of `felix status`.
async fn says(lab: &Lab, line: &str) {
    eventually(LIMIT, async || {
        let status = ask(&lab.path().join(SOCKET), &["status"]).await.unwrap();
        if status.contains(line) { Ok(()) } else { Err(format!("{line:?} is missing in\n{status}")) }
    })
    .await;
}

async fn is_again(lab: &Lab, before: &str, after: &str) {
    eventually(LIMIT, async || {
        let now = state(lab, Backend::Nft);
        if now == before { Ok(()) } else { Err(format!("after `{after}`:\n{}", difference(before, &now))) }
    })
    .await;
}

#[test]
fn interfaces_that_flap_or_are_renamed_end_with_their_routes() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("cali1");
        lab.veth("cali2");
        let mut node = Node::start(&lab, Backend::Nft).await;
        node.program(cluster()).await;
        let up = "up    workload default/client eth0 (cali2)";
        let down = "down  workload default/client eth0 (cali2)";
        let file = lab.path().join("status/endpoint-status/k8s default%2Fclient eth0");
        says(&lab, up).await;
        says(&lab, "up    workload default/web eth0 (cali1)").await;
        let before = state(&lab, Backend::Nft);
        for flap in [
            "for i in 1 2 3 4 5 6 7 8; do ip link set cali2 down; ip link set cali2 up; done",
            // The carrier.
            "for i in 1 2 3 4 5 6 7 8; do ip link set pcali2 down; ip link set pcali2 up; done",
            "for i in 1 2 3 4; do ip link set cali2 down; ip link set cali2 name other; ip link set other up; ip link set other down; ip link set other name cali2; ip link set cali2 up; done",
            // Two that change their names with one another.
            "ip link set cali1 down; ip link set cali2 down; ip link set cali1 name other; ip link set cali2 name cali1; ip link set other name cali2; ip link set cali1 up; ip link set cali2 up",
            "for i in 1 2 3 4; do ip link del cali2; ip link add cali2 type veth peer name pnew$i; ip link set pnew$i up; ip link set cali2 up; done",
        ] {
            lab.sh(flap);
            is_again(&lab, &before, flap).await;
            says(&lab, up).await;
        }
        // Under another name it is nobody's. One that is up keeps its routes when it is renamed, which Linux allows since 6.2;
        // so it does when it was down for less than felix took to make its route again.
        for rename in [
            "ip link set cali2 down; ip link set cali2 name other; ip link set other up",
            "ip link set cali2 name other || (ip link set cali2 down; ip link set cali2 name other; ip link set other up)",
        ] {
            lab.sh(rename);
            says(&lab, down).await;
            eventually(LIMIT, async || {
                let there = lab.sh("ip route; ip neigh show nud permanent");
                let gone = !file.exists() && !there.contains("10.65.0.2");
                if gone { Ok(()) } else { Err(format!("after `{rename}`: {there} file: {}", file.exists())) }
            })
            .await;
            lab.sh("ip link set other down; ip link set other name cali2; ip link set cali2 up");
            is_again(&lab, &before, "renamed back").await;
            says(&lab, up).await;
            eventually(LIMIT, async || file.exists().then_some(()).ok_or("no status file".to_owned())).await;
        }
        node.stop().await;
    });
}

#[test]
fn of_two_workloads_with_one_address_the_newest_interface_has_it_and_the_other_inherits() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("cali1");
        lab.veth("cali2");
        let mut node = Node::start(&lab, Backend::Nft).await;
        let mut updates = cluster();
        updates.push(endpoint("client", "cali2", "10.65.0.1"));
        node.program(updates).await;
        let leads = async |interface: &str, web: &str, client: &str| {
            eventually(LIMIT, async || {
                let routes = lab.sh("ip route show 10.65.0.1");
                let told =
                    [node.reports.endpoint(&workload("web")), node.reports.endpoint(&workload("client"))];
                let right =
                    routes.starts_with(&format!("10.65.0.1 dev {interface} ")) && routes.lines().count() == 1;
                match right && told.map(Option::unwrap_or_default) == [web, client] {
                    true => Ok(()),
                    false => Err(format!("{interface}: {routes} {told:?}")),
                }
            })
            .await;
        };
        leads("cali2", "down", "up").await;
        // Its interface goes, and comes back as the newest.
        lab.sh("ip link del cali2");
        leads("cali1", "up", "down").await;
        lab.veth("cali2");
        leads("cali2", "down", "up").await;
        lab.sh("ip link set cali2 down");
        leads("cali1", "up", "down").await;
        lab.sh("ip link set cali2 up");
        leads("cali2", "down", "up").await;
        // The workload goes.
        node.graph.on_update(Update::delete(workload("client")));
        let cut = node.seq;
        node.program(Vec::new()).await;
        assert!(node.seq > cut);
        eventually(LIMIT, async || {
            let routes = lab.sh("ip route show 10.65.0.1");
            let told = node.reports.endpoint(&workload("web"));
            let right = routes.starts_with("10.65.0.1 dev cali1 ") && told == Some("up");
            if right { Ok(()) } else { Err(format!("{routes} {told:?}")) }
        })
        .await;
        node.stop().await;
    });
}

const WORKLOADS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// What the cluster is like in each of some rounds.
fn history(seed: u64, rounds: usize) -> Vec<Vec<Update>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut now: BTreeMap<Key, Update> = BTreeMap::new();
    for update in [pool(), profile()] {
        now.insert(update.key.clone(), update);
    }
    let round = |_| {
        for _ in 0..6 {
            let n = rng.random_range(0..WORKLOADS.len());
            let other = WORKLOADS[rng.random_range(0..WORKLOADS.len())];
            let update = match rng.random_range(0..2) {
                0 => {
                    let ip = format!("10.65.{}.{n}", rng.random_range(0..3));
                    endpoint(WORKLOADS[n], &format!("cali{n}"), &ip)
                }
                _ => policy(&format!("p{n}"), WORKLOADS[n], other),
            };
            match rng.random_bool(0.3) {
                true => now.remove(&update.key),
                false => now.insert(update.key.clone(), update),
            };
        }
        now.values().cloned().collect()
    };
    (0..rounds).map(round).collect()
}

/// Lives through the rounds, each but the last cut short; what the kernel holds in the end has to be as given.
fn live(backend: Backend, rounds: Vec<Vec<Update>>, expected: Option<String>) -> String {
    let (ended, end) = std::sync::mpsc::channel();
    in_namespace(&TOOLS, move |lab| async move {
        let mut rng = StdRng::seed_from_u64(rounds.len() as u64);
        (0..WORKLOADS.len()).for_each(|n| lab.veth(&format!("cali{n}")));
        let (last, cut_short) = rounds.split_last().unwrap();
        for (n, updates) in cut_short.iter().enumerate() {
            let mut node = Node::start(&lab, backend).await;
            let (first, second) = updates.split_at(updates.len() / 2);
            node.feed(first.to_vec()).await;
            let flapping = format!("cali{}", rng.random_range(0..WORKLOADS.len()));
            lab.sh(&format!("ip link del {flapping}"));
            node.feed(second.to_vec()).await;
            lab.veth(&flapping);
            // Not a wait: wherever it has got to, there it ends.
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..400))).await;
            if n % 4 == 3 { node.stop().await } else { node.crash().await }
        }
        let mut node = Node::start(&lab, backend).await;
        node.program(last.clone()).await;
        let mut before = String::new();
        let reached = eventually(LIMIT, async || {
            let now = state(&lab, backend);
            let settled = std::mem::replace(&mut before, now.clone()) == now;
            match &expected {
                Some(expected) if *expected != now => Err(difference(expected, &now)),
                None if !settled => Err("still changing".to_owned()),
                _ => Ok(now),
            }
        })
        .await;
        says(&lab, "nothing is pending").await;
        node.stop().await;
        ended.send(reached).unwrap();
    });
    end.try_recv().unwrap_or_default()
}

fn converges(backend: Backend) {
    let rounds = history(1, 8);
    let undisturbed = live(backend, vec![rounds.last().unwrap().clone()], None);
    live(backend, rounds, Some(undisturbed));
}

#[test]
fn churn_while_the_agent_starts_stops_and_crashes_converges_on_nft() {
    converges(Backend::Nft);
}

#[test]
fn churn_while_the_agent_starts_stops_and_crashes_converges_on_legacy() {
    converges(Backend::Legacy);
}

/// The value of a series.
fn value(scraped: &str, series: &str) -> Option<f64> {
    let line = scraped.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.trim().parse().expect("a number"))
}

#[test]
fn metrics_match_what_is_in_the_kernel() {
    in_namespace(&TOOLS, |lab| async move {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        // The agent runs in this thread.
        let _guard = metrics::set_default_local_recorder(&recorder);
        lab.veth("cali1");
        lab.veth("cali2");
        let mut node = Node::start(&lab, Backend::Nft).await;
        let count = |line: &str| lab.sh(&format!("{line} | wc -l")).trim().parse::<usize>().unwrap() as f64;
        let agrees = async |endpoints: usize, policies: usize| {
            eventually(LIMIT, async || {
                let mut wanted = vec![
                    ("felix_active_local_endpoints".to_owned(), endpoints as f64),
                    ("felix_active_local_policies".to_owned(), policies as f64),
                    ("felix_route_table_num_routes".to_owned(), count("ip route | grep 'dev cali'")),
                ];
                for (version, program) in [("4", "iptables"), ("6", "ip6tables")] {
                    for table in ["raw", "mangle", "nat", "filter"] {
                        let labels = format!("{{ip_version=\"{version}\",table=\"{table}\"}}");
                        let saved = format!("{program}-nft-save -t {table}");
                        let chains = count(&format!("{saved} | grep '^:cali-'"));
                        let rules = count(&format!("{saved} | grep '^-A cali-'"));
                        wanted.push((format!("felix_iptables_chains{labels}"), chains));
                        wanted.push((format!("felix_iptables_rules{labels}"), rules));
                    }
                    let sets = count(&format!("ipset list -name | grep '^cali{version}0'"));
                    wanted.push((format!("felix_ipsets_calico{{ip_version=\"{version}\"}}"), sets));
                }
                let scraped = handle.render();
                let wrong: Vec<_> = wanted
                    .iter()
                    .filter(|(series, right)| value(&scraped, series) != Some(*right))
                    .map(|(series, right)| format!("{series} is {:?}, not {right}", value(&scraped, series)))
                    .collect();
                if wrong.is_empty() { Ok(wanted) } else { Err(wrong.join("\n")) }
            })
            .await
        };
        node.program(cluster()).await;
        let full = agrees(2, 1).await;
        assert!(
            full.iter().any(|(series, routes)| series.contains("num_routes") && *routes == 2.0),
            "{full:?}"
        );
        node.program(vec![Update::delete(policy("web", "web", "client").key)]).await;
        agrees(2, 0).await;
        node.program(vec![Update::delete(workload("web")), Update::delete(workload("client"))]).await;
        let empty = agrees(0, 0).await;
        assert!(full.iter().zip(&empty).any(|(full, empty)| full.1 > empty.1));
        assert_eq!(value(&handle.render(), "felix_int_dataplane_failures"), Some(0.0));
        node.stop().await;
    });
}
