//! A checkpoint fixes the tree at a size: origin, size and root in the C2SP `tlog-checkpoint` text, signed as a C2SP
//! signed note with Ed25519. Whoever keeps one can later prove that the trail was only extended.

use super::tree::Hash;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest text of a signed checkpoint that is read.
pub const MAX_TEXT_BYTES: usize = 4096;
/// Signature type byte of Ed25519 in signed notes.
const ED25519: u8 = 1;

/// A tree at a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log, such as `empathd/store_…`.
    pub origin: String,
    /// Leaves.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
}

/// A checkpoint with the signature of the store's audit key, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedCheckpoint {
    /// The signed note.
    pub note: String,
    /// The key that signed it, 32 bytes, base64.
    pub public_key: String,
}

/// Why a text is not a valid checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Not of the C2SP form.
    #[error("not a checkpoint in C2SP form")]
    Form,
    /// No signature of this key.
    #[error("the checkpoint is not signed by the store's audit key")]
    Signature,
}

impl Checkpoint {
    /// The text that is signed.
    #[must_use]
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// Signs it.
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> SignedCheckpoint {
        let body = self.body();
        let mut blob = key_hash(&self.origin, &key.verifying_key()).to_vec();
        blob.extend_from_slice(&key.sign(body.as_bytes()).to_bytes());
        SignedCheckpoint {
            note: format!("{body}\n\u{2014} {} {}\n", self.origin, STANDARD.encode(blob)),
            public_key: STANDARD.encode(key.verifying_key().to_bytes()),
        }
    }
}

impl SignedCheckpoint {
    /// The checkpoint, after its signature held under the key it names. Whether that key is the store's is for the
    /// caller to know: see [`SignedCheckpoint::verify_with`].
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn verify(&self) -> Result<Checkpoint, CheckpointError> {
        self.verify_with(&self.key()?)
    }

    /// The key it names.
    ///
    /// # Errors
    /// [`CheckpointError::Form`] when it is none.
    pub fn key(&self) -> Result<VerifyingKey, CheckpointError> {
        let bytes = STANDARD.decode(&self.public_key).map_err(|_| CheckpointError::Form)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| CheckpointError::Form)?;
        VerifyingKey::from_bytes(&bytes).map_err(|_| CheckpointError::Form)
    }

    /// The checkpoint, after its signature held under this key.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn verify_with(&self, key: &VerifyingKey) -> Result<Checkpoint, CheckpointError> {
        if self.note.len() > MAX_TEXT_BYTES {
            return Err(CheckpointError::Form);
        }
        let (body, signatures) = self.note.split_once("\n\n").ok_or(CheckpointError::Form)?;
        let checkpoint = parse_body(body)?;
        let body = checkpoint.body();
        let expected = key_hash(&checkpoint.origin, key);
        for line in signatures.lines() {
            let Some((name, blob)) = line.strip_prefix("\u{2014} ").and_then(|rest| rest.split_once(' ')) else {
                return Err(CheckpointError::Form);
            };
            let blob = STANDARD.decode(blob).map_err(|_| CheckpointError::Form)?;
            let Some((hash, signature)) = blob.split_first_chunk::<4>() else { continue };
            let Ok(signature) = Signature::from_slice(signature) else { continue };
            if name == checkpoint.origin && *hash == expected && key.verify_strict(body.as_bytes(), &signature).is_ok()
            {
                return Ok(checkpoint);
            }
        }
        Err(CheckpointError::Signature)
    }
}

fn parse_body(body: &str) -> Result<Checkpoint, CheckpointError> {
    let mut lines = body.lines();
    let (Some(origin), Some(size), Some(root), None) = (lines.next(), lines.next(), lines.next(), lines.next()) else {
        return Err(CheckpointError::Form);
    };
    let root = STANDARD.decode(root).map_err(|_| CheckpointError::Form)?;
    let checkpoint = Checkpoint {
        origin: origin.to_owned(),
        size: size.parse().map_err(|_| CheckpointError::Form)?,
        root: root.try_into().map_err(|_| CheckpointError::Form)?,
    };
    // One text for one checkpoint: `+5`, `05` and padding variants are refused.
    if checkpoint.body().trim_end_matches('\n') == body { Ok(checkpoint) } else { Err(CheckpointError::Form) }
}

/// First four bytes of SHA-256 over `name ‖ 0x0A ‖ 0x01 ‖ public key` (C2SP signed-note).
fn key_hash(name: &str, key: &VerifyingKey) -> [u8; 4] {
    let digest =
        Sha256::new().chain_update(name).chain_update([b'\n', ED25519]).chain_update(key.to_bytes()).finalize();
    [digest[0], digest[1], digest[2], digest[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_checkpoint_verifies_until_a_byte_changes() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let checkpoint = Checkpoint { origin: "empathd/test".into(), size: 42, root: [5; 32] };
        let signed = checkpoint.sign(&key);
        assert_eq!(signed.verify(), Ok(checkpoint));
        let other = SigningKey::from_bytes(&[4; 32]).verifying_key();
        assert_eq!(signed.verify_with(&other), Err(CheckpointError::Signature));
        for at in 0..signed.note.len() {
            let mut bytes = signed.note.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(note) = String::from_utf8(bytes) else { continue };
            let changed = SignedCheckpoint { note, ..signed.clone() };
            assert!(changed.verify().is_err(), "byte {at}");
        }
    }
}
