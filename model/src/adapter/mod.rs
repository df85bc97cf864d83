//! The mixture of low-rank experts over a frozen backbone.

use crate::config::BackboneConfig;
use empathd_proto::engine::MixtureSpec;

/// A shared low-rank pair on every linear, routed experts on the feed-forward ones.
#[derive(Clone)]
pub struct Mixture {
    spec: MixtureSpec,
}

/// Which experts tokens were sent to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExpertLoad {
    /// Routing decisions that chose the expert, over tokens and layers.
    pub chosen: Vec<u64>,
    /// Sum of the gates it had.
    pub weight: Vec<f64>,
}

impl ExpertLoad {
    /// Share of the routed weight of each expert; sums to one, or is empty when nothing was routed.
    #[must_use]
    pub fn shares(&self) -> Vec<f32> {
        let total: f64 = self.weight.iter().sum();
        if total > 0.0 { self.weight.iter().map(|w| (w / total) as f32).collect() } else { Vec::new() }
    }
}

/// Why bytes are no mixture for this model.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Not a safetensors file of this format.
    #[error("the adapter's bytes cannot be read: {0}; train it again")]
    Malformed(String),
    /// Made for other base weights.
    #[error("the adapter was trained on another base model; load that model or train again")]
    OtherBase,
}

impl Mixture {
    /// A fresh mixture: it changes nothing until it is trained.
    ///
    /// # Errors
    /// The shape asks for nothing or for too much.
    pub fn init(_config: &BackboneConfig, spec: &MixtureSpec, _seed: u64) -> candle_core::Result<Self> {
        Ok(Self { spec: spec.clone() })
    }

    /// What it is made of.
    #[must_use]
    pub const fn spec(&self) -> &MixtureSpec {
        &self.spec
    }

    /// One safetensors file.
    ///
    /// # Errors
    /// A tensor cannot be read back from its device.
    pub fn to_bytes(&self, _base_sha256: [u8; 32]) -> candle_core::Result<Vec<u8>> {
        candle_core::bail!("not written yet")
    }

    /// Reads what [`Mixture::to_bytes`] wrote.
    ///
    /// # Errors
    /// See [`AdapterError`].
    pub fn from_bytes(_bytes: &[u8], _config: &BackboneConfig, _base_sha256: [u8; 32]) -> Result<Self, AdapterError> {
        Err(AdapterError::OtherBase)
    }
}
