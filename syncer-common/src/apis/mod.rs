//! The v3 resources: kinds, the envelope they share, and a typed spec for each kind that is read.
//!
//! Reading is lenient, as the datastore may hold what older or newer software wrote: unknown fields are
//! ignored, `null` is the same as absent. What a field must look like is checked in `validate`.

pub mod bgp;
mod defaults;
mod error;
pub mod ipam;
mod kinds;
pub mod network;
pub mod operations;
pub mod policy;
mod resource;
pub mod scalars;
pub mod services;
pub mod v1;

pub use error::{FieldError, prune_nulls, read};
pub use kinds::{API_VERSION, ApiKind};
pub use resource::{DEFAULT_NAMESPACE, Metadata, Resource};
