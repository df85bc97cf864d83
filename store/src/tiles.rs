//! Tiles of the audit tree, kept so that a proof reads a few of them and not every entry. They are derived: a missing one
//! is computed from what lies below it, which is how a store of an earlier release gets along. What is proved with them
//! is not known here.

use crate::error::{ReadError, WriteError};
use crate::findings::Findings;
use crate::format;
use crate::keys::{Purpose, Shared};
use crate::reader::Reader;
use crate::tables::Table;
use crate::writer::Writer;
use empathd_proto::audit::tile::{MAX_TILE_LEVEL, NodeAt, TILE_HEIGHT, TILE_WIDTH, TileAt};
use empathd_proto::audit::tree::root_hash;
use empathd_proto::audit::{Hash, leaf_hash};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// What the key of a tile in the table of single values begins with.
const TILE_KEY: &[u8] = b"tile";

/// Key of a tile's row: the word, the level, the index (big-endian).
pub(crate) fn key(at: TileAt) -> Vec<u8> {
    [TILE_KEY, &[at.level], &at.index.to_be_bytes()].concat()
}

/// The tiles that a proof has looked at: each is read once.
#[derive(Default)]
pub(crate) struct SeenTiles(HashMap<TileAt, Vec<Hash>>);

impl Reader<'_> {
    /// A node of the tree of `size` entries.
    pub(crate) fn audit_node(&self, at: NodeAt, size: u64, seen: &mut SeenTiles) -> Result<Hash, ReadError> {
        let tile = at.tile();
        let hashes = match seen.0.entry(tile) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(new) => new.insert(self.audit_tile(tile, size)?),
        };
        at.of_tile(hashes).ok_or(ReadError::Integrity("a tile of the audit tree is too short"))
    }

    /// The hashes of a tile in the tree of `size` entries.
    pub(crate) fn audit_tile(&self, at: TileAt, size: u64) -> Result<Vec<Hash>, ReadError> {
        let width = at.width(size);
        let mut hashes = self.stored_tile(at)?.unwrap_or_default();
        hashes.truncate(width as usize);
        let first = at.index * TILE_WIDTH;
        for below in first + hashes.len() as u64..first + width {
            hashes.push(match at.level.checked_sub(1) {
                Some(level) => root_hash(&self.audit_tile(TileAt { level, index: below }, size)?),
                None => self.audit_leaf_hash(below)?,
            });
        }
        Ok(hashes)
    }

    /// Compares the kept tile with what follows from the entries; a missing one is no finding.
    pub(crate) fn check_tile(&self, at: TileAt, computed: &[Hash], findings: &mut Findings) -> Result<(), ReadError> {
        match self.stored_tile(at) {
            Ok(None) => {}
            Ok(Some(kept)) if kept == computed => {}
            Ok(Some(_)) | Err(ReadError::Integrity(_)) => {
                findings.add("a tile of the audit tree does not follow from the entries".to_owned());
            }
            Err(other) => return Err(other),
        }
        Ok(())
    }

    /// The tile as it is kept, if it is.
    pub(crate) fn stored_tile(&self, at: TileAt) -> Result<Option<Vec<Hash>>, ReadError> {
        self.decoded(Table::Meta, &key(at))
    }

    fn audit_leaf_hash(&self, seq: u64) -> Result<Hash, ReadError> {
        let leaf = self.value(Table::Audit, &seq.to_be_bytes())?;
        leaf.map(|(_, leaf)| leaf_hash(&leaf)).ok_or(ReadError::Integrity("an audit entry is missing"))
    }
}

impl Writer<'_> {
    /// Keeps the tiles that the entry before `size` completed: the full one of the leaves, and above it the growing ones.
    pub(crate) fn grow_tiles(&mut self, size: u64) -> Result<(), WriteError> {
        for level in 0..=MAX_TILE_LEVEL {
            let hashes = size >> (TILE_HEIGHT * u32::from(level));
            if level == 0 && !hashes.is_multiple_of(TILE_WIDTH) {
                return Ok(());
            }
            let at = TileAt { level, index: (hashes - 1) / TILE_WIDTH };
            let tile = self.audit_tile(at, size)?;
            self.put(Table::Meta, &key(at), Purpose::Shared(Shared::Meta), &format::encode(&tile))?;
            if (tile.len() as u64) < TILE_WIDTH {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Builds the tiles of a tree from its leaves, left to right, for comparison.
#[derive(Default)]
pub(crate) struct Tower(Vec<(u64, Vec<Hash>)>);

impl Tower {
    /// Takes the next leaf; compares each tile that it completes.
    pub(crate) fn push(&mut self, leaf: Hash, reader: &Reader<'_>, findings: &mut Findings) -> Result<(), ReadError> {
        let mut hash = leaf;
        for level in 0..=MAX_TILE_LEVEL {
            if self.0.len() <= usize::from(level) {
                self.0.push((0, Vec::new()));
            }
            let (index, tile) = &mut self.0[usize::from(level)];
            tile.push(hash);
            if (tile.len() as u64) < TILE_WIDTH {
                break;
            }
            reader.check_tile(TileAt { level, index: *index }, tile, findings)?;
            hash = root_hash(tile);
            *index += 1;
            tile.clear();
        }
        Ok(())
    }

    /// Compares the tiles that are still growing.
    pub(crate) fn finish(&self, reader: &Reader<'_>, findings: &mut Findings) -> Result<(), ReadError> {
        for (level, (index, tile)) in self.0.iter().enumerate() {
            reader.check_tile(TileAt { level: level as u8, index: *index }, tile, findings)?;
        }
        Ok(())
    }
}
