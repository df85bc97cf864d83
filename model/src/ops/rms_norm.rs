//! Root-mean-square norm with a frozen weight.

use super::host::{ROWS_PER_TASK, host, output, packed, slice, tensor};
use super::linear::on_card;
use super::tensors::{far, rms_norm_gradient};
use crate::device;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

/// `x / sqrt(mean(x²) + eps) · w` by row (Zhang and Sennrich 2019); the weight `[width]` is frozen.
///
/// # Errors
/// Shapes, type or device do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    x.apply_op1(RmsNorm { weight: weight.clone(), eps: eps as f32 })
}

/// A sum over the terms of two rows in eight lanes, so that it becomes vector code; the order is fixed.
fn lanes(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0f32; 8];
    let ((a8, a_rest), (b8, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a8.iter().zip(b8) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += term(*a, *b);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| term(*a, *b)).sum();
    sums.iter().sum::<f32>() + rest
}

impl RmsNorm {
    /// The factor `1 / sqrt(mean(x²) + eps)` of a row.
    fn factor(&self, x: &[f32]) -> f32 {
        1.0 / (lanes(x, x, |a, b| a * b) / x.len() as f32 + self.eps).sqrt()
    }

    /// Rows and columns of an input that fits the weight.
    fn sides(&self, x: &Layout) -> Result<(usize, usize)> {
        let (n, width) = packed(x)?;
        if self.weight.dims() != [width] {
            bail!("a norm of {:?} meets rows of {width}", self.weight.dims())
        }
        Ok((n, width))
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, width) = self.sides(layout)?;
        let (x, weight) = (slice(storage, layout)?, host(&self.weight)?);
        let mut y = vec![0f32; n * width];
        let block = ROWS_PER_TASK * width;
        y.par_chunks_mut(block).zip(x.par_chunks(block)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let r = self.factor(x);
                y.iter_mut().zip(x).zip(weight.iter()).for_each(|((y, x), w)| *y = x * r * w);
            }
        });
        output(y, (n, width))
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let sides = self.sides(layout)?;
        Ok((on_card(&self.weight, |weight| device::rms_norm((storage, layout), weight, self.eps))?, sides.into()))
    }

    /// `dx = r·(dy·w) − x·r³·mean(dy·w·x)`.
    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if far(x) {
            return rms_norm_gradient(x, &self.weight, self.eps, dy).map(Some);
        }
        let ((n, width), device) = (x.dims2()?, x.device());
        let dy = dy.contiguous()?;
        let (x, dy, weight) = (host(x)?, host(&dy)?, host(&self.weight)?);
        let mut dx = vec![0f32; n * width];
        let block = ROWS_PER_TASK * width;
        let (x, dy, weight): (&[f32], &[f32], &[f32]) = (&x, &dy, &weight);
        dx.par_chunks_mut(block).zip(x.par_chunks(block)).zip(dy.par_chunks(block)).for_each(|((dx, x), dy)| {
            let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(dy.chunks_exact(width));
            for ((dx, x), dy) in rows {
                dx.iter_mut().zip(dy).zip(weight).for_each(|((dx, dy), w)| *dx = dy * w);
                let r = self.factor(x);
                let pull = r * r * r * lanes(dx, x, |a, b| a * b) / width as f32;
                dx.iter_mut().zip(x).for_each(|(dx, x)| *dx = *dx * r - x * pull);
            }
        });
        tensor(dx, (n, width), device).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{device, gradients_hold, random};
    use super::*;

    #[test]
    fn gradient_holds() {
        let weight = random(&[11], 1);
        gradients_hold(&[random(&[4, 11], 2)], |v| rms_norm(&v[0], &weight, 1e-5));
    }

    #[test]
    fn rows_have_unit_mean_square() {
        let ones = Tensor::ones(11, candle_core::DType::F32, device()).unwrap();
        let rows = rms_norm(&random(&[40, 11], 2), &ones, 1e-9).unwrap().to_vec2::<f32>().unwrap();
        assert!(rows.iter().all(|row| (row.iter().map(|x| x * x).sum::<f32>() / 11.0 - 1.0).abs() < 1e-5));
    }
}
