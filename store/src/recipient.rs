//! Sealing a key to someone who is not there: whoever has the seed opens it, whoever has the two halves that follow from
//! the seed can seal to it and no more. Where seeds come from is not known here.

use crate::entropy::{self, Entropy};
use crate::envelope::Key;
use crate::keys::derive;
use crate::wrapped::Wrapped;
use empathd_proto::StoreId;
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroize;

/// What follows from a seed and opens.
pub(crate) struct Opener {
    secret: StaticSecret,
    recipient: Recipient,
}

/// What follows from a seed and seals. It is kept secret all the same: who lacks it can seal nothing that opens.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize)]
#[zeroize(drop)]
pub(crate) struct Recipient {
    /// X25519.
    public: [u8; 32],
    /// Goes into every derivation, so that a sealed key proves who sealed it.
    proof: [u8; 32],
}

/// A key sealed to a recipient.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Boxed {
    /// X25519 key of this box alone.
    ephemeral: [u8; 32],
    key: Wrapped,
}

impl Opener {
    /// What follows from this seed.
    pub(crate) fn new(seed: &Key) -> Self {
        let secret = StaticSecret::from(*derive(seed, b"empathd/recipient-secret/1"));
        let proof = *derive(seed, b"empathd/recipient-proof/1");
        let public = PublicKey::from(&secret).to_bytes();
        Self { secret, recipient: Recipient { public, proof } }
    }

    /// The half that seals.
    pub(crate) fn recipient(&self) -> &Recipient {
        &self.recipient
    }

    /// The key in a box; `None` when it was sealed to another, by another, for another purpose, or changed.
    pub(crate) fn open(&self, store: StoreId, boxed: &Boxed, context: &[u8]) -> Option<Key> {
        let shared = self.secret.diffie_hellman(&PublicKey::from(boxed.ephemeral));
        if !shared.was_contributory() {
            return None;
        }
        let by = self.recipient.wrapping_key(shared.as_bytes(), &boxed.ephemeral);
        boxed.key.open(&by, store, context)
    }
}

impl Recipient {
    /// The first bytes of a digest of it: names it without saying anything about it.
    pub(crate) fn name(&self) -> [u8; 4] {
        let mut hasher = blake3::Hasher::new_derive_key("empathd 1 name of a recipient");
        hasher.update(&self.public).update(&self.proof);
        let digest = hasher.finalize();
        let (name, _) = digest.as_bytes().split_first_chunk().expect("32 bytes have 4");
        *name
    }

    /// Seals a key.
    pub(crate) fn seal(&self, store: StoreId, key: &Key, context: &[u8], entropy: &dyn Entropy) -> Boxed {
        let secret = StaticSecret::from(entropy::array(entropy));
        let ephemeral = PublicKey::from(&secret).to_bytes();
        let shared = secret.diffie_hellman(&PublicKey::from(self.public));
        let by = self.wrapping_key(shared.as_bytes(), &ephemeral);
        Boxed { ephemeral, key: Wrapped::seal(&by, store, key, context, entropy) }
    }

    /// The key of one box: HKDF over the shared secret, salted with the proof, over both public keys.
    fn wrapping_key(&self, shared: &[u8; 32], ephemeral: &[u8; 32]) -> Key {
        let info = [b"empathd/box/1".as_slice(), ephemeral, &self.public].concat();
        let mut out = Key::default();
        Hkdf::<Sha256>::new(Some(&self.proof), shared).expand(&info, &mut *out).expect("32 bytes are one block");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::support::SeededEntropy;
    use zeroize::Zeroizing;

    #[test]
    fn only_the_seed_opens_and_only_who_knows_the_proof_seals() {
        let entropy = SeededEntropy::new(1);
        let [seed, other, key] = [(); 3].map(|()| Zeroizing::new(entropy::array::<32>(&entropy)));
        let (store, opener) = (StoreId::from_bytes([3; 16]), Opener::new(&seed));
        let boxed = opener.recipient().seal(store, &key, b"for this", &entropy);
        assert_eq!(opener.open(store, &boxed, b"for this"), Some(key.clone()));
        assert_eq!(opener.open(store, &boxed, b"for that"), None);
        assert_eq!(opener.open(StoreId::from_bytes([4; 16]), &boxed, b"for this"), None);
        assert_eq!(Opener::new(&other).open(store, &boxed, b"for this"), None);
        // Who knows the public half alone seals in vain, and so does a point of small order.
        let mut guess = opener.recipient().clone();
        guess.proof[0] ^= 1;
        assert_eq!(opener.open(store, &guess.seal(store, &key, b"for this", &entropy), b"for this"), None);
        assert_eq!(opener.open(store, &Boxed { ephemeral: [0; 32], ..boxed.clone() }, b"for this"), None);
        assert_ne!(opener.recipient().name(), guess.name());
    }

    /// RFC 7748, section 5.2, the first vector.
    #[test]
    fn the_agreement_is_x25519() {
        let hex = |text: &str| -> [u8; 32] {
            let bytes = (0..64).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex"));
            bytes.collect::<Vec<_>>().try_into().expect("32")
        };
        let secret = StaticSecret::from(hex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"));
        let public = PublicKey::from(hex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"));
        let shared = hex("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552");
        assert_eq!(secret.diffie_hellman(&public).to_bytes(), shared);
    }
}
