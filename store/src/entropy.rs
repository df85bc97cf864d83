//! Where random bytes come from: an argument. The operating system's source is wired in by the daemon, a seeded one by
//! tests; neither is known here.

/// A source of random bytes that nobody can predict.
pub trait Entropy: Send + Sync {
    /// Fills all of `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// The next `N` random bytes.
pub(crate) fn array<const N: usize>(entropy: &dyn Entropy) -> [u8; N] {
    let mut bytes = [0; N];
    entropy.fill(&mut bytes);
    bytes
}
