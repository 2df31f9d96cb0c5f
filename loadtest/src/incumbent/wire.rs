//! The messages of Calico's Typha: an envelope around one of a few types, by registered name. Pure.

use anyhow::{Context as _, Result, bail};

use super::gob::Value;

pub const CLIENT_HELLO: &str = "github.com/projectcalico/typha/pkg/syncproto.MsgClientHello";
pub const ACK: &str = "github.com/projectcalico/typha/pkg/syncproto.MsgACK";
pub const PONG: &str = "github.com/projectcalico/typha/pkg/syncproto.MsgPong";
const PREFIX: &str = "github.com/projectcalico/typha/pkg/syncproto.";
/// Of `SyncStatus`.
const IN_SYNC: u64 = 2;

/// What a client says first. All of them support a restarted decoder and today's policy keys.
pub struct Hello<'a> {
    pub hostname: &'a str,
    pub info: &'a str,
    pub version: &'a str,
    pub syncer: &'a str,
    pub compression: &'a [&'a str],
}

#[derive(Debug, PartialEq)]
pub enum Message<'a> {
    ServerHello {
        version: &'a str,
        syncer: &'a str,
        node_resources: bool,
    },
    /// What follows the acknowledgement is a new stream, in this compression.
    DecoderRestart {
        compression: &'a str,
    },
    Kvs(Vec<Kv<'a>>),
    SyncStatus {
        in_sync: bool,
    },
    /// The timestamp as it came, for the answer.
    Ping(&'a [u8]),
}

/// An entry: its path, and the value as JSON or text. No value: it is gone.
#[derive(Debug, PartialEq)]
pub struct Kv<'a> {
    pub key: &'a str,
    pub value: Option<&'a [u8]>,
}

impl<'a> Message<'a> {
    pub fn of(envelope: &Value<'a>) -> Result<Self> {
        let Some(Value::Interface(name, body)) = envelope.field("Message") else {
            bail!("a message without content");
        };
        let text = |name| body.field(name).and_then(Value::text).unwrap_or_default();
        Ok(match name.strip_prefix(PREFIX).unwrap_or(name) {
            "MsgServerHello" => Message::ServerHello {
                version: text("Version"),
                syncer: text("SyncerType"),
                node_resources: body.field("SupportsNodeResourceUpdates") == Some(&Value::Bool(true)),
            },
            "MsgDecoderRestart" => Message::DecoderRestart { compression: text("CompressionAlgorithm") },
            "MsgKVs" => match body.field("KVs") {
                Some(Value::List(list)) => Message::Kvs(list.iter().map(Kv::of).collect::<Result<_>>()?),
                _ => Message::Kvs(Vec::new()),
            },
            "MsgSyncStatus" => Message::SyncStatus {
                in_sync: body.field("SyncStatus").and_then(Value::number) == Some(IN_SYNC),
            },
            "MsgPing" => Message::Ping(body.field("Timestamp").and_then(Value::bytes).unwrap_or_default()),
            _ => bail!("a message of type {name}, which this client has not asked for"),
        })
    }
}

impl<'a> Kv<'a> {
    fn of(update: &Value<'a>) -> Result<Self> {
        let key = update.field("Key").and_then(Value::text).context("an entry without a key")?;
        // Nothing and an empty value look the same on the wire.
        Ok(Kv { key, value: update.field("Value").and_then(Value::bytes) })
    }
}
