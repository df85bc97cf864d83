//! Doubt: groups of rows that did not fit their heads when the store was unsealed. Something was removed from them, added, or
//! put back to an older state by who had the file: from then on each read of such a group is an error, until a backup is
//! restored; other groups are read as before. While the store is unsealed its pages are held by tags (`engine::pages`). What a
//! row says is not known here.

use crate::envelope::{self, KeyId};
use crate::error::{Fault, ReadError};
use crate::format;
use crate::heads::{Group, Head};
use crate::keys::Purpose;
use crate::reader::Reader;
use crate::records::DataClass;
use crate::store::Opened;
use crate::tables::{Row, Table};
use empathd_proto::ClientId;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// What a read of such rows answers.
const DOUBTED: Fault =
    Fault::Damaged("rows were removed, added or put back to an older state while the store was closed");
/// Threads that fold rows.
const THREADS_MAX: usize = 4;
/// A table with fewer rows is folded in one piece.
const ROWS_PER_PIECE_MIN: u64 = 4096;
/// Without these nothing can be sealed or opened: the store stays closed.
const NEEDED: [Table; 4] = [Table::Meta, Table::Keys, Table::Current, Table::Heads];

/// The groups that are doubted; mostly none.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    tables: BTreeSet<Table>,
    clients: BTreeSet<(ClientId, DataClass)>,
}

/// Heads by group.
type Heads = BTreeMap<Group, Head>;

impl Doubt {
    /// Whether a row of this table that is not there may have been there.
    pub(crate) fn absence(&self, table: Table) -> Result<(), Fault> {
        let of_records = table == Table::Records && !self.clients.is_empty();
        if of_records { Err(DOUBTED) } else { self.row(table) }
    }

    /// Whether the rows of this table can be taken as they are.
    pub(crate) fn row(&self, table: Table) -> Result<(), Fault> {
        if self.tables.contains(&table) { Err(DOUBTED) } else { Ok(()) }
    }

    /// Whether a record that this key opens can be taken as it is.
    pub(crate) fn record(&self, purpose: Purpose) -> Result<(), Fault> {
        match purpose {
            Purpose::Client(client, class) if self.clients.contains(&(client, class)) => Err(DOUBTED),
            _ => Ok(()),
        }
    }

    /// What the doubted rows are, without identifiers.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        let of_clients = (!self.clients.is_empty()).then_some("records of a client");
        self.tables.iter().map(|table| table.name()).chain(of_clients)
    }

    fn add(&mut self, group: Group) {
        match group {
            Group::Table(table) => drop(self.tables.insert(table)),
            Group::Client(client, class) => drop(self.clients.insert((client, class))),
            Group::Root => drop(self.tables.insert(Table::Heads)),
        }
    }
}

impl Opened {
    /// Compares every group of rows with its head. Nobody writes meanwhile.
    pub(crate) fn doubt(&self, dir: &Path) -> Result<Doubt, ReadError> {
        let reader = Reader::new(self, dir, self.snapshot()?);
        let (purposes, mut stored) = (purposes(&reader)?, stored(&reader)?);
        let computed = self.fold(dir, &reader, &purposes)?;
        stored.insert(Group::Root, reader.head(Group::Root)?);
        let mut doubt = Doubt::default();
        for group in computed.keys().chain(stored.keys()) {
            let head = |heads: &Heads| heads.get(group).copied().unwrap_or_default();
            if head(&computed) != head(&stored) {
                doubt.add(*group);
            }
        }
        NEEDED.into_iter().try_for_each(|table| doubt.row(table))?;
        Ok(doubt)
    }

    /// The heads of all rows as they are.
    fn fold(&self, dir: &Path, reader: &Reader<'_>, purposes: &HashMap<KeyId, Purpose>) -> Result<Heads, ReadError> {
        let mut pieces = Vec::new();
        for table in Table::ALL.iter().copied().filter(|table| !matches!(table, Table::Anchor | Table::Audit)) {
            match reader.count(table)? {
                0 => {}
                1..ROWS_PER_PIECE_MIN => pieces.push((table, Vec::new())),
                _ => pieces.extend((0..=u8::MAX).map(|first| (table, vec![first]))),
            }
        }
        let threads = match pieces.len() {
            0..=16 => 1,
            _ => thread::available_parallelism().map_or(1, |found| found.get().min(THREADS_MAX)),
        };
        let (next, pieces) = (AtomicUsize::new(0), &pieces);
        let work = || {
            let reader = Reader::new(self, dir, self.snapshot()?);
            let mut heads = Heads::new();
            while let Some((table, prefix)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                for row in reader.rows(*table, prefix) {
                    add_row(&mut heads, &reader, purposes, *table, &row?);
                }
            }
            Ok::<Heads, ReadError>(heads)
        };
        thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut heads: Heads = work()?;
            for helper in helpers {
                let found = helper.join().map_err(|_| ReadError::Integrity("the rows could not be compared"))??;
                found.into_iter().for_each(|(group, head)| heads.entry(group).or_default().merge(head));
            }
            Ok(heads)
        })
    }
}

fn add_row(heads: &mut Heads, reader: &Reader<'_>, purposes: &HashMap<KeyId, Purpose>, table: Table, row: &Row) {
    let (key, value) = row;
    let group = match table {
        Table::Heads => Group::Root,
        Table::Records => match envelope::key_id(value).and_then(|id| purposes.get(&id)) {
            Some(Purpose::Client(client, class)) => Group::Client(*client, *class),
            // A record that no client's key seals: no head counts it, so that its table is doubted.
            _ => Group::Table(table),
        },
        _ => Group::Table(table),
    };
    heads.entry(group).or_default().add(reader.keys(), table, key, value);
}

/// What each key of clients is for.
fn purposes(reader: &Reader<'_>) -> Result<HashMap<KeyId, Purpose>, ReadError> {
    let mut purposes = HashMap::new();
    for row in reader.rows(Table::Keys, &[]) {
        let (key, sealed) = row?;
        let id = key.as_slice().try_into().map_err(|_| ReadError::Integrity("a key has a name of another length"))?;
        let (_, body) = reader.open(Table::Keys, &key, &sealed)?;
        purposes.insert(id, reader.unwrapped_key(id, &body)?.0);
    }
    Ok(purposes)
}

/// The heads as they are stored.
fn stored(reader: &Reader<'_>) -> Result<Heads, ReadError> {
    let mut heads = Heads::new();
    for row in reader.rows(Table::Heads, &[]) {
        let (key, sealed) = row?;
        let (_, body) = reader.open(Table::Heads, &key, &sealed)?;
        let (group, head) = format::decode::<(Group, Head)>(&body)?;
        if group.place(reader.keys()).1 != key || heads.insert(group, head).is_some() {
            return Err(ReadError::Integrity("a table head stands in another group's place"));
        }
    }
    Ok(heads)
}
