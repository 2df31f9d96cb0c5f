//! The Sync service as tonic mounts it, with a response body that sends bytes as they are.
//!
//! The generated service would encode every message for every stream, and copy it once more; here a message is
//! encoded, framed and compressed once, by the cache, and streams hand out references to its bytes.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message;
use proto::sync::{ClientMessage, FreshnessReply, FreshnessRequest};
use tonic::body::Body;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};
use tonic::codegen::{BoxFuture, Service, StdError};
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status, Streaming};

use super::Context;
use super::accept::Peer;
use super::connection::Connection;

pub(super) const NAME: &str = "bulrush.sync.v1.Sync";
const ENCODING: &str = "grpc-encoding";
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";
const ZSTD: &str = "zstd";
/// Clients send hellos, acks, reports and digests: nothing large.
const INBOUND_BYTES: usize = 256 << 10;

/// Room for an ack. tonic gives each stream 8 KiB otherwise, a quarter of what an idle client costs; it grows.
const INBOUND_BUFFER: usize = 256;

/// Reads client messages.
struct Inbound;

impl Decoder for Inbound {
    type Item = ClientMessage;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<ClientMessage>, Status> {
        let message = ClientMessage::decode(source);
        message.map(Some).map_err(|error| Status::invalid_argument(format!("unreadable message: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        // The second number is for those who write.
        BufferSettings::new(INBOUND_BUFFER, 0)
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

/// `Stream`. The answer's body is the messages of the connection as they are, framed already: what goes to the socket
/// are references to bytes that all streams share.
fn follow<B>(context: Arc<Context>, request: http::Request<B>) -> http::Response<Body>
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    let names = |header| request.headers().get_all(header).iter().filter_map(|value| value.to_str().ok());
    let names = |header| names(header).flat_map(|value| value.split(',')).map(str::trim);
    if let Some(encoding) = names(ENCODING).find(|encoding| *encoding != "identity") {
        let reason = format!("requests are taken uncompressed, not in {encoding:?}: they are small");
        return Status::unimplemented(reason).into_http();
    }
    let zstd = names(ACCEPT_ENCODING).any(|encoding| encoding == ZSTD);
    let inbound = |body| Streaming::new_request(Inbound, body, None, Some(INBOUND_BYTES));
    let request = Request::from_http(request.map(inbound));
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    let connection = Connection::new(context, request.into_inner(), peer, zstd);
    let frames = futures::stream::unfold(Some(Box::new(connection)), |connection| async move {
        let mut connection = connection?;
        let end = match connection.next().await {
            Ok(Some(bytes)) => return Some((Ok::<_, Infallible>(Frame::data(bytes)), Some(connection))),
            Ok(None) => Status::ok(""),
            Err(status) => status,
        };
        let mut trailers = http::HeaderMap::new();
        // A status that does not fit into headers is still the end.
        _ = end.add_header(&mut trailers).inspect_err(|error| tracing::debug!(%error, "status not sent"));
        Some((Ok(Frame::trailers(trailers)), None))
    });
    // The headers go out at once; a refusal comes as the status that ends the stream.
    let mut response = http::Response::new(Body::new(StreamBody::new(frames)));
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    if zstd {
        headers.insert(ENCODING, http::HeaderValue::from_static(ZSTD));
    }
    response
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
                Some("/Stream") => follow(context, request),
                Some("/Freshness") => {
                    Grpc::new(tonic_prost::ProstCodec::default()).unary(Freshness(context), request).await
                }
                _ => Status::unimplemented("no such method of this service").into_http(),
            })
        })
    }
}
