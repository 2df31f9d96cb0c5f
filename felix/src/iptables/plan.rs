//! What to write so that a table becomes as wanted: one `iptables-restore --noflush` input. Pure.
//!
//! A chain that is right is not mentioned, so its rules keep their counters and nothing that passes through it
//! notices. Rules of others stay where they are; ours in chains of the kernel are deleted by value and put back
//! at the top or at the end. All of it is one transaction, except that the nft backend removes chains in a second
//! one of the same input: it will not remove in one step what the same step stops using.

use std::collections::{BTreeMap, BTreeSet};

use super::hash::RuleId;
use super::parse::{SavedRule, SavedTable, is_our_chain};
use super::{Backend, Chain, InsertMode, Rule, TableName, hash, render};

/// A chain as wanted, with the ids of its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedChain {
    pub chain: Chain,
    pub hashes: Box<[RuleId]>,
}

impl WantedChain {
    pub fn new(chain: Chain) -> WantedChain {
        let hashes = hash::chain_hashes(&chain);
        WantedChain { chain, hashes }
    }
}

/// Our rules in one chain of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// At the top, or at the end if so configured.
    pub movable: Vec<Rule>,
    /// Always at the end.
    pub last: Vec<Rule>,
}

/// A transaction. Empty text: there is nothing to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub text: String,
    /// How often the text commits: what the kernel's generation grows by.
    pub commits: u32,
    /// Chains of ours whose rules change.
    pub rewritten: Vec<String>,
    pub removed: Vec<String>,
    /// Whether rules in chains of the kernel are moved, added or deleted.
    pub hooks_changed: bool,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

pub struct Wanted<'a> {
    pub table: TableName,
    pub backend: Backend,
    pub mode: InsertMode,
    pub chains: BTreeMap<&'a str, &'a WantedChain>,
    pub hooks: &'a BTreeMap<String, Hooks>,
}

pub fn plan(wanted: &Wanted<'_>, saved: &SavedTable) -> Plan {
    let mut declare = BTreeSet::new();
    let mut lines = Vec::new();
    let mut rewritten = Vec::new();
    for (&name, &want) in &wanted.chains {
        let Some(have) = saved.chains.get(name) else {
            declare.insert(name);
            lines.extend(append_from(want, 0));
            rewritten.push(name.to_owned());
            continue;
        };
        if same(&want.hashes, &have.rules) {
            continue;
        }
        rewritten.push(name.to_owned());
        match wanted.backend {
            Backend::Nft => {
                declare.insert(name);
                lines.extend(append_from(want, 0));
            }
            Backend::Legacy => lines.extend(rule_by_rule(want, &have.rules)),
        }
    }
    let removed: Vec<String> = saved
        .chains
        .keys()
        .filter(|name| is_our_chain(name) && !wanted.chains.contains_key(name.as_str()))
        .cloned()
        .collect();
    declare.extend(removed.iter().map(String::as_str));
    let before = lines.len();
    for (name, have) in saved.chains.iter().filter(|(name, _)| !is_our_chain(name)) {
        let none = Hooks::default();
        lines.extend(hook_lines(name, wanted.hooks.get(name).unwrap_or(&none), &have.rules, wanted.mode));
    }
    for (name, hooks) in wanted.hooks.iter().filter(|(name, _)| !saved.chains.contains_key(*name)) {
        // The nft backend makes the kernel's chains when they are first used.
        lines.extend(hook_lines(name, hooks, &[], wanted.mode));
    }
    let hooks_changed = lines.len() > before;
    let removals = removed.iter().map(|name| format!("--delete-chain {name}"));
    let mut text = String::new();
    let mut commits = 0;
    let mut transaction = |lines: Vec<String>| {
        if lines.is_empty() {
            return;
        }
        commits += 1;
        text.push_str(&format!("*{}\n", wanted.table.name()));
        for line in lines {
            text.push_str(&line);
            text.push('\n');
        }
        text.push_str("COMMIT\n");
    };
    let declarations = declare.iter().map(|name| format!(":{name} - -"));
    match wanted.backend {
        Backend::Nft => {
            transaction(declarations.chain(lines).collect());
            transaction(removals.collect());
        }
        Backend::Legacy => transaction(declarations.chain(lines).chain(removals).collect()),
    }
    Plan { text, commits, rewritten, removed, hooks_changed }
}

fn same(want: &[RuleId], have: &[SavedRule]) -> bool {
    want.len() == have.len() && want.iter().zip(have).all(|(want, have)| have.hash.as_ref() == Some(want))
}

fn append_from(want: &WantedChain, start: usize) -> impl Iterator<Item = String> {
    want.chain
        .rules
        .iter()
        .zip(&want.hashes)
        .skip(start)
        .map(|(rule, id)| render::append_line(&want.chain.name, Some(*id), rule))
}

/// Legacy replaces the whole table anyway; rules that stay keep their counters if only others are named.
fn rule_by_rule(want: &WantedChain, have: &[SavedRule]) -> Vec<String> {
    let name = &want.chain.name;
    let mut lines = Vec::new();
    for (i, (rule, id)) in want.chain.rules.iter().zip(&want.hashes).enumerate().take(have.len()) {
        if have[i].hash != Some(*id) {
            lines.push(render::replace_line(name, i + 1, Some(*id), rule));
        }
    }
    lines.extend(append_from(want, have.len()));
    for position in (want.chain.rules.len()..have.len()).rev() {
        lines.push(render::delete_line(name, position + 1));
    }
    lines
}

/// Lines that put our rules into a chain of the kernel; none if they stand there as they should.
pub(super) fn hook_lines(chain: &str, want: &Hooks, have: &[SavedRule], mode: InsertMode) -> Vec<String> {
    let movable = hash::hook_hashes(chain, false, &want.movable);
    let last = hash::hook_hashes(chain, true, &want.last);
    let foreign = have.iter().filter(|rule| !is_ours(rule)).count();
    let others = std::iter::repeat_n(None, foreign);
    let (top, bottom) = match mode {
        InsertMode::Insert => (&*movable, [].as_slice()),
        InsertMode::Append => ([].as_slice(), &*movable),
    };
    // Of each rule: whether it is ours, and its id.
    let made = |ids: &'_ [RuleId]| ids.iter().map(|id| Some(Some(*id))).collect::<Vec<_>>();
    let expected = made(top).into_iter().chain(others).chain(made(bottom)).chain(made(&last));
    let actual = have.iter().map(|rule| is_ours(rule).then_some(rule.hash));
    if expected.eq(actual) {
        return Vec::new();
    }
    let mut lines: Vec<String> =
        have.iter().filter(|rule| is_ours(rule)).map(|rule| format!("-D {chain} {}", rule.text)).collect();
    let movable = want.movable.iter().zip(&movable);
    match mode {
        InsertMode::Insert => {
            lines.extend(movable.rev().map(|(rule, id)| render::insert_line(chain, Some(*id), rule)))
        }
        InsertMode::Append => {
            lines.extend(movable.map(|(rule, id)| render::append_line(chain, Some(*id), rule)))
        }
    }
    lines.extend(want.last.iter().zip(&last).map(|(rule, id)| render::append_line(chain, Some(*id), rule)));
    lines
}

/// Whether a rule in somebody else's chain is ours: it carries an id, or, from very old versions, it has none but
/// leads into a chain of ours.
fn is_ours(rule: &SavedRule) -> bool {
    rule.hash.is_some() || targets(&rule.text).any(is_our_chain)
}

/// Chains that a rule jumps or goes to.
pub fn targets(text: &str) -> impl Iterator<Item = &str> {
    let mut words = text.split_whitespace();
    std::iter::from_fn(move || {
        loop {
            if matches!(words.next()?, "--jump" | "-j" | "--goto" | "-g") {
                return words.next();
            }
        }
    })
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::super::parse::parse_save;
    use super::*;

    fn jump(target: &str) -> Rule {
        Rule { action: format!("--jump {target}"), ..Rule::default() }
    }

    fn chain(name: &str, targets: &[&str]) -> WantedChain {
        WantedChain::new(Chain { name: name.into(), rules: targets.iter().map(|t| jump(t)).collect() })
    }

    struct Case {
        chains: Vec<WantedChain>,
        hooks: BTreeMap<String, Hooks>,
        mode: InsertMode,
    }

    impl Case {
        fn new(chains: Vec<WantedChain>) -> Case {
            let hooks = Hooks { movable: vec![jump("cali-FORWARD")], last: vec![jump("ACCEPT")] };
            Case { chains, hooks: BTreeMap::from([("FORWARD".into(), hooks)]), mode: InsertMode::Insert }
        }

        fn plan(&self, backend: Backend, saved: &str) -> Plan {
            let chains = self.chains.iter().map(|c| (c.chain.name.as_str(), c)).collect();
            let wanted =
                Wanted { table: TableName::Filter, backend, mode: self.mode, chains, hooks: &self.hooks };
            plan(&wanted, &parse_save(saved, TableName::Filter).unwrap())
        }

        /// The text that a kernel would print after everything was written.
        fn printed(&self, foreign: &[&str]) -> String {
            let mut text = String::from("*filter\n:FORWARD ACCEPT [0:0]\n");
            for c in &self.chains {
                text += &format!(":{} - [0:0]\n", c.chain.name);
            }
            for (name, hooks) in &self.hooks {
                let movable: Vec<_> =
                    hooks.movable.iter().zip(hash::hook_hashes(name, false, &hooks.movable)).collect();
                let top = movable.iter().map(|(rule, id)| render::append_line(name, Some(*id), rule));
                let others = foreign.iter().map(|rule| format!("-A {name} {rule}"));
                let last = hooks.last.iter().zip(hash::hook_hashes(name, true, &hooks.last));
                let last = last.map(|(rule, id)| render::append_line(name, Some(id), rule));
                let all: Vec<String> = match self.mode {
                    InsertMode::Insert => top.chain(others).chain(last).collect(),
                    InsertMode::Append => others.chain(top).chain(last).collect(),
                };
                text += &(all.join("\n") + "\n");
            }
            for c in &self.chains {
                for line in render::chain_lines(&c.chain) {
                    text += &(line + "\n");
                }
            }
            text + "COMMIT\n"
        }
    }

    #[test]
    fn what_is_right_is_not_written() {
        let mut case = Case::new(vec![chain("cali-FORWARD", &["ACCEPT", "DROP"])]);
        for mode in [InsertMode::Insert, InsertMode::Append] {
            case.mode = mode;
            for backend in [Backend::Nft, Backend::Legacy] {
                for foreign in [&[][..], &["-s 1.2.3.4/32 -j DROP"][..]] {
                    assert_eq!(case.plan(backend, &case.printed(foreign)), Plan::default());
                }
            }
        }
    }

    #[test]
    fn an_empty_table_gets_chains_rules_and_hooks_in_one_transaction() {
        let case = Case::new(vec![chain("cali-FORWARD", &["cali-x"]), chain("cali-x", &["DROP"])]);
        let plan = case.plan(Backend::Nft, "");
        let lines: Vec<&str> = plan.text.lines().collect();
        assert_eq!(lines[..3], ["*filter", ":cali-FORWARD - -", ":cali-x - -"]);
        assert!(lines.iter().any(|l| l.starts_with("-I FORWARD") && l.ends_with("--jump cali-FORWARD")));
        assert!(lines.iter().any(|l| l.starts_with("-A FORWARD") && l.ends_with("--jump ACCEPT")));
        assert_eq!((plan.commits, lines.last()), (1, Some(&"COMMIT")));
    }

    #[test]
    fn only_the_changed_chain_is_written() {
        let before = Case::new(vec![chain("cali-FORWARD", &["cali-x"]), chain("cali-x", &["A", "B", "C"])]);
        let after = Case::new(vec![chain("cali-FORWARD", &["cali-x"]), chain("cali-x", &["A", "D"])]);
        let nft = after.plan(Backend::Nft, &before.printed(&[]));
        assert_eq!(nft.rewritten, ["cali-x"]);
        assert!(!nft.hooks_changed && !nft.text.contains("FORWARD"));
        let legacy = after.plan(Backend::Legacy, &before.printed(&[]));
        let lines: Vec<&str> = legacy.text.lines().collect();
        assert!(lines[1].starts_with("-R cali-x 2 ") && lines[1].ends_with("--jump D"), "{lines:?}");
        assert_eq!(lines[2..], ["-D cali-x 3", "COMMIT"]);
    }

    #[test]
    fn unwanted_chains_go_after_everything_that_used_them() {
        let before = Case::new(vec![chain("cali-FORWARD", &["cali-old"]), chain("cali-old", &["DROP"])]);
        let after = Case::new(vec![chain("cali-FORWARD", &["DROP"])]);
        let nft = after.plan(Backend::Nft, &before.printed(&[]));
        assert!(nft.text.ends_with("COMMIT\n*filter\n--delete-chain cali-old\nCOMMIT\n"), "{}", nft.text);
        assert_eq!(nft.commits, 2);
        let legacy = after.plan(Backend::Legacy, &before.printed(&[]));
        assert!(legacy.text.ends_with("--delete-chain cali-old\nCOMMIT\n") && legacy.commits == 1);
    }

    #[test]
    fn hooks_return_to_their_places_around_rules_of_others() {
        let case = Case::new(vec![chain("cali-FORWARD", &["ACCEPT"])]);
        let displaced = case.printed(&["-s 1.2.3.4/32 -j DROP"]).replace(
            ":cali-FORWARD - [0:0]\n",
            ":cali-FORWARD - [0:0]\n-A FORWARD -s 9.9.9.9/32 -j ACCEPT\n",
        );
        let plan = case.plan(Backend::Nft, &displaced);
        let lines: Vec<&str> = plan.text.lines().collect();
        assert!(plan.hooks_changed && plan.rewritten.is_empty());
        assert_eq!(lines.iter().filter(|l| l.starts_with("-D FORWARD ")).count(), 2);
        assert!(!plan.text.contains("9.9.9.9") && !plan.text.contains("1.2.3.4"));
        assert!(lines[3].starts_with("-I FORWARD ") && lines[4].starts_with("-A FORWARD "), "{lines:?}");
    }

    #[test]
    fn jumps_of_old_versions_without_an_id_are_deleted() {
        let case = Case::new(vec![chain("cali-FORWARD", &["ACCEPT"])]);
        let old = "*filter\n:INPUT ACCEPT [0:0]\n:felix-INPUT - [0:0]\n-A INPUT -j felix-INPUT\n-A INPUT -j ACCEPT\nCOMMIT\n";
        let plan = case.plan(Backend::Nft, old);
        assert!(plan.text.contains("-D INPUT -j felix-INPUT\n"), "{}", plan.text);
        assert!(plan.text.contains("--delete-chain felix-INPUT\n"));
        assert!(!plan.text.contains("-D INPUT -j ACCEPT"));
    }
}
