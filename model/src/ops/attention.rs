//! Causal attention with grouped heads over packed rows: every segment is a conversation of its own and sees no other.
//! The probabilities are computed again in backward, a block of queries at a time, so nothing quadratic is kept.

use super::host::{host, output, packed, slice, tensor};
use super::tensors::{attention_gradient, far};
use crate::device;
use crate::kernels::{Matrix, Threads, multiply, softmax};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::Arc;

/// Queries of one block: the probabilities of a block are all that is held at a time.
const BLOCK: usize = 64;

/// Rows that belong together. Query `i` sees the keys `0..=past + i` of its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First query row.
    pub query_start: usize,
    /// Number of queries.
    pub queries: usize,
    /// First key row.
    pub key_start: usize,
    /// Keys before the first query's own.
    pub past: usize,
}

impl Segment {
    /// Keys it has.
    #[must_use]
    pub const fn keys(&self) -> usize {
        self.past + self.queries
    }

    /// Segments of these lengths one after another, queries and keys alike.
    #[must_use]
    pub fn packed(lengths: &[usize]) -> Vec<Self> {
        let starts = lengths.iter().scan(0, |at, len| {
            let start = *at;
            *at += len;
            Some((start, *len))
        });
        starts.map(|(start, queries)| Self { query_start: start, queries, key_start: start, past: 0 }).collect()
    }
}

struct Attention {
    heads: usize,
    kv_heads: usize,
    segments: Arc<[Segment]>,
}

/// `softmax(q·kᵀ/√d)·v` for `q[n, heads·d]` and `k, v[m, kv_heads·d]`, causal within each segment.
///
/// # Errors
/// A segment is out of range, or shapes, type or device do not fit.
pub fn attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    heads: usize,
    kv_heads: usize,
    segments: &Arc<[Segment]>,
) -> Result<Tensor> {
    q.apply_op3(k, v, Attention { heads, kv_heads, segments: segments.clone() })
}

/// Operands of one call as slices.
#[derive(Clone, Copy)]
struct Operands<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    /// Width of a head.
    head: usize,
    /// Width of a query row and of a key row.
    query_width: usize,
    key_width: usize,
}

impl<'a> Operands<'a> {
    fn scale(&self) -> f32 {
        1.0 / (self.head as f32).sqrt()
    }

    /// Rows of one head inside packed rows.
    fn rows(&self, data: &'a [f32], width: usize, start: usize, count: usize, head: usize) -> Matrix<'a> {
        Matrix::strided(&data[start * width + head * self.head..], count, self.head, width)
    }

    /// The first `count` keys of a segment.
    fn keys(&self, data: &'a [f32], segment: &Segment, count: usize, kv: usize) -> Matrix<'a> {
        self.rows(data, self.key_width, segment.key_start, count, kv)
    }

    /// Probabilities of queries `from..to` of a segment, as rows of `past + to` columns.
    fn probabilities(&self, segment: &Segment, (from, to): (usize, usize), head: usize, kv: usize) -> Vec<f32> {
        let seen = segment.past + to;
        let mut p = vec![0f32; (to - from) * seen];
        let q = self.rows(self.q, self.query_width, segment.query_start + from, to - from, head);
        multiply(&mut p, seen, q, self.keys(self.k, segment, seen, kv).transposed(), false, Threads::One);
        for (i, row) in p.chunks_exact_mut(seen).enumerate() {
            let (own, hidden) = row.split_at_mut(segment.past + from + i + 1);
            own.iter_mut().for_each(|x| *x *= self.scale());
            softmax(own);
            hidden.fill(0.0);
        }
        p
    }

    /// Output `[queries, head]` of one head.
    fn forward_head(&self, segment: &Segment, head: usize, kv: usize) -> Vec<f32> {
        let mut out = vec![0f32; segment.queries * self.head];
        for (from, to) in blocks(segment.queries) {
            let p = self.probabilities(segment, (from, to), head, kv);
            let v = self.keys(self.v, segment, segment.past + to, kv);
            let p = Matrix::new(&p, to - from, segment.past + to);
            multiply(&mut out[from * self.head..], self.head, p, v, false, Threads::One);
        }
        out
    }

    /// Gradients of one group of heads: queries head by head, then keys and values.
    fn backward_group(&self, d_out: &'a [f32], segment: &Segment, kv: usize, group: usize) -> GroupGradient {
        let width = self.head;
        let mut found = GroupGradient {
            q: vec![vec![0f32; segment.queries * width]; group],
            k: vec![0f32; segment.keys() * width],
            v: vec![0f32; segment.keys() * width],
        };
        for (g, dq) in found.q.iter_mut().enumerate() {
            let head = kv * group + g;
            for (from, to) in blocks(segment.queries) {
                let (rows, seen) = (to - from, segment.past + to);
                let p = self.probabilities(segment, (from, to), head, kv);
                let start = segment.query_start + from;
                let d_rows = self.rows(d_out, self.query_width, start, rows, head);
                let p_rows = Matrix::new(&p, rows, seen);
                multiply(&mut found.v, width, p_rows.transposed(), d_rows, true, Threads::One);
                let mut ds = vec![0f32; rows * seen];
                multiply(&mut ds, seen, d_rows, self.keys(self.v, segment, seen, kv).transposed(), false, Threads::One);
                softmax_gradient(&p, &mut ds, seen, self.scale());
                let ds = Matrix::new(&ds, rows, seen);
                let dq = &mut dq[from * width..];
                multiply(dq, width, ds, self.keys(self.k, segment, seen, kv), false, Threads::One);
                let q = self.rows(self.q, self.query_width, start, rows, head);
                multiply(&mut found.k, width, ds.transposed(), q, true, Threads::One);
            }
        }
        found
    }
}

/// What one group of query heads and its key head contribute.
struct GroupGradient {
    q: Vec<Vec<f32>>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn blocks(queries: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..queries).step_by(BLOCK).map(move |from| (from, (from + BLOCK).min(queries)))
}

/// Turns the gradient of probabilities `p` into that of scores before scaling: `p·(dp − Σ p·dp)·scale`, by row.
fn softmax_gradient(p: &[f32], dp: &mut [f32], width: usize, scale: f32) {
    for (p, dp) in p.chunks_exact(width).zip(dp.chunks_exact_mut(width)) {
        let mean: f32 = p.iter().zip(dp.iter()).map(|(p, dp)| p * dp).sum();
        dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - mean) * scale);
    }
}

/// Adds rows of one head to packed rows.
fn scatter(dst: &mut [f32], width: usize, start: usize, column: usize, rows: &[f32], head: usize) {
    for (i, row) in rows.chunks_exact(head).enumerate() {
        let at = (start + i) * width + column;
        dst[at..at + head].iter_mut().zip(row).for_each(|(dst, x)| *dst += x);
    }
}

impl Attention {
    /// Checks shapes and segments; gives the width of a head.
    fn head(&self, q: (usize, usize), k: (usize, usize), v: (usize, usize)) -> Result<usize> {
        let head = q.1 / self.heads;
        if head * self.heads != q.1 || head * self.kv_heads != k.1 || v != k {
            bail!("heads do not divide the rows of attention")
        }
        let fits = |s: &Segment| s.query_start + s.queries <= q.0 && s.key_start + s.keys() <= k.0;
        if !self.segments.iter().all(fits) {
            bail!("a segment reaches beyond the rows of attention")
        }
        Ok(head)
    }

    /// Every segment with every one of `heads`.
    fn tasks(&self, heads: usize) -> Vec<(Segment, usize)> {
        self.segments.iter().flat_map(|s| (0..heads).map(move |head| (*s, head))).collect()
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, query_width), (_, key_width)) = (packed(l1)?, packed(l2)?);
        let head = self.head(packed(l1)?, packed(l2)?, packed(l3)?)?;
        let (q, k, v) = (slice(s1, l1)?, slice(s2, l2)?, slice(s3, l3)?);
        let all = Operands { q, k, v, head, query_width, key_width };
        let group = self.heads / self.kv_heads;
        let tasks = self.tasks(self.heads);
        let found: Vec<Vec<f32>> =
            tasks.par_iter().map(|(segment, head)| all.forward_head(segment, *head, head / group)).collect();
        let mut out = vec![0f32; n * query_width];
        for ((segment, head), rows) in tasks.iter().zip(&found) {
            scatter(&mut out, query_width, segment.query_start, head * all.head, rows, all.head);
        }
        output(out, (n, query_width))
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.head(packed(l1)?, packed(l2)?, packed(l3)?)?;
        let operands = [(s1, l1), (s2, l2), (s3, l3)];
        let out = device::attention(operands, self.heads, self.kv_heads, &self.segments)?;
        Ok((out, l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        if far(q) {
            let heads = (self.heads, self.kv_heads);
            let (dq, dk, dv) = attention_gradient([q, k, v, d_out], heads, &self.segments)?;
            return Ok((Some(dq), Some(dk), Some(dv)));
        }
        let ((n, query_width), (m, key_width), device) = (q.dims2()?, k.dims2()?, q.device());
        let head = self.head((n, query_width), (m, key_width), v.dims2()?)?;
        let d_out = d_out.contiguous()?;
        let (q, k, v, d_out) = (host(q)?, host(k)?, host(v)?, host(&d_out)?);
        let all = Operands { q: &q, k: &k, v: &v, head, query_width, key_width };
        let d_out: &[f32] = &d_out;
        let group = self.heads / self.kv_heads;
        let tasks = self.tasks(self.kv_heads);
        let found: Vec<GroupGradient> =
            tasks.par_iter().map(|(segment, kv)| all.backward_group(d_out, segment, *kv, group)).collect();
        let (mut dq, mut dk, mut dv) =
            (vec![0f32; n * query_width], vec![0f32; m * key_width], vec![0f32; m * key_width]);
        for ((segment, kv), part) in tasks.iter().zip(&found) {
            for (g, rows) in part.q.iter().enumerate() {
                let column = (kv * group + g) * all.head;
                scatter(&mut dq, query_width, segment.query_start, column, rows, all.head);
            }
            scatter(&mut dk, key_width, segment.key_start, kv * all.head, &part.k, all.head);
            scatter(&mut dv, key_width, segment.key_start, kv * all.head, &part.v, all.head);
        }
        let keys = (m, key_width);
        let found = |data, shape| tensor(data, shape, device).map(Some);
        Ok((found(dq, (n, query_width))?, found(dk, keys)?, found(dv, keys)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{gradients_hold, random};
    use super::*;

    fn run(q: &Tensor, k: &Tensor, v: &Tensor, segments: &[Segment]) -> Vec<Vec<f32>> {
        attention((q, k, v), 4, 2, &segments.into()).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn gradients_hold_across_segments_and_groups() {
        let segments: Arc<[Segment]> = Segment::packed(&[3, 2]).into();
        let inputs = [random(&[5, 12], 1), random(&[5, 6], 2), random(&[5, 6], 3)];
        gradients_hold(&inputs, |v| attention((&v[0], &v[1], &v[2]), 4, 2, &segments));
        let later: Arc<[Segment]> = [Segment { query_start: 0, queries: 5, key_start: 0, past: 2 }].into();
        let inputs = [random(&[5, 12], 1), random(&[7, 6], 2), random(&[7, 6], 3)];
        gradients_hold(&inputs, |v| attention((&v[0], &v[1], &v[2]), 4, 2, &later));
    }

    #[test]
    fn blocks_give_what_the_definition_gives() {
        let n = BLOCK + 7;
        let (q, k, v) = (random(&[n, 8], 1), random(&[n, 4], 2), random(&[n, 4], 3));
        let found = run(&q, &k, &v, &Segment::packed(&[n]));
        let rows = |t: &Tensor| t.to_vec2::<f32>().unwrap();
        let (q, k, v) = (rows(&q), rows(&k), rows(&v));
        for i in 0..n {
            for head in 0..4 {
                let (qc, kc) = (head * 2, head / 2 * 2);
                let score =
                    |j: usize| f64::from((q[i][qc] * k[j][kc] + q[i][qc + 1] * k[j][kc + 1]) / 2f32.sqrt()).exp();
                let total: f64 = (0..=i).map(score).sum();
                let expected: f64 = (0..=i).map(|j| score(j) * f64::from(v[j][kc])).sum::<f64>() / total;
                assert!((f64::from(found[i][qc]) - expected).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn no_segment_sees_another_and_no_query_its_future() {
        let (q, k, v) = (random(&[6, 8], 1), random(&[6, 4], 2), random(&[6, 4], 3));
        let apart = run(&q, &k, &v, &Segment::packed(&[4, 2]));
        let other = Tensor::cat(&[k.narrow(0, 0, 3).unwrap(), random(&[3, 4], 9)], 0).unwrap();
        let changed = run(&q, &other, &v, &Segment::packed(&[4, 2]));
        assert_eq!(apart[..3], changed[..3]);
        let tail = |t: &Tensor| t.narrow(0, 4, 2).unwrap().contiguous().unwrap();
        assert_eq!(apart[4..], run(&tail(&q), &tail(&k), &tail(&v), &Segment::packed(&[2])));
        assert!(attention((&q, &k, &v), 4, 2, &Segment::packed(&[4, 3]).into()).is_err());
    }
}
