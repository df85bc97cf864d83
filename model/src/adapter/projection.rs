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
        /// `[rows, experts]`, where experts work on this map.
        gates: Option<&'a Tensor>,
    },
}

impl Projection<'_> {
    /// The map of packed rows `x[rows, in]`.
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Frozen { weight } => frozen_linear(x, weight),
            Self::Adapted { weight, pair, scale, gates } => {
                let u = down(x, &pair.a)?;
                let h = match gates {
                    Some(gates) => spread(&u, gates, pair.shared, *scale)?,
                    None => u.affine(f64::from(*scale), 0.0)?,
                };
                adapted_linear(x, weight, &h, &pair.b)
            }
        }
    }
}
