//! The dataplane: what the calculation puts out becomes kernel state.
//!
//! ```text
//!  calculation ──Batch (bounded)──▶ model (pure) ──▶ IP sets ─▶ tables ─▶ IP set deletions
//!  kernel ──link, address, route events──▶   │  └──▶ routes (beside)
//!                                            └────▶ acks, status files, metrics
//! ```
//!
//! One task owns everything here. Nothing is written before the first proven state. Within a pass IP sets come
//! before the rules that refer to them and go after them; routes are written meanwhile. What fails stays dirty
//! and is tried again with growing pauses; the rest goes on. Passes are throttled, but the first change after a
//! quiet time is written at once.

pub mod answers;
mod configure;
pub mod event_loop;
pub mod kernel;
pub mod model;
pub mod params;
pub mod status;
mod throttle;

pub use event_loop::{Batch, Dataplane};
