//! The watch on `/calico/`.
//!
//! Order: revisions only grow, and all events of a revision come in one item, even where etcd sends a
//! large transaction in fragments. What counts as proof that nothing was missed: an event of that
//! revision, and etcd's own progress notifications. The answer to a *requested* progress counts only on
//! servers that order it behind the events (3.4.25, 3.5.8 and later); elsewhere it could run ahead of them.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{EventType, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use futures::StreamExt;
use tonic::Status;

use super::failure::{Failure, Refusal};
use super::{Connection, EtcdStore, REQUEST_TIMEOUT, oversize};
use crate::backend::{
    Error, Event, KeyValue, MAX_VALUE_BYTES, PREFIX, Result, Revision, Source, Watch, WatchItem,
};

/// A message is one event or a fragment, and etcd fills fragments up to its `--max-request-bytes` (1.5 MiB unless
/// set; it warns above 10 MiB) and half a MiB. What is larger can not be skipped without reading it: the watch
/// then asks for a new listing, which names such values by their keys alone. The bound is what a server can
/// make this process set aside for one message, so it is not made larger than that recovery needs it to be.
const MAX_EVENT_MESSAGE: usize = 64 << 20;
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

struct EtcdWatch {
    /// Lives as long as the watch, also after the store has got itself another one.
    connection: Connection,
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    ordered_progress: bool,
    progress: tokio::time::Interval,
    groups: Groups,
    ready: VecDeque<WatchItem>,
    failed: bool,
}

pub(super) async fn start(store: EtcdStore, after: Revision) -> Result<Watch> {
    let what = || format!("etcd watch after revision {after}");
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(after as i64 + 1)
        .with_fragment()
        .with_progress_notify();
    let (connection, stream, first, version) = store
        .read(REQUEST_TIMEOUT, |mut connection| {
            let options = options.clone();
            async move {
                let version = connection.client.status().await?.version().to_owned();
                let watches = connection.client.watch_client();
                let mut stream =
                    watches.max_decoding_message_size(MAX_EVENT_MESSAGE).watch(PREFIX, Some(options)).await?;
                let first = stream.message().await?;
                match first.as_ref().and_then(refused) {
                    Some(status) => Err(status.into()),
                    None => Ok((connection, stream, first, version)),
                }
            }
        })
        .await
        .map_err(|failure| failure.into_error(what(), after))?;
    let first =
        first.ok_or_else(|| Error::Unavailable { what: what(), reason: "closed before it began".into() })?;
    canceled(&first, after)?;
    let created_at = first.header().map_or(0, |header| header.revision() as Revision);
    if created_at < after {
        // Either the member lags, which is harmless, or history went back. A quorum knows.
        let head = store.head().await?.revision;
        if head < after {
            return Err(Error::Rewound { head, seen: after });
        }
    }
    let (requests, responses) = stream.split();
    let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
    progress.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let watch = EtcdWatch {
        connection,
        requests,
        responses,
        ordered_progress: orders_progress(&version),
        progress,
        groups: Groups::new(after),
        ready: VecDeque::new(),
        failed: false,
    };
    Ok(futures::stream::unfold(watch, EtcdWatch::next).boxed())
}

impl EtcdWatch {
    async fn next(mut self) -> Option<(Result<WatchItem>, Self)> {
        if self.failed {
            return None;
        }
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some((Ok(item), self));
            }
            if let Err(error) = self.receive().await {
                self.failed = true;
                return Some((Err(error), self));
            }
        }
    }

    async fn receive(&mut self) -> Result<()> {
        let what = || "etcd watch".to_owned();
        let response = tokio::select! {
            response = self.responses.message() => response,
            () = self.connection.visit.over.cancelled() => {
                let reason = "its endpoint fails other requests".into();
                return Err(Error::Unavailable { what: what(), reason });
            }
            _ = self.progress.tick(), if self.ordered_progress => {
                return self.requests.request_progress().await
                    .map_err(|error| Failure::from(error).into_error(what(), self.groups.last));
            }
        };
        let response = response
            .map_err(|error| broken(error, self.groups.last))?
            .ok_or_else(|| Error::Unavailable { what: what(), reason: "closed by the server".into() })?;
        canceled(&response, self.groups.last)?;
        if !response.created() {
            let revision = response.header().map_or(0, |header| header.revision() as Revision);
            let fragment = response.0.fragment;
            self.groups.receive(events(response), revision, fragment, &mut self.ready);
        }
        Ok(())
    }
}

fn broken(error: etcd_client::Error, after: Revision) -> Error {
    match Failure::from(error) {
        Failure::Refused(Refusal::TooLarge, reason) => {
            tracing::warn!(after, reason, "a change is too large to be read");
            Error::Compacted { compacted: after + 1 }
        }
        failure => failure.into_error("etcd watch".into(), after),
    }
}

/// A watch that was refused when it was created. Before 3.4.22 and 3.5.6 a token that has expired is answered as if
/// the user had no right: the caller tries once with a new one.
fn refused(response: &WatchResponse) -> Option<Status> {
    let reason = response.cancel_reason();
    let refused = ["auth token", "revision of auth store", "user name is empty", "permission denied"];
    (response.canceled() && refused.iter().any(|part| reason.contains(part)))
        .then(|| Status::unauthenticated(reason))
}

fn canceled(response: &WatchResponse, after: Revision) -> Result<()> {
    if response.compact_revision() != 0 {
        return Err(Error::Compacted { compacted: response.compact_revision() as Revision });
    }
    if response.canceled() {
        let reason = match response.cancel_reason() {
            "" => "canceled by the server".to_owned(),
            reason => reason.to_owned(),
        };
        return Err(Error::Unavailable { what: format!("etcd watch after revision {after}"), reason });
    }
    Ok(())
}

/// Progress answers are ordered behind events since 3.4.25 and 3.5.8.
fn orders_progress(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version {
        (3, 4, patch) => patch >= 25,
        (3, 5, patch) => patch >= 8,
        other => other >= (3, 6, 0),
    }
}

fn events(response: WatchResponse) -> Vec<(Revision, Option<Event>)> {
    let mut events = Vec::with_capacity(response.0.events.len());
    for event in response.0.events {
        let deletes = event.r#type == EventType::Delete as i32;
        let Some(kv) = event.kv else { continue };
        let mod_revision = kv.mod_revision as Revision;
        let event = match String::from_utf8(kv.key) {
            // Not text: not one of Calico's keys.
            Err(_) => None,
            Ok(key) if deletes => Some(Event::Delete { key, mod_revision }),
            Ok(key) => {
                let value = Bytes::from(kv.value);
                let size = value.len();
                let item =
                    KeyValue { key, value, create_revision: kv.create_revision as Revision, mod_revision };
                if size > MAX_VALUE_BYTES {
                    Some(Event::Finding(oversize(item, Some(size))))
                } else {
                    Some(Event::Put(item))
                }
            }
        };
        events.push((mod_revision, event));
    }
    events
}

/// Joins fragments, and makes one item of each response.
struct Groups {
    /// Everything up to here was yielded.
    last: Revision,
    pending: Vec<Event>,
    pending_revision: Revision,
}

impl Groups {
    fn new(after: Revision) -> Self {
        Self { last: after, pending: Vec::new(), pending_revision: 0 }
    }

    fn receive(
        &mut self,
        events: Vec<(Revision, Option<Event>)>,
        header: Revision,
        fragment: bool,
        ready: &mut VecDeque<WatchItem>,
    ) {
        let progress = events.is_empty() && self.pending_revision == 0;
        for (revision, event) in events {
            // A follower that restarts may send again what was sent before.
            if revision > self.last {
                self.pending_revision = self.pending_revision.max(revision);
                self.pending.extend(event);
            }
        }
        if fragment {
            // The next fragment may go on with the revision of the last event; what is before that is complete.
            let complete = self.pending.partition_point(|event| event.revision() < self.pending_revision);
            let events: Vec<Event> = self.pending.drain(..complete).collect();
            if let Some(event) = events.last() {
                self.last = event.revision();
                ready.push_back(WatchItem::Events { revision: self.last, events });
            }
            return;
        }
        if self.pending_revision > self.last {
            self.last = self.pending_revision;
            self.pending_revision = 0;
            ready.push_back(WatchItem::Events {
                revision: self.last,
                events: std::mem::take(&mut self.pending),
            });
        } else if progress && header > self.last {
            self.last = header;
            ready.push_back(WatchItem::Progress { revision: header });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delete(revision: Revision, key: &str) -> (Revision, Option<Event>) {
        (revision, Some(Event::Delete { key: key.into(), mod_revision: revision }))
    }

    #[test]
    fn fragments_of_one_transaction_become_one_item() {
        let (mut groups, mut ready) = (Groups::new(5), VecDeque::new());
        groups.receive(vec![delete(6, "a"), delete(6, "b")], 9, true, &mut ready);
        assert!(ready.is_empty());
        groups.receive(vec![delete(6, "c")], 9, false, &mut ready);
        match ready.pop_front() {
            Some(WatchItem::Events { revision: 6, events }) => assert_eq!(events.len(), 3),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn complete_transactions_do_not_wait_for_the_last_fragment() {
        let (mut groups, mut ready) = (Groups::new(5), VecDeque::new());
        groups.receive(vec![delete(6, "a"), delete(6, "b"), delete(7, "c")], 9, true, &mut ready);
        match ready.pop_front() {
            Some(WatchItem::Events { revision: 6, events }) => assert_eq!(events.len(), 2),
            other => panic!("{other:?}"),
        }
        groups.receive(vec![delete(7, "d")], 9, false, &mut ready);
        match ready.pop_front() {
            Some(WatchItem::Events { revision: 7, events }) => assert_eq!(events.len(), 2),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn header_of_events_proves_nothing_beyond_them() {
        let (mut groups, mut ready) = (Groups::new(5), VecDeque::new());
        groups.receive(vec![delete(6, "a")], 900, false, &mut ready);
        assert_eq!(groups.last, 6);
        groups.receive(vec![], 900, false, &mut ready);
        assert!(matches!(ready.back(), Some(WatchItem::Progress { revision: 900 })));
    }

    #[test]
    fn unreadable_events_still_move_the_revision() {
        let (mut groups, mut ready) = (Groups::new(5), VecDeque::new());
        groups.receive(vec![(6, None)], 6, false, &mut ready);
        match ready.pop_front() {
            Some(WatchItem::Events { revision: 6, events }) => assert!(events.is_empty()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requested_progress_is_trusted_from_the_fixed_releases_on() {
        for (version, ordered) in [
            ("3.4.23", false),
            ("3.4.25", true),
            ("3.5.7", false),
            ("3.5.8", true),
            ("3.6.0", true),
            ("3.3.9", false),
            ("unknown", false),
        ] {
            assert_eq!(orders_progress(version), ordered, "{version}");
        }
    }
}
