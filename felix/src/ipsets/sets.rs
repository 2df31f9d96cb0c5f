//! The driver of one family's IP sets.
//!
//! Holds what should be in the kernel and the difference to what is there, so that memory is one copy of each
//! member. The kernel is read at the start, at every refresh and after a failure; in between, what was written
//! is what is there. Writing order: creations and changes before any rule refers to them
//! ([`IpSets::apply_updates`]), deletions when no rule refers to them any more ([`IpSets::apply_deletions`]).
//! A set that cannot be written does not keep the others from being written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use felix_calc::output::IpSetKind;

use super::parse::{KernelSet, SetReader, owned_sizes};
use super::{Member, kernel_name, render, temporary_prefix};
use crate::commands::{CommandError, Commands};
use crate::drift;
use crate::iptables::IpVersion;
use crate::metrics;

/// Destroying a set costs the kernel tens of milliseconds: a pass does a few, the next pass goes on.
const DELETIONS_PER_PASS: usize = 4;
/// Written at once: text, some 40 bytes a line, is held for one part at a time.
const BATCH_LINES: usize = 20_000;
/// Looking for changes by others may take at most one part in so many of the time.
const LOAD_SHARE: u32 = 100;

#[derive(Debug)]
struct Set {
    kind: IpSetKind,
    members: BTreeSet<Member>,
    pending: Pending,
}

impl Set {
    /// How many lines its pending work takes, nearly.
    fn lines(&self) -> usize {
        match &self.pending {
            Pending::Create | Pending::Swap | Pending::Recreate => self.members.len() + 1,
            Pending::Change { add, remove } => add.len() + remove.len(),
        }
    }
}

/// What is still missing in the kernel.
#[derive(Debug, PartialEq, Eq)]
enum Pending {
    /// Not there: create it and fill it.
    Create,
    /// There with other parameters or unreadable: fill another one and let it take the place.
    Swap,
    /// There with another type, which the kernel does not swap: it goes first.
    Recreate,
    Change {
        add: BTreeSet<Member>,
        remove: BTreeSet<Member>,
    },
}

impl Pending {
    fn nothing() -> Pending {
        Pending::Change { add: BTreeSet::new(), remove: BTreeSet::new() }
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Pending::Change { add, remove } if add.is_empty() && remove.is_empty())
    }
}

#[derive(Debug)]
struct Doomed {
    kind: Option<IpSetKind>,
    members: BTreeSet<Member>,
}

/// What a reading of the kernel has shown so far.
#[derive(Default)]
struct Found {
    /// Of the wanted sets that are there.
    pending: BTreeMap<String, Pending>,
    doomed: BTreeMap<String, Doomed>,
}

impl Found {
    fn set(&mut self, sets: &IpSets, name: String, held: KernelSet) {
        if let Some(set) = sets.sets.get(&name) {
            let pending = sets.lack(set, held);
            self.pending.insert(name, pending);
        } else {
            let kind = held.members.is_some().then_some(held.header.kind).flatten();
            self.doomed.insert(name, Doomed { kind, members: held.members.unwrap_or_default() });
        }
    }
}

pub struct IpSets {
    version: IpVersion,
    commands: Arc<dyn Commands>,
    max_size: u32,
    sets: BTreeMap<String, Set>,
    dirty: BTreeSet<String>,
    /// In the kernel and not wanted; with what it held, as far as we know.
    doomed: BTreeMap<String, Doomed>,
    /// Deletions that the kernel refused; tried again after the next resync.
    refused: BTreeSet<String>,
    resync: bool,
    /// The kernel was read before: what differs at the next read is somebody else's work.
    seen: bool,
    /// To be compared by number of members.
    suspected: bool,
    /// When the kernel was read last, and how long that took.
    read_at: Instant,
    read_cost: Duration,
    /// After a failure each set is written on its own, to find the one that fails.
    isolate: bool,
}

impl IpSets {
    pub fn new(version: IpVersion, commands: Arc<dyn Commands>, max_size: u32) -> IpSets {
        IpSets {
            version,
            commands,
            max_size,
            sets: BTreeMap::new(),
            dirty: BTreeSet::new(),
            doomed: BTreeMap::new(),
            refused: BTreeSet::new(),
            resync: true,
            seen: false,
            suspected: false,
            read_at: Instant::now(),
            read_cost: Duration::ZERO,
            isolate: false,
        }
    }

    // === desired state ===

    /// The whole content of a set; members of the other family are left out.
    pub fn replace<'a>(&mut self, id: &str, kind: IpSetKind, members: impl IntoIterator<Item = &'a str>) {
        let members = self.read(id, kind, members);
        let name = kernel_name(self.version, id);
        let in_kernel = match (self.sets.remove(&name), self.doomed.remove(&name)) {
            (Some(set), _) => self.known(set),
            (None, Some(Doomed { kind: Some(kind), members })) => Some((kind, members)),
            (None, Some(_)) => {
                self.resync = true;
                None
            }
            (None, None) => None,
        };
        self.refused.remove(&name);
        let pending = match in_kernel {
            None => Pending::Create,
            Some((was, _)) if was != kind => Pending::Recreate,
            Some((_, held)) => difference(&members, &held),
        };
        if !pending.is_nothing() {
            self.dirty.insert(name.clone());
        }
        self.sets.insert(name, Set { kind, members, pending });
    }

    pub fn change<'a>(
        &mut self,
        id: &str,
        added: impl IntoIterator<Item = &'a str>,
        removed: impl IntoIterator<Item = &'a str>,
    ) {
        let name = kernel_name(self.version, id);
        let Some(kind) = self.sets.get(&name).map(|set| set.kind) else {
            tracing::error!(set = name, "change of a set that was never created");
            return;
        };
        let (added, removed) = (self.read(id, kind, added), self.read(id, kind, removed));
        let Some(set) = self.sets.get_mut(&name) else { return };
        for member in removed {
            if set.members.remove(&member)
                && let Pending::Change { add, remove } = &mut set.pending
                && !add.remove(&member)
            {
                remove.insert(member);
            }
        }
        for member in added {
            if set.members.insert(member)
                && let Pending::Change { add, remove } = &mut set.pending
                && !remove.remove(&member)
            {
                add.insert(member);
            }
        }
        if !set.pending.is_nothing() {
            self.dirty.insert(name);
        }
    }

    pub fn remove(&mut self, id: &str) {
        let name = kernel_name(self.version, id);
        self.dirty.remove(&name);
        let Some(set) = self.sets.remove(&name) else { return };
        if let Some((kind, members)) = self.known(set) {
            self.doomed.insert(name, Doomed { kind: Some(kind), members });
        }
    }

    /// Applies to sets created from now on; existing ones follow at the next resync.
    pub fn set_max_size(&mut self, max_size: u32) {
        if self.max_size != max_size {
            self.max_size = max_size;
            self.resync = true;
        }
    }

    /// What the kernel holds under a set's name, as far as we know; if it has to be read, that is queued.
    fn known(&mut self, set: Set) -> Option<(IpSetKind, BTreeSet<Member>)> {
        match set.pending {
            Pending::Create => None,
            Pending::Swap | Pending::Recreate => {
                self.resync = true;
                None
            }
            Pending::Change { add, remove } => {
                let mut held = set.members;
                held.retain(|member| !add.contains(member));
                held.extend(remove);
                Some((set.kind, held))
            }
        }
    }

    fn read<'a>(
        &self,
        id: &str,
        kind: IpSetKind,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> BTreeSet<Member> {
        let mut members = BTreeSet::new();
        for text in texts {
            match Member::parse(kind, text) {
                Some(read) => {
                    members.extend(read.into_iter().filter(|member| member.version() == self.version))
                }
                // Each family reads all members; one of them reports.
                None if self.version == IpVersion::V4 => {
                    tracing::warn!(
                        set = id,
                        member = text,
                        reason = "not an address of the set's type",
                        "set member left out"
                    );
                    metrics::ipset_error();
                }
                None => {}
            }
        }
        members
    }

    /// Names and members as they should be, for printing.
    pub fn wanted(&self) -> impl Iterator<Item = (&str, IpSetKind, &BTreeSet<Member>)> {
        self.sets.iter().map(|(name, set)| (name.as_str(), set.kind, &set.members))
    }

    pub fn holds(&self, id: &str, member: &Member) -> bool {
        self.sets.get(&kernel_name(self.version, id)).is_some_and(|set| set.members.contains(member))
    }

    // === kernel ===

    /// Reads the kernel again at the next pass.
    pub fn queue_resync(&mut self) {
        self.resync = true;
    }

    /// Looks for changes by others at the next pass: at members where reading them is cheap, else at their
    /// number.
    pub fn suspect(&mut self) {
        self.resync |= self.read_at.elapsed() > self.read_cost * LOAD_SHARE;
        self.suspected = true;
    }

    pub fn has_updates(&self) -> bool {
        self.resync || self.suspected || !self.dirty.is_empty()
    }

    pub fn has_deletions(&self) -> bool {
        self.doomed.keys().any(|name| !self.refused.contains(name))
    }

    /// Creates and changes. Returns how many lines were written.
    pub async fn apply_updates(&mut self) -> Result<usize, CommandError> {
        if std::mem::take(&mut self.suspected) && !self.resync {
            let listed = self.run(&["list", "-terse"], "").await?;
            self.resync = !self.has_sizes(&owned_sizes(self.version, &listed));
        }
        if self.resync {
            self.read_at = Instant::now();
            self.compare().await?;
            self.read_cost = self.read_at.elapsed();
            self.resync = false;
        }
        let (mut lines, mut failure) = (0, None);
        for names in self.batches() {
            let text = self.restore_text(&names);
            match self.run(&["restore"], &text).await {
                Ok(_) => {
                    lines += text.lines().count();
                    self.written(&names);
                }
                Err(error) => {
                    metrics::ipset_error();
                    tracing::warn!(sets = ?names, %error, "ip sets could not be written; reading the kernel again");
                    failure = Some(error);
                }
            }
        }
        metrics::ipset_lines(lines);
        self.isolate = failure.is_some();
        match failure {
            Some(error) => {
                self.resync = true;
                Err(error)
            }
            None => Ok(lines),
        }
    }

    /// Deletes a few sets that nothing should refer to any more. Returns how many went.
    pub async fn apply_deletions(&mut self) -> usize {
        let names: Vec<String> = self
            .doomed
            .keys()
            .filter(|name| !self.refused.contains(*name))
            .take(DELETIONS_PER_PASS)
            .cloned()
            .collect();
        let mut deleted = 0;
        for name in names {
            match self.run(&["destroy", &name], "").await {
                Ok(_) => {
                    self.doomed.remove(&name);
                    deleted += 1;
                }
                Err(error) => {
                    tracing::warn!(set = name, %error, "ip set could not be deleted; trying again after the next refresh");
                    metrics::ipset_error();
                    self.refused.insert(name);
                }
            }
        }
        deleted
    }

    /// Whether all sets without pending work have as many members as we left, and there is none but ours.
    fn has_sizes(&self, kernel: &BTreeMap<String, usize>) -> bool {
        let settled = |(name, set): (&String, &Set)| {
            !set.pending.is_nothing() || kernel.get(name) == Some(&set.members.len())
        };
        let known = |name: &String| self.sets.contains_key(name) || self.doomed.contains_key(name);
        self.sets.iter().all(settled) && kernel.keys().all(known)
    }

    /// The sets to write, in the parts that are written at once.
    fn batches(&self) -> Vec<Vec<String>> {
        let mut batches: Vec<Vec<String>> = Vec::new();
        let mut room = 0;
        for name in &self.dirty {
            let lines = self.sets.get(name).map_or(0, Set::lines);
            match batches.last_mut() {
                Some(batch) if lines <= room && !self.isolate => batch.push(name.clone()),
                _ => {
                    batches.push(vec![name.clone()]);
                    room = BATCH_LINES;
                }
            }
            room = room.saturating_sub(lines);
        }
        batches
    }

    /// Reads the kernel, each set as it comes, and sets the pending work from what it holds.
    async fn compare(&mut self) -> Result<(), CommandError> {
        let mut reader = SetReader::new(self.version);
        let mut found = Found::default();
        metrics::ipset_call();
        let mut line = |line: &str| {
            if let Some((name, set)) = reader.line(line) {
                found.set(self, name, set);
            }
        };
        self.commands.lines("ipset", &["save"], "", &mut line).await?;
        if let Some((name, set)) = reader.finish() {
            found.set(self, name, set);
        }
        let Found { mut pending, doomed } = found;
        self.dirty.clear();
        self.refused.clear();
        let mut changes = Vec::new();
        for (name, set) in &mut self.sets {
            let settled = set.pending.is_nothing();
            set.pending = pending.remove(name).unwrap_or(Pending::Create);
            if !set.pending.is_nothing() {
                self.dirty.insert(name.clone());
            }
            match &set.pending {
                Pending::Create if settled => changes.push((name.clone(), "removed")),
                Pending::Recreate if settled => changes.push((name.clone(), "of another type")),
                Pending::Change { add, remove } if settled && !set.pending.is_nothing() => {
                    let named = |(member, change)| (format!("{name} {member}"), change);
                    changes.extend(add.iter().map(|member| named((member, "removed"))));
                    changes.extend(remove.iter().map(|member| named((member, "added"))));
                }
                // Its parameters: ours may have changed.
                _ => {}
            }
        }
        let unknown = doomed.keys().filter(|name| !self.doomed.contains_key(*name));
        changes.extend(unknown.map(|name| (name.clone(), "added")));
        if std::mem::replace(&mut self.seen, true) {
            drift::report("set", changes);
        }
        self.doomed = doomed;
        Ok(())
    }

    /// What a wanted set lacks, given what the kernel holds under its name.
    fn lack(&self, set: &Set, held: KernelSet) -> Pending {
        let header = held.header;
        let right = header.family == render::family(self.version) && header.max_size == self.max_size;
        match held.members {
            _ if header.kind != Some(set.kind) => Pending::Recreate,
            Some(held) if right => difference(&set.members, &held),
            _ => Pending::Swap,
        }
    }

    fn restore_text(&self, names: &[String]) -> String {
        let mut text = String::new();
        let mut temporaries = (0usize..)
            .map(|n| format!("{}{n}", temporary_prefix(self.version)))
            .filter(|name| !self.doomed.contains_key(name));
        for (name, set) in names.iter().filter_map(|name| Some((name, self.sets.get(name)?))) {
            let mut create = |name: &str| {
                render::create(&mut text, name, set.kind, self.version, self.max_size);
                render::change(&mut text, name, std::iter::empty(), set.members.iter());
            };
            match &set.pending {
                Pending::Create => create(name),
                Pending::Recreate => {
                    render::destroy(&mut text, name);
                    render::create(&mut text, name, set.kind, self.version, self.max_size);
                    render::change(&mut text, name, std::iter::empty(), set.members.iter());
                }
                Pending::Swap => {
                    let temporary = temporaries.next().expect("the numbers never end");
                    create(&temporary);
                    render::swap(&mut text, &temporary, name);
                    render::destroy(&mut text, &temporary);
                }
                Pending::Change { add, remove } => render::change(&mut text, name, remove.iter(), add.iter()),
            }
        }
        text
    }

    fn written(&mut self, names: &[String]) {
        for name in names {
            self.dirty.remove(name);
            if let Some(set) = self.sets.get_mut(name) {
                set.pending = Pending::nothing();
            }
        }
    }

    async fn run(&self, args: &[&str], stdin: &str) -> Result<String, CommandError> {
        metrics::ipset_call();
        self.commands.run("ipset", args, stdin).await
    }
}

fn difference(wanted: &BTreeSet<Member>, held: &BTreeSet<Member>) -> Pending {
    Pending::Change {
        add: wanted.difference(held).copied().collect(),
        remove: held.difference(wanted).copied().collect(),
    }
}

#[cfg(test)]
mod tests;
