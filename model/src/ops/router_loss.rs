//! What a router is told beside the language loss: which expert a domain belongs to, that no expert be forgotten, and
//! that its logits stay small.

use super::host::{host, output, packed, slice, tensor};
use super::tensors::far;
use crate::kernels::softmax;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
use std::sync::{Arc, OnceLock};

/// What the router of a layer should do with the tokens of one pass.
#[derive(Debug, Clone)]
pub struct RouterGoal {
    /// For each token the wanted share of each expert, `[tokens · experts]`, rows summing to one.
    pub wanted: Arc<[f32]>,
    /// For each expert the share of choices it had in this pass over the share it should have.
    pub excess: Arc<[f32]>,
    /// Weight of the cross-entropy against `wanted`.
    pub label: f32,
    /// Weight of the balance term `Σ excess·mean(p)` (Fedus et al. 2022, against a prior instead of uniform).
    pub balance: f32,
    /// Weight of the mean square of the logits' logsumexp (Zoph et al. 2022).
    pub z: f32,
}

struct RouterLoss {
    goal: RouterGoal,
    d_logits: OnceLock<Tensor>,
}

/// The router's own loss for `logits[n, experts]`, a mean over tokens, as `[1]`.
///
/// # Errors
/// Shapes, type or device do not fit.
pub fn router_loss(logits: &Tensor, goal: &RouterGoal) -> Result<Tensor> {
    let loss = RouterLoss { goal: goal.clone(), d_logits: OnceLock::new() };
    if far(logits) {
        // A few numbers for each token: the processor computes them.
        return logits.to_device(&Device::Cpu)?.apply_op1(loss)?.to_device(logits.device());
    }
    logits.apply_op1(loss)
}

impl RouterGoal {
    /// Loss of one token, and its gradient in place of the logits.
    fn token(&self, logits: &mut [f32], wanted: &[f32]) -> f32 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let aligned = dot(logits, wanted);
        let lse = softmax(logits);
        let crowd = dot(logits, &self.excess);
        for ((p, wanted), excess) in logits.iter_mut().zip(wanted).zip(self.excess.iter()) {
            *p = self.label * (*p - wanted) + self.balance * *p * (excess - crowd) + self.z * 2.0 * lse * *p;
        }
        self.label * (lse - aligned) + self.balance * crowd + self.z * lse * lse
    }
}

impl CustomOp1 for RouterLoss {
    fn name(&self) -> &'static str {
        "router_loss"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, experts) = packed(layout)?;
        if self.goal.wanted.len() != n * experts || self.goal.excess.len() != experts || n == 0 {
            bail!("the router's goal does not fit {n} tokens and {experts} experts")
        }
        let mut d_logits = slice(storage, layout)?.to_vec();
        let mut loss = 0f64;
        for (row, wanted) in d_logits.chunks_exact_mut(experts).zip(self.goal.wanted.chunks_exact(experts)) {
            loss += f64::from(self.goal.token(row, wanted));
            row.iter_mut().for_each(|d| *d /= n as f32);
        }
        // A second forward of the same operation would find the same gradient.
        let _ = self.d_logits.set(tensor(d_logits, (n, experts), &Device::Cpu)?);
        output(vec![(loss / n as f64) as f32], 1)
    }

    fn bwd(&self, _logits: &Tensor, _loss: &Tensor, d_loss: &Tensor) -> Result<Option<Tensor>> {
        let Some(d_logits) = self.d_logits.get() else { bail!("backward of the router's loss before its forward") };
        let factor = host(&d_loss.flatten_all()?)?.iter().sum::<f32>();
        Ok(Some((d_logits * f64::from(factor))?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{gradients_hold, random};
    use super::*;

    #[test]
    fn gradient_holds() {
        let goal = RouterGoal {
            wanted: vec![0.5, 0.5, 0.0, 0.0, 0.2, 0.8, 1.0, 0.0, 0.0].into(),
            excess: vec![2.0, 0.5, 0.1].into(),
            label: 0.7,
            balance: 0.4,
            z: 0.1,
        };
        gradients_hold(&[random(&[3, 3], 5)], |v| router_loss(&v[0], &goal)?.affine(2.0, 0.0));
    }
}
