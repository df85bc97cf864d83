//! What each key is for, how keys are separated and named, and the keys that are in memory while the store is unsealed.
//! Where wrapped keys lie is not known here.

use crate::envelope::{Key, KeyId};
use crate::memory::{Arena, KEY_BYTES};
use crate::records::DataClass;
use empathd_proto::{AdapterId, BlobId, ClientId, StoreId};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::io;
use zeroize::{Zeroize, Zeroizing};

/// Seals under one key after which it is replaced: 90 % of the 2^32 that NIST SP 800-38D (section 8.3) allows with
/// random nonces.
pub(crate) const ROTATE_AFTER_SEALS: u64 = (1u64 << 32) / 10 * 9;
/// Seals that a shared key's row counts ahead. After a crash the rest of a block counts as spent.
pub(crate) const SEALS_PER_RESERVATION: u64 = 1 << 20;

/// Keys that no single client or adapter owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Shared {
    /// HMAC of index keys.
    Index,
    /// Keyed digest of rows in table heads.
    Fold,
    /// Seals rows that belong to no client.
    Meta,
    /// Seals documents.
    Docs,
    /// Seals audit entries.
    Audit,
    /// Signs audit checkpoints (Ed25519 seed).
    Signing,
}

impl Shared {
    /// All of them; the position is the number of the slot.
    pub(crate) const ALL: [Shared; 6] =
        [Shared::Index, Shared::Fold, Shared::Meta, Shared::Docs, Shared::Audit, Shared::Signing];
}

/// What a data key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// Wraps every other key. Its seals are one for each new key and each reservation: far below the limit.
    Epoch,
    /// One of the shared keys.
    Shared(Shared),
    /// Records of one client in one class.
    Client(ClientId, DataClass),
    /// One adapter's description.
    Adapter(AdapterId),
    /// One sealed file.
    Blob(BlobId),
}

/// Slot of the root key.
const ROOT: usize = 0;
/// Slot of the epoch key.
const EPOCH: usize = 1;
/// Slot of the next epoch key, while keys are being wrapped again.
const NEXT: usize = 2;
/// Slot of the first shared key.
const SHARED: usize = 3;

/// The keys in memory: all zero while sealed. The data keys of clients, adapters and blobs are unwrapped for one
/// transaction at a time and overwritten after it.
pub(crate) struct Keys {
    store: StoreId,
    arena: Arena,
    epoch_id: KeyId,
    next_id: Option<KeyId>,
    shared_ids: [KeyId; Shared::ALL.len()],
}

impl Keys {
    /// No keys yet.
    pub(crate) fn new(store: StoreId) -> io::Result<Self> {
        Ok(Self {
            store,
            arena: Arena::new()?,
            epoch_id: KeyId::default(),
            next_id: None,
            shared_ids: Default::default(),
        })
    }

    /// Takes the root and the epoch key.
    pub(crate) fn set_roots(&mut self, root: &Key, epoch: &Key) {
        self.arena.slots_mut()[ROOT] = **root;
        self.arena.slots_mut()[EPOCH] = **epoch;
        self.epoch_id = id_of(epoch, self.store);
    }

    /// Takes the root key of a keyring that was written anew.
    pub(crate) fn set_root(&mut self, root: &Key) {
        self.arena.slots_mut()[ROOT] = **root;
    }

    /// The root key.
    pub(crate) fn root(&self) -> Key {
        Zeroizing::new(self.arena.slots()[ROOT])
    }

    /// Takes the next epoch key: from now on it seals, and both open.
    pub(crate) fn set_next_epoch(&mut self, next: &Key) {
        self.arena.slots_mut()[NEXT] = **next;
        self.next_id = Some(id_of(next, self.store));
    }

    /// The name of the epoch key that the next one would replace.
    pub(crate) fn before_next(&self) -> KeyId {
        self.epoch_id
    }

    /// Ends that: keeps the epoch key that the database uses, by its name, and overwrites the other. False when it uses
    /// neither.
    pub(crate) fn settle_epoch(&mut self, used: KeyId) -> bool {
        let next = self.next_id.take();
        if next == Some(used) {
            self.arena.slots_mut()[EPOCH] = self.arena.slots()[NEXT];
            self.epoch_id = used;
        }
        self.arena.slots_mut()[NEXT].zeroize();
        self.epoch_id == used
    }

    /// Takes a shared key.
    pub(crate) fn set_shared(&mut self, shared: Shared, key: &Key) {
        self.arena.slots_mut()[SHARED + shared as usize] = **key;
        self.shared_ids[shared as usize] = id_of(key, self.store);
    }

    /// The store they belong to.
    pub(crate) fn store(&self) -> StoreId {
        self.store
    }

    /// The epoch key that seals, with its name.
    pub(crate) fn epoch(&self) -> (KeyId, Key) {
        match self.next_id {
            Some(next) => (next, Zeroizing::new(self.arena.slots()[NEXT])),
            None => (self.epoch_id, Zeroizing::new(self.arena.slots()[EPOCH])),
        }
    }

    /// A shared key.
    pub(crate) fn shared(&self, shared: Shared) -> &[u8; KEY_BYTES] {
        &self.arena.slots()[SHARED + shared as usize]
    }

    /// The key with this name, when it is one of those in memory.
    pub(crate) fn by_id(&self, id: KeyId) -> Option<(Purpose, Key)> {
        if id == self.epoch_id {
            return Some((Purpose::Epoch, Zeroizing::new(self.arena.slots()[EPOCH])));
        }
        if self.next_id == Some(id) {
            return Some((Purpose::Epoch, Zeroizing::new(self.arena.slots()[NEXT])));
        }
        let shared = Shared::ALL.into_iter().find(|shared| self.shared_ids[*shared as usize] == id)?;
        Some((Purpose::Shared(shared), Zeroizing::new(*self.shared(shared))))
    }

    /// The key of stop seals, derived from the root.
    pub(crate) fn stop_key(&self) -> Key {
        stop_key(&self.arena.slots()[ROOT])
    }

    /// First half of the HMAC of `parts` under the index key, each part with its length, so that parts cannot flow
    /// into each other.
    pub(crate) fn index(&self, parts: &[&[u8]]) -> [u8; 16] {
        let mut mac = hmac(self.shared(Shared::Index));
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        let digest: [u8; 32] = mac.finalize().into_bytes().into();
        let (half, _) = digest.split_first_chunk().expect("32 bytes have 16");
        *half
    }

    /// Overwrites all of them.
    pub(crate) fn wipe(&mut self) {
        self.arena.wipe();
        self.epoch_id = KeyId::default();
        self.next_id = None;
        self.shared_ids = Default::default();
    }

    /// Whether the kernel keeps them out of swap.
    pub(crate) fn are_locked(&self) -> bool {
        self.arena.is_locked()
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.arena.slots().concat()
    }
}

/// Commitment to a key: the HMAC of the store's name under it. GCM alone does not commit to its key.
pub(crate) fn commitment(key: &[u8; KEY_BYTES], store: StoreId) -> [u8; 32] {
    let mut mac = hmac(key);
    mac.update(b"empathd/key-commitment/1");
    mac.update(store.as_bytes());
    mac.finalize().into_bytes().into()
}

/// The name of a key: the first eight bytes of its commitment.
pub(crate) fn id_of(key: &[u8; KEY_BYTES], store: StoreId) -> KeyId {
    let commitment = commitment(key, store);
    let (id, _) = commitment.split_first_chunk().expect("32 bytes have 8");
    *id
}

/// The key of stop seals.
pub(crate) fn stop_key(root: &[u8; KEY_BYTES]) -> Key {
    derive(root, b"empathd/stop-seal/1")
}

/// A key for one use, derived by HKDF (RFC 5869).
pub(crate) fn derive(key: &[u8; KEY_BYTES], label: &[u8]) -> Key {
    let mut out = Key::default();
    Hkdf::<Sha256>::new(None, key).expand(label, &mut *out).expect("32 bytes are one block");
    out
}

fn hmac(key: &[u8; KEY_BYTES]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}
