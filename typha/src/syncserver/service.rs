//! The Sync service as tonic mounts it, with a codec that sends bytes as they are.
//!
//! The generated service would encode every message for every stream; here a message is encoded once, by the
//! cache, and streams hand out references to its bytes.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use bytes::{BufMut, Bytes};
use prost::Message;
use proto::sync::{ClientMessage, FreshnessReply, FreshnessRequest};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, BoxStream, Service, StdError};
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};

use super::Context;
use super::accept::Peer;
use super::connection::Connection;

pub(super) const NAME: &str = "bulrush.sync.v1.Sync";
/// Clients send hellos, acks and reports: nothing large.
const INBOUND_BYTES: usize = 256 << 10;

/// Sends encoded messages, receives client messages.
#[derive(Clone, Copy, Default)]
struct Shared;

impl Codec for Shared {
    type Encode = Bytes;
    type Decode = ClientMessage;
    type Encoder = Shared;
    type Decoder = Shared;

    fn encoder(&mut self) -> Shared {
        Shared
    }

    fn decoder(&mut self) -> Shared {
        Shared
    }
}

impl Encoder for Shared {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(item);
        Ok(())
    }
}

impl Decoder for Shared {
    type Item = ClientMessage;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<ClientMessage>, Status> {
        let message = ClientMessage::decode(source);
        message.map(Some).map_err(|error| Status::invalid_argument(format!("unreadable message: {error}")))
    }
}

#[derive(Clone)]
pub(super) struct SyncService {
    context: Arc<Context>,
}

impl SyncService {
    pub fn new(context: Arc<Context>) -> Self {
        SyncService { context }
    }
}

impl NamedService for SyncService {
    const NAME: &'static str = NAME;
}

/// `Stream`.
struct Follow(Arc<Context>);

impl StreamingService<ClientMessage> for Follow {
    type Response = Bytes;
    type ResponseStream = BoxStream<Bytes>;
    type Future = BoxFuture<Response<BoxStream<Bytes>>, Status>;

    fn call(&mut self, request: Request<Streaming<ClientMessage>>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let connection = Connection::new(self.0.clone(), request.into_inner(), peer);
        let stream = futures::stream::unfold(Some(connection), |connection| async move {
            let mut connection = connection?;
            match connection.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(connection))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        // The headers go out at once; a refusal comes as the status that ends the stream.
        Box::pin(std::future::ready(Ok(Response::new(Box::pin(stream) as BoxStream<Bytes>))))
    }
}

/// `Freshness`.
struct Freshness(Arc<Context>);

impl UnaryService<FreshnessRequest> for Freshness {
    type Response = FreshnessReply;
    type Future = BoxFuture<Response<FreshnessReply>, Status>;

    fn call(&mut self, _: Request<FreshnessRequest>) -> Self::Future {
        Box::pin(std::future::ready(Ok(Response::new(self.0.freshness()))))
    }
}

impl<B> Service<http::Request<B>> for SyncService
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let context = self.context.clone();
        Box::pin(async move {
            let method = request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(NAME));
            Ok(match method {
                Some("/Stream") => {
                    let grpc = Grpc::new(Shared).max_decoding_message_size(INBOUND_BYTES);
                    { grpc }.streaming(Follow(context), request).await
                }
                Some("/Freshness") => {
                    Grpc::new(tonic_prost::ProstCodec::default()).unary(Freshness(context), request).await
                }
                _ => Status::unimplemented("no such method of this service").into_http(),
            })
        })
    }
}
