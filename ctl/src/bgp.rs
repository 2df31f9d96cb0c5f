//! `bgp advise`: when a full mesh is too large, which nodes should reflect routes, and the change itself.
//!
//! A node that becomes a reflector leaves the mesh, and all its sessions start anew. So reflectors are nodes
//! without address blocks: nothing is routed to them that could be lost. The order is: the peerings, which
//! select nobody yet; then one reflector after the other, in one write each; the mesh goes last, when every
//! node has its routes from reflectors as well. After each step time is given for sessions to come up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use syncer_common::apis::Resource;
use syncer_common::backend::Datastore;
use syncer_common::model::Key;

use crate::write::{Verb, edit, handle};
use crate::{Report, get};

/// Above this a mesh costs every node more sessions than it is worth.
const MESH_LIMIT: usize = 100;
/// Two can fail one at a time; beyond, a reflector serves this many.
const NODES_PER_REFLECTOR: usize = 500;
pub const LABEL: &str = "route-reflector";
const PEERINGS: [&str; 2] = ["route-reflector-clients", "route-reflector-mesh"];
/// Labels that say where a node stands, the first that nodes have.
const PLACES: [&str; 4] =
    ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone", "zone", "rack"];

#[derive(clap::Args, Clone, Debug, Default)]
pub struct Advise {
    /// Make the change, step by step.
    #[arg(long)]
    pub apply: bool,
    /// The reflectors, instead of those that would be chosen.
    #[arg(long, value_delimiter = ',', value_name = "NODE,…")]
    pub reflectors: Vec<String>,
    /// Nodes with address blocks may become reflectors: what runs on them is cut off while their sessions start anew.
    #[arg(long)]
    pub accept_interruption: bool,
    /// How long sessions are given to come up after each step.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub settle: Duration,
}

/// What advice is made from.
#[derive(Debug, Default)]
struct Cluster {
    /// BGP nodes with their labels.
    nodes: BTreeMap<String, BTreeMap<String, String>>,
    reflectors: BTreeSet<String>,
    with_blocks: BTreeSet<String>,
    mesh: bool,
    configuration: bool,
    /// A BGPPeer uses a name that the change needs, for something else.
    foreign: Vec<String>,
}

pub async fn advise(store: &dyn Datastore, options: &Advise) -> Result<Report> {
    let cluster = read(store).await?;
    let (count, sessions) =
        (cluster.nodes.len(), cluster.nodes.len() * cluster.nodes.len().saturating_sub(1) / 2);
    let mut text = if cluster.mesh {
        format!(
            "{count} nodes in a full mesh: {sessions} sessions, {} on every node.\n",
            count.saturating_sub(1)
        )
    } else {
        format!("{count} nodes, no full mesh; {} reflectors.\n", cluster.reflectors.len())
    };
    if !cluster.mesh || (count <= MESH_LIMIT && options.reflectors.is_empty()) {
        text += "Nothing to change.\n";
        return Ok(text.into());
    }
    let chosen = choose(&cluster, &options.reflectors)?;
    if !cluster.foreign.is_empty() {
        bail!("BGPPeer {} is there with another meaning: rename it first", cluster.foreign.join(", "));
    }
    let loaded: Vec<&str> =
        chosen.iter().map(String::as_str).filter(|name| cluster.with_blocks.contains(*name)).collect();
    text += &format!(
        "Reflectors: {}. Each other node then has {} sessions.\n\n",
        chosen.join(", "),
        chosen.len()
    );
    text += "Steps, in this order, with time for sessions to come up after each:\n";
    text += &format!("  1. BGPPeer {}: they select nobody yet\n", PEERINGS.join(" and "));
    for (index, name) in chosen.iter().enumerate() {
        let id = cluster_id(index);
        text +=
            &format!("  {}. Node {name}: label {LABEL}=true and cluster ID {id}, in one write\n", index + 2);
    }
    text += &format!("  {}. BGPConfiguration default: nodeToNodeMeshEnabled: false\n", chosen.len() + 2);
    let mut warnings = Vec::new();
    if !loaded.is_empty() {
        warnings.push(format!(
            "{} have address blocks: what runs there is cut off for the seconds in which their sessions start anew. \
             Choose nodes without (--reflectors), or drain these and release their blocks first",
            loaded.join(", ")
        ));
    }
    if !options.apply {
        text += "\nNothing was changed: --apply does it.\n";
        return Ok(Report { text, warnings, complete: true, exit: None });
    }
    if !loaded.is_empty() && !options.accept_interruption {
        bail!("{}; or give --accept-interruption", warnings.remove(0));
    }
    apply(store, &cluster, &chosen, options.settle).await?;
    text += "\nDone.\n";
    Ok(Report { text, warnings, complete: true, exit: None })
}

async fn read(store: &dyn Datastore) -> Result<Cluster> {
    let mut cluster = Cluster { mesh: true, ..Default::default() };
    for (_, node) in get::list_stored(store, get::kind("node")?).await? {
        let bgp = &node.spec["bgp"];
        if !["ipv4Address", "ipv6Address"]
            .iter()
            .any(|family| bgp[family].as_str().is_some_and(|text| !text.is_empty()))
        {
            continue;
        }
        if bgp["routeReflectorClusterID"].as_str().is_some_and(|id| !id.is_empty()) {
            cluster.reflectors.insert(node.metadata.name.clone());
        }
        cluster.nodes.insert(node.metadata.name, node.metadata.labels);
    }
    for (_, configuration) in get::list_stored(store, get::kind("bgpconfiguration")?).await? {
        if configuration.metadata.name == "default" {
            cluster.configuration = true;
            cluster.mesh = configuration.spec["nodeToNodeMeshEnabled"].as_bool().unwrap_or(true);
        }
    }
    for (kv, _) in get::list_stored(store, get::kind("blockaffinity")?).await? {
        if let Some(Key::BlockAffinity(key)) = Key::parse_stored(&kv.key) {
            cluster.with_blocks.insert(key.host);
        }
    }
    for (_, block) in get::list_stored(store, get::kind("ipamblock")?).await? {
        if let Some(host) = block.spec["affinity"].as_str().and_then(|text| text.strip_prefix("host:")) {
            cluster.with_blocks.insert(host.to_owned());
        }
    }
    let ours = peerings();
    for (_, peer) in get::list_stored(store, get::kind("bgppeer")?).await? {
        let own = ours.iter().find(|own| own.metadata.name == peer.metadata.name);
        if own.is_some_and(|own| own.spec != peer.spec) {
            cluster.foreign.push(peer.metadata.name);
        }
    }
    Ok(cluster)
}

/// As many as are needed, in as many places as there are; nodes without blocks first, then by name.
fn choose(cluster: &Cluster, named: &[String]) -> Result<Vec<String>> {
    if !named.is_empty() {
        if let Some(unknown) = named.iter().find(|name| !cluster.nodes.contains_key(*name)) {
            bail!("{unknown} is not a node with BGP");
        }
        if named.len() < 2 {
            bail!("one reflector is one too few: when it fails, every route goes");
        }
        return Ok(named.to_vec());
    }
    let wanted = cluster.nodes.len().div_ceil(NODES_PER_REFLECTOR).max(2);
    let place = |name: &str| {
        let labels = &cluster.nodes[name];
        PLACES.iter().find_map(|label| labels.get(*label)).cloned().unwrap_or_default()
    };
    let mut candidates: Vec<&String> = cluster.nodes.keys().collect();
    candidates.sort_by_key(|name| (!cluster.reflectors.contains(*name), cluster.with_blocks.contains(*name)));
    let mut chosen: Vec<String> = Vec::new();
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    while chosen.len() < wanted.min(cluster.nodes.len()) {
        // Blocks weigh more than places: a cut-off workload is worse than two reflectors in a rack.
        let next = candidates.iter().filter(|name| !chosen.contains(name)).min_by_key(|name| {
            let blocks = cluster.with_blocks.contains(**name) && !cluster.reflectors.contains(**name);
            (blocks, used.get(&place(name)).copied().unwrap_or(0))
        });
        let Some(next) = next else { break };
        *used.entry(place(next)).or_default() += 1;
        chosen.push((*next).clone());
    }
    Ok(chosen)
}

/// Different ones: a reflector then takes what the others reflect, and a node lives while any of them does.
fn cluster_id(index: usize) -> String {
    format!("244.0.{}.{}", (index + 1) / 256, (index + 1) % 256)
}

fn peerings() -> Vec<Resource> {
    let peer = |name: &str, nodes: String| -> Resource {
        let object = json!({
            "apiVersion": "projectcalico.org/v3",
            "kind": "BGPPeer",
            "metadata": { "name": name },
            "spec": { "nodeSelector": nodes, "peerSelector": format!("has({LABEL})") },
        });
        Resource::from_json(object).expect("written here")
    };
    let [clients, mesh] = PEERINGS;
    vec![peer(clients, format!("!has({LABEL})")), peer(mesh, format!("has({LABEL})"))]
}

async fn apply(store: &dyn Datastore, cluster: &Cluster, chosen: &[String], settle: Duration) -> Result<()> {
    handle(store, Verb::Apply, peerings()).await?;
    for (index, name) in chosen.iter().enumerate() {
        let change = |old: &Resource| {
            let mut new = old.clone();
            new.metadata.labels.insert(LABEL.to_owned(), "true".to_owned());
            let own = &mut new.spec["bgp"]["routeReflectorClusterID"];
            if own.as_str().is_none_or(str::is_empty) {
                *own = Value::from(cluster_id(index));
            }
            Ok(new)
        };
        edit(store, get::kind("node")?, name, "", &change).await?;
        eprintln!("Node {name} reflects routes; waiting {} s for its sessions", settle.as_secs());
        tokio::time::sleep(settle).await;
    }
    if cluster.configuration {
        let change = |old: &Resource| {
            let mut new = old.clone();
            if !new.spec.is_object() {
                new.spec = json!({});
            }
            new.spec["nodeToNodeMeshEnabled"] = Value::from(false);
            Ok(new)
        };
        return edit(store, get::kind("bgpconfiguration")?, "default", "", &change).await;
    }
    let object = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "BGPConfiguration",
        "metadata": { "name": "default" },
        "spec": { "nodeToNodeMeshEnabled": false },
    });
    handle(store, Verb::Create { skip_exists: false }, vec![Resource::from_json(object)?]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(nodes: usize, without_blocks: &[&str]) -> Cluster {
        let mut cluster = Cluster { mesh: true, ..Default::default() };
        for n in 0..nodes {
            let labels = BTreeMap::from([("rack".to_owned(), format!("r{}", n % 3))]);
            cluster.nodes.insert(format!("n{n:04}"), labels);
            cluster.with_blocks.insert(format!("n{n:04}"));
        }
        for name in without_blocks {
            cluster.with_blocks.remove(*name);
        }
        cluster
    }

    #[test]
    fn nodes_without_blocks_come_first_and_places_are_spread() {
        let spread = choose(&cluster(120, &["n0003", "n0006", "n0007"]), &[]).unwrap();
        assert_eq!(spread, ["n0003", "n0007"], "n0006 is in the rack of n0003");
        assert_eq!(choose(&cluster(120, &["n0003", "n0006"]), &[]).unwrap(), ["n0003", "n0006"]);
        assert_eq!(choose(&cluster(1200, &[]), &[]).unwrap(), ["n0000", "n0001", "n0002"]);
    }

    #[test]
    fn reflectors_that_are_named_have_to_exist_and_to_be_two() {
        let cluster = cluster(3, &[]);
        assert!(choose(&cluster, &["n0000".into()]).is_err());
        assert!(choose(&cluster, &["n0000".into(), "x".into()]).is_err());
        assert_eq!(choose(&cluster, &["n0001".into(), "n0000".into()]).unwrap(), ["n0001", "n0000"]);
    }

    #[test]
    fn cluster_ids_differ() {
        let all: BTreeSet<String> = (0..600).map(cluster_id).collect();
        assert_eq!(all.len(), 600);
        assert!(all.iter().all(|id| id.parse::<std::net::Ipv4Addr>().is_ok()));
    }
}
