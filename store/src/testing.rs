//! What the tests of this crate share: predictable randomness and a store in a scratch folder.

use crate::entropy::Entropy;
use std::sync::Mutex;

/// A stream of bytes that depends on its seed alone.
pub(crate) struct SeededEntropy(Mutex<blake3::OutputReader>);

impl SeededEntropy {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof()))
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().expect("no test panics while it draws").fill(bytes);
    }
}
