//! The root-mean-square norm of rows with a frozen scale, and the way back through it (Zhang and Sennrich 2019). Refuses
//! to train the scale.

use super::kept::{Kept, Span, SpanMut, each_row, load, store, with_kept};
use crate::kernels::lanes::{LANES, Lanes};
use crate::kernels::pool::{Pointer, Pool};
use crate::kernels::product::Instructions;

/// # Safety
/// As [`Lanes`]; the three rows have one length.
#[inline(always)]
unsafe fn forward_row<V: Lanes, X: Kept, E: Kept>(x: &[X], scale: &[f32], eps: f32, y: &mut [E], inverse: &mut f32) {
    let width = x.len();
    // SAFETY: `count` numbers from `at` on are within each row.
    unsafe {
        let mut squares = V::splat(0.0);
        for at in (0..width).step_by(LANES) {
            let x = load::<V, X>(x.as_ptr().add(at), width - at);
            squares = x.fma(x, squares);
        }
        *inverse = 1.0 / (squares.sum() / width as f32 + eps).sqrt();
        let r = V::splat(*inverse);
        for at in (0..width).step_by(LANES) {
            let count = width - at;
            let x = load::<V, X>(x.as_ptr().add(at), count).mul(r);
            store(x.mul(load::<V, f32>(scale.as_ptr().add(at), count)), y.as_mut_ptr().add(at), count);
        }
    }
}

with_kept! {
    /// # Safety
    /// The three rows have one length.
    unsafe fn forward_of[X, E](x: &[X], scale: &[f32], eps: f32, y: &mut [E], inverse: &mut f32) = forward_row;
}

/// `y = x·r·scale` with `r = 1/√(mean(x²) + eps)` by row; `r` goes into `inverse[rows]`.
///
/// # Panics
/// The lengths do not fit.
pub fn forward<X: Kept, E: Kept>(
    pool: &mut Pool,
    set: Instructions,
    x: Span<'_, X>,
    (scale, eps): (&[f32], f32),
    y: SpanMut<'_, E>,
    inverse: &mut [f32],
) {
    let rows = x.rows();
    x.expect(rows, scale.len());
    y.expect(rows, scale.len());
    assert!(inverse.len() == rows, "{} inverses where {rows} rows are normed", inverse.len());
    let inverse = Pointer(inverse.as_mut_ptr());
    each_row(pool, rows, &|row| {
        // SAFETY: each row is one task's; widths as checked.
        unsafe { forward_of(set, x.row(row), scale, eps, y.row(row), &mut *inverse.at(row)) };
    });
}

/// # Safety
/// As [`Lanes`]; the four rows have one length.
#[inline(always)]
unsafe fn backward_row<V: Lanes, X: Kept, D: Kept>(x: &[X], scale: &[f32], inverse: f32, dy: &[D], dx: &mut [f32]) {
    let width = x.len();
    // SAFETY: `count` numbers from `at` on are within each row.
    unsafe {
        let mut pulls = V::splat(0.0);
        for at in (0..width).step_by(LANES) {
            let count = width - at;
            let g = load::<V, D>(dy.as_ptr().add(at), count).mul(load(scale.as_ptr().add(at), count));
            pulls = g.fma(load::<V, X>(x.as_ptr().add(at), count), pulls);
        }
        let (r, pull) = (V::splat(inverse), V::splat(-inverse * inverse * inverse * pulls.sum() / width as f32));
        for at in (0..width).step_by(LANES) {
            let count = width - at;
            let g = load::<V, D>(dy.as_ptr().add(at), count).mul(load(scale.as_ptr().add(at), count));
            let to = dx.as_mut_ptr().add(at);
            let sum = g.fma(r, load::<V, f32>(to, count));
            store(load::<V, X>(x.as_ptr().add(at), count).fma(pull, sum), to, count);
        }
    }
}

with_kept! {
    /// # Safety
    /// The four rows have one length.
    unsafe fn backward_of[X, D](x: &[X], scale: &[f32], inverse: f32, dy: &[D], dx: &mut [f32]) = backward_row;
}

/// Adds `r·g − x·r³·mean(g·x)`, `g = dy·scale`, to the gradient of the stream, by row.
///
/// # Panics
/// The lengths do not fit.
pub fn backward<X: Kept, D: Kept>(
    pool: &mut Pool,
    set: Instructions,
    x: Span<'_, X>,
    (scale, inverse): (&[f32], &[f32]),
    dy: Span<'_, D>,
    dx: SpanMut<'_, f32>,
) {
    let rows = inverse.len();
    x.expect(rows, scale.len());
    dy.expect(rows, scale.len());
    dx.expect(rows, scale.len());
    each_row(pool, rows, &|row| {
        // SAFETY: each row is one task's; widths as checked.
        unsafe { backward_of(set, x.row(row), scale, inverse[row], dy.row(row), dx.row(row)) };
    });
}

#[cfg(test)]
mod tests {
    use super::super::check::{dot, exact, near, random, slope};
    use super::*;
    use half::bf16;

    const EPS: f32 = 1e-5;

    fn formula(x: &[f64], scale: &[f64]) -> Vec<f64> {
        let rows = x.chunks_exact(scale.len());
        let norm = |row: &[f64]| 1.0 / (dot(row, row) / row.len() as f64 + f64::from(EPS)).sqrt();
        rows.flat_map(|row| row.iter().zip(scale).map(move |(x, w)| x * norm(row) * w)).collect()
    }

    #[test]
    fn both_ways_are_those_of_the_formula() {
        let mut pool = Pool::new(2);
        for (rows, width, set) in [(3, 7), (9, 16), (11, 45)]
            .into_iter()
            .flat_map(|(r, w)| Instructions::available().into_iter().map(move |set| (r, w, set)))
        {
            let (x, scale, dy) = (random(rows * width, 1), random(width, 2), random(rows * width, 3));
            let (mut y, mut inverse) = (vec![0f32; rows * width], vec![0f32; rows]);
            let span = Span::packed(&x, width);
            forward(&mut pool, set, span, (&scale, EPS), SpanMut::packed(&mut y, width), &mut inverse);
            let (wide, w) = (exact(&x), exact(&scale));
            near(&y, &formula(&wide, &w), 1e-6);
            let mut halves = vec![bf16::ZERO; rows * width];
            forward(&mut pool, set, span, (&scale, EPS), SpanMut::packed(&mut halves, width), &mut inverse);
            assert!(halves.iter().zip(&y).all(|(half, y)| *half == bf16::from_f32(*y)));
            let mut dx = vec![0.5f32; rows * width];
            let (dy_span, to) = (Span::packed(&dy, width), SpanMut::packed(&mut dx, width));
            backward(&mut pool, set, span, (&scale, &inverse), dy_span, to);
            let expected = slope(&wide, |x| dot(&formula(x, &w), &exact(&dy)));
            near(&dx, &expected.iter().map(|d| d + 0.5).collect::<Vec<_>>(), 1e-5);
        }
    }

    #[test]
    #[should_panic(expected = "2 rows of 4 where 2 of 3 are due")]
    fn a_scale_of_another_width_is_refused() {
        let (x, mut y, mut inverse) = ([0f32; 8], [0f32; 8], [0f32; 2]);
        let to = SpanMut::packed(&mut y, 4);
        forward(&mut Pool::new(1), Instructions::Portable, Span::packed(&x, 4), (&[1.0; 3], EPS), to, &mut inverse);
    }
}
