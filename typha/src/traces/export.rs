//! Spans to the collector, by OTLP over gRPC. What it does not take in time is dropped: traces must not cost memory.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

use super::update::text;
use crate::metrics::Metrics;

/// For a connection, and for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Updates that go in one request.
const TOGETHER: usize = 16;

pub struct Exporter {
    client: TraceServiceClient<Channel>,
    resource: Resource,
    metrics: Metrics,
}

impl Exporter {
    /// Connects when there is something to send. `endpoint`: `http://host:port`.
    pub fn new(endpoint: Endpoint, replica: &str, metrics: Metrics) -> Self {
        let channel = endpoint.connect_timeout(ANSWER).timeout(ANSWER).connect_lazy();
        let attributes = vec![
            text("service.name", "typha"),
            text("service.instance.id", replica),
            text("service.version", env!("CARGO_PKG_VERSION")),
        ];
        let resource = Resource { attributes, ..Resource::default() };
        Exporter { client: TraceServiceClient::new(channel), resource, metrics }
    }

    /// Sends what comes, until nothing can come any more.
    pub async fn run(mut self, mut finished: mpsc::Receiver<Vec<Span>>) {
        let mut updates = Vec::new();
        let mut said = String::new();
        while finished.recv_many(&mut updates, TOGETHER).await > 0 {
            let count = updates.len() as u64;
            let request = self.request(updates.drain(..).flatten().collect());
            match self.client.export(request).await {
                Ok(_) => said.clear(),
                Err(status) => {
                    self.metrics.traces_dropped.increment(count);
                    // An outage repeats the same words.
                    let reason = format!("{:?}: {}", status.code(), status.message());
                    if reason != said {
                        tracing::warn!(
                            reason,
                            "the OpenTelemetry collector (TracingEndpoint) takes no traces"
                        );
                        said = reason;
                    }
                }
            }
        }
    }

    fn request(&self, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let scope = InstrumentationScope { name: "typha".into(), ..InstrumentationScope::default() };
        let scope = ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() };
        let resource = ResourceSpans {
            resource: Some(self.resource.clone()),
            scope_spans: vec![scope],
            ..ResourceSpans::default()
        };
        ExportTraceServiceRequest { resource_spans: vec![resource] }
    }
}
