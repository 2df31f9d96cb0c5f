//! Go's `encoding/gob`, the writing side: the three messages that a client sends, and the definitions of their types,
//! each in front of its first value. Pure.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::wire::{self, Hello};

/// Numbers that this stream gives to its types.
const ENVELOPE: i64 = 65;
const HELLO: i64 = 66;
const ALGORITHMS: i64 = 67;
const ACK: i64 = 68;
const PONG: i64 = 69;
const TIME: i64 = 70;
/// Go's own.
const BOOL: i64 = 1;
const STRING: i64 = 6;
const INTERFACE: i64 = 8;

/// Seconds from the first of January of the year 1 to 1970, from when Go counts.
const BEFORE_1970: u64 = 62_135_596_800;

/// The stream to one server, from its beginning.
#[derive(Default)]
pub struct Encoder {
    defined: BTreeSet<i64>,
}

impl Encoder {
    pub fn hello(&mut self, hello: &Hello<'_>) -> Vec<u8> {
        let mut out = self.envelope();
        self.define(&mut out, ALGORITHMS, || {
            // A slice: what it is called, and of what it is.
            let mut body = vec![2, 1];
            common(&mut body, "[]syncproto.CompressionAlgorithm", ALGORITHMS);
            body.push(1);
            int(&mut body, STRING);
            body.extend([0, 0]);
            body
        });
        self.define(&mut out, HELLO, || {
            structure(
                "MsgClientHello",
                HELLO,
                &[
                    ("Hostname", STRING),
                    ("Info", STRING),
                    ("Version", STRING),
                    ("SyncerType", STRING),
                    ("SupportsDecoderRestart", BOOL),
                    ("SupportedCompressionAlgorithms", ALGORITHMS),
                    ("SupportsModernPolicyKeys", BOOL),
                ],
            )
        });
        let mut fields = Fields::default();
        for value in [hello.hostname, hello.info, hello.version, hello.syncer] {
            fields.put(!value.is_empty(), |out| text(out, value));
        }
        fields.put(true, |out| uint(out, 1));
        fields.put(!hello.compression.is_empty(), |out| {
            uint(out, hello.compression.len() as u64);
            hello.compression.iter().for_each(|algorithm| text(out, algorithm));
        });
        fields.put(true, |out| uint(out, 1));
        value(&mut out, wire::CLIENT_HELLO, HELLO, &fields.end());
        out
    }

    pub fn ack(&mut self) -> Vec<u8> {
        let mut out = self.envelope();
        self.define(&mut out, ACK, || structure("MsgACK", ACK, &[]));
        value(&mut out, wire::ACK, ACK, &Fields::default().end());
        out
    }

    /// `ping`: the timestamp of the ping, as it came.
    pub fn pong(&mut self, ping: &[u8], now: SystemTime) -> Vec<u8> {
        let mut out = self.envelope();
        self.define(&mut out, TIME, || {
            // A type that encodes itself.
            let mut body = vec![5, 1];
            common(&mut body, "Time", TIME);
            body.extend([0, 0]);
            body
        });
        self.define(&mut out, PONG, || {
            structure("MsgPong", PONG, &[("PingTimestamp", TIME), ("PongTimestamp", TIME)])
        });
        let mut fields = Fields::default();
        for time in [ping, &time(now)] {
            fields.put(true, |out| {
                uint(out, time.len() as u64);
                out.extend_from_slice(time);
            });
        }
        value(&mut out, wire::PONG, PONG, &fields.end());
        out
    }

    /// What every message is wrapped in.
    fn envelope(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.define(&mut out, ENVELOPE, || structure("Envelope", ENVELOPE, &[("Message", INTERFACE)]));
        out
    }

    fn define(&mut self, out: &mut Vec<u8>, id: i64, body: impl FnOnce() -> Vec<u8>) {
        if self.defined.insert(id) {
            message(out, -id, &body());
        }
    }
}

/// A definition of a structure.
fn structure(name: &str, id: i64, fields: &[(&str, i64)]) -> Vec<u8> {
    let mut out = vec![3, 1];
    common(&mut out, name, id);
    if !fields.is_empty() {
        out.push(1);
        uint(&mut out, fields.len() as u64);
        for (name, id) in fields {
            out.push(1);
            text(&mut out, name);
            out.push(1);
            int(&mut out, *id);
            out.push(0);
        }
    }
    out.extend([0, 0]);
    out
}

/// What all definitions begin with.
fn common(out: &mut Vec<u8>, name: &str, id: i64) {
    out.push(1);
    text(out, name);
    out.push(1);
    int(out, id);
    out.push(0);
}

/// The fields of a structure; those with a zero value are left out.
#[derive(Default)]
struct Fields {
    out: Vec<u8>,
    delta: u64,
}

impl Fields {
    fn put(&mut self, present: bool, value: impl FnOnce(&mut Vec<u8>)) {
        self.delta += 1;
        if present {
            uint(&mut self.out, self.delta);
            self.delta = 0;
            value(&mut self.out);
        }
    }

    fn end(mut self) -> Vec<u8> {
        self.out.push(0);
        self.out
    }
}

/// An envelope with a value in it.
fn value(out: &mut Vec<u8>, name: &str, id: i64, value: &[u8]) {
    let mut body = vec![1];
    text(&mut body, name);
    int(&mut body, id);
    uint(&mut body, value.len() as u64);
    body.extend_from_slice(value);
    body.push(0);
    message(out, ENVELOPE, &body);
}

fn message(out: &mut Vec<u8>, id: i64, body: &[u8]) {
    let mut number = Vec::new();
    int(&mut number, id);
    uint(out, (number.len() + body.len()) as u64);
    out.extend(number);
    out.extend_from_slice(body);
}

fn uint(out: &mut Vec<u8>, number: u64) {
    if number < 128 {
        out.push(number as u8);
        return;
    }
    let bytes = number.to_be_bytes();
    let digits = &bytes[number.leading_zeros() as usize / 8..];
    out.push((digits.len() as u8).wrapping_neg());
    out.extend_from_slice(digits);
}

fn int(out: &mut Vec<u8>, number: i64) {
    uint(out, if number < 0 { (!number as u64) << 1 | 1 } else { (number as u64) << 1 });
}

fn text(out: &mut Vec<u8>, text: &str) {
    uint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// As Go's `time.Time` writes itself: version 1, seconds, nanoseconds, and -1 minutes for UTC.
fn time(at: SystemTime) -> [u8; 15] {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let mut out = [0; 15];
    out[0] = 1;
    out[1..9].copy_from_slice(&(since.as_secs() + BEFORE_1970).to_be_bytes());
    out[9..13].copy_from_slice(&since.subsec_nanos().to_be_bytes());
    out[13..].copy_from_slice(&(-1_i16).to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::super::gob::{Decoder, Value};
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_types_are_defined_once() {
        let mut encoder = Encoder::default();
        let hello = Hello {
            hostname: "node-1",
            info: "",
            version: "v1",
            syncer: "felix",
            compression: &["snappy", "zstd"],
        };
        let mut stream = BytesMut::new();
        let parts =
            [encoder.hello(&hello), encoder.ack(), encoder.pong(b"stamp", SystemTime::now()), encoder.ack()];
        assert!(parts[3].len() < parts[1].len());
        parts.iter().for_each(|part| stream.extend_from_slice(part));
        let mut decoder = Decoder::default();
        let mut names = Vec::new();
        let mut look = |envelope: Value<'_>| {
            let Some(Value::Interface(name, value)) = envelope.field("Message") else {
                panic!("{envelope:?}")
            };
            names.push(name.rsplit('.').next().unwrap().to_owned());
            if name.ends_with("Hello") {
                assert_eq!(value.field("Hostname"), Some(&Value::String("node-1")));
                assert_eq!(value.field("Info"), None);
                assert_eq!(value.field("SupportsModernPolicyKeys"), Some(&Value::Bool(true)));
            }
            if name.ends_with("Pong") {
                assert_eq!(value.field("PingTimestamp"), Some(&Value::Bytes(b"stamp")));
            }
            Ok(())
        };
        while decoder.read(&mut stream, &mut look).unwrap().is_some() {}
        assert_eq!(names, ["MsgClientHello", "MsgACK", "MsgPong", "MsgACK"]);
        assert!(stream.is_empty());
    }
}
