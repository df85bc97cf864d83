//! Rows of one head on their way into block products, and sums on their way back into rows. Refuses to know what is
//! multiplied.

use crate::kernels::backward::kept::private::PANEL;
use crate::kernels::backward::kept::{Kept, load, store, with_kept};
use crate::kernels::lanes::{LANES, Lanes};
use crate::kernels::product::Instructions;

/// Rows of a block.
pub(super) const SIDE: usize = 64;

/// Some rows of one head in memory.
#[derive(Clone, Copy)]
pub(super) struct Source<E> {
    pub(super) start: *const E,
    /// Numbers from row to row.
    pub(super) stride: usize,
    /// Rows that there are.
    pub(super) count: usize,
    /// Columns that there are.
    pub(super) dim: usize,
}

/// # Safety
/// As [`Lanes`]; the source is readable, and there is room for `rows` rows of `width`, a multiple of sixteen.
#[inline(always)]
unsafe fn rows_into<V: Lanes, E: Kept, I: Kept>(source: Source<E>, rows: usize, width: usize, to: *mut I) {
    // SAFETY: by the caller.
    unsafe {
        for row in 0..source.count {
            let (from, to) = (source.start.add(row * source.stride), to.add(row * width));
            if E::PAIR == I::PAIR {
                // The same numbers.
                to.copy_from_nonoverlapping(from.cast(), source.dim);
                to.add(source.dim).write_bytes(0, width - source.dim);
                continue;
            }
            for at in (0..width).step_by(LANES) {
                let count = source.dim.saturating_sub(at);
                I::store(if count > 0 { load::<V, E>(from.add(at), count) } else { V::splat(0.0) }, to.add(at));
            }
        }
        for at in (source.count * width..rows * width).step_by(LANES) {
            I::store(V::splat(0.0), to.add(at));
        }
    }
}

with_kept! {
    /// The rows of a source as a left side `[rows, width]`, zeros where it has none.
    ///
    /// # Safety
    /// The source is readable, and there is room for `rows` rows of `width`, a multiple of sixteen.
    pub(super) unsafe fn fill[E, I](source: Source<E>, rows: usize, width: usize, to: *mut I) = rows_into;
}

/// # Safety
/// As [`Lanes`]; `rows` even, `width` a multiple of [`PANEL`], and there is room for a block.
#[inline(always)]
unsafe fn down_into<V: Lanes, I: Kept>(from: *const I, rows: usize, width: usize, to: *mut I) {
    // SAFETY: by the caller.
    unsafe {
        for row in (0..rows).step_by(2) {
            for at in (0..width).step_by(LANES) {
                let (even, odd) =
                    (I::load::<V>(from.add(row * width + at)), I::load::<V>(from.add((row + 1) * width + at)));
                let panel = to.add(at / PANEL * SIDE * PANEL + row * PANEL);
                I::store_rows(even, odd, panel, at % PANEL);
            }
        }
    }
}

with_kept! {
    /// A left side `[rows, width]` as a right side whose inner side is the rows: panels [`SIDE`]`·`[`PANEL`] apart.
    ///
    /// # Safety
    /// `rows` even, `width` a multiple of [`PANEL`], and there is room for a block.
    pub(super) unsafe fn down[I](from: *const I, rows: usize, width: usize, to: *mut I) = down_into;
}

/// A left side `[rows, width]` as a right side whose inner side is the width: panels `width·`[`PANEL`] apart.
///
/// # Safety
/// Both are multiples of [`PANEL`], and there is room for a block.
pub(super) unsafe fn across<I: Kept>(set: Instructions, from: *const I, rows: usize, width: usize, to: *mut I) {
    let words = width / I::PAIR;
    let (from, to) = (from.cast::<u32>(), to.cast::<u32>());
    for row in (0..rows).step_by(LANES) {
        for word in (0..words).step_by(LANES) {
            // SAFETY: by the caller.
            unsafe {
                let panel = to.add(row / PANEL * words * PANEL + word * PANEL + row % PANEL);
                transpose(set, (from.add(row * words + word), words), (panel, PANEL));
            }
        }
    }
}

/// What [`down`] wrote, as a left side `[width, `[`SIDE`]`]` whose rows are the columns.
///
/// # Safety
/// As [`down`], with `rows` a multiple of [`PANEL`].
pub(super) unsafe fn turned<I: Kept>(set: Instructions, from: *const I, rows: usize, width: usize, to: *mut I) {
    let (words, side) = (rows / I::PAIR, SIDE / I::PAIR);
    let (from, to) = (from.cast::<u32>(), to.cast::<u32>());
    for column in (0..width).step_by(LANES) {
        for word in (0..words).step_by(LANES) {
            // SAFETY: by the caller.
            unsafe {
                let panel = from.add(column / PANEL * side * PANEL + word * PANEL + column % PANEL);
                transpose(set, (panel, PANEL), (to.add(column * side + word), side));
            }
        }
    }
}

/// Sums `[width, `[`SIDE`]`]` as rows `[rows, width]`.
///
/// # Safety
/// Both are multiples of sixteen, and there is room.
pub(super) unsafe fn upright(set: Instructions, from: *const f32, rows: usize, width: usize, to: *mut f32) {
    for row in (0..rows).step_by(LANES) {
        for column in (0..width).step_by(LANES) {
            // SAFETY: by the caller.
            unsafe {
                transpose(
                    set,
                    (from.add(column * SIDE + row).cast(), SIDE),
                    (to.add(row * width + column).cast(), width),
                );
            }
        }
    }
}

/// # Safety
/// As [`Lanes`]; both rows have `dim` numbers.
#[inline(always)]
unsafe fn row_into<V: Lanes, F: Kept>(from: *const f32, factor: f32, dim: usize, to: *mut F) {
    // SAFETY: by the caller.
    unsafe {
        for at in (0..dim).step_by(LANES) {
            store(load::<V, f32>(from.add(at), dim - at).mul(V::splat(factor)), to.add(at), dim - at);
        }
    }
}

with_kept! {
    /// `dim` numbers times a factor.
    ///
    /// # Safety
    /// Both rows have `dim` numbers.
    pub(super) unsafe fn put_row[F](from: *const f32, factor: f32, dim: usize, to: *mut F) = row_into;
}

/// Turns 16 × 16 words: row `i` becomes column `i`.
///
/// # Safety
/// Sixteen rows of sixteen words that far apart, to read and to write.
unsafe fn transpose(set: Instructions, from: (*const u32, usize), to: (*mut u32, usize)) {
    // SAFETY: by the caller; the engine saw that the instructions are there.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if set == Instructions::Avx512 {
            return wide_transpose(from, to);
        }
        let _ = set;
        for row in 0..LANES {
            for column in 0..LANES {
                to.0.add(column * to.1 + row).write(*from.0.add(row * from.1 + column));
            }
        }
    }
}

/// # Safety
/// As [`transpose`], and the processor has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn wide_transpose(from: (*const u32, usize), to: (*mut u32, usize)) {
    use std::arch::x86_64::*;
    // SAFETY: by the caller.
    unsafe {
        let rows: [__m512; LANES] = std::array::from_fn(|i| _mm512_loadu_ps(from.0.add(i * from.1).cast()));
        let twos: [__m512d; LANES] = std::array::from_fn(|i| {
            let (a, b) = (rows[i & !1], rows[i | 1]);
            _mm512_castps_pd(if i & 1 == 0 { _mm512_unpacklo_ps(a, b) } else { _mm512_unpackhi_ps(a, b) })
        });
        // In each quarter `l` of `fours[4g + c]`: column `4l + c` of the rows `4g..4g + 4`.
        let fours: [__m512; LANES] = std::array::from_fn(|i| {
            let (a, b) = (twos[i & !3 | i >> 1 & 1], twos[i & !3 | 2 | i >> 1 & 1]);
            _mm512_castpd_ps(if i & 1 == 0 { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) })
        });
        for c in 0..4 {
            let even = |a, b| _mm512_shuffle_f32x4::<0x88>(a, b);
            let odd = |a, b| _mm512_shuffle_f32x4::<0xdd>(a, b);
            let (low, high) = ((fours[c], fours[4 + c]), (fours[8 + c], fours[12 + c]));
            let (a, a2) = (even(low.0, low.1), even(high.0, high.1));
            let (b, b2) = (odd(low.0, low.1), odd(high.0, high.1));
            let out = [even(a, a2), even(b, b2), odd(a, a2), odd(b, b2)];
            for (l, out) in out.into_iter().enumerate() {
                _mm512_storeu_ps(to.0.add((4 * l + c) * to.1).cast(), out);
            }
        }
    }
}
