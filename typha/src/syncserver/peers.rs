//! The other replicas: where they are, how loaded, and which clients should move to them.
//!
//! Each replica asks all of them now and then. What it learns goes to agents in hellos, names targets in go-aways, and
//! evens out the load: a replica with more clients than its share asks some to go to one with fewer. Nobody is refused, and
//! nobody is sent to a replica that drains, is not in sync, or did not answer.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use proto::admin::{LoadReply, LoadRequest, admin_client::AdminClient};
use proto::sync;
use syncer_common::backend::config::KubernetesConfig;
use syncer_common::backend::kubernetes::discovery;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use transport::ClientTls;

use super::Context;

const ANSWER: Duration = Duration::from_secs(2);
/// More than its share by this much is no reason to move anybody.
const TOLERANCE: f64 = 0.05;
/// Replicas named in a hello.
const HELLO: usize = 8;
/// Nobody is moved who has just come.
const SETTLED: Duration = Duration::from_secs(5);

/// How the other replicas are found.
#[derive(Clone, Debug, Default)]
pub enum Discovery {
    #[default]
    None,
    /// host:port; a name stands for all its addresses. This replica may be among them.
    Names(Vec<String>),
    /// EndpointSlices of a service.
    Kubernetes { config: Box<KubernetesConfig>, namespace: String, service: String, port: String },
}

#[derive(Clone, Debug)]
struct Known {
    peer: sync::Peer,
    /// Nothing: no answer.
    load: Option<LoadReply>,
}

#[derive(Default)]
pub(super) struct Peers {
    known: Mutex<Vec<Known>>,
}

impl Peers {
    /// For the hello to a client: what is on its node and, if the replicas are few, the others. A hello is to stay
    /// small.
    pub fn for_node(&self, node: &str) -> Vec<sync::Peer> {
        let mut known: Vec<sync::Peer> = self.lock().iter().map(|known| known.peer.clone()).collect();
        known.sort_by_key(|peer| peer.node != node);
        known.truncate(HELLO);
        known
    }

    /// Where clients can go, least loaded first.
    pub fn targets(&self, epoch: &str) -> Vec<String> {
        let mut others: Vec<(u64, String)> =
            self.lock().iter().filter_map(|known| known.open(epoch)).collect();
        others.sort();
        others.into_iter().map(|(_, address)| address).collect()
    }

    /// For the status page.
    pub fn overview(&self) -> Vec<serde_json::Value> {
        let describe = |known: &Known| {
            let (clients, state) = match &known.load {
                None => (None, "no answer"),
                Some(load) if load.draining > 0 => (Some(load.clients), "draining"),
                Some(load) if load.in_sync => (Some(load.clients), "in sync"),
                Some(load) => (Some(load.clients), "not in sync"),
            };
            let sync::Peer { address, node, zone } = &known.peer;
            serde_json::json!({"address": address, "node": node, "zone": zone, "clients": clients, "state": state})
        };
        self.lock().iter().map(describe).collect()
    }

    fn open(&self, epoch: &str) -> Vec<(u64, String)> {
        self.lock().iter().filter_map(|known| known.open(epoch)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Clients and address of another replica that takes clients.
    fn open(&self, epoch: &str) -> Option<(u64, String)> {
        let load =
            self.load.as_ref().filter(|load| load.epoch != epoch && load.in_sync && load.draining == 0)?;
        Some((load.clients, self.peer.address.clone()))
    }
}

/// Finds the replicas and evens out the load. Does not return.
pub(super) async fn follow(context: &Context) {
    if matches!(context.options.discovery, Discovery::None) {
        return std::future::pending().await;
    }
    let epoch = context.cache.read().epoch().to_owned();
    let mut ticks = tokio::time::interval(context.options.peer_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut said = String::new();
    loop {
        ticks.tick().await;
        match find(&context.options.discovery).await {
            Ok(found) => {
                said.clear();
                let known = ask_all(found, context.options.peer_tls.as_ref()).await;
                *context.peers.lock() = known;
                if context.options.rebalance && !context.drain.is_cancelled() {
                    rebalance(context, &epoch);
                }
            }
            Err(reason) if reason != said => {
                tracing::warn!(reason, "the other replicas cannot be found, those known before stay");
                said = reason;
            }
            Err(_) => {}
        }
    }
}

async fn find(discovery: &Discovery) -> Result<Vec<sync::Peer>, String> {
    match discovery {
        Discovery::None => Ok(Vec::new()),
        Discovery::Names(names) => {
            let mut found = Vec::new();
            for name in names {
                let addresses = tokio::net::lookup_host(name).await;
                let addresses = addresses.map_err(|error| format!("looking up {name:?}: {error}"))?;
                found.extend(
                    addresses
                        .map(|address| sync::Peer { address: address.to_string(), ..Default::default() }),
                );
            }
            found.sort_by(|a, b| a.address.cmp(&b.address));
            found.dedup();
            Ok(found)
        }
        Discovery::Kubernetes { config, namespace, service, port } => {
            let found = discovery::endpoints(config, namespace, service, port).await;
            let found = found.map_err(|error| error.to_string())?.into_iter();
            let ready = found.filter(|endpoint| endpoint.ready);
            Ok(ready.map(|e| sync::Peer { address: e.address, node: e.node, zone: e.zone }).collect())
        }
    }
}

async fn ask_all(found: Vec<sync::Peer>, tls: Option<&ClientTls>) -> Vec<Known> {
    let mut tasks = JoinSet::new();
    for peer in found {
        let tls = tls.cloned();
        tasks.spawn(async move {
            let asked = async {
                let settings = |endpoint: Endpoint| endpoint.connect_timeout(ANSWER);
                let channel = transport::channel(&peer.address, tls.as_ref(), settings).await.ok()?;
                Some(AdminClient::new(channel).load(LoadRequest {}).await.ok()?.into_inner())
            };
            let load = tokio::time::timeout(ANSWER, asked).await.ok().flatten();
            Known { peer, load }
        });
    }
    let mut known = tasks.join_all().await;
    known.sort_by(|a, b| a.peer.address.cmp(&b.peer.address));
    known
}

fn rebalance(context: &Context, epoch: &str) {
    let clients = context.registry.list();
    let moves = moves(clients.len() as u64, &context.peers.open(epoch));
    if moves.is_empty() {
        return;
    }
    tracing::info!(clients = clients.len(), leaving = moves.len(), "more clients than this replica's share");
    let settled = clients.iter().filter(|client| client.connected.elapsed() > SETTLED);
    for (client, target) in settled.zip(moves) {
        client.send_away(vec![target]);
    }
}

/// Where to send how many of this replica's clients now: half of what it has too many, so that replicas that move
/// clients at the same time do not overshoot.
fn moves(own: u64, others: &[(u64, String)]) -> Vec<String> {
    let replicas = others.len() as u64 + 1;
    let total: u64 = own + others.iter().map(|(clients, _)| clients).sum::<u64>();
    let share = total as f64 / replicas as f64;
    if own as f64 <= (share * (1.0 + TOLERANCE)).max(share + 1.0) {
        return Vec::new();
    }
    let excess = (own as f64 - share).ceil() as usize;
    let mut room: Vec<(usize, &String)> = others
        .iter()
        .filter_map(|(clients, address)| {
            let room = (share - *clients as f64).floor();
            (room >= 1.0).then_some((room as usize, address))
        })
        .collect();
    let mut moves = Vec::new();
    for _ in 0..excess.div_ceil(2) {
        room.sort();
        let Some((left, address)) = room.last_mut().filter(|(left, _)| *left > 0) else { break };
        *left -= 1;
        moves.push((*address).clone());
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds until no replica moves anybody; all of them act on the same counts.
    fn settle(mut counts: Vec<u64>) -> (Vec<u64>, usize) {
        for round in 0..100 {
            let mut next = counts.clone();
            for (at, own) in counts.iter().enumerate() {
                let others: Vec<(u64, String)> = counts
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != at)
                    .map(|(other, clients)| (*clients, other.to_string()))
                    .collect();
                for target in moves(*own, &others) {
                    next[at] -= 1;
                    next[target.parse::<usize>().unwrap()] += 1;
                }
            }
            if next == counts {
                return (counts, round);
            }
            counts = next;
        }
        panic!("it never settles: {counts:?}");
    }

    #[test]
    fn replicas_even_out_to_within_a_tenth_in_few_rounds() {
        for counts in
            [vec![1000, 0, 0], vec![500, 500, 0], vec![900, 60, 40, 0, 0], vec![7, 0], vec![5000, 4000, 0]]
        {
            let total: u64 = counts.iter().sum();
            let share = total as f64 / counts.len() as f64;
            let (settled, rounds) = settle(counts.clone());
            assert_eq!(settled.iter().sum::<u64>(), total);
            let most = settled.iter().map(|count| (*count as f64 - share).abs()).fold(0.0, f64::max);
            assert!(most <= (share * 0.1).max(1.5), "{counts:?} -> {settled:?}");
            assert!(rounds <= 11, "{counts:?}: {rounds}");
        }
    }

    #[test]
    fn nobody_moves_where_all_is_even_or_there_is_nobody_else() {
        assert!(moves(100, &[]).is_empty());
        assert!(moves(100, &[(99, "a".into()), (101, "b".into())]).is_empty());
        assert!(moves(1, &[(0, "a".into())]).is_empty());
    }
}
