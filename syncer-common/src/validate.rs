//! What objects and values must look like.
//!
//! `resource` checks a v3 object before it is written, with every mistake by field. `value` checks what
//! the agents get: it holds for whatever is in the datastore, and catches only what an agent could not
//! carry out or would carry out wrongly.

mod resource;
mod rule;
mod value;

pub use resource::{change, resource};
pub use value::value;

#[cfg(test)]
mod tests;
