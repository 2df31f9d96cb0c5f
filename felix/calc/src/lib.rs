//! Felix's calculation: from the stream of v1 entries to what this node has to enforce.
//!
//! Pure: no runtime, sockets, clock or processes. One task owns a [`Graph`], feeds it updates and takes the
//! difference with `flush`. Output depends on the current input only: any order of arrival, any repetition
//! and any intermediate states give the same final output (`testing/expand.rs` re-runs every case so).

pub mod explain;
pub mod failsafe;
pub mod mac;
pub mod output;

mod active_rules;
mod addresses;
mod config;
mod delta;
mod dispatch;
mod graph;
mod hosts;
pub mod ip_set;
mod item;
mod members;
mod policy_resolver;
mod routes;
pub mod rule_scanner;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use graph::{Graph, Stats};
