//! One simulated node: it keeps what it receives, as hashes, and checks it.
//!
//! Most nodes take entries as they came: the hash of the bytes says what they hold. Those of the sample read every
//! value as felix does, and hash what they have read.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use memchr::memmem;
use prost::Message as _;
use syncer_common::digest;
use syncer_common::model::{Key, Update};
use typha_client::ClientEvent;

use crate::cluster::MARK;

/// Numbers for keys, the same for all nodes: a node then keeps a few bytes per entry and no key. And which of them the
/// run has deleted, so that no node is told of another deletion.
#[derive(Clone, Default)]
pub struct Keys(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    numbers: HashMap<Arc<str>, u32>,
    /// Nothing: the run is not the one that writes.
    deletions: Option<Deletions>,
}

#[derive(Default)]
struct Deletions {
    keys: HashSet<u32>,
    count: u64,
}

impl Known {
    fn number(&mut self, key: &Arc<str>) -> u32 {
        if let Some(number) = self.numbers.get(key) {
            return *number;
        }
        let number = self.numbers.len() as u32;
        self.numbers.insert(key.clone(), number);
        number
    }
}

impl Keys {
    /// Of a run that makes all deletions itself, and says so before each.
    pub fn accounted() -> Self {
        let keys = Keys::default();
        keys.lock().deletions = Some(Deletions::default());
        keys
    }

    pub fn number(&self, key: &Arc<str>) -> usize {
        self.lock().number(key) as usize
    }

    /// These are about to be deleted.
    pub fn delete(&self, updates: &[Update]) {
        let mut known = self.lock();
        for path in updates.iter().filter_map(|update| update.key.path().ok()) {
            let number = known.number(&path.into());
            if let Some(deletions) = &mut known.deletions {
                deletions.keys.insert(number);
                deletions.count += 1;
            }
        }
    }

    /// Whether there was such a deletion, for a node that has been told of `told` in all.
    fn may_be_gone(&self, number: usize, told: u64) -> bool {
        let known = self.lock();
        let may = |made: &Deletions| made.keys.contains(&(number as u32)) && told <= made.count;
        known.deletions.as_ref().is_none_or(may)
    }

    fn key(&self, number: usize) -> String {
        let known = self.lock();
        let found = known.numbers.iter().find(|(_, known)| **known as usize == number);
        found.map_or_else(|| format!("key {number}"), |(key, _)| readable(key))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn readable(path: &str) -> String {
    Key::parse(path).map_or_else(|| path.to_owned(), |key| key.to_string())
}

/// What a node, or the datastore, holds: a hash per key, and a digest that does not depend on the order in which
/// it came about.
#[derive(Clone, Default)]
pub struct State {
    /// By the key's number; 0 = not there.
    hashes: Vec<u64>,
    digest: u64,
    entries: usize,
}

impl State {
    fn set(&mut self, number: usize, hash: u64) -> u64 {
        if self.hashes.len() <= number {
            self.hashes.resize(number + 1, 0);
        }
        let old = std::mem::replace(&mut self.hashes[number], hash);
        self.digest = self.digest.wrapping_sub(old).wrapping_add(hash);
        self.entries = self.entries + usize::from(hash != 0) - usize::from(old != 0);
        old
    }

    pub fn apply(&mut self, keys: &Keys, update: Update) {
        let Some(Encoded { key, value }) = Encoded::of(update) else { return };
        self.put(keys, &key, value.map_or(0, |(_, hash)| hash));
    }

    /// `hash`: of the entry's value; 0 = it is not there.
    pub fn put(&mut self, keys: &Keys, key: &Arc<str>, hash: u64) {
        let number = keys.number(key);
        self.set(number, hash);
    }

    pub fn entries(&self) -> usize {
        self.entries
    }

    pub fn same(&self, other: &State) -> bool {
        self.sum() == other.sum()
    }

    /// Entry by entry.
    pub fn equals(&self, other: &State) -> bool {
        let (short, long) = match self.hashes.len() < other.hashes.len() {
            true => (&self.hashes, &other.hashes),
            false => (&other.hashes, &self.hashes),
        };
        let (common, rest) = long.split_at(short.len());
        common == short.as_slice() && rest.iter().all(|hash| *hash == 0)
    }

    /// Equal for equal states.
    pub fn sum(&self) -> (u64, usize) {
        (self.digest, self.entries)
    }

    /// What `self` has that `truth` has not, and the other way round; the first few by name.
    pub fn differences(&self, truth: &State, keys: &Keys) -> String {
        let at = |state: &State, number: usize| state.hashes.get(number).copied().unwrap_or(0);
        let mut words = Vec::new();
        let mut count = 0;
        for number in 0..self.hashes.len().max(truth.hashes.len()) {
            let what = match (at(self, number), at(truth, number)) {
                (own, true_one) if own == true_one => continue,
                (0, _) => "is missing",
                (_, 0) => "should be gone",
                _ => "has another value",
            };
            count += 1;
            if words.len() < 3 {
                words.push(format!("{} {what}", keys.key(number)));
            }
        }
        format!("{count} entries differ: {}", words.join("; "))
    }
}

/// A fault that is planted on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// One value is changed after it was received.
    Corrupt,
    /// One deletion is ignored.
    DropDeletion,
}

#[derive(Default)]
pub struct Node {
    pub name: String,
    keys: Keys,
    pub state: State,
    /// When the newest change was due that was seen of a key: a smaller one later is time going backwards.
    marks: HashMap<usize, u64>,
    pub in_sync: bool,
    pub connected: bool,
    /// The stream of now has come to a consistent state.
    pub caught_up: bool,
    /// Why the last stream ended.
    pub lost: Option<String>,
    /// When the last change was received.
    pub changed: Option<Instant>,
    /// Messages with changes.
    pub messages: u64,
    pub updates: u64,
    pub deletions: u64,
    pub disconnects: u64,
    /// Of those, by a server that asked it to go to another one which it named.
    pub sent_on: u64,
    /// What must never happen.
    pub mistakes: Vec<String>,
    pub fault: Option<Fault>,
}

/// A value that a node received.
pub struct Received<'a> {
    pub key: &'a str,
    pub hash: u64,
    /// When the change was due, if it bears that.
    pub mark: Option<u64>,
}

/// An entry: its path, its encoded value and the hash of both; no value: it is gone.
struct Encoded<B> {
    key: Arc<str>,
    value: Option<(B, u64)>,
}

impl Encoded<Vec<u8>> {
    fn of(update: Update) -> Option<Self> {
        // What came over the wire, or was converted, has a path.
        let key: Arc<str> = update.key.path().ok()?.into();
        let value = update.value.ok().map(|value| {
            let bytes = proto::model::Value { kind: Some(value) }.encode_to_vec();
            let hash = hash(&key, &bytes);
            (bytes, hash)
        });
        Some(Encoded { key, value })
    }
}

impl Node {
    pub fn new(name: String, keys: Keys) -> Self {
        Node { name, keys, ..Node::default() }
    }

    /// Calls `seen` with every value.
    pub fn on_event(&mut self, event: ClientEvent, mut seen: impl FnMut(Received<'_>)) {
        match event {
            ClientEvent::Updates(updates) => {
                self.changed = Some(Instant::now());
                self.messages += 1;
                for update in updates {
                    match Encoded::of(update) {
                        Some(entry) => self.on_entry(entry, &mut seen),
                        None => self.mistake("an entry without a path was delivered".into()),
                    }
                }
            }
            ClientEvent::Raw(entries) => {
                self.changed = Some(Instant::now());
                self.messages += 1;
                for entry in entries {
                    let value = entry.value.map(|(value, hash)| (value, hash.max(1)));
                    self.on_entry(Encoded { key: entry.key, value }, &mut seen);
                }
            }
            ClientEvent::InSync if self.in_sync => self.mistake("in sync was announced twice".into()),
            ClientEvent::InSync => self.in_sync = true,
            ClientEvent::Disconnected { reason } => {
                // In the client's words, which operators read in logs.
                self.sent_on +=
                    u64::from(reason.contains("asks its clients to leave") && reason.contains(", for "));
                self.lost = Some(reason);
                self.connected = false;
                self.caught_up = false;
                self.disconnects += 1;
            }
            ClientEvent::Connected { .. } => self.connected = true,
            ClientEvent::Cut(_) => self.caught_up = true,
            ClientEvent::Secrets(_) => {}
        }
    }

    fn on_entry<B: AsRef<[u8]>>(&mut self, entry: Encoded<B>, seen: &mut impl FnMut(Received<'_>)) {
        self.updates += 1;
        let Encoded { key, value } = entry;
        let number = self.keys.number(&key);
        let Some((value, mut hash)) = value else {
            self.deletions += 1;
            if self.fault == Some(Fault::DropDeletion) {
                self.fault = None;
                return;
            }
            if self.state.set(number, 0) == 0 {
                self.mistake(format!("{} was deleted although it was never delivered", readable(&key)));
            }
            if !self.keys.may_be_gone(number, self.deletions) {
                self.mistake(format!(
                    "{} was deleted although the datastore has not deleted it",
                    readable(&key)
                ));
            }
            return;
        };
        let mark = mark(value.as_ref());
        if let Some(mark) = mark {
            let newest = self.marks.get(&number).copied().unwrap_or(0);
            if mark < newest {
                self.mistake(format!(
                    "{} went back from the change due at {newest} µs to that at {mark} µs",
                    readable(&key)
                ));
            }
            self.marks.insert(number, mark);
        }
        seen(Received { key: &key, hash, mark });
        if self.fault == Some(Fault::Corrupt) {
            self.fault = None;
            hash ^= 1 << 17;
        }
        if self.state.set(number, hash) == hash {
            self.mistake(format!("{} was delivered twice with the same value", readable(&key)));
        }
    }

    fn mistake(&mut self, what: String) {
        // The first say what is wrong; a million more would only fill the memory.
        if self.mistakes.len() < 10 {
            self.mistakes.push(what);
        }
    }
}

/// The mark in an encoded endpoint: the label, and after it tag and length of its value. In JSON: the label's value.
fn mark(value: &[u8]) -> Option<u64> {
    let rest = &value[memmem::find(value, MARK.as_bytes())? + MARK.len()..];
    if let Some(quoted) = rest.strip_prefix(b"\":\"") {
        let length = quoted.iter().position(|byte| *byte == b'"')?;
        return std::str::from_utf8(&quoted[..length]).ok()?.parse().ok();
    }
    let (_, length, digits) = (rest.first()?, *rest.get(1)?, &rest[2..]);
    std::str::from_utf8(digits.get(..usize::from(length))?).ok()?.parse().ok()
}

/// Never 0.
fn hash(key: &str, value: &[u8]) -> u64 {
    digest::hash(key, value).max(1)
}

#[cfg(test)]
mod tests {
    use proto::model::WorkloadEndpoint;
    use syncer_common::model::{Value, WorkloadEndpointKey};
    use typha_client::RawUpdate;

    use super::*;

    fn tier(name: &str, order: f64) -> Update {
        let value = proto::model::Tier { order: Some(order), default_action: "Deny".into() };
        Update::set(Key::Tier { name: name.into() }, Value::Tier(value))
    }

    fn gone(name: &str) -> Update {
        Update::delete(Key::Tier { name: name.into() })
    }

    fn endpoint(due: u64) -> Update {
        let key = WorkloadEndpointKey {
            host: "n".into(),
            orchestrator: "k8s".into(),
            workload: "w".into(),
            endpoint: "e".into(),
        };
        let labels = [(MARK.to_owned(), due.to_string())].into();
        let value = WorkloadEndpoint { labels, ..WorkloadEndpoint::default() };
        Update::set(Key::WorkloadEndpoint(key), Value::WorkloadEndpoint(value))
    }

    fn node(keys: &Keys, fault: Option<Fault>, updates: Vec<Update>) -> Node {
        let mut node = Node::new("n".into(), keys.clone());
        node.fault = fault;
        node.on_event(ClientEvent::Updates(updates), |_| {});
        node
    }

    #[test]
    fn the_digest_depends_on_the_state_only() {
        let keys = Keys::default();
        let straight = node(&keys, None, vec![tier("a", 1.0), tier("b", 2.0)]);
        let roundabout = vec![tier("b", 7.0), tier("c", 3.0), tier("b", 2.0), gone("c"), tier("a", 1.0)];
        let roundabout = node(&keys, None, roundabout);
        assert!(straight.state.same(&roundabout.state));
        assert!(roundabout.mistakes.is_empty(), "{:?}", roundabout.mistakes);
        assert_eq!((roundabout.updates, roundabout.deletions, roundabout.state.entries()), (5, 1, 2));
        let other = node(&keys, None, vec![tier("a", 1.0), tier("d", 3.0)]);
        assert!(!straight.state.same(&other.state));
        let words = other.state.differences(&straight.state, &keys);
        assert!(
            words.contains("2 entries") && words.contains("missing") && words.contains("gone"),
            "{words}"
        );
    }

    #[test]
    fn entries_that_are_not_read_count_as_those_that_are() {
        let keys = Keys::default();
        let updates = || vec![tier("a", 1.0), endpoint(5), tier("b", 2.0), gone("b")];
        let raw = updates().into_iter().map(|update| {
            let Encoded { key, value } = Encoded::of(update).expect("a path");
            RawUpdate { key, value: value.map(|(value, hash)| (value.into(), hash)) }
        });
        let mut node = Node::new("n".into(), keys.clone());
        let mut marks = Vec::new();
        node.on_event(ClientEvent::Raw(raw.collect()), |received| marks.extend(received.mark));
        assert!(node.state.same(&self::node(&keys, None, updates()).state));
        assert_eq!(marks, [5]);
        assert!(node.mistakes.is_empty(), "{:?}", node.mistakes);
    }

    #[test]
    fn marks_are_found_in_either_form_of_an_endpoint() {
        let update = endpoint(1_234_567);
        let Ok(value) = &update.value else { panic!("an endpoint") };
        let json = syncer_common::model::calico_json(value).expect("endpoints have a form in JSON");
        assert_eq!(mark(json.to_string().as_bytes()), Some(1_234_567));
        assert_eq!(Encoded::of(update).and_then(|entry| mark(&entry.value?.0)), Some(1_234_567));
        assert_eq!(mark(format!("{{\"{MARK}\":\"x\"}}").as_bytes()), None);
    }

    #[test]
    fn what_must_never_happen_is_noted() {
        let keys = Keys::default();
        assert_eq!(node(&keys, None, vec![tier("a", 1.0), tier("a", 1.0)]).mistakes.len(), 1);
        assert_eq!(node(&keys, None, vec![gone("a")]).mistakes.len(), 1);
        assert!(node(&keys, None, vec![endpoint(5), endpoint(9)]).mistakes.is_empty());
        let accounted = Keys::accounted();
        let falsely = node(&accounted, None, vec![tier("a", 1.0), gone("a")]).mistakes;
        assert!(falsely[0].contains("the datastore has not deleted it"), "{falsely:?}");
        accounted.delete(&[gone("a")]);
        assert!(node(&accounted, None, vec![tier("a", 1.0), gone("a")]).mistakes.is_empty());
        let again = vec![tier("a", 1.0), gone("a"), tier("a", 1.0), gone("a")];
        assert_eq!(node(&accounted, None, again).mistakes.len(), 1, "one deletion, told twice");
        let back = node(&keys, None, vec![endpoint(9), endpoint(5)]).mistakes;
        assert!(back[0].contains("went back"), "{back:?}");
        let mut twice = node(&keys, None, Vec::new());
        twice.on_event(ClientEvent::InSync, |_| {});
        twice.on_event(ClientEvent::InSync, |_| {});
        assert_eq!(twice.mistakes.len(), 1);
    }

    #[test]
    fn planted_faults_show_in_the_state() {
        let keys = Keys::default();
        let updates = || vec![tier("a", 1.0), tier("b", 1.0), gone("b")];
        let truth = node(&keys, None, updates());
        for fault in [Fault::Corrupt, Fault::DropDeletion] {
            let faulty = node(&keys, Some(fault), updates());
            assert!(!faulty.state.same(&truth.state), "{fault:?}");
        }
    }
}
