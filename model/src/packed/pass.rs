//! The way of the rows of one pass through the layers. Refuses to know slots that are not in it.
//!
//! For each layer, `n` being the rows: norm `[n, hidden]`; queries, keys, values in one fork; turning and keeping; attention;
//! output, added to the stream; norm; gate and up in one fork `[n, ffn]` each; gated activation; down, added to the stream.
//! Adapters add their low-rank parts to a tile of an output on the thread that has just computed it.

use super::executor::{Adapted, Executor, Group};
use super::mixture::{AdapterSite, PackedMixture, Site};
use super::session::hear;
use crate::adapter::route::{Decision, add_prior};
use crate::adapter::{ExpertLoad, Linear, MAX_EXPERTS};
use crate::infer::compute::{ComputeError, Loads, Span};
use crate::kernels::{
    Activations, After, Instructions, LowRank, Middle, OutRows, PackedMatrix, Pool, Product, Run, Stack, TILE, dots,
    fill_rows, norm_rows, product_columns, products, swiglu_rows,
};
use std::ops::Range;
use std::sync::Arc;

/// Rows of a group up to which only the tiles of a stack are computed that some row needs.
const SPARSE_ROWS: usize = 4;

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
        let (context, lens) = (executor.weights.config.context, &executor.buffers.spans);
        let Adapted { groups, h, uses, factors, priors, .. } = &mut executor.buffers.adapted;
        groups.clear();
        let (mut first_row, mut parts_at, mut h_at) = (0, 0, 0);
        for (at, span) in spans.iter().enumerate() {
            let count = span.ids.len();
            if let Some(adapter) = span.adapter {
                let Some(mixture) = &adapter.packed else {
                    return Err(ComputeError::Malformed("the adapter was not made for packed weights"));
                };
                executor.sessions[span.slot.0].begin(mixture, lens[at].past, context)?;
                let joins = groups.last_mut().filter(|group: &&mut Group| {
                    let same = spans[group.span].adapter.is_some_and(|other| Arc::ptr_eq(other, adapter));
                    same && group.first_row + group.rows == first_row
                });
                match joins {
                    Some(group) => (group.rows, group.spans) = (group.rows + count, group.spans + 1),
                    None => {
                        groups.push(Group { span: at, spans: 1, first_row, rows: count, parts_at, h_at, chosen: 0 })
                    }
                }
                parts_at += count * mixture.parts();
                h_at += count * mixture.widest();
            }
            first_row += count;
        }
        h.resize(h.len().max(h_at), 0.0);
        uses.resize(uses.len().max(parts_at), Run::default());
        factors.resize(factors.len().max(parts_at), 0.0);
        priors.resize(priors.len().max(parts_at), 0.0);
        for group in groups {
            let Some(mixture) = packed(spans, group.span) else { continue };
            // Every row takes the shared part.
            uses[group.parts_at..][..group.rows].fill(Run { first: 0, len: mixture.ranks().0 });
            let factors = &mut factors[group.parts_at..][..group.rows * mixture.parts()];
            factors.iter_mut().step_by(mixture.parts()).for_each(|factor| *factor = mixture.scale);
        }
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
            self.hear(layer);
            self.attend(layer);
            self.feed_forward(layer, &mut loads);
        }
        self.logits()
    }

    /// Reads what each conversation is about, where its mixture does so.
    fn hear(&mut self, layer: usize) {
        let Executor { weights, instructions, sessions, buffers: b, .. } = &mut *self.executor;
        let config = &weights.config;
        let Adapted { groups, priors, .. } = &mut b.adapted;
        for group in groups.iter() {
            let Some(mixture) = packed(self.spans, group.span) else { continue };
            let Some(head) = mixture.session_head(layer) else { continue };
            let priors = &mut priors[group.parts_at..][..group.rows * mixture.experts];
            let x = (&b.x[..], config.hidden, config.rms_eps as f32);
            hear(*instructions, (mixture, head), (group, self.spans), x, sessions, priors);
        }
    }

    fn attend(&mut self, layer: usize) {
        let (rows, spans) = (self.rows, self.spans);
        let Executor { weights, instructions, pool, stores, attention, buffers: b, .. } = &mut *self.executor;
        let (config, instructions, this) = (&weights.config, *instructions, &weights.layers[layer]);
        let (hidden, width, kv) = (config.hidden, config.query_width(), config.kv_width());
        let eps = config.rms_eps as f32;
        let x = &mut b.x[..rows * hidden];
        norm_rows(pool, instructions, x, (&this.attention_norm, eps), &mut b.seen[..rows * hidden], &mut b.input);
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
            products(pool, instructions, &b.last_input, 0..rows, None, &mut all);
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
        for group in &mut self.groups {
            let Some(mixture) = packed(spans, group.span).filter(|mixture| mixture.experts > 0) else { continue };
            let (parts, rows, mut row) = (mixture.parts(), group.rows, 0);
            let uses = &mut self.uses[group.parts_at..][..rows * parts];
            let factors = &mut self.factors[group.parts_at..][..rows * parts];
            group.chosen = 0;
            for (at, span) in spans[group.span..][..group.spans].iter().enumerate() {
                let mut load = loads.get_mut(group.span + at);
                for _ in span.ids {
                    let x = &seen[(group.first_row + row) * hidden..][..hidden];
                    let factors = &mut factors[row * parts + 1..][..parts - 1];
                    let prior = &self.priors[group.parts_at + row * mixture.experts..][..mixture.experts];
                    let at = (mixture, layer);
                    let chosen = choose(instructions, at, (x, prior), factors, load.as_deref_mut());
                    for expert in 0..mixture.experts {
                        let len = if chosen >> expert & 1 == 1 { mixture.ranks().1 } else { 0 };
                        uses[(1 + expert) * rows + row] = Run { first: 0, len };
                    }
                    group.chosen |= chosen;
                    row += 1;
                }
            }
        }
    }

    /// Finds the tiles of the stacks of a site that some row needs; all for a group of many rows.
    fn find_tiles(&mut self, spans: &[Span<'_>], layer: usize, site: Site) {
        self.tiles.clear();
        for (number, group) in self.groups.iter().enumerate() {
            let Some(mixture) = packed(spans, group.span) else { continue };
            let Some(AdapterSite { a, b, width }) = mixture.site(layer, site) else { continue };
            if group.rows > SPARSE_ROWS {
                self.tiles.extend((0..a.row_tiles()).map(|tile| (number, tile)));
                continue;
            }
            for linear in 0..b.len() {
                for part in group.parts(site) {
                    let columns = mixture.columns(part);
                    let (from, to) = (linear * width + columns.start, linear * width + columns.end);
                    for tile in from / TILE..to.div_ceil(TILE) {
                        // Parts are in ascending order: what was found before is at the end.
                        if self.tiles.last() != Some(&(number, tile)) {
                            self.tiles.push((number, tile));
                        }
                    }
                }
            }
        }
    }

    /// Products of one input, each followed by the low-rank parts of every group.
    fn products<const N: usize>(
        &mut self,
        (pool, instructions, spans, layer, site): At<'_, '_>,
        (input, rows): (&Activations, usize),
        all: [(&PackedMatrix, OutRows<'_>, bool); N],
    ) {
        self.find_tiles(spans, layer, site);
        let Self { groups, h, uses, factors, tiles, .. } = self;
        let (groups, uses, factors) = (&*groups, &*uses, &*factors);
        let after: [_; N] =
            std::array::from_fn(|linear| Widening { instructions, spans, layer, at: (site, linear), groups, uses });
        let mut after = after.iter().map(|after| (!groups.is_empty()).then_some(after as &dyn After));
        let mut all =
            all.map(|(weights, out, accumulate)| Product { weights, out, accumulate, after: after.next().flatten() });
        let stack = |number: usize| stack(spans, layer, site, &groups[number], factors);
        let middle = (!groups.is_empty()).then_some(Middle { h, tiles, stack: &stack });
        products(pool, instructions, input, 0..rows, middle, &mut all);
    }
}

/// The A sides of a group's generation at a site.
fn stack<'a>(spans: &'a [Span<'_>], layer: usize, site: Site, group: &Group, factors: &'a [f32]) -> Stack<'a> {
    let mixture = packed(spans, group.span).expect("groups have generations for packed weights");
    let AdapterSite { a, width, .. } = mixture.site(layer, site).expect("tiles are of sites that were trained");
    Stack {
        weights: a,
        rows: group.first_row..group.first_row + group.rows,
        at: group.h_at,
        factors: &factors[group.parts_at..][..group.rows * mixture.parts()],
        width: *width,
        ranks: mixture.ranks(),
    }
}

/// The low-rank parts of every group on their way into the output of a linear map.
struct Widening<'a> {
    instructions: Instructions,
    spans: &'a [Span<'a>],
    layer: usize,
    /// The site, and which of its linear maps.
    at: (Site, usize),
    groups: &'a [Group],
    uses: &'a [Run],
}

impl Widening<'_> {
    /// Every part that rows of a group take.
    fn each(&self, mut f: impl FnMut(&Group, &PackedMixture, &AdapterSite, usize)) {
        for group in self.groups {
            let Some(mixture) = packed(self.spans, group.span) else { continue };
            let Some(site) = mixture.site(self.layer, self.at.0) else { continue };
            group.parts(self.at.0).for_each(|part| f(group, mixture, site, part));
        }
    }
}

impl After for Widening<'_> {
    fn ahead(&self, tiles: Range<usize>) {
        self.each(|_, _, site, part| site.b[self.at.1][part].fetch(tiles.clone()));
    }

    fn add(&self, h: &[f32], tiles: Range<usize>, out: &mut OutRows<'_>) {
        self.each(|group, mixture, site, part| {
            let h = &h[group.h_at + self.at.1 * site.width + mixture.columns(part).start..];
            let runs = &self.uses[group.parts_at + part * group.rows..][..group.rows];
            let low = LowRank { h, stride: site.a.rows(), runs, runs_per_row: 1 };
            let out = &mut out.from_row(group.first_row);
            product_columns(self.instructions, &low, &site.b[self.at.1][part], tiles.clone(), out);
        });
    }
}

/// The choice of one row, a bit for each expert, and what each is multiplied by, 0 without a choice. It is decided as in
/// training.
fn choose(
    instructions: Instructions,
    (mixture, layer): (&PackedMixture, usize),
    (x, prior): (&[f32], &[f32]),
    factors: &mut [f32],
    load: Option<&mut ExpertLoad>,
) -> u64 {
    let mut logits = [0f32; MAX_EXPERTS];
    let logits = &mut logits[..mixture.experts];
    dots(instructions, x, mixture.router(layer), logits);
    let heard = mixture.prior_weight(layer);
    if let Some(weight) = heard {
        add_prior(logits, weight, prior);
    }
    let Decision { taken, .. } = mixture.policy.decide(logits, heard.map(|_| prior), 0, factors);
    if let Some(load) = load {
        load.chosen.resize(mixture.experts, 0);
        load.weight.resize(mixture.experts, 0.0);
        for (expert, gate) in factors.iter().enumerate() {
            load.chosen[expert] += taken >> expert & 1;
            load.weight[expert] += f64::from(*gate);
        }
    }
    factors.iter_mut().for_each(|gate| *gate *= mixture.scale);
    taken
}
