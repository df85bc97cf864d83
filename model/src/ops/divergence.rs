//! How far a model's next-token distributions lie from another's, over the vocabulary and a chunk of rows at a time: what
//! keeps a mixture close to its base on replayed text. In candle's own tensor operations, for every device.

use super::tensors::{softmax, with_gradient};
use candle_core::{Result, Tensor, bail};

/// Rows whose logits are held at a time.
const CHUNK: usize = 256;

/// `Σ wᵢ·KL(base‖model)` over chosen rows, `KL = Σ p_b·(log p_b − log p_m)` in nats, as `[1]`. `h[n,hidden]` are the model's
/// rows as the head reads them, `base[n,hidden]` the other's; head and base do not learn. `dlogits = w·(p_m − p_b)`.
///
/// # Errors
/// There are not as many weights as rows, or shapes, type or device do not fit.
pub fn linear_divergence(h: &Tensor, base: &Tensor, head: &Tensor, rows: &[u32], weights: &[f32]) -> Result<Tensor> {
    if rows.len() != weights.len() {
        bail!("{} rows and {} weights", rows.len(), weights.len())
    }
    let (known, head) = (h.detach(), head.detach());
    let (mut value, mut d_hidden) = (0f64, known.zeros_like()?);
    for (rows, weights) in rows.chunks(CHUNK).zip(weights.chunks(CHUNK)) {
        let at = Tensor::new(rows, h.device())?;
        let weights = Tensor::from_slice(weights, (rows.len(), 1), h.device())?;
        let logits = |h: &Tensor| h.index_select(&at, 0)?.matmul(&head.t()?);
        let (ours, theirs) = (logits(&known)?, logits(&base.detach())?);
        let ((p, lse), (q, base_lse)) = (softmax(&ours)?, softmax(&theirs)?);
        let apart = (theirs.broadcast_sub(&base_lse)? - ours.broadcast_sub(&lse)?)?;
        let sums = (&q * apart)?.sum_keepdim(1)?;
        value += f64::from((sums * &weights)?.sum_all()?.to_scalar::<f32>()?);
        let d_logits = (p - q)?.broadcast_mul(&weights)?;
        d_hidden = d_hidden.index_add(&at, &d_logits.matmul(&head)?, 0)?;
    }
    with_gradient(h, value, &d_hidden)
}

#[cfg(test)]
mod tests {
    use super::super::check::{gradients_hold, random};
    use super::*;
    use crate::kernels::softmax;

    #[test]
    fn it_is_the_divergence_and_has_its_gradient() {
        let (h, base, head) = (random(&[5, 3], 1), random(&[5, 3], 2), random(&[7, 3], 3));
        let (rows, weights) = ([0u32, 3, 4], [0.5f32, 2.0, 1.0]);
        let logits = |h: &Tensor| h.matmul(&head.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
        let (ours, theirs) = (logits(&h), logits(&base));
        let mut expected = 0.0;
        for (row, weight) in rows.iter().zip(weights) {
            let (mut p, mut q) = (ours[*row as usize].clone(), theirs[*row as usize].clone());
            softmax(&mut p);
            softmax(&mut q);
            expected += weight * p.iter().zip(&q).map(|(p, q)| q * (q / p).ln()).sum::<f32>();
        }
        let found = linear_divergence(&h, &base, &head, &rows, &weights).unwrap().to_vec1::<f32>().unwrap();
        assert!((found[0] - expected).abs() < 1e-5 * expected, "{} {expected}", found[0]);
        let same = linear_divergence(&base, &base, &head, &rows, &weights).unwrap().to_vec1::<f32>().unwrap();
        assert!(same[0].abs() < 1e-6);
        gradients_hold(&[h], |v| linear_divergence(&v[0], &base, &head, &rows, &weights));
        assert!(linear_divergence(&base, &base, &head, &rows, &weights[..2]).is_err());
    }
}
