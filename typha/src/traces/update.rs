//! One update that is followed, and the spans that it becomes. Pure: the time is passed in.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{Span, Status, span::SpanKind, status::StatusCode};

use super::Revision;

/// Of the deliveries, so many get a span of their own: the slowest.
const DELIVERIES: usize = 32;

/// Two halves, big-endian.
pub(super) type TraceId = [[u8; 8]; 2];

pub(super) fn trace_id(Revision { history, source, revision }: Revision<'_>) -> TraceId {
    let hash = blake3::hash(format!("{history}\0{source}\0{revision}").as_bytes());
    let mut halves = hash.as_bytes().chunks_exact(8).map(|half| half.try_into().expect("eight bytes"));
    [(); 2].map(|()| halves.next().expect("a hash of 32 bytes"))
}

pub(super) struct Update {
    trace_id: TraceId,
    source: String,
    revision: u64,
    changed: u64,
    seq: u64,
    received: SystemTime,
    applied: SystemTime,
    first_sent: Option<SystemTime>,
    /// By stream.
    deliveries: HashMap<u64, Delivery>,
}

struct Delivery {
    node: String,
    agent: String,
    sent: SystemTime,
    acked: Option<SystemTime>,
}

impl Update {
    pub fn new(
        trace_id: TraceId,
        of: Revision<'_>,
        changed: u64,
        seq: u64,
        received: SystemTime,
        applied: SystemTime,
    ) -> Self {
        Update {
            trace_id,
            source: of.source.to_owned(),
            revision: of.revision,
            changed,
            seq,
            received,
            applied,
            first_sent: None,
            deliveries: HashMap::new(),
        }
    }

    pub fn sent(&mut self, stream: u64, (node, agent): (&str, &str), seq: u64, now: SystemTime) {
        if seq < self.seq || self.deliveries.contains_key(&stream) {
            return;
        }
        self.first_sent.get_or_insert(now);
        let (node, agent) = (node.to_owned(), agent.to_owned());
        self.deliveries.insert(stream, Delivery { node, agent, sent: now, acked: None });
    }

    pub fn acked(&mut self, stream: u64, seq: u64, now: SystemTime) {
        if seq >= self.seq
            && let Some(delivery) = self.deliveries.get_mut(&stream)
        {
            delivery.acked.get_or_insert(now);
        }
    }

    pub fn left(&mut self, stream: u64) {
        self.deliveries.remove(&stream);
    }

    pub fn is_finished(&self, now: SystemTime, settled: Duration, longest: Duration) -> bool {
        let age = now.duration_since(self.applied).unwrap_or_default();
        let all_acked = self.deliveries.values().all(|delivery| delivery.acked.is_some());
        age >= longest || (age >= settled && all_acked)
    }

    /// The root is the first.
    pub fn spans(self, replica: &str) -> Vec<Span> {
        let root_id = self.span_id(replica, "update");
        let span = |name: &str, parent: Vec<u8>, id: Vec<u8>, from, to, attributes| Span {
            trace_id: self.trace_id.concat(),
            span_id: id,
            parent_span_id: parent,
            name: name.to_owned(),
            kind: SpanKind::Internal as i32,
            start_time_unix_nano: nanos(from),
            end_time_unix_nano: nanos(to),
            attributes,
            ..Span::default()
        };
        let child = |name: &str, own: &str, from, to, attributes| {
            span(name, root_id.clone(), self.span_id(replica, own), from, to, attributes)
        };
        let mut deliveries: Vec<(&u64, &Delivery)> = self.deliveries.iter().collect();
        // Those without an acknowledgement are the slowest of all.
        deliveries.sort_by_key(|(stream, delivery)| {
            (delivery.acked.is_some(), std::cmp::Reverse(delivery.acked), **stream)
        });
        let missing = deliveries.iter().filter(|(_, delivery)| delivery.acked.is_none()).count();
        let last = deliveries.iter().map(|(_, delivery)| delivery.acked.unwrap_or(delivery.sent)).max();
        let mut children = vec![child("apply", "apply", self.received, self.applied, Vec::new())];
        if let Some(first) = self.first_sent {
            children.push(child("coalesce", "coalesce", self.applied, first, Vec::new()));
        }
        for (stream, Delivery { node, agent, sent, acked }) in deliveries.iter().take(DELIVERIES) {
            let attributes = vec![text("k8s.node.name", node), text("bulrush.agent", agent)];
            let delivery =
                child("deliver", &format!("deliver {stream}"), *sent, acked.unwrap_or(*sent), attributes);
            let status = acked.is_none().then(|| failed("not acknowledged in time".into()));
            children.push(Span { status, ..delivery });
        }
        let attributes = vec![
            text("bulrush.source", &self.source),
            number("bulrush.revision", self.revision),
            number("bulrush.changed", self.changed),
            number("bulrush.agents", deliveries.len() as u64),
            number("bulrush.agents_missing", missing as u64),
        ];
        let root = span(
            "update",
            Vec::new(),
            root_id.clone(),
            self.received,
            last.unwrap_or(self.applied),
            attributes,
        );
        let status = (missing > 0).then(|| failed(format!("{missing} agents have not acknowledged it")));
        std::iter::once(Span { status, ..root }).chain(children).collect()
    }

    /// The same for nobody else in this trace.
    fn span_id(&self, replica: &str, name: &str) -> Vec<u8> {
        let hash = blake3::keyed_hash(
            blake3::hash(&self.trace_id.concat()).as_bytes(),
            format!("{replica}\0{name}").as_bytes(),
        );
        hash.as_bytes().iter().take(8).copied().collect()
    }
}

fn nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn failed(message: String) -> Status {
    Status { message, code: StatusCode::Error as i32 }
}

pub(super) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: u64) -> KeyValue {
    attribute(key, any_value::Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: Revision<'_> = Revision { history: "h", source: "etcd", revision: 7 };

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_000 + millis)
    }

    fn update() -> Update {
        Update::new(trace_id(OF), OF, 1, 100, at(0), at(1))
    }

    #[test]
    fn update_ends_with_its_last_acknowledgement_and_the_slowest_are_shown() {
        let mut update = update();
        for stream in 0..40 {
            update.sent(stream, ("n", "felix"), 99, at(2));
            update.sent(stream, ("n", "felix"), 100, at(3));
            update.acked(stream, 99, at(4));
            update.acked(stream, 120, at(10 + stream));
        }
        update.left(39);
        let (settled, longest) = (Duration::from_secs(5), Duration::from_secs(30));
        assert!(
            !update.is_finished(at(4_000), settled, longest)
                && update.is_finished(at(5_001), settled, longest)
        );
        let spans = update.spans("typha-1");
        assert_eq!(spans.iter().map(|span| span.name.as_str()).filter(|name| *name == "deliver").count(), 32);
        let (root, apply, coalesce, slowest) = (&spans[0], &spans[1], &spans[2], &spans[3]);
        assert_eq!((root.start_time_unix_nano, root.end_time_unix_nano), (nanos(at(0)), nanos(at(48))));
        assert_eq!((apply.end_time_unix_nano, coalesce.end_time_unix_nano), (nanos(at(1)), nanos(at(3))));
        assert_eq!((slowest.start_time_unix_nano, slowest.end_time_unix_nano), (nanos(at(3)), nanos(at(48))));
        assert!(spans[1..].iter().all(|span| span.parent_span_id == root.span_id && span.status.is_none()));
        let ids: std::collections::HashSet<_> = spans.iter().map(|span| span.span_id.clone()).collect();
        assert_eq!((ids.len(), root.trace_id.len(), root.span_id.len()), (spans.len(), 16, 8));
    }

    #[test]
    fn agent_that_does_not_acknowledge_makes_it_an_error_and_the_wait_long() {
        let mut update = update();
        update.sent(1, ("fast", "felix"), 100, at(2));
        update.sent(2, ("stuck", "felix"), 100, at(2));
        update.acked(1, 100, at(3));
        let (settled, longest) = (Duration::from_secs(5), Duration::from_secs(30));
        assert!(
            !update.is_finished(at(29_000), settled, longest)
                && update.is_finished(at(30_001), settled, longest)
        );
        let spans = update.spans("typha-1");
        assert!(spans[0].status.as_ref().unwrap().message.starts_with("1 agents"));
        assert_eq!(spans[3].attributes[0], text("k8s.node.name", "stuck"));
        assert!(spans[3].status.is_some() && spans[4].status.is_none());
    }

    #[test]
    fn replicas_share_a_trace_and_no_span() {
        let (one, two) = (update().spans("typha-1"), update().spans("typha-2"));
        assert_eq!(one[0].trace_id, two[0].trace_id);
        assert_ne!(one[0].span_id, two[0].span_id);
        assert_ne!(trace_id(OF), trace_id(Revision { revision: 8, ..OF }));
    }
}
