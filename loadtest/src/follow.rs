//! `loadtest follow`: nodes that stay until interrupted. What they hold is said on standard output, one object of
//! JSON a line whenever it changed, for scripts that do something to the servers meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use typha_client::Names;

use crate::fleet::{Fleet, Sample, Seen, Speech};
use crate::latency::Latencies;
use crate::limits;
use crate::node::Keys;
use crate::run::OTHER_DESCRIPTORS;

const LINES_APART: Duration = Duration::from_millis(50);
/// Values of the watched entry that nodes may still be receiving.
const VALUES: usize = 4;

/// How the latest value of an entry spreads over the nodes.
pub struct Spread {
    /// What the entry's key contains.
    watched: String,
    values: Mutex<VecDeque<Value>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Value {
    /// Hash of the value.
    value: String,
    /// When each node that has it received it, in microseconds since 1970.
    received_unix_micros: Vec<u64>,
}

impl Spread {
    pub fn new(watched: String) -> Spread {
        Spread { watched, values: Mutex::default() }
    }

    pub fn seen(&self, key: &str, hash: u64) {
        if !key.contains(&self.watched) {
            return;
        }
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as u64);
        let name = format!("{hash:016x}");
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        match values.iter_mut().find(|value| value.value == name) {
            Some(value) => value.received_unix_micros.push(now),
            None => {
                values.push_back(Value { value: name, received_unix_micros: vec![now] });
                if values.len() > VALUES {
                    values.pop_front();
                }
            }
        }
    }

    fn latest(&self) -> Option<Value> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).back().cloned()
    }
}

#[derive(Debug, PartialEq, Serialize)]
struct Line {
    nodes: usize,
    connected: usize,
    in_sync: usize,
    /// Nodes that hold the same as most do, and the entries of that.
    alike: usize,
    entries: usize,
    updates: u64,
    deletions: u64,
    /// Streams that ended.
    disconnects: u64,
    /// Of these, because a server named others to go to.
    sent_on: u64,
    mistakes: Vec<String>,
    watched: Option<Value>,
}

/// Until Ctrl-C or SIGTERM.
pub async fn interrupted() {
    let listen = |kind| signal(kind).expect("a handler can be set");
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt()), listen(SignalKind::terminate()));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Returns whether no rule was broken.
pub async fn follow(
    servers: Vec<String>,
    nodes: usize,
    prefix: &str,
    watched: Option<String>,
) -> Result<bool> {
    limits::descriptors(OTHER_DESCRIPTORS + nodes as u64)?;
    let names = (0..nodes).map(|index| format!("{prefix}{index:03}")).collect();
    let spread = watched.map(|watched| Arc::new(Spread::new(watched)));
    let seen = Seen { latencies: Arc::new(Latencies::new(Instant::now())), spread: spread.clone() };
    let mut fleet = Fleet::new(
        servers,
        Speech::Bulrush(Names::default()),
        names,
        Keys::default(),
        seen,
        Sample::none(nodes),
        Handle::current(),
    );
    fleet.join();
    let interrupted = interrupted();
    tokio::pin!(interrupted);
    let mut beats = tokio::time::interval(LINES_APART);
    let mut last = None;
    loop {
        tokio::select! {
            () = &mut interrupted => break,
            _ = beats.tick() => {}
        }
        let totals = fleet.totals();
        let (entries, alike) = fleet.members().most_alike();
        let line = Line {
            nodes,
            connected: totals.connected,
            in_sync: totals.in_sync,
            alike,
            entries,
            updates: totals.updates,
            deletions: totals.deletions,
            disconnects: totals.disconnects,
            sent_on: totals.sent_on,
            mistakes: fleet.mistakes(),
            watched: spread.as_ref().and_then(|spread| spread.latest()),
        };
        if last.as_ref() != Some(&line) {
            println!("{}", serde_json::to_string(&line)?);
            last = Some(line);
        }
    }
    fleet.leave().await;
    let mistakes = fleet.mistakes();
    mistakes.iter().for_each(|mistake| eprintln!("{mistake}"));
    Ok(mistakes.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_are_kept_per_value_of_the_watched_entry() {
        let spread = Spread::new("tier/a".into());
        let watched = "/calico/v1/policy/tier/a/metadata";
        for (key, hash) in
            [(watched, 1), (watched, 1), ("/calico/v1/policy/tier/b/metadata", 9), (watched, 2)]
        {
            spread.seen(key, hash);
        }
        // A slow node still receives what was before.
        spread.seen(watched, 1);
        let latest = spread.latest().expect("it was seen");
        assert_eq!((latest.value.as_str(), latest.received_unix_micros.len()), ("0000000000000002", 1));
    }
}
