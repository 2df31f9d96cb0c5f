//! Real datastores for tests, of this crate and of others (feature `testing`).

pub mod etcd;
pub mod kubernetes;
pub mod process;
pub mod require;
