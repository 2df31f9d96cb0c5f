//! The BGP conformance cases, rendered for BIRD 2: every step gives a file that stock BIRD parses, and the
//! same peers with the same options, blocks, routes, communities and router ID as the expected files (which
//! are written for BIRD 1).
//!
//! What we cannot use yet (filters, Secrets, services, local workloads, WireGuard) is printed per step.
// Helpers of tests are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use confd::bgp::{LocalSettings, Model, NextHop, Peer, RouterId};
use confd::render::{Syntax, render};
use serde_json::Value as Json;
use syncer_common::manifests::load_updates;
use syncer_common::model::{Update, Value};

use support::lab::bird;

fn required() -> bool {
    std::env::var_os("BULRUSH_REQUIRE").is_some_and(|value| value == "1")
}

fn cases() -> Option<PathBuf> {
    let root = std::env::var_os("BULRUSH_CONFORMANCE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance"),
        PathBuf::from,
    );
    let cases = root.join("confd");
    if cases.join("index.json").exists() {
        return Some(cases);
    }
    assert!(!required(), "no conformance folder at {}", cases.display());
    println!("SKIPPED: no conformance folder");
    None
}

struct Step {
    name: String,
    dir: PathBuf,
    local: LocalSettings,
}

fn read_json(path: &Path) -> Json {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn steps(cases: &Path) -> Vec<Step> {
    let mut steps = Vec::new();
    for case in read_json(&cases.join("index.json"))["cases"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        let folder = cases.join(id);
        let environment: BTreeMap<String, String> = std::fs::read_to_string(folder.join("env"))
            .unwrap()
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let get = |name: &str| environment.get(name).cloned();
        let local = LocalSettings {
            node: get("NODENAME").unwrap(),
            router_id: match get("CALICO_ROUTER_ID").as_deref() {
                None => RouterId::NodeAddress,
                Some("hash") => RouterId::Hash,
                Some(id) => RouterId::Fixed(id.parse().unwrap()),
            },
            log_severity: get("BGP_LOGSEVERITYSCREEN"),
            advertise_cluster_ips: get("CALICO_ADVERTISE_CLUSTER_IPS").map(|ranges| vec![ranges]),
        };
        for step in read_json(&folder.join("case.json"))["steps"].as_array().unwrap() {
            let dir = step["dir"].as_str().unwrap();
            steps.push(Step { name: format!("{id}/{dir}"), dir: folder.join(dir), local: local.clone() });
        }
    }
    steps
}

fn model(updates: Vec<Update>) -> Model {
    let mut model = Model::default();
    updates.into_iter().for_each(|update| {
        model.on_update(update);
    });
    model
}

#[test]
fn every_step_renders_to_a_file_that_stock_bird_parses() {
    let Some(cases) = cases() else { return };
    let Some(bird) = bird() else {
        assert!(!required(), "BIRD is not installed");
        println!("SKIPPED: BIRD is not installed");
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let (mut parsed, mut failures) = (0, Vec::new());
    for step in steps(&cases) {
        let (updates, errors) = load_updates(&step.dir.join("input.yaml"));
        let computed = model(updates).compute(&step.local);
        let rendered = render(&computed, Syntax::Bird2);
        let unused: BTreeSet<String> = errors
            .iter()
            .map(ToString::to_string)
            .chain(computed.problems.iter().chain(&rendered.problems).map(ToString::to_string))
            .map(|text| text.replace(&format!("{}/", step.dir.display()), ""))
            .collect();
        for text in unused {
            println!("{}: not used: {text}", step.name);
        }
        let file = out.path().join("bird.cfg");
        std::fs::write(&file, &rendered.text).unwrap();
        let check = Command::new(&bird).arg("-p").arg("-c").arg(&file).output().unwrap();
        if check.status.success() {
            parsed += 1;
        } else {
            failures.push(format!("{}: {}", step.name, String::from_utf8_lossy(&check.stderr)));
        }
    }
    println!("{parsed} steps parse");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(parsed > 0, "the folder holds no step");
}

#[test]
fn every_step_has_the_expected_peers_with_their_options() {
    let Some(cases) = cases() else { return };
    let (mut compared, mut failures) = (0, Vec::new());
    for step in steps(&cases) {
        let expected = step.dir.join("expected");
        let files = ["bird.cfg", "bird6.cfg"].map(|name| std::fs::read_to_string(expected.join(name)));
        let [Ok(v4), Ok(v6)] = files else {
            let count = std::fs::read_to_string(expected.join("bgp_protocol_count")).unwrap();
            let (updates, _) = load_updates(&step.dir.join("input.yaml"));
            let computed = model(updates).compute(&step.local);
            assert_eq!(computed.v4.peers.len(), count.trim().parse::<usize>().unwrap(), "{}", step.name);
            compared += 1;
            continue;
        };
        let (mut updates, _) = load_updates(&step.dir.join("input.yaml"));
        // Which peers there are does not depend on passwords and filters; whether they are opened does.
        for update in &mut updates {
            match &mut update.value {
                Ok(Value::BgpPeer(peer)) => {
                    peer.password = None;
                    peer.filters.clear();
                }
                Ok(Value::BgpConfiguration(configuration)) => configuration.node_mesh_password = None,
                _ => {}
            }
        }
        let computed = model(updates).compute(&step.local);
        let ours: BTreeMap<String, BTreeSet<String>> =
            computed.peers().map(|peer| (peer.name(), options(peer, computed.cluster_id))).collect();
        let theirs: BTreeMap<String, BTreeSet<String>> =
            expected_peers(&v4).into_iter().chain(expected_peers(&v6)).collect();
        compared += 1;
        for name in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
            if ours.get(name) != theirs.get(name) {
                failures.push(format!(
                    "{}: {name}:\n  ours   {:?}\n  theirs {:?}",
                    step.name,
                    ours.get(name),
                    theirs.get(name)
                ));
            }
        }
    }
    println!("peers of {compared} steps are as expected");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(compared > 0, "the folder holds no step");
}

#[test]
fn every_step_has_the_expected_blocks_routes_and_communities() {
    let Some(cases) = cases() else { return };
    let (mut compared, mut failures) = (0, Vec::new());
    for step in steps(&cases) {
        let read = |name: &str| std::fs::read_to_string(step.dir.join("expected").join(name));
        let (updates, _) = load_updates(&step.dir.join("input.yaml"));
        let rendered = render(&model(updates).compute(&step.local), Syntax::Bird2).text;
        let ours = statements(&rendered);
        // Services' own routes are not ours yet; their ranges are.
        let input = std::fs::read_to_string(step.dir.join("input.yaml")).unwrap();
        let services = input.contains("kind: Service");
        let mut theirs = BTreeSet::new();
        for name in ["bird.cfg", "bird6.cfg", "bird_aggr.cfg", "bird6_aggr.cfg"] {
            theirs.extend(read(name).map(|text| statements(&text)).unwrap_or_default());
        }
        if theirs.is_empty() {
            continue;
        }
        compared += 1;
        let missing = theirs.difference(&ours).filter(|_| !services);
        let extra = ours.difference(&theirs);
        let wrong: Vec<_> = missing
            .map(|text| format!("lacks {text}"))
            .chain(extra.map(|text| format!("has {text}")))
            .collect();
        if !wrong.is_empty() {
            failures.push(format!("{}: {}", step.name, wrong.join("; ")));
        }
    }
    println!("routes of {compared} steps are as expected");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(compared > 0, "the folder holds no step");
}

/// Static routes, block filters, communities and the router ID: what is written alike in both syntaxes.
fn statements(text: &str) -> BTreeSet<String> {
    const KNOWN: [&str; 5] =
        ["route ", "router id ", "bgp_community.add(", "bgp_large_community.add(", "if net = "];
    // BGPFilter functions have quoted names, and nothing of interest follows them.
    let text = text.split("function '").next().unwrap_or_default();
    text.lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().split([';', '{', '}']))
        .map(|part| part.replace("( net", "net").replace(" ) then", " then"))
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .map(|part| part.strip_suffix(" accept").map(str::to_owned).unwrap_or(part))
        .filter(|part| KNOWN.iter().any(|known| part.starts_with(known)))
        .collect()
}

/// A peer's statements in the words of BIRD 1, filters and passwords apart.
fn options(peer: &Peer, cluster_id: Option<std::net::Ipv4Addr>) -> BTreeSet<String> {
    let port = peer.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let mut options = BTreeSet::from([
        format!("neighbor {}{port} as {}", peer.address, peer.remote_as),
        format!("calico_export_to_bgp_peers({})", peer.same_as),
    ]);
    let mut add = |option: Option<String>| options.extend(option);
    add(peer.local_as.map(|number| format!("local as {number}")));
    add(peer.source.map(|source| format!("source address {source}")));
    match peer.ttl_security {
        Some(hops) => {
            add(Some("ttl security on".into()));
            add(Some(format!("multihop {hops}")));
        }
        None => {
            add(Some("ttl security off".into()));
            add(Some("multihop".into()));
        }
    }
    add(peer.passive.then(|| "passive on".into()));
    add(peer.restart_seconds.map(|seconds| format!("graceful restart time {seconds}")));
    add(peer.keepalive_seconds.map(|seconds| format!("keepalive time {seconds}")));
    if let (true, Some(id)) = (peer.reflector_client, cluster_id) {
        add(Some("rr client".into()));
        add(Some(format!("rr cluster id {id}")));
    }
    match peer.next_hop {
        NextHop::Auto => {}
        NextHop::Own => add(Some("next hop self".into())),
        NextHop::Keep => add(Some("next hop keep".into())),
    }
    add(peer.allowed_own_as.map(|times| format!("allow local as {times}")));
    options
}

/// The peers of an expected file with their statements; filters, passwords and local workloads apart.
fn expected_peers(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    const KNOWN: [&str; 14] = [
        "neighbor ",
        "local as ",
        "source address ",
        "ttl security ",
        "multihop",
        "passive on",
        "graceful restart time ",
        "keepalive time ",
        "rr client",
        "rr cluster id ",
        "next hop ",
        "allow local as ",
        "calico_export_to_bgp_peers(",
        "multihop ",
    ];
    let plain: String =
        text.lines().map(|line| line.split('#').next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut peers = BTreeMap::new();
    for part in plain.split("protocol bgp ").skip(1) {
        let (name, body) = part.split_once(" from ").unwrap();
        let statements = body
            .split([';', '{', '}'])
            .map(|statement| statement.split_whitespace().collect::<Vec<_>>().join(" "))
            .filter(|statement| KNOWN.iter().any(|known| statement.starts_with(known)))
            .collect();
        if !name.starts_with("Local_Workload") {
            peers.insert(name.trim().to_owned(), statements);
        }
    }
    peers
}
