//! What operators and other replicas ask: who is connected, how far each node is, how loaded this replica is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use proto::admin::{
    self, LoadReply, LoadRequest, StatusReply, StatusRequest, WaitReply, WaitRequest, admin_server::Admin,
};
use proto::sync::SourcePosition;
use syncer_common::model::{Key, Kind};
use tonic::{Request, Response, Status};

use super::accept::Peer;
use super::registry::Client;
use super::{Context, millis};

pub(super) struct AdminService {
    context: Arc<Context>,
}

impl AdminService {
    pub fn new(context: Arc<Context>) -> Self {
        AdminService { context }
    }

    fn describe(&self, client: &Client, connected: bool) -> admin::Client {
        let cache = self.context.cache.read();
        let acked = cache.sources().into_iter().enumerate().filter(|_| client.acked() > 0).filter_map(
            |(source, position)| {
                let revision = cache.revision_at(source, client.acked())?;
                Some(SourcePosition { low: revision, high: revision, witness: None, ..position })
            },
        );
        admin::Client {
            node: client.node.clone(),
            agent: client.agent.clone(),
            software: client.software.clone(),
            address: client.address.map(|address| address.to_string()).unwrap_or_default(),
            session: client.session.clone(),
            sent_seq: client.sent(),
            acked_seq: client.acked(),
            heard_millis_ago: client.heard_millis_ago(),
            connected_millis: millis(client.connected.elapsed()),
            acked: acked.collect(),
            lag_millis: (client.acked() > 0).then(|| millis(self.context.heads.lag(client.acked()))),
            connected,
            problems: client.problems(),
        }
    }
}

/// An agent's certificate is for its stream.
pub(super) fn may_ask(request: Request<()>, bound: bool) -> Result<Request<()>, Status> {
    let identity = request.extensions().get::<Peer>().and_then(|peer| peer.identity.as_ref());
    match identity {
        Some(identity) if bound && identity.is_bound() => Err(Status::permission_denied(
            "this certificate is an agent's: operators need one that names no node",
        )),
        _ => Ok(request),
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let context = &self.context;
        let mut reply = StatusReply {
            replica: context.options.replica.clone(),
            software: context.options.software.clone(),
            freshness: Some(context.freshness()),
            invalid: context.intake.invalid.load(Relaxed),
            ..Default::default()
        };
        {
            let cache = context.cache.read();
            reply.epoch = cache.epoch().to_owned();
            reply.seq = cache.head();
            reply.entries =
                cache.live().iter().map(|(kind, count)| (kind.name().to_owned(), *count)).collect();
            reply.tombstones = cache.tombstones();
        }
        if request.into_inner().clients {
            let (here, gone) = (context.registry.list(), context.registry.departed());
            let here = here.iter().map(|client| self.describe(client, true));
            reply.clients = here.chain(gone.iter().map(|client| self.describe(client, false))).collect();
        }
        Ok(Response::new(reply))
    }

    /// A node has reached a revision when every agent on it that reads this kind has acknowledged it.
    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitReply>, Status> {
        let request = request.into_inner();
        let kind = match request.key.as_str() {
            "" => None,
            key => match Key::parse(key).as_ref().and_then(Kind::of) {
                Some(kind) => Some(kind),
                None => {
                    return Err(Status::invalid_argument(format!(
                        "{key:?} is not the key of an entry that agents receive, such as /calico/v1/Ready"
                    )));
                }
            },
        };
        let Some(stamp) = request.revision else {
            return Err(Status::invalid_argument("a revision to wait for is needed"));
        };
        let clients = self.context.registry.current();
        let cache = self.context.cache.read();
        let Some(source) = cache.source(&stamp.source) else {
            let sources: Vec<String> = cache.sources().into_iter().map(|position| position.source).collect();
            return Err(Status::invalid_argument(format!(
                "{:?} is not a source of this replica; these are: {}",
                stamp.source,
                sources.join(", ")
            )));
        };
        let mut nodes: BTreeMap<&str, bool> = BTreeMap::new();
        for client in clients.iter().filter(|client| kind.is_none_or(|kind| client.kinds.contains(kind))) {
            let programmed = cache.revision_at(source, client.acked()).filter(|_| client.acked() > 0);
            let reached = programmed.is_some_and(|revision| revision >= stamp.revision);
            *nodes.entry(&client.node).or_insert(true) &= reached;
        }
        let names = |wanted: bool| -> BTreeSet<String> {
            nodes
                .iter()
                .filter(|(_, reached)| **reached == wanted)
                .map(|(node, _)| (*node).to_owned())
                .collect()
        };
        Ok(Response::new(WaitReply {
            reached: names(true).into_iter().collect(),
            lagging: names(false).into_iter().collect(),
            known: cache.revision(source) >= stamp.revision,
        }))
    }

    async fn load(&self, _: Request<LoadRequest>) -> Result<Response<LoadReply>, Status> {
        let draining = self.context.drain.is_cancelled();
        let clients = self.context.registry.len() as u64;
        let (epoch, in_sync) = {
            let cache = self.context.cache.read();
            (cache.epoch().to_owned(), cache.in_sync())
        };
        // One that drains says so even when the last client has gone.
        let draining = if draining { clients.max(1) } else { 0 };
        Ok(Response::new(LoadReply { clients, draining, epoch, in_sync }))
    }
}
