//! confd: the BGP agent. Objects from typha become a BGP model, the model becomes BIRD's configuration,
//! and BIRD is made to run it.
//!
//! `bgp` and `render` are pure; `bird` does the files and the control socket; `agent` owns both ends and
//! `daemon` wires it to typha.

pub mod agent;
pub mod bgp;
pub mod bird;
pub mod config;
pub mod daemon;
pub mod launch;
pub mod local;
pub mod metrics;
pub mod offline;
pub mod render;
pub mod template;
