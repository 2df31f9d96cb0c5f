//! Lines for `iptables-restore`. Pure text: what a line does in a transaction is the table driver's matter.

use super::hash::{RuleId, hash_comment};
use super::{Chain, Rule, TableName};

/// What our ids start with, inside the comment.
pub const HASH_PREFIX: &str = "cali:";

/// The kernel's limit for a comment, less its terminator.
const COMMENT_LIMIT: usize = 256;

/// What this kernel and this iptables can do beyond the oldest supported ones. Each changes fragments, and
/// with them the hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `SNAT --random-fully`: iptables 1.6.2 and kernel 3.14.
    pub snat_random_fully: bool,
    /// `MASQUERADE --random-fully`, likewise.
    pub masquerade_random_fully: bool,
    /// `NFLOG --nflog-size`: kernel 4.8. Older ones get `--nflog-range`, which copies whole packets.
    pub nflog_size: bool,
}

impl Features {
    pub const fn all() -> Self {
        Features { snat_random_fully: true, masquerade_random_fully: true, nflog_size: true }
    }
}

/// Makes a comment safe to stand between double quotes in a restore line, whatever it was made of.
pub fn safe_comment(comment: &str) -> String {
    let mut safe: String = comment
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "_ @%+=:,./-".contains(c) { c } else { '_' })
        .collect();
    safe.truncate(COMMENT_LIMIT);
    safe
}

/// The fragments of a rule in the order of a line: comments, match, action; the empty ones left out.
pub(super) fn fragments(rule: &Rule) -> Vec<String> {
    let comments = rule.comments.iter().map(|comment| comment_fragment(&safe_comment(comment)));
    let rest = [&rule.matches, &rule.action].into_iter().filter(|part| !part.is_empty());
    comments.chain(rest.cloned()).collect()
}

fn comment_fragment(text: &str) -> String {
    format!("-m comment --comment \"{text}\"")
}

/// The rule without command and chain: `[hash comment] [comments] match action`.
pub fn rule_spec(hash: Option<RuleId>, rule: &Rule) -> String {
    let mut parts = Vec::new();
    if let Some(hash) = hash {
        parts.push(comment_fragment(&hash_comment(hash)));
    }
    parts.extend(fragments(rule));
    parts.join(" ")
}

fn line(command: &str, hash: Option<RuleId>, rule: &Rule) -> String {
    let spec = rule_spec(hash, rule);
    if spec.is_empty() { command.to_owned() } else { format!("{command} {spec}") }
}

pub fn append_line(chain: &str, hash: Option<RuleId>, rule: &Rule) -> String {
    line(&format!("-A {chain}"), hash, rule)
}

pub fn insert_line(chain: &str, hash: Option<RuleId>, rule: &Rule) -> String {
    line(&format!("-I {chain}"), hash, rule)
}

/// Positions count from 1.
pub fn replace_line(chain: &str, position: usize, hash: Option<RuleId>, rule: &Rule) -> String {
    line(&format!("-R {chain} {position}"), hash, rule)
}

pub fn delete_line(chain: &str, position: usize) -> String {
    format!("-D {chain} {position}")
}

/// All lines of a chain, with their hashes.
pub fn chain_lines(chain: &Chain) -> Vec<String> {
    let hashes = super::hash::chain_hashes(chain);
    chain.rules.iter().zip(&hashes).map(|(rule, hash)| append_line(&chain.name, Some(*hash), rule)).collect()
}

impl TableName {
    pub fn name(self) -> &'static str {
        match self {
            TableName::Raw => "raw",
            TableName::Mangle => "mangle",
            TableName::Nat => "nat",
            TableName::Filter => "filter",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_cannot_end_the_quotes() {
        assert_eq!(safe_comment("a\"b\n--jump ACCEPT\\"), "a_b_--jump ACCEPT_");
        assert_eq!(safe_comment("unicode-é"), "unicode-_");
    }

    #[test]
    fn long_comments_are_cut() {
        assert_eq!(safe_comment(&"x".repeat(400)).len(), COMMENT_LIMIT);
    }

    #[test]
    fn empty_fragments_leave_no_space() {
        assert_eq!(append_line("c", None, &Rule::default()), "-A c");
        let rule = Rule { action: "--jump DROP".into(), ..Rule::default() };
        assert_eq!(replace_line("c", 3, None, &rule), "-R c 3 --jump DROP");
    }
}
