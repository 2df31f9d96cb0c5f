//! The list-and-watch machine.
