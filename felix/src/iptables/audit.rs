//! What a write left in a table, remembered in a few bytes a chain, so that the next read shows what somebody else
//! changed since. Pure but for the report.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::InsertMode;
use super::hash::RuleId;
use super::parse::{SavedTable, is_our_chain};
use super::plan::{Hooks, Plan, Wanted, WantedChain, hook_lines};
use crate::drift;

pub struct Left {
    /// By chain: a digest of the ids of its rules.
    chains: BTreeMap<String, u64>,
    hooks: BTreeMap<String, Hooks>,
    mode: InsertMode,
}

impl Left {
    pub fn new(
        chains: &BTreeMap<&str, &WantedChain>,
        hooks: &BTreeMap<String, Hooks>,
        mode: InsertMode,
    ) -> Left {
        let chains = chains.iter().map(|(name, chain)| ((*name).to_owned(), ids(chain))).collect();
        Left { chains, hooks: hooks.clone(), mode }
    }

    /// The same after a plan, for what it changed.
    pub fn rewrite(&mut self, wanted: &Wanted<'_>, plan: &Plan) {
        for name in &plan.removed {
            self.chains.remove(name);
        }
        for name in &plan.rewritten {
            if let Some(chain) = wanted.chains.get(name.as_str()) {
                self.chains.insert(name.clone(), ids(chain));
            }
        }
        self.mode = wanted.mode;
        if self.hooks != *wanted.hooks {
            self.hooks = wanted.hooks.clone();
        }
    }

    /// Reports what is otherwise now. `table` says which.
    pub fn audit(&self, table: &str, now: &SavedTable) {
        let (chains, hooks) = self.changes(now);
        let named = |(name, change): (&str, &'static str)| (format!("{table} {name}"), change);
        drift::report("chain", chains.into_iter().map(named));
        drift::report("hook", hooks.into_iter().map(|name| named((name, "changed"))));
    }

    fn changes<'a>(&'a self, now: &'a SavedTable) -> (Vec<(&'a str, &'static str)>, BTreeSet<&'a str>) {
        let mut chains = Vec::new();
        for (name, left) in &self.chains {
            match now.chains.get(name) {
                None => chains.push((name.as_str(), "removed")),
                Some(found) if digest(found.rules.iter().map(|rule| rule.hash)) != *left => {
                    chains.push((name.as_str(), "changed"));
                }
                Some(_) => {}
            }
        }
        let added = now.chains.keys().filter(|name| is_our_chain(name) && !self.chains.contains_key(*name));
        chains.extend(added.map(|name| (name.as_str(), "added")));
        let displaced = self.hooks.iter().filter(|(name, hooks)| {
            let rules = now.chains.get(*name).map_or(&[][..], |chain| &chain.rules);
            !hook_lines(name, hooks, rules, self.mode).is_empty()
        });
        (chains, displaced.map(|(name, _)| name.as_str()).collect())
    }
}

fn ids(chain: &WantedChain) -> u64 {
    digest(chain.hashes.iter().map(|id| Some(*id)))
}

fn digest(ids: impl Iterator<Item = Option<RuleId>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    ids.for_each(|id| id.hash(&mut hasher));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse_save;
    use super::super::render::append_line;
    use super::super::{Chain, Rule, TableName, hash};
    use super::*;

    #[test]
    fn each_change_is_named_and_what_is_right_is_not() {
        let jump = |target: &str| Rule { action: format!("--jump {target}"), ..Rule::default() };
        let made = |name: &str, targets: &[&str]| {
            WantedChain::new(Chain { name: name.into(), rules: targets.iter().map(|t| jump(t)).collect() })
        };
        let chains = [made("cali-a", &["ACCEPT", "DROP"]), made("cali-b", &["DROP"])];
        let hooks = Hooks { movable: vec![jump("cali-a")], last: Vec::new() };
        let hook = append_line(
            "INPUT",
            hash::hook_hashes("INPUT", false, &hooks.movable).first().copied(),
            &hooks.movable[0],
        );
        let wanted = chains.iter().map(|chain| (chain.chain.name.as_str(), chain)).collect();
        let left = Left::new(&wanted, &BTreeMap::from([("INPUT".to_owned(), hooks)]), InsertMode::Insert);
        let body: String = chains
            .iter()
            .flat_map(|made| {
                made.chain
                    .rules
                    .iter()
                    .zip(&made.hashes)
                    .map(|(rule, id)| append_line(&made.chain.name, Some(*id), rule) + "\n")
            })
            .collect();
        let head = "*filter\n:INPUT ACCEPT [0:0]\n:cali-a - [0:0]\n:cali-b - [0:0]\n";
        let right = format!("{head}{hook}\n{body}COMMIT\n");
        let found = |text: &str| {
            let saved = parse_save(text, TableName::Filter).unwrap();
            let (chains, hooks) = left.changes(&saved);
            let chains: Vec<_> = chains.iter().map(|(name, change)| format!("{name} {change}")).collect();
            (chains.join(", "), hooks.len())
        };
        assert_eq!(found(&right), (String::new(), 0));
        let foreign = right.replace("COMMIT", "-A INPUT -s 1.2.3.4/32 -j DROP\nCOMMIT");
        assert_eq!(found(&foreign), (String::new(), 0));
        let inserted = right.replace(&hook, &format!("-A INPUT -s 1.2.3.4/32 -j DROP\n{hook}"));
        assert_eq!(found(&inserted), (String::new(), 1));
        let more = right.replace("COMMIT", "-A cali-b -j ACCEPT\nCOMMIT");
        assert_eq!(found(&more), ("cali-b changed".into(), 0));
        assert_eq!(found(&format!("{head}COMMIT\n")), ("cali-a changed, cali-b changed".into(), 1));
        assert_eq!(found(""), ("cali-a removed, cali-b removed".into(), 1));
        let another = right.replace(head, &format!("{head}:cali-c - [0:0]\n"));
        assert_eq!(found(&another), ("cali-c added".into(), 0));
    }
}
