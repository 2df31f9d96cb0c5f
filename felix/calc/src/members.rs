//! Members of IP sets: every endpoint and network set of the cluster × the selectors of active rules.
//!
//! Sets with the same selector form a group, which the label index fills with one evaluation. Members are
//! counted, because addresses may be shared: one stays until its last owner stops matching. Sets are
//! counted too, by the policies and profiles that refer to them; one that nobody needs any more goes at
//! the next flush, so that a change of rules which keeps a selector does not touch its set.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sha2::{Digest as _, Sha256};
use slab::Slab;
use syncer_common::labelindex::{LabelIndex, MatchEvent};
use syncer_common::model::Key;
use syncer_common::selector::Selector;

use crate::ip_set::{IpSetDef, IpSetSource, ServiceName};
use crate::item::{Contribution, Entry, Member};
use crate::output::Output;

/// Stands for a key, at a fraction of its size: there is one for every endpoint of the cluster.
type Identity = [u8; 16];

/// A place in `contributions`.
type ItemId = u32;
type GroupId = u32;

#[derive(Default)]
pub(crate) struct Members {
    index: LabelIndex<ItemId, GroupId>,
    item_ids: HashMap<Identity, ItemId>,
    contributions: Slab<Contribution>,
    groups: BTreeMap<GroupId, Group>,
    next_group: GroupId,
    by_selector: HashMap<Selector, GroupId>,
    by_service: HashMap<ServiceName, GroupId>,
    /// What each slice brings to its service.
    slices: BTreeMap<Key, (ServiceName, Contribution)>,
    by_set: HashMap<String, GroupId>,
    /// Groups with anything to tell at the next flush.
    dirty: BTreeSet<GroupId>,
}

struct Group {
    filled_by: FilledBy,
    sets: Vec<IpSet>,
}

#[derive(Clone)]
enum FilledBy {
    Selector(Selector),
    Service(ServiceName),
}

struct IpSet {
    id: String,
    source: IpSetSource,
    users: usize,
    sent: bool,
    /// How many endpoints bring each member.
    counts: HashMap<Member, u32>,
    /// Members whose presence differs from what was sent.
    changed: HashSet<Member>,
}

/// What changed since the last flush, by place in the order of outputs.
#[derive(Default)]
pub(crate) struct SetChanges {
    pub added: Vec<Output>,
    pub deltas: Vec<Output>,
    pub removed: Vec<Output>,
}

impl Members {
    /// An endpoint or network set; `None` removes it.
    pub fn set_item(&mut self, key: &Key, entry: Option<Entry>) {
        let key = identity(key);
        let Some(Entry { contribution, labels, profiles }) = entry else {
            if let Some(id) = self.item_ids.remove(&key) {
                let events = self.index.delete_item(&id);
                self.apply(events);
                self.contributions.remove(id as usize);
            }
            return;
        };
        let id = match self.item_ids.get(&key) {
            Some(&id) => {
                self.replace_contribution(id, contribution);
                id
            }
            None => {
                let place = self.contributions.insert(contribution);
                let id = ItemId::try_from(place).expect("fewer than 2^32 items are there");
                self.item_ids.insert(key, id);
                id
            }
        };
        let events = self.index.update_item(id, labels, profiles);
        self.apply(events);
    }

    pub fn set_profile_labels(&mut self, profile: &str, labels: Option<BTreeMap<String, String>>) {
        let events = match labels {
            Some(labels) => self.index.update_parent(profile, labels),
            None => self.index.delete_parent(profile),
        };
        self.apply(events);
    }

    /// A slice of a service's endpoints; `None` removes it.
    pub fn set_slice(&mut self, key: Key, slice: Option<(ServiceName, Contribution)>) {
        if self.slices.get(&key) == slice.as_ref() {
            return;
        }
        // What stays is added before it is removed, so that it is never gone.
        if let Some((service, contribution)) = &slice {
            self.fill(service, |set| set.add(contribution));
        }
        let old = match slice {
            Some(slice) => self.slices.insert(key, slice),
            None => self.slices.remove(&key),
        };
        if let Some((service, contribution)) = old {
            self.fill(&service, |set| set.remove(&contribution));
        }
    }

    fn fill(&mut self, service: &ServiceName, change: impl Fn(&mut IpSet)) {
        let Some(id) = self.by_service.get(service) else { return };
        if let Some(group) = self.groups.get_mut(id) {
            group.sets.iter_mut().for_each(change);
            self.dirty.insert(*id);
        }
    }

    /// One more policy or profile needs this set.
    pub fn acquire(&mut self, def: &IpSetDef) {
        if let Some(group) = self.by_set.get(&def.id) {
            if let Some(set) = self.groups.get_mut(group).and_then(|group| group.set(&def.id)) {
                set.users += 1;
            }
            return;
        }
        let id = self.group_of(match &def.source {
            IpSetSource::Selector(selector) | IpSetSource::NamedPort { selector, .. } => {
                FilledBy::Selector(selector.clone())
            }
            IpSetSource::Service { service, .. } => FilledBy::Service(service.clone()),
        });
        let mut set = IpSet {
            id: def.id.clone(),
            source: def.source.clone(),
            users: 1,
            sent: false,
            counts: HashMap::new(),
            changed: HashSet::new(),
        };
        for item in self.index.items_matching(&id) {
            set.add(&self.contributions[*item as usize]);
        }
        if let IpSetSource::Service { service, .. } = &def.source {
            let slices = self.slices.values().filter(|(of, _)| of == service);
            slices.for_each(|(_, contribution)| set.add(contribution));
        }
        self.by_set.insert(def.id.clone(), id);
        self.groups.entry(id).and_modify(|group| group.sets.push(set));
        self.dirty.insert(id);
    }

    /// One policy or profile less needs this set.
    pub fn release(&mut self, id: &str) {
        let Some(group) = self.by_set.get(id) else { return };
        if let Some(set) = self.groups.get_mut(group).and_then(|group| group.set(id)) {
            set.users -= 1;
            self.dirty.insert(*group);
        }
    }

    pub fn flush(&mut self) -> SetChanges {
        let mut changes = SetChanges::default();
        for id in std::mem::take(&mut self.dirty) {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            let by_set = &mut self.by_set;
            group.sets.retain_mut(|set| {
                let needed = set.users > 0;
                if needed {
                    set.flush(&mut changes);
                } else {
                    by_set.remove(&set.id);
                    if set.sent {
                        changes.removed.push(Output::IpSetRemove { id: std::mem::take(&mut set.id) });
                    }
                }
                needed
            });
            if group.sets.is_empty() {
                self.remove_group(id);
            }
        }
        changes
    }

    pub fn selectors(&self) -> usize {
        self.by_selector.len()
    }

    fn group_of(&mut self, filled_by: FilledBy) -> GroupId {
        let known = match &filled_by {
            FilledBy::Selector(selector) => self.by_selector.get(selector),
            FilledBy::Service(service) => self.by_service.get(service),
        };
        if let Some(id) = known {
            return *id;
        }
        let id = self.next_group;
        self.next_group += 1;
        self.groups.insert(id, Group { filled_by: filled_by.clone(), sets: Vec::new() });
        match filled_by {
            FilledBy::Selector(selector) => {
                self.by_selector.insert(selector.clone(), id);
                let events = self.index.update_selector(id, selector);
                self.apply(events);
            }
            FilledBy::Service(service) => {
                self.by_service.insert(service, id);
            }
        }
        id
    }

    fn remove_group(&mut self, id: GroupId) {
        let Some(group) = self.groups.remove(&id) else { return };
        match group.filled_by {
            FilledBy::Selector(selector) => {
                self.by_selector.remove(&selector);
                let events = self.index.delete_selector(&id);
                self.apply(events);
            }
            FilledBy::Service(service) => {
                self.by_service.remove(&service);
            }
        }
    }

    fn replace_contribution(&mut self, id: ItemId, contribution: Contribution) {
        let held = &mut self.contributions[id as usize];
        if *held == contribution {
            return;
        }
        let old = std::mem::replace(held, contribution);
        for id in self.index.selectors_matching(&id) {
            let Some(group) = self.groups.get_mut(id) else { continue };
            for set in &mut group.sets {
                set.add(held);
                set.remove(&old);
            }
            self.dirty.insert(*id);
        }
    }

    fn apply(&mut self, events: Vec<MatchEvent<ItemId, GroupId>>) {
        for event in events {
            let (MatchEvent::Started { item, selector } | MatchEvent::Stopped { item, selector }) = &event;
            let Some(group) = self.groups.get_mut(selector) else { continue };
            let contribution = &self.contributions[*item as usize];
            for set in &mut group.sets {
                match event {
                    MatchEvent::Started { .. } => set.add(contribution),
                    MatchEvent::Stopped { .. } => set.remove(contribution),
                }
            }
            self.dirty.insert(*selector);
        }
    }
}

impl Group {
    fn set(&mut self, id: &str) -> Option<&mut IpSet> {
        self.sets.iter_mut().find(|set| set.id == id)
    }
}

impl IpSet {
    fn add(&mut self, contribution: &Contribution) {
        for member in contribution.members(&self.source) {
            let count = self.counts.entry(member).or_insert(0);
            *count += 1;
            if *count == 1 {
                toggle(&mut self.changed, member);
            }
        }
    }

    fn remove(&mut self, contribution: &Contribution) {
        for member in contribution.members(&self.source) {
            let count = self.counts.get_mut(&member).expect("a member is removed as often as it was added");
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&member);
                toggle(&mut self.changed, member);
            }
        }
    }

    fn flush(&mut self, changes: &mut SetChanges) {
        let changed = std::mem::take(&mut self.changed);
        if !self.sent {
            self.sent = true;
            changes.added.push(Output::IpSetUpdate {
                id: self.id.clone(),
                kind: self.source.kind(),
                members: self.counts.keys().map(Member::to_string).collect(),
            });
        } else if !changed.is_empty() {
            let mut changed: Vec<_> = changed.into_iter().collect();
            changed.sort_unstable();
            let text = |members: Vec<Member>| members.iter().map(Member::to_string).collect();
            let (added, removed) = changed.into_iter().partition(|member| self.counts.contains_key(member));
            let (added, removed) = (text(added), text(removed));
            changes.deltas.push(Output::IpSetDelta { id: self.id.clone(), added, removed });
        }
    }
}

/// The first half of the SHA-256 of the key's path: no two keys of a cluster have the same.
fn identity(key: &Key) -> Identity {
    let path = key.path().unwrap_or_else(|_| format!("{key:?}"));
    let digest = Sha256::digest(path);
    digest.first_chunk().copied().expect("a digest of 32 bytes has 16")
}

/// A member that comes and goes between two flushes did not change.
fn toggle(changed: &mut HashSet<Member>, member: Member) {
    if !changed.remove(&member) {
        changed.insert(member);
    }
}
