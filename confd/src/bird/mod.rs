//! BIRD itself: its configuration file, its control socket, and what it says about its sessions.

pub mod control;
pub mod program;
pub mod sessions;
pub mod watch;
pub mod write;
