//! A buffer that begins at a cache line. Knows bytes and their alignment; refuses to know what they mean.

/// The bytes of one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Zeroed bytes in whole cache lines.
pub(super) struct Lines(Vec<Line>);

impl Lines {
    /// `bytes` zeros, rounded up to whole lines.
    pub(super) fn zeroed(bytes: usize) -> Self {
        Self(vec![Line([0; 64]); bytes.div_ceil(64)])
    }

    /// All bytes.
    pub(super) const fn bytes(&self) -> &[u8] {
        // SAFETY: `Line` is 64 plain bytes without padding, and the vector's lines lie one after another.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 64) }
    }

    /// All bytes, to be written.
    pub(super) const fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; every pattern of bits is a byte, and `self` is exclusively borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 64) }
    }
}
