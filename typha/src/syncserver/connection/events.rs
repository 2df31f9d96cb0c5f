//! What a stream waits for beside changes of the state: its client's messages, and what the server wants of it.
//!
//! All of it is rare, and a change goes to every stream: so these are streams that live as long as the connection and
//! are looked at only when one of them has something (that is what `SelectAll` is for), not futures that each message
//! would make, register in half a dozen places, and drop again.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, SelectAll, StreamExt};
use proto::sync::ClientMessage;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::Context;

pub(super) enum Event {
    Message(Box<Result<ClientMessage, Status>>),
    /// The client has nothing more to say, but may go on listening: tools do.
    Silent,
    Heartbeat,
    /// The replica drains, and it is this stream's moment.
    Draining,
    /// It is to go to one of these.
    Away(Vec<String>),
    /// It has lasted long enough.
    Renewal,
    /// So long ago that it is ended.
    Expired,
    /// Passwords may have changed.
    Secrets,
    Closed,
}

pub(super) type Events = SelectAll<BoxStream<'static, Event>>;

pub(super) fn messages(inbound: Streaming<ClientMessage>) -> BoxStream<'static, Event> {
    inbound
        .map(|message| Event::Message(Box::new(message)))
        .chain(stream::once(std::future::ready(Event::Silent)))
        .boxed()
}

/// What the server wants of a stream.
pub(super) struct Orders {
    pub context: Arc<Context>,
    /// Its place among the streams that leave when this replica drains.
    pub share: f64,
    /// When the client has to come again.
    pub renewal: Instant,
    pub heartbeat: watch::Receiver<Bytes>,
    pub away: watch::Receiver<Vec<String>>,
    pub secrets: Option<watch::Receiver<()>>,
    pub told: Told,
}

/// What comes only once.
#[derive(Default)]
pub(super) struct Told {
    draining: bool,
    renewal: bool,
    expired: bool,
}

impl Orders {
    pub fn events(self) -> BoxStream<'static, Event> {
        stream::unfold(self, |mut orders| async move { Some((orders.next().await, orders)) }).boxed()
    }

    async fn next(&mut self) -> Event {
        let Orders { context, share, renewal, heartbeat, away, secrets, told } = self;
        let secrets = async {
            match secrets {
                Some(secrets) => secrets.changed().await,
                None => std::future::pending().await,
            }
        };
        let limit = if told.renewal { *renewal + context.options.drain } else { *renewal };
        tokio::select! {
            () = context.closed.cancelled() => Event::Closed,
            () = context.leave(*share), if !told.draining => {
                told.draining = true;
                Event::Draining
            }
            Ok(()) = away.changed() => Event::Away(away.borrow_and_update().clone()),
            Ok(()) = heartbeat.changed() => Event::Heartbeat,
            Ok(()) = secrets => Event::Secrets,
            () = tokio::time::sleep_until(limit), if !told.expired => {
                told.expired = std::mem::replace(&mut told.renewal, true);
                if told.expired { Event::Expired } else { Event::Renewal }
            }
        }
    }
}
