//! What a keyring opens for, and what becomes of it step by step.

use super::*;
use crate::tests::support::SeededEntropy;

fn created(seed: u64) -> (SeededEntropy, Secret, Keyring, Unlocked) {
    let entropy = SeededEntropy::new(seed);
    let right = Secret::new("correct horse".into());
    let (keyring, unlocked) = Keyring::create(&right, KdfCost::Light, &entropy).expect("created");
    (entropy, right, keyring, unlocked)
}

fn read(bytes: &[u8]) -> Result<Held, KeyringError> {
    Held::from_bytes(bytes)
}

#[test]
fn only_the_passphrase_opens_it_and_any_changed_byte_is_noticed() {
    let (entropy, right, keyring, unlocked) = created(1);
    let bytes = keyring.to_bytes();
    let again = read(&bytes).unwrap_or_else(|error| panic!("{error:?}"));
    let (found, _) = again.unlock(Unlock::Passphrase(&right), &entropy).expect("opens");
    assert!(found.root == unlocked.root && found.epochs == unlocked.epochs);
    let wrong = again.unlock(Unlock::Passphrase(&Secret::new("correct horsf".into())), &entropy);
    assert_eq!(wrong.err(), Some(UnlockError::WrongSource));
    assert_eq!(again.unlock(Unlock::Credential(&[7; 32]), &entropy).err(), Some(UnlockError::NoSuchSource));
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(read(&changed).is_err(), "byte {at}");
        // A hand that mends the checksum gets no further.
        let content = &changed[..bytes.len() - CHECKSUM_BYTES];
        let mended = [content, blake3::hash(content).as_bytes()].concat();
        if at < content.len() && at % 7 == 0 {
            let opened = read(&mended).ok().and_then(|held| held.unlock(Unlock::Passphrase(&right), &entropy).ok());
            // The name of a key in an envelope is a hint; everything that counts authenticates.
            assert!(opened.is_none_or(|(opened, _)| opened.epochs == unlocked.epochs), "byte {at}");
        }
    }
}

#[test]
fn another_version_is_told_apart_from_damage() {
    let mut content = created(2).2.to_bytes();
    content.truncate(content.len() - CHECKSUM_BYTES);
    content[MAGIC.len()] = 9;
    let bytes = [content.as_slice(), blake3::hash(&content).as_bytes()].concat();
    assert!(matches!(read(&bytes), Err(KeyringError::Version(9))));
}

#[test]
fn while_ways_are_exchanged_both_open_and_afterwards_one() {
    let (entropy, old, keyring, unlocked) = created(3);
    let new = Secret::new("battery staple".into());
    let coming = || Some(NewSource::passphrase(&new, KdfCost::Light, &entropy).expect("derived"));
    let next = Epoch::new(2, &Zeroizing::new([9; 32]));
    let pending = keyring.pending(&unlocked.root, next.clone(), coming(), None, &entropy).expect("pending");
    let opens =
        |keyring: &Keyring, with: &Secret| keyring.unlock(Unlock::Passphrase(with)).map(|u| u.epochs.len()).ok();
    assert_eq!((opens(&pending, &old), opens(&pending, &new)), (Some(2), Some(2)));
    let (done, after) = pending.settled(&unlocked.root, true, &entropy).expect("settled");
    assert_eq!((opens(&done, &old), opens(&done, &new)), (None, Some(1)));
    assert!(after.root != unlocked.root && after.epochs == [next]);
    let (undone, after) = pending.settled(&unlocked.root, false, &entropy).expect("settled");
    assert_eq!((opens(&undone, &old), opens(&undone, &new)), (Some(1), None));
    assert!(after.epochs == unlocked.epochs);
    assert!(done.inner(&unlocked.root).is_none(), "the old root opens nothing of the new keyring");
}

#[test]
fn a_way_in_that_a_stranger_added_does_not_count() {
    let (_, right, keyring, _) = created(4);
    let (_, _, strangers, _) = created(5);
    let mut forged = keyring.clone();
    forged.sources.extend(strangers.sources);
    assert_eq!(forged.unlock(Unlock::Passphrase(&right)).err(), Some(UnlockError::Damaged));
}

#[test]
fn shares_and_credentials_open_and_what_is_unfit_is_told() {
    let (entropy, right, keyring, unlocked) = created(6);
    let (new, shares) = NewSource::shares(&entropy);
    let next = Epoch::new(2, &Zeroizing::new([8; 32]));
    let pending = keyring.pending(&unlocked.root, next, Some(new), None, &entropy).expect("pending");
    let (keyring, after) = pending.settled(&unlocked.root, true, &entropy).expect("settled");
    assert_eq!(keyring.sources(), [UnlockSource::Passphrase, UnlockSource::Shares]);
    assert!(keyring.unlock(Unlock::Shares(&shares[1..])).expect("two").root == after.root);
    assert!(keyring.unlock(Unlock::Passphrase(&right)).expect("opens").root == after.root);
    assert!(matches!(keyring.unlock(Unlock::Shares(&shares[..1])).err(), Some(UnlockError::Unfit(_))));
    assert!(keyring.shares_recipient(&after.root).is_some_and(|(set, _)| set == shares[0].set()));
    assert!(matches!(NewSource::credential(&[1; 31], &entropy).err(), Some(UnlockError::Unfit(_))));
}
