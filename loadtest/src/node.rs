//! One simulated node: it follows a typha with the agents' own client library and checks what it receives.

use std::collections::HashMap;

use prost::Message as _;
use syncer_common::model::{Key, Update, Value};
use typha_client::ClientEvent;

/// What a node holds, with a digest that does not depend on the order of arrival.
#[derive(Default)]
pub struct Node {
    held: HashMap<Key, u64>,
    digest: u64,
    pub in_sync: bool,
    pub updates: u64,
    pub reconnects: u64,
    /// What must never happen.
    pub mistakes: Vec<String>,
}

impl Node {
    pub fn on_event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Updates(updates) => updates.into_iter().for_each(|update| self.on_update(update)),
            ClientEvent::InSync if self.in_sync => self.mistakes.push("in sync was announced twice".into()),
            ClientEvent::InSync => self.in_sync = true,
            ClientEvent::Disconnected { .. } => self.reconnects += 1,
            ClientEvent::Connected { .. } | ClientEvent::Cut(_) => {}
        }
    }

    fn on_update(&mut self, update: Update) {
        self.updates += 1;
        let Update { key, value } = update;
        let old = match value {
            Ok(value) => {
                let hash = hash(&key, value);
                self.digest = self.digest.wrapping_add(hash);
                let old = self.held.insert(key.clone(), hash);
                if old == Some(hash) {
                    self.mistakes.push(format!("{key} was delivered twice with the same value"));
                }
                old
            }
            Err(_) => {
                let old = self.held.remove(&key);
                if old.is_none() {
                    self.mistakes.push(format!("{key} was deleted although it was never delivered"));
                }
                old
            }
        };
        if let Some(old) = old {
            self.digest = self.digest.wrapping_sub(old);
        }
    }

    pub fn entries(&self) -> usize {
        self.held.len()
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }
}

fn hash(key: &Key, value: Value) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key.to_string().as_bytes()).update(&[0]);
    hasher.update(&proto::model::Value { kind: Some(value) }.encode_to_vec());
    let bytes: [u8; 8] = hasher.finalize().as_bytes()[..8].try_into().expect("eight bytes");
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(name: &str, order: f64) -> Update {
        let value = proto::model::Tier { order: Some(order), default_action: "Deny".into() };
        Update::set(Key::Tier { name: name.into() }, Value::Tier(value))
    }

    fn node(updates: Vec<Update>) -> Node {
        let mut node = Node::default();
        node.on_event(ClientEvent::Updates(updates));
        node
    }

    #[test]
    fn the_digest_depends_on_the_state_only() {
        let straight = node(vec![tier("a", 1.0), tier("b", 2.0)]);
        let roundabout = node(vec![
            tier("b", 7.0),
            tier("c", 3.0),
            tier("b", 2.0),
            Update::delete(Key::Tier { name: "c".into() }),
            tier("a", 1.0),
        ]);
        assert_eq!((straight.digest(), straight.entries()), (roundabout.digest(), roundabout.entries()));
        assert!(roundabout.mistakes.is_empty(), "{:?}", roundabout.mistakes);
        assert_ne!(straight.digest(), node(vec![tier("a", 1.0), tier("b", 3.0)]).digest());
    }

    #[test]
    fn repeated_values_and_unknown_deletions_are_mistakes() {
        assert_eq!(node(vec![tier("a", 1.0), tier("a", 1.0)]).mistakes.len(), 1);
        assert_eq!(node(vec![Update::delete(Key::Tier { name: "a".into() })]).mistakes.len(), 1);
    }
}
