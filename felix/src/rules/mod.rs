//! Rule rendering: from calculated policy to chains. Pure.
//!
//! Everything here is a function of configuration and input, so that equal state gives equal chains, equal
//! hashes, and no write. Which chains are needed, and when they are written, is the table driver's matter.

pub mod config;
pub mod dispatch;
pub mod endpoint_marks;
pub mod endpoints;
mod filter;
pub mod fragments;
pub mod groups;
mod mangle;
mod matching;
pub mod names;
pub mod nat;
pub mod policy;
mod raw;
pub mod static_chains;

pub use config::{Marks, ParamError, RulesConfig};
pub use dispatch::HostInterface;
pub use groups::{PolicyGroup, TierGroups};
pub use names::{ANY_INTERFACE, Direction};
pub use static_chains::{DscpRule, Hook, StaticInputs};

use crate::iptables::TableName;
use fragments::DenyAction;

/// Renders chains by one configuration. A change of configuration is a new renderer.
#[derive(Clone, Debug)]
pub struct Renderer {
    config: RulesConfig,
}

impl Renderer {
    pub fn new(config: RulesConfig) -> Self {
        Renderer { config }
    }

    pub fn config(&self) -> &RulesConfig {
        &self.config
    }

    /// What denies in a table: the kernel takes REJECT in filter only.
    pub fn deny_in(&self, table: TableName) -> DenyAction {
        if table == TableName::Filter { self.config.filter_deny_action } else { DenyAction::Drop }
    }
}
