//! A key under another key, with a commitment by which a wrong one is noticed. What either is for is not known here.

use crate::entropy::{self, Entropy};
use crate::envelope::{self, Key};
use crate::keys::{commitment, id_of};
use empathd_proto::StoreId;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A sealed value with the commitment to the key that seals it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wrapped {
    commitment: [u8; 32],
    envelope: Vec<u8>,
}

impl Wrapped {
    /// Seals a body under `by`.
    pub(crate) fn seal(by: &Key, store: StoreId, body: &[u8; 32], context: &[u8], entropy: &dyn Entropy) -> Self {
        Self::seal_body(by, store, body, context, entropy)
    }

    /// Seals a body of any length under `by`.
    pub(crate) fn seal_body(by: &Key, store: StoreId, body: &[u8], context: &[u8], entropy: &dyn Entropy) -> Self {
        let envelope = envelope::seal(id_of(by, store), by, &entropy::array(entropy), context, body);
        Self { commitment: commitment(by, store), envelope }
    }

    /// The key inside; `None` when `by` is not the key that wrapped it, or the bytes were changed.
    pub(crate) fn open(&self, by: &Key, store: StoreId, context: &[u8]) -> Option<Key> {
        let body = self.open_body(by, store, context)?;
        Some(Zeroizing::new(body.as_slice().try_into().ok()?))
    }

    /// The body inside.
    pub(crate) fn open_body(&self, by: &Key, store: StoreId, context: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        if !bool::from(commitment(by, store).ct_eq(&self.commitment)) {
            return None;
        }
        envelope::open(by, context, &self.envelope).ok()
    }
}
