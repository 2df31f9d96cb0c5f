//! `wait`: until an object, as it is now or at a revision, is in force on every node.
//!
//! Expected are the Node objects, never who happens to be connected: none of none is no success. A node has it
//! when each agent that reads the kind has acknowledged the revision. Exit status: 0 everywhere; 1 not in time;
//! 3 a replica could not be asked, and some node was seen nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use syncer_common::apis::ApiKind;
use syncer_common::backend::Datastore;
use syncer_common::backend::config::StoreConfig;
use syncer_common::model::Kind;

use super::merge::{Fleet, Life, acked};
use super::replicas::{Access, Answer};
use super::status::{self, list, seconds};
use crate::output::Output;
use crate::{Report, get};

/// A replica could not be asked.
pub const UNANSWERED: u8 = 3;
const ASK_EVERY: Duration = Duration::from_millis(250);
const NAMES: usize = 50;

/// What is waited for.
pub struct Wanted {
    pub target: String,
    pub namespace: String,
    pub revision: Option<u64>,
    pub timeout: Duration,
    pub agents: Vec<String>,
    pub dead_after: u64,
    pub output: Output,
}

/// A revision of one source.
struct Goal {
    /// `IPPool(main)`.
    object: String,
    kind: &'static ApiKind,
    source: String,
    revision: u64,
}

pub async fn run(
    config: &StoreConfig,
    store: Arc<dyn Datastore>,
    access: &Access,
    wanted: Wanted,
) -> Result<Report> {
    let goal = goal(store.clone(), &wanted).await?;
    let agents = readers(goal.kind, &wanted.agents)?;
    let expected = status::expected(store.as_ref()).await?;
    if expected.is_empty() {
        bail!("the cluster has no Node objects: nobody is expected to have {}", goal.object);
    }
    let deadline = Instant::now() + wanted.timeout;
    loop {
        let addresses = access.find(config).await?;
        let answers = access.ask(&addresses).await?;
        let verdict = Verdict::of(&answers, &goal, &agents, &expected, wanted.dead_after);
        if verdict.everywhere() || Instant::now() >= deadline {
            return verdict.report(&goal, &answers, &wanted);
        }
        tokio::time::sleep(ASK_EVERY.min(deadline.saturating_duration_since(Instant::now()))).await;
    }
}

async fn goal(store: Arc<dyn Datastore>, wanted: &Wanted) -> Result<Goal> {
    let (kind, name) = wanted.target.split_once('/').context("say what to wait for as KIND/NAME")?;
    let kind = get::kind(kind)?;
    let place = if kind.namespaced { format!("{}/", wanted.namespace) } else { String::new() };
    let object = format!("{}({place}{name})", kind.kind);
    let source = source(store.clone(), kind)?;
    // Also with a revision: one read by quorum says whether the datastore answers at all.
    let found = get::find_stored(store.as_ref(), kind, name, &wanted.namespace).await?;
    let revision = match (wanted.revision, found) {
        (Some(revision), _) => revision,
        (None, Some((kv, _))) => kv.mod_revision,
        (None, None) => {
            bail!("{}; for a deletion, give --revision", get::missing(kind, &wanted.namespace, name))
        }
    };
    Ok(Goal { object, kind, source, revision })
}

/// The revision space that a kind's revisions are of.
fn source(store: Arc<dyn Datastore>, kind: &ApiKind) -> Result<String> {
    let names: Vec<String> = store.sources().iter().map(|source| source.name().to_owned()).collect();
    if let [only] = names.as_slice() {
        return Ok(only.clone());
    }
    let plural = match kind.kind {
        "WorkloadEndpoint" => "pods",
        "Profile" => bail!(
            "a Profile comes from a namespace or a service account there: wait for a NetworkPolicy instead"
        ),
        _ => kind.plural,
    };
    let candidates = [format!("kubernetes/{plural}.projectcalico.org"), format!("kubernetes/{plural}")];
    let found = candidates.into_iter().find(|candidate| names.contains(candidate));
    found.with_context(|| format!("{} is not followed by typha", kind.kind))
}

/// Whose acknowledgement counts for a kind.
///
/// | kinds | agents |
/// |---|---|
/// | policies, tiers, profiles, endpoints, sets, felix's configuration | felix |
/// | pools, nodes, BGP configuration | felix and confd |
/// | BGP peers and filters, block affinities | confd |
fn readers(kind: &ApiKind, asked: &[String]) -> Result<Vec<String>> {
    if !asked.is_empty() {
        return Ok(asked.to_vec());
    }
    let entries: &[Kind] = match kind.kind {
        "NetworkPolicy"
        | "GlobalNetworkPolicy"
        | "StagedNetworkPolicy"
        | "StagedGlobalNetworkPolicy"
        | "StagedKubernetesNetworkPolicy" => &[Kind::Policy],
        "NetworkSet" | "GlobalNetworkSet" => &[Kind::NetworkSet],
        "Profile" => &[Kind::ProfileRules],
        "Tier" => &[Kind::Tier],
        "WorkloadEndpoint" => &[Kind::WorkloadEndpoint],
        "HostEndpoint" => &[Kind::HostEndpoint],
        "ClusterInformation" | "FelixConfiguration" => &[Kind::GlobalConfig],
        "IPPool" => &[Kind::IpPool],
        "Node" => &[Kind::Node],
        "BGPConfiguration" => &[Kind::BgpConfiguration],
        "BGPPeer" => &[Kind::BgpPeer],
        "BGPFilter" => &[Kind::BgpFilter],
        "IPAMBlock" => &[Kind::Block],
        "BlockAffinity" => &[Kind::BlockAffinity],
        other => bail!("no agent reads a {other}: there is nothing to wait for"),
    };
    let reads = |kinds: &[Kind]| entries.iter().any(|kind| kinds.contains(kind));
    let agents = [("felix", reads(&Kind::FELIX)), ("confd", reads(&Kind::CONFD))];
    Ok(agents.iter().filter(|(_, reads)| *reads).map(|(agent, _)| (*agent).to_owned()).collect())
}

/// Where each expected node stands.
struct Verdict {
    expected: usize,
    reached: Vec<String>,
    /// Live without it: node, which agents, and for how long the oldest of them lags.
    lagging: Vec<(String, String)>,
    dead: Vec<(String, u64)>,
    absent: Vec<String>,
    silent: Vec<(String, String)>,
    /// Some replica has the revision itself.
    known: bool,
}

impl Verdict {
    fn of(
        answers: &[Answer],
        goal: &Goal,
        agents: &[String],
        expected: &BTreeSet<String>,
        dead_after: u64,
    ) -> Verdict {
        let fleet = Fleet::merge(answers, dead_after);
        // Where nobody runs confd (no BGP), nobody waits for it, unless nobody else reads the kind.
        let running = fleet.agent_names();
        let needed: Vec<&str> = agents
            .iter()
            .map(String::as_str)
            .filter(|agent| *agent == "felix" || running.contains(agent) || agents.len() == 1)
            .collect();
        let mut verdict = Verdict {
            expected: expected.len(),
            reached: Vec::new(),
            lagging: Vec::new(),
            dead: Vec::new(),
            absent: Vec::new(),
            silent: fleet
                .silent
                .iter()
                .map(|(address, why)| ((*address).to_owned(), (*why).to_owned()))
                .collect(),
            known: answers.iter().filter_map(|answer| answer.reply.as_ref().ok()?.freshness.as_ref()).any(
                |freshness| {
                    freshness
                        .sources
                        .iter()
                        .any(|position| position.source == goal.source && position.low >= goal.revision)
                },
            ),
        };
        for node in expected {
            let mut without: BTreeMap<&str, Option<&proto::admin::Client>> = BTreeMap::new();
            for agent in &needed {
                let client = fleet.agents.get(&(node.as_str(), *agent)).map(|seen| seen.client);
                if client.is_none_or(|client| acked(client, &goal.source) < goal.revision) {
                    without.insert(agent, client);
                }
            }
            let live = |client: &Option<&proto::admin::Client>| {
                client.is_some_and(|client| fleet.life(client) == Life::Live)
            };
            if without.is_empty() {
                verdict.reached.push(node.clone());
            } else if without.values().all(Option::is_none) {
                verdict.absent.push(node.clone());
            } else if without.values().any(live) {
                let names: Vec<&str> = without.keys().copied().collect();
                verdict.lagging.push((node.clone(), names.join(" and ")));
            } else {
                let heard = without.values().flatten().map(|client| client.heard_millis_ago).min();
                verdict.dead.push((node.clone(), heard.unwrap_or_default()));
            }
        }
        verdict
    }

    fn everywhere(&self) -> bool {
        self.reached.len() == self.expected
    }

    /// Whether a replica that was not asked could know better: of a node that no other has live.
    fn unanswered(&self) -> bool {
        let seen_nowhere = !self.dead.is_empty() || !self.absent.is_empty();
        seen_nowhere && !self.silent.is_empty()
    }

    fn report(self, goal: &Goal, answers: &[Answer], wanted: &Wanted) -> Result<Report> {
        let exit = match (self.everywhere(), self.unanswered()) {
            (true, _) => 0,
            (false, true) => UNANSWERED,
            (false, false) => 1,
        };
        let warnings = self
            .silent
            .iter()
            .map(|(address, why)| format!("typha {address} could not be asked: {why}"))
            .collect();
        let text = match wanted.output {
            Output::Json => serde_json::to_string_pretty(&self.json(goal, exit))? + "\n",
            Output::Yaml => serde_yaml_ng::to_string(&self.json(goal, exit))?,
            _ => self.text(goal, answers.len())?,
        };
        Ok(Report { text, warnings, complete: exit == 0, exit: Some(exit) })
    }

    fn text(&self, goal: &Goal, replicas: usize) -> Result<String> {
        let mut text = String::new();
        writeln!(
            text,
            "{} at revision {} of {}: in force on {} of {} node(s)",
            goal.object,
            goal.revision,
            goal.source,
            self.reached.len(),
            self.expected
        )?;
        if !self.known && self.silent.len() < replicas {
            writeln!(text, "No typha has come to that revision.")?;
        }
        let lagging: Vec<String> =
            self.lagging.iter().map(|(node, agents)| format!("{node} ({agents})")).collect();
        let dead: Vec<String> =
            self.dead.iter().map(|(node, ago)| format!("{node} (heard of {} ago)", seconds(*ago))).collect();
        for (what, names) in [("Lagging: ", lagging), ("Dead:    ", dead), ("Absent:  ", self.absent.clone())]
        {
            if !names.is_empty() {
                writeln!(text, "{what}{}", list(&names, NAMES))?;
            }
        }
        Ok(text)
    }

    fn json(&self, goal: &Goal, exit: u8) -> serde_json::Value {
        let lagging = self
            .lagging
            .iter()
            .map(|(node, agents)| json!({"node": node, "agents": agents.split(" and ").collect::<Vec<_>>()}));
        let dead = self.dead.iter().map(|(node, ago)| json!({"node": node, "heardMillisAgo": ago}));
        let silent = self.silent.iter().map(|(address, why)| json!({"address": address, "error": why}));
        json!({
            "object": goal.object, "source": goal.source, "revision": goal.revision, "everywhere": exit == 0,
            "expected": self.expected, "reached": self.reached, "lagging": lagging.collect::<Vec<_>>(),
            "dead": dead.collect::<Vec<_>>(), "absent": self.absent, "known": self.known,
            "notAsked": silent.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_that_read_a_kind_are_waited_for() {
        let of = |kind: &str| readers(get::kind(kind).unwrap(), &[]).unwrap().join(",");
        assert_eq!(of("networkpolicy"), "felix");
        assert_eq!(of("ippool"), "felix,confd");
        assert_eq!(of("bgpfilter"), "confd");
        assert!(readers(get::kind("ipreservation").unwrap(), &[]).is_err());
        let asked = ["confd".to_owned()];
        assert_eq!(readers(get::kind("ippool").unwrap(), &asked).unwrap(), asked);
    }

    #[test]
    fn silent_replica_matters_only_for_nodes_seen_nowhere_else() {
        let verdict = |dead: usize, lagging: usize| Verdict {
            expected: 3,
            reached: vec!["n1".into()],
            lagging: vec![("n2".into(), "felix".into()); lagging],
            dead: vec![("n3".into(), 1); dead],
            absent: Vec::new(),
            silent: vec![("a:1".into(), "refused".into())],
            known: true,
        };
        assert!(verdict(1, 1).unanswered());
        assert!(!verdict(0, 2).unanswered());
    }
}
