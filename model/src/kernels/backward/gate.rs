//! What a router does to rows, forward and back: its logits, the gates over stacked low-rank rows, and the softmax over
//! the chosen experts. Refuses to know how experts are chosen.

use super::kept::{Kept, Span, SpanMut, each_row, load, store, with_kept};
use crate::kernels::lanes::{LANES, Lanes};
use crate::kernels::pool::{Pointer, Pool};
use crate::kernels::product::Instructions;

/// Columns of one task of [`logits_back`].
const TASK_COLUMNS: usize = 4 * LANES;

/// A stack of low-rank columns: those that every row uses, then as many for each expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stack {
    /// Columns without a gate.
    pub shared: usize,
    /// Columns of each expert.
    pub rank: usize,
    /// What every column is multiplied by (α over the rank).
    pub scale: f32,
}

impl Stack {
    /// Experts of a stack of this width; panics unless they fit the gates.
    fn experts(&self, width: usize, rows: usize, gates: &[f32]) -> usize {
        let routed = width.checked_sub(self.shared).expect("a stack as wide as its shared columns");
        assert!(self.rank > 0 || routed == 0, "experts of some rank");
        let experts = routed / self.rank.max(1);
        assert!(experts * self.rank == routed, "experts of rank {} do not divide {routed} columns", self.rank);
        assert!(gates.len() == rows * experts, "{} gates for {rows} rows of {experts} experts", gates.len());
        experts
    }
}

/// `h = u·factor` for `len` columns.
///
/// # Safety
/// As [`Lanes`]; there are as many at both places.
#[inline(always)]
unsafe fn scaled<V: Lanes, U: Kept, F: Kept>(u: *const U, len: usize, factor: f32, h: *mut F) {
    // SAFETY: by the caller.
    unsafe {
        for at in (0..len).step_by(LANES) {
            store(load::<V, U>(u.add(at), len - at).mul(V::splat(factor)), h.add(at), len - at);
        }
    }
}

/// # Safety
/// As [`Lanes`]; both rows have one length, that of the stack with these gates.
#[inline(always)]
unsafe fn spread_row<V: Lanes, U: Kept, F: Kept>(u: &[U], gates: &[f32], stack: Stack, h: &mut [F]) {
    // SAFETY: the parts lie within the rows.
    unsafe {
        scaled::<V, U, F>(u.as_ptr(), stack.shared, stack.scale, h.as_mut_ptr());
        for (expert, gate) in gates.iter().enumerate() {
            let from = stack.shared + expert * stack.rank;
            scaled::<V, U, F>(u.as_ptr().add(from), stack.rank, stack.scale * gate, h.as_mut_ptr().add(from));
        }
    }
}

with_kept! {
    /// # Safety
    /// Both rows have one length, that of the stack with these gates.
    unsafe fn spread_of[U, F](u: &[U], gates: &[f32], stack: Stack, h: &mut [F]) = spread_row;
}

/// `h = u·scale`, the part of each expert also times its gate of `gates[rows, experts]`.
///
/// # Panics
/// The lengths do not fit.
pub fn spread<U: Kept, F: Kept>(
    pool: &mut Pool,
    set: Instructions,
    u: Span<'_, U>,
    (gates, stack): (&[f32], Stack),
    h: SpanMut<'_, F>,
) {
    let rows = u.rows();
    h.expect(rows, u.width());
    let experts = stack.experts(u.width(), rows, gates);
    each_row(pool, rows, &|row| {
        // SAFETY: each row is one task's; widths as checked.
        unsafe { spread_of(set, u.row(row), &gates[row * experts..][..experts], stack, h.row(row)) };
    });
}

/// Rows of one task of [`spread_back`].
struct Back<'a, U, D, F> {
    u: &'a [U],
    gates: &'a [f32],
    dh: &'a [D],
    du: &'a mut [F],
    d_gates: &'a mut [f32],
}

/// # Safety
/// As [`Lanes`]; the rows have one length, that of the stack with these gates.
#[inline(always)]
unsafe fn spread_back_row<V: Lanes, U: Kept, D: Kept, F: Kept>(rows: Back<'_, U, D, F>, stack: Stack) {
    let Back { u, gates, dh, du, d_gates } = rows;
    // SAFETY: the parts lie within the rows.
    unsafe {
        scaled::<V, D, F>(dh.as_ptr(), stack.shared, stack.scale, du.as_mut_ptr());
        for (expert, (gate, d_gate)) in gates.iter().zip(d_gates).enumerate() {
            let from = stack.shared + expert * stack.rank;
            let (u, dh) = (u.as_ptr().add(from), dh.as_ptr().add(from));
            scaled::<V, D, F>(dh, stack.rank, stack.scale * gate, du.as_mut_ptr().add(from));
            let mut sums = V::splat(0.0);
            for at in (0..stack.rank).step_by(LANES) {
                let count = stack.rank - at;
                sums = load::<V, U>(u.add(at), count).fma(load::<V, D>(dh.add(at), count), sums);
            }
            *d_gate += stack.scale * sums.sum();
        }
    }
}

with_kept! {
    /// # Safety
    /// The rows have one length, that of the stack with these gates.
    unsafe fn spread_back_of[U, D, F](rows: Back<'_, U, D, F>, stack: Stack) = spread_back_row;
}

/// The way back through [`spread`]: `du = dh·scale·gate`, and `scale·Σ u·dh` of each expert is added to `d_gates`.
///
/// # Panics
/// The lengths do not fit.
pub fn spread_back<U: Kept, D: Kept, F: Kept>(
    pool: &mut Pool,
    set: Instructions,
    u: Span<'_, U>,
    (gates, stack): (&[f32], Stack),
    dh: Span<'_, D>,
    du: SpanMut<'_, F>,
    d_gates: &mut [f32],
) {
    let rows = u.rows();
    dh.expect(rows, u.width());
    du.expect(rows, u.width());
    let experts = stack.experts(u.width(), rows, gates);
    assert!(d_gates.len() == gates.len(), "a gradient of each gate");
    let d_gates = Pointer(d_gates.as_mut_ptr());
    each_row(pool, rows, &|row| {
        // SAFETY: each row is one task's; widths as checked.
        unsafe {
            let d_gates = std::slice::from_raw_parts_mut(d_gates.at(row * experts), experts);
            let gates = &gates[row * experts..][..experts];
            spread_back_of(set, Back { u: u.row(row), gates, dh: dh.row(row), du: du.row(row), d_gates }, stack);
        }
    });
}

/// Turns gradients of gates `[rows, experts]` into those of the logits, in place. Free gates of a row are their sum times
/// a softmax over the chosen experts; those whose bit is set in `held` are constants (a floor), and their share is not
/// for others to take: `dz = g·(dg − Σ g·dg / Σ g)` over the free ones.
///
/// # Panics
/// The lengths do not fit; `held` is neither empty nor one for each row.
pub fn softmax_back(gates: &[f32], held: &[u64], experts: usize, d_gates: &mut [f32]) {
    let rows = gates.len() / experts.max(1);
    assert!(
        rows * experts == gates.len() && gates.len() == d_gates.len(),
        "rows of {experts} gates with a gradient each"
    );
    assert!(experts <= 64 && (held.is_empty() || held.len() == rows), "bits of held gates for each row");
    for (row, (gates, d)) in gates.chunks_exact(experts).zip(d_gates.chunks_exact_mut(experts)).enumerate() {
        let held = held.get(row).copied().unwrap_or(0);
        let (mut mean, mut sum) = (0f32, 0f32);
        for (e, (g, d)) in gates.iter().zip(d.iter_mut()).enumerate() {
            *d = if held >> e & 1 == 1 { 0.0 } else { *d };
            let free = if held >> e & 1 == 1 { 0.0 } else { *g };
            mean += free * *d;
            sum += free;
        }
        mean /= if sum > 0.0 { sum } else { 1.0 };
        for (e, (g, d)) in gates.iter().zip(d.iter_mut()).enumerate() {
            *d = if held >> e & 1 == 1 { 0.0 } else { g * (*d - mean) };
        }
    }
}

/// # Safety
/// As [`Lanes`]; `weight` has a row as long as `x` for each of `out`.
#[inline(always)]
unsafe fn logits_row<V: Lanes, X: Kept>(x: &[X], weight: &[f32], out: &mut [f32]) {
    let mut expert = 0;
    while expert < out.len() {
        // SAFETY: the experts are there.
        expert += unsafe {
            match out.len() - expert {
                4.. => some_logits::<V, X, 4>(x, weight, expert, out),
                _ => some_logits::<V, X, 1>(x, weight, expert, out),
            }
        };
    }
}

/// Logits of `G` experts; gives `G`.
///
/// # Safety
/// As [`logits_row`]; there are as many experts.
#[inline(always)]
unsafe fn some_logits<V: Lanes, X: Kept, const G: usize>(
    x: &[X],
    weight: &[f32],
    expert: usize,
    out: &mut [f32],
) -> usize {
    let width = x.len();
    // SAFETY: `count` numbers from `at` on are within the rows.
    unsafe {
        let mut sums = [V::splat(0.0); G];
        for at in (0..width).step_by(LANES) {
            let count = width - at;
            let x = load::<V, X>(x.as_ptr().add(at), count);
            for (g, sum) in sums.iter_mut().enumerate() {
                *sum = x.fma(load(weight.as_ptr().add((expert + g) * width + at), count), *sum);
            }
        }
        for (g, sum) in sums.iter().enumerate() {
            out[expert + g] = sum.sum();
        }
    }
    G
}

with_kept! {
    /// # Safety
    /// `weight` has a row as long as `x` for each of `out`.
    unsafe fn logits_of[X](x: &[X], weight: &[f32], out: &mut [f32]) = logits_row;
}

/// `out[rows, experts] = x·weightᵀ` for `weight[experts, width]`, in f32.
///
/// # Panics
/// The lengths do not fit.
pub fn logits<X: Kept>(pool: &mut Pool, set: Instructions, x: Span<'_, X>, weight: &[f32], out: &mut [f32]) {
    let (rows, experts) = (x.rows(), weight.len() / x.width());
    assert!(experts * x.width() == weight.len() && out.len() == rows * experts, "a logit of each row and expert");
    let out = Pointer(out.as_mut_ptr());
    each_row(pool, rows, &|row| {
        // SAFETY: each row is one task's, within the checked length.
        unsafe { logits_of(set, x.row(row), weight, std::slice::from_raw_parts_mut(out.at(row * experts), experts)) };
    });
}

/// `dx += Σ d·weight`.
///
/// # Safety
/// As [`Lanes`]; `weight` has a row as long as `dx` for each of `d`.
#[inline(always)]
unsafe fn pulled_row<V: Lanes>(d: &[f32], weight: &[f32], dx: &mut [f32]) {
    let width = dx.len();
    // SAFETY: `count` numbers from `at` on are within the rows.
    unsafe {
        for at in (0..width).step_by(LANES) {
            let count = width - at;
            let mut sum = load::<V, f32>(dx.as_ptr().add(at), count);
            for (expert, d) in d.iter().enumerate() {
                sum = V::splat(*d).fma(load(weight.as_ptr().add(expert * width + at), count), sum);
            }
            store(sum, dx.as_mut_ptr().add(at), count);
        }
    }
}

with_kept! {
    /// # Safety
    /// `weight` has a row as long as `dx` for each of `d`.
    unsafe fn pulled_of[](d: &[f32], weight: &[f32], dx: &mut [f32]) = pulled_row;
}

/// `d_weight[expert, at..] += Σ d[row, expert]·x[row, at..]` over all rows in their order, for up to
/// [`TASK_COLUMNS`] columns.
///
/// # Safety
/// As [`Lanes`]; `d_weight` has `experts` rows as wide as `x`, whose columns here are this task's.
#[inline(always)]
unsafe fn weight_columns<V: Lanes, X: Kept>(d: &[f32], x: Span<'_, X>, at: usize, experts: usize, d_weight: *mut f32) {
    for at in (at..x.width().min(at + TASK_COLUMNS)).step_by(LANES) {
        let mut expert = 0;
        while expert < experts {
            // SAFETY: by the caller.
            expert += unsafe {
                match experts - expert {
                    8.. => some_columns::<V, X, 8>(d, x, at, (expert, experts), d_weight),
                    4.. => some_columns::<V, X, 4>(d, x, at, (expert, experts), d_weight),
                    _ => some_columns::<V, X, 1>(d, x, at, (expert, experts), d_weight),
                }
            };
        }
    }
}

/// Sixteen columns of `G` experts; gives `G`.
///
/// # Safety
/// As [`weight_columns`]; there are as many experts.
#[inline(always)]
unsafe fn some_columns<V: Lanes, X: Kept, const G: usize>(
    d: &[f32],
    x: Span<'_, X>,
    at: usize,
    (expert, experts): (usize, usize),
    d_weight: *mut f32,
) -> usize {
    let count = x.width() - at;
    // SAFETY: the columns are within the rows.
    unsafe {
        let to = d_weight.add(expert * x.width() + at);
        let mut sums = [V::splat(0.0); G];
        for (g, sum) in sums.iter_mut().enumerate() {
            *sum = load(to.add(g * x.width()), count);
        }
        for (row, d) in d.chunks_exact(experts).enumerate() {
            let x = load::<V, X>(x.row(row).as_ptr().add(at), count);
            for (g, sum) in sums.iter_mut().enumerate() {
                *sum = V::splat(d[expert + g]).fma(x, *sum);
            }
        }
        for (g, sum) in sums.iter().enumerate() {
            store(*sum, to.add(g * x.width()), count);
        }
    }
    G
}

with_kept! {
    /// # Safety
    /// `d` has `experts` numbers for each row of `x`, and `d_weight` as many rows as wide, whose columns are this task's.
    unsafe fn weight_of[X](d: &[f32], x: Span<'_, X>, at: usize, experts: usize, d_weight: *mut f32) = weight_columns;
}

/// The way back through [`logits`]: adds `dᵀ·x` to `d_weight[experts, width]` and `d·weight` to the gradient of the rows.
///
/// # Panics
/// The lengths do not fit.
pub fn logits_back<X: Kept>(
    pool: &mut Pool,
    set: Instructions,
    d_logits: &[f32],
    x: Span<'_, X>,
    weight: &[f32],
    d_weight: &mut [f32],
    dx: Option<SpanMut<'_, f32>>,
) {
    let (rows, width, experts) = (x.rows(), x.width(), weight.len() / x.width());
    assert!(
        experts * width == weight.len() && weight.len() == d_weight.len(),
        "a weight and its gradient of one shape"
    );
    assert!(d_logits.len() == rows * experts, "a gradient of each logit");
    let d_weight = Pointer(d_weight.as_mut_ptr());
    pool.run(width.div_ceil(TASK_COLUMNS), &|task, _| {
        // SAFETY: each task has its own columns of every row.
        unsafe { weight_of(set, d_logits, x, task * TASK_COLUMNS, experts, d_weight.at(0)) };
    });
    if let Some(dx) = dx {
        dx.expect(rows, width);
        each_row(pool, rows, &|row| {
            // SAFETY: each row is one task's; widths as checked.
            unsafe { pulled_of(set, &d_logits[row * experts..][..experts], weight, dx.row(row)) };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{dot, exact, near, random, slope};
    use super::*;

    fn spread_formula(u: &[f64], gates: &[f64], stack: Stack, experts: usize) -> Vec<f64> {
        let width = stack.shared + experts * stack.rank;
        let gate = |i: usize| match (i % width).checked_sub(stack.shared) {
            Some(behind) => gates[i / width * experts + behind / stack.rank],
            None => 1.0,
        };
        u.iter().enumerate().map(|(i, u)| u * gate(i) * f64::from(stack.scale)).collect()
    }

    #[test]
    fn stacks_are_spread_and_gates_hear_of_it() {
        let mut pool = Pool::new(2);
        for (shared, rank, experts) in [(16, 16, 8), (3, 5, 2), (7, 1, 0), (0, 20, 3)] {
            for set in Instructions::available() {
                let (rows, stack) = (9, Stack { shared, rank, scale: 0.7 });
                let width = shared + experts * rank;
                let (u, gates, dh) = (random(rows * width, 1), random(rows * experts, 2), random(rows * width, 3));
                let (mut h, mut du, mut d_gates) =
                    (vec![0f32; rows * width], vec![0f32; rows * width], vec![0.25; gates.len()]);
                spread(&mut pool, set, Span::packed(&u, width), (&gates, stack), SpanMut::packed(&mut h, width));
                let (wide, g, d) = (exact(&u), exact(&gates), exact(&dh));
                near(&h, &spread_formula(&wide, &g, stack, experts), 1e-6);
                let (from, to) = (Span::packed(&dh, width), SpanMut::packed(&mut du, width));
                spread_back(&mut pool, set, Span::packed(&u, width), (&gates, stack), from, to, &mut d_gates);
                near(&du, &slope(&wide, |u| dot(&spread_formula(u, &g, stack, experts), &d)), 1e-5);
                let expected = slope(&g, |g| dot(&spread_formula(&wide, g, stack, experts), &d));
                near(&d_gates, &expected.iter().map(|d| d + 0.25).collect::<Vec<_>>(), 1e-5);
            }
        }
    }

    /// Gates of one row: a held expert keeps its gate, the taken others share the rest by softmax.
    fn gates_of(logits: &[f64], taken: &[usize], held: Option<(usize, f64)>) -> Vec<f64> {
        let free: Vec<usize> = taken.iter().copied().filter(|e| held.is_none_or(|(h, _)| h != *e)).collect();
        let sum: f64 = free.iter().map(|e| logits[*e].exp()).sum();
        let mut gates = vec![0.0; logits.len()];
        free.iter().for_each(|e| gates[*e] = (1.0 - held.map_or(0.0, |h| h.1)) * logits[*e].exp() / sum);
        if let Some((e, gate)) = held {
            gates[e] = gate;
        }
        gates
    }

    #[test]
    fn the_softmax_over_the_chosen_has_its_gradient() {
        let logits = exact(&random(5, 4));
        for held in [None, Some((3, 0.4))] {
            let taken = [0, 3, 4];
            let gates: Vec<f32> = gates_of(&logits, &taken, held).iter().map(|g| *g as f32).collect();
            let mut d = random(5, 6);
            let expected = slope(&logits, |z| dot(&gates_of(z, &taken, held), &exact(&d)));
            softmax_back(&gates, &held.map_or(vec![], |(e, _)| vec![1 << e]), 5, &mut d);
            near(&d, &expected, 1e-5);
        }
    }

    #[test]
    fn logits_and_their_way_back() {
        let mut pool = Pool::new(2);
        for (rows, width, experts) in [(5, 70, 3), (33, 16, 8), (2, 9, 1)] {
            for set in Instructions::available() {
                let (x, weight, d) = (random(rows * width, 1), random(experts * width, 2), random(rows * experts, 3));
                let formula = |x: &[f64], w: &[f64]| -> Vec<f64> {
                    x.chunks_exact(width).flat_map(|x| w.chunks_exact(width).map(move |w| dot(x, w))).collect()
                };
                let (wide, w, down) = (exact(&x), exact(&weight), exact(&d));
                let mut z = vec![0f32; rows * experts];
                logits(&mut pool, set, Span::packed(&x, width), &weight, &mut z);
                near(&z, &formula(&wide, &w), 1e-6);
                let (mut d_weight, mut dx) = (vec![0.5; experts * width], vec![0.5; rows * width]);
                let to = Some(SpanMut::packed(&mut dx, width));
                logits_back(&mut pool, set, &d, Span::packed(&x, width), &weight, &mut d_weight, to);
                let more = |d: Vec<f64>| d.iter().map(|d| d + 0.5).collect::<Vec<_>>();
                near(&d_weight, &more(slope(&w, |w| dot(&formula(&wide, w), &down))), 1e-5);
                near(&dx, &more(slope(&wide, |x| dot(&formula(x, &w), &down))), 1e-5);
            }
        }
    }

    #[test]
    #[should_panic(expected = "experts of rank 4 do not divide 9 columns")]
    fn a_stack_that_experts_do_not_divide_is_refused() {
        let (u, mut h, stack) = ([0f32; 12], [0f32; 12], Stack { shared: 3, rank: 4, scale: 1.0 });
        let to = SpanMut::packed(&mut h, 12);
        spread(&mut Pool::new(1), Instructions::Portable, Span::packed(&u, 12), (&[1.0, 1.0], stack), to);
    }
}
