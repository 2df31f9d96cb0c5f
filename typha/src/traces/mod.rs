//! Traces of updates, from the datastore's revision to the agents' acknowledgements, for an OpenTelemetry collector. Off
//! unless `TracingEndpoint` names one.
//!
//! ```text
//! update         the revision was received … the last agent has programmed it
//!   apply        converted, compared, in the cache
//!   coalesce     waiting for others to share a message with, encoding
//!   deliver × n  sent to an agent … its acknowledgement; the slowest ones
//! ```
//!
//! A revision's trace id comes from the datastore's history, the source and the revision, and so does whether it is
//! sampled: all replicas trace the same revisions, each with an `update` of its own. A replica that follows nothing
//! at the moment does not look at its clients for it.

mod export;
mod update;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::mpsc;

use crate::metrics::Metrics;

pub use export::Exporter;
use update::Update;

/// Updates that are followed at a time; those above are not sampled.
const OPEN: usize = 16;
/// How long acknowledgements are waited for.
const LONGEST: Duration = Duration::from_secs(30);
/// Until then an update may still be sent to somebody: longer than freezes and heartbeats are apart.
const SETTLED: Duration = Duration::from_secs(5);
/// Finished updates that wait for the collector.
const WAITING: usize = 64;
const LOOK: Duration = Duration::from_millis(500);

/// The updates that are followed at the moment.
pub struct Traces {
    /// Of 2⁶⁴, how many revisions are sampled.
    threshold: u64,
    replica: String,
    /// How many are followed: what streams look at first.
    count: AtomicUsize,
    open: Mutex<Vec<Update>>,
    finished: mpsc::Sender<Vec<Span>>,
}

/// What identifies an update.
#[derive(Clone, Copy, Debug)]
pub struct Revision<'a> {
    pub history: &'a str,
    pub source: &'a str,
    pub revision: u64,
}

impl Traces {
    /// `ratio`: the part of the revisions that is sampled. Returns what is finished, too, for the exporter.
    pub fn new(replica: &str, ratio: f64) -> (Arc<Traces>, mpsc::Receiver<Vec<Span>>) {
        let (finished, spans) = mpsc::channel(WAITING);
        let traces = Traces {
            threshold: (ratio * u64::MAX as f64) as u64,
            replica: replica.to_owned(),
            count: AtomicUsize::new(0),
            open: Mutex::default(),
            finished,
        };
        (Arc::new(traces), spans)
    }

    /// A revision has changed something: streams that come to `seq` have it. The cache may not be read meanwhile.
    pub fn applied(&self, of: Revision<'_>, changed: u64, seq: u64, received: SystemTime) {
        let trace_id = update::trace_id(of);
        let [first, ..] = trace_id;
        if self.threshold == 0 || u64::from_be_bytes(first) > self.threshold {
            return;
        }
        let mut open = self.lock();
        if open.len() < OPEN {
            open.push(Update::new(trace_id, of, changed, seq, received, SystemTime::now()));
            self.count.store(open.len(), Relaxed);
        }
    }

    /// A stream was sent everything up to `seq`.
    pub fn sent(&self, stream: u64, (node, agent): (&str, &str), seq: u64) {
        self.each(|update| update.sent(stream, (node, agent), seq, SystemTime::now()));
    }

    pub fn acked(&self, stream: u64, seq: u64) {
        self.each(|update| update.acked(stream, seq, SystemTime::now()));
    }

    /// A stream has ended; its agent will acknowledge elsewhere.
    pub fn left(&self, stream: u64) {
        self.each(|update| update.left(stream));
    }

    fn each(&self, f: impl FnMut(&mut Update)) {
        if self.count.load(Relaxed) > 0 {
            self.lock().iter_mut().for_each(f);
        }
    }

    /// Hands finished updates to the exporter, now and then. Does not return.
    pub async fn finish(&self, metrics: &Metrics) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            for update in self.take(SystemTime::now()) {
                if self.finished.try_send(update.spans(&self.replica)).is_err() {
                    metrics.traces_dropped.increment(1);
                }
            }
        }
    }

    fn take(&self, now: SystemTime) -> Vec<Update> {
        let mut open = self.lock();
        let finished = open.extract_if(.., |update| update.is_finished(now, SETTLED, LONGEST)).collect();
        self.count.store(open.len(), Relaxed);
        finished
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Update>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
