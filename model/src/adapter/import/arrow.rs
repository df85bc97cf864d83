//! A router row for an expert that brings none: the direction of the input that its correction answers most, the top right
//! singular vector of `B·A` (Arrow: Ostapenko et al., "Towards Modular LLMs by Building and Reusing a Library of LoRAs",
//! 2024). Refuses to know mixtures.

use super::peft::{Pair, PeftLora};
use crate::adapter::Linear;
use crate::counter::{Counter, Site};

/// Rounds of the power iteration. The direction is a start for training; ten digits of it are not needed.
const ROUNDS: usize = 64;

/// Writes a row of length one, or of zeros where the LoRA has no map that reads what the router reads: gate and up do, both
/// are taken as one map with two halves.
///
/// A singular vector has no sign. The one is taken in whose direction the largest number is positive; router-only steps
/// turn it where that is wrong.
pub(super) fn row(lora: &PeftLora, layer: usize, counter: Counter, row: &mut [f32]) {
    let halves: Vec<Half<'_>> = [Linear::Gate, Linear::Up]
        .iter()
        .filter_map(|linear| lora.pair(layer, *linear))
        .map(|p| Half::new(p, lora.rank))
        .collect();
    let site = Site::new("arrow", layer as u64);
    let mut v: Vec<f64> = (0..row.len() as u64).map(|i| counter.normal(site, i)).collect();
    for _ in 0..ROUNDS {
        let mut next = vec![0f64; v.len()];
        halves.iter().for_each(|half| half.add(&v, &mut next));
        let length = next.iter().map(|x| x * x).sum::<f64>().sqrt();
        if !(length.is_finite() && length > 0.0) {
            row.fill(0.0);
            return;
        }
        v = next.into_iter().map(|x| x / length).collect();
    }
    let largest = v.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or_default();
    row.iter_mut().zip(v).for_each(|(row, x)| *row = (x * largest.signum()) as f32);
}

/// One map's part of `(B·A)ᵀ·(B·A)`, without ever making a matrix of its full size.
struct Half<'a> {
    /// `[rank, in]`.
    a: &'a [f32],
    /// `Bᵀ·B`, `[rank, rank]`.
    gram: Vec<f64>,
    rank: usize,
}

impl<'a> Half<'a> {
    fn new(pair: &'a Pair, rank: usize) -> Self {
        let mut gram = vec![0f64; rank * rank];
        for row in pair.b.chunks_exact(rank) {
            for (i, x) in row.iter().enumerate() {
                for (j, y) in row.iter().enumerate() {
                    gram[i * rank + j] += f64::from(*x) * f64::from(*y);
                }
            }
        }
        Self { a: &pair.a, gram, rank }
    }

    /// Adds `Aᵀ·(Bᵀ·B)·A·v`.
    fn add(&self, v: &[f64], sum: &mut [f64]) {
        let dot = |row: &[f32]| row.iter().zip(v).map(|(a, v)| f64::from(*a) * v).sum::<f64>();
        let down: Vec<f64> = self.a.chunks_exact(v.len()).map(dot).collect();
        for (row, gram) in self.a.chunks_exact(v.len()).zip(self.gram.chunks_exact(self.rank)) {
            let weight: f64 = gram.iter().zip(&down).map(|(g, d)| g * d).sum();
            sum.iter_mut().zip(row).for_each(|(sum, a)| *sum += weight * f64::from(*a));
        }
    }
}
