//! Rule hashes: what says, without comparing text, that a rule in the kernel is the one we want at this
//! place.
//!
//! The hash of a rule covers the hash of the rule before it, so one id fixes content and position both. The
//! kernel rewrites rules when it prints them; the id comes back unchanged, as the rule's first comment.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha224};

use super::render::{HASH_PREFIX, fragments};
use super::{Chain, Rule};

/// Characters of the encoded hash that become the id.
const ID_LENGTH: usize = 16;

/// What a rule is known by in the kernel: the beginning of its hash, in base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleId([u8; ID_LENGTH]);

impl RuleId {
    /// As it stands in a comment. One of another length was made by nobody: it equals none that is wanted.
    pub fn parse(id: &str) -> RuleId {
        RuleId(id.as_bytes().try_into().unwrap_or_default())
    }

    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Ids of a chain of ours, one per rule.
pub fn chain_hashes(chain: &Chain) -> Box<[RuleId]> {
    hashes(&chain.name, &chain.rules)
}

/// Ids of our rules in a chain of the kernel. Rules that always go to the end are hashed as those of a chain
/// of another name, so that they are told apart from those that are inserted at the top.
pub fn hook_hashes(kernel_chain: &str, append_always: bool, rules: &[Rule]) -> Box<[RuleId]> {
    if append_always {
        hashes(&format!("{kernel_chain}*appends*"), rules)
    } else {
        hashes(kernel_chain, rules)
    }
}

fn hashes(chain: &str, rules: &[Rule]) -> Box<[RuleId]> {
    let mut previous = Sha224::digest(chain.as_bytes());
    let mut ids = Vec::with_capacity(rules.len());
    for rule in rules {
        let mut digest = Sha224::new();
        digest.update(previous);
        digest.update(format!("-A {chain} HASH").as_bytes());
        for fragment in fragments(rule) {
            digest.update(b" ");
            digest.update(fragment.as_bytes());
        }
        previous = digest.finalize();
        ids.push(RuleId::parse(&URL_SAFE_NO_PAD.encode(previous)[..ID_LENGTH]));
    }
    ids.into()
}

/// The comment that carries an id.
pub fn hash_comment(id: RuleId) -> String {
    format!("{HASH_PREFIX}{}", id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jump(target: &str) -> Rule {
        Rule { action: format!("--jump {target}"), ..Rule::default() }
    }

    #[test]
    fn hooks_have_the_ids_that_running_clusters_carry() {
        let known =
            [("INPUT", "Cz_u1IQiXIMmKD4c"), ("FORWARD", "wUHhoiAYhphO9Mso"), ("OUTPUT", "tVnHkvAo15HuiPy0")];
        for (chain, id) in known {
            let ids = hook_hashes(chain, false, &[jump(&format!("cali-{chain}"))]);
            assert_eq!(ids.iter().map(RuleId::as_str).collect::<Vec<_>>(), [id]);
        }
    }

    #[test]
    fn the_same_rule_at_another_position_has_another_id() {
        let chain = Chain { name: "cali-x".into(), rules: vec![jump("DROP"), jump("DROP")] };
        let ids = chain_hashes(&chain);
        assert_ne!(ids[0], ids[1]);
    }

    #[test]
    fn a_change_alters_every_later_id_and_no_earlier_one() {
        let before = Chain { name: "c".into(), rules: vec![jump("A"), jump("B"), jump("C")] };
        let mut after = before.clone();
        after.rules[1] = jump("D");
        let (before, after) = (chain_hashes(&before), chain_hashes(&after));
        assert_eq!(before[0], after[0]);
        assert_ne!(before[1], after[1]);
        assert_ne!(before[2], after[2]);
    }

    #[test]
    fn appended_hooks_are_seeded_apart() {
        let rules = [jump("cali-POSTROUTING")];
        assert_ne!(hook_hashes("POSTROUTING", true, &rules), hook_hashes("POSTROUTING", false, &rules));
    }
}
