//! What an agent gives to the client, and what it gets from it.

use std::path::PathBuf;
use std::time::Duration;

use proto::sync::Secret;
use syncer_common::model::{Kind, Update};
use transport::ClientTls;

use crate::{Names, RawUpdate, Reports};

#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of typhas; a name stands for all its addresses. Each agent goes through them in an order of its own (by node name), so that
    /// a fleet spreads out. IPv6 addresses in brackets.
    pub servers: Vec<String>,
    /// The node's name in the datastore.
    pub node: String,
    /// Typhas in the same zone are preferred; empty = none is.
    pub zone: String,
    /// Nothing: plain TCP.
    pub tls: Option<ClientTls>,
    /// `felix`, `confd` or another consumer's name.
    pub agent: &'static str,
    /// Name and version, for people: `bulrush-felix 0.1.0`.
    pub software: String,
    /// Kinds wanted; empty = what the agent's name stands for.
    pub kinds: Vec<Kind>,
    /// The passwords of the node's BGP sessions are wanted.
    pub secrets: bool,
    /// Silence after which a server is given up (it sends a heartbeat every 2 s).
    pub read_timeout: Duration,
    /// For a TCP connection, and for the server's hello.
    pub connect_timeout: Duration,
    /// Waits between attempts: the first, and the longest.
    pub backoff: (Duration, Duration),
    /// What the agent reports: it keeps a handle of its own.
    pub reports: Reports,
    /// The file of the last proven state: delivered at the start, before any server answers. None: nothing is kept.
    pub state: Option<PathBuf>,
    /// Entries are delivered as they came ([`ClientEvent::Raw`]), with keys that such clients share.
    pub raw: Option<Names>,
}

impl ClientConfig {
    pub fn new(
        servers: Vec<String>,
        node: impl Into<String>,
        agent: &'static str,
        software: impl Into<String>,
    ) -> Self {
        ClientConfig {
            servers,
            node: node.into(),
            zone: String::new(),
            tls: None,
            agent,
            software: software.into(),
            kinds: Vec::new(),
            secrets: false,
            read_timeout: Duration::from_secs(6),
            connect_timeout: Duration::from_secs(5),
            backoff: (Duration::from_millis(100), Duration::from_secs(5)),
            reports: Reports::default(),
            state: None,
            raw: None,
        }
    }
}

/// A consistent point of a server's stream, by that server's own count. An agent acknowledges the last one
/// whose content is in force on the node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CutId {
    pub epoch: String,
    pub seq: u64,
}

/// What happens, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientEvent {
    /// A stream is up; nothing is withdrawn, and nothing is proven yet.
    /// `secrets`: those of the node will be sent.
    Connected { server: String, secrets: bool },
    /// The stream is down; everything delivered stays in force.
    Disconnected { reason: String },
    /// Changes, never empty. Between cuts they are not a consistent state, so program at cuts.
    Updates(Vec<Update>),
    /// The same, where `ClientConfig::raw` asked for it.
    Raw(Vec<RawUpdate>),
    /// The passwords of the node's BGP sessions, all of them; not part of any cut.
    Secrets(Vec<Secret>),
    /// The first proven state is complete: sent once, before that state's `Cut`.
    InSync,
    /// Everything delivered so far is one consistent state.
    Cut(CutId),
}
