//! etcd v3 under `/calico/`.
//!
//! Reads go to one endpoint at a time and move on to the next when it does not answer; a write is sent
//! once, because a write that timed out may have happened. Every request has a deadline, so that a paused
//! server becomes an error. Listings are paged at one revision with pages sized by bytes; the watch
//! (`watch.rs`) never splits a transaction.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, GetResponse,
    Identity, PutOptions, TlsOptions, Txn, TxnOp, TxnResponse,
};
use tokio_util::sync::CancellationToken;

use super::config::EtcdConfig;
use super::{
    Datastore, Error, Finding, Head, KeyValue, Listing, MAX_VALUE_BYTES, PREFIX, Result, Revision, Source,
    Watch,
};

mod failure;
mod watch;

use failure::{Failure, Refusal};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A page is up to a few MiB: on a slow link it needs more than a single-key request.
const PAGE_TIMEOUT: Duration = Duration::from_secs(20);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// etcd refuses pings more frequent than 5 s (`--grpc-keepalive-min-time`) with GOAWAY.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));
/// Replies are asked to stay near this size.
const PAGE_BYTES: usize = 2 << 20;
const PAGE_KEYS: i64 = 1_000;
const PAGE_KEYS_MAX: i64 = 10_000;
/// Above gRPC's default of 4 MiB, so that one large value among small ones costs no second request. Beyond
/// it a page is asked again with fewer keys, and a single value is reported as oversize.
const MAX_MESSAGE: usize = 16 << 20;
/// A write on a connection idle for longer is preceded by a read, which may move to another endpoint.
const TRUSTED_FOR: Duration = Duration::from_secs(2);

/// An etcd cluster. Connections are made on first use and again after a failure (certificates are read
/// again each time).
#[derive(Clone)]
pub struct EtcdStore {
    shared: Arc<Shared>,
}

struct Shared {
    config: EtcdConfig,
    endpoints: Vec<String>,
    state: Mutex<State>,
}

struct State {
    visit: Visit,
    connection: Option<Connection>,
    /// Connections made so far.
    connections: u64,
    answered: Option<Instant>,
}

/// The time from choosing an endpoint to leaving it for the next.
#[derive(Clone, Default)]
struct Visit {
    number: u64,
    endpoint: usize,
    /// Watches of this visit end with it.
    over: CancellationToken,
}

#[derive(Clone)]
struct Connection {
    client: Client,
    number: u64,
    visit: Visit,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Reply<T> = std::result::Result<T, etcd_client::Error>;

/// One page of a range.
struct Page {
    items: Vec<KeyValue>,
    bytes: usize,
    more: bool,
    revision: Revision,
    /// First key of the next page.
    next: Vec<u8>,
    unreadable: usize,
}

impl EtcdStore {
    pub fn new(config: EtcdConfig) -> Result<Self> {
        let endpoints = config.checked_endpoints()?;
        let state = State { visit: Visit::default(), connection: None, connections: 0, answered: None };
        Ok(Self { shared: Arc::new(Shared { config, endpoints, state: Mutex::new(state) }) })
    }

    async fn options(&self) -> Result<ConnectOptions> {
        let config = &self.shared.config;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEPALIVE.0, KEEPALIVE.1)
            .with_keep_alive_while_idle(true)
            .with_tcp_keepalive(Duration::from_secs(10))
            .with_require_leader(true);
        if let Some(ca) = &config.ca_file {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read_pem(ca).await?));
            if let (Some(cert), Some(key)) = (&config.cert_file, &config.key_file) {
                tls = tls.identity(Identity::from_pem(read_pem(cert).await?, read_pem(key).await?));
            }
            options = options.with_tls(tls);
        }
        Ok(options)
    }

    /// The connection in use.
    async fn connection(&self) -> Result<Connection> {
        let visit = {
            let state = self.shared.state();
            if let Some(connection) = &state.connection {
                return Ok(connection.clone());
            }
            state.visit.clone()
        };
        let connected = tokio::time::timeout(REQUEST_TIMEOUT, self.connect(visit.endpoint)).await;
        let client = match connected {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                self.leave(&visit);
                return Err(error);
            }
            Err(_) => {
                self.leave(&visit);
                let what = format!("etcd connect {}", self.shared.endpoints[visit.endpoint]);
                return Err(Error::Unavailable { what, reason: "timed out".into() });
            }
        };
        let mut state = self.shared.state();
        if state.visit.number == visit.number
            && let Some(connection) = &state.connection
        {
            // Another request was quicker.
            return Ok(connection.clone());
        }
        state.connections += 1;
        let connection = Connection { client, number: state.connections, visit };
        if state.visit.number == connection.visit.number {
            state.connection = Some(connection.clone());
        }
        Ok(connection)
    }

    /// Connects, and logs in where there is a user.
    async fn connect(&self, endpoint: usize) -> Result<Client> {
        let config = &self.shared.config;
        let endpoint = &self.shared.endpoints[endpoint];
        let options = self.options().await?;
        if let (Some(user), Some(password)) = (&config.username, &config.password) {
            // An expired token is dealt with here (`Failure::Token`) and not by etcd_client, which knows neither
            // of watches nor of tokens that are outdated by a change of users or roles.
            let with_user = options.clone().with_user(user, password.reveal());
            match Client::connect([endpoint], Some(with_user)).await.map_err(Failure::from) {
                Err(Failure::Refused(Refusal::AuthOff, _)) => {
                    tracing::warn!(endpoint, user, "etcd has authentication off: the password is not used");
                }
                result => {
                    let what = || format!("etcd login of user {user:?} at {endpoint}");
                    return result.map_err(|failure| failure.into_error(what(), 0));
                }
            }
        }
        Client::connect([endpoint], Some(options))
            .await
            .map_err(|error| Failure::from(error).into_error(format!("etcd connect {endpoint}"), 0))
    }

    /// Moves on from an endpoint that failed.
    fn leave(&self, visit: &Visit) {
        let mut state = self.shared.state();
        if state.visit.number != visit.number {
            return;
        }
        let endpoint = (visit.endpoint + 1) % self.shared.endpoints.len();
        let next = Visit { number: visit.number + 1, endpoint, over: CancellationToken::new() };
        if endpoint == visit.endpoint {
            // There is no better place for its watches: they find out for themselves whether they work.
            state.visit = Visit { over: visit.over.clone(), ..next };
        } else {
            visit.over.cancel();
            state.visit = next;
        }
        state.connection = None;
        state.answered = None;
    }

    /// The next request connects to the same endpoint anew.
    fn forget(&self, connection: &Connection) {
        let mut state = self.shared.state();
        if state.connection.as_ref().is_some_and(|stored| stored.number == connection.number) {
            state.connection = None;
        }
    }

    /// One request to the endpoint in use, within its deadline.
    async fn once<T, F>(
        &self,
        timeout: Duration,
        request: impl FnOnce(Connection) -> F + Send,
    ) -> std::result::Result<T, Failure>
    where
        F: Future<Output = Reply<T>> + Send,
    {
        let connection = self.connection().await.map_err(Failure::Connect)?;
        let endpoint = &self.shared.endpoints[connection.visit.endpoint];
        let result = match tokio::time::timeout(timeout, request(connection.clone())).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(Failure::from(error).at(endpoint)),
            Err(_) => Err(Failure::Timeout(timeout)),
        };
        match &result {
            Ok(_) => self.shared.state().answered = Some(Instant::now()),
            Err(Failure::Token(_)) => self.forget(&connection),
            Err(failure) if failure.is_about_endpoint() => self.leave(&connection.visit),
            Err(_) => {}
        }
        result
    }

    /// A read: tried on every endpoint, once each, and once more where it needs a new token.
    async fn read<T, F>(
        &self,
        timeout: Duration,
        request: impl Fn(Connection) -> F + Send + Sync,
    ) -> std::result::Result<T, Failure>
    where
        F: Future<Output = Reply<T>> + Send,
    {
        let (mut tries, mut renewed) = (self.shared.endpoints.len(), false);
        loop {
            match self.once(timeout, &request).await {
                Err(Failure::Token(_)) if !renewed => renewed = true,
                Err(failure) if failure.is_about_endpoint() && tries > 1 => tries -= 1,
                other => return other,
            }
        }
    }

    /// A linearizable read of one key that does not exist: the cheapest thing that needs a quorum.
    async fn probe(&self) -> Result<(Revision, u64)> {
        let reply = self
            .read(PROBE_TIMEOUT, |mut connection| async move {
                connection.client.get(PREFIX, Some(GetOptions::new().with_count_only())).await
            })
            .await
            .map_err(|failure| failure.into_error("etcd read of the newest revision".into(), 0))?;
        let header = reply.header().ok_or_else(|| no_header("read"))?;
        Ok((header.revision() as Revision, header.cluster_id()))
    }

    async fn page(
        &self,
        from: &[u8],
        end: &[u8],
        limit: i64,
        at: Revision,
        keys_only: bool,
    ) -> std::result::Result<GetResponse, Failure> {
        let mut options = GetOptions::new().with_range(end).with_limit(limit).with_revision(at as i64);
        if keys_only {
            options = options.with_keys_only();
        }
        self.read(PAGE_TIMEOUT, |connection| {
            let (from, options) = (from.to_vec(), options.clone());
            let mut kv = connection.client.kv_client().max_decoding_message_size(MAX_MESSAGE);
            async move { kv.get(from, Some(options)).await }
        })
        .await
    }

    /// Every key in `[from, end)` at `at` (0: newest), at one revision.
    async fn range(&self, prefix: &str, at: Revision) -> Result<Listing> {
        let end = prefix_end(prefix.as_bytes());
        let what = || format!("etcd range of {prefix}");
        let mut listing = Listing { revision: at, ..Listing::default() };
        let (mut from, mut limit) = (prefix.as_bytes().to_vec(), PAGE_KEYS);
        loop {
            let reply = match self.page(&from, &end, limit, listing.revision, false).await {
                Ok(reply) => decode(reply)?,
                Err(Failure::Refused(Refusal::TooLarge, _)) if limit > 1 => {
                    limit = (limit / 4).max(1);
                    continue;
                }
                Err(Failure::Refused(Refusal::TooLarge, _)) => {
                    let keys = self.page(&from, &end, 1, listing.revision, true).await;
                    let mut page =
                        decode(keys.map_err(|failure| failure.into_error(what(), listing.revision))?)?;
                    listing.findings.extend(page.items.drain(..).map(|item| oversize(item, None)));
                    page
                }
                Err(failure) => return Err(failure.into_error(what(), listing.revision)),
            };
            if listing.revision == 0 {
                listing.revision = reply.revision;
            }
            let count = reply.items.len() + reply.unreadable;
            for item in reply.items {
                match item.value.len() {
                    size if size > MAX_VALUE_BYTES => listing.findings.push(oversize(item, Some(size))),
                    _ => listing.items.push(item),
                }
            }
            if !reply.more {
                return Ok(listing);
            }
            from = reply.next;
            if let Some(mean) = reply.bytes.checked_div(count) {
                let fit = (PAGE_BYTES / mean.max(1)) as i64;
                limit = fit.clamp(1, PAGE_KEYS_MAX).min(limit.saturating_mul(4));
            }
        }
    }

    /// Before a write on a connection that was silent for a while: a read may still move elsewhere.
    async fn settle(&self) -> Result<()> {
        let fresh = self.shared.state().answered.is_some_and(|at| at.elapsed() < TRUSTED_FOR);
        if !fresh {
            self.probe().await?;
        }
        Ok(())
    }

    async fn transaction(&self, key: &str, txn: Txn) -> Result<TxnResponse> {
        self.settle().await?;
        let write = || {
            let txn = txn.clone();
            self.once(REQUEST_TIMEOUT, |mut connection| async move { connection.client.txn(txn).await })
        };
        let result = match write().await {
            // Refused before it was looked at.
            Err(Failure::Token(_)) => write().await,
            result => result,
        };
        result.map_err(|failure| failure.into_error(format!("etcd write of {key}"), 0))
    }
}

async fn read_pem(path: &Path) -> Result<Vec<u8>> {
    tokio::fs::read(path).await.map_err(|error| Error::Invalid {
        what: format!("etcd TLS file {}", path.display()),
        reason: error.to_string(),
    })
}

fn no_header(request: &str) -> Error {
    Error::Unavailable { what: format!("etcd {request}"), reason: "reply without header".into() }
}

fn txn_revision(reply: &TxnResponse) -> Result<Revision> {
    reply.header().map(|header| header.revision() as Revision).ok_or_else(|| no_header("write"))
}

/// The first key after all that start with `prefix`.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

fn oversize(item: KeyValue, size: Option<usize>) -> Finding {
    let size = size.map(|size| format!("{size} bytes, ")).unwrap_or_default();
    let reason = format!("{size}more than {MAX_VALUE_BYTES}: too large to be carried");
    Finding { key: item.key, mod_revision: item.mod_revision, field: "the value".into(), reason }
}

/// Takes ownership of the reply's buffers. Keys that are not text can not be Calico's: they are skipped.
fn decode(mut reply: GetResponse) -> Result<Page> {
    let revision = reply.header().ok_or_else(|| no_header("range"))?.revision() as Revision;
    let more = reply.more();
    let kvs = reply.take_kvs();
    let mut page = Page {
        items: Vec::with_capacity(kvs.len()),
        bytes: 0,
        more: more && !kvs.is_empty(),
        revision,
        next: Vec::new(),
        unreadable: 0,
    };
    for kv in kvs {
        let (create_revision, mod_revision) = (kv.create_revision() as u64, kv.mod_revision() as u64);
        let (key, value) = kv.into_key_value();
        page.bytes += key.len() + value.len() + 32;
        page.next.clone_from(&key);
        match String::from_utf8(key) {
            Ok(key) => {
                page.items.push(KeyValue { key, value: Bytes::from(value), create_revision, mod_revision });
            }
            Err(_) => page.unreadable += 1,
        }
    }
    page.next.push(0);
    Ok(page)
}

#[async_trait]
impl Source for EtcdStore {
    fn name(&self) -> &str {
        "etcd"
    }

    async fn history(&self) -> Result<String> {
        Ok(format!("{:016x}", self.probe().await?.1))
    }

    async fn head(&self) -> Result<Head> {
        let started = Instant::now();
        Ok(Head { revision: self.probe().await?.0, started })
    }

    async fn list(&self, at: Option<Revision>) -> Result<Listing> {
        self.range(PREFIX, at.unwrap_or(0)).await
    }

    async fn watch(&self, after: Revision) -> Result<Watch> {
        watch::start(self.clone(), after).await
    }
}

#[async_trait]
impl Datastore for EtcdStore {
    fn sources(self: Arc<Self>) -> Vec<Arc<dyn Source>> {
        vec![self]
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        let reply = self
            .read(REQUEST_TIMEOUT, |connection| {
                let key = key.to_owned();
                let mut kv = connection.client.kv_client().max_decoding_message_size(MAX_MESSAGE);
                async move { kv.get(key, None).await }
            })
            .await
            .map_err(|failure| failure.into_error(format!("etcd read of {key}"), 0))?;
        Ok(decode(reply)?.items.pop())
    }

    async fn get_prefix(&self, prefix: &str) -> Result<Vec<KeyValue>> {
        Ok(self.range(prefix, 0).await?.items)
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<Revision> {
        let txn = Txn::new()
            .when([Compare::version(key, CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key, value, None)]);
        let reply = self.transaction(key, txn).await?;
        if !reply.succeeded() {
            return Err(Error::Conflict { key: key.into(), reason: "exists already".into() });
        }
        txn_revision(&reply)
    }

    async fn replace(&self, key: &str, value: Bytes, expected: Revision) -> Result<Revision> {
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, expected as i64)])
            .and_then([TxnOp::put(key, value, None)])
            .or_else([TxnOp::get(key, Some(GetOptions::new().with_keys_only()))]);
        self.compare_and(key, txn, expected).await
    }

    async fn put_expiring(&self, key: &str, value: Bytes, lifetime: Duration) -> Result<Revision> {
        let seconds = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX).max(1);
        let grant =
            |mut connection: Connection| async move { connection.client.lease_grant(seconds, None).await };
        let granted = self.once(REQUEST_TIMEOUT, grant).await;
        let lease = granted.map_err(|failure| failure.into_error(format!("etcd lease for {key}"), 0))?.id();
        let put = TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
        txn_revision(&self.transaction(key, Txn::new().and_then([put])).await?)
    }

    async fn delete(&self, key: &str, expected: Option<Revision>) -> Result<Revision> {
        let condition = match expected {
            Some(expected) => Compare::mod_revision(key, CompareOp::Equal, expected as i64),
            None => Compare::version(key, CompareOp::Greater, 0),
        };
        let txn = Txn::new()
            .when([condition])
            .and_then([TxnOp::delete(key, Some(DeleteOptions::new()))])
            .or_else([TxnOp::get(key, Some(GetOptions::new().with_keys_only()))]);
        self.compare_and(key, txn, expected.unwrap_or_default()).await
    }
}

impl EtcdStore {
    /// Runs a transaction whose `else` branch reads the key, to tell a conflict from an absent object.
    async fn compare_and(&self, key: &str, txn: Txn, expected: Revision) -> Result<Revision> {
        let reply = self.transaction(key, txn).await?;
        if reply.succeeded() {
            return txn_revision(&reply);
        }
        let found = reply.op_responses().into_iter().find_map(|op| match op {
            etcd_client::TxnOpResponse::Get(get) => get.kvs().first().map(|kv| kv.mod_revision()),
            _ => None,
        });
        match found {
            None => Err(Error::NotFound { key: key.into() }),
            Some(found) => Err(Error::Conflict {
                key: key.into(),
                reason: format!("changed: at revision {found}, expected {expected}"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_end_is_the_first_key_after_the_prefix() {
        assert_eq!(prefix_end(b"/calico/"), b"/calico0");
        assert_eq!(prefix_end(&[b'a', 0xff]), b"b");
        assert_eq!(prefix_end(&[0xff]), [0]);
    }
}
