//! Gradients by own kernels on the processor: frozen weights packed once both ways, every buffer made once, a layer at a
//! time. Refuses to know tensors.
//!
//! Reading order: `core` walks a pass through the layers; `layer` is one of them; `maps` are its linear maps with what is
//! trained beside them; `routes` decide which experts take part; `head` is what lies above; `frozen` and `trained` hold
//! weights, `element` rows.
//!
//! Rows between forward and backward are kept in bf16, the residual stream, sums and everything trained in f32
//! ([`Precision::Half`]); or all in f32 by the same code ([`Precision::Single`]). Layers whose rows do not fit run forward
//! once more. Same weights, same batch: the same bits, whatever the threads do.

/// The same for both precisions.
macro_rules! each {
    ($self:expr, $core:ident => $body:expr) => {
        match $self {
            Inner::Half($core) => $body,
            Inner::Single($core) => $body,
        }
    };
}

mod core;
mod element;
mod frozen;
mod head;
mod layer;
mod maps;
mod routes;
#[cfg(test)]
mod tests;
mod trained;

pub use crate::kernels::half::Precision;
pub use frozen::FrozenSource;

use self::core::{Core, buffer_bytes};
use super::goals::{Goals, PassLoss, PassScores};
use crate::adapter::{Linear, Mixture};
use crate::config::BackboneConfig;
use crate::kernels::half::{Unit, Weight};
use crate::train::TrainError;
use crate::train::batch::Batch;
use empathd_proto::engine::MixtureSpec;
use half::bf16;

/// Finds gradients by own kernels.
pub struct Trainer(Inner);

enum Inner {
    Half(Core<bf16>),
    Single(Core<f32>),
}

impl Precision {
    /// What training computes in on this processor: bf16 where it has products of them.
    #[must_use]
    pub fn of_machine() -> Self {
        if Unit::best() == Unit::Portable { Self::Single } else { Self::Half }
    }
}

impl Trainer {
    pub(super) fn open(
        config: BackboneConfig,
        source: &mut FrozenSource<'_>,
        precision: Precision,
        threads: usize,
    ) -> Result<Self, TrainError> {
        Ok(Self(match precision {
            Precision::Half => Inner::Half(Core::open(config, source, threads)?),
            Precision::Single => Inner::Single(Core::open(config, source, threads)?),
        }))
    }

    pub(super) const fn config(&self) -> &BackboneConfig {
        each!(&self.0, core => core.config())
    }

    pub(super) fn hold(&mut self, mixture: &Mixture, pass_tokens: usize) -> Result<(), TrainError> {
        each!(&mut self.0, core => core.hold(mixture, pass_tokens))
    }

    pub(super) fn set_weights(&mut self, weights: &[Vec<f32>]) -> Result<(), TrainError> {
        each!(&mut self.0, core => core.set_weights(weights))
    }

    pub(super) fn pass(
        &mut self,
        batch: &Batch,
        goals: &Goals<'_>,
        sums: &mut [Vec<f32>],
        between_layers: &mut dyn FnMut(),
    ) -> Result<PassLoss, TrainError> {
        each!(&mut self.0, core => core.pass(batch, goals, sums, between_layers))
    }

    pub(super) fn scores(
        &mut self,
        batch: &Batch,
        adapted: bool,
        between_layers: &mut dyn FnMut(),
    ) -> Result<PassScores, TrainError> {
        each!(&mut self.0, core => core.scores(batch, adapted, between_layers))
    }

    /// About the bytes that passes of so many tokens take beside the frozen weights: packed adapters and all buffers.
    pub(super) fn bytes_for(&self, spec: &MixtureSpec, pass_tokens: usize) -> u64 {
        let (config, experts) = (self.config(), spec.experts.len());
        let stack = |linear: Linear| {
            let shared = if spec.shared_on.contains(&linear.word()) { spec.shared_rank as usize } else { 0 };
            let routed = if linear.is_routed() { experts * spec.expert_rank as usize } else { 0 };
            (shared + routed, routed > 0)
        };
        let (precision, buffers) = match &self.0 {
            Inner::Half(_) => (Precision::Half, buffer_bytes::<bf16>(config, pass_tokens, experts, stack)),
            Inner::Single(_) => (Precision::Single, buffer_bytes::<f32>(config, pass_tokens, experts, stack)),
        };
        let packed = |linear: &Linear| {
            let ((inner, out), (stack, _)) = (linear.sides(config), stack(*linear));
            Weight::bytes_for(precision, stack, inner) + Weight::bytes_for(precision, out, stack)
        };
        (buffers + config.layers * Linear::ALL.iter().map(packed).sum::<usize>()) as u64
    }
}
