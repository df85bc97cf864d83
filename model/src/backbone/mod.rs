//! Frozen Llama-family weights and the one way through them.

mod cache;

pub use cache::KvCache;

use crate::adapter::{ExpertLoad, Mixture};
use crate::config::BackboneConfig;
use candle_core::{Device, Result, Tensor};

/// Frozen weights; cloning shares them.
#[derive(Clone)]
pub struct Backbone {
    config: BackboneConfig,
}

impl Backbone {
    /// Reads every weight once from `weights`, which is asked by Hugging Face name and shape.
    ///
    /// # Errors
    /// A weight is missing or has another shape.
    pub fn new(
        config: BackboneConfig,
        _weights: &mut dyn FnMut(&str, &[usize]) -> Result<Tensor>,
        _device: &Device,
    ) -> Result<Self> {
        Ok(Self { config })
    }

    /// The shape.
    #[must_use]
    pub const fn config(&self) -> &BackboneConfig {
        &self.config
    }

    /// Appends `ids` to the cache and gives the logits `[vocab]` after the last of them.
    ///
    /// # Errors
    /// The context is exceeded, an id is outside the vocabulary, or a tensor operation failed.
    pub fn forward(
        &self,
        _ids: &[u32],
        _cache: &mut KvCache,
        _mixture: Option<&Mixture>,
        _load: Option<&mut ExpertLoad>,
    ) -> Result<Vec<f32>> {
        candle_core::bail!("not written yet")
    }

    /// Logits `[T, vocab]` of every position.
    ///
    /// # Errors
    /// As [`Backbone::forward`].
    pub fn logits_all(&self, _ids: &[u32], _mixture: Option<&Mixture>) -> Result<Tensor> {
        candle_core::bail!("not written yet")
    }
}
