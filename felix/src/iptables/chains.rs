//! What one table should hold: chains by owner, and our rules in the kernel's chains. Pure.
//!
//! Chains are offered by owners and come and go with them; a chain may have several (policy groups are shared by
//! endpoints). Only chains that a kernel chain reaches, or whose owner says that they are always needed, are wanted.

use std::collections::{BTreeMap, BTreeSet};

use syncer_common::model::PolicyKey;

use super::plan::{Hooks, WantedChain, targets};
use super::{Chain, InsertMode};

/// Whose chains they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    Static,
    Policy(PolicyKey),
    Profile(String),
    /// By interface.
    Workload(String),
    /// By interface.
    HostEndpoint(String),
    WorkloadDispatch,
    HostDispatch,
}

struct Offered {
    wanted: WantedChain,
    owners: usize,
    targets: Box<[Box<str>]>,
}

#[derive(Default)]
pub struct ChainSet {
    mode: InsertMode,
    /// Boxed: the map leaves a good part of its nodes empty.
    chains: BTreeMap<String, Box<Offered>>,
    /// Names of their chains, in order.
    owners: BTreeMap<Owner, Box<[String]>>,
    always: BTreeSet<Owner>,
    hooks: BTreeMap<String, Hooks>,
}

impl ChainSet {
    /// All chains of an owner; none: the owner is gone. Returns the names of what changed.
    pub fn offer(&mut self, owner: Owner, chains: Vec<Chain>, always_needed: bool) -> Vec<String> {
        let mut changed = Vec::new();
        let before = self.owners.remove(&owner).unwrap_or_default();
        let names: BTreeSet<String> = chains.iter().map(|chain| chain.name.clone()).collect();
        for mut chain in chains {
            let new_owner = usize::from(before.binary_search(&chain.name).is_err());
            let mut owners = new_owner;
            if let Some(offered) = self.chains.get_mut(&chain.name) {
                offered.owners += new_owner;
                owners = offered.owners;
                if offered.wanted.chain == chain {
                    continue;
                }
            }
            let name = chain.name.clone();
            chain.shrink();
            let targets: BTreeSet<&str> = chain.rules.iter().flat_map(|rule| targets(&rule.action)).collect();
            let targets = targets.into_iter().map(Box::from).collect();
            changed.push(name.clone());
            self.chains.insert(name, Box::new(Offered { wanted: WantedChain::new(chain), owners, targets }));
        }
        for name in before.iter().filter(|name| !names.contains(*name)) {
            if let Some(offered) = self.chains.get_mut(name) {
                offered.owners -= 1;
                if offered.owners == 0 {
                    self.chains.remove(name);
                    changed.push(name.clone());
                }
            }
        }
        let always_needed = always_needed && !names.is_empty();
        if always_needed != self.always.contains(&owner) {
            changed.extend(names.iter().cloned());
            if always_needed {
                self.always.insert(owner.clone());
            } else {
                self.always.remove(&owner);
            }
        }
        if !names.is_empty() {
            self.owners.insert(owner, names.into_iter().collect());
        }
        changed
    }

    /// Our rules in chains of the kernel. Returns whether they changed.
    pub fn set_hooks(&mut self, mode: InsertMode, hooks: BTreeMap<String, Hooks>) -> bool {
        let changed = self.hooks != hooks || self.mode != mode;
        (self.hooks, self.mode) = (hooks, mode);
        changed
    }

    pub fn hooks(&self) -> &BTreeMap<String, Hooks> {
        &self.hooks
    }

    pub fn mode(&self) -> InsertMode {
        self.mode
    }

    pub fn contains(&self, name: &str) -> bool {
        self.chains.contains_key(name)
    }

    /// The chains to program, by name.
    pub fn wanted(&self) -> BTreeMap<&str, &WantedChain> {
        let hook_rules = self.hooks.values().flat_map(|hooks| hooks.movable.iter().chain(&hooks.last));
        let mut open: Vec<&str> = hook_rules.flat_map(|rule| targets(&rule.action)).collect();
        open.extend(
            self.always.iter().filter_map(|owner| self.owners.get(owner)).flatten().map(String::as_str),
        );
        let mut reached = BTreeMap::new();
        while let Some(name) = open.pop() {
            if let Some((name, offered)) = self.chains.get_key_value(name)
                && !reached.contains_key(name.as_str())
            {
                reached.insert(name.as_str(), &offered.wanted);
                open.extend(offered.targets.iter().map(|name| &**name));
            }
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::super::Rule;
    use super::*;

    fn chain(name: &str, targets: &[&str]) -> Chain {
        let rule = |target: &&str| Rule { action: format!("--jump {target}"), ..Rule::default() };
        Chain { name: name.into(), rules: targets.iter().map(rule).collect() }
    }

    fn names(set: &ChainSet) -> Vec<&str> {
        set.wanted().into_keys().collect()
    }

    fn framed() -> ChainSet {
        let mut set = ChainSet::default();
        let hooks = Hooks { movable: chain("", &["cali-FORWARD"]).rules, last: Vec::new() };
        assert!(set.set_hooks(InsertMode::Insert, BTreeMap::from([("FORWARD".into(), hooks)])));
        set.offer(Owner::Static, vec![chain("cali-FORWARD", &["cali-a", "ACCEPT"])], false);
        set
    }

    #[test]
    fn only_reached_chains_are_wanted() {
        let mut set = framed();
        set.offer(
            Owner::Profile("p".into()),
            vec![chain("cali-a", &["cali-b"]), chain("cali-b", &["cali-a"]), chain("cali-c", &[])],
            false,
        );
        assert_eq!(names(&set), ["cali-FORWARD", "cali-a", "cali-b"]);
        set.offer(Owner::Profile("q".into()), vec![chain("cali-d", &[])], true);
        assert_eq!(names(&set), ["cali-FORWARD", "cali-a", "cali-b", "cali-d"]);
    }

    #[test]
    fn a_shared_chain_stays_until_its_last_owner_goes() {
        let mut set = framed();
        let (one, two) = (Owner::Workload("1".into()), Owner::Workload("2".into()));
        assert_eq!(set.offer(one.clone(), vec![chain("cali-a", &["DROP"])], false), ["cali-a"]);
        assert!(set.offer(two.clone(), vec![chain("cali-a", &["DROP"])], false).is_empty());
        assert!(set.offer(two.clone(), vec![chain("cali-a", &["DROP"])], false).is_empty());
        assert!(set.offer(one, Vec::new(), false).is_empty());
        assert_eq!(names(&set), ["cali-FORWARD", "cali-a"]);
        assert_eq!(set.offer(two, Vec::new(), false), ["cali-a"]);
        assert_eq!(names(&set), ["cali-FORWARD"]);
    }
}
