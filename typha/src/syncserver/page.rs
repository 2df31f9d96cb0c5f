//! The status page: one static page and the JSON that it asks for, on the health port (loopback by default). Reads
//! only.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::Router;
use axum::http::header;
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use serde_json::{Value, json};

use super::registry::Client;
use super::{Context, millis};

const PAGE: &str = include_str!("page.html");

pub(super) fn routes(context: Arc<Context>) -> Router {
    let page = || async {
        // Nothing from elsewhere is loaded, and nothing that a client calls itself is markup.
        let policy =
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'";
        ([(header::CONTENT_SECURITY_POLICY, policy)], Html(PAGE))
    };
    let status = move || {
        let text = status(&context).to_string();
        async move { ([(header::CONTENT_TYPE, "application/json")], text).into_response() }
    };
    Router::new().route("/", get(page)).route("/status.json", get(status))
}

fn status(context: &Context) -> Value {
    let clients: Vec<Value> = {
        let (here, gone) = (context.registry.list(), context.registry.departed());
        let here = here.iter().map(|client| describe(context, client, true));
        here.chain(gone.iter().map(|client| describe(context, client, false))).collect()
    };
    let freshness = context.freshness();
    let packed = context.cache.packed();
    let cache = context.cache.read();
    let entries: serde_json::Map<String, Value> =
        cache.live().iter().map(|(kind, count)| (kind.name().to_owned(), json!(count))).collect();
    let sources: serde_json::Map<String, Value> =
        freshness.sources.iter().map(|position| (position.source.clone(), json!(position.low))).collect();
    json!({
        "replica": context.options.replica,
        "software": context.options.software,
        "uptimeSeconds": context.started.elapsed().as_secs(),
        "draining": context.drain.is_cancelled(),
        "inSync": freshness.in_sync,
        "ageMillis": freshness.age_millis,
        "history": freshness.history,
        "revisions": sources,
        "position": cache.head(),
        "entries": entries,
        "snapshotBytes": cache.state_bytes(),
        "snapshotCompressed": packed.map(|size| json!({"bytes": size.packed, "of": size.plain})),
        "sentBytes": context.sent_bytes.load(Relaxed),
        "sentFrames": context.sent_frames.load(Relaxed),
        "snapshotsActive": context.admission.active(),
        "snapshotsWaiting": context.admission.waiting(),
        "tombstones": cache.tombstones(),
        "refused": context.intake.invalid.load(Relaxed),
        "replicas": context.peers.overview(),
        "clients": clients,
    })
}

fn describe(context: &Context, client: &Client, connected: bool) -> Value {
    let lag = (client.acked() > 0).then(|| millis(context.heads.lag(client.acked())));
    json!({
        "node": client.node, "agent": client.agent, "software": client.software, "connected": connected,
        "address": client.address.map(|address| address.to_string()),
        "connectedSeconds": client.connected.elapsed().as_secs(),
        "sent": client.sent(), "acked": client.acked(), "lagMillis": lag,
        "heardMillisAgo": client.heard_millis_ago(),
    })
}
