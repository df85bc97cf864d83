//! Which experts a token takes and how much of each. Softmax over all experts, the best kept, renormalised: that is the
//! softmax over the kept ones, and so is its gradient.

use super::host::{host, output, packed, slice, tensor};
use super::tensors::far;
use crate::device;
use crate::kernels::softmax;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;

/// For each token one bit per expert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Bit `e` is set when the token takes expert `e`.
    pub taken: Arc<[u64]>,
}

/// The `top_k` experts with the highest logits of each row; the earlier of equals. Rows with a `forced` choice of
/// at least one expert take that one instead.
///
/// # Errors
/// More than 64 experts, or shapes, type or device do not fit.
pub fn choose(logits: &Tensor, top_k: usize, forced: Option<&[u64]>) -> Result<Choice> {
    let (n, experts) = logits.dims2()?;
    if experts == 0 || experts > 64 || top_k == 0 || top_k > experts || forced.is_some_and(|f| f.len() != n) {
        bail!("cannot choose {top_k} of {experts} experts for {n} tokens")
    }
    let logits = host(logits)?;
    let taken = logits.chunks_exact(experts).enumerate().map(|(i, row)| match forced.map(|f| f[i]) {
        Some(bits) if bits != 0 => bits,
        _ => best(row, top_k),
    });
    Ok(Choice { taken: taken.collect() })
}

/// Bits of the `top_k` highest.
fn best(row: &[f32], top_k: usize) -> u64 {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    order.iter().take(top_k).fold(0, |bits, e| bits | 1 << e)
}

struct Gate {
    choice: Choice,
}

/// Gates `[n, experts]` that sum to one over the chosen experts of each row and are zero elsewhere.
///
/// # Errors
/// Shapes, type or device do not fit.
pub fn gate(logits: &Tensor, choice: &Choice) -> Result<Tensor> {
    logits.apply_op1(Gate { choice: choice.clone() })
}

/// The columns of a choice.
fn columns(bits: u64, experts: usize) -> impl Iterator<Item = usize> {
    (0..experts).filter(move |e| bits >> e & 1 == 1)
}

impl Gate {
    /// Tokens and experts of logits that fit the choice.
    fn sides(&self, logits: &Layout) -> Result<(usize, usize)> {
        let (n, experts) = packed(logits)?;
        if self.choice.taken.len() != n || experts > 64 {
            bail!("{} choices meet {n} tokens and {experts} experts", self.choice.taken.len())
        }
        Ok((n, experts))
    }
}

impl CustomOp1 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, experts) = self.sides(layout)?;
        let mut gates = vec![0f32; n * experts];
        let rows = gates.chunks_exact_mut(experts).zip(slice(storage, layout)?.chunks_exact(experts));
        for ((gates, logits), bits) in rows.zip(self.choice.taken.iter()) {
            let mut kept: Vec<f32> = columns(*bits, experts).map(|e| logits[e]).collect();
            softmax(&mut kept);
            columns(*bits, experts).zip(kept).for_each(|(e, g)| gates[e] = g);
        }
        output(gates, (n, experts))
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let sides = self.sides(layout)?;
        Ok((device::gate((storage, layout), &self.choice.taken)?, sides.into()))
    }

    /// `dz = g·(dg − Σ g·dg)`: zero where the gate is.
    fn bwd(&self, _logits: &Tensor, gates: &Tensor, d_gates: &Tensor) -> Result<Option<Tensor>> {
        let (n, experts) = gates.dims2()?;
        let d_gates = d_gates.contiguous()?;
        let (g, mut dz) = (host(gates)?, host(&d_gates)?.to_vec());
        for (g, dz) in g.chunks_exact(experts).zip(dz.chunks_exact_mut(experts)) {
            let mean: f32 = g.iter().zip(dz.iter()).map(|(g, d)| g * d).sum();
            dz.iter_mut().zip(g).for_each(|(d, g)| *d = g * (*d - mean));
        }
        tensor(dz, (n, experts), gates.device()).map(Some)
    }
}

struct Spread {
    scale: f32,
    shared: usize,
}

/// Multiplies the stacked low-rank rows `u[n, shared + experts·rank]` by `scale`, and the part of each expert also by its
/// gate of `gates[n, experts]`.
///
/// # Errors
/// Shapes, type or device do not fit.
pub fn spread(u: &Tensor, gates: &Tensor, shared: usize, scale: f32) -> Result<Tensor> {
    u.apply_op2(gates, Spread { scale, shared })
}

impl Spread {
    /// Rows and columns of `u`, and experts and the rank of each.
    fn sides(&self, u: &Layout, gates: &Layout) -> Result<((usize, usize), (usize, usize))> {
        let ((n, width), (rows, experts)) = (packed(u)?, packed(gates)?);
        if rows != n {
            bail!("{rows} rows of gates meet {n} tokens")
        }
        Ok(((n, width), (experts, self.rank(width, experts)?)))
    }

    /// Rank of one expert.
    fn rank(&self, width: usize, experts: usize) -> Result<usize> {
        match width.checked_sub(self.shared) {
            Some(routed) if experts > 0 && routed > 0 && routed.is_multiple_of(experts) => Ok(routed / experts),
            _ => bail!("{experts} experts do not divide a stack of {width} with {} shared", self.shared),
        }
    }

    fn apply(&self, u: &[f32], gates: &[f32], width: usize, experts: usize, rank: usize) -> Vec<f32> {
        let mut out = u.to_vec();
        for (row, gates) in out.chunks_exact_mut(width).zip(gates.chunks_exact(experts)) {
            let (shared, routed) = row.split_at_mut(self.shared);
            shared.iter_mut().for_each(|x| *x *= self.scale);
            for (part, gate) in routed.chunks_exact_mut(rank).zip(gates) {
                part.iter_mut().for_each(|x| *x *= self.scale * gate);
            }
        }
        out
    }
}

impl CustomOp2 for Spread {
    fn name(&self) -> &'static str {
        "spread"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((n, width), (experts, rank)) = self.sides(l1, l2)?;
        output(self.apply(slice(s1, l1)?, slice(s2, l2)?, width, experts, rank), (n, width))
    }

    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let (sides, (_, rank)) = self.sides(l1, l2)?;
        Ok((device::spread((s1, l1), (s2, l2), self.shared, rank, self.scale)?, sides.into()))
    }

    fn bwd(&self, u: &Tensor, gates: &Tensor, _h: &Tensor, dh: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((n, width), (_, experts), device) = (u.dims2()?, gates.dims2()?, u.device());
        let rank = self.rank(width, experts)?;
        let dh = dh.contiguous()?;
        if far(u) {
            let du = dh.apply_op2_no_bwd(&gates.detach(), self)?;
            let routed = (u.detach() * dh)?.narrow(1, self.shared, experts * rank)?.contiguous()?;
            let d_gates = (routed.reshape((n, experts, rank))?.sum(2)? * f64::from(self.scale))?;
            return Ok((Some(du), Some(d_gates)));
        }
        let (u, gates, dh) = (host(u)?, host(gates)?, host(&dh)?);
        let d_gates = u.chunks_exact(width).zip(dh.chunks_exact(width)).flat_map(|(u, dh)| {
            let parts = u[self.shared..].chunks_exact(rank).zip(dh[self.shared..].chunks_exact(rank));
            parts.map(|(u, dh)| self.scale * u.iter().zip(dh).map(|(u, d)| u * d).sum::<f32>())
        });
        let d_gates = tensor(d_gates.collect(), (n, experts), device)?;
        let du = tensor(self.apply(&dh, &gates, width, experts, rank), (n, width), device)?;
        Ok((Some(du), Some(d_gates)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{device, gradients_hold, random};
    use super::*;

    #[test]
    fn gradients_hold_through_gate_and_spread() {
        let logits = random(&[6, 5], 1);
        let choice = choose(&logits, 2, Some(&[0, 0, 0, 0, 0b10001, 0b00110])).unwrap();
        gradients_hold(&[logits], |v| gate(&v[0], &choice));
        gradients_hold(&[random(&[6, 13], 2), random(&[6, 5], 3)], |v| spread(&v[0], &v[1], 3, 0.7));
    }

    #[test]
    fn the_best_are_kept_and_renormalised() {
        let logits = Tensor::new(&[[0f32, 2.0, 1.0, 2.0], [5.0, 0.0, 0.0, 0.0]], device()).unwrap();
        let choice = choose(&logits, 2, None).unwrap();
        assert_eq!(choice.taken[..], [0b1010, 0b0011], "of equals the earlier");
        let gates = gate(&logits, &choice).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(gates[0], [0.0, 0.5, 0.0, 0.5]);
        let all = logits.to_vec2::<f32>().unwrap()[1].iter().map(|x| x.exp()).collect::<Vec<_>>();
        assert!((gates[1][0] - all[0] / (all[0] + all[1])).abs() < 1e-6);
    }

    #[test]
    fn impossible_choices_are_refused() {
        assert!(choose(&random(&[2, 3], 1), 4, None).is_err());
        assert!(choose(&random(&[2, 65], 1), 1, None).is_err());
        assert!(spread(&random(&[2, 12], 1), &random(&[2, 5], 1), 3, 1.0).is_err());
    }
}
