//! Whatever a table holds, writing the plan makes it as wanted, leaves rules of others as they were, and leaves
//! nothing to do. The kernel is played by a small interpreter of restore lines.

use proptest::prelude::*;

use super::super::parse::SavedChain;
use super::*;

/// Applies a restore input as `--noflush` does.
fn restore(mut table: SavedTable, text: &str) -> Result<SavedTable, String> {
    for line in text.lines() {
        let mut words = line.splitn(3, ' ');
        let (verb, name, rest) =
            (words.next().unwrap_or(""), words.next().unwrap_or(""), words.next().unwrap_or(""));
        let known = table.chains.contains_key(name);
        let saved = |text: &str| -> SavedRule {
            let hash =
                text.split_once("\"cali:").and_then(|(_, rest)| Some(RuleId::parse(rest.split_once('"')?.0)));
            SavedRule { text: text.replace("--jump", "-j").into(), hash }
        };
        match verb {
            _ if verb.starts_with('*') || verb == "COMMIT" => {}
            _ if verb.starts_with(':') => {
                table.chains.insert(verb[1..].to_owned(), SavedChain::default());
            }
            "--delete-chain" => {
                let jumped = table
                    .chains
                    .values()
                    .flat_map(|c| &c.rules)
                    .any(|rule| targets(&rule.text).any(|t| t == name));
                if jumped || !known {
                    return Err(line.to_owned());
                }
                table.chains.remove(name);
            }
            // A chain of the kernel comes into being when it is first used.
            _ if !known && name.starts_with("cali") => return Err(line.to_owned()),
            "-A" => table.chains.entry(name.to_owned()).or_default().rules.push(saved(rest)),
            "-I" => table.chains.entry(name.to_owned()).or_default().rules.insert(0, saved(rest)),
            "-R" => {
                let (position, rest) = rest.split_once(' ').ok_or(line)?;
                let position: usize = position.parse().map_err(|_| line)?;
                let rules = &mut table.chains.get_mut(name).ok_or(line)?.rules;
                *rules.get_mut(position - 1).ok_or(line)? = saved(rest);
            }
            "-D" => {
                let rules = &mut table.chains.get_mut(name).ok_or(line)?.rules;
                let at = match rest.parse::<usize>() {
                    Ok(position) => position - 1,
                    Err(_) => rules.iter().position(|rule| &*rule.text == rest).ok_or(line)?,
                };
                if at >= rules.len() {
                    return Err(line.to_owned());
                }
                rules.remove(at);
            }
            _ => return Err(line.to_owned()),
        }
    }
    Ok(table)
}

fn chains() -> impl Strategy<Value = Vec<WantedChain>> {
    let rules = prop::collection::vec(0..6u8, 0..5);
    prop::collection::btree_map("cali-[a-e]", rules, 0..5).prop_map(|chains| {
        let rule = |n: u8| Rule { action: format!("--jump T{n}"), ..Rule::default() };
        let chain =
            |(name, rules): (String, Vec<u8>)| Chain { name, rules: rules.into_iter().map(rule).collect() };
        chains.into_iter().map(chain).map(WantedChain::new).collect()
    })
}

fn hooks() -> impl Strategy<Value = BTreeMap<String, Hooks>> {
    let rules = || {
        let rule = (0..3u8).prop_map(|n| Rule { action: format!("--jump H{n}"), ..Rule::default() });
        prop::collection::vec(rule, 0..3)
    };
    prop::collection::btree_map("(INPUT|FORWARD)", (rules(), rules()), 0..3).prop_map(|hooks| {
        hooks.into_iter().map(|(name, (movable, last))| (name, Hooks { movable, last })).collect()
    })
}

/// Foreign rules, ours with ids that may or may not be wanted, and jumps without id to chains of ours.
fn kernel() -> impl Strategy<Value = SavedTable> {
    let rule = prop_oneof![
        (0..4u8).prop_map(|n| SavedRule { hash: None, text: format!("-s 10.0.0.{n}/32 -j F{n}").into() }),
        (0..4u8).prop_map(|n| SavedRule {
            hash: Some(RuleId::parse(&format!("old{n:013}"))),
            text: format!("-m comment --comment \"cali:old{n:013}\" -j T{n}").into(),
        }),
        Just(SavedRule { hash: None, text: "-j cali-old".into() }),
    ];
    let chain = prop::collection::vec(rule, 0..5).prop_map(|rules| SavedChain { policy: None, rules });
    prop::collection::btree_map("(INPUT|FORWARD|MINE|cali-[a-c])", chain, 0..6).prop_map(|mut chains| {
        chains.insert("cali-old".into(), SavedChain::default());
        SavedTable { chains }
    })
}

fn foreign(table: &SavedTable) -> BTreeMap<String, Vec<Box<str>>> {
    let others = |chain: &SavedChain| {
        chain.rules.iter().filter(|rule| !is_ours(rule)).map(|rule| rule.text.clone()).collect()
    };
    let not_ours = table.chains.iter().filter(|(name, _)| !is_our_chain(name));
    not_ours
        .map(|(name, chain)| (name.clone(), others(chain)))
        .filter(|(_, rules): &(_, Vec<Box<str>>)| !rules.is_empty())
        .collect()
}

proptest! {
    #[test]
    fn one_write_makes_any_table_right(
        first in chains(), second in chains(), hooks in hooks(), other_hooks in hooks(), start in kernel(), append: bool,
    ) {
        let mode = if append { InsertMode::Append } else { InsertMode::Insert };
        for backend in [Backend::Nft, Backend::Legacy] {
            let mut table = start.clone();
            let others = foreign(&table);
            for (chains, hooks) in [(&first, &hooks), (&second, &other_hooks)] {
                let chains = || chains.iter().map(|c| (c.chain.name.as_str(), c)).collect();
                let wanted = Wanted { table: TableName::Filter, backend, mode, chains: chains(), hooks };
                let text = plan(&wanted, &table).text;
                table = restore(table, &text).map_err(|line| TestCaseError::fail(format!("{line}\nin\n{text}")))?;
                let rest = plan(&wanted, &table);
                prop_assert!(rest.is_empty(), "left to do after\n{}\n:\n{}", text, rest.text);
                prop_assert_eq!(&foreign(&table), &others);
            }
        }
    }
}
