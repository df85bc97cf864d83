//! The hash tree cut into tiles, as C2SP `tlog-tiles` lays it out: a tile at level `L` holds up to 256 hashes of the tree's
//! level `8·L`. Proofs are made from nodes that whoever calls looks up, so that one costs a few tiles and not every
//! leaf. Where tiles are kept is not known here.

use super::tree::{Hash, node_hash, root_hash};

/// Hashes in a full tile.
pub const TILE_WIDTH: u64 = 256;
/// Levels of the tree that one tile spans.
pub const TILE_HEIGHT: u32 = 8;
/// Highest level of tiles: eight of them span every tree whose size fits 64 bits.
pub const MAX_TILE_LEVEL: u8 = 7;

/// Where a tile stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileAt {
    /// Level of tiles, from the leaves up.
    pub level: u8,
    /// Position in its level, from the left.
    pub index: u64,
}

/// A node of the tree: a full subtree of `2^height` leaves, the `index`-th from the left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAt {
    /// Height over the leaves.
    pub height: u32,
    /// Position among the nodes of this height.
    pub index: u64,
}

impl TileAt {
    /// How many hashes the tile has in a tree of this many leaves.
    #[must_use]
    pub fn width(self, size: u64) -> u64 {
        let hashes = size.checked_shr(TILE_HEIGHT * u32::from(self.level)).unwrap_or(0);
        let first = self.index.saturating_mul(TILE_WIDTH);
        hashes.saturating_sub(first).min(TILE_WIDTH)
    }

    /// Its path below the log's address: `tile/0/x001/234`, with `.p/W` when only `W` hashes of it are there.
    #[must_use]
    pub fn path(self, width: u64) -> String {
        let mut groups = vec![format!("{:03}", self.index % 1000)];
        let mut rest = self.index / 1000;
        while rest > 0 {
            groups.push(format!("x{:03}", rest % 1000));
            rest /= 1000;
        }
        groups.reverse();
        let partial = if width < TILE_WIDTH { format!(".p/{width}") } else { String::new() };
        format!("tile/{}/{}{partial}", self.level, groups.join("/"))
    }
}

impl NodeAt {
    /// The tile that the node is computed from.
    #[must_use]
    pub fn tile(self) -> TileAt {
        let within = self.height % TILE_HEIGHT;
        let level = (self.height / TILE_HEIGHT) as u8;
        TileAt { level, index: self.index >> (TILE_HEIGHT - within) }
    }

    /// The node's hash out of the hashes of its tile; `None` when the tile has too few.
    #[must_use]
    pub fn of_tile(self, hashes: &[Hash]) -> Option<Hash> {
        let within = self.height % TILE_HEIGHT;
        let first = (self.index & ((TILE_WIDTH >> within) - 1)) << within;
        hashes.get(first as usize..(first + (1 << within)) as usize).map(root_hash)
    }
}

/// Hash over the leaves `start..end`, where `start` is a multiple of the least power of two that spans them.
fn range_hash<E>(start: u64, end: u64, node: &mut impl FnMut(NodeAt) -> Result<Hash, E>) -> Result<Hash, E> {
    let leaves = end - start;
    if leaves.is_power_of_two() {
        let height = leaves.trailing_zeros();
        return node(NodeAt { height, index: start >> height });
    }
    let middle = start + split(leaves);
    Ok(node_hash(&range_hash(start, middle, node)?, &range_hash(middle, end, node)?))
}

/// The largest power of two below `n`, for `n` of at least two.
const fn split(n: u64) -> u64 {
    1 << (u64::BITS - 1 - (n - 1).leading_zeros())
}

/// Proof that leaf `index` is in the tree of `size` leaves. Empty when `index` is outside.
///
/// # Errors
/// Those of `node`.
pub fn inclusion_by_nodes<E>(
    size: u64,
    index: u64,
    mut node: impl FnMut(NodeAt) -> Result<Hash, E>,
) -> Result<Vec<Hash>, E> {
    let (mut start, mut end, mut proof) = (0, size, Vec::new());
    while index < size && end - start > 1 {
        let middle = start + split(end - start);
        if index < middle {
            proof.push(range_hash(middle, end, &mut node)?);
            end = middle;
        } else {
            proof.push(range_hash(start, middle, &mut node)?);
            start = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// Proof that the tree of `old_size` leaves is a prefix of the one of `size`. Empty for `0` and for all.
///
/// # Errors
/// Those of `node`.
pub fn consistency_by_nodes<E>(
    size: u64,
    old_size: u64,
    mut node: impl FnMut(NodeAt) -> Result<Hash, E>,
) -> Result<Vec<Hash>, E> {
    let (mut start, mut end, mut proof) = (0, size, Vec::new());
    if old_size == 0 || old_size >= size {
        return Ok(proof);
    }
    while old_size != end {
        let middle = start + split(end - start);
        if old_size <= middle {
            proof.push(range_hash(middle, end, &mut node)?);
            end = middle;
        } else {
            proof.push(range_hash(start, middle, &mut node)?);
            start = middle;
        }
    }
    if start > 0 {
        proof.push(range_hash(start, end, &mut node)?);
    }
    proof.reverse();
    Ok(proof)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{consistency_proof, inclusion_proof, leaf_hash};
    use std::convert::Infallible;

    #[test]
    fn paths_are_those_of_the_layout() {
        let path = |level, index, width| TileAt { level, index }.path(width);
        assert_eq!(path(0, 0, 256), "tile/0/000");
        assert_eq!(path(1, 1_234_067, 256), "tile/1/x001/x234/067");
        assert_eq!(path(0, 1_000, 12), "tile/0/x001/000.p/12");
        let width = |level, index| TileAt { level, index }.width(70_000);
        assert_eq!([width(0, 272), width(0, 273), width(0, 274)], [256, 112, 0]);
        assert_eq!([width(1, 0), width(1, 1), width(2, 0), width(MAX_TILE_LEVEL, 0)], [256, 17, 1, 0]);
    }

    #[test]
    fn proofs_out_of_tiles_are_those_of_the_whole_tree() {
        let leaves: Vec<Hash> = (0..600_u64).map(|i| leaf_hash(&i.to_le_bytes())).collect();
        let upper: Vec<Hash> = leaves.chunks_exact(256).map(root_hash).collect();
        for size in [1, 2, 3, 7, 255, 256, 257, 511, 512, 513, 600_u64] {
            let all = &leaves[..size as usize];
            let node = |at: NodeAt| -> Result<Hash, Infallible> {
                let tile = at.tile();
                let level = if tile.level == 0 { &leaves } else { &upper };
                let first = (tile.index * TILE_WIDTH) as usize;
                let held = &level[first..first + tile.width(size) as usize];
                Ok(at.of_tile(held).expect("inside the tile"))
            };
            for at in 0..=size {
                let found = inclusion_by_nodes(size, at, node).expect("infallible");
                assert_eq!(found, inclusion_proof(all, at as usize), "leaf {at} of {size}");
                let found = consistency_by_nodes(size, at, node).expect("infallible");
                assert_eq!(found, consistency_proof(all, at as usize), "{at} of {size}");
            }
        }
    }
}
