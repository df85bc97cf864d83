//! New epochs, passphrases, credentials and shares: done or not begun wherever they are interrupted, and the old ones worth
//! nothing afterwards.

use super::support::*;
use crate::keyring::Held;
use crate::{DataClass, KdfCost, KeyError, RecoveryShare, Store, Unlock, UnlockSource, UnsealError};
use empathd_proto::Secret;
use empathd_proto::audit::ActionKind;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use tempfile::TempDir;

fn new_passphrase() -> Secret {
    Secret::new("another passphrase of tests".into())
}

fn records(store: &Store) -> usize {
    let mut count = 0;
    let walk = store.read(|reader| {
        reader.records(DataClass::Training, &mut |_, _, _| {
            count += 1;
            ControlFlow::Continue(())
        })
    });
    walk.expect("walked");
    count
}

fn opened(dir: &TempDir, seed: u64) -> Store {
    Store::open(&state(dir), Arc::new(SeededEntropy::new(seed))).expect("opened")
}

#[test]
fn every_way_in_opens_until_it_is_taken_away() {
    let (dir, store) = furnished(1);
    let credential = [0x5a; 64];
    let first = store.recovery_shares(draft(ActionKind::Init)).expect("made");
    store.set_credential(Some(&credential), draft(ActionKind::Init)).expect("set");
    let second = store.recovery_shares(draft(ActionKind::Init)).expect("made");
    assert_eq!(store.unlock_sources().len(), 3);
    let present = Unlock::Passphrase(&passphrase());
    let refused =
        store.change_passphrase(Unlock::Shares(&first), &new_passphrase(), KdfCost::Light, draft(ActionKind::Init));
    assert!(matches!(refused, Err(KeyError::WrongSource)));
    store.change_passphrase(present, &new_passphrase(), KdfCost::Light, draft(ActionKind::Init)).expect("changed");
    drop(store);

    let store = opened(&dir, 2);
    let refused = |with: Unlock<'_>| store.unseal_with(with, draft(ActionKind::Unseal)).expect_err("refused");
    assert!(matches!(refused(Unlock::Passphrase(&passphrase())), UnsealError::WrongPassphrase));
    assert!(matches!(refused(Unlock::Shares(&first)), UnsealError::WrongSource(_)));
    assert!(matches!(refused(Unlock::Credential(&[1; 64])), UnsealError::WrongSource(_)));
    // From paper, as a person would type it.
    let typed: Vec<RecoveryShare> =
        second[1..].iter().map(|share| RecoveryShare::from_text(&share.to_text()).expect("read")).collect();
    for with in [Unlock::Passphrase(&new_passphrase()), Unlock::Shares(&typed), Unlock::Credential(&credential)] {
        store.unseal_with(with, draft(ActionKind::Unseal)).expect("unsealed");
        assert_eq!(records(&store), 6);
        assert!(store.verify_all(&mut |_, _| {}).expect("checked").is_clean());
        store.seal(draft(ActionKind::Seal)).expect("sealed");
    }
    store.unseal(&new_passphrase(), draft(ActionKind::Unseal)).expect("unsealed");
    store.set_credential(None, draft(ActionKind::Init)).expect("taken away");
    store.seal(draft(ActionKind::Seal)).expect("sealed");
    let refused = store.unseal_with(Unlock::Credential(&credential), draft(ActionKind::Unseal));
    assert!(matches!(refused, Err(UnsealError::WrongSource(_))));
    assert_eq!(store.unlock_sources(), [UnlockSource::Shares, UnlockSource::Passphrase]);
}

#[test]
fn an_old_keyring_opens_nothing_after_a_new_epoch_and_its_bytes_are_overwritten() {
    let (dir, store) = furnished(1);
    let path = state(&dir).join(crate::keyring::FILE);
    let link = dir.path().join("what the disk still has");
    let old = fs::read(&path).expect("read");
    // A second name keeps the blocks of the file that is replaced.
    fs::hard_link(&path, &link).expect("linked");
    store.rotate_keys(draft(ActionKind::Init)).expect("rotated");
    assert!(fs::read(&link).expect("read").iter().all(|byte| *byte == 0));
    let before = store.audit_tail(1).expect("read")[0].seq;
    store.close(draft(ActionKind::Stop)).expect("closed");
    fs::write(&path, old).expect("written");
    let store = opened(&dir, 2);
    let unsealed = store.unseal(&passphrase(), draft(ActionKind::Unseal));
    assert!(matches!(unsealed, Err(UnsealError::Integrity(_))), "{unsealed:?} after entry {before}");
    assert!(store.shared().keys.bytes().iter().all(|byte| *byte == 0));
}

/// Interrupts an exchange of the passphrase after each number of operations, as `after` says, until it goes through.
fn sweep(after: impl Fn(u64, &TempDir, &MemoryDisk, Store, bool)) {
    let image = MemoryDisk::default();
    let (dir, store) = new_store_on(Box::new(image.clone()), 1);
    for n in 0..6u8 {
        change(&store, |writer| put(writer, &format!("person {}", n % 3), &[n; 300]));
    }
    drop(store);
    let keyring = state(&dir).join(crate::keyring::FILE);
    let whole = fs::read(&keyring).expect("read");
    for operations in 0.. {
        fs::write(&keyring, &whole).expect("put back");
        let disk = image.copy();
        let store =
            Store::open_on(Box::new(disk.clone()), &state(&dir), Arc::new(SeededEntropy::new(2))).expect("opened");
        store.unseal(&passphrase(), draft(ActionKind::Unseal)).expect("unsealed");
        disk.fail_after(operations, io::ErrorKind::Other);
        let (present, new) = (passphrase(), new_passphrase());
        let done = store.change_passphrase(Unlock::Passphrase(&present), &new, KdfCost::Light, draft(ActionKind::Init));
        if !disk.has_failed() {
            done.expect("nothing failed");
            return assert!(operations > 20, "{operations} operations");
        }
        after(operations, &dir, &disk, store, done.is_ok());
    }
}

#[test]
fn a_change_of_passphrase_that_power_cuts_short_is_done_or_not_begun() {
    sweep(|operations, dir, disk, store, done| {
        disk.mend();
        disk.cut_power(operations);
        let survivor = disk.copy();
        drop(store);
        let store = Store::open_on(Box::new(survivor), &state(dir), Arc::new(SeededEntropy::new(3))).expect("opened");
        let by_new = store.unseal(&new_passphrase(), draft(ActionKind::Unseal)).is_ok();
        if !by_new {
            assert!(!done, "acknowledged and lost at {operations}");
            store.unseal(&passphrase(), draft(ActionKind::Unseal)).expect("the old one opens");
        }
        assert_eq!(records(&store), 6);
        assert!(store.verify_all(&mut |_, _| {}).expect("checked").is_clean(), "operation {operations}");
        // Nothing is pending any more, and exactly one passphrase is left.
        store.seal(draft(ActionKind::Seal)).expect("sealed");
        let opens = [passphrase(), new_passphrase()].map(|with| {
            let opens = store.unseal(&with, draft(ActionKind::Unseal)).is_ok();
            store.seal(draft(ActionKind::Seal)).expect("sealed");
            opens
        });
        assert!(opens[0] != opens[1], "{opens:?} at {operations}");
        assert!(!done || opens[1]);
    });
}

#[test]
fn a_change_of_passphrase_on_a_failing_disk_leaves_a_store_that_serves_when_it_is_mended() {
    sweep(|operations, dir, disk, store, done| {
        disk.mend();
        assert_eq!(records(&store), 6, "operation {operations}");
        store.record_audit(&[draft(ActionKind::Chat)]).expect("recorded");
        store.rotate_keys(draft(ActionKind::Init)).expect("rotated");
        store.seal(draft(ActionKind::Seal)).expect("sealed");
        let held = Held::read(&state(dir)).expect("read");
        assert_eq!(held.sources(), [UnlockSource::Passphrase]);
        let with = if done { new_passphrase() } else { passphrase() };
        let other = if done { passphrase() } else { new_passphrase() };
        let opens = |with: &Secret| store.unseal(with, draft(ActionKind::Unseal)).is_ok();
        assert!(opens(&with) || (!done && opens(&other)), "operation {operations}");
        assert!(store.verify_all(&mut |_, _| {}).expect("checked").is_clean());
    });
}
