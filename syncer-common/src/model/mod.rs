//! The v1 (backend) model: typed keys with their canonical paths, values, and updates.
//!
//! Values are the generated protobuf messages themselves (`proto::model`): what typha encodes is what an
//! agent reads, with no second set of structs between.

mod key;
mod kind;
mod list;
mod parse;
mod path;
mod resource_kind;
mod update;
mod value_json;

pub use key::{
    BlockAffinityKey, HostEndpointKey, Key, KeyError, PolicyKey, ResourceKey, WorkloadEndpointKey,
};
pub use kind::Kind;
pub use list::{ListOptions, ListRange, ListRoot};
pub use proto::model as values;
pub use proto::model::value::Kind as Value;
pub use resource_kind::ResourceKind;
pub use update::{DeletionReason, Stamp, Update};
pub use value_json::{calico_json, canonical_value, carried, upgraded_entry};
