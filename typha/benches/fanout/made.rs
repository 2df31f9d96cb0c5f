//! When a change was made, in the messages that carry it: the version of an endpoint of the corpus.

use std::time::SystemTime;

use memchr::memmem;

/// The label that changes, as it is encoded: its name, and tag and length of a value of 16 digits.
const VERSION: &[u8] = b"version\x12\x10";
/// Of a time in microseconds since 1970, until the year 2286.
const DIGITS: usize = 16;

/// The clock of all processes of a run, in microseconds.
pub fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as u64)
}

/// What an endpoint of that version contains.
pub fn encoded(version: u64) -> Vec<u8> {
    [VERSION, format!("{version:016}").as_bytes()].concat()
}

/// When the first change in a message was made, if it says so.
pub fn find(message: &[u8]) -> Option<u64> {
    let digits = &message[memmem::find(message, VERSION)? + VERSION.len()..];
    std::str::from_utf8(digits.get(..DIGITS)?).ok()?.parse().ok()
}
