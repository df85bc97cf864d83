//! Keys and values of one answer under way, and what its session prior has summed up. They are clinical content: the memory is overwritten before it is given back.

use crate::config::BackboneConfig;
use candle_core::{DType, Device, Result, Tensor, bail};
use zeroize::Zeroize;

/// Tokens by which it grows at least.
const GROWTH: usize = 256;

/// Keys and values of the tokens seen so far, every layer.
pub struct KvCache {
    layers: Vec<LayerCache>,
    /// Sums behind the session prior up to each token, `[len, experts]`; empty without one.
    session: Vec<f32>,
    len: usize,
    capacity: usize,
    context: usize,
    device: Device,
    wiped_bytes: u64,
}

/// Keys and values of one layer, rows `0..len` of a longer buffer.
pub(crate) struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

impl KvCache {
    /// An empty one on a device. It grows with what is put in, up to the model's context.
    #[must_use]
    pub fn new(config: &BackboneConfig, device: &Device) -> Self {
        let device = device.clone();
        Self {
            layers: Vec::new(),
            session: Vec::new(),
            len: 0,
            capacity: 0,
            context: config.context,
            device,
            wiped_bytes: 0,
        }
    }

    /// Tokens in it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Overwrites everything with zeros and empties it. Returns the bytes overwritten since the last wipe, those of
    /// buffers it outgrew among them.
    pub fn wipe(&mut self) -> u64 {
        self.len = 0;
        self.wiped_bytes += forget(&mut self.session, 0);
        for layer in &self.layers {
            self.wiped_bytes += layer.zero();
        }
        std::mem::take(&mut self.wiped_bytes)
    }

    /// Forgets the tokens behind the first `len` and overwrites them; the bytes overwritten.
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn truncate(&mut self, len: usize) -> Result<u64> {
        let gone = self.len.saturating_sub(len);
        if gone == 0 {
            return Ok(0);
        }
        let mut bytes = 0;
        for layer in &self.layers {
            bytes += layer.zero_rows(len, gone)?;
        }
        let kept = self.session.len() / self.len * len;
        bytes += forget(&mut self.session, kept);
        self.len = len;
        Ok(bytes)
    }

    /// Appends the first `len` tokens of another cache of the same model to this one, which must be empty.
    ///
    /// # Errors
    /// This one is not empty, the other one is shorter, or a tensor operation failed.
    pub fn copy_prefix(&mut self, other: &Self, len: usize, config: &BackboneConfig) -> Result<()> {
        if self.len > 0 || len > other.len {
            bail!("{len} tokens cannot be copied from {} onto {}", other.len, self.len)
        }
        self.reserve(len, config)?;
        for (mine, theirs) in self.layers.iter().zip(&other.layers) {
            mine.copy(theirs, len)?;
        }
        let session = &other.session[..other.session.len() / other.len.max(1) * len];
        self.keep_session(session, len)?;
        self.len = len;
        Ok(())
    }

    /// The sum behind the session prior up to the last token; empty without one.
    pub(super) fn session_carry(&self) -> &[f32] {
        let experts = self.session.len() / self.len.max(1);
        &self.session[self.session.len() - experts..]
    }

    /// Takes the sums up to each of `count` more tokens.
    pub(super) fn keep_session(&mut self, sums: &[f32], count: usize) -> Result<()> {
        let experts = sums.len() / count.max(1);
        if self.session.len() != self.len * experts {
            bail!("a conversation cannot go on with a session prior that it did not begin with")
        }
        // Room for the whole context at once: growing would leave copies behind.
        self.session.reserve_exact(self.context * experts - self.session.len());
        self.session.extend_from_slice(sums);
        Ok(())
    }

    /// Makes room for `count` more tokens.
    ///
    /// # Errors
    /// The context would be exceeded.
    pub(super) fn reserve(&mut self, count: usize, config: &BackboneConfig) -> Result<()> {
        let needed = self.len + count;
        if needed > self.context {
            bail!("{needed} tokens exceed the context of {}", self.context)
        }
        if needed <= self.capacity {
            return Ok(());
        }
        let rows = needed.max(2 * self.capacity).next_multiple_of(GROWTH).min(self.context);
        let fresh = || LayerCache::zeros(rows, config.kv_width(), &self.device);
        let grown: Vec<LayerCache> = (0..config.layers).map(|_| fresh()).collect::<Result<_>>()?;
        for (old, new) in self.layers.iter().zip(&grown) {
            new.copy(old, self.len)?;
            self.wiped_bytes += old.zero();
        }
        (self.layers, self.capacity) = (grown, rows);
        Ok(())
    }

    /// The cache of a layer and the tokens before this pass.
    pub(super) fn layer(&mut self, index: usize) -> (&LayerCache, usize) {
        (&self.layers[index], self.len)
    }

    /// Counts the tokens of a finished pass.
    pub(super) const fn advance(&mut self, count: usize) {
        self.len += count;
    }
}

/// Overwrites what lies behind the first `len` sums and forgets it; the bytes overwritten.
fn forget(sums: &mut Vec<f32>, len: usize) -> u64 {
    sums[len..].zeroize();
    let bytes = (sums.len() - len) * size_of::<f32>();
    sums.truncate(len);
    bytes as u64
}

impl Drop for KvCache {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl LayerCache {
    fn zeros(rows: usize, width: usize, device: &Device) -> Result<Self> {
        let zeros = || Tensor::zeros((rows, width), DType::F32, device);
        Ok(Self { keys: zeros()?, values: zeros()? })
    }

    /// Takes the first `len` rows of another.
    fn copy(&self, other: &Self, len: usize) -> Result<()> {
        if len > 0 {
            self.keys.slice_set(&other.keys.narrow(0, 0, len)?, 0, 0)?;
            self.values.slice_set(&other.values.narrow(0, 0, len)?, 0, 0)?;
        }
        Ok(())
    }

    /// Puts rows after the first `len` and gives all rows up to them.
    pub(super) fn extend(&self, len: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let all = len + keys.dim(0)?;
        self.keys.slice_set(keys, 0, len)?;
        self.values.slice_set(values, 0, len)?;
        Ok((self.keys.narrow(0, 0, all)?, self.values.narrow(0, 0, all)?))
    }

    /// Overwrites `count` rows from `start` on; their bytes.
    fn zero_rows(&self, start: usize, count: usize) -> Result<u64> {
        let zeros = Tensor::zeros((count, self.keys.dim(1)?), DType::F32, self.keys.device())?;
        self.keys.slice_set(&zeros, 0, start)?;
        self.values.slice_set(&zeros, 0, start)?;
        Ok((2 * zeros.elem_count() * size_of::<f32>()) as u64)
    }

    /// Overwrites both buffers; their bytes. Filling an own f32 buffer with zeros cannot fail; a failure counts nothing.
    fn zero(&self) -> u64 {
        let zero = |t: &Tensor| t.zero_set().map_or(0, |()| t.elem_count() * size_of::<f32>());
        (zero(&self.keys) + zero(&self.values)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::ops::check::device;

    #[test]
    fn outgrown_and_live_buffers_are_overwritten() {
        let config = BackboneConfig { context: 1024, ..tiny() };
        let mut cache = KvCache::new(&config, device());
        let ones = Tensor::ones((5, config.kv_width()), DType::F32, device()).unwrap();
        cache.reserve(5, &config).unwrap();
        let old = cache.layers[0].keys.clone();
        cache.layer(0).0.extend(0, &ones, &ones).unwrap();
        cache.advance(5);
        assert_eq!(cache.len(), 5);
        assert!(old.sum_all().unwrap().to_scalar::<f32>().unwrap() > 0.0, "the view sees the live buffer");
        cache.reserve(GROWTH, &config).unwrap();
        assert_eq!(old.sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0, "the outgrown buffer is zero");
        let live = cache.layers[0].keys.clone();
        assert!(live.sum_all().unwrap().to_scalar::<f32>().unwrap() > 0.0, "the rows moved along");
        let row_bytes = (config.kv_width() * 2 * config.layers * size_of::<f32>()) as u64;
        assert_eq!(cache.wipe(), row_bytes * (GROWTH + 2 * GROWTH) as u64);
        assert_eq!(live.sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
        assert!(cache.reserve(1025, &config).is_err());
    }
}
