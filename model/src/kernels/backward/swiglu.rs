//! The gated activation `silu(gate)·up` of rows (Shazeer 2020), forward and back. Refuses to know the products around it.

use super::kept::{Kept, Span, SpanMut, each_row, load, store, with_kept};
use crate::kernels::lanes::{LANES, Lanes, exp};
use crate::kernels::pool::Pool;
use crate::kernels::product::Instructions;

/// `1 / (1 + e^−x)`.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn sigmoid<V: Lanes>(x: V) -> V {
    // SAFETY: by the caller.
    unsafe { V::splat(1.0).div(V::splat(1.0).add(exp(V::splat(0.0).sub(x)))) }
}

/// # Safety
/// As [`Lanes`]; the three rows have one length.
#[inline(always)]
unsafe fn forward_row<V: Lanes, E: Kept, F: Kept>(gate: &[E], up: &[E], inner: &mut [F]) {
    let width = gate.len();
    // SAFETY: `count` numbers from `at` on are within each row.
    unsafe {
        for at in (0..width).step_by(LANES) {
            let count = width - at;
            let (g, u) = (load::<V, E>(gate.as_ptr().add(at), count), load::<V, E>(up.as_ptr().add(at), count));
            store(g.mul(sigmoid(g)).mul(u), inner.as_mut_ptr().add(at), count);
        }
    }
}

with_kept! {
    /// # Safety
    /// The three rows have one length.
    unsafe fn forward_of[E, F](gate: &[E], up: &[E], inner: &mut [F]) = forward_row;
}

/// `inner = silu(gate)·up` by number.
///
/// # Panics
/// The lengths do not fit.
pub fn forward<E: Kept, F: Kept>(
    pool: &mut Pool,
    set: Instructions,
    (gate, up): (Span<'_, E>, Span<'_, E>),
    inner: SpanMut<'_, F>,
) {
    let (rows, width) = (gate.rows(), gate.width());
    up.expect(rows, width);
    inner.expect(rows, width);
    each_row(pool, rows, &|row| {
        // SAFETY: each row is one task's; widths as checked.
        unsafe { forward_of(set, gate.row(row), up.row(row), inner.row(row)) };
    });
}

/// Rows of one task of [`backward`].
struct Back<'a, E, D, F> {
    gate: &'a [E],
    up: &'a [E],
    d_inner: &'a [D],
    d_gate: &'a mut [F],
    d_up: &'a mut [F],
    /// Empty unless it is wanted.
    inner: &'a mut [F],
}

/// `d_up = d·silu(g)`, `d_gate = d·u·(s + silu(g)·(1 − s))` with `s = sigmoid(g)`.
///
/// # Safety
/// As [`Lanes`]; the rows have one length.
#[inline(always)]
unsafe fn backward_row<V: Lanes, E: Kept, D: Kept, F: Kept>(rows: Back<'_, E, D, F>) {
    let width = rows.gate.len();
    // SAFETY: `count` numbers from `at` on are within each row.
    unsafe {
        for at in (0..width).step_by(LANES) {
            let count = width - at;
            let (g, u) =
                (load::<V, E>(rows.gate.as_ptr().add(at), count), load::<V, E>(rows.up.as_ptr().add(at), count));
            let d = load::<V, D>(rows.d_inner.as_ptr().add(at), count);
            let s = sigmoid(g);
            let silu = g.mul(s);
            let slope = silu.mul(V::splat(1.0).sub(s)).add(s);
            store(d.mul(silu), rows.d_up.as_mut_ptr().add(at), count);
            store(d.mul(u).mul(slope), rows.d_gate.as_mut_ptr().add(at), count);
            if !rows.inner.is_empty() {
                store(silu.mul(u), rows.inner.as_mut_ptr().add(at), count);
            }
        }
    }
}

with_kept! {
    /// # Safety
    /// The rows have one length.
    unsafe fn backward_of[E, D, F](rows: Back<'_, E, D, F>) = backward_row;
}

/// The gradients of gate and up, and once more `inner` where it was not kept.
///
/// # Panics
/// The lengths do not fit.
pub fn backward<E: Kept, D: Kept, F: Kept>(
    pool: &mut Pool,
    set: Instructions,
    (gate, up): (Span<'_, E>, Span<'_, E>),
    d_inner: Span<'_, D>,
    (d_gate, d_up): (SpanMut<'_, F>, SpanMut<'_, F>),
    inner: Option<SpanMut<'_, F>>,
) {
    let (rows, width) = (gate.rows(), gate.width());
    up.expect(rows, width);
    d_inner.expect(rows, width);
    d_gate.expect(rows, width);
    d_up.expect(rows, width);
    if let Some(inner) = &inner {
        inner.expect(rows, width);
    }
    each_row(pool, rows, &|row| {
        // SAFETY: each row is one task's; widths as checked.
        unsafe {
            let (d_gate, d_up) = (d_gate.row(row), d_up.row(row));
            let inner = inner.as_ref().map_or(&mut [][..], |inner| inner.row(row));
            let (gate, up, d_inner) = (gate.row(row), up.row(row), d_inner.row(row));
            backward_of(set, Back { gate, up, d_inner, d_gate, d_up, inner });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::check::{dot, exact, near, random, slope};
    use super::*;
    use half::bf16;

    fn formula(gate: &[f64], up: &[f64]) -> Vec<f64> {
        gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
    }

    #[test]
    fn both_ways_are_those_of_the_formula() {
        let mut pool = Pool::new(2);
        for (rows, width, set) in [(3, 5), (9, 16), (11, 37)]
            .into_iter()
            .flat_map(|(r, w)| Instructions::available().into_iter().map(move |set| (r, w, set)))
        {
            let count = rows * width;
            let gate: Vec<f32> = random(count, 1).iter().map(|g| g * 6.0).collect();
            let (up, d) = (random(count, 2), random(count, 3));
            let (g, u, wide) = (exact(&gate), exact(&up), exact(&d));
            let pair = (Span::packed(&gate, width), Span::packed(&up, width));
            let mut inner = vec![0f32; count];
            forward(&mut pool, set, pair, SpanMut::packed(&mut inner, width));
            near(&inner, &formula(&g, &u), 1e-6);
            let (mut d_gate, mut d_up, mut again) = (vec![0f32; count], vec![0f32; count], vec![0f32; count]);
            let to = (SpanMut::packed(&mut d_gate, width), SpanMut::packed(&mut d_up, width));
            let rebuilt = Some(SpanMut::packed(&mut again, width));
            backward(&mut pool, set, pair, Span::packed(&d, width), to, rebuilt);
            near(&d_gate, &slope(&g, |g| dot(&formula(g, &u), &wide)), 1e-5);
            near(&d_up, &slope(&u, |u| dot(&formula(&g, u), &wide)), 1e-5);
            near(&again, &formula(&g, &u), 1e-6);
        }
    }

    #[test]
    fn rows_of_bf16_are_rounded_once() {
        let (mut pool, set) = (Pool::new(1), Instructions::best());
        let round = |x: Vec<f32>| x.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
        let (gate, up) = (round(random(40, 1)), round(random(40, 2)));
        let (mut half, mut whole) = (vec![bf16::ZERO; 40], vec![0f32; 40]);
        let pair = || (Span::new(&gate, 20, 17), Span::new(&up, 20, 17));
        forward(&mut pool, set, pair(), SpanMut::new(&mut half, 20, 17));
        forward(&mut pool, set, pair(), SpanMut::new(&mut whole, 20, 17));
        assert!(half.iter().zip(&whole).all(|(half, whole)| *half == bf16::from_f32(*whole)));
        assert!(half[17..20].iter().all(|gap| *gap == bf16::ZERO), "what lies between rows stays");
    }

    #[test]
    #[should_panic(expected = "1 rows of 4 where 2 of 4 are due")]
    fn rows_that_are_not_as_many_are_refused() {
        let (gate, up, mut inner) = ([0f32; 8], [0f32; 4], [0f32; 8]);
        let pair = (Span::packed(&gate, 4), Span::packed(&up, 4));
        forward(&mut Pool::new(1), Instructions::Portable, pair, SpanMut::packed(&mut inner, 4));
    }
}
