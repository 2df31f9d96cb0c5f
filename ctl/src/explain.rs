//! `explain`: which tier, policy and rule decides about a connection, from what the datastore holds.
//!
//! The agents' own calculation runs here, once for each node on the way; nothing is asked of the nodes.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use felix_calc::explain::{Cluster, Protocol, Verdict};
use syncer_common::backend::Datastore;
use syncer_common::processors::Processors;

use crate::Report;

/// Complete when the connection is allowed, so that scripts can ask.
pub async fn run(store: Arc<dyn Datastore>, from: &str, to: &str, port: &str) -> Result<Report> {
    let protocol = Protocol::parse(port).map_err(|reason| anyhow!("--port: {reason}"))?;
    let mut processors = Processors::new();
    let mut entries = processors.initial();
    let mut warnings = Vec::new();
    for source in store.sources() {
        for item in source.list(None).await?.items {
            let converted = processors.put(&item.key, &item.value);
            entries.extend(converted.updates);
            warnings.extend(converted.error.map(|error| format!("left out: {error}")));
        }
    }
    let cluster = Cluster::new(entries);
    let (from, to) = cluster.ends(from, to).map_err(|reason| anyhow!(reason))?;
    let (explanation, verdict) = cluster.explain(&from, &to, protocol);
    let text = format!("from {from}\nto {to}\n{explanation}");
    Ok(Report { text, warnings, complete: verdict == Verdict::Allow, exit: None })
}
