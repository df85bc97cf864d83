//! Differentiable operations of our own: forward and backward of each in one file, frozen operands without a gradient.
//! They work on f32, on packed rows `[tokens, width]`, in the processor's memory; on a card, the forward passes are those
//! of `device` and the backward passes those of `tensors`. Nothing here knows models or adapters.
//!
//! candle's own fused operations cut the gradient silently, and its matrix product computes and keeps the gradient of
//! frozen weights; that is why these exist.

mod attention;
mod cross_entropy;
mod divergence;
mod gate;
pub(crate) mod host;
mod linear;
mod rms_norm;
mod rope;
#[cfg(test)]
mod slices;
mod swiglu;
mod tensors;

#[cfg(test)]
pub(crate) mod check;

pub use attention::{Segment, attention};
pub use cross_entropy::{Target, linear_cross_entropy, linear_nll};
pub use divergence::linear_divergence;
pub use gate::{Choice, choose, gate, spread};
pub use linear::{adapted_linear, down, frozen_linear};
pub use rms_norm::rms_norm;
pub use rope::{RopeTable, rope};
pub use swiglu::swiglu;
