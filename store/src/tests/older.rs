//! A small store that an older release wrote opens, holds what it held, and is brought to today's format; a newer one is
//! refused in words.

use super::support::*;
use crate::keyring::{self, Held};
use crate::{DataClass, DocKind, OpenError, Store, backend, blobs, stop, verify_stopped};
use empathd_proto::audit::ActionKind;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// The state folder as the fixture keeps it. The database is kept without its empty stretches: length, then runs of
/// offset, length and bytes.
fn unpacked() -> TempDir {
    let dir = tempfile::tempdir().expect("scratch folder");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format1");
    fs::create_dir_all(state(&dir).join(blobs::DIR)).expect("made");
    for entry in fs::read_dir(from).expect("the fixture is there") {
        let path = entry.expect("listed").path();
        let name = path.file_name().expect("named").to_str().expect("plain").to_owned();
        let bytes = fs::read(&path).expect("read");
        let (name, bytes) = match (name.strip_suffix(".sparse"), name.strip_prefix("blob-")) {
            (Some(name), _) => (name.to_owned(), filled(&bytes)),
            (_, Some(id)) => (format!("{}/{id}", blobs::DIR), bytes),
            _ => (name, bytes),
        };
        fs::write(state(&dir).join(name), bytes).expect("written");
    }
    dir
}

fn filled(sparse: &[u8]) -> Vec<u8> {
    let number = |at: usize| u32::from_le_bytes(sparse[at..at + 4].try_into().expect("four")) as usize;
    let (mut bytes, mut at) = (vec![0; number(0)], 8);
    while at < sparse.len() {
        let (offset, length) = (number(at), number(at + 4));
        bytes[offset..offset + length].copy_from_slice(&sparse[at + 8..at + 8 + length]);
        at += 8 + length;
    }
    bytes
}

#[test]
fn a_store_of_format_1_is_verified_opened_and_brought_to_todays() {
    let dir = unpacked();
    let before: Vec<_> =
        super::behaviour::all_files(&state(&dir)).iter().map(|path| fs::read(path).expect("read")).collect();
    let verify = || {
        let entropy = Arc::new(SeededEntropy::new(1));
        verify_stopped(&state(&dir), &passphrase(), entropy, &mut |_, _| {}).expect("checked")
    };
    let found = verify();
    assert!(found.is_clean() && found.stopped_in_order, "{:?}", found.findings);
    let after: Vec<_> =
        super::behaviour::all_files(&state(&dir)).iter().map(|path| fs::read(path).expect("read")).collect();
    assert!(before == after, "a check changes nothing");

    let store = reopen(&dir, 2);
    let (mut training, mut notes) = (0, Vec::new());
    let walk = store.read(|reader| {
        reader.records(DataClass::Training, &mut |_, _, body| {
            assert_eq!(body, [body[0]; 300]);
            training += 1;
            ControlFlow::Continue(())
        })?;
        reader.records(DataClass::PsychotherapyNote, &mut |_, _, body| {
            notes.push(body.to_vec());
            ControlFlow::Continue(())
        })
    });
    walk.expect("walked");
    assert_eq!((training, notes), (6, vec![b"a note that an older release wrote".to_vec()]));
    let setting = store.read(|reader| reader.doc(DocKind::Setting, [4; 16])).expect("read").expect("there");
    assert_eq!(setting.as_slice(), b"a setting that an older release wrote");
    let adapter = store.read(|reader| reader.active_adapter()).expect("read").expect("active");
    assert_eq!(store.read(|reader| reader.blob(adapter.blob)).expect("read").as_slice(), [7; 100_000]);
    assert!(Held::read(&state(&dir)).is_ok_and(|held| held.is_current()));
    store.rotate_keys(draft(ActionKind::Unseal)).expect("rotated");
    store.close(draft(ActionKind::Stop)).expect("closed");
    let found = verify();
    assert!(found.is_clean() && found.stopped_in_order, "{:?}", found.findings);
}

#[test]
fn a_migration_that_fails_leaves_the_older_store_and_is_done_by_the_next_start() {
    let dir = unpacked();
    let database = fs::read(state(&dir).join(backend::FILE)).expect("read");
    for operations in 0.. {
        let disk = MemoryDisk::holding(&database);
        let store =
            Store::open_on(Box::new(disk.clone()), &state(&dir), Arc::new(SeededEntropy::new(2))).expect("opened");
        disk.fail_after(operations, std::io::ErrorKind::Other);
        let unsealed = store.unseal(&passphrase(), draft(ActionKind::Unseal));
        if unsealed.is_ok() && !disk.has_failed() {
            return assert!(operations > 20, "{operations}");
        }
        drop(store);
        // What the disk holds of a start that failed is good for the next one.
        disk.mend();
        let again = Store::open_on(Box::new(disk), &state(&dir), Arc::new(SeededEntropy::new(3))).expect("opened");
        again.unseal(&passphrase(), draft(ActionKind::Unseal)).expect("unsealed");
        assert!(again.verify_all(&mut |_, _| {}).expect("checked").is_clean(), "operation {operations}");
        let fresh = unpacked();
        for name in [keyring::FILE, stop::FILE] {
            fs::copy(state(&fresh).join(name), state(&dir).join(name)).expect("put back");
        }
    }
}

#[test]
fn a_newer_keyring_is_refused() {
    let dir = unpacked();
    let path = state(&dir).join(keyring::FILE);
    let mut bytes = fs::read(&path).expect("read");
    bytes.truncate(bytes.len() - 32);
    bytes[8] = 3;
    let sum = blake3::hash(&bytes);
    fs::write(&path, [bytes.as_slice(), sum.as_bytes()].concat()).expect("written");
    let opened = Store::open(&state(&dir), Arc::new(SeededEntropy::new(2)));
    let Err(error @ OpenError::Version { found: 3, supported: 2 }) = opened else { panic!("opened") };
    assert!(error.to_string().ends_with("install the release that wrote it"));
}
