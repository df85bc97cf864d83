//! The products in plain Rust, for any processor and as the easiest one to read. No fused operations.

use super::{Job, LowRank, OutRows};
use crate::kernels::activation::InputBlock;
use crate::kernels::packed::{PackKind, PackedMatrix, TILE, q8_quants_at};
use half::{bf16, f16};
use std::ops::Range;

/// One number for each output of a tile.
type Lanes = [f32; TILE];

/// One tile for all rows of a job.
pub(super) fn tile(job: Job<'_>, out: &mut OutRows<'_>) {
    let weights = job.w.tile(job.tile);
    for row in 0..job.rows {
        let x = job.first_row + row;
        let sums = match job.w.kind() {
            PackKind::Q4 => sum_q4(job.x.blocks(x), weights),
            PackKind::Q6 => sum_q6(job.x.blocks(x), weights),
            PackKind::Q8 => sum_q8(job.x.blocks(x), weights),
            kind => sum_floats(kind, &job.x.floats(x)[..job.x.cols()], weights),
        };
        let part = out.part(row, job.tile * TILE, job.w.tile_rows(job.tile));
        if job.accumulate {
            part.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
        } else {
            part.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum);
        }
    }
}

/// The chosen columns of some tiles for all rows.
pub(super) fn columns(x: &LowRank<'_>, w: &PackedMatrix, tiles: Range<usize>, out: &mut OutRows<'_>) {
    for row in (0..x.rows()).filter(|row| x.is_chosen(*row)) {
        let h = x.row(row, w.cols());
        for tile in tiles.clone() {
            let (weights, mut sums) = (w.tile(tile), [0.0; TILE]);
            for run in x.runs(row) {
                for col in run.first..run.first + run.len {
                    let column = halves(&weights[col * 32..]);
                    sums.iter_mut().zip(column).for_each(|(sum, weight)| *sum += weight * h[col]);
                }
            }
            let part = out.part(row, tile * TILE, w.tile_rows(tile));
            part.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
        }
    }
}

fn halves(bytes: &[u8]) -> Lanes {
    std::array::from_fn(|lane| f16::from_le_bytes([bytes[2 * lane], bytes[2 * lane + 1]]).to_f32())
}

/// Adds the products of four neighbouring inputs with the weights of all lanes.
fn dot(sums: &mut [i32; TILE], weights: &[u8], quants: &[i8], of: impl Fn(u8) -> u8) {
    for (sum, weights) in sums.iter_mut().zip(weights.as_chunks::<4>().0) {
        for (weight, quant) in weights.iter().zip(quants) {
            *sum += i32::from(of(*weight)) * i32::from(*quant);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "sums of 32 products of bytes are below 2^24")]
fn add_scaled(sums: &mut Lanes, scales: &Lanes, scale: f32, dots: &[i32; TILE]) {
    for lane in 0..TILE {
        sums[lane] += scales[lane] * scale * dots[lane] as f32;
    }
}

fn sum_q4(x: &[InputBlock], weights: &[u8]) -> Lanes {
    let mut sums = [0.0; TILE];
    for (x, block) in x.iter().zip(weights.as_chunks::<320>().0) {
        let mut dots = [0; TILE];
        for group in 0..4 {
            let bytes = &block[64 + group * 64..][..64];
            dot(&mut dots, bytes, &x.q[group * 4..][..4], |byte| byte & 15);
            dot(&mut dots, bytes, &x.q[16 + group * 4..][..4], |byte| byte >> 4);
        }
        add_scaled(&mut sums, &halves(block), x.scale, &dots);
        let minima = halves(&block[32..]);
        sums.iter_mut().zip(minima).for_each(|(sum, min)| *sum += min * x.scaled_sum);
    }
    sums
}

fn sum_q8(x: &[InputBlock], weights: &[u8]) -> Lanes {
    let mut sums = [0.0; TILE];
    let (scales, quants) = weights.split_at(q8_quants_at(x.len()));
    for ((x, scales), block) in x.iter().zip(scales.as_chunks::<32>().0).zip(quants.as_chunks::<512>().0) {
        let mut dots = [-128 * (x.sums[0] + x.sums[1]); TILE];
        for group in 0..8 {
            dot(&mut dots, &block[group * 64..][..64], &x.q[group * 4..][..4], |byte| byte);
        }
        add_scaled(&mut sums, &halves(scales), x.scale, &dots);
    }
    sums
}

fn sum_q6(x: &[InputBlock], weights: &[u8]) -> Lanes {
    let mut sums = [0.0; TILE];
    for (x, block) in x.iter().zip(weights.as_chunks::<576>().0) {
        for half in 0..2 {
            let mut dots = [-32 * x.sums[half]; TILE];
            for group in half * 4..half * 4 + 4 {
                dot(&mut dots, &block[64 + group * 64..][..64], &x.q[group * 4..][..4], |byte| byte);
            }
            add_scaled(&mut sums, &halves(&block[half * 32..]), x.scale, &dots);
        }
    }
    sums
}

fn sum_floats(kind: PackKind, x: &[f32], weights: &[u8]) -> Lanes {
    let mut sums = [0.0; TILE];
    for (col, &x) in x.iter().enumerate() {
        let column: Lanes = match kind {
            PackKind::F16 => halves(&weights[col * 32..]),
            PackKind::Bf16 => {
                let bytes = &weights[col / 2 * 64 + col % 2 * 2..];
                std::array::from_fn(|lane| bf16::from_le_bytes([bytes[4 * lane], bytes[4 * lane + 1]]).to_f32())
            }
            _ => {
                let bytes = &weights[col * 64..];
                std::array::from_fn(|lane| {
                    f32::from_le_bytes([bytes[4 * lane], bytes[4 * lane + 1], bytes[4 * lane + 2], bytes[4 * lane + 3]])
                })
            }
        };
        sums.iter_mut().zip(column).for_each(|(sum, weight)| *sum += weight * x);
    }
    sums
}
