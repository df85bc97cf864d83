//! Values that never touch a disk: sealed under a key that exists in one locked page of memory only, so that what the
//! kernel swaps out says nothing, and all of them are gone in the moment in which the key is. What they say, and where
//! they are kept, is not known here.

use crate::entropy::Entropy;
use crate::envelope::{self, KeyId, NONCE_BYTES, Nonce};
use crate::memory::{Arena, KEY_BYTES};
use std::io;
use zeroize::Zeroizing;

/// The only slot of the page that is used.
const SLOT: usize = 0;

/// A key for values in memory. Overwritten when it is renewed and when it is dropped.
pub struct TransientKey {
    arena: Arena,
    /// Values sealed under the present key; each is the nonce of the next.
    sealed: u64,
    /// Keys before the present one.
    renewals: u64,
}

impl TransientKey {
    /// A fresh key.
    ///
    /// # Errors
    /// When the kernel gives no page.
    pub fn new(entropy: &dyn Entropy) -> io::Result<Self> {
        let mut key = Self { arena: Arena::new()?, sealed: 0, renewals: 0 };
        key.renew(entropy);
        Ok(key)
    }

    /// Overwrites the key and takes another one: nothing that was sealed before can be opened any more.
    pub fn renew(&mut self, entropy: &dyn Entropy) {
        self.arena.wipe();
        entropy.fill(&mut self.arena.slots_mut()[SLOT]);
        self.sealed = 0;
        self.renewals += 1;
    }

    /// Seals a value for this place; it opens in no other.
    pub fn seal(&mut self, place: &[u8], value: &[u8]) -> Vec<u8> {
        let mut nonce: Nonce = [0; NONCE_BYTES];
        nonce[..8].copy_from_slice(&self.sealed.to_le_bytes());
        // A nonce is used once: at a million values a second the counter lasts for half a million years.
        self.sealed += 1;
        envelope::seal(self.id(), self.key(), &nonce, place, value)
    }

    /// The value that the present key sealed for this place.
    #[must_use]
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        envelope::open(self.key(), place, sealed).ok()
    }

    fn key(&self) -> &[u8; KEY_BYTES] {
        &self.arena.slots()[SLOT]
    }

    fn id(&self) -> KeyId {
        self.renewals.to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU8, Ordering};

    struct Counting(AtomicU8);

    impl Entropy for Counting {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0.fetch_add(1, Ordering::Relaxed));
        }
    }

    #[test]
    fn a_value_opens_in_its_place_until_the_key_is_renewed() {
        let entropy = Counting(AtomicU8::new(1));
        let mut key = TransientKey::new(&entropy).expect("a page");
        let words = b"I cannot sleep.".as_slice();
        let (one, two) = (key.seal(b"a", words), key.seal(b"a", words));
        assert_ne!(one, two, "no nonce is used twice");
        assert!(!one.windows(words.len()).any(|window| window == words));
        assert_eq!(key.open(b"a", &one).as_deref().map(Vec::as_slice), Some(words));
        assert_eq!(key.open(b"b", &one), None);
        key.renew(&entropy);
        assert_eq!(key.open(b"a", &two), None);
        assert_ne!(key.seal(b"a", words), one, "the first nonce again, under another key");
    }
}
