//! Bytes changed on the disk, before the store is unsealed and while it is: every read then equals what it was, or is an
//! error. Nothing is absent that is there, nothing is there that was taken out, nothing is older than it was.

use super::support::*;
use crate::keyring::{Unlock, Unlocked};
use crate::tables::Table;
use crate::{DataClass, DocKind, PutOutcome, Store, UnsealError, WriteError, backend};
use empathd_proto::audit::ActionKind;
use empathd_proto::{ClientId, RecordId};
use std::fs;
use std::ops::ControlFlow;
use std::sync::Arc;
use tempfile::TempDir;

/// Positions that are tried in each of the two ways, besides the whole head of the file.
const POSITIONS: usize = 400;
/// Bytes of redb's header.
const HEAD_BYTES: usize = 320;

/// What one look shows: the words in some form, or nothing but an error.
type Sight = Option<String>;

/// Everything that can be read, one look each.
struct Looks {
    records: Vec<RecordId>,
    entries: usize,
}

impl Looks {
    fn of(store: &Store) -> Self {
        let mut records = Vec::new();
        let walk = store.read(|reader| {
            reader.records(DataClass::Training, &mut |id, _, _| {
                records.push(id);
                ControlFlow::Continue(())
            })
        });
        walk.expect("walked");
        let entries = store.read(|reader| reader.audit_count()).expect("counted") as usize;
        Self { records, entries }
    }

    fn all(&self, store: &Store) -> Vec<(&'static str, Sight)> {
        use std::fmt::Debug;
        fn see<T: Debug, E>(result: Result<T, E>) -> Sight {
            result.ok().map(|value| format!("{value:?}"))
        }
        let mut sights: Vec<(&str, Sight)> = Vec::new();
        let read = |f: &dyn Fn(&crate::Reader<'_>) -> Result<String, crate::ReadError>| see(store.read(f));
        for id in self.records.iter().copied().chain([RecordId::from_bytes([0; 16])]) {
            let body = |record: crate::StoredRecord| format!("{} {:?}", record.client, record.body.to_vec());
            sights.push(("a record", read(&|reader| Ok(format!("{:?}", reader.record(id)?.map(body))))));
        }
        for class in DataClass::ALL {
            let walk = |reader: &crate::Reader<'_>| {
                let mut found = Vec::new();
                reader.records(class, &mut |id, client, body| {
                    found.push((id, client, body.to_vec()));
                    ControlFlow::Continue(())
                })?;
                Ok(format!("{found:?}"))
            };
            sights.push(("all records", read(&walk)));
        }
        for kind in DocKind::ALL {
            let all = |reader: &crate::Reader<'_>| {
                let found: Vec<_> = reader.docs(*kind)?.into_iter().map(|(id, body)| (id, body.to_vec())).collect();
                Ok(format!("{found:?}"))
            };
            sights.push(("documents", read(&all)));
            sights.push((
                "a document",
                read(&|reader| Ok(format!("{:?}", reader.doc(*kind, [1; 16])?.map(|body| body.to_vec())))),
            ));
        }
        sights.push(("datasets", read(&|reader| Ok(format!("{:?}", reader.datasets()?)))));
        sights.push(("adapters", read(&|reader| Ok(format!("{:?}", reader.adapters()?)))));
        sights.push(("the active adapter", read(&|reader| Ok(format!("{:?}", reader.active_adapter()?)))));
        sights.push(("consent", read(&|reader| Ok(format!("{:?}", reader.consent_epoch()?)))));
        sights.push(("tombstones", read(&|reader| Ok(format!("{:?}", reader.tombstones()?)))));
        sights.push(("how many", read(&|reader| Ok(format!("{:?}", reader.record_count()?)))));
        let blob = |reader: &crate::Reader<'_>| {
            let active = reader.active_adapter()?;
            active
                .map(|adapter| Ok(format!("{:?}", reader.blob_info(adapter.blob)?)))
                .transpose()
                .map(|of| format!("{of:?}"))
        };
        sights.push(("a blob", read(&blob)));
        let trail = |reader: &crate::Reader<'_>| {
            let mut entries = reader.audit_tail(crate::MAX_TAIL)?;
            entries.truncate(self.entries);
            Ok(format!("{entries:?}"))
        };
        sights.push(("the audit trail", read(&trail)));
        sights.push(("clients and contents", self.second(store)));
        sights
    }

    /// What a change finds out about clients, contents and holds; it changes nothing.
    fn second(&self, store: &Store) -> Sight {
        let mut seen = String::new();
        let changed = store.change(draft(ActionKind::Ingest), |writer, _| {
            for n in 0..3u8 {
                let who = format!("person {n}");
                let client: ClientId = writer.client_for(&who)?;
                let outcome: PutOutcome = put(writer, &who, &[n; 300])?;
                seen += &format!("{client} {outcome:?} {} ", writer.is_held(client)?);
            }
            Err::<(), _>(WriteError::Invalid("looked"))
        });
        matches!(changed, Err(WriteError::Invalid("looked"))).then_some(seen)
    }
}

/// A populated store that was killed: its folder, its database, what its keys are.
struct Killed {
    dir: TempDir,
    bytes: Vec<u8>,
    unlocked: Unlocked,
    looks: Looks,
    right: Vec<(&'static str, Sight)>,
}

impl Killed {
    fn new(seed: u64) -> Self {
        let (dir, store) = furnished(seed);
        // The newest change: it must not be lost without a word.
        change(&store, |writer| writer.put_doc(DocKind::Job, [1; 16], b"a newer job"));
        // As a kill leaves it: closing would write once more.
        let bytes = fs::read(state(&dir).join(backend::FILE)).expect("read");
        let looks = Looks::of(&store);
        let right = looks.all(&store);
        assert!(right.iter().all(|(_, sight)| sight.is_some()), "{right:?}");
        let unlocked = store.unlock(Unlock::Passphrase(&passphrase())).expect("unlocked").0;
        drop(store);
        Self { dir, bytes, unlocked, looks, right }
    }

    /// A store over a disk that holds these bytes; `None` when it does not open.
    fn open(&self, disk: &MemoryDisk) -> Option<Store> {
        let entropy = Arc::new(SeededEntropy::new(9));
        let store = Store::open_on(Box::new(disk.clone()), &state(&self.dir), entropy).expect("the keyring is sound");
        {
            let mut opened = store.exclusive();
            store.load(&mut opened, &self.unlocked).ok()?;
            opened.doubt = opened.doubt(&state(&self.dir)).ok()?;
            opened.unsealed = true;
        }
        Some(store)
    }

    /// Looks at everything; how many looks were errors. Any other difference ends the test.
    fn look(&self, store: &Store, moment: &str) -> usize {
        let mut errors = 0;
        for ((what, found), (_, right)) in self.looks.all(store).iter().zip(&self.right) {
            match found {
                Some(_) => assert_eq!(found, right, "{what}, {moment}"),
                None => errors += 1,
            }
        }
        errors
    }

    /// Positions over the whole file, more of them where something is, each with a bit.
    fn positions(&self) -> Vec<(usize, u8)> {
        let used: Vec<usize> = (0..self.bytes.len()).filter(|at| self.bytes[*at] != 0).collect();
        let spread = (0..POSITIONS).map(|n| match n % 4 {
            0 => n * self.bytes.len() / POSITIONS,
            _ => used[n * used.len() / POSITIONS],
        });
        (0..HEAD_BYTES).chain(spread).enumerate().map(|(n, at)| (at, 1 << (n % 8))).collect()
    }
}

#[test]
fn a_byte_that_was_changed_while_the_store_was_closed_makes_errors_and_never_another_answer() {
    let killed = Killed::new(31);
    let (mut closed, mut errors) = (0, 0);
    // Byte 9 says which of the two last states is the newest: every bit of it.
    let newest = (0..8).map(|bit| (9, 1 << bit));
    for (at, bit) in killed.positions().into_iter().chain(newest) {
        let mut bad = killed.bytes.clone();
        bad[at] ^= bit;
        match killed.open(&MemoryDisk::holding(&bad)) {
            Some(store) => errors += killed.look(&store, &format!("bit {bit} of byte {at}")),
            None => closed += 1,
        }
    }
    assert!(closed > POSITIONS / 4, "{closed} did not open, {errors} looks were errors");
}

#[test]
fn a_byte_that_is_changed_while_the_store_is_open_makes_errors_and_never_another_answer() {
    let killed = Killed::new(32);
    let disk = MemoryDisk::holding(&killed.bytes);
    let mut store = killed.open(&disk).expect("sound");
    assert_eq!(killed.look(&store, "before"), 0);
    let (mut errors, mut survived) = (0, 0);
    for (at, bit) in killed.positions() {
        // What lies there now: opening changed some pages.
        disk.flip(at, bit);
        let found = killed.look(&store, &format!("bit {bit} of byte {at} while it is open"));
        disk.flip(at, bit);
        errors += found;
        survived += usize::from(found > 0 && found < killed.right.len());
        if found > 0 {
            drop(store);
            store = killed.open(&disk).expect("sound again");
        }
    }
    assert!(errors > 500 && survived > 20, "{errors} looks were errors; {survived} times others were not");
}

#[test]
fn rows_that_were_removed_or_put_back_while_the_store_was_closed_are_errors_when_they_are_read() {
    for table in Table::ALL {
        let killed = Killed::new(33);
        let fresh = |f: &dyn Fn(&redb::WriteTransaction)| {
            fs::write(state(&killed.dir).join(backend::FILE), &killed.bytes).expect("written");
            raw_change(&killed.dir, f);
            let bytes = fs::read(state(&killed.dir).join(backend::FILE)).expect("read");
            killed.open(&MemoryDisk::holding(&bytes)).map(|store| killed.look(&store, table.name()))
        };
        let removed = fresh(&|txn| {
            let mut open = txn.open_table(raw_table(table.name())).expect("table");
            open.pop_last().expect("popped").expect("furnished");
        });
        assert_ne!(removed, Some(0), "the last row of {} is gone and nothing is said", table.name());
    }
    // An older document, put back with the database's own means.
    let (dir, store) = furnished(34);
    drop(store);
    let mut older = Vec::new();
    raw_change(&dir, |txn| older = super::tamper::all_rows(txn, Table::Docs));
    let store = reopen(&dir, 2);
    change(&store, |writer| writer.put_doc(DocKind::Job, [1; 16], b"a newer job"));
    drop(store);
    raw_change(&dir, |txn| {
        let mut open = txn.open_table(raw_table("docs")).expect("table");
        older.iter().for_each(|(key, value)| drop(open.insert(key.as_slice(), value.as_slice()).expect("put")));
    });
    let store = reopen(&dir, 3);
    assert!(store.read(|reader| reader.doc(DocKind::Job, [1; 16])).is_err());
    assert!(store.read(|reader| reader.docs(DocKind::Job)).is_err());
    assert_eq!(Looks::of(&store).records.len(), 6, "the records are not doubted");
    assert!(!store.verify_all(&mut |_, _| {}).expect("checked").is_clean());
}

#[test]
fn a_database_that_lost_its_newest_change_is_not_opened() {
    let (dir, store) = furnished(35);
    let path = state(&dir).join(backend::FILE);
    let mut before = fs::read(&path).expect("read");
    change(&store, |writer| writer.put_doc(DocKind::Job, [2; 16], b"acknowledged"));
    let after = fs::read(&path).expect("read");
    drop(store);
    let unsealed = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("written");
        let store = Store::open(&state(&dir), Arc::new(SeededEntropy::new(2))).expect("opened");
        store.unseal(&passphrase(), draft(ActionKind::Unseal))
    };
    // The mark lies behind the header of the database; a power cut may tear it, and it says nothing then.
    before[512..552].copy_from_slice(&after[512..552]);
    let refused = unsealed(&before);
    assert!(matches!(refused, Err(UnsealError::Integrity(what)) if what.contains("older")), "{refused:?}");
    before[530] ^= 1;
    assert!(unsealed(&before).is_ok());
    assert!(unsealed(&after).is_ok());
}
