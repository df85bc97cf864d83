//! Products through the `gemm` crate: f32 as they are, bf16 widened to f32 a piece at a time. Refuses to know threads.

use super::operand::{PANEL, STEP};
use super::piece::{Piece, Stretch, Target};
use super::rounding::{round_row, widen_row};
use gemm::{Parallelism, gemm};
use half::bf16;
use std::slice::from_raw_parts;

/// A matrix of f32: its first number, from row to row, from column to column.
pub(super) type Plain = (*const f32, usize, usize);

/// `out = a·b`, or `out += a·b`; `[rows, k]` times `[k, columns]`.
///
/// # Safety
/// All numbers of these shapes are there, and nobody else touches those of `out`.
pub(super) unsafe fn multiply(
    out: (*mut f32, usize, usize),
    a: Plain,
    b: Plain,
    (rows, k, columns): (usize, usize, usize),
    add: bool,
) {
    let step = |stride: usize| isize::try_from(stride).expect("strides lie within slices");
    // SAFETY: by the caller.
    unsafe {
        gemm(
            rows,
            columns,
            k,
            out.0,
            step(out.2),
            step(out.1),
            add,
            a.0,
            step(a.2),
            step(a.1),
            b.0,
            step(b.2),
            step(b.1),
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Room of one thread for widened operands and for sums that are rounded; grows to the largest piece and stays.
#[derive(Default)]
pub(super) struct Widened {
    left: Vec<f32>,
    right: Vec<f32>,
    sums: Vec<f32>,
}

fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Computes a piece of bf16.
///
/// # Safety
/// That of [`Piece::new`] is enough.
pub(super) unsafe fn piece(piece: &Piece, scratch: &mut Widened) {
    let (rows, columns) = (piece.rows, piece.columns);
    let (out, stride, mut add) = match piece.target {
        Target::Set(out) => (out, piece.stride, false),
        Target::Add(out) => (out, piece.stride, true),
        Target::Half(_) => (room(&mut scratch.sums, rows * columns).as_mut_ptr(), columns, false),
    };
    for stretch in piece.stretches() {
        let k = stretch.steps * STEP;
        let wide = columns.next_multiple_of(PANEL);
        let left = room(&mut scratch.left, rows * k);
        let right = room(&mut scratch.right, k * wide);
        // SAFETY: the stretch has these rows and panels; the target is the piece's, or the scratch.
        unsafe {
            widen_left(stretch, left, k);
            widen_right(stretch, right, k, wide);
            multiply((out, stride, 1), (left.as_ptr(), k, 1), (right.as_ptr(), wide, 1), (rows, k, columns), add);
        }
        add = true;
    }
    if let Target::Half(to) = piece.target {
        for (row, sums) in scratch.sums[..rows * columns].chunks_exact(columns.max(1)).enumerate() {
            // SAFETY: a row of the target.
            round_row(sums, unsafe { std::slice::from_raw_parts_mut(to.add(row * piece.stride), columns) });
        }
    }
}

/// # Safety
/// The stretch has as many rows as `out` has of `k` numbers.
unsafe fn widen_left(stretch: &Stretch, out: &mut [f32], k: usize) {
    for (row, out) in out.chunks_exact_mut(k).enumerate() {
        // SAFETY: by the caller.
        widen_row(unsafe { from_raw_parts(stretch.left.byte_add(row * stretch.left_stride), k) }, out);
    }
}

/// # Safety
/// The stretch has the panels of `wide` columns.
unsafe fn widen_right(stretch: &Stretch, out: &mut [f32], k: usize, wide: usize) {
    for panel in 0..wide / PANEL {
        // SAFETY: by the caller.
        let data: &[bf16] = unsafe { from_raw_parts(stretch.right.byte_add(panel * stretch.panel), k * PANEL) };
        for (pair, data) in data.chunks_exact(2 * PANEL).enumerate() {
            let (upper, lower) = out[2 * pair * wide..].split_at_mut(wide);
            let both = upper[panel * PANEL..][..PANEL].iter_mut().zip(&mut lower[panel * PANEL..][..PANEL]);
            for ((upper, lower), data) in both.zip(data.as_chunks::<2>().0) {
                (*upper, *lower) = (data[0].to_f32(), data[1].to_f32());
            }
        }
    }
}
