//! `status`: replicas, agents, lag, and which nodes are behind, dead or absent. Counts, names and ages.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::Result;
use serde_json::{Value, json};
use syncer_common::backend::Datastore;

use super::merge::{Fleet, Life, Seen};
use super::replicas::Answer;
use crate::grid::{self, Align};
use crate::output::Output;
use crate::{Report, get};

/// What is shown of long lists, unless all is asked for.
const SHOWN: usize = 5;
const NAMES: usize = 20;

/// The names of the cluster's nodes: who is expected.
pub async fn expected(store: &dyn Datastore) -> Result<BTreeSet<String>> {
    let nodes = get::list_stored(store, get::kind("node")?).await?;
    Ok(nodes.into_iter().map(|(_, node)| node.metadata.name).collect())
}

pub fn report(
    answers: &[Answer],
    expected: &BTreeSet<String>,
    dead_after: u64,
    output: &Output,
) -> Result<Report> {
    let fleet = Fleet::merge(answers, dead_after);
    let picture = Picture::of(&fleet, expected);
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&picture.json(answers))? + "\n",
        Output::Yaml => serde_yaml_ng::to_string(&picture.json(answers))?,
        _ => picture.text(answers, output.is_wide())?,
    };
    let warnings =
        fleet.silent.iter().map(|(address, why)| format!("typha {address} could not be asked: {why}"));
    let warnings: Vec<String> = warnings.collect();
    let exit = (!warnings.is_empty()).then_some(super::wait::UNANSWERED);
    Ok(Report { text, warnings, complete: true, exit })
}

struct Picture<'a> {
    expected: usize,
    live: Vec<&'a str>,
    dead: Vec<(&'a str, u64)>,
    absent: Vec<&'a str>,
    /// Streams of no node of the cluster.
    unknown: Vec<&'a str>,
    agents: BTreeMap<&'a str, Vec<Seen<'a>>>,
}

impl<'a> Picture<'a> {
    fn of(fleet: &Fleet<'a>, expected: &'a BTreeSet<String>) -> Picture<'a> {
        let live = fleet.live_nodes();
        let mut heard: BTreeMap<&str, u64> = BTreeMap::new();
        for seen in fleet.agents.values() {
            let ago = heard.entry(&seen.client.node).or_insert(u64::MAX);
            *ago = seen.client.heard_millis_ago.min(*ago);
        }
        let names = || expected.iter().map(String::as_str);
        let mut agents: BTreeMap<&str, Vec<Seen<'a>>> = BTreeMap::new();
        for seen in fleet.agents.values() {
            let of_agent = agents.entry(&seen.client.agent).or_default();
            if fleet.life(seen.client) == Life::Live {
                of_agent.push(*seen);
            }
        }
        for seen in agents.values_mut() {
            seen.sort_by_key(|seen| std::cmp::Reverse(lag(seen)));
        }
        Picture {
            expected: expected.len(),
            live: names().filter(|name| live.contains(name)).collect(),
            dead: names()
                .filter(|name| !live.contains(name))
                .filter_map(|name| Some((name, *heard.get(name)?)))
                .collect(),
            absent: names().filter(|name| !heard.contains_key(name)).collect(),
            unknown: live.iter().filter(|name| !expected.contains(**name)).copied().collect(),
            agents,
        }
    }

    fn text(&self, answers: &[Answer], all: bool) -> Result<String> {
        let mut text = replicas(answers);
        writeln!(
            text,
            "Nodes:   {} expected, {} live, {} dead, {} absent, {} not of this cluster",
            self.expected,
            self.live.len(),
            self.dead.len(),
            self.absent.len(),
            self.unknown.len()
        )?;
        let columns = [
            ("AGENT", Align::Left),
            ("LIVE", Align::Right),
            ("IN SYNC", Align::Right),
            ("LAG P50", Align::Right),
            ("LAG P99", Align::Right),
            ("LAG MAX", Align::Right),
        ];
        let rows: Vec<Vec<String>> = self
            .agents
            .iter()
            .map(|(agent, seen)| {
                let lags = lags(seen);
                let quantile = |q| quantile(&lags, q).map_or("-".into(), seconds);
                let counts = [seen.len(), lags.len()].map(|count| count.to_string());
                let mut row = vec![(*agent).to_owned()];
                row.extend(counts);
                row.extend([quantile(0.5), quantile(0.99), quantile(1.0)]);
                row
            })
            .collect();
        if !rows.is_empty() {
            text += &grid::render(&columns, &rows);
        }
        let mut behind: Vec<&Seen> = self
            .agents
            .values()
            .flatten()
            .filter(|seen| lag(seen) > Some(0) || lag(seen).is_none())
            .collect();
        behind.sort_by_key(|seen| std::cmp::Reverse(lag(seen).unwrap_or(u64::MAX)));
        let rows: Vec<Vec<String>> = behind
            .iter()
            .take(if all { usize::MAX } else { SHOWN })
            .map(|seen| {
                let client = seen.client;
                let lag = lag(seen).map_or("nothing yet".into(), seconds);
                vec![
                    client.node.clone(),
                    client.agent.clone(),
                    seen.replica.to_owned(),
                    lag,
                    seconds(client.heard_millis_ago),
                ]
            })
            .collect();
        if !rows.is_empty() {
            writeln!(text, "Behind:  {} agent(s)", behind.len())?;
            let columns = [
                ("NODE", Align::Left),
                ("AGENT", Align::Left),
                ("REPLICA", Align::Left),
                ("LAG", Align::Right),
                ("HEARD", Align::Right),
            ];
            text += &grid::render(&columns, &rows);
        }
        let most = if all { usize::MAX } else { NAMES };
        text += &self.problems_text(all);
        let dead: Vec<String> =
            self.dead.iter().map(|(name, ago)| format!("{name} ({} ago)", seconds(*ago))).collect();
        for (what, names) in
            [("Dead:    ", dead), ("Absent:  ", self.absent.iter().map(|n| (*n).to_owned()).collect())]
        {
            if !names.is_empty() {
                writeln!(text, "{what}{}", list(&names, most))?;
            }
        }
        Ok(text)
    }

    /// What agents cannot use, with the nodes that say so.
    fn problems(&self) -> BTreeMap<(&'a str, &'a str), Vec<&'a str>> {
        let mut problems: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for (agent, seen) in &self.agents {
            for client in seen.iter().map(|seen| seen.client) {
                for problem in &client.problems {
                    problems.entry((agent, problem)).or_default().push(&client.node);
                }
            }
        }
        problems
    }

    fn problems_text(&self, all: bool) -> String {
        let problems = self.problems();
        if problems.is_empty() {
            return String::new();
        }
        let row = |((agent, problem), nodes): (&(&str, &str), &Vec<&str>)| {
            let nodes: Vec<String> = nodes.iter().map(|node| (*node).to_owned()).collect();
            let most = if all { usize::MAX } else { 2 };
            vec![(*agent).to_owned(), list(&nodes, most), (*problem).to_owned()]
        };
        let rows: Vec<Vec<String>> =
            problems.iter().take(if all { usize::MAX } else { NAMES }).map(row).collect();
        let columns = [("AGENT", Align::Left), ("NODES", Align::Left), ("CANNOT USE", Align::Left)];
        format!("Problems: {}\n{}", problems.len(), grid::render(&columns, &rows))
    }

    fn json(&self, answers: &[Answer]) -> Value {
        let replicas = answers.iter().map(|answer| match &answer.reply {
            Err(reason) => json!({"address": answer.address, "error": reason}),
            Ok(reply) => {
                let freshness = reply.freshness.as_ref();
                json!({
                    "address": answer.address, "replica": reply.replica, "software": reply.software,
                    "history": freshness.map(|f| &f.history), "inSync": freshness.is_some_and(|f| f.in_sync),
                    "ageMillis": freshness.and_then(|f| f.age_millis), "entries": reply.entries,
                    "invalid": reply.invalid, "clients": reply.clients.iter().filter(|c| c.connected).count(),
                    "revisions": freshness.map(|f| f.sources.iter().map(|s| (s.source.clone(), json!(s.low)))
                        .collect::<serde_json::Map<_, _>>()),
                })
            }
        });
        let agents = self.agents.iter().map(|(agent, seen)| {
            let lags = lags(seen);
            let behind = seen.iter().filter(|seen| lag(seen) != Some(0)).map(|seen| {
                json!({"node": seen.client.node, "replica": seen.replica, "lagMillis": lag(seen), "heardMillisAgo": seen.client.heard_millis_ago})
            });
            let of_agent = json!({
                "live": seen.len(), "inSync": lags.len(), "behind": behind.collect::<Vec<_>>(),
                "lagMillis": {"p50": quantile(&lags, 0.5), "p99": quantile(&lags, 0.99), "max": quantile(&lags, 1.0)},
            });
            ((*agent).to_owned(), of_agent)
        });
        let problems = self
            .problems()
            .into_iter()
            .map(|((agent, problem), nodes)| json!({"agent": agent, "problem": problem, "nodes": nodes}));
        let dead = self.dead.iter().map(|(name, ago)| json!({"node": name, "heardMillisAgo": ago}));
        json!({
            "replicas": replicas.collect::<Vec<_>>(),
            "nodes": {"expected": self.expected, "live": self.live, "dead": dead.collect::<Vec<_>>(),
                      "absent": self.absent, "notOfThisCluster": self.unknown},
            "agents": agents.collect::<serde_json::Map<_, _>>(),
            "problems": problems.collect::<Vec<_>>(),
        })
    }
}

fn replicas(answers: &[Answer]) -> String {
    let columns = [
        ("REPLICA", Align::Left),
        ("ADDRESS", Align::Left),
        ("IN SYNC", Align::Left),
        ("DATA AGE", Align::Right),
        ("CLIENTS", Align::Right),
        ("ENTRIES", Align::Right),
        ("REFUSED", Align::Right),
    ];
    let rows: Vec<Vec<String>> = answers
        .iter()
        .map(|answer| match &answer.reply {
            Err(_) => {
                let mut row = vec!["?".to_owned(), answer.address.clone(), "no answer".to_owned()];
                row.extend(std::iter::repeat_n("-".to_owned(), 4));
                row
            }
            Ok(reply) => {
                let freshness = reply.freshness.clone().unwrap_or_default();
                let connected = reply.clients.iter().filter(|client| client.connected).count();
                vec![
                    reply.replica.clone(),
                    answer.address.clone(),
                    if freshness.in_sync { "yes" } else { "no" }.to_owned(),
                    freshness.age_millis.map_or("never".into(), seconds),
                    connected.to_string(),
                    reply.entries.values().sum::<u64>().to_string(),
                    reply.invalid.to_string(),
                ]
            }
        })
        .collect();
    grid::render(&columns, &rows)
}

/// Nothing: it has acknowledged nothing yet.
fn lag(seen: &Seen) -> Option<u64> {
    seen.client.lag_millis
}

/// Of those in sync, in order.
fn lags(seen: &[Seen]) -> Vec<u64> {
    let mut lags: Vec<u64> = seen.iter().filter_map(lag).collect();
    lags.sort_unstable();
    lags
}

fn quantile(sorted: &[u64], q: f64) -> Option<u64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * q).ceil() as usize).copied()
}

pub fn seconds(millis: u64) -> String {
    match millis {
        0..10_000 => format!("{:.1} s", millis as f64 / 1000.0),
        10_000..600_000 => format!("{} s", millis / 1000),
        _ => format!("{} min", millis / 60_000),
    }
}

/// Names with commas, the rest as a number.
pub fn list(names: &[String], most: usize) -> String {
    let shown = names.iter().take(most).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
