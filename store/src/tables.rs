//! The tables of the database and their rows as bytes. The database sees random identifiers, HMACs and ciphertext. What a
//! row means is not known here, nor which database it is.

use crate::engine::{Change, Engine, View};
use crate::error::Fault;
use serde::{Deserialize, Serialize};
use std::ops::Bound;

/// Rows that a scan copies out of the database at a time.
const PAGE_ROWS: usize = 128;

/// A row as the database has it.
pub(crate) type Row = (Vec<u8>, Vec<u8>);

macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// A table. Its number is part of the context that every value is sealed in.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[repr(u8)]
        pub(crate) enum Table {
            $($(#[$doc])* $name = $number,)*
        }

        impl Table {
            /// All of them.
            pub(crate) const ALL: &'static [Table] = &[$(Table::$name,)*];

            /// Its name in the database.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Table::$name => $text,)* }
            }
        }
    };
}

tables! {
    /// Format version, root of the table heads, end of the audit trail.
    Anchor = 1, "anchor";
    /// Single values: how the store was left, consent epoch, adapters that were active.
    Meta = 2, "meta";
    /// Wrapped keys, by key id.
    Keys = 3, "keys";
    /// The key in use for a purpose.
    Current = 4, "current";
    /// Count and digest of the rows of each group.
    Heads = 5, "heads";
    /// Clients, by the HMAC of what the sources call them.
    Clients = 6, "clients";
    /// Records, by record id.
    Records = 7, "records";
    /// Which record holds a content, by the HMAC of its key.
    Contents = 8, "contents";
    /// Small documents, by the HMACs of kind and id.
    Docs = 9, "docs";
    /// Dataset cuts, by dataset id.
    Datasets = 10, "datasets";
    /// Adapter generations, by adapter id.
    Adapters = 11, "adapters";
    /// Sealed files, by blob id.
    Blobs = 12, "blobs";
    /// Audit entries, by number (big-endian).
    Audit = 13, "audit";
    /// What stays of erased clients, by client id.
    Tombstones = 14, "tombstones";
    /// Clients under a legal hold, by HMAC.
    Holds = 15, "holds";
}

/// An open transaction.
pub(crate) enum Txn {
    /// A snapshot.
    Read(Box<dyn View>),
    /// The one writer.
    Write(Box<dyn Change>),
}

impl Txn {
    /// A snapshot of the database.
    pub(crate) fn read(db: &dyn Engine) -> Result<Self, Fault> {
        Ok(Txn::Read(db.snapshot()?))
    }

    /// The next writer; waits for the one before.
    pub(crate) fn write(db: &dyn Engine) -> Result<Self, Fault> {
        Ok(Txn::Write(db.change()?))
    }

    /// The value of a key.
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.view().get(table, key)
    }

    /// How many rows a table has, as the database counts them.
    pub(crate) fn len(&self, table: Table) -> Result<u64, Fault> {
        self.view().len(table)
    }

    /// The first rows after `after` in the order of keys, at most `rows_max`; whose key begins with `prefix`.
    pub(crate) fn page(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        rows_max: usize,
    ) -> Result<Vec<Row>, Fault> {
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        self.view().range(table, from, prefix, rows_max)
    }

    /// The rows whose key begins with `prefix`, in the order of keys. Between pages the table is closed, so that the
    /// caller may read others while it goes on.
    pub(crate) fn rows<'a>(
        &'a self,
        table: Table,
        prefix: &'a [u8],
    ) -> impl Iterator<Item = Result<Row, Fault>> + use<'a> {
        let mut page = Vec::new().into_iter();
        let (mut last, mut ended) = (None::<Vec<u8>>, false);
        std::iter::from_fn(move || {
            if page.len() == 0 && !ended {
                match self.page(table, prefix, last.as_deref(), PAGE_ROWS) {
                    Ok(rows) => {
                        ended = rows.len() < PAGE_ROWS;
                        last = rows.last().map(|(key, _)| key.clone());
                        page = rows.into_iter();
                    }
                    Err(fault) => {
                        ended = true;
                        return Some(Err(fault));
                    }
                }
            }
            page.next().map(Ok)
        })
    }

    /// Puts a row; returns the value it replaces.
    pub(crate) fn insert(&self, table: Table, key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.writer()?.put(table, key, value)
    }

    /// Takes a row out; returns the value it had.
    pub(crate) fn remove(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.writer()?.remove(table, key)
    }

    /// Makes every table that is not there.
    pub(crate) fn create_tables(&self) -> Result<(), Fault> {
        self.writer()?.create_tables()
    }

    /// Whether the database has exactly the tables of this format.
    pub(crate) fn has_only_known_tables(&self) -> Result<bool, Fault> {
        self.view().has_only_known_tables()
    }

    /// Makes the changes durable. On an error it is not known whether they are.
    pub(crate) fn commit(self) -> Result<(), Fault> {
        match self {
            Txn::Write(change) => change.commit(),
            Txn::Read(_) => Ok(()),
        }
    }

    /// Drops the changes.
    pub(crate) fn abort(self) {
        if let Txn::Write(change) = self {
            change.abort();
        }
    }

    fn view(&self) -> &dyn View {
        match self {
            Txn::Read(view) => &**view,
            Txn::Write(change) => &**change,
        }
    }

    fn writer(&self) -> Result<&dyn Change, Fault> {
        match self {
            Txn::Write(change) => Ok(&**change),
            Txn::Read(_) => Err(Fault::Damaged("a snapshot cannot be written")),
        }
    }
}
