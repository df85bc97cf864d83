//! The way of the rows of one pass through the layers. Refuses to know slots that are not in it.
//!
//! For each layer, `n` being the rows: norm `[n, hidden]`; queries, keys, values in one fork; turning and keeping; attention;
//! output, added to the stream; norm; gate and up in one fork `[n, ffn]` each; gated activation; down, added to the stream.
//! Adapters add their low-rank parts to a tile of an output on the thread that has just computed it.

use super::executor::{Adapted, Executor, Group};
use super::mixture::{PackedMixture, Site};
use crate::adapter::{ExpertLoad, Linear, MAX_EXPERTS};
use crate::infer::compute::{ComputeError, Loads, Span};
use crate::kernels::{
    Activations, After, Instructions, LowRank, OutRows, PackedMatrix, Pool, Product, Run, dots, fill_rows, norm_rows,
    product, product_columns, products, softmax, swiglu_rows,
};
use std::ops::Range;
use std::sync::Arc;

/// Rows of a group up to which only the tiles of a stack are computed that some row needs.
const SPARSE_ROWS: usize = 4;
/// Bytes of needed tiles from which on two threads are faster than one.
const FORK_BYTES: usize = 24 * 1024;

/// One pass under way.
pub(super) struct Pass<'a> {
    executor: &'a mut Executor,
    spans: &'a [Span<'a>],
    rows: usize,
}

/// The generation of a span, as the kernels need it.
fn packed<'a>(spans: &'a [Span<'_>], at: usize) -> Option<&'a PackedMixture> {
    spans[at].adapter.and_then(|adapter| adapter.packed.as_ref())
}

impl<'a> Pass<'a> {
    /// Finds the groups of rows with one generation.
    pub(super) fn new(executor: &'a mut Executor, spans: &'a [Span<'a>], rows: usize) -> Result<Self, ComputeError> {
        let Adapted { groups, h, shared, routed, gates, .. } = &mut executor.buffers.adapted;
        groups.clear();
        shared.clear();
        let (mut first_row, mut routed_at, mut h_at) = (0, 0, 0);
        for (at, span) in spans.iter().enumerate() {
            let count = span.ids.len();
            if let Some(adapter) = span.adapter {
                let Some(mixture) = &adapter.packed else {
                    return Err(ComputeError::Malformed("the adapter was not made for packed weights"));
                };
                let joins = groups.last_mut().filter(|group: &&mut Group| {
                    let same = spans[group.span].adapter.is_some_and(|other| Arc::ptr_eq(other, adapter));
                    same && group.first_row + group.rows == first_row
                });
                match joins {
                    Some(group) => (group.rows, group.spans) = (group.rows + count, group.spans + 1),
                    None => groups.push(Group { span: at, spans: 1, first_row, rows: count, routed_at, h_at }),
                }
                routed_at += count * mixture.routed_runs();
                h_at += count * mixture.widest();
            }
            let run = packed(spans, at).map_or(Run::default(), PackedMixture::shared_run);
            shared.extend(std::iter::repeat_n(run, count));
            first_row += count;
        }
        h.resize(h.len().max(h_at), 0.0);
        routed.resize(routed.len().max(routed_at), Run::default());
        gates.resize(gates.len().max(routed_at), 0.0);
        Ok(Self { executor, spans, rows })
    }

    /// Computes all layers; how many rows got logits.
    pub(super) fn run(&mut self, mut loads: Loads<'_>) -> usize {
        let Executor { weights, buffers, attention, pool, .. } = &mut *self.executor;
        let hidden = weights.config.hidden;
        let ids = self.spans.iter().flat_map(|span| span.ids);
        for (id, x) in ids.zip(buffers.x.chunks_exact_mut(hidden)) {
            weights.embedding.unpack_row(*id as usize, x);
        }
        attention.plan(&buffers.spans, pool.threads());
        for layer in 0..weights.config.layers {
            self.attend(layer);
            self.feed_forward(layer, &mut loads);
        }
        self.logits()
    }

    fn attend(&mut self, layer: usize) {
        let (rows, spans) = (self.rows, self.spans);
        let Executor { weights, instructions, pool, stores, attention, buffers: b, .. } = &mut *self.executor;
        let (config, instructions, this) = (&weights.config, *instructions, &weights.layers[layer]);
        let (hidden, width, kv) = (config.hidden, config.query_width(), config.kv_width());
        let eps = config.rms_eps as f32;
        let x = &mut b.x[..rows * hidden];
        norm_rows(pool, instructions, x, (&this.attention_norm, eps), &mut b.seen[..rows * hidden], &mut b.input);
        b.adapted.narrow(pool, instructions, spans, layer, Site::Attention, &b.input);
        let (q, k, v) = (&mut b.q[..rows * width], &mut b.k[..rows * kv], &mut b.v[..rows * kv]);
        b.adapted.products(
            (pool, instructions, spans, layer, Site::Attention),
            (&b.input, rows),
            [
                (this.linear(Linear::Query), OutRows::new(q, width), false),
                (this.linear(Linear::Key), OutRows::new(k, kv), false),
                (this.linear(Linear::Value), OutRows::new(v, kv), false),
            ],
        );
        attention.keep(pool, instructions, layer, stores, &weights.turns, (q, k, v));
        let mixed = &mut b.mixed[..rows * width];
        attention.attend(pool, instructions, layer, stores, q, mixed);
        fill_rows(pool, instructions, mixed, width, &mut b.mixed_input);
        b.adapted.narrow(pool, instructions, spans, layer, Site::Output, &b.mixed_input);
        b.adapted.products(
            (pool, instructions, spans, layer, Site::Output),
            (&b.mixed_input, rows),
            [(this.linear(Linear::Output), OutRows::new(x, hidden), true)],
        );
    }

    fn feed_forward(&mut self, layer: usize, loads: &mut Loads<'_>) {
        let (rows, spans) = (self.rows, self.spans);
        let Executor { weights, instructions, pool, buffers: b, .. } = &mut *self.executor;
        let (config, instructions, this) = (&weights.config, *instructions, &weights.layers[layer]);
        let (hidden, ffn, eps) = (config.hidden, config.ffn, config.rms_eps as f32);
        let (x, seen) = (&mut b.x[..rows * hidden], &mut b.seen[..rows * hidden]);
        norm_rows(pool, instructions, x, (&this.ffn_norm, eps), seen, &mut b.input);
        b.adapted.route(instructions, spans, layer, (seen, hidden), loads);
        b.adapted.narrow(pool, instructions, spans, layer, Site::Inner, &b.input);
        let (gate, up) = (&mut b.gate[..rows * ffn], &mut b.up[..rows * ffn]);
        b.adapted.products(
            (pool, instructions, spans, layer, Site::Inner),
            (&b.input, rows),
            [
                (this.linear(Linear::Gate), OutRows::new(gate, ffn), false),
                (this.linear(Linear::Up), OutRows::new(up, ffn), false),
            ],
        );
        swiglu_rows(pool, instructions, (gate, up), ffn, &mut b.inner);
        b.adapted.narrow(pool, instructions, spans, layer, Site::Down, &b.inner);
        b.adapted.products(
            (pool, instructions, spans, layer, Site::Down),
            (&b.inner, rows),
            [(this.linear(Linear::Down), OutRows::new(x, hidden), true)],
        );
    }

    /// Logits of the rows that get some.
    fn logits(&mut self) -> usize {
        let Executor { weights, instructions, pool, buffers: b, .. } = &mut *self.executor;
        let (config, instructions) = (&weights.config, *instructions);
        let (hidden, vocab) = (config.hidden, config.vocab);
        let mut rows = 0;
        for (span, place) in self.spans.iter().zip(&b.spans) {
            let count = span.logits.count(place.rows);
            let from = (place.first_row + place.rows - count) * hidden;
            b.last[rows * hidden..][..count * hidden].copy_from_slice(&b.x[from..][..count * hidden]);
            rows += count;
        }
        if rows > 0 {
            let (last, seen) = (&b.last[..rows * hidden], &mut b.seen[..rows * hidden]);
            norm_rows(pool, instructions, last, (&weights.norm, config.rms_eps as f32), seen, &mut b.last_input);
            let out = OutRows::new(&mut b.logits[..rows * vocab], vocab);
            let mut all = [Product { weights: weights.head(), out, accumulate: false, after: None }];
            products(pool, instructions, &b.last_input, 0..rows, &mut all);
        }
        rows
    }
}

/// Threads, instructions, spans, layer and input of some products.
type At<'a, 'b> = (&'a mut Pool, Instructions, &'a [Span<'b>], usize, Site);

impl Adapted {
    /// The router's choice for the rows of every group, counted for the span of each row.
    fn route(
        &mut self,
        instructions: Instructions,
        spans: &[Span<'_>],
        layer: usize,
        (seen, hidden): (&[f32], usize),
        loads: &mut Loads<'_>,
    ) {
        for group in &self.groups {
            let Some(mixture) = packed(spans, group.span) else { continue };
            let (per_row, mut row) = (mixture.routed_runs(), 0);
            for (at, span) in spans[group.span..][..group.spans].iter().enumerate() {
                let mut load = loads.get_mut(group.span + at);
                for _ in span.ids {
                    let from = group.routed_at + row * per_row;
                    let (runs, gates) = (&mut self.routed[from..][..per_row], &mut self.gates[from..][..per_row]);
                    let x = &seen[(group.first_row + row) * hidden..][..hidden];
                    choose(instructions, mixture, layer, x, runs, gates, load.as_deref_mut());
                    row += 1;
                }
            }
        }
    }

    /// The narrow middle of a site for the rows of every group, gated and scaled.
    fn narrow(
        &mut self,
        pool: &mut Pool,
        instructions: Instructions,
        spans: &[Span<'_>],
        layer: usize,
        site: Site,
        input: &Activations,
    ) {
        for at in 0..self.groups.len() {
            let group = self.groups[at];
            let Some(mixture) = packed(spans, group.span) else { continue };
            let (a, stack) = (&mixture.site(layer, site).a, mixture.site(layer, site).stack);
            self.needed_tiles(&group, mixture, site, stack, a);
            let (width, rows) = (a.rows(), group.first_row..group.first_row + group.rows);
            let h = &mut self.h[group.h_at..][..group.rows * width];
            stack_product(pool, instructions, (input, rows), a, &self.tiles, OutRows::new(h, width));
            let per_row = if site.is_routed() { mixture.routed_runs() } else { 1 };
            for (row, h) in h.chunks_exact_mut(width).enumerate() {
                for h in h.chunks_exact_mut(stack) {
                    for i in 0..per_row {
                        let from = group.routed_at + row * mixture.routed_runs() + i;
                        let (run, gate) = if site.is_routed() {
                            (self.routed[from], self.gates[from])
                        } else {
                            (self.shared[group.first_row + row], 1.0)
                        };
                        let factor = mixture.scale * gate;
                        h[run.first..run.first + run.len].iter_mut().for_each(|h| *h *= factor);
                    }
                }
            }
        }
    }

    /// The tiles of a stack that some row of a small group needs; all for a large one.
    fn needed_tiles(&mut self, group: &Group, mixture: &PackedMixture, site: Site, stack: usize, a: &PackedMatrix) {
        self.tiles.clear();
        let all = a.row_tiles();
        if group.rows > SPARSE_ROWS || !site.is_routed() {
            self.tiles.extend(0..all);
            return;
        }
        let size = a.rows().div_ceil(all).max(16);
        let runs = &self.routed[group.routed_at..][..group.rows * mixture.routed_runs()];
        let needs = |tile: usize| {
            let tile = tile * size..(tile + 1) * size;
            (0..a.rows() / stack).any(|part| {
                runs.iter().any(|run| {
                    let from = part * stack + run.first;
                    from < tile.end && tile.start < from + run.len
                })
            })
        };
        self.tiles.extend((0..all).filter(|tile| needs(*tile)));
    }

    /// Products of one input, each followed by the low-rank parts of every group.
    fn products<const N: usize>(
        &self,
        (pool, instructions, spans, layer, site): At<'_, '_>,
        (input, rows): (&Activations, usize),
        all: [(&PackedMatrix, OutRows<'_>, bool); N],
    ) {
        let after: [_; N] = std::array::from_fn(|linear| {
            move |tiles: Range<usize>, out: &mut OutRows<'_>| {
                self.widen(instructions, spans, layer, (site, linear), tiles, out);
            }
        });
        let mut at = 0;
        let mut all = all.map(|(weights, out, accumulate)| {
            at += 1;
            let after = (!self.groups.is_empty()).then_some(&after[at - 1] as &After<'_>);
            Product { weights, out, accumulate, after }
        });
        products(pool, instructions, input, 0..rows, &mut all);
    }

    /// Adds the low-rank parts of every group to some tiles of an output.
    fn widen(
        &self,
        instructions: Instructions,
        spans: &[Span<'_>],
        layer: usize,
        (site, linear): (Site, usize),
        tiles: Range<usize>,
        out: &mut OutRows<'_>,
    ) {
        for group in &self.groups {
            let Some(mixture) = packed(spans, group.span) else { continue };
            let parts = mixture.site(layer, site);
            let stride = parts.a.rows();
            let (runs, runs_per_row) = if site.is_routed() {
                let per_row = mixture.routed_runs();
                (&self.routed[group.routed_at..][..group.rows * per_row], per_row)
            } else {
                (&self.shared[group.first_row..][..group.rows], 1)
            };
            let h = &self.h[group.h_at + linear * parts.stack..];
            let low = LowRank { h, stride, runs, runs_per_row };
            product_columns(instructions, &low, &parts.b[linear], tiles.clone(), &mut out.from_row(group.first_row));
        }
    }
}

/// Some tiles of the product with a stack, on one thread when they are few.
fn stack_product(
    pool: &mut Pool,
    instructions: Instructions,
    (input, rows): (&Activations, Range<usize>),
    a: &PackedMatrix,
    tiles: &[usize],
    mut out: OutRows<'_>,
) {
    let few = tiles.len() < a.row_tiles() || tiles.len() * a.bytes_len() / a.row_tiles() < FORK_BYTES;
    if few && rows.len() <= SPARSE_ROWS {
        for tile in tiles {
            product(instructions, input, rows.clone(), a, *tile..tile + 1, &mut out, false);
        }
    } else {
        let mut all = [Product { weights: a, out, accumulate: false, after: None }];
        products(pool, instructions, input, rows, &mut all);
    }
}

/// The choice of one row: its runs of columns, experts in ascending order, and what each is multiplied by. The earlier of
/// equal experts is taken, as in training.
fn choose(
    instructions: Instructions,
    mixture: &PackedMixture,
    layer: usize,
    x: &[f32],
    runs: &mut [Run],
    gates: &mut [f32],
    load: Option<&mut ExpertLoad>,
) {
    (runs[0], gates[0]) = (mixture.shared_run(), 1.0);
    if mixture.experts == 0 {
        return;
    }
    let mut logits = [0f32; MAX_EXPERTS];
    let logits = &mut logits[..mixture.experts];
    dots(instructions, x, mixture.router(layer), logits);
    let mut taken = 0u64;
    for _ in 0..mixture.top_k {
        let free = (0..mixture.experts).filter(|e| taken >> e & 1 == 0);
        let best = free.reduce(|best, e| if logits[e].total_cmp(&logits[best]).is_gt() { e } else { best });
        taken |= best.map_or(0, |e| 1 << e);
    }
    let chosen = (0..mixture.experts).filter(|e| taken >> e & 1 == 1);
    for (i, expert) in chosen.clone().enumerate() {
        (runs[1 + i], gates[1 + i]) = (mixture.expert_run(expert), logits[expert]);
    }
    softmax(&mut gates[1..]);
    let Some(load) = load else { return };
    load.chosen.resize(mixture.experts, 0);
    load.weight.resize(mixture.experts, 0.0);
    for (i, expert) in chosen.enumerate() {
        load.chosen[expert] += 1;
        load.weight[expert] += f64::from(gates[1 + i]);
    }
}
