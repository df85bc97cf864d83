//! When copies of the store were last made, and whether a new key file is due: a document beside the records, changed with
//! what it tells of. How copies are made is not known here.

use crate::problem::{self, Fault};
use crate::stored::{Stored, decode, encode};
use empathd_proto::keys::{Care, Drill};
use empathd_proto::problem::Problem;
use empathd_store::{DocKind, ReadError, Reader, Store, WriteError, Writer};
use serde::{Deserialize, Serialize};

/// Its name among the settings.
const NAME: [u8; 16] = *b"care of copies 1";

/// Why a new key file has to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Due {
    /// There is none.
    First,
    /// A client was erased: the one before still opens what was erased, out of earlier backups.
    Erasure,
    /// A backup was made: the one before may lack keys of records in it.
    Backup,
    /// There are new recovery shares: the one before is sealed to the earlier ones.
    Shares,
}

/// The document.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CareDoc {
    pub(crate) backup_at_ms: Option<u64>,
    pub(crate) drill: Option<Drill>,
    pub(crate) key_file_at_ms: Option<u64>,
    pub(crate) due: Option<Due>,
}

impl Default for CareDoc {
    fn default() -> Self {
        Self { backup_at_ms: None, drill: None, key_file_at_ms: None, due: Some(Due::First) }
    }
}

impl Stored for CareDoc {
    type First = Self;
    type Second = Self;
}

impl CareDoc {
    /// A new key file is due for this; what was due for an erasure stays so.
    pub(crate) fn is_due(&mut self, why: Due) {
        if !matches!(self.due, Some(Due::First | Due::Erasure))
            || (why == Due::Erasure && self.key_file_at_ms.is_some())
        {
            self.due = Some(why);
        }
    }
}

fn read(reader: &Reader<'_>) -> Result<CareDoc, Fault> {
    match reader.doc(DocKind::Setting, NAME)? {
        Some(body) => Ok(decode(&body)?),
        None => Ok(CareDoc::default()),
    }
}

/// Changes the document within a change of the store.
pub(crate) fn change(writer: &mut Writer<'_>, f: impl FnOnce(&mut CareDoc)) -> Result<(), WriteError> {
    let damaged = || WriteError::Integrity("what is kept of the last copies has an unknown shape");
    let mut doc = match writer.doc(DocKind::Setting, NAME)? {
        Some(body) => decode(&body).map_err(|_| damaged())?,
        None => CareDoc::default(),
    };
    f(&mut doc);
    writer.put_doc(DocKind::Setting, NAME, &encode(&doc).map_err(|_| damaged())?)
}

/// When copies were last made, and what is due.
pub(crate) fn report(store: &Store) -> Result<Care, Problem> {
    let (doc, erasure_at_ms) = store.read(|reader| -> Result<_, Fault> {
        let stones = reader.tombstones().map_err(|error: ReadError| problem::from_read(error))?;
        Ok((read(reader)?, stones.iter().map(|stone| stone.at_ms).max()))
    })?;
    let why = doc.due.map(|due| match due {
        Due::First => "there is no key file yet: without one no backup can be restored",
        Due::Erasure => "a client was erased since the last key file, which with two shares still opens that record",
        Due::Backup => "the last backup is newer than the last key file, which may lack keys of it",
        Due::Shares => "the recovery shares are newer than the last key file, which only the earlier ones open",
    });
    Ok(Care {
        backup_at_ms: doc.backup_at_ms,
        drill: doc.drill,
        key_file_at_ms: doc.key_file_at_ms,
        erasure_at_ms,
        key_file_due: why.map(str::to_owned),
    })
}
