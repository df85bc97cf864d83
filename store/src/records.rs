//! Records: sealed under a key of their client and class, found by a random identifier, stored exactly once for a
//! content. What a record says is not known here.

use crate::error::{ReadError, WriteError};
use crate::format;
use crate::keys::{Purpose, Shared};
use crate::reader::{Reader, id_bytes, owner};
use crate::tables::Table;
use crate::writer::Writer;
use empathd_proto::{ClientId, RecordId};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::ControlFlow;
use zeroize::Zeroizing;

/// What kind of data a record is, in law. Each class of each client has a key of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DataClass {
    /// The ordinary record.
    Record,
    /// Psychotherapy notes (45 CFR 164.501).
    PsychotherapyNote,
    /// Substance use disorder records (42 CFR Part 2).
    Part2,
    /// Data prepared for training.
    Training,
}

/// Is shown one record after the other: its identifier, whose it is, its bytes.
pub type RecordVisitor<'a> = dyn FnMut(RecordId, ClientId, &[u8]) -> ControlFlow<()> + 'a;

/// A record to be sealed.
pub struct NewRecord<'a> {
    /// Whose it is; from [`Writer::client_for`].
    pub client: ClientId,
    /// Its class.
    pub class: DataClass,
    /// Digest of its content: the same content is stored once.
    pub content_key: [u8; 32],
    /// Its bytes.
    pub body: &'a [u8],
}

/// What became of a new record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// Sealed under this identifier.
    Stored(RecordId),
    /// This record has the same content; nothing was stored.
    Duplicate(RecordId),
}

/// A record as it was stored.
pub struct StoredRecord {
    /// Whose it is.
    pub client: ClientId,
    /// Its class.
    pub class: DataClass,
    /// Its bytes; overwritten when dropped.
    pub body: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for StoredRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredRecord({}, {:?}, {} bytes)", self.client, self.class, self.body.len())
    }
}

impl DataClass {
    /// All of them.
    pub const ALL: [DataClass; 4] =
        [DataClass::Record, DataClass::PsychotherapyNote, DataClass::Part2, DataClass::Training];
}

impl Writer<'_> {
    /// The client that a source calls `external`, made with its first data key when it is seen for the first time. The
    /// name itself is not stored, only its HMAC.
    ///
    /// # Errors
    /// [`WriteError`] of the disk or of integrity.
    pub fn client_for(&mut self, external: &str) -> Result<ClientId, WriteError> {
        let key = self.keys().index(&[b"client", external.as_bytes()]);
        if let Some(client) = self.decoded(Table::Clients, &key)? {
            return Ok(client);
        }
        let client = ClientId::from_bytes(self.random());
        let data_key = Zeroizing::new(self.random());
        self.adopt_key(Purpose::Client(client, DataClass::Record), data_key)?;
        self.put(Table::Clients, &key, Purpose::Shared(Shared::Meta), &format::encode(&client))?;
        Ok(client)
    }

    /// Seals a record, unless one with this content is there.
    ///
    /// # Errors
    /// [`WriteError::NotFound`] for a client that [`Writer::client_for`] never gave, [`WriteError::TooLarge`], and those
    /// of the disk or of integrity.
    pub fn put_record(&mut self, new: NewRecord<'_>) -> Result<PutOutcome, WriteError> {
        let content = self.keys().index(&[b"content", &new.content_key]);
        if let Some(earlier) = self.decoded(Table::Contents, &content)? {
            return Ok(PutOutcome::Duplicate(earlier));
        }
        if self.current_of(Purpose::Client(new.client, DataClass::Record))?.is_none() {
            return Err(WriteError::NotFound("client"));
        }
        let id = RecordId::from_bytes(self.random());
        self.put(Table::Records, id.as_bytes(), Purpose::Client(new.client, new.class), new.body)?;
        self.put(Table::Contents, &content, Purpose::Shared(Shared::Meta), &format::encode(&id))?;
        Ok(PutOutcome::Stored(id))
    }
}

impl Reader<'_> {
    /// A record.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn record(&self, id: RecordId) -> Result<Option<StoredRecord>, ReadError> {
        let Some((purpose, body)) = self.value(Table::Records, id.as_bytes())? else { return Ok(None) };
        let (client, class) = owner(purpose)?;
        Ok(Some(StoredRecord { client, class, body }))
    }

    /// Shows every record of one class to `f`, in the order of their identifiers, until it breaks.
    ///
    /// # Errors
    /// [`ReadError`]; a record that does not authenticate ends the walk.
    pub fn records(&self, class: DataClass, f: &mut RecordVisitor<'_>) -> Result<(), ReadError> {
        for row in self.rows(Table::Records, &[]) {
            let (key, sealed) = row?;
            let Some(client) = self.client_of(&sealed, class)? else { continue };
            let (_, body) = self.open(Table::Records, &key, &sealed)?;
            if f(RecordId::from_bytes(id_bytes(&key)?), client, &body).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// How many records there are, of all classes, as the database counts them.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn record_count(&self) -> Result<u64, ReadError> {
        self.count(Table::Records)
    }

    /// The client of a sealed record when it is of this class; other records are not opened.
    fn client_of(&self, sealed: &[u8], wanted: DataClass) -> Result<Option<ClientId>, ReadError> {
        let id = crate::envelope::key_id(sealed).ok_or(ReadError::Integrity("a record is no envelope"))?;
        let (client, class) = owner(self.key(id)?.0)?;
        Ok((class == wanted).then_some(client))
    }
}
