//! redb behind the seam. Two-phase commit; every page is checked when the file is opened and fits what this
//! process knows of it ever after (`pages`). That a damaged file can make redb panic is known here, and only here.

use super::pages::{Guarded, Pages};
use super::{Change, Engine, NOTE_BYTES, View};
use crate::backend::Storage;
use crate::error::Fault;
use crate::memory::KEY_BYTES;
use crate::tables::{Row, Table};
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use redb::{ReadOnlyTable, TableHandle, WriteTransaction};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Bytes of ciphertext that the database keeps in memory. Little in the tests of this crate, so that pages come from the disk.
const CACHE_BYTES: usize = if cfg!(test) { 16 * 1024 } else { 32 * 1024 * 1024 };

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;
type Snapshot = ReadOnlyTable<&'static [u8], &'static [u8]>;

impl Table {
    const fn definition(self) -> Definition {
        TableDefinition::new(self.name())
    }
}

/// Runs an operation of the database. It may panic on a damaged file: that becomes an error here, and only here.
fn guarded<T>(operation: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(operation)).unwrap_or(Err(Fault::Damaged("the database file is damaged")))
}

/// A database file.
pub(crate) struct RedbEngine {
    /// Present until it is closed.
    db: Option<Database>,
    pages: Arc<Pages>,
}

impl RedbEngine {
    /// Opens the database that lies on `storage`, or makes it when the storage is empty. Every page is read and its checksum
    /// verified; from then on a page that is not as it was read or written then is damage.
    pub(crate) fn open(storage: Storage, page_key: &[u8; KEY_BYTES]) -> Result<Self, Fault> {
        let pages = Arc::new(Pages::new(storage, *page_key)?);
        let guard = Guarded(Arc::clone(&pages));
        let db = guarded(|| {
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
            Ok(builder.create_with_backend(guard)?)
        })?;
        pages.settle();
        Ok(Self { db: Some(db), pages })
    }

    fn db(&self) -> Result<&Database, Fault> {
        self.db.as_ref().ok_or(Fault::Damaged("the database is closed"))
    }
}

impl Engine for RedbEngine {
    fn snapshot(&self) -> Result<Box<dyn View>, Fault> {
        guarded(|| Ok(Box::new(Read { txn: self.db()?.begin_read()?, open: RefCell::default() }) as Box<dyn View>))
    }

    fn change(&self) -> Result<Box<dyn Change>, Fault> {
        guarded(|| {
            let mut txn = self.db()?.begin_write()?;
            txn.set_two_phase_commit(true);
            Ok(Box::new(Write(txn)) as Box<dyn Change>)
        })
    }

    fn note(&self) -> Result<[u8; NOTE_BYTES], Fault> {
        Ok(self.pages.note()?)
    }

    fn leave_note(&self, note: &[u8; NOTE_BYTES]) -> Result<(), Fault> {
        Ok(self.pages.leave_note(note)?)
    }

    fn has_failed(&self) -> bool {
        self.pages.have_failed()
    }

    fn close(mut self: Box<Self>) -> Result<(), Fault> {
        match self.db.take() {
            Some(db) => guarded(|| Ok(db.close()?)),
            None => Ok(()),
        }
    }
}

impl Drop for RedbEngine {
    fn drop(&mut self) {
        // It may panic on its way out of a damaged file; whatever it answers, nothing is asked of it again.
        let db = self.db.take();
        let _ = guarded(|| {
            drop(db);
            Ok(())
        });
    }
}

/// A snapshot, with the tables that were looked into.
struct Read {
    txn: ReadTransaction,
    open: RefCell<BTreeMap<Table, Snapshot>>,
}

impl Read {
    fn with<T>(&self, table: Table, f: impl FnOnce(&Snapshot) -> Result<T, Fault>) -> Result<T, Fault> {
        guarded(|| {
            let mut open = self.open.borrow_mut();
            if let Some(found) = open.get(&table) {
                return f(found);
            }
            let opened = self.txn.open_table(table.definition())?;
            f(open.entry(table).or_insert(opened))
        })
    }
}

impl View for Read {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.with(table, |open| value(open, key))
    }

    fn range(&self, table: Table, from: Bound<&[u8]>, prefix: &[u8], rows_max: usize) -> Result<Vec<Row>, Fault> {
        self.with(table, |open| rows(open, from, prefix, rows_max))
    }

    fn len(&self, table: Table) -> Result<u64, Fault> {
        self.with(table, |open| Ok(open.len()?))
    }

    fn has_only_known_tables(&self) -> Result<bool, Fault> {
        let known = |name: &str| Table::ALL.iter().any(|table| table.name() == name);
        guarded(|| {
            let names: Vec<_> = self.txn.list_tables()?.collect();
            let all_known = names.iter().all(|table| known(table.name()));
            Ok(all_known && names.len() == Table::ALL.len() && self.txn.list_multimap_tables()?.next().is_none())
        })
    }
}

/// The one writer.
struct Write(WriteTransaction);

impl View for Write {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        guarded(|| value(&self.0.open_table(table.definition())?, key))
    }

    fn range(&self, table: Table, from: Bound<&[u8]>, prefix: &[u8], rows_max: usize) -> Result<Vec<Row>, Fault> {
        guarded(|| rows(&self.0.open_table(table.definition())?, from, prefix, rows_max))
    }

    fn len(&self, table: Table) -> Result<u64, Fault> {
        guarded(|| Ok(self.0.open_table(table.definition())?.len()?))
    }

    fn has_only_known_tables(&self) -> Result<bool, Fault> {
        Err(Fault::Damaged("tables are listed on snapshots"))
    }
}

impl Change for Write {
    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        guarded(|| {
            let mut open = self.0.open_table(table.definition())?;
            let old = open.insert(key, value)?.map(|old| old.value().to_vec());
            Ok(old)
        })
    }

    fn remove(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        guarded(|| {
            let mut open = self.0.open_table(table.definition())?;
            let old = open.remove(key)?.map(|old| old.value().to_vec());
            Ok(old)
        })
    }

    fn create_tables(&self) -> Result<(), Fault> {
        guarded(|| Table::ALL.iter().try_for_each(|table| Ok(self.0.open_table(table.definition()).map(drop)?)))
    }

    fn commit(self: Box<Self>) -> Result<(), Fault> {
        guarded(|| Ok(self.0.commit()?))
    }

    fn abort(self: Box<Self>) {
        // Whatever it answers, nothing of an uncommitted transaction is seen again.
        let _ = guarded(|| Ok(self.0.abort()?));
    }
}

fn value(open: &impl ReadableTable<&'static [u8], &'static [u8]>, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
    Ok(open.get(key)?.map(|value| value.value().to_vec()))
}

fn rows(
    open: &impl ReadableTable<&'static [u8], &'static [u8]>,
    from: Bound<&[u8]>,
    prefix: &[u8],
    rows_max: usize,
) -> Result<Vec<Row>, Fault> {
    let mut rows = Vec::new();
    for row in open.range::<&[u8]>((from, Bound::Unbounded))?.take(rows_max) {
        let (key, value) = row?;
        if !key.value().starts_with(prefix) {
            break;
        }
        rows.push((key.value().to_vec(), value.value().to_vec()));
    }
    Ok(rows)
}
