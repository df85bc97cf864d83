//! The file `keyring`: how the passphrase becomes a key, and the root and epoch keys wrapped under it. It is replaced
//! whole or not at all. What the epoch key wraps in turn is not known here.

use crate::entropy::{self, Entropy};
use crate::envelope::{self, Key};
use crate::keys::{commitment, id_of};
use crate::{files, format};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use empathd_proto::{Secret, StoreId};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// Its name in the state folder.
pub(crate) const FILE: &str = "keyring";
/// First bytes of the file.
const MAGIC: &[u8; 8] = b"EMPATHDK";
/// Bytes of the plain BLAKE3 checksum at the end, against accidents.
const CHECKSUM_BYTES: usize = 32;
/// Longest file that is read.
const MAX_BYTES: u64 = 64 * 1024;
/// Most memory that a keyring may ask for, in KiB.
const MAX_MEMORY_KIB: u32 = 1024 * 1024;
/// Most passes that a keyring may ask for.
const MAX_PASSES: u32 = 64;
/// Most lanes that a keyring may ask for.
const MAX_LANES: u32 = 16;

/// How much work it is to try one passphrase. The parameters are kept in the keyring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KdfCost {
    /// argon2id with 256 MiB, three passes.
    Server,
    /// argon2id with 8 MiB, one pass: for development and tests.
    Light,
}

/// Parameters of argon2id.
#[derive(Clone, Serialize, Deserialize)]
struct Kdf {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: [u8; 16],
}

/// A key, wrapped, with the commitment by which a wrong wrapping key is noticed.
#[derive(Clone, Serialize, Deserialize)]
struct Wrapped {
    commitment: [u8; 32],
    envelope: Vec<u8>,
}

/// The file's contents.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Keyring {
    /// The store's name.
    pub(crate) store: StoreId,
    kdf: Kdf,
    root: Wrapped,
    epoch_number: u64,
    epoch: Wrapped,
}

/// Why the file cannot be used.
#[derive(Debug)]
pub(crate) enum KeyringError {
    /// There is none.
    Missing,
    /// Another format version.
    Version(u32),
    /// Not what was written.
    Damaged,
    /// The disk failed.
    Io(io::Error),
}

/// Why the passphrase gave no keys.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UnlockError {
    /// It opens nothing.
    WrongPassphrase,
    /// Not enough memory.
    Memory,
    /// The passphrase is right and the rest is not.
    Damaged,
}

/// The root key and the epoch key.
pub(crate) struct Unlocked {
    pub(crate) root: Key,
    pub(crate) epoch: Key,
}

impl Keyring {
    /// A new keyring with new keys.
    pub(crate) fn create(
        passphrase: &Secret,
        cost: KdfCost,
        entropy: &dyn Entropy,
    ) -> Result<(Self, Unlocked), UnlockError> {
        let store = StoreId::from_bytes(entropy::array(entropy));
        let (memory_kib, passes) = match cost {
            KdfCost::Server => (256 * 1024, 3),
            KdfCost::Light => (8 * 1024, 1),
        };
        let kdf = Kdf { memory_kib, passes, lanes: 1, salt: entropy::array(entropy) };
        let unlocked =
            Unlocked { root: Zeroizing::new(entropy::array(entropy)), epoch: Zeroizing::new(entropy::array(entropy)) };
        let passphrase_key = kdf.derive(passphrase)?;
        let epoch_number = 1;
        let root = wrap(&passphrase_key, &unlocked.root, store, &root_context(store, &kdf), entropy);
        let epoch = wrap(&unlocked.root, &unlocked.epoch, store, &epoch_context(store, epoch_number), entropy);
        Ok((Self { store, kdf, root, epoch_number, epoch }, unlocked))
    }

    /// The keys that the passphrase opens.
    pub(crate) fn unlock(&self, passphrase: &Secret) -> Result<Unlocked, UnlockError> {
        let passphrase_key = self.kdf.derive(passphrase)?;
        let root = unwrap(&passphrase_key, &self.root, self.store, &root_context(self.store, &self.kdf))
            .ok_or(UnlockError::WrongPassphrase)?;
        let epoch = unwrap(&root, &self.epoch, self.store, &epoch_context(self.store, self.epoch_number))
            .ok_or(UnlockError::Damaged)?;
        Ok(Unlocked { root, epoch })
    }

    /// Reads the file of a state folder.
    pub(crate) fn read(dir: &Path) -> Result<Self, KeyringError> {
        let bytes = match files::read_bounded(&dir.join(FILE), MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(KeyringError::Missing),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Err(KeyringError::Damaged),
            Err(error) => return Err(KeyringError::Io(error)),
        };
        Self::from_bytes(&bytes)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, KeyringError> {
        let (content, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(KeyringError::Damaged)?;
        let rest = content.strip_prefix(MAGIC).ok_or(KeyringError::Damaged)?;
        let (version, body) = rest.split_first_chunk().ok_or(KeyringError::Damaged)?;
        if blake3::hash(content) != *checksum {
            return Err(KeyringError::Damaged);
        }
        match u32::from_le_bytes(*version) {
            format::VERSION => {}
            other => return Err(KeyringError::Version(other)),
        }
        match postcard::take_from_bytes::<Self>(body) {
            Ok((keyring, [])) if keyring.kdf.is_sane() => Ok(keyring),
            _ => Err(KeyringError::Damaged),
        }
    }

    /// The file's bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&format::VERSION.to_le_bytes());
        bytes.extend(format::encode(self));
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }
}

impl Kdf {
    fn is_sane(&self) -> bool {
        self.memory_kib <= MAX_MEMORY_KIB && self.passes <= MAX_PASSES && self.lanes <= MAX_LANES
    }

    fn derive(&self, passphrase: &Secret) -> Result<Key, UnlockError> {
        let params = Params::new(self.memory_kib, self.passes, self.lanes, None).map_err(|_| UnlockError::Damaged)?;
        let mut memory = Vec::new();
        memory.try_reserve_exact(params.block_count()).map_err(|_| UnlockError::Memory)?;
        memory.resize(params.block_count(), Block::new());
        let mut key = Key::default();
        let derived = Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into_with_memory(
            passphrase.expose().as_bytes(),
            &self.salt,
            &mut *key,
            &mut memory,
        );
        memory.iter_mut().for_each(Zeroize::zeroize);
        derived.map(|()| key).map_err(|_| UnlockError::Damaged)
    }
}

/// What the wrapped root is bound to: the store and the parameters that led to its key.
fn root_context(store: StoreId, kdf: &Kdf) -> Vec<u8> {
    [b"empathd/root/1".as_slice(), store.as_bytes(), &format::encode(kdf)].concat()
}

/// What the wrapped epoch key is bound to.
fn epoch_context(store: StoreId, number: u64) -> Vec<u8> {
    [b"empathd/epoch/1".as_slice(), store.as_bytes(), &number.to_le_bytes()].concat()
}

fn wrap(by: &Key, key: &Key, store: StoreId, context: &[u8], entropy: &dyn Entropy) -> Wrapped {
    let envelope = envelope::seal(id_of(by, store), by, &entropy::array(entropy), context, &key[..]);
    Wrapped { commitment: commitment(by, store), envelope }
}

/// The key inside; `None` when `by` is not the key that wrapped it, or the bytes were changed.
fn unwrap(by: &Key, wrapped: &Wrapped, store: StoreId, context: &[u8]) -> Option<Key> {
    if !bool::from(commitment(by, store).ct_eq(&wrapped.commitment)) {
        return None;
    }
    let body = envelope::open(by, context, &wrapped.envelope).ok()?;
    Some(Zeroizing::new(body.as_slice().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::support::SeededEntropy;

    #[test]
    fn only_the_passphrase_opens_it_and_any_changed_byte_is_noticed() {
        let entropy = SeededEntropy::new(1);
        let right = Secret::new("correct horse".into());
        let (keyring, unlocked) = Keyring::create(&right, KdfCost::Light, &entropy).expect("created");
        let bytes = keyring.to_bytes();
        let again = Keyring::from_bytes(&bytes).unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(again.unlock(&right).expect("opens").epoch, unlocked.epoch);
        let wrong = again.unlock(&Secret::new("correct horsf".into()));
        assert_eq!(wrong.err(), Some(UnlockError::WrongPassphrase));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Keyring::from_bytes(&changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn another_version_is_told_apart_from_damage() {
        let (keyring, _) =
            Keyring::create(&Secret::new("x".into()), KdfCost::Light, &SeededEntropy::new(2)).expect("created");
        let mut content = keyring.to_bytes();
        content.truncate(content.len() - CHECKSUM_BYTES);
        content[MAGIC.len()] = 9;
        let bytes = [content.as_slice(), blake3::hash(&content).as_bytes()].concat();
        assert!(matches!(Keyring::from_bytes(&bytes), Err(KeyringError::Version(9))));
    }
}
