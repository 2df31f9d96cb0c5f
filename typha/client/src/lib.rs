//! The agents' end of the sync protocol: one stream to one typha at a time, for ever.
//!
//! ```text
//! run ── discovery: which server next        (servers.rs)
//!     ── whether to leave a stale one       (stale.rs)
//!     ── one stream: hello, messages, acks   (stream.rs)
//!     ── what the agent reports            (reports.rs)
//!     ── sums of what is held, to compare     (digest.rs, pure)
//!     ── the last proven state, on disk      (disk.rs)
//!     ── what has been delivered, per key    (held.rs, pure)   ── ClientEvent ──> the agent
//! ```
//!
//! The agent sees one continuous history, whatever happens to servers and connections: an update is delivered
//! when a value differs from the one delivered last, a deletion when it is proven (an explicit deletion, or
//! absence from a snapshot that is complete for the kind), and never because a server went away, lags, or is
//! new. [`ClientEvent::Cut`] marks the points where everything delivered so far is consistent.

mod acks;
mod client;
mod config;
mod digest;
mod disk;
mod held;
mod keys;
mod metrics;
mod raw;
mod reports;
mod servers;
mod stale;
mod stream;
mod wire;

pub use client::run;
pub use config::{ClientConfig, ClientEvent, CutId};
pub use proto::sync::{BgpSession, Secret};
pub use raw::{Names, RawUpdate};
pub use reports::Reports;
pub use transport::ClientTls;
