//! `status` and `wait`: what the replicas of typha and the agents behind them have come to.
//!
//! ```text
//! replicas.rs   which replicas there are, and what each answers (I/O)
//! merge.rs      of several streams of one agent the one that counts; who is live, dead, absent (pure)
//! status.rs     tables and JSON          wait.rs   asks again until an object is everywhere
//! ```

mod merge;
mod replicas;
pub mod status;
pub mod wait;

pub use replicas::Access;
