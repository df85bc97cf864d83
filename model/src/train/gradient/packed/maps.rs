//! Linear maps that read the same rows, with what is trained beside them, forward and back: `y = x·Wᵀ + h·Bᵀ`,
//! `h = scale·gate·(x·Aᵀ)`. Refuses to know what the maps are for.

use super::element::{Element, Rows};
use super::frozen::FrozenLayer;
use super::trained::{Pair, TrainedLayer};
use crate::adapter::Linear;
use crate::kernels::backward::gate::{Stack, spread, spread_back};
use crate::kernels::half::{Gradient, Lie, Multiplier, Narrow as Side, Out, Product, Term};
use crate::kernels::{Instructions, Pool};
use std::ops::Range;

/// Maps that read the same rows.
pub(super) const QUERY_KEY_VALUE: Range<usize> = 0..3;
/// Heads back into the stream.
pub(super) const OUTPUT: Range<usize> = 3..4;
/// Both halves of the feed-forward input.
pub(super) const GATE_UP: Range<usize> = 4..6;
/// Back into the stream.
pub(super) const DOWN: Range<usize> = 6..7;
/// Most maps of one kind.
const MAPS_MAX: usize = 3;
/// Steps in which the inner side of a product is read.
const STEP: usize = 32;

/// What computes.
pub(super) struct Machine {
    pub(super) pool: Pool,
    pub(super) set: Instructions,
    pub(super) multiplier: Multiplier,
}

/// Low-rank rows of one map that backward needs.
pub(super) struct Low<E> {
    /// `x·Aᵀ`, kept where gates need it.
    u: Option<Rows<E>>,
    /// What B reads.
    h: Rows<E>,
}

impl<E: Element> Low<E> {
    pub(super) fn new(rows: usize, stack: usize, routed: bool) -> Self {
        Self { u: routed.then(|| Rows::new(rows, stack)), h: Rows::new(rows, stack) }
    }
}

/// Low-rank rows that live for one step of a layer: `x·Aᵀ` forward, the gradients of both sides back.
pub(super) struct Narrow<E> {
    one: Vec<Rows<E>>,
    other: Vec<Rows<E>>,
}

impl<E: Element> Narrow<E> {
    pub(super) fn new(rows: usize, stack: usize) -> Self {
        let make = || (0..MAPS_MAX).map(|_| Rows::new(rows, stack.max(1))).collect();
        Self { one: make(), other: make() }
    }
}

/// Maps of one layer and what is trained of it.
#[derive(Clone, Copy)]
pub(super) struct Maps<'a> {
    pub(super) frozen: &'a FrozenLayer,
    /// Nothing where the base speaks alone.
    pub(super) trained: Option<&'a TrainedLayer>,
    pub(super) scale: f32,
    /// Rank of one expert.
    pub(super) rank: usize,
    /// `[rows, experts]` where experts take part, else empty: then the shared columns work alone.
    pub(super) gates: &'a [f32],
    pub(super) rows: usize,
}

/// A pair as it works in one pass.
#[derive(Clone, Copy)]
struct Active<'a> {
    pair: &'a Pair,
    /// Columns of the stack that work.
    width: usize,
    /// Columns that products read: the same, up to whole steps.
    depth: usize,
    stack: Stack,
    routed: bool,
}

impl<'a> Maps<'a> {
    fn active(&self, linear: Linear) -> Option<Active<'a>> {
        let pair = self.trained?.pair(linear)?;
        let (shared, whole) = (pair.shared, pair.sides.1);
        let routed = whole > shared && !self.gates.is_empty();
        let width = if routed { whole } else { shared };
        let depth = if routed { whole } else { shared.next_multiple_of(STEP).min(whole) };
        let stack = Stack { shared, rank: self.rank, scale: self.scale };
        (width > 0).then_some(Active { pair, width, depth, stack, routed })
    }

    fn gates(&self, active: &Active<'_>) -> &'a [f32] {
        if active.routed { self.gates } else { &[] }
    }

    /// The maps of a group with their pairs.
    fn each(&self, group: Range<usize>) -> impl Iterator<Item = (Linear, Option<Active<'a>>)> + use<'a> {
        let maps = *self;
        Linear::ALL[group].iter().map(move |linear| (*linear, maps.active(*linear)))
    }

    /// `y` of each map of a group into `outs`.
    pub(super) fn forward<E: Element>(
        &self,
        machine: &mut Machine,
        group: Range<usize>,
        x: &Rows<E>,
        (low, narrow): (&mut [Option<Low<E>>], &mut Narrow<E>),
        outs: &mut [(Option<Out<'_>>, usize)],
    ) {
        let rows = self.rows;
        self.narrow(machine, group.clone(), x, low, narrow);
        let terms: Vec<Vec<Term<'_>>> = self
            .each(group.clone())
            .zip(&low[group])
            .map(|((linear, active), low)| {
                let frozen = Term { rows: x.left(), weight: self.frozen.linear(linear).forward() };
                let trained = active.zip(low.as_ref()).map(|(active, low)| Term {
                    rows: low.h.left(),
                    weight: active.pair.b.forward().depth(0..active.depth),
                });
                std::iter::once(frozen).chain(trained).collect()
            })
            .collect();
        let products = terms
            .iter()
            .zip(outs)
            .filter_map(|(terms, (out, stride))| out.take().map(|out| Product { terms, out, stride: *stride }));
        machine.multiplier.products(&mut machine.pool, rows, &mut products.collect::<Vec<_>>());
    }

    /// `x·Aᵀ` and what B reads of it.
    fn narrow<E: Element>(
        &self,
        machine: &mut Machine,
        group: Range<usize>,
        x: &Rows<E>,
        low: &mut [Option<Low<E>>],
        narrow: &mut Narrow<E>,
    ) {
        let (rows, pool) = (self.rows, &mut machine.pool);
        let mut work: Vec<(Active<'_>, &mut Rows<E>, &mut Rows<E>)> = self
            .each(group.clone())
            .zip(&mut low[group])
            .zip(&mut narrow.one)
            .filter_map(|(((_, active), low), scratch)| {
                let (active, low) = active.zip(low.as_mut())?;
                let Low { u, h } = low;
                Some((active, u.as_mut().unwrap_or(scratch), h))
            })
            .collect();
        let terms: Vec<[Term<'_>; 1]> = work
            .iter()
            .map(|(active, ..)| [Term { rows: x.left(), weight: active.pair.a.forward().columns(0..active.depth) }])
            .collect();
        let products = work.iter_mut().zip(&terms).map(|((_, u, _), terms)| {
            let (out, stride) = u.out();
            Product { terms, out, stride }
        });
        machine.multiplier.products(pool, rows, &mut products.collect::<Vec<_>>());
        for (active, u, h) in work {
            let width = active.width;
            let gates = (self.gates(&active), active.stack);
            spread(pool, machine.set, u.columns(rows, width), gates, h.columns_mut(rows, width));
            clear(h, rows, width..active.depth);
        }
    }

    /// Adds the gradients of A and B of each map to `sums`, those of gates to `d_gates`, and puts that of `x` into `dx`.
    pub(super) fn backward<E: Element>(
        &self,
        machine: &mut Machine,
        group: Range<usize>,
        (x, dys): (&Rows<E>, &[&Rows<E>]),
        (low, narrow): (&[Option<Low<E>>], &mut Narrow<E>),
        (sums, d_gates): (&mut [Vec<f32>], &mut [f32]),
        (dx, stride): (Out<'_>, usize),
    ) {
        let rows = self.rows;
        self.narrow_back(machine, group.clone(), dys, (low, narrow), d_gates);
        self.gradients(machine, group.clone(), (x, dys), (&low[group.clone()], &narrow.other), sums);
        let mut terms: Vec<Term<'_>> = Vec::with_capacity(2 * MAPS_MAX);
        for (((linear, active), dy), du) in self.each(group).zip(dys).zip(&narrow.other) {
            terms.push(Term { rows: dy.left(), weight: self.frozen.linear(linear).backward() });
            if let Some(active) = active {
                terms.push(Term { rows: du.left(), weight: active.pair.a.backward().depth(0..active.depth) });
            }
        }
        let product = Product { terms: &terms, out: dx, stride };
        machine.multiplier.products(&mut machine.pool, rows, &mut [product]);
    }

    /// `dA = duᵀ·x` and `dB = dyᵀ·h` of each map; `x` is prepared once for all.
    fn gradients<E: Element>(
        &self,
        machine: &mut Machine,
        group: Range<usize>,
        (x, dys): (&Rows<E>, &[&Rows<E>]),
        (low, du): (&[Option<Low<E>>], &[Rows<E>]),
        sums: &mut [Vec<f32>],
    ) {
        let (mut sides, mut wide) = (Vec::with_capacity(MAPS_MAX), Vec::with_capacity(MAPS_MAX));
        let mut sums = sums.iter_mut().enumerate();
        // Parameters come in the order of the maps, A before B.
        let mut sum = |at: usize| sums.find(|(index, _)| *index == at).map(|(_, sum)| &mut sum[..]);
        for ((((_, active), low), dy), du) in self.each(group).zip(low).zip(dys).zip(du) {
            let (Some(active), Some(low)) = (active, low) else { continue };
            let (columns, (inner, stack, out)) = (active.width, active.pair.sides);
            let (Some(a), Some(b)) = (sum(active.pair.at.0), sum(active.pair.at.1)) else { continue };
            sides.push(Side { rows: du.left(), columns, out: a, lie: Lie::Along, stride: inner });
            let side = Side { rows: low.h.left(), columns, out: b, lie: Lie::Across, stride: stack };
            wide.push((dy.left(), out, [side]));
        }
        if sides.is_empty() {
            return;
        }
        let mut all: Vec<Gradient<'_>> = wide
            .iter_mut()
            .map(|(wide, columns, side)| Gradient { wide: *wide, columns: *columns, narrow: side })
            .collect();
        all.push(Gradient { wide: x.left(), columns: x.width(), narrow: &mut sides });
        machine.multiplier.gradients(&mut machine.pool, self.rows, &mut all);
    }

    /// The gradient behind A of each map of a group, into the second rows of `narrow`.
    fn narrow_back<E: Element>(
        &self,
        machine: &mut Machine,
        group: Range<usize>,
        dys: &[&Rows<E>],
        (low, narrow): (&[Option<Low<E>>], &mut Narrow<E>),
        d_gates: &mut [f32],
    ) {
        let (rows, pool) = (self.rows, &mut machine.pool);
        let active: Vec<Option<Active<'_>>> = self.each(group.clone()).map(|(_, active)| active).collect();
        let terms: Vec<Option<[Term<'_>; 1]>> = active
            .iter()
            .zip(dys)
            .map(|(active, dy)| {
                active.map(|a| [Term { rows: dy.left(), weight: a.pair.b.backward().columns(0..a.depth) }])
            })
            .collect();
        let products = terms.iter().zip(&mut narrow.one).filter_map(|(terms, dh)| {
            let (out, stride) = dh.out();
            terms.as_ref().map(|terms| Product { terms, out, stride })
        });
        machine.multiplier.products(pool, rows, &mut products.collect::<Vec<_>>());
        for (((active, low), dh), du) in active.iter().zip(&low[group]).zip(&narrow.one).zip(&mut narrow.other) {
            let (Some(active), Some(low)) = (active, low) else { continue };
            let (width, gates) = (active.width, (self.gates(active), active.stack));
            let d_gates: &mut [f32] = if active.routed { &mut *d_gates } else { &mut [] };
            // Without gates nobody asks what they were multiplied with.
            let u = low.u.as_ref().unwrap_or(dh).columns(rows, width);
            spread_back(pool, machine.set, u, gates, dh.columns(rows, width), du.columns_mut(rows, width), d_gates);
            clear(du, rows, width..active.depth);
        }
    }
}

/// Zeros where products read on behind the columns that work.
fn clear<E: Element>(rows: &mut Rows<E>, count: usize, columns: Range<usize>) {
    if !columns.is_empty() {
        (0..count).for_each(|row| rows.row_mut(row)[columns.clone()].fill(E::default()));
    }
}
