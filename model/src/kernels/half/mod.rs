//! Matrix products for training: bf16 operands with f32 sums in the processor's matrix or vector instructions, or plain f32.
//! Refuses to know layers, adapters and losses.
//!
//! A matrix is packed once for both ways through it ([`Weight`]); rows are plain row-major slices ([`Left`]); a product is one sum
//! over one or several pairs of the two ([`Product`]), so that what an adapter adds costs no second pass over the output.
//!
//! **Same bits.** Within one [`Unit`] an element is one sum in one order, over the terms and over their inner sides from the first number
//! to the last. It does not depend on the threads: tasks are cut by shapes alone. Nor does it, but for [`Unit::Portable`] and f32, depend
//! on how many other rows or columns are computed.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod gradient;
mod operand;
mod piece;
mod portable;
mod products;
mod rounding;
#[cfg(test)]
mod tests;
mod weight;

pub use gradient::{Gradient, Lie, Narrow};
pub use operand::{Left, Out, Product, TERMS_MAX, Term, View};
pub use products::Multiplier;
pub use rounding::{round_row, widen_row};
pub use weight::Weight;

/// What the operands of a product are kept in. Sums are f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// bf16, rounded to nearest even.
    Half,
    /// f32.
    Single,
}

/// What computes products of bf16 operands. Subnormal numbers count as zero in all but [`Unit::Portable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Blocks are widened to f32 and multiplied by the `gemm` crate; on every processor.
    Portable,
    /// `vdpbf16ps` on 512 bits.
    Avx512Bf16,
    /// Tiles of 16 × 32 with `tdpbf16ps`.
    Amx,
}

impl Unit {
    /// Whether the processor has it and the system lets this process use it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => avx512::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Bf16 | Self::Amx => false,
        }
    }

    /// All that can be used here, the slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        [Self::Portable, Self::Avx512Bf16, Self::Amx].into_iter().filter(|unit| unit.is_available()).collect()
    }

    /// The fastest that can be used here.
    #[must_use]
    pub fn best() -> Self {
        [Self::Amx, Self::Avx512Bf16].into_iter().find(|unit| unit.is_available()).unwrap_or(Self::Portable)
    }
}
