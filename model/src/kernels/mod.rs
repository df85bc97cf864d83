//! Arithmetic on plain slices where the processor's instructions matter. Knows neither tensors nor models.

mod exponential;
mod matrix;

pub use exponential::{exp, softmax};
pub use matrix::{Matrix, Threads, multiply};
