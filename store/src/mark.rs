//! The mark: how long the audit trail was at the last change that was acknowledged, kept beside the transactions of the
//! database. A database that shows less than its mark lost its newest change: redb goes back to the state before without a
//! word when a byte of the newest one, or the byte that says which is the newest, was changed. A whole older file brings its
//! own mark; that is noticed by a checkpoint kept elsewhere. What the trail says is not known here.

use crate::engine::NOTE_BYTES;
use crate::error::{Fault, ReadError};
use crate::keys::{Keys, Shared};
use crate::reader::Reader;
use crate::store::Opened;
use std::sync::{Mutex, PoisonError};
use subtle::ConstantTimeEq;

/// What the digest of a mark begins with; no row of a table head does.
const LABEL: &[u8] = b"empathd/mark/1";

/// The longest trail that was marked.
#[derive(Default)]
pub(crate) struct Mark(Mutex<u64>);

impl Opened {
    /// Marks that a change is durable which made the trail this long. A mark that cannot be written is no fault of the change:
    /// the next one is written over it.
    pub(crate) fn acknowledge(&self, entries: u64) {
        let mut marked = self.mark.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *marked < entries {
            *marked = entries;
            let _ = self.db().and_then(|db| db.leave_note(&mark(&self.keys, entries)));
        }
    }

    /// Whether the database shows everything that was acknowledged.
    pub(crate) fn check_mark(&self, reader: &Reader<'_>) -> Result<(), ReadError> {
        let note = self.db().and_then(|db| db.note())?;
        // What does not authenticate says nothing: a power cut may have left it half written.
        let marked = read(&self.keys, &note).unwrap_or(0);
        if marked > 0 && reader.audit_count()? < marked {
            return Err(Fault::Damaged("the database is older than the last change that was acknowledged").into());
        }
        Ok(())
    }
}

fn mark(keys: &Keys, entries: u64) -> [u8; NOTE_BYTES] {
    let mut note = [0; NOTE_BYTES];
    let (size, digest) = note.split_at_mut(size_of::<u64>());
    size.copy_from_slice(&entries.to_le_bytes());
    let mut hasher = blake3::Hasher::new_keyed(keys.shared(Shared::Fold));
    digest.copy_from_slice(hasher.update(LABEL).update(size).finalize().as_bytes());
    note
}

fn read(keys: &Keys, note: &[u8; NOTE_BYTES]) -> Option<u64> {
    let (size, _) = note.split_first_chunk()?;
    let entries = u64::from_le_bytes(*size);
    bool::from(mark(keys, entries).ct_eq(note)).then_some(entries)
}
