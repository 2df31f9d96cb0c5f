//! What has been delivered to the agent: per key a hash of the value, no more. Pure.
//!
//! It turns the streams of many servers into one history: a value is delivered when it differs from the one delivered
//! last; a deletion when it is explicit, or when a snapshot that is complete for the key's kind did not have the key.

use std::collections::{HashMap, HashSet};

use prost::Message as _;
use proto::sync::{Cut, Entry, SourcePosition, Token};
use syncer_common::model::{DeletionReason, Key, Kind, Update};

#[derive(Debug, Default)]
pub struct Held {
    /// Hash of the value delivered last.
    delivered: HashMap<Key, u64>,
    /// Keys that the running snapshot has sent.
    snapshot: Option<HashSet<Key>>,
    /// What to offer when resuming.
    token: Option<Token>,
    /// Entries that could not be understood: of kinds newer than this build.
    pub unknown: u64,
}

impl Held {
    /// A stream begins; `snapshot` says that everything will be sent.
    pub fn begin(&mut self, snapshot: bool) {
        self.snapshot = snapshot.then(HashSet::new);
    }

    /// Takes one entry of the server with this epoch; an update if the agent has to hear of it.
    pub fn on_entry(&mut self, entry: Entry, epoch: &str) -> Option<Update> {
        self.reach(&entry, epoch);
        let Some(key) = Key::parse(&entry.key).or_else(|| Key::parse_block_affinity(&entry.key)) else {
            self.unknown += 1;
            return None;
        };
        if entry.deleted {
            if let Some(seen) = &mut self.snapshot {
                seen.remove(&key);
            }
            self.delivered.remove(&key)?;
            let out_of_scope = entry.reason() == proto::sync::DeletionReason::DeletionOutOfScope;
            let reason = if out_of_scope { DeletionReason::OutOfScope } else { DeletionReason::Deleted };
            return Some(Update { key, value: Err(reason) });
        }
        let Some(value) = entry.value.filter(|value| value.kind.is_some()) else {
            // A value of a kind that this build does not know: not a deletion.
            self.unknown += 1;
            return None;
        };
        if let Some(seen) = &mut self.snapshot {
            seen.insert(key.clone());
        }
        let hash = hash(&entry.key, &value.encode_to_vec());
        if self.delivered.insert(key.clone(), hash) == Some(hash) {
            return None;
        }
        value.kind.map(|value| Update::set(key, value))
    }

    /// The snapshot is complete for these kinds: what it did not send is gone.
    pub fn on_snapshot_end(&mut self, kinds: &[String]) -> Vec<Update> {
        let Some(seen) = self.snapshot.take() else { return Vec::new() };
        let kinds: HashSet<_> = kinds.iter().filter_map(|name| Kind::from_name(name)).collect();
        let gone: Vec<_> = self
            .delivered
            .keys()
            .filter(|key| Kind::of(key).is_some_and(|kind| kinds.contains(&kind)) && !seen.contains(*key))
            .cloned()
            .collect();
        for key in &gone {
            self.delivered.remove(key);
        }
        gone.into_iter().map(Update::delete).collect()
    }

    /// A consistent point: from here a later stream can resume.
    pub fn on_cut(&mut self, cut: Cut) -> Option<&Token> {
        // Within a snapshot nothing is complete yet.
        if self.snapshot.is_none() {
            self.token = cut.token;
        }
        self.token.as_ref()
    }

    /// What to offer to the next server.
    pub fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    // What is held may now contain effects of this entry's revision; a server that has not come so far must not be
    // resumed from. And a position by count holds only as long as nothing came from elsewhere.
    fn reach(&mut self, entry: &Entry, epoch: &str) {
        let Some(token) = &mut self.token else { return };
        if token.epoch != epoch {
            token.epoch.clear();
        }
        for stamp in &entry.cause {
            match token.sources.iter_mut().find(|position| position.source == stamp.source) {
                Some(position) => position.high = position.high.max(stamp.revision),
                None => token.sources.push(SourcePosition {
                    source: stamp.source.clone(),
                    low: 0,
                    high: stamp.revision,
                }),
            }
        }
    }
}

fn hash(key: &str, value: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key.as_bytes()).update(&[0]).update(value);
    u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::model::{self, value};
    use proto::sync::Stamp;

    fn tier(name: &str, order: f64) -> Entry {
        let value = value::Kind::Tier(model::Tier { order: Some(order), default_action: "Deny".into() });
        Entry {
            key: format!("/calico/v1/policy/tier/{name}/metadata"),
            value: Some(model::Value { kind: Some(value) }),
            cause: vec![Stamp { source: "etcd".into(), revision: 7 }],
            ..Entry::default()
        }
    }

    fn deleted(name: &str) -> Entry {
        Entry { deleted: true, value: None, ..tier(name, 0.0) }
    }

    fn token(epoch: &str, low: u64) -> Cut {
        let sources = vec![SourcePosition { source: "etcd".into(), low, high: low }];
        Cut { token: Some(Token { epoch: epoch.into(), seq: 9, sources, ..Token::default() }) }
    }

    #[test]
    fn equal_values_are_delivered_once() {
        let mut held = Held::default();
        assert!(held.on_entry(tier("a", 1.0), "e").is_some());
        assert!(held.on_entry(tier("a", 1.0), "e").is_none());
        assert!(held.on_entry(tier("a", 2.0), "e").is_some());
    }

    #[test]
    fn a_snapshot_sweeps_only_its_complete_kinds_and_only_at_its_end() {
        let mut held = Held::default();
        held.on_entry(tier("a", 1.0), "e");
        held.on_entry(tier("b", 1.0), "e");
        held.begin(true);
        assert!(held.on_entry(tier("a", 1.0), "f").is_none());
        // The stream broke: the next snapshot starts over, and nothing was deleted.
        held.begin(true);
        assert!(held.on_entry(tier("a", 1.0), "g").is_none());
        assert_eq!(held.on_snapshot_end(&["Policy".into()]), vec![]);
        held.begin(true);
        held.on_entry(tier("a", 1.0), "g");
        let gone = held.on_snapshot_end(&["Tier".into()]);
        assert_eq!(gone, vec![Update::delete(Key::Tier { name: "b".into() })]);
    }

    #[test]
    fn unknown_kinds_and_unknown_deletions_are_ignored() {
        let mut held = Held::default();
        let unknown = Entry { value: Some(model::Value { kind: None }), ..tier("a", 1.0) };
        assert!(held.on_entry(unknown, "e").is_none());
        assert!(held.on_entry(Entry { key: "/calico/v9/what".into(), ..tier("a", 1.0) }, "e").is_none());
        assert_eq!(held.unknown, 2);
        assert!(held.on_entry(deleted("a"), "e").is_none());
    }

    #[test]
    fn created_and_deleted_again_within_a_snapshot_is_gone() {
        let mut held = Held::default();
        held.begin(true);
        assert!(held.on_entry(tier("a", 1.0), "e").is_some());
        assert!(held.on_entry(deleted("a"), "e").is_some());
        assert_eq!(held.on_snapshot_end(&["Tier".into()]), vec![]);
    }

    #[test]
    fn effects_of_a_later_revision_raise_the_token_and_end_its_count() {
        let mut held = Held::default();
        held.on_cut(token("e", 5));
        held.begin(true);
        held.on_entry(tier("a", 1.0), "f");
        let token = held.token().unwrap();
        assert_eq!((token.epoch.as_str(), token.sources[0].low, token.sources[0].high), ("", 5, 7));
    }

    #[test]
    fn a_cut_within_a_snapshot_gives_no_token() {
        let mut held = Held::default();
        held.begin(true);
        assert!(held.on_cut(token("e", 5)).is_none());
        held.on_snapshot_end(&[]);
        assert!(held.on_cut(token("e", 5)).is_some());
    }
}
