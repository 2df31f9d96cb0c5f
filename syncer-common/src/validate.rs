//! What objects and values must look like.
//!
//! `resource` checks a v3 object before it is written, `stored` one that is in the datastore already, with
//! every mistake by field: whoever reads the datastore reports the same. `value` checks what the agents get,
//! and catches only what an agent could not carry out or would carry out wrongly.

mod bgp;
mod configuration;
mod resource;
mod rule;
mod value;

pub(crate) use resource::{affinity, block};
pub use resource::{change, resource, stored};
pub use value::value;

#[cfg(test)]
mod tests;
