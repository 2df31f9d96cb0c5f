//! What `iptables-save` says of one table, reduced to what the driver compares.
//!
//! The kernel's own spelling of a rule is never compared with ours: a rule of ours is known by the id in its
//! first `cali:` comment. The text of a line is kept all the same for rules outside our chains, because
//! there ours are deleted by value.

use std::collections::BTreeMap;

use super::TableName;
use super::hash::RuleId;
use super::render::HASH_PREFIX;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedTable {
    pub chains: BTreeMap<String, SavedChain>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedChain {
    /// `ACCEPT` or `DROP` of a kernel chain; none for chains that somebody created.
    pub policy: Option<String>,
    pub rules: Vec<SavedRule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRule {
    /// The id in the rule's first comment, when the rule is ours.
    pub hash: Option<RuleId>,
    /// The saved line without `-A <chain> `. Empty for rules that carry an id and stand in a chain of ours:
    /// nobody reads it there, and those are most of the table.
    pub text: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The nft backend found a table that another tool made; it reports this with exit code 0.
    #[error("table {table} was written by nft itself and cannot be read as iptables")]
    Incompatible { table: &'static str },
    #[error("line {line}: rule for chain {chain}, which was not declared")]
    UndeclaredChain { line: usize, chain: String },
    #[error("line {line}: not understood: {text}")]
    Malformed { line: usize, text: String },
    #[error("output of table {table} ends before COMMIT")]
    Truncated { table: &'static str },
}

/// Whether we make chains of this name: those that are there and not wanted are deleted.
pub fn is_our_chain(name: &str) -> bool {
    name.starts_with("cali-") || name.starts_with("felix-")
}

/// Reads one table, line by line; other tables in the text are passed over. No text is an empty table: the nft
/// backend prints nothing for a table that nobody has used.
pub struct SaveReader {
    table: TableName,
    saved: SavedTable,
    /// Between the table's head and its `COMMIT`.
    inside: bool,
    lines: usize,
    /// The first; what comes after it is not read.
    error: Option<ParseError>,
}

impl SaveReader {
    pub fn new(table: TableName) -> SaveReader {
        SaveReader { table, saved: SavedTable::default(), inside: false, lines: 0, error: None }
    }

    pub fn line(&mut self, line: &str) {
        self.lines += 1;
        if self.error.is_none() {
            self.error = self.read(line.trim_end()).err();
        }
    }

    pub fn finish(mut self) -> Result<SavedTable, ParseError> {
        self.saved.chains.values_mut().for_each(|chain| chain.rules.shrink_to_fit());
        match self.error {
            Some(error) => Err(error),
            None if self.inside => Err(ParseError::Truncated { table: self.table.name() }),
            None => Ok(self.saved),
        }
    }

    fn read(&mut self, line: &str) -> Result<(), ParseError> {
        let table = self.table.name();
        let malformed = || ParseError::Malformed { line: self.lines, text: line.to_owned() };
        if let Some(remark) = line.strip_prefix('#') {
            if remark.contains("is incompatible, use 'nft' tool") && names_table(remark, table) {
                return Err(ParseError::Incompatible { table });
            }
        } else if let Some(name) = line.strip_prefix('*') {
            self.inside = name == table;
        } else if line.is_empty() || !self.inside {
        } else if line == "COMMIT" {
            self.inside = false;
        } else if let Some(declaration) = line.strip_prefix(':') {
            let mut words = declaration.split_whitespace();
            let (name, policy) = words.next().zip(words.next()).ok_or_else(malformed)?;
            let policy = (policy != "-").then(|| policy.to_owned());
            self.saved.chains.insert(name.to_owned(), SavedChain { policy, rules: Vec::new() });
        } else {
            let (name, rule) = parse_rule(line).ok_or_else(malformed)?;
            let undeclared = || ParseError::UndeclaredChain { line: self.lines, chain: name.to_owned() };
            self.saved.chains.get_mut(name).ok_or_else(undeclared)?.rules.push(rule);
        }
        Ok(())
    }
}

fn names_table(remark: &str, table: &str) -> bool {
    remark.split_whitespace().any(|word| word.trim_matches(['`', '\'', '"']) == table)
}

/// `[12:3456] -A CHAIN ...`, the counters being optional.
fn parse_rule(line: &str) -> Option<(&str, SavedRule)> {
    let line = match line.strip_prefix('[') {
        Some(counted) => counted.split_once("] ")?.1,
        None => line,
    };
    let rest = line.strip_prefix("-A ")?;
    let (chain, text) = rest.split_once(' ').unwrap_or((rest, ""));
    let hash = first_id(text);
    let text = if hash.is_some() && is_our_chain(chain) { Box::default() } else { text.into() };
    Some((chain, SavedRule { hash, text }))
}

/// The id in the first comment that has one. The legacy backend leaves out the quotes where the comment
/// needs none.
fn first_id(text: &str) -> Option<RuleId> {
    const FLAG: &str = "--comment ";
    let mut rest = text;
    while let Some(at) = rest.find(FLAG) {
        rest = &rest[at + FLAG.len()..];
        let comment = rest.strip_prefix('"').unwrap_or(rest);
        if let Some(id) = comment.strip_prefix(HASH_PREFIX) {
            let end = id.find(['"', ' ']).unwrap_or(id.len());
            return (end > 0).then(|| RuleId::parse(&id[..end]));
        }
    }
    None
}

#[cfg(test)]
pub(super) fn parse_save(text: &str, table: TableName) -> Result<SavedTable, ParseError> {
    let mut reader = SaveReader::new(table);
    text.lines().for_each(|line| reader.line(line));
    reader.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NFT: &str = "# Generated by iptables-nft-save v1.8.9 (nf_tables)\n*filter\n:INPUT ACCEPT [0:0]\n\
        :cali-INPUT - [0:0]\n:KUBE-X - [0:0]\n\
        -A INPUT -m comment --comment \"cali:Cz_u1IQiXIMmKD4c\" -j cali-INPUT\n\
        -A INPUT -p tcp -m comment --comment \"not ours\" -j ACCEPT\n\
        -A cali-INPUT -m comment --comment \"cali:Abc0123456789-_a\" -m comment --comment \"some words\" -j ACCEPT\n\
        -A cali-INPUT -j cali-old\n-A KUBE-X\nCOMMIT\n# Completed\n";

    #[test]
    fn rules_of_ours_are_known_by_id_and_others_by_text() {
        let table = parse_save(NFT, TableName::Filter).unwrap();
        let input = &table.chains["INPUT"];
        assert_eq!(input.policy.as_deref(), Some("ACCEPT"));
        assert_eq!(input.rules[0].hash, Some(RuleId::parse("Cz_u1IQiXIMmKD4c")));
        assert!(input.rules[0].text.ends_with("-j cali-INPUT"));
        assert_eq!(input.rules[1].hash, None);
        let ours = &table.chains["cali-INPUT"];
        assert_eq!(ours.policy, None);
        assert_eq!(
            ours.rules[0],
            SavedRule { hash: Some(RuleId::parse("Abc0123456789-_a")), text: Box::default() }
        );
        assert_eq!(ours.rules[1], SavedRule { hash: None, text: "-j cali-old".into() });
        assert_eq!(table.chains["KUBE-X"].rules, [SavedRule { hash: None, text: Box::default() }]);
    }

    #[test]
    fn the_legacy_form_has_counters_and_bare_comments() {
        let text = "*nat\n:OUTPUT ACCEPT [9:99]\n[1:60] -A OUTPUT -m comment --comment cali:xyz-_1 -j \
                    cali-OUTPUT\nCOMMIT\n";
        let table = parse_save(text, TableName::Nat).unwrap();
        assert!(table.chains["OUTPUT"].rules[0].hash.is_some(), "an id of another length");
    }

    #[test]
    fn only_the_table_asked_for_is_read() {
        let text = format!("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n{NFT}");
        assert_eq!(parse_save(&text, TableName::Nat).unwrap().chains.len(), 1);
        assert_eq!(parse_save("", TableName::Raw).unwrap(), SavedTable::default());
    }

    #[test]
    fn a_table_of_the_nft_tool_is_an_error() {
        let text = "# Table `filter' is incompatible, use 'nft' tool.\n";
        assert!(matches!(parse_save(text, TableName::Filter), Err(ParseError::Incompatible { .. })));
        assert!(parse_save(text, TableName::Nat).is_ok());
    }

    #[test]
    fn a_cut_off_table_is_an_error() {
        let text = NFT.replace("COMMIT\n", "");
        assert!(matches!(parse_save(&text, TableName::Filter), Err(ParseError::Truncated { .. })));
    }

    #[test]
    fn an_id_that_is_not_first_among_comments_still_counts() {
        assert_eq!(
            first_id("-m comment --comment \"x\" -m comment --comment \"cali:Cz_u1IQiXIMmKD4c\""),
            Some(RuleId::parse("Cz_u1IQiXIMmKD4c"))
        );
        assert_eq!(first_id("-m comment --comment \"about cali:q\""), None);
    }
}
