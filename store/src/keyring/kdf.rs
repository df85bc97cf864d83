//! From a passphrase to a seed: argon2id with parameters that are kept beside what the seed opens. What that is, is not
//! known here.

use crate::entropy::{self, Entropy};
use crate::envelope::Key;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use empathd_proto::Secret;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

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
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kdf {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: [u8; 16],
}

/// Why there is no seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KdfError {
    /// Not enough memory.
    Memory,
    /// Parameters that mean nothing.
    Parameters,
}

impl Kdf {
    /// Parameters of this cost with a fresh salt.
    pub(crate) fn new(cost: KdfCost, entropy: &dyn Entropy) -> Self {
        let (memory_kib, passes) = match cost {
            KdfCost::Server => (256 * 1024, 3),
            KdfCost::Light => (8 * 1024, 1),
        };
        Self { memory_kib, passes, lanes: 1, salt: entropy::array(entropy) }
    }

    /// Whether they are within what this program is ready to spend.
    pub(crate) fn is_sane(&self) -> bool {
        self.memory_kib <= MAX_MEMORY_KIB && self.passes <= MAX_PASSES && self.lanes <= MAX_LANES
    }

    /// The seed of a passphrase.
    pub(crate) fn derive(&self, passphrase: &Secret) -> Result<Key, KdfError> {
        let params = Params::new(self.memory_kib, self.passes, self.lanes, None).map_err(|_| KdfError::Parameters)?;
        let mut memory = Vec::new();
        memory.try_reserve_exact(params.block_count()).map_err(|_| KdfError::Memory)?;
        memory.resize(params.block_count(), Block::new());
        let mut key = Key::default();
        let derived = Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into_with_memory(
            passphrase.expose().as_bytes(),
            &self.salt,
            &mut *key,
            &mut memory,
        );
        memory.iter_mut().for_each(Zeroize::zeroize);
        derived.map(|()| key).map_err(|_| KdfError::Parameters)
    }
}
