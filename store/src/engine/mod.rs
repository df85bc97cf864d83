//! The seam under the store: ordered bytes in tables, read from snapshots and changed in transactions. One database lies
//! behind it (`redb`); a server that sees only ciphertext and HMACs could lie there as well. Keys, envelopes and what a row
//! means are not known here.

pub(crate) mod pages;
pub(crate) mod redb;

use crate::error::Fault;
use crate::tables::{Row, Table};
use std::ops::Bound;

/// Bytes of the note that a database keeps outside of its transactions.
pub(crate) const NOTE_BYTES: usize = 40;

/// A database of ordered bytes. One writer at a time; snapshots see what was committed before they began.
pub(crate) trait Engine: Send + Sync {
    /// What is committed now.
    fn snapshot(&self) -> Result<Box<dyn View>, Fault>;

    /// The next writer; waits for the one before.
    fn change(&self) -> Result<Box<dyn Change>, Fault>;

    /// The note that was left last; zeros when there is none. It outlives the process, but not surely a power cut: then an
    /// earlier one may be there, or none.
    fn note(&self) -> Result<[u8; NOTE_BYTES], Fault>;

    /// Leaves a note in the place of the one before, without waiting for the disk.
    fn leave_note(&self, note: &[u8; NOTE_BYTES]) -> Result<(), Fault>;

    /// Whether the disk ever failed under it. It must be opened again then: what it remembers may not be what lies there.
    fn has_failed(&self) -> bool;

    /// Closes it in order. Dropping closes it without a word.
    fn close(self: Box<Self>) -> Result<(), Fault>;
}

/// Rows as they are at one moment, or in an open change.
pub(crate) trait View {
    /// The value of a key.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault>;

    /// The rows from `from` on in the order of keys, while their keys begin with `prefix`; at most `rows_max`.
    fn range(&self, table: Table, from: Bound<&[u8]>, prefix: &[u8], rows_max: usize) -> Result<Vec<Row>, Fault>;

    /// How many rows a table has.
    fn len(&self, table: Table) -> Result<u64, Fault>;

    /// Whether it has the tables of this format, all of them, and no others.
    fn has_only_known_tables(&self) -> Result<bool, Fault>;
}

/// A change that is not committed yet. It reads what it has written so far; dropped, nothing of it happened.
pub(crate) trait Change: View {
    /// Puts a row; returns the value it replaces.
    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, Fault>;

    /// Takes a row out; returns the value it had.
    fn remove(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault>;

    /// Makes every table that is not there.
    fn create_tables(&self) -> Result<(), Fault>;

    /// Makes the change durable. On an error it is not known whether it is.
    fn commit(self: Box<Self>) -> Result<(), Fault>;

    /// Drops the change.
    fn abort(self: Box<Self>);
}
