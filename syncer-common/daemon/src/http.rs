//! The side port: `/metrics`, `/liveness`, `/readiness`.
//!
//! Metrics and health may have an address each or share one; whichever is off is not served. Addresses are
//! bound before anything else runs, so that a port that is taken is a start-up error.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::health::{Answer, Health};
use crate::metrics::Metrics;

/// How often histograms are folded.
const UPKEEP: Duration = Duration::from_secs(5);

/// A host (name, address, or empty for all addresses) and port to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
}

impl Endpoint {
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Endpoint { host: host.into(), port }
    }

    /// Listens there.
    pub async fn bind(&self, what: &str) -> anyhow::Result<TcpListener> {
        let bound = match self.host.as_str() {
            // One socket for both families where the kernel has IPv6, IPv4 alone elsewhere.
            "" => match TcpListener::bind(("::", self.port)).await {
                Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
                    TcpListener::bind(("0.0.0.0", self.port)).await
                }
                bound => bound,
            },
            host => TcpListener::bind((host, self.port)).await,
        };
        let host = if self.host.is_empty() { "*" } else { &self.host };
        bound.with_context(|| {
            format!(
                "listening for {what} on {host} port {}: is the address this machine's and the port free?",
                self.port
            )
        })
    }
}

/// Bound, not yet serving.
pub struct Http {
    metrics: Metrics,
    /// The one with health, if there is any, comes last.
    servers: Vec<(TcpListener, Router)>,
    metrics_address: Option<SocketAddr>,
    health_address: Option<SocketAddr>,
}

impl Http {
    /// Binds what is switched on (`Some`); the same endpoint twice is bound once.
    pub async fn bind(
        metrics_on: Option<Endpoint>,
        health_on: Option<Endpoint>,
        metrics: Metrics,
        health: Health,
    ) -> anyhow::Result<Self> {
        let mut http = Http {
            metrics: metrics.clone(),
            servers: Vec::new(),
            metrics_address: None,
            health_address: None,
        };
        let shared = metrics_on.is_some() && metrics_on == health_on;
        if let Some(endpoint) = metrics_on {
            let listener = endpoint.bind(if shared { "metrics and health" } else { "metrics" }).await?;
            http.metrics_address = Some(listener.local_addr()?);
            let mut routes = metrics_routes(metrics);
            if shared {
                http.health_address = http.metrics_address;
                routes = routes.merge(health_routes(health.clone()));
            }
            http.servers.push((listener, routes));
        }
        if let Some(endpoint) = health_on.filter(|_| !shared) {
            let listener = endpoint.bind("health").await?;
            http.health_address = Some(listener.local_addr()?);
            http.servers.push((listener, health_routes(health)));
        }
        Ok(http)
    }

    /// More routes on the health port, if it is served.
    pub fn merge(&mut self, routes: Router) {
        if self.health_address.is_none() {
            return;
        }
        if let Some((_, served)) = self.servers.last_mut() {
            *served = std::mem::take(served).merge(routes);
        }
    }

    /// Where metrics are served; tells the port when 0 was asked for.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health_address
    }

    /// Serves until cancelled, and keeps the recorder's memory bounded meanwhile.
    pub async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut set = JoinSet::new();
        for (listener, routes) in self.servers {
            let cancelled = cancel.clone().cancelled_owned();
            // Not graceful: a scraper's idle connection must not hold up the exit.
            set.spawn(async move {
                tokio::select! {
                    served = axum::serve(listener, routes) => served.context("serving metrics and health"),
                    () = cancelled => Ok(()),
                }
            });
        }
        let mut upkeep = tokio::time::interval(UPKEEP);
        loop {
            tokio::select! {
                _ = upkeep.tick() => self.metrics.upkeep(),
                Some(ended) = set.join_next() => ended??,
                () = cancel.cancelled() => return Ok(()),
            }
        }
    }
}

fn metrics_routes(metrics: Metrics) -> Router {
    let answer = move || {
        let text = metrics.render();
        async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text) }
    };
    Router::new().route("/metrics", get(answer))
}

fn health_routes(health: Health) -> Router {
    let status = |answer: Answer| {
        (if answer.good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, answer.text)
    };
    let live = health.clone();
    Router::new()
        .route("/liveness", get(move || async move { status(live.liveness()) }))
        .route("/readiness", get(move || async move { status(health.readiness()) }))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_and_health_answer_on_one_port_and_on_two() {
        for shared in [true, false] {
            let health = Health::new();
            let reporter = health.register("core", None);
            // The same endpoint twice is one; another name for the host makes it two.
            let a = Endpoint::new("127.0.0.1", 0);
            let b = if shared { a.clone() } else { Endpoint::new("localhost", 0) };
            let http = Http::bind(Some(a), Some(b), Metrics::detached().unwrap(), health).await.unwrap();
            let (metrics, health) = (http.metrics_address().unwrap(), http.health_address().unwrap());
            assert_eq!(metrics == health, shared);
            let cancel = CancellationToken::new();
            let server = tokio::spawn(http.run(cancel.clone()));
            assert!(ask(metrics, "/metrics").await.starts_with("HTTP/1.0 200"));
            assert!(ask(health, "/liveness").await.starts_with("HTTP/1.0 200"));
            assert!(ask(health, "/readiness").await.starts_with("HTTP/1.0 503"));
            reporter.ready();
            assert!(ask(health, "/readiness").await.starts_with("HTTP/1.0 200"));
            cancel.cancel();
            server.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn taken_port_is_a_start_up_error_that_names_it() {
        let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = holder.local_addr().unwrap().port();
        let error = Endpoint::new("127.0.0.1", port).bind("health").await.expect_err("the port is taken");
        let text = format!("{error:#}");
        assert!(text.contains("health") && text.contains(&port.to_string()), "{text}");
    }
}
