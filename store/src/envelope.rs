//! The envelope of every sealed value: `version ‖ algorithm ‖ key id ‖ nonce ‖ ciphertext ‖ tag` (docs/FORMAT.md). Which
//! key seals what, and what is inside, is not known here.

use crate::memory::KEY_BYTES;
use crate::padding;
use aes_gcm::aead::AeadInOut;
use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::BlockCipherEncrypt;
use aes_gcm::{Aes256Gcm, KeyInit};
use zeroize::Zeroizing;

/// Version of the envelope's own shape.
pub(crate) const VERSION: u8 = 1;
/// Bytes of a nonce of AES-256-GCM.
pub(crate) const NONCE_BYTES: usize = 12;
/// Bytes of a nonce of XAES-256-GCM.
pub(crate) const LONG_NONCE_BYTES: usize = 24;
/// Bytes of a block of AES.
const BLOCK_BYTES: usize = 16;
/// Bytes of a tag.
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes before the nonce.
const PREFIX_BYTES: usize = 1 + 1 + 8;

/// The first eight bytes of a key's commitment: it names the key and binds the envelope to it.
pub(crate) type KeyId = [u8; 8];
/// A key on its way through a computation; overwritten when dropped.
pub(crate) type Key = Zeroizing<[u8; KEY_BYTES]>;
/// A nonce of AES-256-GCM.
pub(crate) type Nonce = [u8; NONCE_BYTES];
/// A nonce of XAES-256-GCM: long enough to be drawn at random for as many values as there will ever be.
pub(crate) type LongNonce = [u8; LONG_NONCE_BYTES];

/// The bytes do not authenticate under this key and context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forged;

/// An authenticated cipher with 32-byte keys and 16-byte tags.
pub(crate) trait Aead: Sync {
    /// Its byte in the envelope.
    fn algorithm(&self) -> u8;
    /// Bytes of its nonce.
    fn nonce_bytes(&self) -> usize;
    /// Encrypts in place under a nonce of its length; returns the tag.
    fn seal(&self, key: &[u8; KEY_BYTES], nonce: &[u8], aad: &[u8], bytes: &mut [u8]) -> [u8; TAG_BYTES];
    /// Decrypts in place. On failure the bytes are meaningless.
    fn open(
        &self,
        key: &[u8; KEY_BYTES],
        nonce: &[u8],
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

    fn nonce_bytes(&self) -> usize {
        NONCE_BYTES
    }

    fn seal(&self, key: &[u8; KEY_BYTES], nonce: &[u8], aad: &[u8], bytes: &mut [u8]) -> [u8; TAG_BYTES] {
        let nonce: &Nonce = nonce.try_into().expect("a nonce of this cipher");
        let sealed = Aes256Gcm::new(key.into()).encrypt_inout_detached(nonce.into(), aad, bytes.into());
        // The cipher refuses 64 GiB and more at once; the largest value of this store is a thousandth of that.
        sealed.expect("a value within the bounds of this store").into()
    }

    fn open(
        &self,
        key: &[u8; KEY_BYTES],
        nonce: &[u8],
        aad: &[u8],
        bytes: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), Forged> {
        let nonce: &Nonce = nonce.try_into().map_err(|_| Forged)?;
        Aes256Gcm::new(key.into())
            .decrypt_inout_detached(nonce.into(), aad, bytes.into(), tag.into())
            .map_err(|_| Forged)
    }
}

/// XAES-256-GCM (C2SP): AES-256-GCM under a key that is derived from the key and the first half of the nonce.
struct Xaes;

impl Xaes {
    /// The derived key: CMAC over two blocks in counter mode (NIST SP 800-108r1), with the name `X` and half a nonce.
    fn key(key: &[u8; KEY_BYTES], half: &[u8]) -> Key {
        let cipher = Aes256::new(key.into());
        let mut subkey = [0; BLOCK_BYTES];
        cipher.encrypt_block((&mut subkey).into());
        let doubled = u128::from_be_bytes(subkey) << 1;
        let subkey = (doubled ^ if subkey[0] & 0x80 == 0 { 0 } else { 0x87 }).to_be_bytes();
        let mut derived = Key::default();
        for (number, out) in (1..).zip(derived.chunks_exact_mut(BLOCK_BYTES)) {
            let mut block = [0, number, b'X', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            block[BLOCK_BYTES - NONCE_BYTES..].copy_from_slice(half);
            block.iter_mut().zip(subkey).for_each(|(byte, with)| *byte ^= with);
            cipher.encrypt_block((&mut block).into());
            out.copy_from_slice(&block);
        }
        derived
    }
}

impl Aead for Xaes {
    fn algorithm(&self) -> u8 {
        2
    }

    fn nonce_bytes(&self) -> usize {
        LONG_NONCE_BYTES
    }

    fn seal(&self, key: &[u8; KEY_BYTES], nonce: &[u8], aad: &[u8], bytes: &mut [u8]) -> [u8; TAG_BYTES] {
        let (first, second) = nonce.split_at(LONG_NONCE_BYTES - NONCE_BYTES);
        Gcm.seal(&Self::key(key, first), second, aad, bytes)
    }

    fn open(
        &self,
        key: &[u8; KEY_BYTES],
        nonce: &[u8],
        aad: &[u8],
        bytes: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), Forged> {
        let (first, second) = nonce.split_at_checked(LONG_NONCE_BYTES - NONCE_BYTES).ok_or(Forged)?;
        Gcm.open(&Self::key(key, first), second, aad, bytes, tag)
    }
}

/// What seals under keys that are counted, that seal once, or whose nonces are counted.
pub(crate) const COUNTED: &dyn Aead = &Gcm;
/// What seals under keys of which nobody counts the uses.
const UNCOUNTED: &dyn Aead = &Xaes;

/// The cipher with this byte.
fn by_algorithm(algorithm: u8) -> Option<&'static dyn Aead> {
    [COUNTED, UNCOUNTED].into_iter().find(|aead| aead.algorithm() == algorithm)
}

/// Seals a body, padded to its bucket, under a nonce that this key has not seen. Who calls it sees to that: a key that
/// draws its nonces at random counts its uses.
pub(crate) fn seal(id: KeyId, key: &[u8; KEY_BYTES], nonce: &Nonce, aad: &[u8], body: &[u8]) -> Vec<u8> {
    seal_with(COUNTED, id, key, nonce, aad, body)
}

/// Seals a body, padded to its bucket, under a nonce that was drawn at random; the key may seal without count.
pub(crate) fn seal_uncounted(id: KeyId, key: &[u8; KEY_BYTES], nonce: &LongNonce, aad: &[u8], body: &[u8]) -> Vec<u8> {
    seal_with(UNCOUNTED, id, key, nonce, aad, body)
}

fn seal_with(aead: &dyn Aead, id: KeyId, key: &[u8; KEY_BYTES], nonce: &[u8], aad: &[u8], body: &[u8]) -> Vec<u8> {
    let head_bytes = PREFIX_BYTES + aead.nonce_bytes();
    // Exact capacity: growing would leave a copy of the plaintext behind.
    let mut out = Vec::with_capacity(head_bytes + padding::bucket(body.len()) + TAG_BYTES);
    out.extend_from_slice(&[VERSION, aead.algorithm()]);
    out.extend_from_slice(&id);
    out.extend_from_slice(nonce);
    out.extend_from_slice(body);
    padding::pad(&mut out, body.len());
    let tag = aead.seal(key, nonce, aad, &mut out[head_bytes..]);
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
    if prefix[0] != VERSION {
        return Err(Forged);
    }
    let aead = by_algorithm(prefix[1]).ok_or(Forged)?;
    let (nonce, rest) = rest.split_at_checked(aead.nonce_bytes()).ok_or(Forged)?;
    let (ciphertext, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(Forged)?;
    let mut body = Zeroizing::new(ciphertext.to_vec());
    aead.open(key, nonce, aad, &mut body, tag)?;
    let length = padding::body_bytes(&body).ok_or(Forged)?;
    body.truncate(length);
    Ok(body)
}

/// Reads hostile bytes as an envelope, for a fuzzer, and as what a sealed envelope holds. It must return; what opens is
/// what was sealed.
#[doc(hidden)]
pub fn fuzz_envelope(bytes: &[u8]) {
    let key = [1; KEY_BYTES];
    let _ = key_id(bytes);
    let _ = open(&key, b"context", bytes);
    let head = [VERSION, COUNTED.algorithm(), 0, 0, 0, 0, 0, 0, 0, 0].into_iter().chain([0; NONCE_BYTES]);
    let mut envelope: Vec<u8> = head.chain(bytes.iter().copied()).collect();
    let tag = COUNTED.seal(&key, &[0; NONCE_BYTES], b"context", &mut envelope[PREFIX_BYTES + NONCE_BYTES..]);
    envelope.extend_from_slice(&tag);
    if let Ok(body) = open(&key, b"context", &envelope) {
        assert!(bytes.starts_with(&body), "an envelope holds what was sealed");
    }
    for sealed in [
        seal([0; 8], &key, &[0; NONCE_BYTES], b"context", bytes),
        seal_uncounted([0; 8], &key, &[0; LONG_NONCE_BYTES], b"context", bytes),
    ] {
        assert_eq!(open(&key, b"context", &sealed).as_ref().map(|body| body.as_slice()), Ok(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_opens_only_unchanged_under_its_key_and_context() {
        let key = [1; KEY_BYTES];
        opens_only_unchanged(&seal([3; 8], &key, &[2; NONCE_BYTES], b"context", b"a sentence"));
        opens_only_unchanged(&seal_uncounted([3; 8], &key, &[2; LONG_NONCE_BYTES], b"context", b"a sentence"));
    }

    fn opens_only_unchanged(envelope: &[u8]) {
        let key = [1; KEY_BYTES];
        assert_eq!(key_id(envelope), Some([3; 8]));
        assert_eq!(open(&key, b"context", envelope).expect("authentic").as_slice(), b"a sentence");
        assert_eq!(open(&key, b"other", envelope), Err(Forged));
        assert_eq!(open(&[9; KEY_BYTES], b"context", envelope), Err(Forged));
        for at in (0..envelope.len()).filter(|at| !(2..10).contains(at)) {
            let mut changed = envelope.to_vec();
            changed[at] ^= 1;
            assert_eq!(open(&key, b"context", &changed), Err(Forged), "byte {at}");
        }
        for length in 0..envelope.len() {
            assert_eq!(open(&key, b"context", &envelope[..length]), Err(Forged));
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
    }

    /// The two vectors of the C2SP specification of XAES-256-GCM: with and without its most significant bit, the subkey of
    /// CMAC is made in another way.
    #[test]
    fn the_long_nonces_are_those_of_xaes_256_gcm() {
        for (key, aad, expected) in [
            ([1; KEY_BYTES], "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
            ([3; KEY_BYTES], "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
        ] {
            let mut bytes = b"XAES-256-GCM".to_vec();
            let nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX";
            let tag = Xaes.seal(&key, nonce, aad.as_bytes(), &mut bytes);
            assert_eq!([bytes.as_slice(), &tag].concat(), hex(expected));
            assert_eq!(Xaes.open(&key, nonce, aad.as_bytes(), &mut bytes, &tag), Ok(()));
            assert_eq!(bytes, b"XAES-256-GCM");
        }
    }

    #[test]
    fn hostile_bytes_are_no_envelope() {
        (0..300).for_each(|length| fuzz_envelope(&vec![length as u8; length]));
    }

    /// NIST CAVS gcmEncryptExtIV256, count 0 of [Keylen = 256][IVlen = 96][PTlen = 128][AADlen = 128][Taglen = 128].
    #[test]
    fn the_cipher_is_aes_256_gcm() {
        let key: [u8; 32] =
            hex("92e11dcdaa866f5ce790fd24501f92509aacf4cb8b1339d50c9c1240935dd08b").try_into().expect("32");
        let nonce: Nonce = hex("ac93a1a6145299bde902f21a").try_into().expect("12");
        let mut bytes = hex("2d71bcfa914e4ac045b2aa60955fad24");
        let tag = COUNTED.seal(&key, &nonce, &hex("1e0889016f67601c8ebea4943bc23ad6"), &mut bytes);
        assert_eq!(bytes, hex("8995ae2e6df3dbf96fac7b7137bae67f"));
        assert_eq!(tag.to_vec(), hex("eca5aa77d51d4a0a14d9c51e1da474ab"));
    }
}
