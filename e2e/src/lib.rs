//! Clusters made of network namespaces: real etcd, real BIRD, the real kernel, and Bulrush's own binaries.
//!
//! `lab` builds what a data centre and a CNI plugin would give (fabric, nodes, workloads); `cluster` runs
//! the control plane in it; `probe` asks whether packets pass; `encap` knows how each mode of pools looks in
//! the kernel. The e2e tests and `make demo` share them.
//!
//! Everything is synchronous: a test is a script, and its waits are polls with a deadline.

pub mod cluster;
pub mod encap;
pub mod fleet;
pub mod flow;
pub mod lab;
pub mod probe;
pub mod process;
pub mod require;
pub mod watch;
