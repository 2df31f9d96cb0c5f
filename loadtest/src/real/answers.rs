//! What the typhas know of the real nodes: which of them have acknowledged what.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::join_all;
use proto::admin::admin_client::AdminClient;
use proto::admin::{Client, StatusRequest, WaitRequest};
use proto::sync::Stamp;
use tonic::transport::{Channel, Endpoint};

/// A typha that stands still is asked again, and meanwhile the others are heard.
const ANSWER: Duration = Duration::from_secs(1);
/// Thousands of nodes with a few hundred bytes each.
const MESSAGE_BYTES: usize = 256 << 20;

#[derive(Clone)]
pub struct Typhas {
    clients: Vec<AdminClient<Channel>>,
    /// Of the datastore, whose revisions count.
    source: String,
}

impl Typhas {
    pub fn at(addresses: &[String], source: String) -> Result<Typhas> {
        let client = |address: &String| {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).context("a typha's address")?;
            let channel = endpoint.connect_timeout(ANSWER).connect_lazy();
            Ok(AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES))
        };
        Ok(Typhas { clients: addresses.iter().map(client).collect::<Result<_>>()?, source })
    }

    /// Nodes whose felix has `revision` in force, which wrote an object of `key`'s kind.
    pub async fn reached(&self, key: &str, revision: u64) -> BTreeSet<String> {
        let ask = self.clients.iter().cloned().map(|mut client| async move {
            let stamp = Stamp { source: self.source.clone(), revision };
            let request = WaitRequest { key: key.to_owned(), revision: Some(stamp) };
            tokio::time::timeout(ANSWER, client.wait(request)).await.ok()?.ok()
        });
        join_all(ask).await.into_iter().flatten().flat_map(|reply| reply.into_inner().reached).collect()
    }

    /// All streams of now; a typha that does not answer is left out.
    pub async fn streams(&self) -> Vec<Stream> {
        let ask = self.clients.iter().cloned().map(|mut client| async move {
            tokio::time::timeout(ANSWER, client.status(StatusRequest { clients: true })).await.ok()?.ok()
        });
        let clients = join_all(ask).await.into_iter().flatten().flat_map(|reply| reply.into_inner().clients);
        clients.filter(|client| client.connected).map(|client| self.stream(client)).collect()
    }

    fn stream(&self, client: Client) -> Stream {
        let acked = client.acked.iter().find(|position| position.source == self.source);
        Stream {
            acked: acked.map_or(0, |position| position.low),
            node: client.node,
            agent: client.agent,
            age: Duration::from_millis(client.connected_millis),
            heard_ago: Duration::from_millis(client.heard_millis_ago),
        }
    }
}

/// Of an agent that is connected.
pub struct Stream {
    pub node: String,
    pub agent: String,
    pub age: Duration,
    pub heard_ago: Duration,
    /// The revision that is in force there.
    pub acked: u64,
}
