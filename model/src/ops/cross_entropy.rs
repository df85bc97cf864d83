//! The output head and the loss in one: logits exist for a few rows at a time, only where there is something to learn,
//! and the gradient of the hidden rows is found on the way forward.

use super::host::{host, output, packed, slice, tensor};
use super::tensors::{cross_entropy, far, with_gradient};
use crate::kernels::{Matrix, Threads, multiply, softmax};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// Rows whose logits are held at a time.
const CHUNK: usize = 96;

/// A row that has to predict an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Row of the hidden state that predicts.
    pub row: u32,
    /// The id it should predict.
    pub id: u32,
}

struct LinearCrossEntropy {
    head: Tensor,
    targets: Arc<[Target]>,
    weight: f32,
    d_hidden: OnceLock<Tensor>,
}

/// `weight · Σ −log softmax(h·headᵀ)[row, id]` over the targets, for `h[n,width]` and a frozen `head[vocab,width]`, as `[1]`.
///
/// # Errors
/// A target is out of range, or shapes, type or device do not fit.
pub fn linear_cross_entropy(h: &Tensor, head: &Tensor, targets: &Arc<[Target]>, weight: f32) -> Result<Tensor> {
    if far(h) {
        let (rows, width) = h.dims2()?;
        check(targets, rows, width, head)?;
        let (losses, d_hidden) = cross_entropy(h, head, targets, Some(weight))?;
        let loss = losses.into_iter().map(f64::from).sum::<f64>() * f64::from(weight);
        return with_gradient(h, loss, &d_hidden);
    }
    let (head, targets) = (head.clone(), targets.clone());
    h.apply_op1(LinearCrossEntropy { head, targets, weight, d_hidden: OnceLock::new() })
}

/// `−log softmax(h·headᵀ)[row, id]` of each target, without a gradient.
///
/// # Errors
/// As [`linear_cross_entropy`].
pub fn linear_nll(h: &Tensor, head: &Tensor, targets: &[Target]) -> Result<Vec<f32>> {
    let (h_rows, width) = h.dims2()?;
    check(targets, h_rows, width, head)?;
    if far(h) {
        return cross_entropy(h, head, targets, None).map(|(losses, _)| losses);
    }
    let (h, head) = (host(h)?, host(head)?);
    let chunks = targets.chunks(CHUNK).map(|chunk| Chunk::new(&h, &head, width, chunk).losses);
    Ok(chunks.flatten().collect())
}

fn check(targets: &[Target], rows: usize, width: usize, head: &Tensor) -> Result<()> {
    let (vocab, inner) = head.dims2()?;
    if inner != width {
        bail!("a head of width {inner} meets rows of {width}")
    }
    if targets.iter().any(|t| t.row as usize >= rows || t.id as usize >= vocab) {
        bail!("a target is outside the rows or the vocabulary")
    }
    Ok(())
}

/// Losses of a few targets, with the probabilities behind them.
struct Chunk {
    losses: Vec<f32>,
    probabilities: Vec<f32>,
}

impl Chunk {
    fn new(h: &[f32], head: &[f32], width: usize, targets: &[Target]) -> Self {
        let vocab = head.len() / width;
        let rows: Vec<f32> = targets.iter().flat_map(|t| &h[t.row as usize * width..][..width]).copied().collect();
        let mut probabilities = vec![0f32; targets.len() * vocab];
        let (rows, head) = (Matrix::new(&rows, targets.len(), width), Matrix::new(head, vocab, width));
        multiply(&mut probabilities, vocab, rows, head.transposed(), false, Threads::All);
        let losses = probabilities.par_chunks_exact_mut(vocab).zip(targets).map(|(row, target)| {
            let logit = row[target.id as usize];
            softmax(row) - logit
        });
        Self { losses: losses.collect(), probabilities }
    }

    /// `weight·(p − onehot)·head` as rows.
    fn d_rows(mut self, head: &[f32], width: usize, targets: &[Target], weight: f32) -> Vec<f32> {
        let vocab = head.len() / width;
        self.probabilities.par_chunks_exact_mut(vocab).zip(targets).for_each(|(row, target)| {
            row[target.id as usize] -= 1.0;
            row.iter_mut().for_each(|p| *p *= weight);
        });
        let mut rows = vec![0f32; targets.len() * width];
        let d_logits = Matrix::new(&self.probabilities, targets.len(), vocab);
        multiply(&mut rows, width, d_logits, Matrix::new(head, vocab, width), false, Threads::All);
        rows
    }
}

impl CustomOp1 for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, width) = packed(layout)?;
        check(&self.targets, n, width, &self.head)?;
        let (h, head) = (slice(storage, layout)?, host(&self.head)?);
        let (mut loss, mut d_hidden) = (0f64, vec![0f32; n * width]);
        for targets in self.targets.chunks(CHUNK) {
            let chunk = Chunk::new(h, &head, width, targets);
            loss += chunk.losses.iter().map(|x| f64::from(*x)).sum::<f64>();
            let rows = chunk.d_rows(&head, width, targets, self.weight);
            for (target, row) in targets.iter().zip(rows.chunks_exact(width)) {
                let at = target.row as usize * width;
                d_hidden[at..at + width].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        }
        // A second forward of the same operation would find the same gradient.
        let _ = self.d_hidden.set(tensor(d_hidden, (n, width), &Device::Cpu)?);
        output(vec![(loss * f64::from(self.weight)) as f32], 1)
    }

    fn bwd(&self, _h: &Tensor, _loss: &Tensor, d_loss: &Tensor) -> Result<Option<Tensor>> {
        let Some(d_hidden) = self.d_hidden.get() else { bail!("backward of the loss before its forward") };
        let factor = d_loss.flatten_all()?.to_vec1::<f32>()?.iter().sum::<f32>();
        Ok(Some(if factor == 1.0 { d_hidden.clone() } else { (d_hidden * f64::from(factor))? }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{gradients_hold, random};
    use super::*;

    fn targets(count: u32) -> Arc<[Target]> {
        (0..count).map(|i| Target { row: i / 2, id: (i * 5) % 11 }).collect()
    }

    #[test]
    fn gradient_holds() {
        let head = random(&[11, 3], 4);
        gradients_hold(&[random(&[5, 3], 2)], |v| {
            linear_cross_entropy(&v[0], &head, &targets(8), 0.25)?.affine(3.0, 0.0)
        });
    }

    #[test]
    fn chunks_give_what_the_definition_gives() {
        let (h, head) = (random(&[120, 3], 2), random(&[11, 3], 4));
        let targets = targets(CHUNK as u32 + 9);
        let logits = h.matmul(&head.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
        let expected: Vec<f64> = targets
            .iter()
            .map(|t| {
                let row = &logits[t.row as usize];
                row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln() - f64::from(row[t.id as usize])
            })
            .collect();
        let found = linear_nll(&h, &head, &targets).unwrap();
        assert!(found.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
        let loss = linear_cross_entropy(&h, &head, &targets, 0.5).unwrap().to_vec1::<f32>().unwrap();
        assert!((f64::from(loss[0]) - 0.5 * expected.iter().sum::<f64>()).abs() < 1e-4);
    }

    #[test]
    fn targets_out_of_range_are_refused() {
        let (h, head) = (random(&[5, 3], 2), random(&[11, 3], 4));
        for target in [Target { row: 5, id: 0 }, Target { row: 0, id: 11 }] {
            assert!(linear_nll(&h, &head, &[target]).is_err());
            assert!(linear_cross_entropy(&h, &head, &vec![target].into(), 1.0).is_err());
        }
    }
}
