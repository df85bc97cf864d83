//! Arithmetic on plain slices where the processor's instructions matter. Knows neither tensors nor models.
//!
//! Weights of a file are packed once ([`PackedMatrix`]), inputs are put into a buffer once ([`Activations`]), and [`product`]
//! multiplies them in the widest instructions that the processor has ([`Instructions`]).

mod activation;
mod exponential;
mod format;
mod lines;
mod matrix;
mod packed;
mod product;

pub use activation::{Activations, ActivationsWriter, Keep};
pub use exponential::{exp, softmax};
pub use format::WeightFormat;
pub use matrix::{Matrix, Threads, multiply};
pub use packed::{PackError, PackKind, PackedMatrix};
pub use product::{Instructions, LowRank, OutRows, Run, product, product_columns};
