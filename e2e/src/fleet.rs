//! Simulated nodes beside the real ones: `loadtest follow` in the control namespace.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::cluster::{Cluster, endpoint_manifest};
use crate::lab::Workload;

/// A line with the receipts of a thousand nodes is shorter.
const TAIL: u64 = 64 << 10;

pub struct Fleet {
    log: PathBuf,
}

/// What all simulated nodes together have come to (`loadtest follow`).
#[derive(Clone, Debug, Deserialize)]
pub struct Stand {
    pub nodes: usize,
    pub connected: usize,
    pub in_sync: usize,
    /// Nodes that hold the same as most do, and the entries of that.
    pub alike: usize,
    pub entries: usize,
    pub deletions: u64,
    /// Streams that ended, and of these the ones that a server sent on to another.
    pub disconnects: u64,
    pub sent_on: u64,
    pub mistakes: Vec<String>,
    pub watched: Option<Watched>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Watched {
    pub value: String,
    pub received_unix_micros: Vec<u64>,
}

impl Fleet {
    /// Starts so many nodes; `watched` is part of the key of the entry whose spreading is of interest.
    pub fn start(cluster: &mut Cluster, nodes: usize, watched: &str) -> Result<Fleet> {
        let mut command = cluster.program("loadtest");
        command
            .args(["follow", "--typha", &Cluster::servers(), "--nodes", &nodes.to_string()])
            .args(["--prefix", "sim", "--watch", watched]);
        cluster.start("loadtest", command)?;
        Ok(Fleet { log: cluster.log("loadtest") })
    }

    pub fn stand(&self) -> Result<Stand> {
        let mut file = File::open(&self.log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // The last line may be half written, and errors are in the same file.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let line = whole.lines().rfind(|line| line.starts_with('{')).context("nothing said yet")?;
        serde_json::from_str(line).with_context(|| format!("reading {line}"))
    }
}

/// Objects of the simulated nodes, each with a pod.
pub fn manifests(nodes: usize) -> String {
    let mut text = String::new();
    for index in 0..nodes {
        let node = format!("sim{index:03}");
        let number = u32::try_from(index).expect("few nodes");
        let pod = Workload {
            name: format!("pod-{index:03}"),
            node: node.clone(),
            netns: String::new(),
            ip: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 245, 0, 0)) + number),
            ip6: std::net::Ipv6Addr::UNSPECIFIED,
            interface: format!("cali{index:011x}"),
            labels: vec![("load".into(), "simulated".into())],
        };
        text += &format!(
            "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {{name: {node}}}\nspec: {{}}\n---\n{}---\n",
            endpoint_manifest(&pod)
        );
    }
    text
}
