//! The side port: `/metrics`, `/liveness`, `/readiness`.
//!
//! Metrics and health may have an address each or share one; whichever is off is not served. Addresses are
//! bound before anything else runs, so that a port that is taken is a start-up error. They may change later.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use nix::sys::socket::{Backlog, listen};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{self, AbortHandle, JoinError, JoinSet};
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
        // tokio asks for 128 (listen(2)), and all agents come at once when another server has died: whoever does not fit in
        // waits for retransmissions, or is reset. The kernel's own bound is net.core.somaxconn.
        let bound = bound.and_then(|listener| Ok(listen(&listener, Backlog::MAXCONN).map(|()| listener)?));
        let host = if self.host.is_empty() { "*" } else { &self.host };
        bound.with_context(|| {
            format!(
                "listening for {what} on {host} port {}: is the address this machine's and the port free?",
                self.port
            )
        })
    }
}

/// What is served, and where; none: not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    pub metrics: Option<Endpoint>,
    pub health: Option<Endpoint>,
}

/// One listener's part.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Served {
    endpoint: Endpoint,
    metrics: bool,
    health: bool,
}

impl Served {
    async fn bind(&self) -> anyhow::Result<TcpListener> {
        let what = match (self.metrics, self.health) {
            (true, true) => "metrics and health",
            (true, false) => "metrics",
            _ => "health",
        };
        self.endpoint.bind(what).await
    }
}

impl Ports {
    /// The same endpoint twice is one listener.
    fn served(&self) -> Vec<Served> {
        let shared = self.metrics == self.health;
        let metrics = self.metrics.clone().map(|endpoint| Served { endpoint, metrics: true, health: shared });
        let health = self.health.clone().filter(|_| !shared);
        metrics
            .into_iter()
            .chain(health.map(|endpoint| Served { endpoint, metrics: false, health: true }))
            .collect()
    }
}

/// Bound, not yet serving.
pub struct Http {
    metrics: Metrics,
    health: Health,
    /// On the health port, beside health.
    more: Router,
    ports: Ports,
    bound: Vec<(Served, TcpListener)>,
}

impl Http {
    /// Binds what is switched on (`Some`); the same endpoint twice is bound once.
    pub async fn bind(
        metrics_on: Option<Endpoint>,
        health_on: Option<Endpoint>,
        metrics: Metrics,
        health: Health,
    ) -> anyhow::Result<Self> {
        let ports = Ports { metrics: metrics_on, health: health_on };
        let mut bound = Vec::new();
        for served in ports.served() {
            let listener = served.bind().await?;
            bound.push((served, listener));
        }
        Ok(Http { metrics, health, more: Router::new(), ports, bound })
    }

    /// More routes on the health port, if it is served.
    pub fn merge(&mut self, routes: Router) {
        self.more = std::mem::take(&mut self.more).merge(routes);
    }

    /// Where metrics are served; tells the port when 0 was asked for.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.address(|served| served.metrics)
    }

    pub fn health_address(&self) -> Option<SocketAddr> {
        self.address(|served| served.health)
    }

    fn address(&self, of: impl Fn(&Served) -> bool) -> Option<SocketAddr> {
        let (_, listener) = self.bound.iter().find(|(served, _)| of(served))?;
        listener.local_addr().ok()
    }

    /// Serves until cancelled, and keeps the recorder's memory bounded meanwhile.
    pub async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let (_stay, ports) = watch::channel(self.ports.clone());
        self.follow(ports, cancel).await
    }

    /// The same, and serves elsewhere when `ports` says so. A port that is taken then is tried again and again: the
    /// other one is served meanwhile.
    pub async fn follow(
        self,
        mut ports: watch::Receiver<Ports>,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        let Http { metrics, health, more, bound, .. } = self;
        let routes = |served: &Served| {
            let mut routes = Router::new();
            if served.metrics {
                routes = routes.merge(metrics_routes(metrics.clone()));
            }
            if served.health {
                routes = routes.merge(health_routes(health.clone())).merge(more.clone());
            }
            routes
        };
        let mut set = JoinSet::new();
        let mut running: Vec<(Served, AbortHandle)> = Vec::new();
        for (served, listener) in bound {
            let task = set.spawn(serve(listener, routes(&served)));
            running.push((served, task));
        }
        let mut upkeep = tokio::time::interval(UPKEEP);
        let mut told = String::new();
        loop {
            tokio::select! {
                _ = upkeep.tick() => metrics.upkeep(),
                Some(ended) = set.join_next() => return ended?,
                Ok(()) = ports.changed() => {}
                // Not graceful: a scraper's idle connection must not hold up the exit.
                () = cancel.cancelled() => return Ok(()),
            }
            let wanted = ports.borrow_and_update().served();
            let (stay, gone) = running.into_iter().partition(|(served, _)| wanted.contains(served));
            running = stay;
            for (served, task) in gone {
                tracing::info!(?served, "no longer served");
                task.abort();
                // The next one may have the same port.
                while set.join_next_with_id().await.is_some_and(|ended| id(&ended) != task.id()) {}
            }
            for served in wanted {
                if running.iter().any(|(other, _)| *other == served) {
                    continue;
                }
                match served.bind().await {
                    Ok(listener) => {
                        tracing::info!(?served, "serving");
                        let task = set.spawn(serve(listener, routes(&served)));
                        running.push((served, task));
                    }
                    Err(error) => {
                        let text = format!("{error:#}");
                        if told != text {
                            tracing::warn!("{text} Trying again.");
                            told = text;
                        }
                    }
                }
            }
        }
    }
}

async fn serve(listener: TcpListener, routes: Router) -> anyhow::Result<()> {
    axum::serve(listener, routes).await.context("serving metrics and health")
}

fn id<T>(ended: &Result<(task::Id, T), JoinError>) -> task::Id {
    match ended {
        Ok((id, _)) => *id,
        Err(error) => error.id(),
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
        try_ask(address, path).await.unwrap()
    }

    async fn try_ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
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
    async fn ports_move_while_running_and_one_that_is_taken_keeps_nothing_else_away() {
        // An address that no other test has.
        let [high, low, ..] = (std::process::id() as u16).to_be_bytes();
        let at = |port: u16| SocketAddr::from(([127, 99, high, low], port));
        let endpoint = |address: SocketAddr| Some(Endpoint::new(address.ip().to_string(), address.port()));
        let (first, second, third) = (at(4001), at(4002), at(4003));
        let (out, ports) = watch::channel(Ports { metrics: None, health: endpoint(first) });
        let health = Health::new();
        let _reporter = health.register("core", None);
        let http = Http::bind(None, endpoint(first), Metrics::detached().unwrap(), health).await.unwrap();
        let cancel = CancellationToken::new();
        let server = tokio::spawn(http.follow(ports, cancel.clone()));
        let answers = async |address, path: &str, yes: bool| {
            let deadline = std::time::Instant::now() + Duration::from_secs(30);
            loop {
                let asked = tokio::time::timeout(Duration::from_secs(5), try_ask(address, path)).await;
                let good =
                    asked.is_ok_and(|answer| answer.is_ok_and(|text| text.starts_with("HTTP/1.0 200")));
                if good == yes {
                    return;
                }
                assert!(std::time::Instant::now() < deadline, "{address}{path}: {good}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        answers(first, "/liveness", true).await;
        // The port of metrics is somebody else's: health moves all the same.
        let holder = TcpListener::bind(third).await.unwrap();
        out.send_replace(Ports { metrics: endpoint(third), health: endpoint(second) });
        answers(second, "/liveness", true).await;
        answers(first, "/liveness", false).await;
        drop(holder);
        answers(third, "/metrics", true).await;
        // Both on one port, then nothing.
        out.send_replace(Ports { metrics: endpoint(second), health: endpoint(second) });
        answers(second, "/metrics", true).await;
        answers(second, "/liveness", true).await;
        out.send_replace(Ports::default());
        answers(second, "/liveness", false).await;
        cancel.cancel();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_thousand_agents_may_come_at_once() {
        let listener = Endpoint::new("127.0.0.1", 0).bind("agents").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let ss =
            std::process::Command::new("ss").args(["-Hltn", &format!("sport = :{port}")]).output().unwrap();
        let line = String::from_utf8(ss.stdout).unwrap();
        // ss(8): of a socket that listens, Send-Q is the backlog.
        let backlog: u32 = line.split_whitespace().nth(2).unwrap().parse().unwrap();
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
        assert_eq!(backlog, 4_096.min(most));
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
