//! The wire: values of the v1 model, the sync protocol and the admin protocol, generated from
//! `proto/*.proto`. Messages only by default; feature `grpc` adds the tonic services.
//!
//! Values are used as they are throughout the system (there is no second set of structs): typha makes
//! them from datastore objects, agents read them from the stream.

/// The tree of generated modules has to mirror the proto packages, because generated code refers to
/// other packages by relative path.
pub mod bulrush {
    pub mod model {
        #[allow(clippy::all)]
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/bulrush.model.v1.rs"));
        }
    }
    pub mod sync {
        #[allow(clippy::all)]
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/bulrush.sync.v1.rs"));
        }
    }
    pub mod admin {
        #[allow(clippy::all)]
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/bulrush.admin.v1.rs"));
        }
    }
}

pub use bulrush::{admin::v1 as admin, model::v1 as model, sync::v1 as sync};

mod position;
mod secret;

pub use position::Position;

/// Encoded `FileDescriptorSet` of all three files, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The protocol version spoken by this build. Versions N-2 to N+2 talk to each other.
pub const VERSION: u32 = 1;
