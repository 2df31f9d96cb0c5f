//! The cache's side of content digests [B4]: per kind, sums of entries by key, kept with every change.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use syncer_common::digest::{self, OF_BRANCH};
use syncer_common::model::Kind;

use super::cache::Cache;

/// One kind's tree: the leaves that are not empty.
#[derive(Debug, Default)]
pub(super) struct Tree(BTreeMap<u16, Leaf>);

#[derive(Debug, Default)]
pub(super) struct Leaf {
    sum: u64,
    pub keys: Vec<Arc<str>>,
}

impl Tree {
    pub fn add(&mut self, leaf: u16, key: Arc<str>, hash: u64) {
        let leaf = self.0.entry(leaf).or_default();
        leaf.sum = leaf.sum.wrapping_add(hash);
        leaf.keys.push(key);
    }

    pub fn remove(&mut self, number: u16, key: &str, hash: u64) {
        let Some(leaf) = self.0.get_mut(&number) else { return };
        leaf.sum = leaf.sum.wrapping_sub(hash);
        leaf.keys.retain(|held| **held != *key);
        if leaf.keys.is_empty() {
            self.0.remove(&number);
        }
    }

    fn sums(&self) -> impl Iterator<Item = (u16, u64)> {
        self.0.iter().map(|(number, leaf)| (*number, leaf.sum))
    }

    /// Keys of the leaves in the range.
    pub fn keys(&self, leaves: impl std::ops::RangeBounds<u16>) -> impl Iterator<Item = &Arc<str>> {
        self.0.range(leaves).flat_map(|(_, leaf)| &leaf.keys)
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
            self.tree(kind).into_iter().flat_map(|tree| tree.0.range(first..first + OF_BRANCH))
        {
            sums[usize::from(number - first)] = leaf.sum;
        }
        sums
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
