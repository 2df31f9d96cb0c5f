//! Content digests: what two sides compute of the same entries to find where they differ, without sending them.
//!
//! Per kind a tree of three levels: a root, 64 branches, 4,096 leaves. Which leaf a key belongs to depends on the
//! key alone. Sums are of hashes of key and value, and wrap: an entry that changes costs one subtraction and one
//! addition. There are no revisions in them, so that replicas that list at different times agree.

/// Leaves of a tree, and leaves of a branch.
pub const LEAVES: u16 = 4_096;
pub const OF_BRANCH: u16 = 64;
pub const BRANCHES: u16 = LEAVES / OF_BRANCH;

/// The hash of an entry.
pub fn hash(key: &str, value: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key.as_bytes());
    hasher.update(&[0]);
    hasher.update(value);
    first(&hasher.finalize())
}

/// The leaf of a key.
pub fn leaf(key: &str) -> u16 {
    let hash = blake3::hash(key.as_bytes());
    u16::from_be_bytes([hash.as_bytes()[0], hash.as_bytes()[1]]) >> 4
}

/// The root over the sums of leaves that are not empty, in order.
pub fn root(leaves: impl Iterator<Item = (u16, u64)>) -> [u64; 2] {
    let mut hasher = blake3::Hasher::new();
    for (leaf, sum) in leaves {
        hasher.update(&leaf.to_be_bytes());
        hasher.update(&sum.to_be_bytes());
    }
    let hash = hasher.finalize();
    let second = hash.as_bytes()[8..16].try_into().expect("a hash has 32 bytes");
    [first(&hash), u64::from_be_bytes(second)]
}

/// The number that stands for a source on the wire.
pub fn source_id(name: &str) -> u32 {
    (first(&blake3::hash(name.as_bytes())) >> 32) as u32
}

fn first(hash: &blake3::Hash) -> u64 {
    u64::from_be_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other implementations of the protocol compute the same: these are BLAKE3's own values.
    #[test]
    fn hashes_are_those_of_the_protocol() {
        let expected = blake3::hash(b"/calico/v1/Ready\0\x08\x01");
        assert_eq!(hash("/calico/v1/Ready", &[8, 1]).to_be_bytes(), expected.as_bytes()[..8]);
        // BLAKE3 of nothing begins with af1349b9f5f9a1a6 a0404dea36dcc949.
        assert_eq!(root([].into_iter()), [0xaf13_49b9_f5f9_a1a6, 0xa040_4dea_36dc_c949]);
        assert_eq!((leaf(""), source_id("")), (0xaf1, 0xaf13_49b9));
    }

    #[test]
    fn keys_spread_over_the_leaves() {
        let mut leaves: Vec<u16> = (0..20_000).map(|n| leaf(&format!("/calico/v1/config/Key{n}"))).collect();
        leaves.sort_unstable();
        assert!(leaves.iter().all(|leaf| *leaf < LEAVES));
        leaves.dedup();
        assert!(leaves.len() > 3_900, "{}", leaves.len());
    }
}
