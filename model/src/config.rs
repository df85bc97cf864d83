//! The shape of a Llama-family model as its own metadata states it. Knows numbers only: neither files nor tensors.

use std::sync::Arc;

/// Which family's small differences apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, SmolLM2 and Mistral: RMS norm, grouped heads, rotary positions, SwiGLU, no bias.
    Llama,
}

impl Architecture {
    /// The word of `general.architecture` in a GGUF file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Llama => "llama",
        }
    }

    /// The family with this word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        (word == "llama").then_some(Self::Llama)
    }
}

/// How rotary frequencies are stretched for contexts beyond the trained one.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every frequency divided by the factor (position interpolation, Chen et al. 2023).
    Linear {
        /// How many times longer.
        factor: f32,
    },
    /// YaRN (Peng et al. 2023): pairs that turn fast are kept, slow ones divided, a ramp between, scores sharpened.
    Yarn {
        /// How many times longer.
        factor: f32,
        /// Context of the original training, tokens.
        original_context: usize,
    },
    /// The rate of each pair divided by its own number, as `rope_freqs.weight` of a GGUF file says.
    Divided(Arc<[f32]>),
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// How many times longer.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Context of the original training, tokens.
        original_context: usize,
    },
}

/// Most times that a context may be stretched.
pub const MAX_STRETCH: f32 = 1024.0;

/// The shape of a model. Widths are in numbers per token, lengths in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct BackboneConfig {
    /// Family.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward part.
    pub ffn: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Longest context in tokens.
    pub context: usize,
    /// Added to the mean square before its root.
    pub rms_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Their stretching.
    pub rope_scaling: RopeScaling,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
}

/// A shape that no model of the family can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model's metadata contradicts itself: {0}; use another model file")]
pub struct ConfigError(pub &'static str);

impl BackboneConfig {
    /// Width of all query heads together.
    #[must_use]
    pub const fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads together, and of all value heads.
    #[must_use]
    pub const fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Checks what the mathematics relies on.
    ///
    /// # Errors
    /// Names the first contradiction.
    pub fn check(&self) -> Result<(), ConfigError> {
        let widths = [self.vocab, self.hidden, self.ffn, self.layers, self.heads, self.kv_heads, self.context];
        if widths.contains(&0) || self.head_dim == 0 {
            return Err(ConfigError("a width or count is zero"));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ConfigError("key heads do not divide the query heads"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError("rotary positions need an even head width"));
        }
        if !(self.rms_eps > 0.0 && self.rms_eps < 1.0 && self.rope_theta > 1.0) {
            return Err(ConfigError("the norm's epsilon or the rotary base is out of range"));
        }
        self.check_scaling()
    }

    fn check_scaling(&self) -> Result<(), ConfigError> {
        let sane = |factor: f32| (1.0..=MAX_STRETCH).contains(&factor);
        let fits = match &self.rope_scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => sane(*factor),
            RopeScaling::Yarn { factor, original_context } => sane(*factor) && *original_context > 0,
            RopeScaling::Divided(by) => by.len() == self.head_dim / 2 && by.iter().all(|d| sane(*d)),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                sane(*factor) && *low_freq_factor > 0.0 && high_freq_factor > low_freq_factor && *original_context > 0
            }
        };
        if fits { Ok(()) } else { Err(ConfigError("the stretching of rotary positions is out of range")) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small odd shape for tests: three query heads to a key head, two layers.
    pub(crate) fn tiny() -> BackboneConfig {
        BackboneConfig {
            architecture: Architecture::Llama,
            vocab: 29,
            hidden: 12,
            ffn: 20,
            layers: 2,
            heads: 6,
            kv_heads: 2,
            head_dim: 4,
            context: 64,
            rms_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            tied_head: true,
        }
    }

    #[test]
    fn contradictions_are_named() {
        assert_eq!(tiny().check(), Ok(()));
        assert!(BackboneConfig { kv_heads: 4, ..tiny() }.check().is_err());
        assert!(BackboneConfig { head_dim: 3, ..tiny() }.check().is_err());
        assert!(BackboneConfig { layers: 0, ..tiny() }.check().is_err());
        assert!(BackboneConfig { rms_eps: f64::NAN, ..tiny() }.check().is_err());
    }
}
