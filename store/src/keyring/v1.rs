//! The keyring as releases before format 2 wrote it: one passphrase wraps the root, the root wraps one epoch key. It is read
//! and never written.

use super::kdf::Kdf;
use super::{Epoch, Keyring, Kind, Member, Phase, UnlockError, Unlocked};
use crate::entropy::Entropy;
use crate::format;
use crate::recipient::Opener;
use crate::wrapped::Wrapped;
use empathd_proto::{Secret, StoreId};
use serde::{Deserialize, Serialize};

/// What the file of format 1 holds.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct KeyringV1 {
    pub(crate) store: StoreId,
    pub(crate) kdf: Kdf,
    root: Wrapped,
    epoch_number: u64,
    epoch: Wrapped,
}

impl KeyringV1 {
    /// The keys that the passphrase opens, and the same keyring in today's format.
    pub(crate) fn migrate(
        &self,
        passphrase: &Secret,
        entropy: &dyn Entropy,
    ) -> Result<(Unlocked, Keyring), UnlockError> {
        let seed = self.kdf.derive(passphrase)?;
        let root = self.root.open(&seed, self.store, &self.root_context()).ok_or(UnlockError::WrongSource)?;
        let key = self.epoch.open(&root, self.store, &self.epoch_context()).ok_or(UnlockError::Damaged)?;
        let recipient = Opener::new(&seed).recipient().clone();
        let members = vec![(Kind::Passphrase(self.kdf.clone()), Member { recipient, phase: Phase::Settled })];
        let epochs = vec![Epoch::new(self.epoch_number, &key)];
        let keyring = Keyring::build(self.store, &root, members, &epochs, entropy);
        Ok((Unlocked { root, epochs }, keyring))
    }

    /// What the wrapped root is bound to: the store and the parameters that led to its key.
    fn root_context(&self) -> Vec<u8> {
        [b"empathd/root/1".as_slice(), self.store.as_bytes(), &format::encode(&self.kdf)].concat()
    }

    /// What the wrapped epoch key is bound to.
    fn epoch_context(&self) -> Vec<u8> {
        [b"empathd/epoch/1".as_slice(), self.store.as_bytes(), &self.epoch_number.to_le_bytes()].concat()
    }
}
