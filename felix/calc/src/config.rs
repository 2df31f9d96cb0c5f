//! Configuration from the datastore: global, then what is scoped to nodes with certain labels, then this
//! host's own; each overrides the one before. When several scoped ones match and name the same parameter,
//! the one with the lowest name wins.

use std::collections::BTreeMap;

use syncer_common::model::values;
use syncer_common::selector::Selector;

type Parameters = BTreeMap<String, String>;

#[derive(Default)]
pub(crate) struct Config {
    global: Parameters,
    host: Parameters,
    scoped: BTreeMap<String, Scoped>,
    node_labels: BTreeMap<String, String>,
    ready: Option<bool>,
    sent: Option<Parameters>,
}

struct Scoped {
    selector: Selector,
    parameters: Parameters,
}

impl Config {
    pub fn set_global(&mut self, name: String, value: Option<String>) {
        set(&mut self.global, name, value);
    }

    pub fn set_host(&mut self, name: String, value: Option<String>) {
        set(&mut self.host, name, value);
    }

    pub fn set_scoped(&mut self, name: String, value: Option<values::FelixConfiguration>) {
        let scoped = value.and_then(|value| match Selector::parse(&value.node_selector) {
            Ok(selector) => Some(Scoped { selector, parameters: value.parameters }),
            Err(error) => {
                tracing::warn!(key = name, field = "node_selector", reason = %error, "configuration ignored");
                None
            }
        });
        set(&mut self.scoped, name, scoped);
    }

    pub fn set_node_labels(&mut self, labels: BTreeMap<String, String>) {
        self.node_labels = labels;
    }

    pub fn set_ready(&mut self, ready: Option<bool>) {
        self.ready = ready;
    }

    pub fn ready(&self) -> Option<bool> {
        self.ready
    }

    /// The merged parameters, when they differ from those taken last.
    pub fn take(&mut self) -> Option<Parameters> {
        let mut merged = self.global.clone();
        for scoped in self.scoped.values().rev().filter(|scoped| scoped.selector.matches(&self.node_labels)) {
            merged.extend(scoped.parameters.clone());
        }
        merged.extend(self.host.clone());
        (self.sent.as_ref() != Some(&merged)).then(|| self.sent.insert(merged).clone())
    }
}

fn set<V>(map: &mut BTreeMap<String, V>, name: String, value: Option<V>) {
    match value {
        Some(value) => map.insert(name, value),
        None => map.remove(&name),
    };
}
