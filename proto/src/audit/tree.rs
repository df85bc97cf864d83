//! The Merkle tree of RFC 6962 (section 2.1): hashes, roots, and the two proofs. The verification algorithms are those of
//! RFC 9162 sections 2.1.3.2 and 2.1.4.2.

use sha2::{Digest, Sha256};

/// A node of the tree.
pub type Hash = [u8; 32];

/// Hash of a leaf: SHA-256 of `0x00 ‖ leaf`.
#[must_use]
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    Sha256::new().chain_update([0u8]).chain_update(leaf).finalize().into()
}

/// Hash of an inner node: SHA-256 of `0x01 ‖ left ‖ right`.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1u8]).chain_update(left).chain_update(right).finalize().into()
}

/// Root over leaf hashes; of nothing, SHA-256 of the empty string.
#[must_use]
pub fn root_hash(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [one] => *one,
        many => {
            let (left, right) = many.split_at(split(many.len()));
            node_hash(&root_hash(left), &root_hash(right))
        }
    }
}

/// The largest power of two below `n`, for `n` of at least two.
fn split(n: usize) -> usize {
    1 << (usize::BITS - 1 - (n - 1).leading_zeros())
}

/// The right edge of a growing tree: what is needed to append and to know the root, 32 bytes a level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// Roots of the full subtrees from left (largest) to right (smallest).
    subtrees: Vec<Hash>,
}

impl Frontier {
    /// The frontier with this size and these subtree roots; `None` when their number does not fit the size.
    #[must_use]
    pub fn from_parts(size: u64, subtrees: Vec<Hash>) -> Option<Self> {
        (subtrees.len() == size.count_ones() as usize).then_some(Self { size, subtrees })
    }

    /// Leaves in the tree.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Roots of the full subtrees, left to right.
    #[must_use]
    pub fn subtrees(&self) -> &[Hash] {
        &self.subtrees
    }

    /// Appends a leaf by its hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        // Each trailing one bit of the size is a full subtree of the same height as `node`.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.subtrees.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.subtrees.push(node);
        self.size += 1;
    }

    /// Root of the tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut from_right = self.subtrees.iter().rev();
        match from_right.next() {
            None => root_hash(&[]),
            Some(last) => from_right.fold(*last, |right, left| node_hash(left, &right)),
        }
    }
}

/// Proof that leaf `index` is in the tree of these leaves. Empty when `index` is outside.
#[must_use]
pub fn inclusion_proof(leaves: &[Hash], index: usize) -> Vec<Hash> {
    if index >= leaves.len() || leaves.len() == 1 {
        return Vec::new();
    }
    let k = split(leaves.len());
    let (left, right) = leaves.split_at(k);
    let (mut proof, sibling) = if index < k {
        (inclusion_proof(left, index), root_hash(right))
    } else {
        (inclusion_proof(right, index - k), root_hash(left))
    };
    proof.push(sibling);
    proof
}

/// Proof that the tree of the first `old_size` leaves is a prefix of the tree of all. Empty for `0` and for all.
#[must_use]
pub fn consistency_proof(leaves: &[Hash], old_size: usize) -> Vec<Hash> {
    if old_size == 0 || old_size >= leaves.len() {
        return Vec::new();
    }
    subproof(leaves, old_size, true)
}

fn subproof(leaves: &[Hash], m: usize, whole: bool) -> Vec<Hash> {
    if m == leaves.len() {
        return if whole { Vec::new() } else { vec![root_hash(leaves)] };
    }
    let k = split(leaves.len());
    let (left, right) = leaves.split_at(k);
    let (mut proof, sibling) = if m <= k {
        (subproof(left, m, whole), root_hash(right))
    } else {
        (subproof(right, m - k, false), root_hash(left))
    };
    proof.push(sibling);
    proof
}

/// Checks an inclusion proof.
#[must_use]
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut fnode, mut snode, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if snode == 0 {
            return false;
        }
        if fnode & 1 == 1 || fnode == snode {
            hash = node_hash(sibling, &hash);
            while fnode & 1 == 0 && fnode != 0 {
                fnode >>= 1;
                snode >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        fnode >>= 1;
        snode >>= 1;
    }
    snode == 0 && hash == *root
}

/// Checks that a tree of `new_size` with root `new_root` extends one of `old_size` with root `old_root`.
#[must_use]
pub fn verify_consistency(old_size: u64, old_root: &Hash, new_size: u64, new_root: &Hash, proof: &[Hash]) -> bool {
    if old_size > new_size {
        return false;
    }
    if old_size == new_size {
        return proof.is_empty() && old_root == new_root;
    }
    if old_size == 0 {
        return proof.is_empty() && *old_root == root_hash(&[]);
    }
    let mut path = proof.iter();
    let first = if old_size.is_power_of_two() { Some(old_root) } else { path.next() };
    let Some(first) = first else { return false };
    let (mut fnode, mut snode) = (old_size - 1, new_size - 1);
    while fnode & 1 == 1 {
        fnode >>= 1;
        snode >>= 1;
    }
    let (mut old_hash, mut new_hash) = (*first, *first);
    for sibling in path {
        if snode == 0 {
            return false;
        }
        if fnode & 1 == 1 || fnode == snode {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while fnode & 1 == 0 && fnode != 0 {
                fnode >>= 1;
                snode >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        fnode >>= 1;
        snode >>= 1;
    }
    snode == 0 && old_hash == *old_root && new_hash == *new_root
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(n: usize) -> Vec<Hash> {
        (0..n).map(|i| leaf_hash(&i.to_le_bytes())).collect()
    }

    fn hex(hash: &Hash) -> String {
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Known answers of the Certificate Transparency reference tree (leaves of RFC 6962 test programs).
    #[test]
    fn roots_equal_the_published_ones() {
        let data: [&[u8]; 3] = [b"", b"\x00", b"\x10"];
        let hashes: Vec<Hash> = data.iter().map(|leaf| leaf_hash(leaf)).collect();
        assert_eq!(hex(&root_hash(&[])), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(hex(&root_hash(&hashes[..1])), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        assert_eq!(hex(&root_hash(&hashes[..2])), "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125");
        assert_eq!(hex(&root_hash(&hashes[..3])), "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77");
    }

    #[test]
    fn frontier_and_whole_tree_agree() {
        let all = leaves(70);
        let mut frontier = Frontier::default();
        for n in 0..all.len() {
            assert_eq!(frontier.root(), root_hash(&all[..n]));
            let copy = Frontier::from_parts(frontier.size(), frontier.subtrees().to_vec());
            assert_eq!(copy.as_ref(), Some(&frontier));
            frontier.push(all[n]);
        }
    }

    #[test]
    fn proofs_hold_and_only_for_what_they_prove() {
        let all = leaves(21);
        for n in 1..=all.len() {
            let root = root_hash(&all[..n]);
            for i in 0..n {
                let proof = inclusion_proof(&all[..n], i);
                assert!(verify_inclusion(&all[i], i as u64, n as u64, &proof, &root));
                assert!(!verify_inclusion(&all[(i + 1) % all.len()], i as u64, n as u64, &proof, &root));
                let extra = [proof.clone(), vec![[0; 32]]].concat();
                assert!(!verify_inclusion(&all[i], i as u64, n as u64, &extra, &root));
            }
            for old in 0..=n {
                let old_root = root_hash(&all[..old]);
                let proof = consistency_proof(&all[..n], old);
                assert!(verify_consistency(old as u64, &old_root, n as u64, &root, &proof), "{old} of {n}");
                if old > 0 {
                    let mut forged = all[..old].to_vec();
                    forged[0] = [9; 32];
                    assert!(!verify_consistency(old as u64, &root_hash(&forged), n as u64, &root, &proof));
                }
            }
        }
    }
}
