//! Answers on the processor: weights as the file packs them, keys and values in f16, static buffers, many conversations in one
//! pass. Refuses to know who asks and how tokens are chosen. `docs/INFERENCE.md` explains it to a newcomer.
//!
//! Shapes, `n` being the rows of a pass (at most 512, those of all conversations together) and `m` those with logits (at most 128):
//!
//! | what | shape | held as |
//! |---|---|---|
//! | stream `x`, norm `seen`, `mixed` | `[n, hidden]`, `[n, heads·head_dim]` | f32 |
//! | what linear maps read | `[n, hidden]`, `[n, ffn]` | 8 bits with a scale per 32; f32 for weights in F32, F16, BF16 |
//! | `q`; `k`, `v` | `[n, heads·head_dim]`; `[n, kv_heads·head_dim]` | f32 |
//! | `gate`, `up` | `[n, ffn]` | f32 |
//! | logits | `[m, vocab]` | f32 |
//! | a slot, 32 of them | per stretch of 256 tokens `[layers, kv_heads]` of keys and values `[256, head_dim]` | f16 |
//! | weights | `[out, in]` in tiles of 16 outputs | as in the file; see `kernels/packed.rs` |
//! | narrow middle of adapters `h` | per group of rows `[rows, linear maps · (shared + experts·rank)]` | f32 |
//! | A and B sides | `[linear maps · (shared + experts·rank), in]`, per part `[out, rank]` | 8 bits, f16 |
//!
//! Reading order: `weights` (what lies in memory), `mixture` (adapters), `executor` (slots and buffers), `pass` (the way of
//! rows through the layers). A row's bits depend on its own conversation alone, whatever else is in the pass.

mod executor;
mod mixture;
mod pass;
mod session;
mod weights;

pub use executor::Executor;
pub use mixture::PackedMixture;
pub use weights::{PackedWeights, WeightsError};

#[cfg(test)]
mod tests;
