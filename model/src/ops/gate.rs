//! How much of each expert a token takes, as numbers with a gradient, and the low-rank rows multiplied by it. Who is taken
//! was decided before; refuses to know by which rule.

use super::host::{host, output, packed, slice, tensor};
use super::tensors::far;
use crate::device;
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;

/// What was decided for the tokens of a pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// For each token, bit `e` is set when it takes expert `e`.
    pub taken: Arc<[u64]>,
    /// For each token, bit `e` is set when the gate of `e` is a constant that does not follow the logits.
    pub held: Arc<[u64]>,
    /// `[tokens · experts]`: the softmax over the taken ones that are not held, times what these leave; zero elsewhere.
    pub gates: Arc<[f32]>,
}

/// Decides for each row of `logits`: `decide` is given the row's number and logits, writes the gates and returns the bits of
/// the taken experts and of those whose gate is held.
///
/// # Errors
/// More than 64 experts, or shapes, type or device do not fit.
pub fn choose(logits: &Tensor, mut decide: impl FnMut(usize, &[f32], &mut [f32]) -> (u64, u64)) -> Result<Choice> {
    let (n, experts) = logits.dims2()?;
    if experts == 0 || experts > 64 {
        bail!("a token cannot choose among {experts} experts")
    }
    let (logits, mut gates) = (host(logits)?, vec![0f32; n * experts]);
    let rows = logits.chunks_exact(experts).zip(gates.chunks_exact_mut(experts)).enumerate();
    let (taken, held): (Vec<u64>, Vec<u64>) = rows.map(|(row, (logits, gates))| decide(row, logits, gates)).unzip();
    Ok(Choice { taken: taken.into(), held: held.into(), gates: gates.into() })
}

struct Gate {
    choice: Choice,
}

/// The decided gates `[n, experts]` as a function of the logits.
///
/// # Errors
/// Shapes, type or device do not fit.
pub fn gate(logits: &Tensor, choice: &Choice) -> Result<Tensor> {
    logits.apply_op1(Gate { choice: choice.clone() })
}

impl Gate {
    /// Tokens and experts of logits that fit the choice.
    fn sides(&self, logits: &Layout) -> Result<(usize, usize)> {
        let (n, experts) = packed(logits)?;
        if self.choice.gates.len() != n * experts || self.choice.held.len() != n {
            bail!("{} choices meet {n} tokens and {experts} experts", self.choice.held.len())
        }
        Ok((n, experts))
    }
}

impl CustomOp1 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, _storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        output(self.choice.gates.to_vec(), self.sides(layout)?)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let sides = self.sides(layout)?;
        if self.choice.held.iter().all(|bits| *bits == 0) {
            return Ok((device::gate((storage, layout), &self.choice.taken)?, sides.into()));
        }
        Ok((storage.device().storage_from_slice(&self.choice.gates)?, sides.into()))
    }

    /// Over the gates that are not held, with `μ` their sum: `dz = g·(dg − Σ g·dg / μ)`; zero where a gate is zero or held.
    fn bwd(&self, _logits: &Tensor, gates: &Tensor, d_gates: &Tensor) -> Result<Option<Tensor>> {
        let (n, experts) = gates.dims2()?;
        let d_gates = d_gates.contiguous()?;
        let (g, mut dz) = (host(gates)?, host(&d_gates)?.to_vec());
        let rows = g.chunks_exact(experts).zip(dz.chunks_exact_mut(experts));
        for ((g, dz), held) in rows.zip(self.choice.held.iter()) {
            let free = |e: usize| held >> e & 1 == 0;
            let sum = |f: &dyn Fn(usize) -> f32| (0..experts).filter(|e| free(*e)).map(f).sum::<f32>();
            let mean = sum(&|e| g[e] * dz[e]) / sum(&|e| g[e]);
            for (e, (d, g)) in dz.iter_mut().zip(g).enumerate() {
                *d = if free(e) { g * (*d - mean) } else { 0.0 };
            }
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
    use crate::kernels::softmax;

    /// The decision of these taken and held bits; a held gate is 0.3.
    fn decided(logits: &Tensor, rows: &[(u64, u64)]) -> Choice {
        let decide = |row: usize, logits: &[f32], gates: &mut [f32]| {
            let (taken, held) = rows[row];
            let free: Vec<usize> = (0..logits.len()).filter(|e| (taken & !held) >> e & 1 == 1).collect();
            let mut kept: Vec<f32> = free.iter().map(|e| logits[*e]).collect();
            softmax(&mut kept);
            let share = if held == 0 { 1.0 } else { 0.7 };
            gates.iter_mut().enumerate().for_each(|(e, g)| *g = if held >> e & 1 == 1 { 0.3 } else { 0.0 });
            free.iter().zip(kept).for_each(|(e, g)| gates[*e] = share * g);
            (taken, held)
        };
        choose(logits, decide).unwrap()
    }

    #[test]
    fn gradients_hold_through_gate_and_spread() {
        let rows = [(0b00011, 0), (0b10001, 0), (0b01110, 0b00100), (0b11111, 0b10000)];
        gradients_hold(&[random(&[4, 5], 1)], |v| gate(&v[0], &decided(&v[0], &rows)));
        gradients_hold(&[random(&[6, 13], 2), random(&[6, 5], 3)], |v| spread(&v[0], &v[1], 3, 0.7));
    }

    #[test]
    fn a_held_gate_is_no_function_of_the_logits() {
        let logits = Tensor::new(&[[0f32, 2.0, 1.0, 2.0]], device()).unwrap();
        let gates = gate(&logits, &decided(&logits, &[(0b1011, 0b0001)])).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(gates[0], [0.3, 0.35, 0.0, 0.35]);
        assert!(gate(&random(&[2, 4], 1), &decided(&logits, &[(1, 0)])).is_err());
    }

    #[test]
    fn impossible_shapes_are_refused() {
        assert!(choose(&random(&[2, 65], 1), |_, _, _| (1, 0)).is_err());
        assert!(spread(&random(&[2, 12], 1), &random(&[2, 5], 1), 3, 1.0).is_err());
    }
}
