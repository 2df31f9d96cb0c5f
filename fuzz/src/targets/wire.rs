//! Messages from the network: what decodes is encoded to bytes that decode to the same.

use prost::{Message, Name};
use proto::{admin, model, sync};

use super::{ensure, refusal};
use crate::Outcome;

/// The first byte says what the rest is to be read as.
pub fn check(input: &[u8]) -> Outcome {
    let Some((kind, bytes)) = input.split_first() else { return Ok("!empty".into()) };
    match kind % 8 {
        0 => message::<sync::ServerMessage>(bytes),
        1 => message::<sync::ClientMessage>(bytes),
        2 => message::<model::Value>(bytes),
        3 => message::<sync::Batch>(bytes),
        4 => message::<sync::Entry>(bytes),
        5 => message::<admin::StatusReply>(bytes),
        6 => message::<admin::WaitReply>(bytes),
        _ => message::<sync::Token>(bytes),
    }
}

fn message<M: Message + Name + Default + std::fmt::Debug>(bytes: &[u8]) -> Outcome {
    let message = match M::decode(bytes) {
        Ok(message) => message,
        Err(error) => return Ok(refusal(M::NAME, &error.to_string())),
    };
    let encoded = message.encode_to_vec();
    ensure!(encoded.len() == message.encoded_len(), "the length is known before: {message:?}");
    let again = M::decode(encoded.as_slice()).map_err(|error| format!("what is encoded decodes: {error}"))?;
    // Compared as bytes: a number that is none equals nothing, itself included.
    ensure!(again.encode_to_vec() == encoded, "encoding is done once: {message:?}, {again:?}");
    Ok(format!("{} {}", M::NAME, format!("{message:?}").matches('{').count().min(30)))
}
