//! Any database behind the seam against a `BTreeMap`: written once, run for redb and for the one in memory. A database that
//! is put behind the seam joins the list at the end.

use super::support::*;
use crate::backend::Storage;
use crate::engine::redb::RedbEngine;
use crate::engine::{Change, Engine, NOTE_BYTES, View};
use crate::error::Fault;
use crate::tables::{Row, Table};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex};

type Rows = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// A database in memory: the plainest thing that can stand behind the seam.
#[derive(Clone)]
struct InMemory(Arc<Mutex<(Arc<Rows>, [u8; NOTE_BYTES])>>);

struct Open {
    rows: RefCell<Rows>,
    home: InMemory,
}

impl InMemory {
    fn open(&self) -> Box<Open> {
        let rows = Rows::clone(&self.0.lock().expect("no panic").0);
        Box::new(Open { rows: RefCell::new(rows), home: self.clone() })
    }
}

impl Engine for InMemory {
    fn snapshot(&self) -> Result<Box<dyn View>, Fault> {
        Ok(self.open())
    }

    fn change(&self) -> Result<Box<dyn Change>, Fault> {
        Ok(self.open())
    }

    fn note(&self) -> Result<[u8; NOTE_BYTES], Fault> {
        Ok(self.0.lock().expect("no panic").1)
    }

    fn leave_note(&self, note: &[u8; NOTE_BYTES]) -> Result<(), Fault> {
        self.0.lock().expect("no panic").1 = *note;
        Ok(())
    }

    fn has_failed(&self) -> bool {
        false
    }

    fn close(self: Box<Self>) -> Result<(), Fault> {
        Ok(())
    }
}

impl View for Open {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.rows.borrow().get(&(table, key.to_vec())).cloned())
    }

    fn range(&self, table: Table, from: Bound<&[u8]>, prefix: &[u8], rows_max: usize) -> Result<Vec<Row>, Fault> {
        Ok(expected(&self.rows.borrow(), table, from, prefix, rows_max))
    }

    fn len(&self, table: Table) -> Result<u64, Fault> {
        Ok(self.rows.borrow().keys().filter(|(of, _)| *of == table).count() as u64)
    }

    fn has_only_known_tables(&self) -> Result<bool, Fault> {
        Ok(true)
    }
}

impl Change for Open {
    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.rows.borrow_mut().insert((table, key.to_vec()), value.to_vec()))
    }

    fn remove(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.rows.borrow_mut().remove(&(table, key.to_vec())))
    }

    fn create_tables(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<(), Fault> {
        self.home.0.lock().expect("no panic").0 = Arc::new(self.rows.into_inner());
        Ok(())
    }

    fn abort(self: Box<Self>) {}
}

/// What a range of a map holds, by going through all of it.
fn expected(rows: &Rows, table: Table, from: Bound<&[u8]>, prefix: &[u8], rows_max: usize) -> Vec<Row> {
    let after = |key: &[u8]| match from {
        Bound::Included(from) => key >= from,
        Bound::Excluded(from) => key > from,
        Bound::Unbounded => true,
    };
    let of_table = rows.iter().filter(|((of, key), _)| *of == table && after(key));
    let begins = of_table.take_while(|((_, key), _)| key.starts_with(prefix));
    begins.take(rows_max).map(|((_, key), value)| (key.clone(), value.clone())).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Put(Table, Vec<u8>, Vec<u8>),
    Remove(Table, Vec<u8>),
    Look(Table, Vec<u8>, usize),
    Commit,
    Abort,
    Drop,
    Reopen,
    Snapshot,
    Note(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let table = || prop::sample::select(&[Table::Docs, Table::Records, Table::Audit][..]);
    let key = || prop::collection::vec(0..3u8, 0..4);
    prop_oneof![
        8 => (table(), key(), (0..3u8, 0..5000usize)).prop_map(|(table, key, (byte, length))| {
            Step::Put(table, key, vec![byte; length])
        }),
        3 => (table(), key()).prop_map(|(table, key)| Step::Remove(table, key)),
        4 => (table(), key(), 1..5usize).prop_map(|(table, key, rows)| Step::Look(table, key, rows)),
        3 => Just(Step::Commit),
        1 => Just(Step::Abort),
        1 => Just(Step::Drop),
        1 => Just(Step::Reopen),
        1 => Just(Step::Snapshot),
        1 => any::<u8>().prop_map(Step::Note),
    ]
}

/// Whether what is seen is what the map says.
fn look(view: &dyn View, rows: &Rows, table: Table, key: &[u8], rows_max: usize) {
    assert_eq!(view.get(table, key).expect("read").as_ref(), rows.get(&(table, key.to_vec())));
    assert_eq!(view.len(table).expect("counted"), rows.keys().filter(|(of, _)| *of == table).count() as u64);
    let prefix = &key[..key.len().min(1)];
    for from in [Bound::Included(key), Bound::Excluded(key)] {
        let found = view.range(table, from, prefix, rows_max).expect("read");
        assert_eq!(found, expected(rows, table, from, prefix, rows_max));
    }
}

/// Takes the steps on a database that `open` opens anew each time it is asked, always on the same place.
fn is_a_map(open: &dyn Fn() -> Box<dyn Engine>, steps: Vec<Step>) {
    let mut engine = open();
    let begun = engine.change().expect("begun");
    begun.create_tables().expect("made");
    begun.commit().expect("committed");
    let (mut committed, mut note) = (Rows::new(), [0; NOTE_BYTES]);
    let mut change = engine.change().expect("begun");
    let mut rows = committed.clone();
    let mut kept: Vec<(Box<dyn View>, Rows)> = Vec::new();
    for step in steps {
        match step {
            Step::Put(table, key, value) => {
                let old = change.put(table, &key, &value).expect("put");
                assert_eq!(old, rows.insert((table, key), value));
            }
            Step::Remove(table, key) => {
                assert_eq!(change.remove(table, &key).expect("removed"), rows.remove(&(table, key)));
            }
            Step::Look(table, key, rows_max) => {
                look(&*change, &rows, table, &key, rows_max);
                look(&*engine.snapshot().expect("begun"), &committed, table, &key, rows_max);
                kept.iter().for_each(|(view, rows)| look(&**view, rows, table, &key, rows_max));
            }
            Step::Snapshot => kept.push((engine.snapshot().expect("begun"), committed.clone())),
            Step::Note(byte) => {
                note = [byte; NOTE_BYTES];
                engine.leave_note(&note).expect("left");
            }
            Step::Commit => {
                change.commit().expect("committed");
                committed.clone_from(&rows);
                change = engine.change().expect("begun");
            }
            end @ (Step::Abort | Step::Drop | Step::Reopen) => {
                if matches!(end, Step::Abort) {
                    change.abort()
                } else {
                    drop(change)
                }
                if matches!(end, Step::Reopen) {
                    kept.clear();
                    engine.close().expect("closed");
                    engine = open();
                }
                rows.clone_from(&committed);
                change = engine.change().expect("begun");
            }
        }
        assert_eq!(engine.note().expect("read"), note);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_database_is_a_map(steps in prop::collection::vec(step(), 1..60)) {
        let disk = MemoryDisk::default();
        let redb = || {
            let storage = Storage(Box::new(disk.clone()));
            Box::new(RedbEngine::open(storage, &[3; 32]).expect("opened")) as Box<dyn Engine>
        };
        is_a_map(&redb, steps.clone());
        let memory = InMemory(Arc::new(Mutex::new((Arc::default(), [0; NOTE_BYTES]))));
        is_a_map(&|| Box::new(memory.clone()), steps);
    }
}
