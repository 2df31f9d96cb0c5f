//! confd: the BGP agent. Objects from typha become a BGP model, the model becomes BIRD's configuration,
//! and BIRD is made to run it.
//!
//! `bgp` and `render` are pure; `bird` does the files and the control socket; `daemon` wires them.

pub mod bgp;
pub mod bird;
pub mod render;
