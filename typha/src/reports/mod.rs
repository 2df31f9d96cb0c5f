//! What agents report about their nodes, on its way to the datastore.
//!
//! ```text
//! streams ── Inbox: latest value per key, bounded ──> writer ──> datastore (Calico's status keys)
//! ```
//!
//! Streams only ever put something into the inbox, so a datastore that is slow or away holds up nobody. Rules:
//! - A report counts only for the node of its stream.
//! - One session per node and agent: of one boot id the highest counter [D1], else the stream that came last.
//!   What an older one still had to write is dropped.
//! - Pending work goes with its stream: the agent reports all of it again to the server it went to.
//! - When an agent has named all of its endpoints, and once more when a half-open stream to another replica must
//!   have ended, the node's keys are compared with what was reported: leftovers go, differences are written.

mod inbox;
mod node_status;
mod writer;

pub use inbox::{Inbox, Refusal};
pub use writer::write;
