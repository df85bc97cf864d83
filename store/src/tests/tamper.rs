//! What a hand on the files can do: nothing that goes unnoticed, nothing that gives wrong words.

use super::behaviour::all_files;
use super::support::*;
use crate::backend::{self, OverlayDisk};
use crate::keyring::{Unlock, Unlocked};
use crate::tables::Table;
use crate::{DataClass, DocKind, ReadError, Reader, StateFindings, Store, VerifyError, stop, verify_stopped};
use empathd_proto::Secret;
use empathd_proto::audit::ActionKind;
use redb::ReadableTable;
use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

/// Flipped bytes that are tried, spread over the database file.
const FLIPS: usize = 300;

type Words = BTreeMap<[u8; 16], Vec<u8>>;

fn verify(dir: &TempDir) -> Result<StateFindings, VerifyError> {
    verify_stopped(&state(dir), &passphrase(), Arc::new(SeededEntropy::new(8)), &mut |_, _| {})
}

/// The findings of a check that could be made.
fn findings(dir: &TempDir) -> Vec<String> {
    verify(dir).expect("checked").findings
}

fn stopped(seed: u64) -> TempDir {
    let (dir, store) = furnished(seed);
    store.close(draft(ActionKind::Stop)).expect("closed");
    dir
}

/// A store over the folder that never writes into it.
fn onlooker(dir: &TempDir) -> (Store, Unlocked) {
    let store =
        Store::open_on(Box::new(OverlayDisk), &state(dir), Arc::new(SeededEntropy::new(7))).expect("keyring opens");
    let unlocked = store.unlock(Unlock::Passphrase(&passphrase())).expect("unlocked").0;
    (store, unlocked)
}

/// Every training record, read from the files as they are now; `None` when anything does not authenticate.
fn words(dir: &TempDir, store: &Store, unlocked: &Unlocked) -> Option<Words> {
    let mut opened = store.exclusive();
    store.load(&mut opened, unlocked).ok()?;
    let folder = state(dir);
    let reader = Reader::new(&opened, &folder, opened.snapshot().ok()?);
    let mut words = Words::new();
    let mut keep = |id: empathd_proto::RecordId, _, body: &[u8]| {
        words.insert(*id.as_bytes(), body.to_vec());
        ControlFlow::Continue(())
    };
    reader.records(DataClass::Training, &mut keep).ok()?;
    Some(words)
}

fn files(dir: &TempDir) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = all_files(&state(dir)).into_iter();
    paths.map(|path| (path.clone(), fs::read(path).expect("read"))).collect()
}

#[test]
fn a_sound_folder_passes_and_stays_as_it_is() {
    let dir = stopped(1);
    let before = files(&dir);
    let found = verify(&dir).expect("checked");
    assert_eq!(found.findings, Vec::<String>::new());
    assert!(found.stopped_in_order && found.values > 40, "{}", found.values);
    assert!(found.audit.expect("checked").verified());
    assert!(before == files(&dir), "the check changed the folder");

    let wrong = Secret::new("another".into());
    let refused = verify_stopped(&state(&dir), &wrong, Arc::new(SeededEntropy::new(8)), &mut |_, _| {});
    assert!(matches!(refused, Err(VerifyError::WrongPassphrase)));
    let store = reopen(&dir, 2);
    assert!(matches!(verify(&dir), Err(VerifyError::InUse)));
    drop(store);
    // Killed: the values are checked, and there is no stop seal to compare files with.
    let found = verify(&dir).expect("checked");
    assert!(found.is_clean() && !found.stopped_in_order, "{:?}", found.findings);
}

#[test]
fn a_flipped_byte_of_the_database_is_found_and_never_gives_wrong_words() {
    let dir = stopped(2);
    let (store, unlocked) = onlooker(&dir);
    let right = words(&dir, &store, &unlocked).expect("sound");
    assert_eq!(right.len(), 6);
    let path = state(&dir).join(backend::FILE);
    let good = fs::read(&path).expect("read");
    let mut unreadable = 0;
    for n in 0..FLIPS {
        // Half of them in the first pages, where the database keeps what it cannot do without.
        let at = if n % 2 == 0 { n * good.len() / FLIPS } else { n * 41 % (16 * 4096) };
        let mut bad = good.clone();
        bad[at] ^= 1 << (n % 8);
        fs::write(&path, bad).expect("written");
        match words(&dir, &store, &unlocked) {
            Some(read) => assert_eq!(read, right, "byte {at}"),
            None => unreadable += 1,
        }
        if n % 10 == 0 {
            assert!(!findings(&dir).is_empty(), "byte {at}");
        }
    }
    assert!(unreadable > 0, "no flip hit anything");
}

#[test]
fn any_changed_file_of_a_stopped_folder_is_found() {
    let dir = stopped(3);
    fs::create_dir(state(&dir).join("pki")).expect("made");
    fs::write(state(&dir).join("pki/ca.pem"), b"a certificate").expect("written");
    let store = reopen(&dir, 2);
    store.close(draft(ActionKind::Stop)).expect("closed");
    assert_eq!(findings(&dir), Vec::<String>::new());

    // Wrong means found, or refused before a look at the values.
    let wrong = |what: &str| assert!(!verify(&dir).is_ok_and(|found| found.is_clean()), "{what}");
    for (path, good) in files(&dir) {
        let name = path.display();
        for at in [0, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, bad).expect("written");
            wrong(&format!("byte {at} of {name}"));
        }
        fs::write(&path, &good[..good.len() - 1]).expect("written");
        wrong(&format!("{name} cut"));
        fs::write(&path, []).expect("written");
        wrong(&format!("{name} emptied"));
        fs::write(&path, [good.as_slice(), b"x"].concat()).expect("written");
        wrong(&format!("{name} grown"));
        fs::remove_file(&path).expect("removed");
        wrong(&format!("{name} removed"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).expect("made");
        wrong(&format!("{name} exchanged for a pipe"));
        fs::remove_file(&path).expect("removed");
        fs::write(&path, good).expect("written");
    }
    let added = state(&dir).join("blobs/added");
    fs::write(&added, b"").expect("written");
    wrong("a file added");
    fs::remove_file(&added).expect("removed");
    rustix::fs::mkfifoat(rustix::fs::CWD, &added, rustix::fs::Mode::RUSR).expect("made");
    wrong("a pipe added");
    fs::remove_file(&added).expect("removed");
    std::os::unix::fs::symlink("/", &added).expect("linked");
    wrong("a link added");
    fs::remove_file(&added).expect("removed");
    let _socket = std::os::unix::net::UnixListener::bind(state(&dir).join("admin.sock")).expect("bound");
    assert_eq!(findings(&dir), Vec::<String>::new());
}

#[test]
fn an_older_copy_of_the_database_is_found() {
    let (dir, store) = furnished(4);
    let path = state(&dir).join(backend::FILE);
    let running = fs::read(&path).expect("read");
    store.close(draft(ActionKind::Stop)).expect("closed");
    let store = reopen(&dir, 2);
    let earlier_seal = fs::read(state(&dir).join(stop::FILE));
    assert!(earlier_seal.is_err(), "a start consumes the stop seal");
    change(&store, |writer| writer.put_doc(DocKind::Job, [3; 16], b"later"));
    store.close(draft(ActionKind::Stop)).expect("closed");
    fs::write(&path, running).expect("written");
    let found = findings(&dir);
    assert!(found.iter().any(|text| text.starts_with("store.redb: altered")), "{found:?}");
}

#[test]
fn a_stop_seal_that_is_gone_is_missed_even_when_the_last_commit_is_undone() {
    let dir = stopped(25);
    fs::remove_file(state(&dir).join(stop::FILE)).expect("removed");
    let gone = |found: &[String]| found.iter().any(|text| text.starts_with("stop.seal: missing"));
    assert!(gone(&findings(&dir)));
    // Byte 9 of a redb file says which of its two commits is the last one; bit 0 chooses the slot. Whether the other one is
    // still whole depends on which pages were used again: damage is a finding, too.
    let path = state(&dir).join(backend::FILE);
    let mut bytes = fs::read(&path).expect("read");
    bytes[9] ^= 1;
    fs::write(&path, bytes).expect("written");
    let found = findings(&dir);
    let damaged =
        |found: &[String]| found.iter().any(|text| text.starts_with("store.redb: the database file is damaged"));
    assert!(gone(&found) || damaged(&found), "{found:?}");
}

/// A store that was killed, then changed by `f` with the database's own means.
fn altered(seed: u64, f: impl FnOnce(&redb::WriteTransaction)) -> (TempDir, StateFindings) {
    let (dir, store) = furnished(seed);
    drop(store);
    raw_change(&dir, f);
    let found = verify(&dir).expect("checked");
    (dir, found)
}

pub(super) fn all_rows(txn: &redb::WriteTransaction, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
    let open = txn.open_table(raw_table(table.name())).expect("table");
    let rows = open.iter().expect("rows").map(|row| row.expect("row"));
    rows.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())).collect()
}

#[test]
fn a_removed_row_is_noticed_in_every_table() {
    for table in Table::ALL {
        let (_dir, found) = altered(6, |txn| {
            let (key, _) = all_rows(txn, *table).pop().expect("furnished");
            txn.open_table(raw_table(table.name())).expect("table").remove(key.as_slice()).expect("removed");
        });
        assert!(!found.is_clean(), "{}", table.name());
    }
}

#[test]
fn a_value_under_another_key_does_not_open() {
    let (dir, found) = altered(7, |txn| {
        let rows = all_rows(txn, Table::Records);
        let mut open = txn.open_table(raw_table("records")).expect("table");
        open.insert(rows[0].0.as_slice(), rows[1].1.as_slice()).expect("put");
        open.insert(rows[1].0.as_slice(), rows[0].1.as_slice()).expect("put");
    });
    assert!(found.findings.iter().any(|text| text.starts_with("records: ")), "{:?}", found.findings);
    let store = reopen(&dir, 2);
    let walk = store.read(|reader| reader.records(DataClass::Training, &mut |_, _, _| ControlFlow::Continue(())));
    assert!(matches!(walk, Err(ReadError::Integrity(_))));
}

#[test]
fn a_row_put_back_to_an_older_state_is_noticed() {
    let (dir, store) = furnished(8);
    drop(store);
    let mut older = Vec::new();
    raw_change(&dir, |txn| older = all_rows(txn, Table::Docs));
    let store = reopen(&dir, 2);
    change(&store, |writer| writer.put_doc(DocKind::Job, [1; 16], b"a newer job"));
    drop(store);
    raw_change(&dir, |txn| {
        let mut open = txn.open_table(raw_table("docs")).expect("table");
        open.insert(older[0].0.as_slice(), older[0].1.as_slice()).expect("put");
    });
    let found = findings(&dir);
    assert!(found.iter().any(|text| text.starts_with("docs: rows were exchanged")), "{found:?}");
}

#[test]
fn a_table_of_others_is_noticed() {
    let (_dir, found) = altered(9, |txn| drop(txn.open_table(raw_table("notes")).expect("table")));
    assert_eq!(found.findings.len(), 1);
}

#[test]
fn the_audit_trail_shows_what_was_done_to_it() {
    let remove = |at: usize| {
        move |txn: &redb::WriteTransaction| {
            let (key, _) = all_rows(txn, Table::Audit).swap_remove(at);
            txn.open_table(raw_table("audit")).expect("table").remove(key.as_slice()).expect("removed");
        }
    };
    let last = furnished(10).1.read(|reader| reader.audit_count()).expect("counted") as usize - 1;
    for at in [0, 3, last] {
        let (dir, found) = altered(10, remove(at));
        assert!(!found.audit.expect("checked").verified(), "entry {at} removed");
        let store = reopen(&dir, 2);
        assert!(!store.verify_audit(&mut |_, _| {}).expect("checked").verified());
    }
    // All of it: the next entry begins no new trail.
    let (dir, _) =
        altered(13, |txn| txn.open_table(raw_table("audit")).expect("table").retain(|_, _| false).expect("emptied"));
    assert!(!reopen(&dir, 2).verify_audit(&mut |_, _| {}).expect("checked").verified());
    let (_dir, found) = altered(11, |txn| {
        let rows = all_rows(txn, Table::Audit);
        let mut open = txn.open_table(raw_table("audit")).expect("table");
        open.insert(rows[1].0.as_slice(), rows[2].1.as_slice()).expect("put");
    });
    let texts = found.audit.expect("checked").findings;
    assert!(texts.contains(&"audit entry 1 does not authenticate".to_owned()), "{texts:?}");
    // The end of an earlier, shorter trail, put back together with the removal of what came after it.
    let (dir, store) = furnished(12);
    drop(store);
    let mut anchor = Vec::new();
    raw_change(&dir, |txn| anchor = all_rows(txn, Table::Anchor));
    let store = reopen(&dir, 2);
    store.record_audit(&[draft(ActionKind::Chat)]).expect("recorded");
    drop(store);
    raw_change(&dir, |txn| {
        let mut open = txn.open_table(raw_table("anchor")).expect("table");
        anchor.iter().for_each(|(key, value)| drop(open.insert(key.as_slice(), value.as_slice()).expect("put")));
    });
    assert!(!findings(&dir).is_empty());
}
