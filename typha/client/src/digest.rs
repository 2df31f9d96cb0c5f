//! Content digests, the client's side: what is held, as sums, for a server whose history does not reach back to our
//! token [B4]. Made once when a server asks; the state stands still until the server has answered.

use std::collections::{BTreeMap, HashMap};

use proto::sync::{DigestAnswer, DigestRequest};
use syncer_common::digest::{self, BRANCHES, OF_BRANCH};
use syncer_common::model::Kind;

/// Hashes in one message: 60 KiB.
const HASHES: usize = 7_680;

#[derive(Debug, Default)]
pub(crate) struct Digests {
    kinds: HashMap<Kind, BTreeMap<u16, Vec<u64>>>,
}

impl Digests {
    /// Of keys of a kind, with the hash of each.
    pub fn new(held: impl Iterator<Item = (Kind, impl AsRef<str>, u64)>) -> Self {
        let mut digests = Digests::default();
        for (kind, key, hash) in held {
            digests.kinds.entry(kind).or_default().entry(digest::leaf(key.as_ref())).or_default().push(hash);
        }
        digests
    }

    /// What begins the comparison. `kinds` are the server's; of those not known here nothing is held.
    pub fn roots(&self, kinds: &[String]) -> DigestAnswer {
        let root = |name: &String| {
            let leaves = self.leaves(name);
            digest::root(leaves.into_iter().flatten().map(|(leaf, hashes)| (*leaf, sum(hashes))))
        };
        DigestAnswer { sums: kinds.iter().flat_map(root).collect(), last: true, ..Default::default() }
    }

    pub fn answers(&self, request: &DigestRequest) -> Vec<DigestAnswer> {
        let nothing = BTreeMap::new();
        let leaves = self.leaves(&request.kind).unwrap_or(&nothing);
        let buckets = request.buckets.iter().filter_map(|bucket| u16::try_from(*bucket).ok());
        let branch = |branch: u16| {
            let first = branch.min(BRANCHES - 1) * OF_BRANCH;
            (first..first + OF_BRANCH).map(|leaf| leaves.get(&leaf).map_or(0, |hashes| sum(hashes)))
        };
        let answer = DigestAnswer {
            kind: request.kind.clone(),
            depth: request.depth,
            last: true,
            ..DigestAnswer::default()
        };
        match request.depth {
            1 => {
                let sums = (0..BRANCHES).map(|number| branch(number).fold(0, u64::wrapping_add));
                vec![DigestAnswer { sums: sums.collect(), ..answer }]
            }
            2 => vec![DigestAnswer { sums: buckets.flat_map(branch).collect(), ..answer }],
            _ => {
                let hashes: Vec<u64> = match request.buckets.is_empty() {
                    true => leaves.values().flatten().copied().collect(),
                    false => buckets.filter_map(|leaf| leaves.get(&leaf)).flatten().copied().collect(),
                };
                let chunks = hashes.chunks(HASHES).map(<[u64]>::to_vec);
                let mut answers: Vec<DigestAnswer> =
                    chunks.map(|hashes| DigestAnswer { hashes, last: false, ..answer.clone() }).collect();
                match answers.last_mut() {
                    Some(last) => last.last = true,
                    None => answers.push(answer),
                }
                answers
            }
        }
    }

    fn leaves(&self, kind: &str) -> Option<&BTreeMap<u16, Vec<u64>>> {
        self.kinds.get(&Kind::from_name(kind)?)
    }
}

fn sum(hashes: &[u64]) -> u64 {
    hashes.iter().fold(0, |sum, hash| sum.wrapping_add(*hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_answer_comes_in_pieces_and_the_last_says_so() {
        let keys: Vec<String> = (0..20_000).map(|n| format!("k{n}")).collect();
        let held = keys.iter().enumerate().map(|(n, key)| (Kind::Node, key.as_str(), n as u64));
        let digests = Digests::new(held);
        let request = |kind: Kind| DigestRequest { kind: kind.name().into(), depth: 3, buckets: vec![] };
        let answers = digests.answers(&request(Kind::Node));
        let shape: Vec<_> = answers.iter().map(|answer| (answer.hashes.len(), answer.last)).collect();
        assert_eq!(shape, [(7_680, false), (7_680, false), (4_640, true)]);
        let nothing = digests.answers(&request(Kind::Policy));
        assert_eq!((nothing.len(), nothing[0].last, nothing[0].hashes.len()), (1, true, 0));
    }

    #[test]
    fn branch_is_the_sum_of_its_leaves() {
        let keys: Vec<String> = (0..5_000).map(|n| format!("k{n}")).collect();
        let digests = Digests::new(keys.iter().map(|key| (Kind::Node, key.as_str(), digest::hash(key, b""))));
        let ask = |depth, buckets| DigestRequest { kind: Kind::Node.name().into(), depth, buckets };
        let branches = digests.answers(&ask(1, vec![])).remove(0).sums;
        let leaves = digests.answers(&ask(2, vec![0, 63])).remove(0).sums;
        assert_eq!((branches.len(), leaves.len()), (64, 128));
        assert_eq!((branches[0], branches[63]), (sum(&leaves[..64]), sum(&leaves[64..])));
    }
}
