//! Backups, key files and what comes back from them: everything that lives, nothing that was erased, nothing that anyone
//! else wrote.

use super::erasure::{client, live_keys, opened, words};
use super::support::*;
use crate::tables::Table;
use crate::{
    DocKind, KdfCost, KeyError, RecoveryShare, RestoreError, RestoreFrom, Restored, Store, Unlock, WriteError, backup,
    blobs, fuzz_backup, fuzz_key_file,
};
use empathd_proto::Secret;
use empathd_proto::audit::ActionKind;
use std::fs;
use std::io::Read;
use std::sync::Arc;
use tempfile::TempDir;

struct Copies {
    whole: Vec<u8>,
    index: Vec<u8>,
    key_file: Vec<u8>,
    shares: [RecoveryShare; 3],
}

fn back_up(store: &Store, since: Option<&[u8]>) -> (Vec<u8>, Vec<u8>) {
    let mut out = Vec::new();
    let written = store.backup(&mut out, since, draft(ActionKind::Status)).expect("written");
    assert_eq!(store.check_backup(&mut out.as_slice()).expect("whole"), written.counts);
    (out, written.index)
}

fn key_file(store: &Store) -> Vec<u8> {
    store.key_file(draft(ActionKind::Status)).expect("written")
}

fn copies(store: &Store) -> Copies {
    let shares = store.recovery_shares(draft(ActionKind::Init)).expect("made");
    let (whole, index) = back_up(store, None);
    Copies { whole, index, key_file: key_file(store), shares }
}

fn restore_into(
    dir: &TempDir,
    backups: &[&[u8]],
    key_file: &[u8],
    shares: &[RecoveryShare],
) -> Result<(Store, Restored), RestoreError> {
    let mut streams: Vec<&[u8]> = backups.to_vec();
    let mut streams: Vec<&mut dyn Read> = streams.iter_mut().map(|stream| stream as &mut dyn Read).collect();
    let from = RestoreFrom { backups: &mut streams, key_file, shares };
    let passphrase = Secret::new("the new machine's".into());
    let entropy = Arc::new(SeededEntropy::new(77));
    Store::restore(&state(dir), from, &passphrase, KdfCost::Light, entropy, draft(ActionKind::Init))
}

fn restore(
    backups: &[&[u8]],
    key_file: &[u8],
    shares: &[RecoveryShare],
) -> Result<(TempDir, Store, Restored), RestoreError> {
    let dir = tempfile::tempdir().expect("scratch folder");
    let (store, restored) = restore_into(&dir, backups, key_file, shares)?;
    let found = store.verify_all(&mut |_, _| {}).expect("checked");
    assert!(found.is_clean(), "{:?}", found.findings);
    Ok((dir, store, restored))
}

#[test]
fn what_lives_comes_back_on_a_new_machine_and_stays() {
    let (_dir, store) = furnished(1);
    let none = store.key_file(draft(ActionKind::Status));
    assert!(matches!(none, Err(KeyError::Unfit(_))), "no shares, no key file");
    let made = copies(&store);
    let (dir, again, restored) = restore(&[&made.whole], &made.key_file, &made.shares[..2]).expect("restored");
    assert_eq!((again.id(), words(&again)), (store.id(), words(&store)));
    assert!(restored.rows > 30 && restored.erased == 0, "{restored:?}");
    let job = again.read(|reader| reader.doc(DocKind::Job, [1; 16])).expect("read").expect("there");
    assert_eq!(job.as_slice(), b"a job");
    let adapter = again.read(|reader| reader.active_adapter()).expect("read").expect("active");
    assert_eq!(again.read(|reader| reader.blob(adapter.blob)).expect("read").as_slice(), [7; 100_000]);
    change(&again, |writer| put(writer, "person 0", b"said after the restore"));
    again.close(draft(ActionKind::Stop)).expect("closed");
    // The papers stay good; the old passphrase is not the new machine's.
    let again = Store::open(&state(&dir), Arc::new(SeededEntropy::new(9))).expect("opened");
    assert!(again.unseal(&passphrase(), draft(ActionKind::Unseal)).is_err());
    again.unseal_with(Unlock::Shares(&made.shares[1..]), draft(ActionKind::Unseal)).expect("unsealed");
    assert_eq!(words(&again).len(), 7);
    assert!(matches!(restore_into(&dir, &[&made.whole], &made.key_file, &made.shares), Err(RestoreError::Create(_))));
}

#[test]
fn a_backup_holds_no_key_and_no_words() {
    let (_dir, store) = furnished(1);
    let made = copies(&store);
    for key in live_keys(&store) {
        assert!(!made.whole.windows(32).any(|window| window == key.as_slice()));
        assert!(!made.key_file.windows(32).any(|window| window == key.as_slice()));
    }
    let wrapped = store.read(|reader| {
        reader.rows(Table::Keys, &[]).map(|row| Ok(row?.1)).collect::<Result<Vec<_>, crate::ReadError>>()
    });
    for row in wrapped.expect("read") {
        assert!(!made.whole.windows(row.len()).any(|window| window == row), "a wrapped key is in the backup");
    }
    assert!(!made.whole.windows(16).any(|window| window == [3; 16]));
}

#[test]
fn what_was_erased_does_not_come_back_from_an_earlier_backup() {
    let (_dir, store) = furnished(3);
    let made = copies(&store);
    // The one who was learned from; the others were held out.
    let gone = client(&store, "person 0").expect("there");
    change(&store, |writer| writer.set_hold(gone, false));
    let mut places = Vec::new();
    let erasure = store.erase_client(gone, draft(ActionKind::Ingest)).expect("erased");
    places.extend(erasure.tombstone.records.iter().map(|id| (Table::Records, id.as_bytes().to_vec())));
    assert_eq!((places.len(), erasure.retired.len()), (2, 1));
    assert_eq!(opened(&store, &made.whole, &live_keys(&store), &places), 0);
    let newest = key_file(&store);
    let (_new, again, restored) = restore(&[&made.whole], &newest, &made.shares[1..]).expect("restored");
    assert_eq!((restored.erased, words(&again)), (2, words(&store)));
    assert_eq!((words(&again).len(), client(&again, "person 0")), (4, None));
    assert!(again.read(|reader| reader.active_adapter()).expect("read").is_none(), "it learned from the client");
    assert_eq!(again.read(|reader| reader.tombstones()).expect("read").len(), 2);
    // The stated limit: a key file from before, with two shares.
    let (_old, before, _) = restore(&[&made.whole], &made.key_file, &made.shares[..2]).expect("restored");
    assert_eq!(words(&before).len(), 6);
}

#[test]
fn backups_go_on_from_each_other_and_from_nothing_else() {
    let (_dir, store) = furnished(1);
    let made = copies(&store);
    let (little, _) = back_up(&store, Some(&made.index));
    assert!(little.len() < made.whole.len() / 10, "{} of {}", little.len(), made.whole.len());
    let (kept, dropped) = change(&store, |writer| {
        put(writer, "person 2", b"said later")?;
        writer.drop_doc(DocKind::Job, [1; 16])?;
        writer.put_doc(DocKind::Setting, [2; 16], b"new")?;
        Ok((writer.put_blob(&[5; 70_000])?, writer.put_blob(&[6; 10])?))
    });
    let (second, index) = back_up(&store, Some(&made.index));
    change(&store, |writer| writer.drop_blob(dropped));
    let (third, _) = back_up(&store, Some(&index));
    let newest = key_file(&store);
    let shares = &made.shares[..2];
    let (dir, again, _) = restore(&[&made.whole, &second, &third], &newest, shares).expect("restored");
    assert_eq!(words(&again), words(&store));
    assert!(again.read(|reader| reader.doc(DocKind::Job, [1; 16])).expect("read").is_none());
    assert_eq!(again.read(|reader| reader.blob(kept)).expect("read").len(), 70_000);
    assert_eq!(fs::read_dir(state(&dir).join(blobs::DIR)).expect("listed").count(), 2);
    // The middle alone, with a key file from after the blob was dropped.
    restore(&[&made.whole, &second], &newest, shares).expect("restored");
    let chain = |backups: &[&[u8]]| matches!(restore(backups, &newest, shares), Err(RestoreError::Chain));
    assert!(chain(&[&second]) && chain(&[&made.whole, &third]) && chain(&[&second, &made.whole]) && chain(&[]));
    let old = restore(&[&made.whole, &second], &made.key_file, shares);
    assert!(matches!(old, Err(RestoreError::OldKeyFile)));
    let mut forged = made.index.clone();
    forged[20] ^= 1;
    let refused = store.backup(&mut Vec::new(), Some(&forged), draft(ActionKind::Status));
    assert!(matches!(refused, Err(WriteError::Invalid(_))));
}

#[test]
fn a_changed_backup_or_key_file_restores_nothing_and_the_folder_can_be_tried_again() {
    let (_dir, store) = furnished(1);
    let made = copies(&store);
    let dir = tempfile::tempdir().expect("scratch folder");
    let refused = |whole: &[u8], key_file: &[u8], shares: &[RecoveryShare], what: &str| {
        assert!(restore_into(&dir, &[whole], key_file, shares).is_err(), "{what}");
        assert!(!Store::exists(&state(&dir)), "{what}");
    };
    let flipped = |bytes: &[u8], at: usize| {
        let mut changed = bytes.to_vec();
        changed[at] ^= 4;
        changed
    };
    for at in (0..made.whole.len()).step_by(made.whole.len() / 20) {
        let changed = flipped(&made.whole, at);
        assert!(store.check_backup(&mut changed.as_slice()).is_err(), "byte {at}");
        refused(&changed, &made.key_file, &made.shares, &format!("byte {at} of the backup"));
        refused(&made.whole[..at], &made.key_file, &made.shares, &format!("cut at {at}"));
    }
    for at in (0..made.key_file.len()).step_by(made.key_file.len() / 40) {
        refused(&made.whole, &flipped(&made.key_file, at), &made.shares, &format!("byte {at} of the key file"));
    }
    refused(&made.whole, &made.key_file, &made.shares[..1], "one share");
    let (_other, stranger) = furnished(2);
    let theirs = copies(&stranger);
    refused(&theirs.whole, &made.key_file, &made.shares, "another store's backup");
    refused(&made.whole, &made.key_file, &theirs.shares, "another store's shares");
    restore_into(&dir, &[&made.whole], &made.key_file, &made.shares).expect("restored at last");
}

#[test]
fn hostile_bytes_are_read_without_a_panic() {
    let (_dir, store) = furnished(1);
    let made = copies(&store);
    let entropy = SeededEntropy::new(5);
    // What comes out of the stream, so that changes get past the tags.
    let mut from = made.whole.as_slice();
    let key = backup::stream_key(&store.shared().keys);
    let mut content = Vec::new();
    let mut stream = backup::stream::StreamReader::new(&mut from, key).expect("a stream");
    stream.read_to_end(&mut content).expect("authentic");
    content.truncate(20_000);
    for _ in 0..3_000 {
        for seed in [&content, &made.key_file] {
            let mut bytes = seed.clone();
            for _ in 0..4 {
                let [a, b, c, value] = crate::entropy::array(&entropy);
                let at = u32::from_le_bytes([a, b, c, 0]) as usize % bytes.len();
                bytes[at] = value;
            }
            let [cut] = crate::entropy::array(&entropy);
            bytes.truncate(bytes.len() - usize::from(cut));
            fuzz_backup(&bytes);
            fuzz_key_file(&bytes);
        }
    }
}
