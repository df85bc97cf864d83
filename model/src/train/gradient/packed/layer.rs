//! One decoder layer, forward and back, on rows that are kept between the two. Refuses to know how experts are chosen and
//! what lies above the last layer.

use super::element::{Element, Rows, stride};
use super::frozen::FrozenLayer;
use super::maps::{DOWN, GATE_UP, Low, Machine, Maps, Narrow, OUTPUT, QUERY_KEY_VALUE};
use super::trained::TrainedLayer;
use crate::adapter::Linear;
use crate::config::BackboneConfig;
use crate::kernels::Turns;
use crate::kernels::backward::attention::Attention;
use crate::kernels::backward::{Span, SpanMut, norm, rope, swiglu};
use crate::kernels::half::Out;

/// What backward needs of one layer.
pub(super) struct LayerRows<E> {
    /// One over the root mean square before attention, and before the feed-forward part.
    inverses: [Vec<f32>; 2],
    seen: Rows<E>,
    heads: [Rows<E>; 3],
    mixed: Rows<E>,
    /// Logarithms of the sums of each row and head's scores.
    lse: Vec<f32>,
    /// The stream behind attention.
    middle: Vec<f32>,
    pub(super) seen_again: Rows<E>,
    gate: Rows<E>,
    up: Rows<E>,
    inner: Rows<E>,
    low: Vec<Option<Low<E>>>,
}

impl<E: Element> LayerRows<E> {
    /// Room for `rows` rows of a layer whose low-rank rows are those of `trained`.
    pub(super) fn new(config: &BackboneConfig, rows: usize, trained: Option<&TrainedLayer>) -> Self {
        let make = |width| Rows::new(rows, width);
        let low = |linear: &Linear| {
            let pair = trained?.pair(*linear)?;
            Some(Low::new(rows, pair.sides.1, pair.sides.1 > pair.shared))
        };
        Self {
            inverses: [vec![0.0; rows], vec![0.0; rows]],
            seen: make(config.hidden),
            heads: [make(config.query_width()), make(config.kv_width()), make(config.kv_width())],
            mixed: make(config.query_width()),
            lse: vec![0.0; rows * config.heads],
            middle: vec![0.0; rows * config.hidden],
            seen_again: make(config.hidden),
            gate: make(config.ffn),
            up: make(config.ffn),
            inner: make(config.ffn),
            low: Linear::ALL.iter().map(low).collect(),
        }
    }
}

/// Bytes that one row of a layer takes between forward and backward; `stack` gives the low-rank columns of each map.
pub(super) fn row_bytes<E>(config: &BackboneConfig, stack: impl Fn(Linear) -> (usize, bool)) -> usize {
    let kept = 2 * stride(config.hidden)
        + 2 * stride(config.query_width())
        + 2 * stride(config.kv_width())
        + 3 * stride(config.ffn);
    let low = |linear: &Linear| match stack(*linear) {
        (0, _) => 0,
        (width, routed) => stride(width) * if routed { 2 } else { 1 },
    };
    let low: usize = Linear::ALL.iter().map(low).sum();
    (kept + low) * size_of::<E>() + (config.hidden + config.heads + 2) * size_of::<f32>()
}

/// Rows that live for one layer.
pub(super) struct Scratch<E> {
    pub(super) narrow: Narrow<E>,
    pub(super) attention: Attention,
    /// The stream's gradient, rounded.
    d_rounded: Rows<E>,
    d_heads: [Rows<E>; 3],
    d_mixed: Rows<E>,
    d_inner: Rows<E>,
    d_gate: Rows<E>,
    d_up: Rows<E>,
    /// Gradient of normed rows.
    d_seen: Vec<f32>,
}

impl<E: Element> Scratch<E> {
    pub(super) fn new(config: &BackboneConfig, rows: usize, stack: usize, attention: Attention) -> Self {
        let make = |width| Rows::new(rows, width);
        Self {
            narrow: Narrow::new(rows, stack),
            attention,
            d_rounded: make(config.hidden),
            d_heads: [make(config.query_width()), make(config.kv_width()), make(config.kv_width())],
            d_mixed: make(config.query_width()),
            d_inner: make(config.ffn),
            d_gate: make(config.ffn),
            d_up: make(config.ffn),
            d_seen: vec![0.0; rows * config.hidden],
        }
    }
}

/// Bytes of one row of [`Scratch`] but for attention.
pub(super) const fn scratch_row_bytes<E>(config: &BackboneConfig, stack: usize) -> usize {
    let kept = stride(config.hidden)
        + 2 * stride(config.query_width())
        + 2 * stride(config.kv_width())
        + 3 * stride(config.ffn)
        + 6 * stride(stack);
    kept * size_of::<E>() + config.hidden * size_of::<f32>()
}

/// A layer and the rows of a pass.
pub(super) struct Layer<'a> {
    pub(super) config: &'a BackboneConfig,
    pub(super) turns: &'a Turns,
    pub(super) frozen: &'a FrozenLayer,
    /// Lengths of the packed conversations.
    pub(super) documents: &'a [usize],
    pub(super) positions: &'a [u32],
}

impl Layer<'_> {
    const fn rows(&self) -> usize {
        self.positions.len()
    }

    fn stream<'b>(&self, stream: &'b [f32]) -> Span<'b, f32> {
        Span::new(&stream[..self.rows() * self.config.hidden], self.config.hidden, self.config.hidden)
    }

    fn stream_mut<'b>(&self, stream: &'b mut [f32]) -> SpanMut<'b, f32> {
        SpanMut::new(&mut stream[..self.rows() * self.config.hidden], self.config.hidden, self.config.hidden)
    }

    /// Attention: from the stream `x` to the stream behind it and its norm.
    pub(super) fn attend<E: Element>(
        &self,
        machine: &mut Machine,
        maps: &Maps<'_>,
        x: &[f32],
        kept: &mut LayerRows<E>,
        scratch: &mut Scratch<E>,
    ) {
        let (rows, eps, set) = (self.rows(), self.config.rms_eps as f32, machine.set);
        let scale = (&self.frozen.attention_norm[..], eps);
        let inverse = &mut kept.inverses[0][..rows];
        norm::forward(&mut machine.pool, set, self.stream(x), scale, kept.seen.span_mut(rows), inverse);
        let mut outs = kept.heads.each_mut().map(|rows| {
            let (out, stride) = rows.out();
            (Some(out), stride)
        });
        let low = (&mut kept.low[..], &mut scratch.narrow);
        maps.forward(machine, QUERY_KEY_VALUE, &kept.seen, low, &mut outs);
        for heads in &mut kept.heads[..2] {
            let span = heads.span_mut(rows);
            rope::turn(&mut machine.pool, set, span, self.turns, self.positions, rope::Way::Forward);
        }
        let [q, k, v] = kept.heads.each_ref().map(|rows_of| rows_of.span(rows));
        let lse = &mut kept.lse[..rows * self.config.heads];
        let out = kept.mixed.span_mut(rows);
        scratch.attention.forward(&mut machine.pool, set, [q, k, v], self.documents, out, lse);
        let hidden = self.config.hidden;
        copy(machine, x, &mut kept.middle[..rows * hidden]);
        let low = (&mut kept.low[..], &mut scratch.narrow);
        maps.forward(machine, OUTPUT, &kept.mixed, low, &mut [(Some(Out::Add(&mut kept.middle)), hidden)]);
        let scale = (&self.frozen.ffn_norm[..], eps);
        let inverse = &mut kept.inverses[1][..rows];
        let seen = kept.seen_again.span_mut(rows);
        norm::forward(&mut machine.pool, set, self.stream(&kept.middle), scale, seen, inverse);
    }

    /// The feed-forward part, from the normed stream behind attention to the stream behind the layer.
    pub(super) fn feed<E: Element>(
        &self,
        machine: &mut Machine,
        maps: &Maps<'_>,
        kept: &mut LayerRows<E>,
        scratch: &mut Scratch<E>,
        next: &mut [f32],
    ) {
        let (rows, hidden) = (self.rows(), self.config.hidden);
        let mut outs = [&mut kept.gate, &mut kept.up].map(|rows| {
            let (out, stride) = rows.out();
            (Some(out), stride)
        });
        let low = (&mut kept.low[..], &mut scratch.narrow);
        maps.forward(machine, GATE_UP, &kept.seen_again, low, &mut outs);
        let (gate, up) = (kept.gate.span(rows), kept.up.span(rows));
        swiglu::forward(&mut machine.pool, machine.set, (gate, up), kept.inner.span_mut(rows));
        copy(machine, &kept.middle, &mut next[..rows * hidden]);
        let low = (&mut kept.low[..], &mut scratch.narrow);
        maps.forward(machine, DOWN, &kept.inner, low, &mut [(Some(Out::Add(next)), hidden)]);
    }

    /// Back through the feed-forward maps: from the gradient `d` of the stream behind the layer to that of the normed
    /// stream, which stays in `scratch`, and of the gates.
    pub(super) fn feed_back<E: Element>(
        &self,
        machine: &mut Machine,
        maps: &Maps<'_>,
        (kept, scratch): (&LayerRows<E>, &mut Scratch<E>),
        d: &[f32],
        (sums, d_gates): (&mut [Vec<f32>], &mut [f32]),
    ) {
        let (rows, hidden) = (self.rows(), self.config.hidden);
        let Scratch { narrow, d_rounded, d_inner, d_gate, d_up, d_seen, .. } = scratch;
        round(machine, &d[..rows * hidden], d_rounded);
        let low = (&kept.low[..], &mut *narrow);
        maps.backward(machine, DOWN, (&kept.inner, &[d_rounded]), low, (sums, d_gates), d_inner.out());
        let (gate, up) = (kept.gate.span(rows), kept.up.span(rows));
        let (to_gate, to_up) = (d_gate.span_mut(rows), d_up.span_mut(rows));
        swiglu::backward(&mut machine.pool, machine.set, (gate, up), d_inner.span(rows), (to_gate, to_up), None);
        let low = (&kept.low[..], narrow);
        let dx = (Out::Set(d_seen), hidden);
        maps.backward(machine, GATE_UP, (&kept.seen_again, &[d_gate, d_up]), low, (sums, d_gates), dx);
    }

    /// The gradient of the normed stream behind attention, between [`Layer::feed_back`] and [`Layer::attend_back`].
    pub(super) fn d_seen<'b, E: Element>(&self, scratch: &'b mut Scratch<E>) -> SpanMut<'b, f32> {
        self.stream_mut(&mut scratch.d_seen)
    }

    /// Back through both norms and attention: `d` becomes the gradient of the stream `x` before the layer.
    pub(super) fn attend_back<E: Element>(
        &self,
        machine: &mut Machine,
        maps: &Maps<'_>,
        (kept, scratch): (&LayerRows<E>, &mut Scratch<E>),
        (x, d): (&[f32], &mut [f32]),
        sums: &mut [Vec<f32>],
    ) {
        let (rows, hidden, set) = (self.rows(), self.config.hidden, machine.set);
        let Scratch { narrow, attention, d_rounded, d_heads, d_mixed, d_seen, .. } = scratch;
        let scale = (&self.frozen.ffn_norm[..], &kept.inverses[1][..rows]);
        let (middle, dy) = (self.stream(&kept.middle), self.stream(d_seen));
        norm::backward(&mut machine.pool, set, middle, scale, dy, self.stream_mut(d));
        round(machine, &d[..rows * hidden], d_rounded);
        let low = (&kept.low[..], &mut *narrow);
        maps.backward(machine, OUTPUT, (&kept.mixed, &[d_rounded]), low, (sums, &mut []), d_mixed.out());
        let [q, k, v] = kept.heads.each_ref().map(|heads| heads.span(rows));
        let lse = &kept.lse[..rows * self.config.heads];
        let rows_of = [q, k, v, kept.mixed.span(rows)];
        let to = d_heads.each_mut().map(|d| d.span_mut(rows));
        attention.backward(&mut machine.pool, set, rows_of, lse, d_mixed.span(rows), self.documents, to);
        for heads in &mut d_heads[..2] {
            let span = heads.span_mut(rows);
            rope::turn(&mut machine.pool, set, span, self.turns, self.positions, rope::Way::Back);
        }
        let low = (&kept.low[..], narrow);
        let [dq, dk, dv] = &*d_heads;
        let dx = (Out::Set(d_seen), hidden);
        maps.backward(machine, QUERY_KEY_VALUE, (&kept.seen, &[dq, dk, dv]), low, (sums, &mut []), dx);
        let scale = (&self.frozen.attention_norm[..], &kept.inverses[0][..rows]);
        norm::backward(&mut machine.pool, set, self.stream(x), scale, self.stream(d_seen), self.stream_mut(d));
    }
}

/// Numbers that one task copies or rounds.
const TASK: usize = 32 << 10;

/// Copies as many numbers as `to` has, spread over the threads.
pub(super) fn copy(machine: &mut Machine, from: &[f32], to: &mut [f32]) {
    machine.pool.run_pieces(to, TASK, &|task, to| to.copy_from_slice(&from[task * TASK..][..to.len()]));
}

/// Rounds rows of the width of `to`, spread over the threads.
pub(super) fn round<E: Element>(machine: &mut Machine, from: &[f32], to: &mut Rows<E>) {
    let width = to.width();
    let (data, stride) = to.raw_mut();
    let rows = (TASK / stride).max(1);
    machine.pool.run_pieces(&mut data[..from.len() / width * stride], rows * stride, &|task, to| {
        let from = from[task * rows * width..].chunks_exact(width);
        from.zip(to.chunks_exact_mut(stride)).for_each(|(from, to)| E::round(from, &mut to[..width]));
    });
}
