//! Real nodes beside simulated ones: felix, confd and BIRD, each node in a network of its own.
//!
//! After each phase every agent has to have acknowledged the newest change, and then every kernel is compared with the
//! cluster, once: an acknowledgement says that the kernel has it. While a phase writes, one policy is edited again and
//! again, and how long that takes into the kernels is measured.

mod agents;
mod answers;
mod kernel;
pub mod netns;
mod probe;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::cluster::{self, Cluster, Object};
use crate::latency::Latencies;
use crate::report::{RealNodes, RealPhase, RealUsage};
use crate::source::Source;
use agents::{Agents, Programs};
use answers::Typhas;
use netns::Namespace;
pub use probe::Probing;

/// Pods of each node that are given an interface, of those that are there from the beginning.
const PLUGGED: usize = 8;
const POLL: Duration = Duration::from_millis(50);

pub struct Real {
    nodes: Vec<Node>,
    programs: Programs,
    typhas: Typhas,
    /// From the writing of an edit until a node has it in force.
    applied: Arc<Latencies>,
    /// Of the policy that is edited.
    version: Arc<std::sync::atomic::AtomicU32>,
    compared: usize,
    /// To see that it is found: felix of the first node stands still from the first phase on.
    stop_felix: bool,
    /// What the agents keep on disk; the last to go.
    _folder: tempfile::TempDir,
}

struct Node {
    /// In the cluster.
    index: usize,
    name: String,
    address: String,
    namespace: Arc<Namespace>,
    folder: PathBuf,
    /// Interfaces that pods were given.
    plugged: BTreeSet<String>,
    agents: Option<Agents>,
}

/// Which of a cluster's nodes are real: not the first, which may be given a fault, nor the last, which leave and return.
pub fn indices(count: usize) -> std::ops::RangeInclusive<usize> {
    1..=count
}

/// Objects that real nodes need beside the cluster's.
pub fn objects(count: usize) -> Vec<Object> {
    if count == 0 {
        return Vec::new();
    }
    let mut all = cluster::peerings(&indices(count).collect::<Vec<_>>());
    all.push(cluster::probe(0));
    all
}

/// Fails if a program that real nodes need is missing: before anything is started.
pub fn installed() -> Result<()> {
    Programs::find(String::new(), Path::new("")).map(drop)
}

impl Real {
    /// Makes the nodes; their agents are started by [`Real::join`]. `reached`: where agents find the typhas; `typhas`: where
    /// these are themselves.
    pub fn prepare(
        count: usize,
        cluster: &Cluster,
        reached: &[String],
        typhas: &[String],
        source: &Source,
        logs: &Path,
        stop_felix: bool,
    ) -> Result<Real> {
        let programs = Programs::find(reached.join(","), logs)?;
        if programs.bird.is_none() {
            eprintln!("BIRD is not installed: the real nodes run felix without confd (package bird2)");
        }
        let folder = tempfile::tempdir()?;
        let nodes =
            indices(count).map(|index| Node::make(index, cluster, folder.path())).collect::<Result<_>>()?;
        Ok(Real {
            nodes,
            programs,
            typhas: Typhas::at(typhas, source.name())?,
            applied: Arc::new(Latencies::new(Instant::now())),
            version: Arc::default(),
            compared: 0,
            stop_felix,
            _folder: folder,
        })
    }

    /// The agents are started.
    pub fn join(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            let before = RealUsage { node: node.name.clone(), ..RealUsage::default() };
            node.start(&self.programs, before)?;
        }
        Ok(())
    }

    /// They are killed, and started again.
    pub async fn restart(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            let agents = node.agents.take().context("real nodes join first")?;
            node.start(&self.programs, agents.kill().await?)?;
        }
        Ok(())
    }

    /// A phase begins.
    pub fn begin(&mut self) -> Result<()> {
        self.applied.begin();
        if let Some(agents) = self.nodes.first().and_then(|node| node.agents.as_ref())
            && std::mem::take(&mut self.stop_felix)
        {
            agents.signal("felix", Signal::SIGSTOP)?;
        }
        Ok(())
    }

    /// Edits the policy from now on, until told to end.
    pub fn probe(&self, source: Arc<Source>) -> Probing {
        let names = self.nodes.iter().map(|node| node.name.clone()).collect();
        Probing::start(self.typhas.clone(), source, names, self.applied.clone(), self.version.clone())
    }

    /// Waits until every agent has acknowledged what was written last, and compares the kernels. What was found is in
    /// the second place.
    pub async fn check(
        &mut self,
        cluster: &Cluster,
        source: &Source,
        ended: Instant,
        patience: Duration,
    ) -> (RealPhase, Vec<String>) {
        let goal = source.newest();
        let mut phase = RealPhase { applied: self.applied.since_begin(), settled_ms: None };
        let failures = loop {
            let mut late = self.ended();
            let ended_itself = !late.is_empty();
            if !ended_itself {
                late = self.late(goal).await;
            }
            // What confd and BIRD still lack is waited for, too, and is none of the policies'.
            if phase.settled_ms.is_none() && !late.iter().any(|words| words.contains("felix")) {
                phase.settled_ms = Some(ended.elapsed().as_secs_f64() * 1e3);
            }
            if late.is_empty() {
                break self.compare(cluster).await;
            }
            if ended_itself || ended.elapsed() > patience {
                break late;
            }
            tokio::time::sleep(POLL).await;
        };
        (phase, failures)
    }

    fn ended(&mut self) -> Vec<String> {
        self.nodes.iter_mut().filter_map(|node| node.agents.as_mut()).flat_map(Agents::ended).collect()
    }

    /// Agents that are not in step.
    async fn late(&self, goal: u64) -> Vec<String> {
        let streams = self.typhas.streams().await;
        let mut late = Vec::new();
        for node in &self.nodes {
            for agent in self.programs.agents() {
                let since = node.agents.as_ref().and_then(|agents| agents.since(agent));
                // Its process of now.
                let of = |stream: &&answers::Stream| {
                    stream.node == node.name
                        && stream.agent == *agent
                        && since.is_some_and(|since| stream.age <= since.elapsed())
                };
                let best = streams.iter().filter(of).max_by_key(|stream| stream.acked);
                let words = match best {
                    Some(stream) if stream.acked >= goal => continue,
                    Some(stream) => format!(
                        "has acknowledged revision {} of {goal}; heard of {:.1} s ago",
                        stream.acked,
                        stream.heard_ago.as_secs_f64()
                    ),
                    None => "is not connected".into(),
                };
                late.push(format!("{} is not in step: its {agent} {words}", node.name));
            }
            if self.programs.bird.is_some() {
                let all = self.nodes.len() - 1;
                let there = agents::sessions(&node.folder).unwrap_or_default();
                if there != all {
                    late.push(format!("{} has {there} of {all} BGP sessions", node.name));
                }
            }
        }
        late
    }

    async fn compare(&mut self, cluster: &Cluster) -> Vec<String> {
        let mut found = Vec::new();
        let version = self.version.load(std::sync::atomic::Ordering::Relaxed);
        for node in &self.nodes {
            let expected = cluster.expected(node.index, Some(version));
            let (namespace, backend) = (node.namespace.clone(), self.programs.backend);
            let read = tokio::task::spawn_blocking(move || namespace.inside(|| kernel::read(backend)));
            let kernel = match read.await {
                Ok(Ok(kernel)) => kernel,
                Ok(Err(error)) => {
                    found.push(format!("{}: its kernel could not be read: {error:#}", node.name));
                    continue;
                }
                Err(error) => {
                    found.push(format!("{}: its kernel could not be read: {error}", node.name));
                    continue;
                }
            };
            let mut differences = kernel.differences(&expected, &node.plugged);
            let count = differences.len();
            differences.truncate(3);
            if count > 0 {
                let mut words =
                    format!("{}: {count} differences in its kernel, though its felix is in step", node.name);
                differences.iter().for_each(|difference| _ = write!(words, "; {difference}"));
                found.push(words);
            }
            self.compared += 1;
        }
        found
    }

    /// Of the whole run.
    pub fn report(&self) -> RealNodes {
        RealNodes {
            nodes: self.nodes.len(),
            confd: self.programs.bird.is_some(),
            applied: self.applied.between(0..usize::MAX),
            compared: self.compared,
            usage: self.nodes.iter().filter_map(|node| Some(node.agents.as_ref()?.usage())).collect(),
        }
    }
}

impl Node {
    fn make(index: usize, cluster: &Cluster, folder: &Path) -> Result<Node> {
        let (name, address) = (cluster::node_name(index), cluster::node_address(index));
        let namespace =
            Namespace::attached(index, &address).with_context(|| format!("making the real node {name}"))?;
        // As a CNI plugin does; what is at the other end does not matter to felix.
        let pods = cluster.expected(index, None).pods;
        let plugged: BTreeSet<String> = pods.into_keys().take(PLUGGED).collect();
        let mut batch = String::new();
        for (number, interface) in plugged.iter().enumerate() {
            _ = writeln!(
                batch,
                "link add {interface} address ee:ee:ee:ee:ee:ee type veth peer name pod{number}\nlink set {interface} up\n\
                 link set pod{number} up"
            );
        }
        namespace.inside(|| netns::ip(&batch))?;
        let folder = folder.join(&name);
        Ok(Node { index, name, address, namespace: Arc::new(namespace), folder, plugged, agents: None })
    }

    fn start(&mut self, programs: &Programs, before: RealUsage) -> Result<()> {
        let address = self.own_address();
        self.agents = Some(Agents::start(programs, &self.namespace, &address, &self.folder, before)?);
        Ok(())
    }

    fn own_address(&self) -> String {
        self.address.split('/').next().unwrap_or_default().to_owned()
    }
}
