//! Requests to the API server.
//!
//! One connection serves everything. It is given up, and made again with credentials read anew, when a
//! request goes unanswered. When the server says that it is busy (429: its own limits, or priority and
//! fairness), every request waits for the time it asks for, plus up to a quarter at random.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::Timing;
use super::connection::{self, causes};
use super::failure::{Failure, Refusal, Reply};
use super::object::ListMeta;
use crate::backend::config::KubernetesConfig;
use crate::backend::{Error, Result};
use crate::kubernetes::{ApiGroup, Options};

/// Of one wait for a busy server; a longer one is an error to the caller.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// When a busy server does not say for how long.
const DEFAULT_WAIT: Duration = Duration::from_secs(1);
/// How often a write is tried on a busy server, which does nothing for a request that it refuses. Reads
/// are tried for ever: it answers, so the watches are better kept than dropped.
const WRITE_ATTEMPTS: usize = 5;
/// The identity of the cluster, and which group serves Calico's kinds, are read again after so long.
const REMEMBERED: Duration = Duration::from_secs(5);

pub(super) struct Api {
    config: KubernetesConfig,
    pub(super) timing: Timing,
    state: Mutex<State>,
    history: tokio::sync::Mutex<Option<History>>,
    group: tokio::sync::Mutex<Option<Group>>,
}

#[derive(Default)]
struct State {
    client: Option<Client>,
    /// Counts connections that were given up.
    generation: u64,
    /// A busy server is left alone until then.
    not_before: Option<Instant>,
}

struct History {
    generation: u64,
    read: Instant,
    uid: String,
}

struct Group {
    group: ApiGroup,
    read: Instant,
    /// A kind of it was found: it stays.
    settled: bool,
}

pub(super) struct Call {
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    pub(super) body: Vec<u8>,
    pub(super) timeout: Duration,
}

impl Call {
    pub(super) fn get(path: String, timeout: Duration) -> Self {
        Call { method: Method::GET, path, body: Vec::new(), timeout }
    }
}

impl Api {
    pub(super) fn new(config: KubernetesConfig, timing: Timing, client: Option<Client>) -> Self {
        Api {
            config,
            timing,
            state: Mutex::new(State { client, ..State::default() }),
            history: tokio::sync::Mutex::default(),
            group: tokio::sync::Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn client(&self) -> Reply<(u64, Client)> {
        let generation = {
            let state = self.state();
            if let Some(client) = &state.client {
                return Ok((state.generation, client.clone()));
            }
            state.generation
        };
        let client = connection::connect(&self.config).await.map_err(Failure::Setup)?;
        let mut state = self.state();
        if state.generation == generation {
            // Whoever was first: all are to use one connection.
            let client = state.client.get_or_insert(client);
            return Ok((generation, client.clone()));
        }
        Ok((generation, client))
    }

    /// Gives up a connection that failed, unless another request has done so already.
    fn leave(&self, generation: u64) {
        let mut state = self.state();
        if state.generation == generation {
            state.client = None;
            state.generation += 1;
        }
    }

    /// The body of a successful answer.
    pub(super) async fn fetch(&self, call: &Call) -> Reply<Bytes> {
        let (generation, response) = self.send(call).await?;
        match tokio::time::timeout(call.timeout, response.into_body().collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(self.no_answer(generation, causes(&error))),
            Err(_) => Err(self.no_answer(generation, timed_out(call.timeout))),
        }
    }

    pub(super) async fn read<T: DeserializeOwned>(&self, call: &Call) -> Reply<T> {
        let body = self.fetch(call).await?;
        serde_json::from_slice(&body)
            .map_err(|error| Failure::NoAnswer(format!("the answer can not be read: {error}")))
    }

    /// The body of a successful answer, as it comes.
    pub(super) async fn stream(&self, call: &Call) -> Reply<Body> {
        Ok(self.send(call).await?.1.into_body())
    }

    async fn send(&self, call: &Call) -> Reply<(u64, Response<Body>)> {
        let mut attempts = 1;
        loop {
            self.patience().await?;
            let (generation, client) = self.client().await?;
            let request = Request::builder()
                .method(call.method.clone())
                .uri(&call.path)
                .header(http::header::ACCEPT, "application/json")
                .header(http::header::CONTENT_TYPE, content_type(&call.method))
                .body(Body::from(call.body.clone()))
                .map_err(|error| Failure::NoAnswer(error.to_string()))?;
            let response = match tokio::time::timeout(call.timeout, client.send(request)).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(self.no_answer(generation, causes(&error))),
                Err(_) => return Err(self.no_answer(generation, timed_out(call.timeout))),
            };
            let status = response.status();
            if status.is_success() {
                return Ok((generation, response));
            }
            if status == StatusCode::TOO_MANY_REQUESTS {
                let wait = self.busy(&response);
                if attempts < WRITE_ATTEMPTS || call.method == Method::GET {
                    attempts += 1;
                    continue;
                }
                return Err(Failure::Throttled(wait));
            }
            if status == StatusCode::UNAUTHORIZED {
                // Credentials may have been renewed.
                self.leave(generation);
            }
            let body = tokio::time::timeout(call.timeout, response.into_body().collect()).await;
            let body = body.ok().and_then(std::result::Result::ok).map(|body| body.to_bytes());
            return Err(Failure::Refused(Refusal::read(status.as_u16(), &body.unwrap_or_default())));
        }
    }

    fn no_answer(&self, generation: u64, reason: String) -> Failure {
        self.leave(generation);
        Failure::NoAnswer(reason)
    }

    /// Notes for how long the server wants to be left alone.
    fn busy(&self, response: &Response<Body>) -> Duration {
        let header = response.headers().get(http::header::RETRY_AFTER);
        let wait = header
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map_or(DEFAULT_WAIT, Duration::from_secs);
        let until = Instant::now() + wait;
        let mut state = self.state();
        state.not_before = Some(state.not_before.map_or(until, |before| before.max(until)));
        tracing::debug!(seconds = wait.as_secs(), "the API server is busy");
        wait
    }

    /// Waits as long as a busy server asked for.
    async fn patience(&self) -> Reply<()> {
        loop {
            let not_before = self.state().not_before;
            let wait = not_before.map(|until| until.saturating_duration_since(Instant::now()));
            match wait {
                None | Some(Duration::ZERO) => return Ok(()),
                Some(wait) if wait > LONGEST_WAIT => return Err(Failure::Throttled(wait)),
                // At random, so that not all come back at once.
                Some(wait) => tokio::time::sleep(wait.mul_f64(rand::random_range(1.0..1.25))).await,
            }
        }
    }

    /// Uid of the namespace kube-system, which every cluster has for as long as it lives. As a list of one
    /// name: that takes no other permission than the watches.
    pub(super) async fn history(&self) -> Result<String> {
        #[derive(Deserialize)]
        struct Namespaces {
            items: Vec<Item>,
        }
        #[derive(Deserialize)]
        struct Item {
            metadata: ListMeta,
        }
        let mut history = self.history.lock().await;
        let generation = self.state().generation;
        if let Some(history) = &*history
            && history.generation == generation
            && history.read.elapsed() < REMEMBERED
        {
            return Ok(history.uid.clone());
        }
        let path = "/api/v1/namespaces?fieldSelector=metadata.name%3Dkube-system";
        let call = Call::get(path.into(), self.timing.request);
        let resource = super::NAMESPACES;
        let found: Namespaces =
            self.read(&call).await.map_err(|failure| failure.into_error("list", &resource, 0))?;
        let Some(uid) = found.items.into_iter().next().and_then(|item| item.metadata.uid) else {
            return Err(Error::Unavailable {
                what: "kubernetes namespace kube-system".into(),
                reason: "does not exist (yet): the API server makes it when it starts".into(),
            });
        };
        *history = Some(History { generation, read: Instant::now(), uid: uid.clone() });
        Ok(uid)
    }

    /// Which group serves Calico's kinds: `projectcalico.org/v3` only where `crd.projectcalico.org` is not
    /// served too. While neither has shown a kind it is asked again. A server that does not answer decides
    /// nothing: taking that for the old group, as Calico does, would show an empty cluster.
    pub(super) async fn group(&self) -> Reply<ApiGroup> {
        #[derive(Deserialize)]
        struct Groups {
            groups: Vec<Named>,
        }
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        if let Some(group) = self.config.group {
            return Ok(group);
        }
        let mut known = self.group.lock().await;
        if let Some(known) = &*known
            && (known.settled || known.read.elapsed() < REMEMBERED)
        {
            return Ok(known.group);
        }
        let call = Call::get("/apis".into(), self.timing.request);
        let group = match self.read::<Groups>(&call).await {
            Ok(found) => {
                let serves = |group: &str| found.groups.iter().any(|found| found.name == group);
                match (serves("projectcalico.org"), serves("crd.projectcalico.org")) {
                    (true, false) => ApiGroup::V3,
                    _ => ApiGroup::V1,
                }
            }
            Err(Failure::Refused(refusal)) if matches!(refusal.code, 403 | 404) => ApiGroup::V1,
            Err(failure) => return Err(failure),
        };
        *known = Some(Group { group, read: Instant::now(), settled: false });
        Ok(group)
    }

    /// A kind of that group was found.
    pub(super) async fn settle(&self, found: ApiGroup) {
        if let Some(known) = &mut *self.group.lock().await
            && known.group == found
        {
            known.settled = true;
        }
    }

    /// How objects are read while `group` serves Calico's.
    pub(super) fn options(&self, group: ApiGroup) -> Options {
        let options = Options { group, use_pod_cidr: self.config.use_pod_cidr, ..Options::default() };
        match self.config.interface_prefix.clone() {
            Some(interface_prefix) => Options { interface_prefix, ..options },
            None => options,
        }
    }
}

fn content_type(method: &Method) -> &'static str {
    if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" }
}

fn timed_out(after: Duration) -> String {
    format!("no answer within {:.0?}", after)
}
