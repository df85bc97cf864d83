//! What a training pass does to rows beside the big products: norms, rotary positions, the gated activation, gates,
//! attention over packed documents, and the loss over the vocabulary, each forward and back. Knows neither layers nor
//! tensors.
//!
//! Rows lie in f32 or, rounded once, in bf16 ([`Kept`]); every sum is f32, in an order that neither threads nor timing
//! change. The definition of each formula is the operation of the same name in `crate::ops`; tests hold them together.

pub mod attention;
#[cfg(test)]
mod check;
pub mod gate;
mod kept;
pub mod loss;
pub mod norm;
pub mod rope;
pub mod swiglu;

pub use kept::{Kept, Span, SpanMut};
