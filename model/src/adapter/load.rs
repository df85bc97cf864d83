//! Counts of where tokens were sent.

use crate::ops::Choice;
use crate::ops::host::host;
use candle_core::{Result, Tensor};

/// Which experts tokens were sent to, over tokens and layers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExpertLoad {
    /// Times the expert was chosen.
    pub chosen: Vec<u64>,
    /// Sum of the gates it had.
    pub weight: Vec<f64>,
}

impl ExpertLoad {
    /// Share of the routed weight of each expert; sums to one, or is empty when nothing was routed.
    #[must_use]
    pub fn shares(&self) -> Vec<f32> {
        let total: f64 = self.weight.iter().sum();
        if total > 0.0 { self.weight.iter().map(|w| (w / total) as f32).collect() } else { Vec::new() }
    }

    /// Share of the choices of each expert; sums to one, or is empty when nothing was routed.
    #[must_use]
    pub fn chosen_shares(&self) -> Vec<f64> {
        let total: u64 = self.chosen.iter().sum();
        if total > 0 { self.chosen.iter().map(|c| *c as f64 / total as f64).collect() } else { Vec::new() }
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        let experts = self.chosen.len().max(other.chosen.len());
        self.chosen.resize(experts, 0);
        self.weight.resize(experts, 0.0);
        self.chosen.iter_mut().zip(&other.chosen).for_each(|(all, one)| *all += one);
        self.weight.iter_mut().zip(&other.weight).for_each(|(all, one)| *all += one);
    }

    /// Adds the decisions of one router.
    pub(crate) fn count(&mut self, choice: &Choice, gates: &Tensor) -> Result<()> {
        let experts = gates.dim(1)?;
        self.chosen.resize(experts, 0);
        self.weight.resize(experts, 0.0);
        let gates = host(gates)?;
        for (bits, gates) in choice.taken.iter().zip(gates.chunks_exact(experts)) {
            for (e, gate) in gates.iter().enumerate() {
                self.chosen[e] += bits >> e & 1;
                self.weight[e] += f64::from(*gate);
            }
        }
        Ok(())
    }
}
