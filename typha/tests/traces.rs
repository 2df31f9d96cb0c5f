//! Traces of updates, as an OpenTelemetry collector gets them from real processes: from the revision to the agents'
//! acknowledgements, the same trace from every replica.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use harness::process::{Typha, free_port};
use harness::*;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

/// Spans, each with the replica that sent it.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of in request.into_inner().resource_spans {
            let replica = text(&of.resource.unwrap().attributes, "service.instance.id");
            let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| (replica.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn serve(&self, address: SocketAddr) {
        let serving = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(serving.serve(address));
    }

    fn spans(&self) -> Vec<(String, Span)> {
        self.0.lock().unwrap().clone()
    }
}

fn value(attributes: &[KeyValue], key: &str) -> Value {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    found
        .and_then(|attribute| attribute.value.clone()?.value)
        .unwrap_or_else(|| panic!("no {key}: {attributes:?}"))
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Value::StringValue(text) => text,
        other => panic!("{key} is {other:?}"),
    }
}

fn write_pool(store: &Path, cidr: &str) {
    let manifest = format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: pool}}\nspec: {{cidr: {cidr}}}\n"
    );
    std::fs::write(store.join("pool.yaml"), manifest).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn update_is_traced_from_its_revision_to_the_acknowledgements_of_all_replicas_agents() {
    let store = tempfile::tempdir().unwrap();
    write_pool(store.path(), "10.65.0.0/16");
    let folder = store.path().display().to_string();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let endpoint = format!("http://{address}");
    let start = |name: &str| {
        Typha::start(&[
            ("TYPHA_DATASTORETYPE", "directory"),
            ("TYPHA_DIRECTORY", folder.as_str()),
            ("TYPHA_REPLICANAME", name),
            ("TYPHA_TRACINGENDPOINT", endpoint.as_str()),
            ("TYPHA_TRACINGSAMPLERATIO", "1"),
        ])
    };
    let replicas = [start("typha-1"), start("typha-2")];
    let mut agents = Vec::new();
    for (n, replica) in replicas.iter().enumerate() {
        replica.ready().await;
        let server = [replica.server.to_string()];
        agents.extend(["felix", "confd"].map(|agent| Agent::start_on(&format!("n{n}"), &server, agent)));
    }
    for agent in &agents {
        eventually("a proven state", || agent.look().in_sync == 1).await;
    }
    let change = async |cidr: &str| {
        write_pool(store.path(), cidr);
        let holds = |agent: &Agent| agent.look().state.keys().any(|key| key.to_string().contains(cidr));
        for agent in &agents {
            eventually("the change", || holds(agent)).await;
        }
        eventually("all acknowledgements", || {
            agents.iter().for_each(|agent| drop(agent.acks.send_replace(agent.look().cuts.last().cloned())));
            lags(&replicas) == 0
        })
        .await;
    };

    // A collector that is not there yet costs its traces and nothing else.
    change("10.66.0.0/16").await;
    eventually("the traces to be dropped", || {
        let dropped = |typha: &Typha| {
            typha.get("/metrics").unwrap().lines().any(|line| {
                line.strip_prefix("typha_traces_dropped_total ").is_some_and(|count| count != "0")
            })
        };
        replicas.iter().all(dropped)
    })
    .await;
    let collector = Collector::default();
    collector.serve(address);
    change("10.67.0.0/16").await;

    let roots = || -> Vec<(String, Span)> {
        let spans = collector.spans().into_iter();
        spans
            .filter(|(_, span)| {
                span.name == "update" && value(&span.attributes, "bulrush.agents") == Value::IntValue(2)
            })
            .collect()
    };
    let mut traces: HashMap<Vec<u8>, BTreeSet<String>> = HashMap::new();
    eventually("one trace of both replicas", || {
        traces.clear();
        for (replica, root) in roots() {
            traces.entry(root.trace_id).or_default().insert(replica);
        }
        traces.values().any(|replicas| replicas.len() == 2)
    })
    .await;
    let whole = traces.into_iter().find(|(_, replicas)| replicas.len() == 2).unwrap().0;
    for (n, replica) in ["typha-1", "typha-2"].into_iter().enumerate() {
        let all: Vec<Span> = collector
            .spans()
            .into_iter()
            .filter(|(of, span)| of == replica && span.trace_id == whole)
            .map(|(_, span)| span)
            .collect();
        let named = |name: &str| all.iter().filter(|span| span.name == name).cloned().collect::<Vec<Span>>();
        let ([root], [apply], [coalesce]) =
            (&named("update")[..], &named("apply")[..], &named("coalesce")[..])
        else {
            panic!("{all:?}")
        };
        assert!(root.parent_span_id.is_empty() && root.status.is_none(), "{root:?}");
        assert_eq!(text(&root.attributes, "bulrush.source"), "directory");
        assert_eq!(value(&root.attributes, "bulrush.agents_missing"), Value::IntValue(0));
        assert!(matches!(value(&root.attributes, "bulrush.revision"), Value::IntValue(1..)), "{root:?}");
        let times = |span: &Span| (span.start_time_unix_nano, span.end_time_unix_nano);
        assert!(
            root.start_time_unix_nano == times(apply).0 && times(apply).1 == times(coalesce).0,
            "{all:?}"
        );
        let deliveries = named("deliver");
        let agents: BTreeSet<String> =
            deliveries.iter().map(|span| text(&span.attributes, "bulrush.agent")).collect();
        assert_eq!(agents, ["confd", "felix"].map(str::to_owned).into());
        for delivery in &deliveries {
            assert_eq!(text(&delivery.attributes, "k8s.node.name"), format!("n{n}"));
            let (sent, acked) = times(delivery);
            assert!(
                times(coalesce).1 <= sent && sent <= acked && acked <= root.end_time_unix_nano,
                "{all:?}"
            );
            assert_eq!(delivery.parent_span_id, root.span_id);
        }
    }
}

/// Clients that have not acknowledged all that they were sent.
fn lags(replicas: &[Typha]) -> usize {
    let of = |replica: &Typha| {
        let status = replica.get("/status.json").unwrap();
        let status: serde_json::Value =
            serde_json::from_str(status.split_once("\r\n\r\n").unwrap().1).unwrap();
        status["clients"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|client| client["sent"] != client["acked"])
            .count()
    };
    replicas.iter().map(of).sum()
}
