//! Turning to a new epoch: every data key wrapped again, the root exchanged, and what was wrapped before worth nothing. It
//! is done or not begun, wherever it is interrupted: the keyring holds both epochs until the database says which one it
//! uses. Why it is turned is not known here.

use crate::audit::AuditDraft;
use crate::blobs;
use crate::entropy;
use crate::error::{Fault, KeyError, WriteError};
use crate::keyring::{Epoch, Held, KdfCost, Keyring, NewSource, Unlock, UnlockError, UnlockSource};
use crate::keys::id_of;
use crate::shares::{RecoveryShare, SHARES};
use crate::store::{Opened, Store};
use crate::writer::Writer;
use empathd_proto::{BlobId, Secret};
use std::sync::RwLockWriteGuard;
use zeroize::Zeroizing;

/// What changes in the ways in when an epoch is turned.
#[derive(Default)]
pub(crate) struct Ways {
    coming: Option<NewSource>,
    leaving: Option<UnlockSource>,
}

/// A transaction that was carried out: its value, the blobs it dropped, and what the commit answered.
type Turned<T> = (T, Vec<BlobId>, Result<(), Fault>);

impl Store {
    /// Exchanges the passphrase, after `present` proved who asks. The root and the epoch are exchanged with it: an old copy
    /// of the keyring with the old passphrase opens nothing of what the store is from then on.
    ///
    /// # Errors
    /// [`KeyError`]; the old passphrase stays.
    pub fn change_passphrase(
        &self,
        present: Unlock<'_>,
        new: &Secret,
        cost: KdfCost,
        audit: AuditDraft,
    ) -> Result<(), KeyError> {
        if new.expose().is_empty() {
            return Err(KeyError::Unfit("the passphrase is empty; choose one that others cannot guess"));
        }
        self.unlock(present)?;
        let coming = Some(NewSource::passphrase(new, cost, &*self.entropy)?);
        Ok(self.turn(audit, Ways { coming, leaving: None }, |_, _| Ok(()))?)
    }

    /// Makes three recovery shares, of which any two open the store; earlier ones open nothing of it any more. They are
    /// shown once and kept nowhere.
    ///
    /// # Errors
    /// [`KeyError`]; earlier shares stay good.
    pub fn recovery_shares(&self, audit: AuditDraft) -> Result<[RecoveryShare; SHARES], KeyError> {
        self.recovery_shares_and(audit, |_| Ok(()))
    }

    /// As [`Store::recovery_shares`], with what `also` changes in the same transaction.
    ///
    /// # Errors
    /// As [`Store::recovery_shares`], and those of `also`.
    pub fn recovery_shares_and(
        &self,
        audit: AuditDraft,
        also: impl FnOnce(&mut Writer<'_>) -> Result<(), WriteError>,
    ) -> Result<[RecoveryShare; SHARES], KeyError> {
        let (new, shares) = NewSource::shares(&*self.entropy);
        self.turn(audit, Ways { coming: Some(new), leaving: None }, |writer, _| also(writer))?;
        Ok(shares)
    }

    /// The number of the epoch in use: it grows by one with each turn.
    ///
    /// # Errors
    /// [`WriteError::Sealed`], or the keyring is damaged.
    pub fn epoch_number(&self) -> Result<u64, WriteError> {
        let opened = self.ready_alone()?;
        let epochs = self.keyring()?.epochs(&opened.keys.root());
        let first = epochs.and_then(|epochs| epochs.first().map(|epoch| epoch.number));
        first.ok_or(WriteError::Integrity("the keyring in memory is damaged"))
    }

    /// Lets a credential open the store, in the place of an earlier one; `None` takes the way away.
    ///
    /// # Errors
    /// [`KeyError`]; the ways in stay as they are.
    pub fn set_credential(&self, new: Option<&[u8]>, audit: AuditDraft) -> Result<(), KeyError> {
        let coming = new.map(|new| NewSource::credential(new, &*self.entropy)).transpose()?;
        Ok(self.turn(audit, Ways { coming, leaving: Some(UnlockSource::Credential) }, |_, _| Ok(()))?)
    }

    /// Exchanges the root and the epoch key and wraps every data key again.
    ///
    /// # Errors
    /// [`KeyError`]; the keys stay.
    pub fn rotate_keys(&self, audit: AuditDraft) -> Result<(), KeyError> {
        Ok(self.turn(audit, Ways::default(), |_, _| Ok(()))?)
    }

    /// Does `work`, then wraps every key that is left again under a new epoch, all in one transaction; then forgets the
    /// epoch before and the root.
    pub(crate) fn turn<T>(
        &self,
        audit: AuditDraft,
        ways: Ways,
        work: impl FnOnce(&mut Writer<'_>, &mut AuditDraft) -> Result<T, WriteError>,
    ) -> Result<T, WriteError> {
        let mut opened = self.ready_alone()?;
        let root = opened.keys.root();
        let pending = self.keyring()?;
        let number = pending.epochs(&root).and_then(|epochs| epochs.first().map(|epoch| epoch.number));
        let next = Zeroizing::new(entropy::array(&*self.entropy));
        let pending = number.and_then(|number| {
            let next = Epoch::new(number.saturating_add(1), &next);
            pending.pending(&root, next, ways.coming, ways.leaving, &*self.entropy)
        });
        let pending = pending.ok_or(WriteError::Integrity("the keyring in memory is damaged"))?;
        pending.write(&*self.disk, &self.dir).map_err(Fault::from)?;
        self.hold(pending);
        opened.keys.set_next_epoch(&next);
        let before = opened.keys.before_next();
        let turned = self.turn_rows(&opened, audit, work);
        // The database says whether it happened, also when the commit answered with an error.
        if opened.has_failed() {
            opened.reopen(&*self.disk, &self.dir)?;
        } else {
            opened.settle_epoch()?;
        }
        let happened = opened.keys.epoch().0 != before;
        self.tidy(&mut opened)?;
        let (value, dropped, committed) = turned?;
        match committed {
            Err(fault) if !happened => Err(fault.into()),
            _ => {
                blobs::remove(&self.dir, &dropped);
                Ok(value)
            }
        }
    }

    fn turn_rows<T>(
        &self,
        opened: &Opened,
        mut audit: AuditDraft,
        work: impl FnOnce(&mut Writer<'_>, &mut AuditDraft) -> Result<T, WriteError>,
    ) -> Result<Turned<T>, WriteError> {
        let mut writer = opened.writer(&self.dir, &*self.entropy)?;
        let done = work(&mut writer, &mut audit).and_then(|value| {
            writer.wrap_again()?;
            writer.append_audit(&[audit])?;
            writer.store_heads()?;
            Ok(value)
        });
        match done {
            Ok(value) => {
                let dropped = std::mem::take(&mut writer.dropped_blobs);
                Ok((value, dropped, writer.commit()))
            }
            Err(error) => {
                let written = std::mem::take(&mut writer.written_blobs);
                writer.abort();
                blobs::remove(&self.dir, &written);
                Err(error)
            }
        }
    }

    /// Ends what is pending in the keyring, as the database says it ended.
    pub(crate) fn tidy(&self, opened: &mut Opened) -> Result<(), Fault> {
        let damaged = || Fault::Damaged("the keyring in memory is damaged");
        let (keyring, root) = (self.keyring()?, opened.keys.root());
        let epochs = keyring.epochs(&root).ok_or_else(damaged)?;
        let Some(next) = epochs.get(1) else { return Ok(()) };
        let done = opened.keys.epoch().0 == id_of(&next.key(), self.id());
        let (settled, unlocked) = keyring.settled(&root, done, &*self.entropy).ok_or_else(damaged)?;
        settled.write(&*self.disk, &self.dir)?;
        opened.keys.set_root(&unlocked.root);
        self.hold(settled);
        Ok(())
    }

    /// The unsealed store for one alone, with nothing pending.
    pub(crate) fn ready_alone(&self) -> Result<RwLockWriteGuard<'_, Opened>, WriteError> {
        let mut opened = self.exclusive();
        if !opened.unsealed {
            return Err(WriteError::Sealed);
        }
        if opened.has_failed() {
            opened.reopen(&*self.disk, &self.dir)?;
        }
        self.tidy(&mut opened)?;
        Ok(opened)
    }

    /// The keyring, which is in today's format once the store was unsealed.
    pub(crate) fn keyring(&self) -> Result<Keyring, Fault> {
        match &*self.held() {
            Held::Now(keyring) => Ok(keyring.clone()),
            Held::V1(_) => Err(Fault::Damaged("the keyring was not brought to today's format")),
        }
    }
}

impl From<UnlockError> for KeyError {
    fn from(error: UnlockError) -> Self {
        match error {
            UnlockError::WrongSource | UnlockError::NoSuchSource => KeyError::WrongSource,
            UnlockError::Unfit(what) => KeyError::Unfit(what),
            UnlockError::Memory => KeyError::Memory,
            UnlockError::Damaged => KeyError::Write(WriteError::Integrity("the keyring is damaged")),
        }
    }
}
