//! The seam between the loop of training and what finds gradients: own kernels on the processor, candle's tensors on a
//! card and as the definition the kernels are held to. Refuses to know where examples come from and how weights move.

mod goals;
mod packed;
mod reference;
mod routing;

pub use goals::{
    Goals, Keep, Labelled, PassLoss, PassScores, PlannedRouting, RouterParts, RouterPlan, RouterWeights, Wanted,
};
pub use packed::{FrozenSource, Precision};

use super::TrainError;
use super::batch::Batch;
use crate::adapter::Mixture;
use crate::backbone::Backbone;
use crate::config::BackboneConfig;
use empathd_proto::engine::MixtureSpec;

/// Finds gradients and measures losses of a mixture over a frozen backbone.
pub enum Gradients {
    /// By own kernels, on the processor.
    Packed(Box<packed::Trainer>),
    /// By candle's tensors, a graph one layer deep, on any device.
    Reference(Box<reference::Trainer>),
}

impl Gradients {
    /// By own kernels with `threads` threads, over weights that `source` gives row by row.
    ///
    /// # Errors
    /// The shape contradicts itself, or a weight is missing, has another shape or is no number.
    pub fn open(
        config: BackboneConfig,
        source: &mut FrozenSource<'_>,
        precision: Precision,
        threads: usize,
    ) -> Result<Self, TrainError> {
        Ok(Self::Packed(Box::new(packed::Trainer::open(config, source, precision, threads)?)))
    }

    /// The definition, over a backbone that is there already.
    #[must_use]
    pub fn reference(base: Backbone) -> Self {
        Self::Reference(Box::new(reference::Trainer::new(base)))
    }

    /// Shape of the backbone.
    #[must_use]
    pub fn config(&self) -> &BackboneConfig {
        match self {
            Self::Packed(trainer) => trainer.config(),
            Self::Reference(trainer) => trainer.config(),
        }
    }

    /// Takes the shape and the numbers of what is trained and makes room for passes of `pass_tokens`.
    ///
    /// # Errors
    /// The mixture does not fit the backbone, or there is no memory.
    pub fn hold(&mut self, mixture: &Mixture, pass_tokens: usize) -> Result<(), TrainError> {
        match self {
            Self::Packed(trainer) => trainer.hold(mixture, pass_tokens),
            Self::Reference(trainer) => trainer.hold(mixture),
        }
    }

    /// Takes new numbers for what is trained, in the order of [`Mixture::parameters`].
    ///
    /// # Errors
    /// They are not of the held shape.
    pub fn set_weights(&mut self, weights: &[Vec<f32>]) -> Result<(), TrainError> {
        match self {
            Self::Packed(trainer) => trainer.set_weights(weights),
            Self::Reference(trainer) => trainer.set_weights(weights),
        }
    }

    /// About the bytes that passes of so many tokens take beside the frozen weights.
    #[must_use]
    pub fn bytes_for(&self, mixture: &MixtureSpec, pass_tokens: usize) -> u64 {
        match self {
            Self::Packed(trainer) => trainer.bytes_for(mixture, pass_tokens),
            Self::Reference(trainer) => trainer.bytes_for(pass_tokens),
        }
    }

    /// Adds the gradient of each parameter, in the order of [`Mixture::parameters`], to `sums`.
    ///
    /// # Errors
    /// Goals do not fit the batch, or an operation failed.
    pub fn pass(
        &mut self,
        batch: &Batch,
        goals: &Goals<'_>,
        sums: &mut [Vec<f32>],
        between_layers: &mut dyn FnMut(),
    ) -> Result<PassLoss, TrainError> {
        match self {
            Self::Packed(trainer) => trainer.pass(batch, goals, sums, between_layers),
            Self::Reference(trainer) => trainer.pass(batch, goals, sums, between_layers),
        }
    }

    /// Loss and hit of each target, with the held mixture or, where `adapted` is false, of the base alone.
    ///
    /// # Errors
    /// An operation failed.
    pub fn scores(
        &mut self,
        batch: &Batch,
        adapted: bool,
        between_layers: &mut dyn FnMut(),
    ) -> Result<PassScores, TrainError> {
        match self {
            Self::Packed(trainer) => trainer.scores(batch, adapted, between_layers),
            Self::Reference(trainer) => trainer.scores(batch, adapted, between_layers),
        }
    }
}
