//! The whole calculation under test: entries in short form, a strict stand-in for the dataplane, and the
//! expander that runs every scenario in many orders. A feature, so that `tests/` and other crates can use it.

pub mod entry;
pub mod expand;
pub mod recorder;

pub use entry::{Entry, Rule, allow, deny, pass};
pub use expand::{State, run};
pub use recorder::Recorder;

use crate::ip_set::{IpSetDef, PortProtocol};
use syncer_common::selector::Selector;

/// Id of the set of what a selector matches.
pub fn selector_set(selector: &str) -> String {
    IpSetDef::selector(parse(selector)).id
}

/// Id of the set of a named port.
pub fn port_set(selector: &str, protocol: &str, name: &str) -> String {
    IpSetDef::named_port(parse(selector), PortProtocol::named(protocol), name).id
}

fn parse(selector: &str) -> Selector {
    Selector::parse(selector).expect("selectors in tests parse")
}
