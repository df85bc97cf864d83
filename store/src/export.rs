//! Signatures over what leaves the appliance, by a key of the store's own. What is signed is not known here.

use crate::keys::{Shared, derive};
use crate::reader::Reader;
use ed25519_dalek::{Signer, SigningKey};

/// A signature over something that leaves the appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportSignature {
    /// The key, Ed25519.
    pub public_key: [u8; 32],
    /// The signature (RFC 8032).
    pub signature: [u8; 64],
}

impl Reader<'_> {
    /// Signs these bytes with the store's key for exports: derived from the key of checkpoints, so that nothing that is signed
    /// here can pass for one, and the same for the life of the store.
    #[must_use]
    pub fn sign_export(&self, bytes: &[u8]) -> ExportSignature {
        let seed = derive(self.keys().shared(Shared::Signing), b"empathd/export-signing/1");
        let key = SigningKey::from_bytes(&seed);
        ExportSignature { public_key: key.verifying_key().to_bytes(), signature: key.sign(bytes).to_bytes() }
    }
}
