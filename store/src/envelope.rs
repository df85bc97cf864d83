//! The envelope of every sealed value: `version ‖ algorithm ‖ key id ‖ nonce ‖ ciphertext ‖ tag` (docs/FORMAT.md). Which
//! key seals what, and what is inside, is not known here.

use crate::memory::KEY_BYTES;
use crate::padding;
use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use zeroize::Zeroizing;

/// Version of the envelope's own shape.
pub(crate) const VERSION: u8 = 1;
/// Bytes of a nonce.
pub(crate) const NONCE_BYTES: usize = 12;
/// Bytes of a tag.
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes before the nonce.
const PREFIX_BYTES: usize = 1 + 1 + 8;
/// Bytes before the ciphertext.
const HEAD_BYTES: usize = PREFIX_BYTES + NONCE_BYTES;

/// The first eight bytes of a key's commitment: it names the key and binds the envelope to it.
pub(crate) type KeyId = [u8; 8];
/// A key on its way through a computation; overwritten when dropped.
pub(crate) type Key = Zeroizing<[u8; KEY_BYTES]>;
/// A nonce.
pub(crate) type Nonce = [u8; NONCE_BYTES];

/// The bytes do not authenticate under this key and context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forged;

/// An authenticated cipher with 32-byte keys, 12-byte nonces and 16-byte tags.
pub(crate) trait Aead: Sync {
    /// Its byte in the envelope.
    fn algorithm(&self) -> u8;
    /// Encrypts in place; returns the tag.
    fn seal(&self, key: &[u8; KEY_BYTES], nonce: &Nonce, aad: &[u8], bytes: &mut [u8]) -> [u8; TAG_BYTES];
    /// Decrypts in place. On failure the bytes are meaningless.
    fn open(
        &self,
        key: &[u8; KEY_BYTES],
        nonce: &Nonce,
        aad: &[u8],
        bytes: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), Forged>;
}

/// AES-256-GCM (NIST SP 800-38D).
struct Gcm;

impl Aead for Gcm {
    fn algorithm(&self) -> u8 {
        1
    }

    fn seal(&self, key: &[u8; KEY_BYTES], nonce: &Nonce, aad: &[u8], bytes: &mut [u8]) -> [u8; TAG_BYTES] {
        let sealed = Aes256Gcm::new(key.into()).encrypt_inout_detached(nonce.into(), aad, bytes.into());
        // The cipher refuses 64 GiB and more at once; the largest value of this store is a thousandth of that.
        sealed.expect("a value within the bounds of this store").into()
    }

    fn open(
        &self,
        key: &[u8; KEY_BYTES],
        nonce: &Nonce,
        aad: &[u8],
        bytes: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), Forged> {
        Aes256Gcm::new(key.into())
            .decrypt_inout_detached(nonce.into(), aad, bytes.into(), tag.into())
            .map_err(|_| Forged)
    }
}

/// What seals today.
pub(crate) const CURRENT: &dyn Aead = &Gcm;

/// The cipher with this byte.
fn by_algorithm(algorithm: u8) -> Option<&'static dyn Aead> {
    [CURRENT].into_iter().find(|aead| aead.algorithm() == algorithm)
}

/// Seals a body, padded to its bucket, under a nonce that this key has not seen.
pub(crate) fn seal(id: KeyId, key: &[u8; KEY_BYTES], nonce: &Nonce, aad: &[u8], body: &[u8]) -> Vec<u8> {
    // Exact capacity: growing would leave a copy of the plaintext behind.
    let mut out = Vec::with_capacity(HEAD_BYTES + padding::bucket(body.len()) + TAG_BYTES);
    out.extend_from_slice(&[VERSION, CURRENT.algorithm()]);
    out.extend_from_slice(&id);
    out.extend_from_slice(nonce);
    out.extend_from_slice(body);
    padding::pad(&mut out, body.len());
    let tag = CURRENT.seal(key, nonce, aad, &mut out[HEAD_BYTES..]);
    out.extend_from_slice(&tag);
    out
}

/// The key that an envelope names; `None` when the bytes are no envelope.
pub(crate) fn key_id(envelope: &[u8]) -> Option<KeyId> {
    match envelope.first_chunk::<PREFIX_BYTES>()? {
        [VERSION, _, id @ ..] => Some(*id),
        _ => None,
    }
}

/// The body of an envelope.
pub(crate) fn open(key: &[u8; KEY_BYTES], aad: &[u8], envelope: &[u8]) -> Result<Zeroizing<Vec<u8>>, Forged> {
    let (prefix, rest) = envelope.split_first_chunk::<PREFIX_BYTES>().ok_or(Forged)?;
    let (nonce, rest) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(Forged)?;
    let (ciphertext, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(Forged)?;
    if prefix[0] != VERSION {
        return Err(Forged);
    }
    let aead = by_algorithm(prefix[1]).ok_or(Forged)?;
    let mut body = Zeroizing::new(ciphertext.to_vec());
    aead.open(key, nonce, aad, &mut body, tag)?;
    let length = padding::body_bytes(&body).ok_or(Forged)?;
    body.truncate(length);
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_opens_only_unchanged_under_its_key_and_context() {
        let (key, nonce) = ([1; KEY_BYTES], [2; NONCE_BYTES]);
        let envelope = seal([3; 8], &key, &nonce, b"context", b"a sentence");
        assert_eq!(key_id(&envelope), Some([3; 8]));
        assert_eq!(open(&key, b"context", &envelope).expect("authentic").as_slice(), b"a sentence");
        assert_eq!(open(&key, b"other", &envelope), Err(Forged));
        assert_eq!(open(&[9; KEY_BYTES], b"context", &envelope), Err(Forged));
        for at in (0..envelope.len()).filter(|at| !(2..10).contains(at)) {
            let mut changed = envelope.clone();
            changed[at] ^= 1;
            assert_eq!(open(&key, b"context", &changed), Err(Forged), "byte {at}");
        }
        for length in 0..envelope.len() {
            assert_eq!(open(&key, b"context", &envelope[..length]), Err(Forged));
        }
    }

    /// NIST CAVS gcmEncryptExtIV256, count 0 of [Keylen = 256][IVlen = 96][PTlen = 128][AADlen = 128][Taglen = 128].
    #[test]
    fn the_cipher_is_aes_256_gcm() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
        };
        let key: [u8; 32] =
            hex("92e11dcdaa866f5ce790fd24501f92509aacf4cb8b1339d50c9c1240935dd08b").try_into().expect("32");
        let nonce: Nonce = hex("ac93a1a6145299bde902f21a").try_into().expect("12");
        let mut bytes = hex("2d71bcfa914e4ac045b2aa60955fad24");
        let tag = CURRENT.seal(&key, &nonce, &hex("1e0889016f67601c8ebea4943bc23ad6"), &mut bytes);
        assert_eq!(bytes, hex("8995ae2e6df3dbf96fac7b7137bae67f"));
        assert_eq!(tag.to_vec(), hex("eca5aa77d51d4a0a14d9c51e1da474ab"));
    }
}
