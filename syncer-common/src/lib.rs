//! What every part of Bulrush shares: typed keys and values of Calico's v1 model, the v3 resource types
//! and their conversion, selectors and the label index, the datastores and the list-and-watch machine.
//!
//! Without features the crate is pure: no runtime, sockets, files, clock or processes. `manifests` adds
//! reading YAML resources; `datastore` adds the datastore clients.

pub mod model;

pub mod apis;
pub mod digest;
pub mod kubernetes;
pub mod labelindex;
pub mod processors;
pub mod selector;
pub mod validate;

#[cfg(any(feature = "manifests", feature = "datastore"))]
pub mod manifests;

#[cfg(feature = "datastore")]
pub mod backend;
#[cfg(feature = "datastore")]
pub mod syncer;
#[cfg(feature = "testing")]
pub mod testing;
