//! The scrub: every value, audit entry and chunk of a file is read and authenticated, round after round, in steps of a bounded
//! size. A step holds one snapshot and no lock that a change waits for; where the round stands is in memory alone. How
//! often steps are taken, and who is told, is not known here.

use crate::blobs::CHUNK_BYTES;
use crate::error::ReadError;
use crate::findings::Findings;
use crate::reader::{Reader, id_bytes};
use crate::store::{FORMAT_KEY, Store};
use crate::tables::Table;
use empathd_proto::BlobId;
use std::sync::PoisonError;

/// Rows that are read at a time.
const ROWS: usize = 16;
/// Chunks that are read at a time.
const CHUNKS: u64 = 1;

/// What a step did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// Values and chunks that were looked at.
    pub checked: u64,
    /// Their bytes, sealed as they are.
    pub bytes: u64,
    /// What did not authenticate, without identifiers.
    pub findings: Vec<String>,
    /// The round ended with this step: everything was looked at once since the one before.
    pub is_round_over: bool,
}

/// Where a round stands.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    /// Position in [`Table::ALL`].
    table: usize,
    /// The last row that was looked at.
    after: Option<Vec<u8>>,
    /// The file that is being looked at, and its next chunk.
    file: Option<(BlobId, u64)>,
}

impl Store {
    /// Goes on with the round until about `bytes_max` bytes were authenticated or the round is over.
    ///
    /// # Errors
    /// [`ReadError::Sealed`] and those of the disk; what does not authenticate is a finding. The next step goes on behind it.
    pub fn scrub(&self, bytes_max: u64) -> Result<ScrubStep, ReadError> {
        let mut cursor = self.scrub.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = self.ready()?;
        let reader = Reader::new(&opened, &self.dir, opened.snapshot()?).without_doubt();
        let (mut step, mut findings) = (ScrubStep::default(), Findings::default());
        if cursor.table == 0 && cursor.after.is_none() {
            for doubted in opened.doubt.names() {
                findings.add(format!("{doubted}: rows do not fit their head since the store was unsealed"));
            }
        }
        while step.bytes < bytes_max && !step.is_round_over {
            match cursor.file.take() {
                Some((id, chunk)) => {
                    let mut checked = reader.check_chunks(id, chunk, CHUNKS);
                    if checked.is_err() {
                        // Its row may have left while the file was read; then there is nothing to find.
                        let now = Reader::new(&opened, &self.dir, opened.snapshot()?).without_doubt();
                        checked = now.check_chunks(id, chunk, CHUNKS);
                    }
                    cursor.file = sound(&mut findings, Table::Blobs, checked)?.flatten().map(|next| (id, next));
                    step.checked += CHUNKS;
                    step.bytes += CHUNKS * CHUNK_BYTES as u64;
                }
                None => cursor.rows(&reader, &mut step, &mut findings)?,
            }
        }
        step.findings = findings.into_texts();
        Ok(step)
    }
}

impl Cursor {
    /// Looks at the next rows.
    fn rows(&mut self, reader: &Reader<'_>, step: &mut ScrubStep, findings: &mut Findings) -> Result<(), ReadError> {
        let Some(table) = Table::ALL.get(self.table).copied() else {
            *self = Self::default();
            step.is_round_over = true;
            return Ok(());
        };
        let page = reader.page(table, self.after.as_deref(), ROWS);
        let rows = sound(findings, table, page)?.unwrap_or_default();
        for (key, value) in &rows {
            step.checked += 1;
            step.bytes += (key.len() + value.len()) as u64;
            sound(findings, table, look(reader, table, key, value))?;
            if table == Table::Blobs
                && let Ok(id) = id_bytes(key)
            {
                self.file = Some((BlobId::from_bytes(id), 0));
                self.after = Some(key.clone());
                return Ok(());
            }
        }
        self.after = rows.last().map(|(key, _)| key.clone());
        if rows.len() < ROWS {
            (self.table, self.after) = (self.table + 1, None);
        }
        Ok(())
    }
}

/// Whether a row authenticates.
fn look(reader: &Reader<'_>, table: Table, key: &[u8], value: &[u8]) -> Result<(), ReadError> {
    if (table, key) == (Table::Anchor, FORMAT_KEY) {
        return Ok(());
    }
    let (_, body) = reader.open(table, key, value)?;
    if table == Table::Audit { reader.check_entry_in_place(key, &body) } else { Ok(()) }
}

/// What was read; what does not authenticate becomes a finding.
fn sound<T>(findings: &mut Findings, table: Table, result: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ReadError::Integrity(what)) => {
            findings.add(format!("{}: {what}", table.name()));
            Ok(None)
        }
        Err(other) => Err(other),
    }
}
