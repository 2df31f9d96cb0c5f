//! Against streams that Go's own encoder wrote (`loadtest/tests/calico-typha`, `go run . fixtures`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};

use super::*;

fn fixtures() -> Vec<(String, Vec<u8>, Json)> {
    let text = include_str!("../../../tests/calico-typha/fixtures.json");
    let all: Vec<Json> = serde_json::from_str(text).unwrap();
    let field = |fixture: &Json, name: &str| fixture[name].as_str().unwrap().to_owned();
    all.iter()
        .map(|fixture| {
            let stream = STANDARD.decode(field(fixture, "stream")).unwrap();
            (field(fixture, "name"), stream, fixture["values"].clone())
        })
        .collect()
}

fn as_json(value: &Value<'_>) -> Json {
    match value {
        Value::Bool(value) => json!(value),
        Value::Int(value) => json!(value),
        Value::Uint(value) => json!(value),
        Value::Float(value) => json!(value),
        Value::Complex(real, imaginary) => json!([real, imaginary]),
        Value::String(text) => json!(text),
        Value::Bytes(bytes) => json!(STANDARD.encode(bytes)),
        Value::List(list) => list.iter().map(as_json).collect(),
        Value::Map(pairs) => pairs
            .iter()
            .map(|(key, value)| match as_json(key) {
                Json::String(key) => (key, as_json(value)),
                key => (key.to_string(), as_json(value)),
            })
            .collect(),
        Value::Struct(fields) => {
            fields.iter().map(|(name, value)| (name.to_string(), as_json(value))).collect()
        }
        Value::Interface(name, value) => json!({ "type": name, "value": as_json(value) }),
        Value::Nil => Json::Null,
    }
}

fn read_all(stream: &[u8], step: usize) -> Result<Vec<Json>> {
    let mut decoder = Decoder::default();
    let (mut received, mut values) = (BytesMut::new(), Vec::new());
    for part in stream.chunks(step) {
        received.extend_from_slice(part);
        while let Some(value) = decoder.read(&mut received, |value| Ok(as_json(&value)))? {
            values.push(value);
        }
    }
    ensure!(received.is_empty(), "{} bytes are left", received.len());
    Ok(values)
}

#[test]
fn what_go_wrote_is_read_as_it_was_meant_however_it_arrives() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 10, "{} fixtures", fixtures.len());
    for (name, stream, values) in fixtures {
        for step in [1, 7, stream.len()] {
            let read = read_all(&stream, step).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_eq!(Json::Array(read), values, "{name}, {step} bytes at a time");
        }
    }
}

#[test]
fn damaged_streams_end_with_an_error_or_other_values_and_never_worse() {
    for (_, stream, _) in fixtures() {
        for position in 0..stream.len() {
            for flip in [0x01, 0x40, 0x80, 0xff] {
                let mut damaged = stream.clone();
                damaged[position] ^= flip;
                // No panic, no endless loop.
                read_all(&damaged, damaged.len()).ok();
            }
            read_all(&stream[..position], 64).ok();
        }
    }
}

#[test]
fn what_claims_to_be_larger_than_it_is_takes_no_memory() {
    // A slice of integers (type 2) that says it has 2^40 of them, and a message of 2^62 bytes.
    let mut decoder = Decoder::default();
    decoder.types.insert(65, Type::Slice(id::INT));
    let error = decoder.top(&[0xff, 130, 0, 0xfa, 1, 0, 0, 0, 0, 0]).unwrap_err();
    assert!(error.to_string().contains("more elements than bytes"), "{error}");
    let mut received = BytesMut::from(&[0xf8, 0x40, 0, 0, 0, 0, 0, 0, 0][..]);
    let error = decoder.read(&mut received, |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("a message of more than"), "{error}");
    // A type that holds itself.
    decoder.types.insert(66, Type::Slice(66));
    let mut message = vec![0xff, 132, 0];
    message.extend([1; 1000]);
    let error = decoder.top(&message).unwrap_err();
    assert!(error.to_string().contains("deep"), "{error}");
}
