//! Erasure: nothing that is left opens anything of the client, wherever a copy of it lies; everyone else keeps everything;
//! interrupted, it is done or not begun.

use super::support::*;
use crate::envelope::{self, Key, KeyId};
use crate::keys::Purpose;
use crate::reader::context;
use crate::tables::Table;
use crate::{CutRule, DataClass, NewAdapter, NewRecord, Store, WriteError, backend, padding};
use empathd_proto::audit::{ActionKind, AuditObject};
use empathd_proto::report::AdapterState;
use empathd_proto::{ClientId, JobId, RecordId};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use tempfile::TempDir;

pub(super) fn client(store: &Store, who: &str) -> Option<ClientId> {
    store.read(|reader| reader.client(who)).expect("read")
}

pub(super) fn words(store: &Store) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let walk = store.read(|reader| {
        reader.records(DataClass::Training, &mut |_, _, body| {
            words.push(body.to_vec());
            ControlFlow::Continue(())
        })
    });
    walk.expect("walked");
    words.sort();
    words
}

/// Every key of the store as it is now: root, epoch, shared keys, data keys.
pub(super) fn live_keys(store: &Store) -> Vec<Key> {
    let mut keys: Vec<Key> =
        store.shared().keys.bytes().chunks_exact(32).map(|key| Key::new(key.try_into().expect("32"))).collect();
    keys.retain(|key| **key != [0; 32]);
    let ids = |reader: &crate::Reader<'_>| {
        reader.rows(Table::Keys, &[]).map(|row| Ok(row?.0)).collect::<Result<Vec<_>, crate::ReadError>>()
    };
    let data = store.read(|reader| {
        ids(reader)?
            .iter()
            .map(|id| Ok(reader.key(id.as_slice().try_into().expect("8"))?.1))
            .collect::<Result<Vec<_>, crate::ReadError>>()
    });
    keys.extend(data.expect("read"));
    keys
}

/// How many envelopes at any offset of `bytes` these keys open in one of these places.
pub(super) fn opened(store: &Store, bytes: &[u8], keys: &[Key], places: &[(Table, Vec<u8>)]) -> usize {
    let contexts: Vec<_> = places.iter().map(|(table, key)| context(&store.shared().keys, *table, key)).collect();
    let starts = bytes.windows(2).enumerate().filter(|(_, pair)| pair == &[1, 1] || pair == &[1, 2]).map(|(at, _)| at);
    // Of both algorithms: the second has a longer nonce.
    let sizes = [0, 61, 253].map(|body| 22 + padding::bucket(body) + 16);
    let sizes = sizes.map(|size| [size, size + 12]).concat();
    let mut found = 0;
    for at in starts {
        for envelope in sizes.iter().filter_map(|size| bytes.get(at..at + size)) {
            let opens = |key: &Key| contexts.iter().any(|context| envelope::open(key, context, envelope).is_ok());
            found += usize::from(keys.iter().any(opens));
        }
    }
    found
}

#[test]
fn no_key_that_is_left_opens_a_byte_of_an_erased_client() {
    let (dir, store) = new_store(1);
    let mut records: Vec<RecordId> = Vec::new();
    for n in 0..6u8 {
        let outcome = change(&store, |writer| put(writer, &format!("person {}", n % 3), &[n; 300]));
        if n % 3 == 1 {
            records.push(stored(outcome));
        }
    }
    let gone = client(&store, "person 1").expect("there");
    let ids: Vec<KeyId> = change(&store, |writer| {
        let mut ids = Vec::new();
        for class in [DataClass::Record, DataClass::Training] {
            ids.push(writer.current_of(Purpose::Client(gone, class))?.expect("in use").0.id);
        }
        Ok(ids)
    });
    let before = live_keys(&store);
    let lost: Vec<Key> = ids.iter().map(|id| store.read(|reader| reader.key(*id)).expect("read").1).collect();
    let mut places: Vec<(Table, Vec<u8>)> = ids.iter().map(|id| (Table::Keys, id.to_vec())).collect();
    places.extend(records.iter().map(|id| (Table::Records, id.as_bytes().to_vec())));
    let older = fs::read(state(&dir).join(backend::FILE)).expect("read");

    let erasure = store.erase_client(gone, draft(ActionKind::Ingest)).expect("erased");
    assert_eq!(erasure.tombstone.records.len(), 2);
    assert_eq!(words(&store), [0u8, 2, 3, 5].map(|n| vec![n; 300]));
    let now = fs::read(state(&dir).join(backend::FILE)).expect("read");
    let live = live_keys(&store);
    for (bytes, what) in [(&now, "the database"), (&older, "an older copy of it")] {
        assert_eq!(opened(&store, bytes, &live, &places), 0, "{what}");
        assert!(!lost.iter().any(|key| bytes.windows(32).any(|window| window == key.as_slice())), "{what}");
    }
    // The same search finds what there is to find: with the keys of before, in the older copy and in the unused pages.
    assert!(opened(&store, &older, &before, &places) >= 4);
    assert!(opened(&store, &now, &before, &places) > 0, "unused pages hold old rows, which is why the epoch must go");
    assert!(!live.iter().any(|key| lost.contains(key)));
    assert!(store.verify_all(&mut |_, _| {}).expect("checked").is_clean());
    let entry = store.audit_tail(1).expect("read")[0];
    assert_eq!((entry.object, entry.count), (AuditObject::Client(gone), 2));
    // The same person may come again, as someone new.
    change(&store, |writer| put(writer, "person 1", &[1; 300]));
    assert!(client(&store, "person 1").is_some_and(|again| again != gone));
    assert!(matches!(store.erase_client(gone, draft(ActionKind::Ingest)), Err(WriteError::NotFound("client"))));
}

#[test]
fn a_legal_hold_blocks_it_until_it_is_lifted() {
    let (_dir, store) = new_store(1);
    change(&store, |writer| put(writer, "someone", b"words"));
    let someone = client(&store, "someone").expect("there");
    assert!(change(&store, |writer| writer.set_hold(someone, true)));
    assert!(!change(&store, |writer| writer.set_hold(someone, true)));
    let refused = store.erase_client(someone, draft(ActionKind::Ingest));
    assert!(matches!(refused, Err(WriteError::Transition(_))));
    assert_eq!(words(&store).len(), 1);
    assert!(change(&store, |writer| writer.set_hold(someone, false)));
    store.erase_client(someone, draft(ActionKind::Ingest)).expect("erased");
    assert!(words(&store).is_empty());
    assert_eq!(store.read(|reader| reader.tombstones()).expect("read").len(), 1);
}

#[test]
fn adapters_that_learned_from_the_client_are_retired_and_an_innocent_one_answers() {
    let (_dir, store) = new_store(1);
    let learn = |who: &[&str]| {
        change(&store, |writer| {
            let mut candidates = Vec::new();
            for who in who {
                let client = writer.client_for(who)?;
                let body = [who.as_bytes(), &writer.random::<4>()].concat();
                let new = NewRecord { client, class: DataClass::Training, content_key: writer.random(), body: &body };
                candidates.push((stored(writer.put_record(new)?), client));
            }
            // One client alone is never held out.
            let rule = CutRule { validation_percent: 1, seed: 1, at_ms: 5, candidates };
            let dataset = writer.cut_dataset(rule)?.id();
            let blob = writer.put_blob(&[7; 10])?;
            let job = JobId::from_bytes([1; 16]);
            let adapter = writer.put_adapter(NewAdapter { job, dataset, blob, body: vec![] })?;
            writer.approve_adapter(adapter, vec![])?;
            writer.activate_adapter(adapter)?;
            Ok(adapter)
        })
    };
    let (innocent, other, guilty) = (learn(&["a"]), learn(&["b"]), learn(&["b"]));
    let erasure = store.erase_client(client(&store, "b").expect("there"), draft(ActionKind::Ingest)).expect("erased");
    let mut expected = vec![other, guilty];
    expected.sort();
    assert_eq!((erasure.retired, erasure.active), (expected, Some(innocent)));
    let of = |id| store.read(|reader| reader.adapter(id)).expect("read").expect("there").state;
    assert_eq!([innocent, other, guilty].map(of), [AdapterState::Active, AdapterState::Retired, AdapterState::Retired]);
    let found = store.verify_all(&mut |_, _| {}).expect("checked");
    assert!(found.is_clean(), "{:?}", found.findings);
    let erasure = store.erase_client(client(&store, "a").expect("there"), draft(ActionKind::Ingest)).expect("erased");
    assert_eq!(erasure.active, None, "the base model answers");
}

/// Interrupts an erasure after each number of operations.
fn sweep(after: impl Fn(u64, &TempDir, &MemoryDisk, Store, bool, ClientId)) {
    let image = MemoryDisk::default();
    let (dir, store) = new_store_on(Box::new(image.clone()), 1);
    for n in 0..6u8 {
        change(&store, |writer| put(writer, &format!("person {}", n % 3), &[n; 300]));
    }
    let gone = client(&store, "person 1").expect("there");
    drop(store);
    let keyring = state(&dir).join(crate::keyring::FILE);
    let whole = fs::read(&keyring).expect("read");
    for operations in 0.. {
        fs::write(&keyring, &whole).expect("put back");
        let disk = image.copy();
        let store = reopened(&dir, &disk, 2);
        disk.fail_after(operations, io::ErrorKind::StorageFull);
        let done = store.erase_client(gone, draft(ActionKind::Ingest)).is_ok();
        if !disk.has_failed() {
            return assert!(done && operations > 20, "{operations} operations");
        }
        after(operations, &dir, &disk, store, done, gone);
    }
}

fn reopened(dir: &TempDir, disk: &MemoryDisk, seed: u64) -> Store {
    let entropy = Arc::new(SeededEntropy::new(seed));
    let store = Store::open_on(Box::new(disk.clone()), &state(dir), entropy).expect("opened");
    store.unseal(&passphrase(), draft(ActionKind::Unseal)).expect("unsealed");
    store
}

/// It is there whole, or gone whole.
fn check(store: &Store, done: bool, gone: ClientId, moment: &str) {
    let stones = store.read(|reader| reader.tombstones()).expect("read").len();
    assert!(!done || stones == 1, "acknowledged and not done at {moment}");
    assert_eq!(words(store).len(), if stones == 1 { 4 } else { 6 }, "{moment}");
    assert_eq!(client(store, "person 1"), (stones == 0).then_some(gone), "{moment}");
    let found = store.verify_all(&mut |_, _| {}).expect("checked");
    assert!(found.is_clean(), "{:?} at {moment}", found.findings);
    let root = store.shared().keys.root();
    let epochs = store.keyring().expect("held").epochs(&root).expect("opens").len();
    assert_eq!(epochs, 1, "an epoch is left over at {moment}");
}

#[test]
fn an_erasure_that_a_full_disk_or_a_power_cut_ends_is_done_or_not_begun() {
    sweep(|operations, dir, disk, store, done, gone| {
        disk.mend();
        let survivor = disk.copy();
        let keyring = state(dir).join(crate::keyring::FILE);
        let left = fs::read(&keyring).expect("read");
        store.record_audit(&[draft(ActionKind::Chat)]).expect("serves again");
        // What the last step left undone, the next change does.
        let again = store.rotate_keys(draft(ActionKind::Chat));
        again.expect("rotated");
        check(&store, done, gone, &format!("mended at {operations}"));
        drop(store);
        fs::write(&keyring, left).expect("put back");
        survivor.cut_power(operations);
        check(&reopened(dir, &survivor, 3), done, gone, &format!("power cut at {operations}"));
    });
}
