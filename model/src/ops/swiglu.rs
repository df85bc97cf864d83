//! The gated activation of the feed-forward part.

use super::host::{ROWS_PER_TASK, host, output, packed, slice, tensor};
use super::tensors::{far, swiglu_gradient};
use crate::device;
use crate::kernels::exp;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

struct SwiGlu;

/// `silu(gate)·up` (Shazeer 2020).
///
/// # Errors
/// Shapes, type or device do not fit.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2(up, SwiGlu)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The shape of both.
fn sides(gate: &Layout, up: &Layout) -> Result<(usize, usize)> {
    let sides = packed(gate)?;
    if packed(up)? != sides {
        bail!("gate and up have different shapes")
    }
    Ok(sides)
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, width) = sides(l1, l2)?;
        let (gate, up) = (slice(s1, l1)?, slice(s2, l2)?);
        let mut y = vec![0f32; n * width];
        let block = ROWS_PER_TASK * width;
        y.par_chunks_mut(block).zip(gate.par_chunks(block)).zip(up.par_chunks(block)).for_each(|((y, gate), up)| {
            y.iter_mut().zip(gate).zip(up).for_each(|((y, g), u)| *y = g * sigmoid(*g) * u);
        });
        output(y, (n, width))
    }

    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let sides = sides(l1, l2)?;
        Ok((device::swiglu((s1, l1), (s2, l2))?, sides.into()))
    }

    /// With `s = sigmoid(g)`: `dg = dy·u·s·(1 + g·(1 − s))`, `du = dy·g·s`.
    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if far(gate) {
            return swiglu_gradient(gate, up, dy).map(|(d_gate, d_up)| (Some(d_gate), Some(d_up)));
        }
        let ((n, width), device) = (gate.dims2()?, gate.device());
        let dy = dy.contiguous()?;
        let (gate, up, dy) = (host(gate)?, host(up)?, host(&dy)?);
        let (mut d_gate, mut d_up) = (vec![0f32; n * width], vec![0f32; n * width]);
        let block = ROWS_PER_TASK * width;
        d_gate.par_chunks_mut(block).zip(d_up.par_chunks_mut(block)).enumerate().for_each(|(i, (d_gate, d_up))| {
            let here = i * block..i * block + d_gate.len();
            let inputs = gate[here.clone()].iter().zip(&up[here.clone()]).zip(&dy[here]);
            for ((dg, du), ((g, u), dy)) in d_gate.iter_mut().zip(d_up).zip(inputs) {
                let s = sigmoid(*g);
                *dg = dy * u * s * (1.0 + g * (1.0 - s));
                *du = dy * g * s;
            }
        });
        Ok((Some(tensor(d_gate, (n, width), device)?), Some(tensor(d_up, (n, width), device)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{gradients_hold, random};
    use super::*;

    #[test]
    fn gradients_hold_over_several_tasks() {
        gradients_hold(&[random(&[35, 3], 1), random(&[35, 3], 2)], |v| swiglu(&v[0], &v[1]));
    }
}
