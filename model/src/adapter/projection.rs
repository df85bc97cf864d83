//! The one seam between frozen weights and what is trained: every linear map of the backbone goes through here.

use super::LowRank;
use crate::ops::{adapted_linear, down, frozen_linear, spread};
use candle_core::{Result, Tensor};

/// A linear map, alone or with a low-rank correction.
pub enum Projection<'a> {
    /// `W·x`.
    Frozen {
        /// `[out, in]`.
        weight: &'a Tensor,
    },
    /// `W·x + scale·(B₀A₀x + Σ gₑBₑAₑx)`, the low-rank pairs stacked into one.
    Adapted {
        /// `[out, in]`, frozen.
        weight: &'a Tensor,
        /// The stacked pair.
        pair: &'a LowRank,
        /// `alpha / rank`.
        scale: f32,
        /// What the experts of this map are multiplied by.
        gates: Gates<'a>,
    },
}

/// What the experts of a linear map are multiplied by.
#[derive(Clone, Copy)]
pub enum Gates<'a> {
    /// There are no experts on it.
    None,
    /// They are switched off: the shared part works alone, nothing of theirs is computed.
    Zero,
    /// `[rows, experts]`.
    Of(&'a Tensor),
}

impl Projection<'_> {
    /// The map of packed rows `x[rows, in]`.
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Frozen { weight } => frozen_linear(x, weight),
            Self::Adapted { weight, pair, gates: Gates::Zero, .. } if pair.shared == 0 => frozen_linear(x, weight),
            Self::Adapted { weight, pair, scale, gates: Gates::Zero } => {
                let a = pair.a.narrow(0, 0, pair.shared)?.contiguous()?;
                let b = pair.b.narrow(1, 0, pair.shared)?.contiguous()?;
                adapted_linear(x, weight, &down(x, &a)?.affine(f64::from(*scale), 0.0)?, &b)
            }
            Self::Adapted { weight, pair, scale, gates } => {
                let u = down(x, &pair.a)?;
                let h = match gates {
                    Gates::Of(gates) => spread(&u, gates, pair.shared, *scale)?,
                    Gates::None | Gates::Zero => u.affine(f64::from(*scale), 0.0)?,
                };
                adapted_linear(x, weight, &h, &pair.b)
            }
        }
    }
}
