//! The products with 256-bit registers: half a tile at a time, 8 outputs a register. The same operations in the same order as with
//! 512 bits, so the same bits; `vpmaddubsw` stands for `vpdpbusd` where its 16-bit sums cannot overflow.

use super::{Job, LowRank, OutRows};
use crate::kernels::activation::{InputBlock, quantise_row};
use crate::kernels::packed::{PackKind, PackedMatrix, TILE, q8_quants_at};
use std::arch::x86_64::*;
use std::ops::Range;

/// Outputs of a register.
const LANES: usize = 8;

/// Whether the processor has what this file uses.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// [`quantise_row`] in these instructions.
#[target_feature(enable = "avx2")]
pub(super) fn quantise(x: &[f32], out: &mut [InputBlock]) {
    quantise_row(x, out);
}

/// One tile for all rows of a job.
///
/// # Safety
/// The bounds of the job are checked.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile(job: Job<'_>, out: &mut OutRows<'_>) {
    let mut row = 0;
    while row < job.rows {
        // SAFETY: as the caller promises, and the rows that are taken are there.
        row += unsafe {
            match job.rows - row {
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
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows<const R: usize>(job: Job<'_>, row: usize, out: &mut OutRows<'_>) -> usize {
    let weights = job.w.tile(job.tile).as_ptr();
    let first = job.first_row + row;
    let kind = job.w.kind();
    let lanes_all = job.w.tile_rows(job.tile);
    for half in 0..lanes_all.div_ceil(LANES) {
        // SAFETY: a tile has as many blocks, or columns, as a row of inputs of the same length; the bounds are checked.
        let sums = unsafe {
            if kind.is_quantised() {
                let x = std::array::from_fn(|r| job.x.blocks(first + r).as_ptr());
                match kind {
                    PackKind::Q4 => sum_q4::<R>(x, weights, half, job.x.row_blocks()),
                    PackKind::Q6 => sum_q6::<R>(x, weights, half, job.x.row_blocks()),
                    _ => sum_q8::<R>(x, weights, half, job.x.row_blocks()),
                }
            } else {
                let x = std::array::from_fn(|r| job.x.floats(first + r).as_ptr());
                match kind {
                    PackKind::F16 => sum_f16::<R>(x, weights, half, job.x.cols()),
                    PackKind::Bf16 => sum_bf16::<R>(x, weights, half, job.x.cols()),
                    _ => sum_f32::<R>(x, weights, half, job.x.cols()),
                }
            }
        };
        let lanes = (lanes_all - half * LANES).min(LANES);
        for (r, sum) in sums.into_iter().enumerate() {
            put(sum, out.part(row + r, job.tile * TILE + half * LANES, lanes), job.accumulate);
        }
    }
    R
}

/// The chosen columns of some tiles for all rows.
///
/// # Safety
/// The bounds are checked.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn columns(x: &LowRank<'_>, w: &PackedMatrix, tiles: Range<usize>, out: &mut OutRows<'_>) {
    for row in (0..x.rows()).filter(|row| x.is_chosen(*row)) {
        let h = x.row(row, w.cols()).as_ptr();
        for half in tiles.start * 2..tiles.end * 2 {
            let (tile, half) = (half / 2, half % 2);
            let lanes = w.tile_rows(tile).saturating_sub(half * LANES).min(LANES);
            let weights = w.tile(tile).as_ptr();
            let mut sum = _mm256_setzero_ps();
            for run in x.runs(row) {
                for col in run.first..run.first + run.len {
                    // SAFETY: the caller checked that the columns of all runs are there.
                    unsafe {
                        let column = load_halves(weights.add(col * 32 + half * 16));
                        sum = _mm256_fmadd_ps(column, _mm256_set1_ps(*h.add(col)), sum);
                    }
                }
            }
            if lanes > 0 {
                put(sum, out.part(row, tile * TILE + half * LANES, lanes), true);
            }
        }
    }
}

/// Writes or adds as many lanes as `out` is long, at most 8.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn put(sum: __m256, out: &mut [f32], accumulate: bool) {
    let mut lanes = [0f32; LANES];
    // SAFETY: `lanes` has room for a register.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    if accumulate {
        out.iter_mut().zip(lanes).for_each(|(out, lane)| *out += lane);
    } else {
        out.iter_mut().zip(lanes).for_each(|(out, lane)| *out = lane);
    }
}

/// 8 halves as floats.
///
/// # Safety
/// 16 bytes can be read.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn load_halves(at: *const u8) -> __m256 {
    // SAFETY: as the caller promises.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
}

/// Inputs `4·group` to `4·group + 3` of a block in every lane.
///
/// # Safety
/// `x` points to a block; `group` is below 8.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four(x: *const InputBlock, group: usize) -> __m256i {
    // SAFETY: as the caller promises; the quants begin at a multiple of 4 bytes.
    _mm256_set1_epi32(unsafe { (&raw const (*x).q).cast::<i32>().add(group).read_unaligned() })
}

/// # Safety
/// `at` has 32 bytes at each of `groups` groups of 64.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_groups<const G: usize>(at: *const u8) -> [__m256i; G] {
    // SAFETY: as the caller promises.
    std::array::from_fn(|g| unsafe { _mm256_load_si256(at.add(g * 64).cast()) })
}

/// # Safety
/// Every `x` points to `blocks` blocks and `w` to a tile of as many.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sum_q4<const R: usize>(x: [*const InputBlock; R], w: *const u8, half: usize, blocks: usize) -> [__m256; R] {
    let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let mut sums = [_mm256_setzero_ps(); R];
    for block in 0..blocks {
        // SAFETY: `block` is below `blocks`.
        unsafe {
            let at = w.add(block * 320);
            let bytes: [__m256i; 4] = load_groups(at.add(64 + half * 32));
            let first = bytes.map(|b| _mm256_and_si256(b, low));
            let second = bytes.map(|b| _mm256_and_si256(_mm256_srli_epi16::<4>(b), low));
            let (scales, minima) = (load_halves(at.add(half * 16)), load_halves(at.add(32 + half * 16)));
            for r in 0..R {
                let x = x[r].add(block);
                // 16 products of at most 15·127 stay below 2^15.
                let mut pairs = _mm256_setzero_si256();
                for g in 0..4 {
                    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(first[g], four(x, g)));
                    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(second[g], four(x, 4 + g)));
                }
                let dot = _mm256_madd_epi16(pairs, ones);
                let scale = _mm256_mul_ps(scales, _mm256_set1_ps((*x).scale));
                sums[r] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), sums[r]);
                sums[r] = _mm256_fmadd_ps(minima, _mm256_set1_ps((*x).scaled_sum), sums[r]);
            }
        }
    }
    sums
}

/// # Safety
/// Every `x` points to `blocks` blocks and `w` to a tile of as many.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sum_q8<const R: usize>(x: [*const InputBlock; R], w: *const u8, half: usize, blocks: usize) -> [__m256; R] {
    let (sign, ones) = (_mm256_set1_epi8(-128), _mm256_set1_epi16(1));
    let mut sums = [_mm256_setzero_ps(); R];
    for block in 0..blocks {
        // SAFETY: `block` is below `blocks`.
        unsafe {
            let at = w.add(q8_quants_at(blocks) + block * 512 + half * 32);
            let bytes: [__m256i; 8] = load_groups(at);
            let scales = load_halves(w.add(block * 32 + half * 16));
            for r in 0..R {
                let x = x[r].add(block);
                let mut dot = _mm256_setzero_si256();
                for (g, &weights) in bytes.iter().enumerate() {
                    // |w|·(x·sign w): two products of at most 128·127 stay below 2^15.
                    let signed = _mm256_xor_si256(weights, sign);
                    let moved = _mm256_sign_epi8(four(x, g), signed);
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(signed), moved);
                    dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, ones));
                }
                let scale = _mm256_mul_ps(scales, _mm256_set1_ps((*x).scale));
                sums[r] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), sums[r]);
            }
        }
    }
    sums
}

/// # Safety
/// Every `x` points to `blocks` blocks and `w` to a tile of as many.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sum_q6<const R: usize>(x: [*const InputBlock; R], w: *const u8, half: usize, blocks: usize) -> [__m256; R] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_ps(); R];
    for block in 0..blocks {
        for part in 0..2 {
            // SAFETY: `block` is below `blocks`.
            unsafe {
                let at = w.add(block * 576);
                let bytes: [__m256i; 4] = load_groups(at.add(64 + part * 256 + half * 32));
                let scales = load_halves(at.add(part * 32 + half * 16));
                for r in 0..R {
                    let x = x[r].add(block);
                    let mut dot = _mm256_set1_epi32(-32 * (*x).sums[part]);
                    for (g, &weights) in bytes.iter().enumerate() {
                        // Two products of at most 63·127 stay below 2^15.
                        let pairs = _mm256_maddubs_epi16(weights, four(x, part * 4 + g));
                        dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, ones));
                    }
                    let scale = _mm256_mul_ps(scales, _mm256_set1_ps((*x).scale));
                    sums[r] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), sums[r]);
                }
            }
        }
    }
    sums
}

/// # Safety
/// Every `x` points to `cols` numbers and `w` to a tile of as many columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sum_f16<const R: usize>(x: [*const f32; R], w: *const u8, half: usize, cols: usize) -> [__m256; R] {
    let mut sums = [_mm256_setzero_ps(); R];
    for col in 0..cols {
        // SAFETY: `col` is below `cols`.
        unsafe {
            let weights = load_halves(w.add(col * 32 + half * 16));
            for r in 0..R {
                sums[r] = _mm256_fmadd_ps(weights, _mm256_set1_ps(*x[r].add(col)), sums[r]);
            }
        }
    }
    sums
}

/// # Safety
/// Every `x` points to `cols` numbers, rounded up to an even count, and `w` to a tile of as many columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sum_bf16<const R: usize>(x: [*const f32; R], w: *const u8, half: usize, cols: usize) -> [__m256; R] {
    let upper = _mm256_set1_epi32(0xffff_0000u32.cast_signed());
    let mut sums = [_mm256_setzero_ps(); R];
    for pair in 0..cols.div_ceil(2) {
        // SAFETY: inputs are padded with zeros to whole blocks, tiles to whole pairs.
        unsafe {
            let both = _mm256_load_si256(w.add(pair * 64 + half * 32).cast());
            let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(both));
            let odd = _mm256_castsi256_ps(_mm256_and_si256(both, upper));
            for r in 0..R {
                sums[r] = _mm256_fmadd_ps(even, _mm256_set1_ps(*x[r].add(pair * 2)), sums[r]);
                sums[r] = _mm256_fmadd_ps(odd, _mm256_set1_ps(*x[r].add(pair * 2 + 1)), sums[r]);
            }
        }
    }
    sums
}

/// # Safety
/// Every `x` points to `cols` numbers and `w` to a tile of as many columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sum_f32<const R: usize>(x: [*const f32; R], w: *const u8, half: usize, cols: usize) -> [__m256; R] {
    let mut sums = [_mm256_setzero_ps(); R];
    for col in 0..cols {
        // SAFETY: `col` is below `cols`.
        unsafe {
            let weights = _mm256_load_ps(w.add(col * 64 + half * 32).cast());
            for r in 0..R {
                sums[r] = _mm256_fmadd_ps(weights, _mm256_set1_ps(*x[r].add(col)), sums[r]);
            }
        }
    }
    sums
}
