//! Backward passes, and the loss over the vocabulary, in candle's own tensor operations: for tensors that lie in a card's
//! memory. They hold on every device; the tests compare them with the operations' own on the processor. Forward passes
//! on a card are in `device`.

use super::{Segment, Target};
use candle_core::{D, DType, Result, Tensor};

/// Queries of one block of attention's backward.
const BLOCK: usize = 256;
/// Rows whose logits are held at a time.
const CHUNK: usize = 512;

/// Whether the processor cannot read it in place.
pub(super) fn far(tensor: &Tensor) -> bool {
    !tensor.device().is_cpu()
}

/// `dx = r·(dy·w) − x·r³·mean(dy·w·x)` with `r = 1 / sqrt(mean(x²) + eps)`.
pub(super) fn rms_norm_gradient(x: &Tensor, weight: &Tensor, eps: f32, dy: &Tensor) -> Result<Tensor> {
    let (x, weighted) = (x.detach(), dy.broadcast_mul(&weight.detach())?);
    let r = (x.sqr()?.mean_keepdim(1)? + f64::from(eps))?.sqrt()?.recip()?;
    let pull = ((&weighted * &x)?.mean_keepdim(1)? * r.powf(3.0)?)?;
    weighted.broadcast_mul(&r)? - x.broadcast_mul(&pull)?
}

/// With `s = sigmoid(g)`: `dg = dy·u·s·(1 + g·(1 − s))`, `du = dy·g·s`.
pub(super) fn swiglu_gradient(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (gate, up) = (gate.detach(), up.detach());
    let s = (gate.neg()?.exp()? + 1.0)?.recip()?;
    let d_up = ((dy * &gate)? * &s)?;
    let slope = ((&gate * s.affine(-1.0, 1.0)?)? + 1.0)?;
    Ok((((dy * up)? * (s * slope)?)?, d_up))
}

/// Softmax of rows `x[.., columns]`, and the logarithm of what they are divided by, `[.., 1]`.
pub(super) fn softmax(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let top = x.max_keepdim(D::Minus1)?;
    let powers = x.broadcast_sub(&top)?.exp()?;
    let total = powers.sum_keepdim(D::Minus1)?;
    Ok((powers.broadcast_div(&total)?, (total.log()? + top)?))
}

/// Zero where query `from + i` sees key `j` of `seen`, minus infinity elsewhere, `[rows, seen]`.
fn mask(past: usize, (from, to): (usize, usize), like: &Tensor) -> Result<Tensor> {
    let seen = past + to;
    let row = |i: usize| (0..seen).map(move |j| if j <= past + i { 0f32 } else { f32::NEG_INFINITY });
    Tensor::from_vec((from..to).flat_map(row).collect::<Vec<_>>(), (to - from, seen), like.device())
}

/// Rows `[rows, kv·group·head]` as `[kv, group·rows, head]`.
fn by_group(rows: &Tensor, kv_heads: usize, group: usize) -> Result<Tensor> {
    let (count, width) = rows.dims2()?;
    let head = width / (kv_heads * group);
    let split = rows.reshape((count, kv_heads, group, head))?.permute((1, 2, 0, 3))?;
    split.contiguous()?.reshape((kv_heads, group * count, head))
}

/// The way back.
fn by_row(groups: &Tensor, group: usize) -> Result<Tensor> {
    let (kv_heads, all, head) = groups.dims3()?;
    let split = groups.reshape((kv_heads, group, all / group, head))?.permute((2, 0, 1, 3))?;
    split.contiguous()?.reshape((all / group, kv_heads * group * head))
}

/// Gradients of queries, keys and values, for `heads` and key heads.
pub(super) fn attention_gradient(
    [q, k, v, d_out]: [&Tensor; 4],
    (heads, kv_heads): (usize, usize),
    segments: &[Segment],
) -> Result<(Tensor, Tensor, Tensor)> {
    let (q, k, v) = (q.detach(), k.detach(), v.detach());
    let (dq, dk, dv) = (q.zeros_like()?, k.zeros_like()?, v.zeros_like()?);
    for segment in segments.iter().filter(|segment| segment.queries > 0) {
        let (first, count) = (segment.key_start, segment.keys());
        let rows = |t: &Tensor| by_group(&t.narrow(0, first, count)?, kv_heads, 1);
        let keys = (rows(&k)?, rows(&v)?);
        let (mut found_k, mut found_v) = (keys.0.zeros_like()?, keys.1.zeros_like()?);
        for from in (0..segment.queries).step_by(BLOCK) {
            let block = (from, (from + BLOCK).min(segment.queries));
            let place = segment.query_start + from;
            let rows = |t: &Tensor| by_group(&t.narrow(0, place, block.1 - from)?, kv_heads, heads / kv_heads);
            let part = block_gradient((&rows(&q)?, &rows(d_out)?), (&keys.0, &keys.1), segment.past, block)?;
            dq.slice_set(&by_row(&part.0, heads / kv_heads)?, 0, place)?;
            let hidden = segment.queries - block.1;
            found_k = (found_k + part.1.pad_with_zeros(1, 0, hidden)?)?;
            found_v = (found_v + part.2.pad_with_zeros(1, 0, hidden)?)?;
        }
        for (sum, found) in [(&dk, found_k), (&dv, found_v)] {
            sum.slice_set(&(sum.narrow(0, first, count)? + by_row(&found, 1)?)?, 0, first)?;
        }
    }
    Ok((dq, dk, dv))
}

/// Gradients of a block of queries `q[kv, group·rows, head]`, and of the keys and values that it sees.
fn block_gradient(
    (q, d_out): (&Tensor, &Tensor),
    (k, v): (&Tensor, &Tensor),
    past: usize,
    block: (usize, usize),
) -> Result<(Tensor, Tensor, Tensor)> {
    let ((kv_heads, all, head), rows, seen) = (q.dims3()?, block.1 - block.0, past + block.1);
    let (k, v) = (k.narrow(1, 0, seen)?.contiguous()?, v.narrow(1, 0, seen)?.contiguous()?);
    let scale = 1.0 / (head as f64).sqrt();
    let scores = (q.matmul(&k.t()?)? * scale)?.reshape((kv_heads, all / rows, rows, seen))?;
    let (p, _) = softmax(&scores.broadcast_add(&mask(past, block, q)?)?)?;
    let p = p.reshape((kv_heads, all, seen))?;
    let dp = d_out.matmul(&v.t()?)?;
    let mean = (&p * &dp)?.sum_keepdim(2)?;
    let ds = ((&p * dp.broadcast_sub(&mean)?)? * scale)?;
    let across = |t: &Tensor| t.t()?.contiguous();
    Ok((ds.matmul(&k)?, across(&ds)?.matmul(q)?, across(&p)?.matmul(d_out)?))
}

/// `−log softmax(h·headᵀ)[row, id]` of each target; with `weight` also the gradient of their weighted sum by `h`.
pub(super) fn cross_entropy(
    h: &Tensor,
    head: &Tensor,
    targets: &[Target],
    weight: Option<f32>,
) -> Result<(Vec<f32>, Tensor)> {
    let (h, head) = (h.detach(), head.detach());
    let (mut losses, mut d_hidden) = (Vec::with_capacity(targets.len()), h.zeros_like()?);
    for chunk in targets.chunks(CHUNK) {
        let count = chunk.len();
        let rows = Tensor::from_iter(chunk.iter().map(|target| target.row), h.device())?;
        let ids = Tensor::from_iter(chunk.iter().map(|target| target.id), h.device())?.reshape((count, 1))?;
        let logits = h.index_select(&rows, 0)?.matmul(&head.t()?)?;
        let (p, total) = softmax(&logits)?;
        losses.extend((total - logits.gather(&ids, 1)?)?.flatten_all()?.to_vec1::<f32>()?);
        if let Some(weight) = weight {
            let less = Tensor::ones((count, 1), DType::F32, h.device())?.neg()?;
            let d_logits = (p.scatter_add(&ids, &less, 1)? * f64::from(weight))?;
            d_hidden = d_hidden.index_add(&rows, &d_logits.matmul(&head)?, 0)?;
        }
    }
    Ok((losses, d_hidden))
}

/// A number with a gradient that is already known: `value`, whose derivative by `x` is `gradient`.
pub(super) fn with_gradient(x: &Tensor, value: f64, gradient: &Tensor) -> Result<Tensor> {
    let carrier = (x * gradient.detach())?.sum_all()?;
    ((&carrier - carrier.detach())? + value)?.reshape(1)
}

#[cfg(test)]
mod tests {
    use super::super::check::random;
    use super::super::{attention, linear_cross_entropy, linear_nll, rms_norm, swiglu};
    use super::*;
    use candle_core::Var;
    use std::sync::Arc;

    fn near(a: &Tensor, b: &Tensor) {
        let worst = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 1e-4, "{worst}");
    }

    /// Gradients of `sum(f(inputs)·dy)` by the operations' own backward.
    fn own(inputs: &[&Tensor], dy: &Tensor, f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Tensor> {
        let vars: Vec<Tensor> = inputs.iter().map(|t| Var::from_tensor(t).unwrap().into_inner()).collect();
        let mut grads = (f(&vars).unwrap() * dy).unwrap().sum_all().unwrap().backward().unwrap();
        vars.iter().map(|var| grads.remove(var).unwrap()).collect()
    }

    #[test]
    fn rows_alone() {
        let (x, y, dy, w) = (random(&[7, 11], 1), random(&[7, 11], 2), random(&[7, 11], 3), random(&[11], 4));
        near(&rms_norm_gradient(&x, &w, 1e-5, &dy).unwrap(), &own(&[&x], &dy, |v| rms_norm(&v[0], &w, 1e-5))[0]);
        let expected = own(&[&x, &y], &dy, |v| swiglu(&v[0], &v[1]));
        let found = swiglu_gradient(&x, &y, &dy).unwrap();
        near(&found.0, &expected[0]);
        near(&found.1, &expected[1]);
    }

    #[test]
    fn attention_across_segments_groups_and_blocks() {
        let (long, past) = (BLOCK + 9, 3);
        let segments: Arc<[Segment]> = [
            Segment { query_start: 0, queries: long, key_start: 0, past },
            Segment { query_start: long, queries: 4, key_start: long + past, past: 0 },
        ]
        .into();
        let keys = long + past + 4;
        let (q, dy) = (random(&[long + 4, 8], 1), random(&[long + 4, 8], 4));
        let (k, v) = (random(&[keys, 4], 2), random(&[keys, 4], 3));
        let expected = own(&[&q, &k, &v], &dy, |t| attention((&t[0], &t[1], &t[2]), 4, 2, &segments));
        let found = attention_gradient([&q, &k, &v, &dy], (4, 2), &segments).unwrap();
        near(&found.0, &expected[0]);
        near(&found.1, &expected[1]);
        near(&found.2, &expected[2]);
    }

    #[test]
    fn the_loss_over_the_vocabulary() {
        let (h, head) = (random(&[9, 3], 2), random(&[11, 3], 4));
        let targets: Arc<[Target]> = (0..CHUNK as u32 + 5).map(|i| Target { row: i % 9, id: i * 5 % 11 }).collect();
        let one = Tensor::ones(1, DType::F32, h.device()).unwrap();
        let expected = own(&[&h], &one, |v| linear_cross_entropy(&v[0], &head, &targets, 0.5)).remove(0);
        let (losses, d_hidden) = cross_entropy(&h, &head, &targets, Some(0.5)).unwrap();
        near(&(&d_hidden / 100.0).unwrap(), &(expected / 100.0).unwrap());
        let known = linear_nll(&h, &head, &targets).unwrap();
        assert!(losses.iter().zip(&known).all(|(a, b)| (a - b).abs() < 1e-4));
        let carried = own(&[&h], &one, |v| with_gradient(&v[0], 2.5, &d_hidden)).remove(0);
        near(&carried, &d_hidden);
        assert_eq!(with_gradient(&h, 2.5, &d_hidden).unwrap().to_vec1::<f32>().unwrap(), [2.5]);
    }
}
