//! Reading: one snapshot, or the open state of a change. Everything that leaves the database passes here and
//! authenticates, or is an error. What the values mean is known by the files of their kind.

use crate::doubt::Doubt;
use crate::envelope::{self, Key, KeyId};
use crate::error::{Fault, ReadError};
use crate::keys::{Keys, Purpose, Shared};
use crate::store::Opened;
use crate::tables::{Row, Table, Txn};
use crate::{format, records};
use serde::de::DeserializeOwned;
use std::path::Path;
use zeroize::Zeroizing;

/// Version of the shape of every row. It is part of the context that a value is sealed in.
const ROW_VERSION: u16 = 1;

/// The body of a value; overwritten when dropped.
pub(crate) type Body = Zeroizing<Vec<u8>>;

/// What can be read in one transaction.
pub struct Reader<'s> {
    opened: &'s Opened,
    dir: &'s Path,
    pub(crate) txn: Txn,
    /// Rows that are doubted are shown all the same, to a check that tells of them.
    without_doubt: bool,
}

impl<'s> Reader<'s> {
    pub(crate) fn new(opened: &'s Opened, dir: &'s Path, txn: Txn) -> Self {
        Self { opened, dir, txn, without_doubt: false }
    }

    /// Shows every row as it is, for a check that compares them with the heads itself.
    pub(crate) fn without_doubt(self) -> Self {
        Self { without_doubt: true, ..self }
    }

    pub(crate) fn keys(&self) -> &'s Keys {
        &self.opened.keys
    }

    pub(crate) fn opened(&self) -> &'s Opened {
        self.opened
    }

    /// The state folder.
    pub(crate) fn dir(&self) -> &'s Path {
        self.dir
    }

    /// A keyed digest of `bytes` for one use, named by `label`: it shows equality and nothing else, and only to who has
    /// this store's keys.
    #[must_use]
    pub fn fingerprint(&self, label: &str, bytes: &[u8]) -> [u8; 16] {
        self.keys().index(&[b"fingerprint", label.as_bytes(), bytes])
    }

    /// The key with this name and what it is for.
    pub(crate) fn key(&self, id: KeyId) -> Result<(Purpose, Key), ReadError> {
        if let Some(found) = self.keys().by_id(id) {
            return Ok(found);
        }
        let wrapped = self.raw(Table::Keys, &id)?.ok_or(ReadError::Integrity("the key of a value is missing"))?;
        let (_, body) = self.open(Table::Keys, &id, &wrapped)?;
        self.unwrapped_key(id, &body)
    }

    /// The key in the body of a row of the key table.
    pub(crate) fn unwrapped_key(&self, id: KeyId, body: &[u8]) -> Result<(Purpose, Key), ReadError> {
        let (purpose, key) = format::decode::<(Purpose, [u8; 32])>(body)?;
        let key = Zeroizing::new(key);
        if crate::keys::id_of(&key, self.keys().store()) != id {
            return Err(ReadError::Integrity("a key does not fit its commitment"));
        }
        Ok((purpose, key))
    }

    /// The bytes of a row as the database has them.
    pub(crate) fn raw(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let found = self.opened.noted(self.txn.get(table, key))?;
        self.undoubted(|doubt| if found.is_some() { doubt.row(table) } else { doubt.absence(table) })?;
        Ok(found)
    }

    /// Whether nothing is doubted of what is asked.
    pub(crate) fn undoubted(&self, ask: impl FnOnce(&Doubt) -> Result<(), Fault>) -> Result<(), Fault> {
        if self.without_doubt { Ok(()) } else { ask(&self.opened.doubt) }
    }

    /// Opens the value of a row.
    pub(crate) fn open(&self, table: Table, key: &[u8], sealed: &[u8]) -> Result<(Purpose, Body), ReadError> {
        let forged = ReadError::Integrity("a stored value does not authenticate");
        let Some(id) = envelope::key_id(sealed) else { return Err(forged) };
        // The key table is opened by the epoch key alone: anything else would ask for keys without end.
        let known = if table == Table::Keys { self.keys().by_id(id) } else { None };
        let (purpose, data_key) = match known {
            Some(found) => found,
            None if table == Table::Keys => return Err(forged),
            None => self.key(id)?,
        };
        if !accepts(table, key, purpose) {
            return Err(ReadError::Integrity("a stored value is sealed with a key of another purpose"));
        }
        if table == Table::Records {
            self.undoubted(|doubt| doubt.record(purpose))?;
        }
        match envelope::open(&data_key, &context(self.keys(), table, key), sealed) {
            Ok(body) => Ok((purpose, body)),
            Err(envelope::Forged) => Err(forged),
        }
    }

    /// The opened value of a key.
    pub(crate) fn value(&self, table: Table, key: &[u8]) -> Result<Option<(Purpose, Body)>, ReadError> {
        self.raw(table, key)?.map(|sealed| self.open(table, key, &sealed)).transpose()
    }

    /// The opened and decoded value of a key.
    pub(crate) fn decoded<T: DeserializeOwned>(&self, table: Table, key: &[u8]) -> Result<Option<T>, ReadError> {
        self.value(table, key)?.map(|(_, body)| format::decode(&body)).transpose()
    }

    /// The rows of a table whose key begins with `prefix`, sealed as they are.
    pub(crate) fn rows<'a>(
        &'a self,
        table: Table,
        prefix: &'a [u8],
    ) -> impl Iterator<Item = Result<Row, Fault>> + use<'a, 's> {
        let doubted = self.undoubted(|doubt| doubt.absence(table)).err().map(Err);
        let rows = self.txn.rows(table, prefix).map(|row| self.opened.noted(row));
        // When the rows are doubted, that is all there is to be read.
        let end = if doubted.is_some() { 0 } else { usize::MAX };
        doubted.into_iter().chain(rows.take(end))
    }

    /// The first rows of a table after the one with the key `after`, sealed as they are; at most `rows_max`.
    pub(crate) fn page(&self, table: Table, after: Option<&[u8]>, rows_max: usize) -> Result<Vec<Row>, ReadError> {
        self.undoubted(|doubt| doubt.absence(table))?;
        Ok(self.opened.noted(self.txn.page(table, &[], after, rows_max))?)
    }

    /// How many rows a table has, as the database counts them.
    pub(crate) fn count(&self, table: Table) -> Result<u64, ReadError> {
        self.undoubted(|doubt| doubt.absence(table))?;
        Ok(self.opened.noted(self.txn.len(table))?)
    }
}

/// What a value is bound to: the store, its table and key, and the versions of its shape.
pub(crate) fn context(keys: &Keys, table: Table, key: &[u8]) -> Vec<u8> {
    let mut context = Vec::with_capacity(16 + 1 + 4 + key.len() + 2 + 4);
    context.extend_from_slice(keys.store().as_bytes());
    context.push(table as u8);
    context.extend_from_slice(&(key.len() as u32).to_le_bytes());
    context.extend_from_slice(key);
    context.extend_from_slice(&ROW_VERSION.to_le_bytes());
    context.extend_from_slice(&format::SCHEMA.to_le_bytes());
    context
}

/// Whether a row of this table may be sealed with a key of this purpose.
fn accepts(table: Table, key: &[u8], purpose: Purpose) -> bool {
    match table {
        Table::Keys | Table::Current => purpose == Purpose::Epoch,
        Table::Records => matches!(purpose, Purpose::Client(..)),
        Table::Docs => purpose == Purpose::Shared(Shared::Docs),
        Table::Audit => purpose == Purpose::Shared(Shared::Audit),
        Table::Adapters => matches!(purpose, Purpose::Adapter(id) if id.as_bytes() == key),
        Table::Blobs => matches!(purpose, Purpose::Blob(id) if id.as_bytes() == key),
        Table::Anchor
        | Table::Meta
        | Table::Heads
        | Table::Clients
        | Table::Contents
        | Table::Datasets
        | Table::Tombstones
        | Table::Holds => purpose == Purpose::Shared(Shared::Meta),
    }
}

/// Sixteen bytes of a row's key as an identifier.
pub(crate) fn id_bytes(key: &[u8]) -> Result<[u8; 16], ReadError> {
    key.try_into().map_err(|_| ReadError::Integrity("a row has a key of another length"))
}

/// The client and class of a record's purpose.
pub(crate) fn owner(purpose: Purpose) -> Result<(empathd_proto::ClientId, records::DataClass), ReadError> {
    match purpose {
        Purpose::Client(client, class) => Ok((client, class)),
        _ => Err(ReadError::Integrity("a record is sealed with a key of another purpose")),
    }
}
