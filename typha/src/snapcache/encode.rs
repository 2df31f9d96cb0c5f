//! Encoding, once: an entry is encoded when it changes and its bytes are shared by everything that sends it.
//!
//! What is stored is the entry as a member of a batch (field tag and length included), so that a batch is the
//! concatenation of stored entries behind one header.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use proto::sync::{self, ServerMessage, server_message};
use syncer_common::model::Kind;

use super::frame;

/// `Batch.entries` and `Batch.more`, `ServerMessage.batch`, `Entry.value` (sync.proto).
const BATCH_ENTRIES: u32 = 1;
const BATCH_MORE: u32 = 2;
const MESSAGE_BATCH: u32 = 2;
const ENTRY_VALUE: u32 = 6;
/// What messages aim at [G2]. An entry of its own may be larger.
const MESSAGE_BYTES: usize = 1 << 20;

/// A set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KindSet(u32);

impl KindSet {
    pub fn all() -> Self {
        Kind::ALL.into_iter().collect()
    }

    pub fn contains(self, kind: Kind) -> bool {
        self.0 & Self::bit(kind) != 0
    }

    pub fn insert(&mut self, kind: Kind) {
        self.0 |= Self::bit(kind);
    }

    pub fn iter(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |kind| self.contains(*kind))
    }

    pub fn names(self) -> Vec<String> {
        self.iter().map(|kind| kind.name().to_owned()).collect()
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn bit(kind: Kind) -> u32 {
        1 << (kind as u32)
    }
}

impl FromIterator<Kind> for KindSet {
    fn from_iter<T: IntoIterator<Item = Kind>>(kinds: T) -> Self {
        let mut set = KindSet::default();
        kinds.into_iter().for_each(|kind| set.insert(kind));
        set
    }
}

/// An encoded member of a batch; `value` is where its value's bytes begin (its end if it has none).
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub bytes: Bytes,
    value: u32,
}

impl Encoded {
    /// `value` is the encoded `model.v1.Value`, or why there is none.
    pub fn new(
        key: &str,
        seq: u64,
        source: u32,
        revision: u64,
        value: Result<&[u8], sync::DeletionReason>,
    ) -> Self {
        let head = sync::Entry {
            key: key.to_owned(),
            deleted: value.is_err(),
            reason: value.err().unwrap_or_default() as i32,
            seq,
            cause: vec![sync::Cause { source, revision }],
            value: None,
        };
        // The value is the last field, so it is appended to the rest.
        let value = value.unwrap_or_default();
        let has_value = !head.deleted;
        let value_len = if has_value { 1 + encoded_len_varint(value.len() as u64) + value.len() } else { 0 };
        let entry_len = head.encoded_len() + value_len;
        let mut bytes = BytesMut::with_capacity(1 + encoded_len_varint(entry_len as u64) + entry_len);
        encode_key(BATCH_ENTRIES, WireType::LengthDelimited, &mut bytes);
        encode_varint(entry_len as u64, &mut bytes);
        head.encode_raw(&mut bytes);
        if has_value {
            encode_key(ENTRY_VALUE, WireType::LengthDelimited, &mut bytes);
            encode_varint(value.len() as u64, &mut bytes);
        }
        let offset = bytes.len() as u32;
        bytes.put_slice(value);
        Encoded { bytes: bytes.freeze(), value: offset }
    }

    pub fn value(&self) -> &[u8] {
        &self.bytes[self.value as usize..]
    }
}

/// A server message that holds one batch of encoded members, framed.
pub(super) fn batch<'a>(members: impl Iterator<Item = &'a Bytes> + Clone, more: bool) -> Bytes {
    let body = members.clone().map(Bytes::len).sum::<usize>() + if more { 2 } else { 0 };
    frame::plain(1 + encoded_len_varint(body as u64) + body, |bytes| {
        encode_key(MESSAGE_BATCH, WireType::LengthDelimited, bytes);
        encode_varint(body as u64, bytes);
        members.for_each(|member| bytes.put_slice(member));
        if more {
            encode_key(BATCH_MORE, WireType::Varint, bytes);
            encode_varint(1, bytes);
        }
    })
}

/// Messages that hold all members, in order; more follows them.
pub fn pages(members: &[Bytes]) -> Vec<Bytes> {
    let mut messages = Vec::new();
    let mut rest = members;
    while !rest.is_empty() {
        let mut bytes = rest[0].len();
        let more = rest.iter().skip(1).take_while(|member| {
            bytes += member.len();
            bytes <= MESSAGE_BYTES
        });
        let count = 1 + more.count();
        messages.push(batch(rest[..count].iter(), true));
        rest = &rest[count..];
    }
    messages
}

/// Any other server message, framed.
pub fn message(message: server_message::Message) -> Bytes {
    let message = ServerMessage { message: Some(message) };
    frame::plain(message.encoded_len(), |bytes| message.encode_raw(bytes))
}

#[cfg(test)]
mod tests {
    use proto::model::{Value, value};

    use super::*;

    #[test]
    fn assembled_batch_is_what_the_schema_says() {
        let value = Value { kind: Some(value::Kind::Config("x".repeat(300))) };
        let a = Encoded::new("/calico/v1/config/A", 7, 77, 100, Ok(&value.encode_to_vec()));
        let b = Encoded::new("/calico/v1/config/B", 8, 77, 101, Err(sync::DeletionReason::DeletionInvalid));
        assert_eq!(a.value(), value.encode_to_vec());
        assert_eq!(b.value(), b"");
        let bytes = batch([&a.bytes, &b.bytes].into_iter(), true);
        let stamp = |revision| vec![sync::Cause { source: 77, revision }];
        let expected = sync::Batch {
            entries: vec![
                sync::Entry {
                    key: "/calico/v1/config/A".into(),
                    seq: 7,
                    cause: stamp(100),
                    value: Some(value),
                    ..Default::default()
                },
                sync::Entry {
                    key: "/calico/v1/config/B".into(),
                    deleted: true,
                    reason: sync::DeletionReason::DeletionInvalid as i32,
                    seq: 8,
                    cause: stamp(101),
                    ..Default::default()
                },
            ],
            more: true,
        };
        assert_eq!(bytes, message(server_message::Message::Batch(expected)));
    }

    #[test]
    fn kinds_fit_into_a_set() {
        assert!(Kind::ALL.len() <= 32);
        assert_eq!(KindSet::all().iter().count(), Kind::ALL.len());
        let confd: KindSet = Kind::CONFD.into_iter().collect();
        assert!(confd.contains(Kind::Node) && !confd.contains(Kind::Policy));
    }
}
