//! The cache's side of content digests [B4]: per kind, sums of entries by key, kept with every change.

use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use syncer_common::digest::{self, BRANCHES, OF_BRANCH};
use syncer_common::model::Kind;

use super::cache::{Cache, Entry};

/// One kind's tree: the leaves that are not empty, and when something last changed in each branch.
#[derive(Debug)]
pub(super) struct Tree {
    leaves: BTreeMap<u16, Leaf>,
    changed: [u64; BRANCHES as usize],
    /// Of the encoded entries.
    pub bytes: usize,
}

impl Default for Tree {
    fn default() -> Self {
        Tree { leaves: BTreeMap::new(), changed: [0; BRANCHES as usize], bytes: 0 }
    }
}

#[derive(Debug, Default)]
pub(super) struct Leaf {
    sum: u64,
    pub keys: Vec<Arc<str>>,
}

impl Tree {
    pub fn add(&mut self, leaf: u16, key: Arc<str>, entry: &Entry) {
        self.changed[usize::from(leaf / OF_BRANCH)] = entry.seq;
        self.bytes += entry.encoded.bytes.len();
        let leaf = self.leaves.entry(leaf).or_default();
        leaf.sum = leaf.sum.wrapping_add(entry.hash);
        leaf.keys.push(key);
    }

    /// `seq`: of what takes the entry's place.
    pub fn remove(&mut self, number: u16, key: &str, entry: &Entry, seq: u64) {
        self.changed[usize::from(number / OF_BRANCH)] = seq;
        self.bytes -= entry.encoded.bytes.len();
        let Some(leaf) = self.leaves.get_mut(&number) else { return };
        leaf.sum = leaf.sum.wrapping_sub(entry.hash);
        leaf.keys.retain(|held| **held != *key);
        if leaf.keys.is_empty() {
            self.leaves.remove(&number);
        }
    }

    fn sums(&self) -> impl Iterator<Item = (u16, u64)> {
        self.leaves.iter().map(|(number, leaf)| (*number, leaf.sum))
    }

    /// Keys of the leaves in the range.
    pub fn keys(&self, leaves: impl std::ops::RangeBounds<u16>) -> impl Iterator<Item = &Arc<str>> {
        self.leaves.range(leaves).flat_map(|(_, leaf)| &leaf.keys)
    }
}

/// What a client lacks of a kind, and what it has that is not here.
#[derive(Debug, Default)]
pub struct Difference {
    /// Encoded members of a batch.
    pub entries: Vec<Bytes>,
    pub gone: Vec<u64>,
}

impl Cache {
    pub fn root(&self, kind: Kind) -> [u64; 2] {
        digest::root(self.tree(kind).into_iter().flat_map(Tree::sums))
    }

    /// The sums of all branches.
    pub fn branches(&self, kind: Kind) -> Vec<u64> {
        let mut sums = vec![0u64; usize::from(digest::BRANCHES)];
        for (leaf, sum) in self.tree(kind).into_iter().flat_map(Tree::sums) {
            let branch = &mut sums[usize::from(leaf / OF_BRANCH)];
            *branch = branch.wrapping_add(sum);
        }
        sums
    }

    /// The sums of all leaves of a branch.
    pub fn leaves(&self, kind: Kind, branch: u16) -> Vec<u64> {
        let mut sums = vec![0u64; usize::from(OF_BRANCH)];
        let first = branch * OF_BRANCH;
        for (number, leaf) in
            self.tree(kind).into_iter().flat_map(|tree| tree.leaves.range(first..first + OF_BRANCH))
        {
            sums[usize::from(number - first)] = leaf.sum;
        }
        sums
    }

    /// Bytes of all encoded entries: a snapshot that is not compressed.
    pub fn state_bytes(&self) -> usize {
        Kind::ALL.into_iter().map(|kind| self.bytes_of(kind)).sum()
    }

    /// Bytes of the encoded entries of a kind.
    pub(super) fn bytes_of(&self, kind: Kind) -> usize {
        self.tree(kind).map_or(0, |tree| tree.bytes)
    }

    /// The position of the last change within the leaves; of whole branches.
    pub(super) fn changed(&self, kind: Kind, leaves: &RangeInclusive<u16>) -> u64 {
        let branches = usize::from(leaves.start() / OF_BRANCH)..=usize::from(leaves.end() / OF_BRANCH);
        self.tree(kind).and_then(|tree| tree.changed[branches].iter().max().copied()).unwrap_or(0)
    }

    /// The entries in the leaves, by key (what lies together compresses well), as encoded members of a batch;
    /// and the position that they are of.
    pub(super) fn members(&self, kind: Kind, leaves: RangeInclusive<u16>) -> (Vec<Bytes>, u64) {
        let mut keys: Vec<&Arc<str>> =
            self.tree(kind).into_iter().flat_map(|tree| tree.keys(leaves.clone())).collect();
        keys.sort_unstable();
        let entries = keys.into_iter().filter_map(|key| self.entry(key));
        (entries.map(|entry| entry.encoded.bytes.clone()).collect(), self.head())
    }

    /// Compares with a client that holds `hashes` in the leaves (none named: in all of them).
    pub fn difference(&self, kind: Kind, leaves: &[u16], hashes: &[u64]) -> Difference {
        let mut theirs: HashSet<u64> = hashes.iter().copied().collect();
        let mut difference = Difference::default();
        let Some(tree) = self.tree(kind) else {
            return Difference { gone: hashes.to_vec(), ..difference };
        };
        let all = leaves.is_empty().then(|| tree.keys(..));
        let some = leaves.iter().flat_map(|leaf| tree.keys(*leaf..=*leaf));
        for entry in all.into_iter().flatten().chain(some).filter_map(|key| self.entry(key)) {
            if !theirs.remove(&entry.hash) {
                difference.entries.push(entry.encoded.bytes.clone());
            }
        }
        difference.gone.extend(theirs);
        difference
    }
}
