//! A cursor on its way over the cache: the snapshot, if there is one, then changes and cuts.

use futures::{FutureExt, StreamExt};
use proto::sync::{self, SyncState, server_message};
use tokio::time::Instant;
use tonic::Status;

use super::{Connection, FORKED, Phase};
use crate::secrets::Feed;
use crate::snapcache::{Freeze, KindSet, Place, Stand, Subscription, message};
use crate::syncserver::admission::Admitted;

pub(super) struct Cursor {
    pub kinds: KindSet,
    pub view: u64,
    pub freezes: Subscription,
    pub seq: u64,
    /// Position of the last cut, and the version that it was of; none before the first.
    pub cut: Option<(u64, u64)>,
    /// The token that the client offered, and holds until it gets another.
    pub offered: Option<sync::Token>,
    /// Tombstones up to here are not needed. Trimmed past it, the client has to come again.
    pub settled: u64,
    pub snapshot: Option<Snapshot>,
    pub since: Instant,
    pub going_away: bool,
    pub told_forked: bool,
}

pub(super) struct Snapshot {
    /// Sent whole; of the others, changes only.
    pub kinds: KindSet,
    pub sweep: bool,
    /// Segments are not older than this. Then follows what changed after it; tombstones up to here are left out.
    pub start: u64,
    /// What is to be sent next of the segments.
    pub next: Option<Place>,
    /// Nothing of it has been pulled, and nothing else depends on where it begins.
    pub may_start_later: bool,
    pub admitted: Admitted,
}

impl Snapshot {
    pub fn new(kinds: KindSet, sweep: bool, start: u64) -> Self {
        let first = kinds.iter().next();
        let next = first.map(|kind| Place { kind, leaf: 0 });
        Snapshot { kinds, sweep, start, next, may_start_later: false, admitted: Admitted::No }
    }

    /// The place after this one; the next leaf of the kind, if there is one.
    pub(super) fn step(&mut self, Place { kind, .. }: Place, leaf: Option<u16>) {
        let mut kinds = self.kinds.iter().skip_while(|other| *other != kind);
        let next = kinds.nth(1).map(|kind| Place { kind, leaf: 0 });
        self.next = leaf.map(|leaf| Place { kind, leaf }).or(next);
        self.may_start_later = false;
        if self.next.is_none() {
            self.admitted = Admitted::No;
        }
    }
}

impl Connection {
    /// Queues the next messages, or waits for a reason to.
    pub(super) async fn step(&mut self) -> Result<(), Status> {
        let Phase::Streaming(cursor) = &mut self.phase else { return Ok(()) };
        // Before the first cut: an agent that has none yet waits for them.
        if let Some(secrets) = self.secrets.as_mut().and_then(Feed::news) {
            self.queue.push_back(message(server_message::Message::Secrets(secrets)));
            return Ok(());
        }
        let freeze = cursor.freezes.freezes.borrow_and_update().clone();
        if freeze.forked && !cursor.told_forked {
            cursor.told_forked = true;
            self.status(SyncState::SyncInSync, KindSet::default(), FORKED);
            return Ok(());
        }
        if cursor.cut.is_none() || cursor.seq < freeze.stand.seq {
            if let Some(snapshot) = &mut cursor.snapshot
                && snapshot.next.is_some()
                && !snapshot.admitted.is_now(&self.context.admission)
            {
                return Box::pin(self.await_turn()).await;
            }
            self.hear()?;
            return self.advance(&freeze);
        }
        tokio::select! {
            biased;
            changed = cursor.freezes.freezes.changed() => {
                if changed.is_err() {
                    self.phase = Phase::Closed;
                }
                Ok(())
            }
            event = self.events.next() => self.on_event(event),
        }
    }

    /// Waits until the snapshot may go on.
    async fn await_turn(&mut self) -> Result<(), Status> {
        let Phase::Streaming(Cursor { snapshot: Some(snapshot), seq, settled, .. }) = &mut self.phase else {
            return Ok(());
        };
        tokio::select! {
            () = snapshot.admitted.wait() => {
                if snapshot.may_start_later {
                    snapshot.start = self.context.cache.base();
                    (*seq, *settled) = (snapshot.start, snapshot.start);
                }
                Ok(())
            }
            event = self.events.next() => self.on_event(event),
        }
    }

    /// A stream that always has something to send has to hear its client as well.
    fn hear(&mut self) -> Result<(), Status> {
        // A server that closes says so for ever.
        while matches!(self.phase, Phase::Streaming(_))
            && let Some(event) = self.events.next().now_or_never()
        {
            self.on_event(event)?;
        }
        Ok(())
    }

    /// Sends what follows the cursor, and a cut once it has reached the head.
    fn advance(&mut self, freeze: &Freeze) -> Result<(), Status> {
        let Phase::Streaming(cursor) = &mut self.phase else { return Ok(()) };
        let context = &self.context;
        // With the others, if it is where they are.
        if let (Some((_, version)), None) = (cursor.cut, &cursor.snapshot)
            && let Some(flight) = freeze.take_flight(cursor.kinds, cursor.seq, version)
        {
            cursor.seq = freeze.stand.seq;
            cursor.settled = cursor.settled.max(cursor.seq);
            if let Some(messages) = &flight.messages {
                context.metrics.kvs_per_message.record(flight.entries as f64);
                self.queue.push_back(messages.bytes(self.zstd).clone());
                cursor.cut = Some((cursor.seq, freeze.stand.version));
                if let Some(registered) = &self.registered {
                    registered.on_changes(cursor.seq);
                }
            }
            return Ok(());
        }
        if let Some(snapshot) = &mut cursor.snapshot
            && let Some(place) = snapshot.next
        {
            let (messages, leaf) = context.cache.segment(place, snapshot.start, self.zstd);
            snapshot.step(place, leaf);
            self.queue.extend(messages);
            return Ok(());
        }
        let (page, stand) = context.cache.page(cursor.seq, cursor.kinds);
        if stand.trimmed > cursor.settled {
            // It was away for so long that deletions have been forgotten meanwhile. Digests will tell.
            self.go_away(sync::GoAway { reason: "resync".into(), ..Default::default() });
            self.phase = Phase::Closed;
            return Ok(());
        }
        let complete = page.complete();
        cursor.seq = page.seq;
        if cursor.snapshot.is_none() || complete {
            cursor.settled = cursor.settled.max(cursor.seq);
        }
        let sent = page.message.is_some();
        if let Some(message) = page.message {
            context.metrics.kvs_per_message.record(page.entries as f64);
            self.queue.push_back(message.bytes(self.zstd).clone());
        }
        if !complete {
            return Ok(());
        }
        if let Some(snapshot) = cursor.snapshot.take() {
            let kinds = if snapshot.sweep { snapshot.kinds.names() } else { Vec::new() };
            self.queue.push_back(message(server_message::Message::SnapshotEnd(sync::SnapshotEnd { kinds })));
            context.metrics.snapshots.increment(1);
            context.metrics.snapshot_send.record(cursor.since.elapsed().as_secs_f64());
        }
        if sent || cursor.cut.is_none() {
            self.cut(&stand);
            if let Some(registered) = self.registered.as_ref().filter(|_| sent) {
                registered.on_changes(stand.seq);
            }
        }
        Ok(())
    }

    /// Queues the cut at the cursor, which is where the cache stood.
    fn cut(&mut self, stand: &Stand) {
        let Phase::Streaming(cursor) = &mut self.phase else { return };
        let cut = match (cursor.cut, &cursor.offered) {
            (Some((_, version)), _) => stand.cut_since(version, cursor.view),
            (None, Some(offered)) => stand.cut_after(offered, cursor.view),
            (None, None) => stand.first_cut(cursor.view),
        };
        let first = cursor.cut.replace((stand.seq, stand.version)).is_none();
        cursor.offered = None;
        if let Some(registered) = &mut self.registered {
            registered.client.on_sent(stand.seq);
            if first {
                registered.streaming = true;
                self.context.metrics.connections_streaming.increment(1.0);
            }
        }
        if first {
            self.status(SyncState::SyncInSync, KindSet::default(), "");
        }
        self.queue.push_back(message(server_message::Message::Cut(cut)));
    }

    pub(super) fn on_heartbeat(&mut self) {
        if let Phase::Streaming(cursor) = &self.phase {
            let freeze = cursor.freezes.freezes.borrow().clone();
            // What changed since the last cut was of other kinds; the client's token is to keep up all the same.
            if cursor.cut.is_some_and(|(cut, _)| cut != cursor.seq) && cursor.seq == freeze.stand.seq {
                self.cut(&freeze.stand);
            }
        }
        self.queue.push_back(self.context.heartbeat.borrow().clone());
    }
}
