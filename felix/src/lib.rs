//! The node agent for policy and routes: thin, fed by typha's stream, writing differences to the kernel.

pub mod calculation;
pub mod commands;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod drift;
pub mod ifacemonitor;
pub mod ipsets;
pub mod iptables;
pub mod metrics;
pub mod offline;
pub mod routetable;
pub mod rules;
pub mod tunnels;
