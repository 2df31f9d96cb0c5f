//! The driver of one table: wanted chains in, one transaction with the difference out.
//!
//! Chains are offered by owners; only those that a kernel chain reaches (or that are marked as always needed) are
//! programmed. Before each change the kernel is read, because others write there, too; with the nft backend
//! the read is saved when the generation says that nobody else wrote since. After a failure the kernel is read
//! again and the write repeated, with growing pauses. A chain that the kernel keeps refusing is closed (a single
//! DROP) and reported, so that the rest of the table can be written.

use std::collections::BTreeMap;
use std::time::Duration;

use super::audit::Left;
use super::chains::{ChainSet, Owner};
use super::parse::{SavedRule, SavedTable};
use super::plan::{Hooks, Plan, Wanted, WantedChain, plan};
use super::restore::{Iptables, TableError};
use super::{Backend, Chain, InsertMode, Rule, TableName};
use crate::commands::CommandError;
use crate::metrics;

/// Attempts within one pass; the pass itself is repeated by the event loop.
const ATTEMPTS: u32 = 6;
/// Attempts after which a chain that the kernel names as the culprit is closed.
const ATTEMPTS_BEFORE_CLOSING: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(2);

pub struct Table {
    iptables: Iptables,
    name: TableName,
    desired: ChainSet,
    /// Chains that the kernel refused: what stands in their place, and why.
    closed: BTreeMap<String, (WantedChain, String)>,
    /// What the kernel holds, and the generation at which that was true.
    saved: Option<SavedTable>,
    saved_at: Option<u32>,
    /// What our last write or check left there: what differs at the next read is somebody else's work.
    left: Option<Left>,
    dirty: bool,
}

/// What one application did to a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub lines: usize,
    /// From which generation to which, when ours were the only commits.
    pub moved: Option<(u32, u32)>,
}

impl Applied {
    fn moved(&mut self, from: u32, to: u32) {
        // A gap means that somebody else wrote in between.
        let first = self.moved.filter(|(_, until)| *until == from).map_or(from, |(first, _)| first);
        self.moved = Some((first, to));
    }
}

impl Table {
    pub fn new(iptables: Iptables, name: TableName) -> Table {
        Table {
            iptables,
            name,
            desired: ChainSet::default(),
            closed: BTreeMap::new(),
            saved: None,
            saved_at: None,
            left: None,
            dirty: true,
        }
    }

    pub fn name(&self) -> TableName {
        self.name
    }

    // === desired state ===

    /// All chains of an owner; none: the owner is gone.
    pub fn offer(&mut self, owner: Owner, chains: Vec<Chain>, always_needed: bool) {
        let changed = self.desired.offer(owner, chains, always_needed);
        for name in &changed {
            self.closed.remove(name);
        }
        self.dirty |= !changed.is_empty();
    }

    /// Our rules in chains of the kernel.
    pub fn set_hooks(&mut self, mode: InsertMode, hooks: BTreeMap<String, Hooks>) {
        self.dirty |= self.desired.set_hooks(mode, hooks);
    }

    /// The chains to program, by name; a stand-in for those that are closed.
    pub fn wanted(&self) -> BTreeMap<&str, &WantedChain> {
        wanted(&self.desired, &self.closed)
    }

    pub fn closed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.closed.iter().map(|(name, (_, reason))| (name.as_str(), reason.as_str()))
    }

    // === kernel ===

    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Nobody wrote since we last knew what is in the kernel.
    pub fn is_certain(&self, generation: Option<u32>) -> bool {
        self.saved.is_some() && self.saved_at.is_some() && self.saved_at == generation
    }

    /// What is in the kernel may be otherwise: it is read at the next pass.
    pub fn suspect(&mut self) {
        self.saved = None;
        self.saved_at = None;
        self.dirty = true;
    }

    /// The regular full check.
    pub fn forget(&mut self) {
        self.suspect();
        self.lift();
    }

    /// Tries closed chains again: what they lacked may be there now.
    pub fn lift(&mut self) {
        self.dirty |= !self.closed.is_empty();
        self.closed.clear();
    }

    /// Another table of ours moved the generation, alone.
    pub fn generation_moved(&mut self, from: u32, to: u32) {
        if self.saved_at == Some(from) {
            self.saved_at = Some(to);
        }
    }

    /// Makes the kernel's table as wanted.
    pub async fn apply(&mut self, generation: impl Fn() -> Option<u32>) -> Result<Applied, TableError> {
        let mut applied = Applied::default();
        let mut pause = FIRST_PAUSE;
        let mut last_error = None;
        for attempt in 0..ATTEMPTS {
            match self.attempt(&generation, &mut applied).await {
                Ok(true) => {
                    self.dirty = false;
                    return Ok(applied);
                }
                Ok(false) => {}
                Err((error, culprit)) => {
                    self.saved = None;
                    self.saved_at = None;
                    self.left = None;
                    applied.moved = None;
                    tracing::warn!(table = self.name.name(), attempt, %error, "table could not be written; reading it again");
                    if attempt + 1 >= ATTEMPTS_BEFORE_CLOSING {
                        self.close(culprit, &error);
                    }
                    last_error = Some(error);
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
        self.dirty = true;
        Err(last_error.unwrap_or_else(|| TableError::Contended { table: self.name.name() }))
    }

    /// One read, comparison and write. `true`: the table is as wanted.
    async fn attempt(
        &mut self,
        generation: &impl Fn() -> Option<u32>,
        applied: &mut Applied,
    ) -> Result<bool, (TableError, Option<String>)> {
        let certain = self.is_certain(generation());
        if !certain {
            let before = generation();
            let saved = self.iptables.save(self.name).await.map_err(|error| (error, None))?;
            if let Some(left) = &self.left {
                left.audit(&format!("{:?} {}", self.iptables.version, self.name.name()), &saved);
            }
            self.saved = Some(saved);
            self.saved_at = before;
        }
        let before = self.saved_at;
        let mut saved = self.saved.take().unwrap_or_default();
        let (hooks, mode) = (self.desired.hooks(), self.desired.mode());
        let wanted = Wanted {
            table: self.name,
            backend: self.iptables.backend,
            mode,
            // Not cheap where there are many: once.
            chains: wanted(&self.desired, &self.closed),
            hooks,
        };
        let plan = plan(&wanted, &saved);
        let report = |lines| {
            let rules = wanted.chains.values().map(|chain| chain.hashes.len()).sum();
            metrics::table(self.iptables.version, self.name, wanted.chains.len(), rules, lines);
        };
        if plan.is_empty() {
            report(0);
            self.saved = Some(saved);
            if self.left.is_none() {
                self.left = Some(Left::new(&wanted.chains, hooks, mode));
            }
            return Ok(true);
        }
        tracing::debug!(table = self.name.name(), chains = ?plan.rewritten, removed = ?plan.removed, hooks = plan.hooks_changed, "writing table");
        tracing::trace!(table = self.name.name(), text = plan.text, "iptables-restore input");
        if let Err(error) = self.iptables.restore(&plan.text).await {
            let culprit = culprit(&error, &plan.text);
            return Err((error, culprit));
        }
        let lines = plan.text.lines().count();
        report(lines);
        applied.lines += lines;
        match &mut self.left {
            // What is not rewritten is as it was left before.
            Some(left) if certain => left.rewrite(&wanted, &plan),
            left => *left = Some(Left::new(&wanted.chains, hooks, mode)),
        }
        match (before, generation()) {
            (Some(from), Some(to)) if to == from.wrapping_add(plan.commits) && !plan.hooks_changed => {
                // Ours were the only commits: what is there now is what was there, and what we wrote.
                expect(&mut saved, &wanted, &plan);
                self.saved = Some(saved);
                self.saved_at = Some(to);
                applied.moved(from, to);
                Ok(true)
            }
            // The kernel's spelling of our hooks is needed later, or somebody else wrote: look at once.
            (Some(from), Some(to)) => {
                match to == from.wrapping_add(plan.commits) {
                    true => applied.moved(from, to),
                    false => applied.moved = None,
                }
                self.saved_at = None;
                Ok(false)
            }
            // No generation to ask: the regular check looks.
            _ => Ok(true),
        }
    }

    fn close(&mut self, culprit: Option<String>, error: &TableError) {
        let Some(name) =
            culprit.filter(|name| self.desired.contains(name) && !self.closed.contains_key(name))
        else {
            return;
        };
        tracing::error!(table = self.name.name(), chain = name, %error, "the kernel refuses this chain; it is closed until it changes");
        let comments = vec!["Refused by the kernel".into()];
        let rules = match self.name {
            // The kernel does not let the nat table drop.
            TableName::Nat => Vec::new(),
            _ => vec![Rule { action: "--jump DROP".into(), comments, ..Rule::default() }],
        };
        let stand_in = WantedChain::new(Chain { name: name.clone(), rules });
        self.closed.insert(name, (stand_in, error.to_string()));
    }

    pub fn backend(&self) -> Backend {
        self.iptables.backend
    }
}

fn wanted<'a>(
    desired: &'a ChainSet,
    closed: &'a BTreeMap<String, (WantedChain, String)>,
) -> BTreeMap<&'a str, &'a WantedChain> {
    let mut wanted = desired.wanted();
    for (name, (stand_in, _)) in closed {
        if let Some(chain) = wanted.get_mut(name.as_str()) {
            *chain = stand_in;
        }
    }
    wanted
}

/// What was there becomes what is there after the plan.
fn expect(saved: &mut SavedTable, wanted: &Wanted<'_>, plan: &Plan) {
    for name in &plan.removed {
        saved.chains.remove(name);
    }
    for name in &plan.rewritten {
        if let Some(wanted) = wanted.chains.get(name.as_str()) {
            let rules = wanted.hashes.iter().map(|id| SavedRule { hash: Some(*id), text: Box::default() });
            saved.chains.entry(name.clone()).or_default().rules = rules.collect();
        }
    }
}

/// The chain that `iptables-restore` complained about, from the line or the chain that it names.
fn culprit(error: &TableError, text: &str) -> Option<String> {
    let TableError::Write(CommandError::Failed { stderr, .. }) = error else { return None };
    if let Some((_, rest)) = stderr.split_once("rule in chain ") {
        return rest.split_whitespace().next().map(str::to_owned);
    }
    let number = stderr.to_ascii_lowercase();
    let at = number.find("line")? + "line".len();
    let digits: String =
        number[at..].chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    let line = text.lines().nth(digits.parse::<usize>().ok()?.checked_sub(1)?)?;
    let mut words = line.split_whitespace();
    matches!(words.next()?, "-A" | "-R" | "-I").then(|| words.next().map(str::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_culprit_is_found_by_line_and_by_name() {
        let text = "*filter\n:cali-x - -\n-A cali-x -j NONSENSE\nCOMMIT\n";
        let failed = |stderr: &str| {
            TableError::Write(CommandError::Failed { command: "r".into(), status: 2, stderr: stderr.into() })
        };
        for stderr in [
            "iptables-restore v1.8.9 (legacy): Couldn't load target `NONSENSE'\n\nError occurred at line: 3\nTry `x'",
            "iptables-nft-restore v1.8.9 (nf_tables): line 3: RULE_APPEND failed: rule in chain cali-x",
        ] {
            assert_eq!(culprit(&failed(stderr), text).as_deref(), Some("cali-x"), "{stderr}");
        }
        assert_eq!(culprit(&failed("iptables-restore: line 4 failed"), text), None);
        assert_eq!(culprit(&failed("lock"), text), None);
    }
}
