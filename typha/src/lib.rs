//! The fan-out tier: one watch of the datastore per replica, one stream per agent.
//!
//! ```text
//! datastore ── syncer ──> pipeline ──> snapcache ──> syncserver ──> agents
//!  (list, watch)      (convert, validate)  (ordered,     (a cursor per
//!                                           encoded once)  stream)
//! ```
//!
//! `daemon.rs` wires it, `config.rs` reads the settings. Each stage has one owner; the cache is the only state
//! that is shared, behind [`snapcache::Shared`].

pub mod config;
pub mod daemon;
pub mod metrics;
pub mod pipeline;
pub mod reports;
pub mod secrets;
pub mod snapcache;
pub mod syncserver;
pub mod traces;
