//! A disk that fails, fills up or loses power at every single operation: nothing acknowledged is lost, nothing is half
//! there, nothing panics.

use super::support::*;
use crate::error::*;
use crate::{DataClass, DocKind, KdfCost, Store, blobs};
use empathd_proto::audit::ActionKind;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use tempfile::TempDir;

/// Changes of the workload.
const CHANGES: u8 = 4;

/// A small workload; returns how many changes were acknowledged and the first error.
fn work(store: &Store) -> (u8, Option<WriteError>) {
    for n in 0..CHANGES {
        let changed = store.change(draft(ActionKind::Ingest), |writer, _| {
            put(writer, &format!("person {n}"), &[n; 40])?;
            writer.put_doc(DocKind::Job, [n; 16], &[n; 3000])
        });
        if let Err(error) = changed {
            return (n, Some(error));
        }
    }
    (CHANGES, None)
}

/// Checks that the first `acknowledged` changes are there whole, that the next one is there whole or not at all, and that
/// everything fits.
fn check(store: &Store, acknowledged: u8, moment: &str) {
    let docs = store.read(|reader| reader.docs(DocKind::Job)).expect("read");
    let count = docs.len() as u8;
    assert!(count == acknowledged || count == acknowledged + 1, "{count} of {acknowledged} at {moment}");
    for (n, (id, body)) in docs.iter().enumerate() {
        assert_eq!((*id, body.as_slice()), ([n as u8; 16], [n as u8; 3000].as_slice()));
    }
    let mut records = 0;
    let walk = store.read(|reader| {
        reader.records(DataClass::Training, &mut |_, _, _| {
            records += 1;
            ControlFlow::Continue(())
        })
    });
    walk.expect("walked");
    assert_eq!(records, count);
    let found = store.verify_all(&mut |_, _| {}).expect("checked");
    assert!(found.is_clean(), "{:?} at {moment}", found.findings);
}

/// A store that lies sealed on a disk in memory, to be copied for each failure.
fn image() -> (TempDir, MemoryDisk) {
    let disk = MemoryDisk::default();
    let (dir, store) = new_store_on(Box::new(disk.clone()), 1);
    drop(store);
    (dir, disk)
}

fn unsealed(dir: &TempDir, disk: &MemoryDisk) -> Store {
    let entropy = Arc::new(SeededEntropy::new(2));
    let store = Store::open_on(Box::new(disk.clone()), &state(dir), entropy).expect("opened");
    store.unseal(&passphrase(), draft(ActionKind::Unseal)).expect("unsealed");
    store
}

/// Runs the workload with a failure after each number of operations in turn, until it no longer fails.
fn sweep(error: io::ErrorKind, after: impl Fn(u64, &TempDir, &MemoryDisk, Store, u8)) {
    let (dir, image) = image();
    for operations in 0.. {
        let disk = image.copy();
        let store = unsealed(&dir, &disk);
        disk.fail_after(operations, error);
        let (acknowledged, failure) = work(&store);
        if !disk.has_failed() {
            assert!(failure.is_none() && operations > 50, "{operations} operations");
            return;
        }
        match failure {
            Some(WriteError::DiskFull) => assert_eq!(error, io::ErrorKind::StorageFull),
            Some(WriteError::Io(_)) | None => {}
            Some(other) => panic!("{other} after {operations} operations"),
        }
        after(operations, &dir, &disk, store, acknowledged);
    }
}

#[test]
fn a_failing_disk_loses_nothing_and_serves_again_when_it_is_mended() {
    sweep(io::ErrorKind::Other, |operations, _, disk, store, acknowledged| {
        assert!(store.record_audit(&[draft(ActionKind::Chat)]).is_err(), "written to a failing disk");
        disk.mend();
        check(&store, acknowledged, &format!("operation {operations}"));
        store.record_audit(&[draft(ActionKind::Chat)]).expect("recorded");
    });
}

#[test]
fn many_readers_are_recorded_each_or_refused_each() {
    let (dir, image) = image();
    for fails in [false, true] {
        let disk = image.copy();
        let store = unsealed(&dir, &disk);
        let before = store.read(|reader| reader.audit_count()).expect("counted");
        if fails {
            disk.fail_after(0, io::ErrorKind::StorageFull);
        }
        let recorded = std::thread::scope(|scope| {
            let read = || store.record_audit(&[draft(ActionKind::Chat)]).is_ok();
            let readers: Vec<_> = (0..16).map(|_| scope.spawn(read)).collect();
            readers.into_iter().map(|one| one.join().expect("no panic")).filter(|recorded| *recorded).count()
        });
        assert_eq!(recorded, if fails { 0 } else { 16 });
        disk.mend();
        let after = store.read(|reader| reader.audit_count()).expect("counted");
        assert!(fails || after == before + 16, "{before} and then {after}");
        assert!(store.verify_audit(&mut |_, _| {}).expect("checked").verified());
    }
}

#[test]
fn a_full_disk_says_so_and_loses_nothing() {
    sweep(io::ErrorKind::StorageFull, |operations, _, disk, store, acknowledged| {
        disk.mend();
        check(&store, acknowledged, &format!("operation {operations}"));
    });
}

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    sweep(io::ErrorKind::Other, |operations, dir, disk, store, acknowledged| {
        disk.mend();
        disk.cut_power(operations);
        // The old process is gone; what it would still write on its way out does not reach the disk.
        let survivor = disk.copy();
        drop(store);
        check(&unsealed(dir, &survivor), acknowledged, &format!("power cut at {operations}"));
    });
}

#[test]
fn a_seal_on_a_failing_disk_still_takes_the_keys_away() {
    let (dir, image) = image();
    let store = unsealed(&dir, &image);
    image.fail_after(3, io::ErrorKind::StorageFull);
    assert!(store.seal(draft(ActionKind::Seal)).is_err());
    assert!(!store.is_unsealed());
    assert!(store.shared().keys.bytes().iter().all(|byte| *byte == 0));
    image.mend();
    store.unseal(&passphrase(), draft(ActionKind::Unseal)).expect("unsealed");
    check(&store, 0, "after a failed seal");
}

#[test]
fn a_blob_whose_commit_failed_is_swept_or_whole() {
    let (dir, image) = image();
    for operations in 0..40 {
        let disk = image.copy();
        let store = unsealed(&dir, &disk);
        disk.fail_after(operations, io::ErrorKind::Other);
        let blob = store.change(draft(ActionKind::TrainEnd), |writer, _| writer.put_blob(&[1; 5000]));
        disk.mend();
        drop(store);
        let store = unsealed(&dir, &disk);
        let files = fs::read_dir(state(&dir).join(blobs::DIR)).expect("listed").count() as u64;
        let rows = store.read(|reader| reader.count(crate::tables::Table::Blobs)).expect("counted");
        assert_eq!(files, rows, "operation {operations}");
        if let Ok(id) = blob {
            assert_eq!(store.read(|reader| reader.blob(id)).expect("read").len(), 5000);
        }
        assert!(store.verify_all(&mut |_, _| {}).expect("checked").is_clean());
    }
}

#[test]
fn a_creation_that_failed_leaves_no_store_and_can_be_begun_anew() {
    for operations in (0..).step_by(3) {
        let dir = tempfile::tempdir().expect("scratch folder");
        let make = |disk: &MemoryDisk| {
            let entropy = Arc::new(SeededEntropy::new(1));
            let init = draft(ActionKind::Init);
            let disk = Box::new(disk.clone());
            Store::create_on(disk, &state(&dir), &passphrase(), KdfCost::Light, entropy, init)
        };
        let disk = MemoryDisk::default();
        disk.fail_after(operations, io::ErrorKind::StorageFull);
        match make(&disk) {
            Ok(_) => return assert!(operations > 20, "{operations} operations"),
            Err(error) => assert!(matches!(error, CreateError::DiskFull | CreateError::Io(_)), "{error}"),
        }
        assert!(!Store::exists(&state(&dir)));
        assert!(make(&MemoryDisk::default()).is_ok());
    }
}
