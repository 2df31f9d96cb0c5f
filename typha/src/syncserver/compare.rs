//! Content digests, the server's side: what to ask a client next, and in the end what it lacks and what it holds
//! too much [B4]. No I/O.
//!
//! The client stands still while it is asked; the cache does not. That is harmless: what changes here meanwhile
//! follows as changes since the position that was noted before, to which repeated entries and unknown deletions do
//! no harm. What did not change since then has been compared.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::sync::{DigestAnswer, DigestRequest, Gone, server_message::Message};
use syncer_common::digest::{BRANCHES, LEAVES, OF_BRANCH};
use syncer_common::model::Kind;

use crate::snapcache::{Cache, KindSet, message, pages};

const FEW: u64 = 512;
/// When more of a kind differs, it is sent whole: numerator and denominator.
const MOST: (u64, u64) = (3, 10);
/// Hashes in one message about what is gone.
const GONE: usize = 64 << 10;
/// Hashes that a client may upload beyond what it can hold by our own count: it may have been away for long.
const SLACK: usize = 4 << 20;

type Error = &'static str;

pub(crate) struct Compare {
    /// Kinds with no more entries than this are compared entry by entry at once.
    few: u64,
    kinds: KindSet,
    begun: bool,
    asked: BTreeMap<Kind, Asked>,
    /// Too much of these differs.
    pub whole: KindSet,
}

/// What a client was asked about a kind.
enum Asked {
    Branches,
    Leaves { branches: Vec<u16> },
    Hashes { leaves: Vec<u16>, received: Vec<u64> },
}

impl Compare {
    pub fn new(kinds: KindSet) -> Self {
        Compare::with_few(kinds, FEW)
    }

    pub fn with_few(kinds: KindSet, few: u64) -> Self {
        Compare { few, kinds, begun: false, asked: BTreeMap::new(), whole: KindSet::default() }
    }

    /// Everything has been compared, and what differs been answered.
    pub fn done(&self) -> bool {
        self.begun && self.asked.is_empty()
    }

    /// The encoded messages that follow from an answer.
    pub fn on_answer(&mut self, answer: DigestAnswer, cache: &Cache) -> Result<Vec<Bytes>, Error> {
        if answer.depth == 0 {
            return self.on_roots(&answer.sums, cache);
        }
        let kind = Kind::from_name(&answer.kind).ok_or("a digest of an unknown kind")?;
        let asked = self.asked.remove(&kind).ok_or("a digest of a kind that nobody has asked about")?;
        match (answer.depth, asked) {
            (1, Asked::Branches) => self.on_branches(kind, &answer.sums, cache),
            (2, Asked::Leaves { branches }) => self.on_leaves(kind, &branches, &answer.sums, cache),
            (3, Asked::Hashes { leaves, mut received }) => {
                received.extend(answer.hashes);
                if !answer.last {
                    if received.len() > SLACK {
                        return Err("more keys than any node holds");
                    }
                    self.asked.insert(kind, Asked::Hashes { leaves, received });
                    return Ok(Vec::new());
                }
                Ok(answer_with(kind, &leaves, &received, cache))
            }
            _ => Err("a digest of another depth than was asked for"),
        }
    }

    fn on_roots(&mut self, sums: &[u64], cache: &Cache) -> Result<Vec<Bytes>, Error> {
        if std::mem::replace(&mut self.begun, true) {
            return Err("roots are sent once");
        }
        let (roots, []) = sums.as_chunks::<2>() else { return Err("a root is two numbers") };
        if roots.len() != self.kinds.iter().count() {
            return Err("the roots of all kinds are needed, in the order of the hello");
        }
        let mut requests = Vec::new();
        for (kind, _) in self.kinds.iter().zip(roots).filter(|(kind, root)| cache.root(*kind) != **root) {
            let few = cache.live().get(&kind).is_none_or(|live| *live <= self.few);
            requests.push(match few {
                true => self.ask_for_hashes(kind, Vec::new()),
                false => self.ask(kind, 1, &[], Asked::Branches),
            });
        }
        Ok(requests)
    }

    fn on_branches(&mut self, kind: Kind, sums: &[u64], cache: &Cache) -> Result<Vec<Bytes>, Error> {
        if sums.len() != usize::from(BRANCHES) {
            return Err("a sum for each branch is needed");
        }
        let own = cache.branches(kind);
        let branches: Vec<u16> = differing(&own, sums).map(|branch| branch as u16).collect();
        // It may have changed since its root was compared, to what the client holds.
        if branches.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![self.ask(kind, 2, &branches, Asked::Leaves { branches: branches.clone() })])
    }

    fn on_leaves(
        &mut self,
        kind: Kind,
        branches: &[u16],
        sums: &[u64],
        cache: &Cache,
    ) -> Result<Vec<Bytes>, Error> {
        let (theirs, []) = sums.as_chunks::<{ OF_BRANCH as usize }>() else {
            return Err("a sum for each leaf is needed");
        };
        if theirs.len() != branches.len() {
            return Err("a sum for each leaf of the branches asked for is needed");
        }
        let mut leaves = Vec::new();
        for (branch, theirs) in branches.iter().zip(theirs) {
            let own = cache.leaves(kind, *branch);
            leaves.extend(differing(&own, theirs).map(|leaf| branch * OF_BRANCH + leaf as u16));
        }
        if leaves.is_empty() {
            return Ok(Vec::new());
        }
        let live = cache.live().get(&kind).copied().unwrap_or_default();
        if changes(leaves.len()) * MOST.1 > live * MOST.0 {
            self.whole.insert(kind);
            return Ok(Vec::new());
        }
        Ok(vec![self.ask_for_hashes(kind, leaves)])
    }

    fn ask_for_hashes(&mut self, kind: Kind, leaves: Vec<u16>) -> Bytes {
        self.ask(kind, 3, &leaves, Asked::Hashes { leaves: leaves.clone(), received: Vec::new() })
    }

    fn ask(&mut self, kind: Kind, depth: u32, buckets: &[u16], asked: Asked) -> Bytes {
        self.asked.insert(kind, asked);
        let buckets = buckets.iter().map(|bucket| u32::from(*bucket)).collect();
        message(Message::Digest(DigestRequest { kind: kind.name().to_owned(), depth, buckets }))
    }
}

fn differing<'a>(own: &'a [u64], theirs: &'a [u64]) -> impl Iterator<Item = usize> + 'a {
    own.iter().zip(theirs).enumerate().filter(|(_, (own, theirs))| own != theirs).map(|(index, _)| index)
}

/// How many changes make so many leaves differ: several of them fall into one leaf.
fn changes(leaves: usize) -> u64 {
    let of = f64::from(LEAVES);
    let untouched = (of - leaves as f64).max(0.5);
    (of * (of / untouched).ln()).round() as u64
}

/// What the client lacks, then what it holds too much.
fn answer_with(kind: Kind, leaves: &[u16], hashes: &[u64], cache: &Cache) -> Vec<Bytes> {
    let difference = cache.difference(kind, leaves, hashes);
    let gone = difference
        .gone
        .chunks(GONE)
        .map(|hashes| message(Message::Gone(Gone { kind: kind.name().to_owned(), hashes: hashes.to_vec() })));
    pages(&difference.entries).into_iter().chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_leaves_tell_how_much_has_changed() {
        assert_eq!((changes(0), changes(1), changes(10)), (0, 1, 10));
        // Of 30,000 changes almost no leaf is left alone: 4,096 × (1 − e^−7.3).
        assert!((900..1_100).contains(&changes(891)) && changes(4_094) > 29_000);
    }

    #[test]
    fn answers_that_were_not_asked_for_are_refused() {
        let mut cache = Cache::new("e", "");
        cache.follow(["etcd"]);
        let kinds: KindSet = [Kind::Node, Kind::Policy].into_iter().collect();
        let answer = |kind: Kind, depth, sums| DigestAnswer {
            kind: kind.name().to_owned(),
            depth,
            sums,
            ..DigestAnswer::default()
        };
        let roots = |count| answer(Kind::Node, 0, vec![1; count]);
        assert!(Compare::new(kinds).on_answer(roots(3), &cache).is_err());
        assert!(Compare::new(kinds).on_answer(roots(2), &cache).is_err());
        assert!(Compare::new(kinds).on_answer(answer(Kind::Node, 1, vec![0; 64]), &cache).is_err());
        let mut compare = Compare::new(kinds);
        assert_eq!(compare.on_answer(roots(4), &cache).unwrap().len(), 2);
        assert!(!compare.done());
        assert!(compare.on_answer(roots(4), &cache).is_err());
        assert!(compare.on_answer(answer(Kind::Node, 2, vec![0; 64]), &cache).is_err());
    }
}
