//! The adapter to Calico's Typha: its Go wire protocol, so that the same workload, with the same checks, can be run
//! against it.
//!
//! ```text
//! client ── inflate ── gob (reader) ── wire ── values ──> ClientEvent, as from our own client library
//!        ── encode (writer): hello, acknowledgements, pongs
//! ```
//!
//! Everything but `client` is pure.

mod client;
mod encode;
mod gob;
mod inflate;
pub mod values;
mod wire;

pub use client::{Config, run};
pub use values::Known;
