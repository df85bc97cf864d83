//! The tables of the database and their rows as bytes. The database sees random identifiers, HMACs and ciphertext. What a
//! row means is not known here; that a damaged file can make the database panic is.

use crate::error::Fault;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use redb::{TableHandle, WriteTransaction};
use serde::{Deserialize, Serialize};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};

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

impl Table {
    const fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(self.name())
    }
}

/// Runs an operation of the database. It may panic on a damaged file: that becomes an error here, and only here.
pub(crate) fn guarded<T>(operation: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(operation)).unwrap_or(Err(Fault::Damaged("the database file is damaged")))
}

/// An open transaction.
pub(crate) enum Txn {
    /// A snapshot.
    Read(ReadTransaction),
    /// The one writer.
    Write(Box<WriteTransaction>),
}

/// Runs `$body` with `$table` open in either kind of transaction.
macro_rules! with_table {
    ($txn:expr, $which:expr, |$table:ident| $body:expr) => {
        guarded(|| match $txn {
            Txn::Read(txn) => {
                let $table = txn.open_table($which.definition())?;
                $body
            }
            Txn::Write(txn) => {
                let $table = txn.open_table($which.definition())?;
                $body
            }
        })
    };
}

impl Txn {
    /// A snapshot of the database.
    pub(crate) fn read(db: &Database) -> Result<Self, Fault> {
        guarded(|| Ok(Txn::Read(db.begin_read()?)))
    }

    /// The next writer; waits for the one before. Two-phase commit, and quick repair after a crash.
    pub(crate) fn write(db: &Database) -> Result<Self, Fault> {
        guarded(|| {
            let mut txn = db.begin_write()?;
            txn.set_two_phase_commit(true);
            txn.set_quick_repair(true);
            Ok(Txn::Write(Box::new(txn)))
        })
    }

    /// The value of a key.
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        with_table!(self, table, |open| Ok(open.get(key)?.map(|value| value.value().to_vec())))
    }

    /// How many rows a table has, as the database counts them.
    pub(crate) fn len(&self, table: Table) -> Result<u64, Fault> {
        with_table!(self, table, |open| Ok(open.len()?))
    }

    /// The first rows after `after` in the order of keys, at most [`PAGE_ROWS`]; whose key begins with `prefix`.
    fn page(&self, table: Table, prefix: &[u8], after: Option<&[u8]>) -> Result<Vec<Row>, Fault> {
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        with_table!(self, table, |open| {
            let mut rows = Vec::new();
            for row in open.range::<&[u8]>((from, Bound::Unbounded))?.take(PAGE_ROWS) {
                let (key, value) = row?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                rows.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(rows)
        })
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
                match self.page(table, prefix, last.as_deref()) {
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
        guarded(|| {
            let mut open = self.writer()?.open_table(table.definition())?;
            let old = open.insert(key, value)?.map(|old| old.value().to_vec());
            Ok(old)
        })
    }

    /// Takes a row out; returns the value it had.
    pub(crate) fn remove(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        guarded(|| {
            let mut open = self.writer()?.open_table(table.definition())?;
            let old = open.remove(key)?.map(|old| old.value().to_vec());
            Ok(old)
        })
    }

    /// Makes every table that is not there.
    pub(crate) fn create_tables(&self) -> Result<(), Fault> {
        let txn = self.writer()?;
        guarded(|| Table::ALL.iter().try_for_each(|table| Ok(txn.open_table(table.definition()).map(drop)?)))
    }

    /// Whether the database has exactly the tables of this format.
    pub(crate) fn has_only_known_tables(&self) -> Result<bool, Fault> {
        let known = |name: &str| Table::ALL.iter().any(|table| table.name() == name);
        guarded(|| match self {
            Txn::Read(txn) => {
                let names: Vec<_> = txn.list_tables()?.collect();
                let all_known = names.iter().all(|table| known(table.name()));
                Ok(all_known && names.len() == Table::ALL.len() && txn.list_multimap_tables()?.next().is_none())
            }
            Txn::Write(_) => Err(Fault::Damaged("tables are listed on snapshots")),
        })
    }

    /// Makes the changes durable. On an error it is not known whether they are.
    pub(crate) fn commit(self) -> Result<(), Fault> {
        guarded(|| match self {
            Txn::Write(txn) => Ok(txn.commit()?),
            Txn::Read(_) => Ok(()),
        })
    }

    /// Drops the changes.
    pub(crate) fn abort(self) {
        // Whatever it answers, nothing of an uncommitted transaction is seen again.
        let _ = guarded(|| match self {
            Txn::Write(txn) => Ok(txn.abort()?),
            Txn::Read(_) => Ok(()),
        });
    }

    fn writer(&self) -> Result<&WriteTransaction, Fault> {
        match self {
            Txn::Write(txn) => Ok(txn),
            Txn::Read(_) => Err(Fault::Damaged("a snapshot cannot be written")),
        }
    }
}
