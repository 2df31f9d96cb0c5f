//! What the calculation makes of whole datastores, each scenario in every order (`testing/expand.rs`).

mod endpoints;
mod members;
mod policies;
mod rest;
mod routes;
mod rules;

use felix_calc::testing::Entry;
use felix_calc::testing::expand::NODE;

/// A workload of this node.
fn local(name: &str, address: &str, labels: &[(&str, &str)]) -> Entry {
    Entry::workload(NODE, name, &[address], labels)
}

/// A workload of another node.
fn remote(name: &str, address: &str, labels: &[(&str, &str)]) -> Entry {
    Entry::workload("there", name, &[address], labels)
}

/// A set with its members.
fn set(id: &str, members: &[&str]) -> String {
    members.iter().fold(format!("set {id}"), |line, member| line + " " + member)
}
