//! Server messages as the client reads them: the schema of `sync.proto`, except that the value of an entry
//! stays encoded until it is known to be news. Hashes are of the bytes that arrived.

use bytes::Bytes;
use proto::sync::{
    Cause, Cut, DigestRequest, GoAway, Gone, Heartbeat, KindStatus, Secrets, ServerHello, SnapshotEnd,
};

/// At most one member is set. Kinds of messages that are not listed here are skipped.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ServerMessage {
    #[prost(message, optional, tag = "1")]
    pub hello: Option<ServerHello>,
    #[prost(message, optional, tag = "2")]
    pub batch: Option<Batch>,
    #[prost(message, optional, tag = "3")]
    pub cut: Option<Cut>,
    #[prost(message, optional, tag = "4")]
    pub heartbeat: Option<Heartbeat>,
    #[prost(message, optional, tag = "5")]
    pub snapshot_end: Option<SnapshotEnd>,
    #[prost(message, optional, tag = "6")]
    pub status: Option<KindStatus>,
    #[prost(message, optional, tag = "7")]
    pub go_away: Option<GoAway>,
    #[prost(message, optional, tag = "8")]
    pub digest: Option<DigestRequest>,
    #[prost(message, optional, tag = "9")]
    pub gone: Option<Gone>,
    #[prost(message, optional, tag = "10")]
    pub secrets: Option<Secrets>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Batch {
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Entry {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(bool, tag = "2")]
    pub deleted: bool,
    #[prost(int32, tag = "3")]
    pub reason: i32,
    #[prost(uint64, tag = "4")]
    pub seq: u64,
    #[prost(message, repeated, tag = "5")]
    pub cause: Vec<Cause>,
    #[prost(bytes = "bytes", optional, tag = "6")]
    pub value: Option<Bytes>,
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::model::{Value, value};
    use proto::sync::{self, server_message};

    use super::*;

    #[test]
    fn batch_of_the_schema_is_read_with_its_values_encoded() {
        let value = Value { kind: Some(value::Kind::Ready(true)) };
        let entry = sync::Entry {
            key: "/calico/v1/Ready".into(),
            seq: 7,
            cause: vec![Cause { source: 77, revision: 9 }],
            value: Some(value.clone()),
            ..Default::default()
        };
        let batch = sync::Batch { entries: vec![entry], more: true };
        let sent = sync::ServerMessage { message: Some(server_message::Message::Batch(batch)) };
        let read = ServerMessage::decode(sent.encode_to_vec().as_slice()).unwrap().batch.unwrap();
        assert_eq!(read.entries[0].value.as_deref(), Some(value.encode_to_vec().as_slice()));
        assert_eq!((read.entries[0].seq, read.entries[0].cause[0].revision), (7, 9));
    }
}
