//! The stock service: tonic's generated code, which encodes every message for every client.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::Result;
use futures::{Stream, StreamExt as _};
use prost::Message as _;
use proto::model::{Value, WorkloadEndpoint, value};
use proto::sync::sync_client::SyncClient;
use proto::sync::sync_server::{Sync, SyncServer};
use proto::sync::{
    Batch, ClientHello, ClientMessage, Entry, FreshnessReply, FreshnessRequest, ServerMessage,
    client_message, server_message,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::{BroadcastStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::{Received, Sender};

struct Service {
    sender: Sender,
    entries: Arc<Vec<Entry>>,
}

/// Entries as a synthetic cluster's endpoints are.
fn entries(count: usize) -> Vec<Entry> {
    let entry = |number: usize| {
        let labels = [
            ("app", "web"),
            ("pod-template-hash", "5f2a77c1"),
            ("version", "v17"),
            ("projectcalico.org/namespace", "team-042"),
            ("projectcalico.org/orchestrator", "k8s"),
            ("projectcalico.org/serviceaccount", "default"),
            ("loadtest.bulrush/due", "123456789"),
        ];
        let endpoint = WorkloadEndpoint {
            state: "active".into(),
            name: format!("cali{number:011x}"),
            profile_ids: vec!["kns.team-042".into(), "ksa.team-042.default".into()],
            ipv4_nets: vec!["10.64.12.34/32".into()],
            labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..WorkloadEndpoint::default()
        };
        Entry {
            key: format!(
                "/calico/v1/host/node-00042/workload/k8s/team-042%2fweb-9e3779b1-{number:05}/endpoint/eth0"
            ),
            value: Some(Value { kind: Some(value::Kind::WorkloadEndpoint(endpoint)) }),
            ..Entry::default()
        }
    };
    (0..count).map(entry).collect()
}

pub async fn serve(listener: TcpListener, sender: Sender, count: usize) -> Result<()> {
    let service = SyncServer::new(Service { sender, entries: Arc::new(entries(count)) });
    let incoming = TcpListenerStream::new(listener);
    tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .add_service(service)
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

#[tonic::async_trait]
impl Sync for Service {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

    async fn stream(
        &self,
        _: Request<Streaming<ClientMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let entries = self.entries.clone();
        let messages = BroadcastStream::new(self.sender.subscribe()).map(move |stamp| {
            let stamp = stamp.map_err(|lagged| Status::data_loss(lagged.to_string()))?;
            let mut entries = (*entries).clone();
            entries[0].seq = stamp;
            let batch = Batch { entries, more: false };
            Ok(ServerMessage { message: Some(server_message::Message::Batch(batch)) })
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn freshness(&self, _: Request<FreshnessRequest>) -> Result<Response<FreshnessReply>, Status> {
        Err(Status::unimplemented("a baseline has no data"))
    }
}

pub async fn read(address: SocketAddr, index: usize, received: Arc<Received>) -> Result<()> {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        .connect()
        .await?;
    let hello = ClientMessage { message: Some(client_message::Message::Hello(ClientHello::default())) };
    let up = futures::stream::iter([hello]).chain(futures::stream::pending());
    let mut down = SyncClient::new(channel).stream(up).await?.into_inner();
    while let Some(message) = down.message().await? {
        let bytes = message.encoded_len();
        if let Some(server_message::Message::Batch(batch)) = message.message {
            received.message(index, bytes, batch.entries.first().map_or(0, |entry| entry.seq));
        }
    }
    anyhow::bail!("the service ended a stream")
}
