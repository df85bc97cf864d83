//! Answers: a base model ready to answer, and one answer under way from its prompt to its last token. Refuses to know
//! sockets, threads and who asks.

pub mod compute;
mod generation;
mod model;
mod sample;
mod text;

pub use generation::{Generation, InferError, PREFILL_TOKENS, Plan, Step, Token};
pub use model::{MAX_CONTEXT, Model, ModelError};
pub use sample::Sampling;
