//! Answers on the processor: weights as the file packs them, keys and values in f16, static buffers, many conversations in one
//! pass. What `docs/INFERENCE.md` explains. Refuses to know who asks and how tokens are chosen.
//!
//! Reading order: [`weights`](self) (what lies in memory), `mixture` (adapters), `executor` (slots and buffers), `pass`
//! (the way of rows through the layers).

mod executor;
mod mixture;
mod pass;
mod weights;

pub use executor::Executor;
pub use mixture::PackedMixture;
pub use weights::{PackedWeights, WeightsError};

#[cfg(test)]
mod tests;
