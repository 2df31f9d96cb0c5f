//! gRPC messages as they go to the socket: flag, length, bytes; encoded once, compressed once, shared by all streams.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

/// Flag and length.
pub const PREFIX: usize = 5;
/// Shorter messages are not worth compressing [G2].
const WORTH_IT: usize = 1 << 10;
/// Each message is compressed once, whatever the number of streams.
const LEVEL: i32 = 3;

/// A message, plain and, where that is shorter, compressed.
#[derive(Clone, Debug)]
pub struct Framed {
    plain: Bytes,
    packed: Option<Bytes>,
}

impl From<Bytes> for Framed {
    fn from(plain: Bytes) -> Self {
        Framed { packed: compress(&plain), plain }
    }
}

impl Framed {
    /// What a stream is sent that does or does not take zstd.
    pub fn bytes(&self, zstd: bool) -> &Bytes {
        self.packed.as_ref().filter(|_| zstd).unwrap_or(&self.plain)
    }

    /// The message without its frame.
    pub fn payload(&self) -> Bytes {
        self.plain.slice(PREFIX..)
    }

    /// The same with another message behind it, in one piece.
    pub fn followed_by(&self, next: &Bytes) -> Framed {
        let join = |first: &Bytes| -> Bytes { [first.as_ref(), next.as_ref()].concat().into() };
        Framed { plain: join(&self.plain), packed: self.packed.as_ref().map(join) }
    }
}

/// A message that is sent as it is.
pub fn plain(capacity: usize, write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + capacity);
    bytes.extend_from_slice(&[0; PREFIX]);
    write(&mut bytes);
    let length = (bytes.len() - PREFIX) as u32;
    bytes[1..PREFIX].copy_from_slice(&length.to_be_bytes());
    bytes.freeze()
}

thread_local! {
    /// Its tables are larger than most messages.
    static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

/// Nothing if it is not worth it.
pub fn compress(plain: &Bytes) -> Option<Bytes> {
    let payload = &plain[PREFIX..];
    if payload.len() < WORTH_IT {
        return None;
    }
    let packed = COMPRESSOR.with_borrow_mut(|held| {
        if held.is_none() {
            *held = zstd::bulk::Compressor::new(LEVEL).ok();
        }
        held.as_mut()?.compress(payload).ok()
    })?;
    if packed.len() + packed.len() / 16 >= payload.len() {
        return None;
    }
    let mut bytes = BytesMut::with_capacity(PREFIX + packed.len());
    bytes.extend_from_slice(&[1]);
    bytes.extend_from_slice(&(packed.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&packed);
    Some(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_message_is_offered_compressed_and_a_short_one_is_not() {
        let message = |length| Framed::from(plain(length, |bytes| bytes.resize(PREFIX + length, b'x')));
        let short = message(1_023);
        assert_eq!(short.bytes(true), short.bytes(false));
        let long = message(100_000);
        assert_eq!(long.bytes(false)[..PREFIX], [0, 0, 1, 0x86, 0xa0]);
        assert_eq!((long.bytes(true)[0], long.payload().len()), (1, 100_000));
        assert_eq!(zstd::bulk::decompress(&long.bytes(true)[PREFIX..], 100_000).unwrap(), long.payload());
        let both = long.followed_by(short.bytes(true));
        assert_eq!(both.bytes(true).len(), long.bytes(true).len() + short.bytes(true).len());
    }

    #[test]
    fn noise_is_sent_as_it_is() {
        let mut seed = 1u64;
        let mut noise = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        };
        let bytes: Vec<u8> = (0..10_000).map(|_| noise()).collect();
        let message = Framed::from(plain(bytes.len(), |target| target.extend_from_slice(&bytes)));
        assert_eq!(message.bytes(true)[0], 0);
    }
}
