//! Rotary positions of whole rows, forward and back: a turn is orthogonal, so the way back is the turn by the opposite
//! angle (times the sharpness that the table holds). Half-split: column `i` of a head turns with column
//! `i + head_dim/2`. Refuses to know rates and contexts.

use super::kept::{Kept, Span, SpanMut, each_row, load, store, with_kept};
use crate::kernels::attention::Turns;
use crate::kernels::lanes::{LANES, Lanes};
use crate::kernels::pool::Pool;
use crate::kernels::product::Instructions;

/// Which way heads are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the angle of the position.
    Forward,
    /// By its opposite: what a gradient of turned rows becomes.
    Back,
}

/// # Safety
/// As [`Lanes`]; whole heads of `2·cos.len()` columns at both places, which may be one.
#[inline(always)]
unsafe fn turn_row<V: Lanes, A: Kept, B: Kept>(
    from: *const A,
    to: *mut B,
    heads: usize,
    (cos, sin): (&[f32], &[f32]),
    sign: f32,
) {
    let half = cos.len();
    // SAFETY: `count` columns from `at` on are within each half.
    unsafe {
        for at in (0..half).step_by(LANES) {
            let count = half - at;
            let cos = load::<V, f32>(cos.as_ptr().add(at), count);
            let sin = load::<V, f32>(sin.as_ptr().add(at), count).mul(V::splat(sign));
            for head in 0..heads {
                let first = 2 * half * head + at;
                let (a, b) = (load::<V, A>(from.add(first), count), load::<V, A>(from.add(first + half), count));
                store(a.mul(cos).sub(b.mul(sin)), to.add(first), count);
                store(b.mul(cos).add(a.mul(sin)), to.add(first + half), count);
            }
        }
    }
}

with_kept! {
    /// # Safety
    /// Whole heads of `2·cos.len()` columns at both places, which may be one.
    unsafe fn turn_of[A, B](from: *const A, to: *mut B, heads: usize, turns: (&[f32], &[f32]), sign: f32) = turn_row;
}

impl Way {
    const fn sign(self) -> f32 {
        match self {
            Self::Forward => 1.0,
            Self::Back => -1.0,
        }
    }
}

/// Heads of a row; panics unless positions and widths fit.
fn heads(rows: usize, width: usize, turns: &Turns, positions: &[u32]) -> usize {
    assert!(positions.len() == rows, "{} positions for {rows} rows", positions.len());
    assert!(width.is_multiple_of(2 * turns.half()), "heads of {} do not divide rows of {width}", 2 * turns.half());
    assert!(positions.iter().all(|p| (*p as usize) < turns.positions()), "a position beyond the context");
    width / (2 * turns.half())
}

/// Turns each head of row `i` by `positions[i]`, in place.
///
/// # Panics
/// The lengths do not fit, or a position is beyond the table.
pub fn turn<E: Kept>(
    pool: &mut Pool,
    set: Instructions,
    rows: SpanMut<'_, E>,
    turns: &Turns,
    positions: &[u32],
    way: Way,
) {
    let heads = heads(rows.rows(), rows.width(), turns, positions);
    each_row(pool, rows.rows(), &|row| {
        // SAFETY: each row is one task's; whole heads as checked.
        unsafe {
            let at = rows.row(row).as_mut_ptr();
            turn_of::<E, E>(set, at, at, heads, turns.at(positions[row] as usize), way.sign());
        }
    });
}

/// Turns each head of row `i` of `from` by `positions[i]` into row `i` of `to`: one rounding where [`turn`] would add
/// a second.
///
/// # Panics
/// As [`turn`].
pub fn turned<A: Kept, B: Kept>(
    pool: &mut Pool,
    set: Instructions,
    (from, to): (Span<'_, A>, SpanMut<'_, B>),
    turns: &Turns,
    positions: &[u32],
    way: Way,
) {
    to.expect(from.rows(), from.width());
    let heads = heads(from.rows(), from.width(), turns, positions);
    each_row(pool, from.rows(), &|row| {
        // SAFETY: each row is one task's; whole heads as checked.
        unsafe {
            let turns = turns.at(positions[row] as usize);
            turn_of::<A, B>(set, from.row(row).as_ptr(), to.row(row).as_mut_ptr(), heads, turns, way.sign());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::check::{dot, exact, near, random};
    use super::*;

    fn table(half: usize, positions: usize) -> Vec<(f32, f32)> {
        (0..half * positions).map(|i| (1.2 * (i as f32 * 0.37).cos(), 1.2 * (i as f32 * 0.37).sin())).collect()
    }

    #[test]
    fn heads_turn_and_their_gradient_turns_back() {
        let mut pool = Pool::new(2);
        for set in Instructions::available() {
            for (half, heads) in [(3, 2), (16, 3), (20, 1)] {
                let (rows, width, at) = (10, 2 * half * heads, |row: usize| row * 7 % 5);
                let pairs = table(half, 5);
                let turns = Turns::new(half, 5, |position| &pairs[position * half..][..half]);
                let positions: Vec<u32> = (0..rows).map(|row| at(row) as u32).collect();
                let (x, dy) = (random(rows * width, 4), random(rows * width, 5));
                let (mut y, mut back) = (x.clone(), dy.clone());
                turn(&mut pool, set, SpanMut::packed(&mut y, width), &turns, &positions, Way::Forward);
                let expected: Vec<f64> = (0..rows * width)
                    .map(|i| {
                        let (row, column) = (i / width, i % (2 * half));
                        let (cos, sin) = pairs[at(row) * half + column % half];
                        let other = if column < half { -x[i + half] } else { x[i - half] };
                        f64::from(x[i]) * f64::from(cos) + f64::from(other) * f64::from(sin)
                    })
                    .collect();
                near(&y, &expected, 1e-6);
                turn(&mut pool, set, SpanMut::packed(&mut back, width), &turns, &positions, Way::Back);
                let (there, here) = (dot(&exact(&y), &exact(&dy)), dot(&exact(&x), &exact(&back)));
                assert!((there - here).abs() < 1e-4, "the way back is the transpose: {there}, {here}");
                let mut into = vec![0f32; rows * width];
                let to = (Span::packed(&x, width), SpanMut::packed(&mut into, width));
                turned(&mut pool, set, to, &turns, &positions, Way::Forward);
                assert_eq!(into, y);
            }
        }
    }

    #[test]
    #[should_panic(expected = "a position beyond the context")]
    fn a_position_beyond_the_table_is_refused() {
        let (pairs, mut x) = (table(2, 3), [0f32; 4]);
        let turns = Turns::new(2, 3, |position| &pairs[position * 2..][..2]);
        turn(&mut Pool::new(1), Instructions::Portable, SpanMut::packed(&mut x, 4), &turns, &[3], Way::Forward);
    }
}
