//! Rotary positions of one row at a time, and its keys and values on their way into a store. Half-split: column `i` of a
//! head turns with column `i + head_dim/2`. Refuses to know rates and contexts.

use super::store::{KvStore, MAX_HEAD_DIM, write};
use super::tile::STRETCH;
use crate::kernels::lanes::{LANES, Lanes, with_lanes};

/// Cosines and sines of every position.
pub struct Turns {
    half: usize,
    /// For each position `half` cosines, then `half` sines.
    table: Vec<f32>,
}

impl Turns {
    /// A table of `positions` positions for heads of `2·half` columns; `turn(position)` gives the pairs.
    #[must_use]
    pub fn new<'a>(half: usize, positions: usize, turn: impl Fn(usize) -> &'a [(f32, f32)]) -> Self {
        let mut table = Vec::with_capacity(2 * half * positions);
        for position in 0..positions {
            table.extend(turn(position).iter().map(|(cos, _)| cos));
            table.extend(turn(position).iter().map(|(_, sin)| sin));
        }
        Self { half, table }
    }

    /// Positions it knows.
    pub(in crate::kernels) const fn positions(&self) -> usize {
        self.table.len() / (2 * self.half)
    }

    /// Half the columns of a head.
    pub(in crate::kernels) const fn half(&self) -> usize {
        self.half
    }

    /// Cosines and sines of a position.
    pub(in crate::kernels) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        self.table[2 * self.half * position..][..2 * self.half].split_at(self.half)
    }
}

/// Heads of queries, keys and values of one row, and what queries are multiplied by.
pub(super) struct RowBuffer<'a> {
    pub(super) q: &'a mut [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) scale: f32,
}

/// # Safety
/// Rows of whole heads and half as many turns as a head has columns; the position is within the store, and nobody else uses
/// it now.
#[inline(always)]
unsafe fn rotate_row<V: Lanes>(
    instructions: crate::kernels::Instructions,
    row: RowBuffer<'_>,
    (cos, sin): (&[f32], &[f32]),
    store: &KvStore,
    layer: usize,
    position: usize,
) {
    let dim = store.shape().head_dim;
    // SAFETY: heads of `dim` columns and half as many turns.
    unsafe {
        for head in row.q.chunks_exact_mut(dim) {
            turn::<V>(head, cos, sin, row.scale);
        }
        let mut key = [0f32; MAX_HEAD_DIM];
        for (at, (head, value)) in row.k.chunks_exact(dim).zip(row.v.chunks_exact(dim)).enumerate() {
            let key = &mut key[..dim];
            key.copy_from_slice(head);
            turn::<V>(key, cos, sin, 1.0);
            let head = store.head(layer, at, position / STRETCH);
            write(instructions, &head, position % STRETCH, key, value);
        }
    }
}

with_lanes! {
    /// Turns a row by its position, scales its queries and writes its keys and values.
    ///
    /// # Safety
    /// Rows of whole heads and half as many turns as a head has columns; the position is within the store, and nobody else uses
/// it now.
    unsafe fn rotate_with(
        instructions: crate::kernels::Instructions,
        row: RowBuffer<'_>,
        turns: (&[f32], &[f32]),
        store: &KvStore,
        layer: usize,
        position: usize,
    ) = rotate_row;
}

/// Turns a row by its position, scales its queries and writes its keys and values.
///
/// # Safety
/// Rows of whole heads and half as many turns as a head has columns; the position is within the store, and nobody else uses
/// it now.
pub(super) unsafe fn rotate(
    instructions: crate::kernels::Instructions,
    row: RowBuffer<'_>,
    turns: (&[f32], &[f32]),
    store: &KvStore,
    layer: usize,
    position: usize,
) {
    // SAFETY: by the caller.
    unsafe { rotate_with(instructions, instructions, row, turns, store, layer, position) };
}

/// One head, times `scale`.
///
/// # Safety
/// The head has twice as many columns as there are cosines and sines.
#[inline(always)]
unsafe fn turn<V: Lanes>(head: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    let half = cos.len();
    let (first, second) = head.split_at_mut(half);
    let whole = half / LANES * LANES;
    // SAFETY: sixteen columns from `at` on are within each half.
    unsafe {
        let times = V::splat(scale);
        for at in (0..whole).step_by(LANES) {
            let (cos, sin) = (V::load(cos.as_ptr().add(at)).mul(times), V::load(sin.as_ptr().add(at)).mul(times));
            let (a, b) = (V::load(first.as_ptr().add(at)), V::load(second.as_ptr().add(at)));
            a.mul(cos).sub(b.mul(sin)).store(first.as_mut_ptr().add(at));
            b.mul(cos).add(a.mul(sin)).store(second.as_mut_ptr().add(at));
        }
    }
    for at in whole..half {
        let (cos, sin) = (cos[at] * scale, sin[at] * scale);
        let (a, b) = (first[at], second[at]);
        (first[at], second[at]) = (a * cos - b * sin, b * cos + a * sin);
    }
}
