//! Arithmetic on plain slices where the processor's instructions matter. Knows neither tensors nor models.
//!
//! Weights of a file are packed once ([`PackedMatrix`]), inputs are put into a buffer once ([`Activations`]), and [`product`]
//! multiplies them in the widest instructions that the processor has ([`Instructions`]).

mod activation;
mod attention;
pub mod backward;
mod exponential;
mod format;
pub mod half;
mod lanes;
mod lines;
mod matrix;
mod packed;
mod pool;
mod product;
mod rows;

pub use activation::{Activations, ActivationsWriter, Keep};
pub use attention::{Attention, KvShape, KvSpan, KvStore, MAX_HEAD_DIM, Turns};
pub use exponential::{exp, softmax};
pub use format::WeightFormat;
pub use lines::Arena;
pub use matrix::{Matrix, Threads, multiply};
pub use packed::{PackError, PackKind, PackedMatrix, TILE};
pub use pool::{PerThread, Pool};
pub use product::{Instructions, LowRank, OutRows, Run, product, product_columns};
pub use rows::{After, Middle, Product, Stack, dots, fill_rows, norm_rows, products, swiglu_rows};
