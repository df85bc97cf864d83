//! The products with 512-bit registers: one lane for each output of a tile, `vpdpbusd` for quantised weights. Several rows
//! share the weights in registers; the sum of a row does not depend on how many.

use super::{Job, LowRank, OutRows, Run};
use crate::kernels::activation::{InputBlock, quantise_row};
use crate::kernels::packed::{PackKind, PackedMatrix, TILE, q8_quants_at};
use std::arch::x86_64::*;
use std::ops::Range;

/// How many bytes ahead weights are asked for; measured.
const AHEAD: usize = 2048;

/// Whether the processor has what this file uses.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
}

/// [`quantise_row`] in these instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn quantise(x: &[f32], out: &mut [InputBlock]) {
    quantise_row(x, out);
}

/// One tile for all rows of a job.
///
/// # Safety
/// The bounds of the job are checked.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn tile(job: Job<'_>, out: &mut OutRows<'_>) {
    let mut row = 0;
    while row < job.rows {
        // SAFETY: as the caller promises, and the rows that are taken are there.
        row += unsafe {
            match job.rows - row {
                12.. => rows::<12>(job, row, out),
                8.. => rows::<8>(job, row, out),
                4.. => rows::<4>(job, row, out),
                2.. => rows::<2>(job, row, out),
                _ => rows::<1>(job, row, out),
            }
        };
    }
}

/// `R` rows from `row` on; returns `R`.
///
/// # Safety
/// The bounds of the job are checked.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn rows<const R: usize>(job: Job<'_>, row: usize, out: &mut OutRows<'_>) -> usize {
    let weights = job.w.tile(job.tile).as_ptr();
    let first = job.first_row + row;
    let kind = job.w.kind();
    // SAFETY: a tile has as many blocks, or columns, as a row of inputs of the same length; the bounds are checked.
    let sums = unsafe {
        if kind.is_quantised() {
            let x = std::array::from_fn(|r| job.x.blocks(first + r).as_ptr());
            match kind {
                PackKind::Q4 => sum_q4::<R>(x, weights, job.x.row_blocks()),
                PackKind::Q6 => sum_q6::<R>(x, weights, job.x.row_blocks()),
                _ => sum_q8::<R>(x, weights, job.x.row_blocks()),
            }
        } else {
            let x = std::array::from_fn(|r| job.x.floats(first + r).as_ptr());
            match kind {
                PackKind::F16 => sum_f16::<R>(x, weights, job.x.cols()),
                PackKind::Bf16 => sum_bf16::<R>(x, weights, job.x.cols()),
                _ => sum_f32::<R>(x, weights, job.x.cols()),
            }
        }
    };
    let lanes = job.w.tile_rows(job.tile);
    for (r, sum) in sums.into_iter().enumerate() {
        put(sum, out.part(row + r, job.tile * TILE, lanes), job.accumulate);
    }
    R
}

/// The chosen columns of some tiles for all rows: row after row, so that what is done once for a row is not done for each tile
/// (a tile of a narrow matrix is a few loads).
///
/// # Safety
/// The bounds are checked.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn columns(x: &LowRank<'_>, w: &PackedMatrix, tiles: Range<usize>, out: &mut OutRows<'_>) {
    for row in (0..x.rows()).filter(|row| x.is_chosen(*row)) {
        let h = x.row(row, w.cols());
        let is_whole = *x.runs(row) == [Run { first: 0, len: w.cols() }];
        // SAFETY: the caller checked that the columns of all runs are there; a run of all has as many as `h`.
        unsafe {
            match (is_whole, w.cols()) {
                (true, 4) => all_columns::<4>(h, w, tiles.clone(), row, out),
                (true, 8) => all_columns::<8>(h, w, tiles.clone(), row, out),
                (true, 16) => all_columns::<16>(h, w, tiles.clone(), row, out),
                _ => some_columns(h, x.runs(row), w, tiles.clone(), row, out),
            }
        }
    }
}

/// All of `N` columns for one row, whose numbers stay in registers; the same sums as [`some_columns`].
///
/// # Safety
/// There are `N` columns and numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn all_columns<const N: usize>(
    h: &[f32],
    w: &PackedMatrix,
    tiles: Range<usize>,
    row: usize,
    out: &mut OutRows<'_>,
) {
    let h: [__m512; N] = std::array::from_fn(|col| _mm512_set1_ps(h[col]));
    for tile in tiles {
        let weights = w.tile(tile).as_ptr();
        let mut sum = _mm512_setzero_ps();
        for (col, h) in h.iter().enumerate() {
            // SAFETY: as the caller promises.
            sum = unsafe { _mm512_fmadd_ps(load_halves(weights.add(col * 32)), *h, sum) };
        }
        put(sum, out.part(row, tile * TILE, w.tile_rows(tile)), true);
    }
}

/// Some columns for one row.
///
/// # Safety
/// The columns of all runs are there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn some_columns(
    h: &[f32],
    runs: &[Run],
    w: &PackedMatrix,
    tiles: Range<usize>,
    row: usize,
    out: &mut OutRows<'_>,
) {
    for tile in tiles {
        let weights = w.tile(tile).as_ptr();
        let mut sum = _mm512_setzero_ps();
        for col in runs.iter().flat_map(|run| run.first..run.first + run.len) {
            // SAFETY: as the caller promises.
            let column = unsafe { load_halves(weights.add(col * 32)) };
            sum = _mm512_fmadd_ps(column, _mm512_set1_ps(h[col]), sum);
        }
        put(sum, out.part(row, tile * TILE, w.tile_rows(tile)), true);
    }
}

/// Writes or adds as many lanes as `out` is long, at most 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn put(sum: __m512, out: &mut [f32], accumulate: bool) {
    let mask = (((1u32 << out.len().min(TILE)) - 1) & 0xffff) as __mmask16;
    // SAFETY: the mask covers exactly the numbers of `out`.
    unsafe {
        let before = if accumulate { _mm512_maskz_loadu_ps(mask, out.as_ptr()) } else { _mm512_setzero_ps() };
        let sum = if accumulate { _mm512_add_ps(before, sum) } else { sum };
        _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, sum);
    }
}

/// 16 halves as floats.
///
/// # Safety
/// 32 bytes can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_halves(at: *const u8) -> __m512 {
    // SAFETY: as the caller promises.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
}

/// Asks for `LINES` cache lines of weights that will be read soon: of this tile or of the next one, which follows it.
#[inline]
#[target_feature(enable = "avx512f")]
fn fetch_ahead<const LINES: usize>(at: *const u8) {
    for line in 0..LINES {
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD + line * 64).cast());
    }
}

/// A body for each row number below a constant, written out: in a loop the compiler would keep the sums of the rows in memory
/// and wait for each (three times slower).
macro_rules! each_row {
    ($rows:ident, $row:ident, $body:block) => {
        each_row!($rows, $row, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    ($rows:ident, $row:ident, $body:block, $($number:literal)*) => {
        $(if $number < $rows {
            let $row = $number;
            $body
        })*
    };
}

/// Inputs `4·group` to `4·group + 3` of a block in every lane.
///
/// # Safety
/// `x` points to a block; `group` is below 8.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn four(x: *const InputBlock, group: usize) -> __m512i {
    // SAFETY: as the caller promises; the quants begin at a multiple of 4 bytes.
    _mm512_set1_epi32(unsafe { (&raw const (*x).q).cast::<i32>().add(group).read_unaligned() })
}

/// # Safety
/// Every `x` points to `blocks` blocks and `w` to a tile of as many.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn sum_q4<const R: usize>(x: [*const InputBlock; R], w: *const u8, blocks: usize) -> [__m512; R] {
    let low = _mm512_set1_epi8(15);
    let mut sums = [_mm512_setzero_ps(); R];
    for block in 0..blocks {
        // SAFETY: `block` is below `blocks`.
        unsafe {
            let at = w.add(block * 320);
            fetch_ahead::<5>(at);
            let bytes: [__m512i; 4] = std::array::from_fn(|g| _mm512_load_si512(at.add(64 + g * 64).cast()));
            let first = bytes.map(|b| _mm512_and_si512(b, low));
            let second = bytes.map(|b| _mm512_and_si512(_mm512_srli_epi16::<4>(b), low));
            let (scales, minima) = (load_halves(at), load_halves(at.add(32)));
            each_row!(R, r, {
                let x = x[r].add(block);
                let mut dot = _mm512_setzero_si512();
                for g in 0..4 {
                    dot = _mm512_dpbusd_epi32(dot, first[g], four(x, g));
                    dot = _mm512_dpbusd_epi32(dot, second[g], four(x, 4 + g));
                }
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps((*x).scale));
                sums[r] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot), sums[r]);
                sums[r] = _mm512_fmadd_ps(minima, _mm512_set1_ps((*x).scaled_sum), sums[r]);
            });
        }
    }
    sums
}

/// # Safety
/// Every `x` points to `blocks` blocks and `w` to a tile of as many.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn sum_q8<const R: usize>(x: [*const InputBlock; R], w: *const u8, blocks: usize) -> [__m512; R] {
    let mut sums = [_mm512_setzero_ps(); R];
    for block in 0..blocks {
        // SAFETY: `block` is below `blocks`.
        unsafe {
            let at = w.add(q8_quants_at(blocks) + block * 512);
            fetch_ahead::<8>(at);
            let bytes: [__m512i; 8] = std::array::from_fn(|g| _mm512_load_si512(at.add(g * 64).cast()));
            let scales = load_halves(w.add(block * 32));
            each_row!(R, r, {
                let x = x[r].add(block);
                let mut dot = _mm512_set1_epi32(-128 * ((*x).sums[0] + (*x).sums[1]));
                for (g, &weights) in bytes.iter().enumerate() {
                    dot = _mm512_dpbusd_epi32(dot, weights, four(x, g));
                }
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps((*x).scale));
                sums[r] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot), sums[r]);
            });
        }
    }
    sums
}

/// # Safety
/// Every `x` points to `blocks` blocks and `w` to a tile of as many.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn sum_q6<const R: usize>(x: [*const InputBlock; R], w: *const u8, blocks: usize) -> [__m512; R] {
    let mut sums = [_mm512_setzero_ps(); R];
    for block in 0..blocks {
        for half in 0..2 {
            // SAFETY: `block` is below `blocks`.
            unsafe {
                let at = w.add(block * 576);
                let quants = at.add(64 + half * 256);
                let bytes: [__m512i; 4] = std::array::from_fn(|g| _mm512_load_si512(quants.add(g * 64).cast()));
                let scales = load_halves(at.add(half * 32));
                each_row!(R, r, {
                    let x = x[r].add(block);
                    let mut dot = _mm512_set1_epi32(-32 * (*x).sums[half]);
                    for (g, &weights) in bytes.iter().enumerate() {
                        dot = _mm512_dpbusd_epi32(dot, weights, four(x, half * 4 + g));
                    }
                    let scale = _mm512_mul_ps(scales, _mm512_set1_ps((*x).scale));
                    sums[r] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot), sums[r]);
                });
            }
        }
    }
    sums
}

/// # Safety
/// Every `x` points to `cols` numbers and `w` to a tile of as many columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn sum_f16<const R: usize>(x: [*const f32; R], w: *const u8, cols: usize) -> [__m512; R] {
    let mut sums = [_mm512_setzero_ps(); R];
    for col in 0..cols {
        // SAFETY: `col` is below `cols`.
        unsafe {
            let weights = load_halves(w.add(col * 32));
            each_row!(R, r, {
                sums[r] = _mm512_fmadd_ps(weights, _mm512_set1_ps(*x[r].add(col)), sums[r]);
            });
        }
    }
    sums
}

/// # Safety
/// Every `x` points to `cols` numbers, rounded up to an even count, and `w` to a tile of as many columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn sum_bf16<const R: usize>(x: [*const f32; R], w: *const u8, cols: usize) -> [__m512; R] {
    let upper = _mm512_set1_epi32(0xffff_0000u32.cast_signed());
    let mut sums = [_mm512_setzero_ps(); R];
    for pair in 0..cols.div_ceil(2) {
        // SAFETY: inputs are padded with zeros to whole blocks, tiles to whole pairs.
        unsafe {
            let both = _mm512_load_si512(w.add(pair * 64).cast());
            let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(both));
            let odd = _mm512_castsi512_ps(_mm512_and_si512(both, upper));
            each_row!(R, r, {
                sums[r] = _mm512_fmadd_ps(even, _mm512_set1_ps(*x[r].add(pair * 2)), sums[r]);
                sums[r] = _mm512_fmadd_ps(odd, _mm512_set1_ps(*x[r].add(pair * 2 + 1)), sums[r]);
            });
        }
    }
    sums
}

/// # Safety
/// Every `x` points to `cols` numbers and `w` to a tile of as many columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn sum_f32<const R: usize>(x: [*const f32; R], w: *const u8, cols: usize) -> [__m512; R] {
    let mut sums = [_mm512_setzero_ps(); R];
    for col in 0..cols {
        // SAFETY: `col` is below `cols`.
        unsafe {
            let weights = _mm512_load_ps(w.add(col * 64).cast());
            each_row!(R, r, {
                sums[r] = _mm512_fmadd_ps(weights, _mm512_set1_ps(*x[r].add(col)), sums[r]);
            });
        }
    }
    sums
}
