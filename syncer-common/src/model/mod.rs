//! The v1 (backend) model: typed keys with their canonical paths, values, and updates.
//!
//! Values are the generated protobuf messages themselves (`proto::model`): what typha encodes is what an
//! agent reads, with no second set of structs between.

mod key;
mod kind;
mod path;
mod update;

pub use key::{
    BlockAffinityKey, HostEndpointKey, Key, KeyError, PolicyKey, ResourceKey, WorkloadEndpointKey,
};
pub use kind::Kind;
pub use proto::model as values;
pub use proto::model::value::Kind as Value;
pub use update::{DeletionReason, Stamp, Update};
