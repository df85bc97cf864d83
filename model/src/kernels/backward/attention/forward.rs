//! Attention of one query head over one document, forward: blocks of 64 queries over stretches of keys, with a running
//! largest score (Milakov and Gimelshein 2018; Dao et al. 2022). Scores lie with keys down and queries across, so that
//! nothing is summed sideways.

use super::block::{Block, Ready, STEP};
use super::pack::{SIDE, Source, across, down, fill, put_row, turned, upright};
use super::{Carve, Task};
use crate::kernels::backward::kept::private::PANEL;
use crate::kernels::backward::kept::{Kept, with_kept};
use crate::kernels::lanes::{LANES, Lanes, exp};

/// Blocks of keys whose scores are held at a time.
pub(super) const STRETCH: usize = 4;
/// Vectors of a panel.
const WIDE: usize = PANEL / LANES;

/// What a block of queries knows after some stretches.
struct Running {
    top: [f32; SIDE],
    sum: [f32; SIDE],
    /// What the last stretch made of what was there before.
    factor: [f32; SIDE],
}

/// Scores of a stretch for one panel of queries.
struct Scores<I> {
    scores: *const f32,
    keys: usize,
    /// The first key of the stretch minus the first query of the panel.
    ahead: isize,
    scale: f32,
    out: *mut I,
}

/// # Safety
/// As [`Lanes`]; `keys` rows of [`SIDE`] scores, a right side of as many rows, and [`PANEL`] running numbers each.
#[inline(always)]
unsafe fn soften<V: Lanes, I: Kept>(part: &Scores<I>, top: *mut f32, sum: *mut f32, factor: *mut f32) {
    let hidden = |key: usize, v: usize| usize::try_from(part.ahead + key as isize - (v * LANES) as isize).unwrap_or(0);
    // SAFETY: by the caller.
    unsafe {
        let (nothing, zero, scale) = (V::splat(f32::MIN), V::splat(0.0), V::splat(part.scale));
        for v in 0..WIDE {
            let (top, sum, factor) = (top.add(v * LANES), sum.add(v * LANES), factor.add(v * LANES));
            let before = V::load(top);
            let mut tops = [before; 4];
            for key in (0..part.keys).step_by(4) {
                for (i, tops) in tops.iter_mut().enumerate() {
                    let x = V::load(part.scores.add((key + i) * SIDE + v * LANES));
                    *tops = tops.max(nothing.first(hidden(key + i, v), x));
                }
            }
            let now = tops[0].max(tops[1]).max(tops[2].max(tops[3]));
            let shrink = exp(before.sub(now).mul(scale));
            let mut sums = [V::load(sum).mul(shrink), zero];
            for key in (0..part.keys).step_by(2) {
                let mut powers = [zero; 2];
                for (i, power) in powers.iter_mut().enumerate() {
                    let x = V::load(part.scores.add((key + i) * SIDE + v * LANES)).sub(now).mul(scale);
                    *power = zero.first(hidden(key + i, v), exp(x));
                    sums[i] = sums[i].add(*power);
                }
                I::store_rows(powers[0], powers[1], part.out.add(key * PANEL), v * LANES);
            }
            now.store(top);
            shrink.store(factor);
            sums[0].add(sums[1]).store(sum);
        }
    }
}

with_kept! {
    /// Turns scores into exponentials below the largest score so far, as a right side.
    ///
    /// # Safety
    /// `keys` rows of [`SIDE`] scores, a right side of as many rows, and [`PANEL`] running numbers each.
    unsafe fn soften_of[I](part: &Scores<I>, top: *mut f32, sum: *mut f32, factor: *mut f32) = soften;
}

/// # Safety
/// As [`Lanes`]; `rows` rows of [`SIDE`] numbers, and as many factors.
#[inline(always)]
unsafe fn shrink_rows<V: Lanes>(out: *mut f32, rows: usize, factor: *const f32) {
    // SAFETY: by the caller.
    unsafe {
        for row in 0..rows {
            for at in (0..SIDE).step_by(LANES) {
                let to = out.add(row * SIDE + at);
                V::load(to).mul(V::load(factor.add(at))).store(to);
            }
        }
    }
}

with_kept! {
    /// # Safety
    /// `rows` rows of [`SIDE`] numbers, and as many factors.
    unsafe fn shrink_of[](out: *mut f32, rows: usize, factor: *const f32) = shrink_rows;
}

/// Room of one task.
#[derive(Clone, Copy)]
struct Room<I> {
    /// Keys as left sides, block after block.
    keys: *mut I,
    /// Values as left sides `[width, SIDE]`.
    values: *mut I,
    rows: *mut I,
    down: *mut I,
    queries: *mut I,
    /// `[STRETCH · SIDE, SIDE]`.
    scores: *mut f32,
    powers: *mut I,
    /// `[width, SIDE]`, and upright.
    out: *mut f32,
    upright: *mut f32,
}

impl<I: Kept> Room<I> {
    fn new(carve: &mut Carve, padded: usize, width: usize) -> Self {
        let block = SIDE * width;
        Self {
            keys: carve.take(padded * width),
            values: carve.take(padded * width),
            rows: carve.take(block),
            down: carve.take(block),
            queries: carve.take(block),
            scores: carve.take(STRETCH * SIDE * SIDE),
            powers: carve.take(STRETCH * SIDE * SIDE),
            out: carve.take(block),
            upright: carve.take(block),
        }
    }
}

/// Bytes of the room of a task over a document of so many tokens.
pub(super) fn room_bytes<I: Kept>(padded: usize, width: usize) -> usize {
    let mut carve = Carve::measure();
    Room::<I>::new(&mut carve, padded, width);
    carve.bytes()
}

/// What a task reads and writes: rows of its head, from the first of its document on.
pub(super) struct Forward<E> {
    pub(super) q: Source<E>,
    pub(super) k: Source<E>,
    pub(super) v: Source<E>,
    pub(super) out: (*mut E, usize),
    /// Log-sum-exp, and numbers from row to row.
    pub(super) lse: (*mut f32, usize),
}

/// Attention of one head over one document.
///
/// # Safety
/// The rows are there, the outputs this task's alone, `carve` has the room, and `I` is what the thread multiplies.
pub(super) unsafe fn forward<E: Kept, I: Kept>(task: &Task, ready: &Ready, work: &Forward<E>, carve: &mut Carve) {
    let (set, width) = (task.set, task.width());
    let room = Room::<I>::new(carve, task.padded(), width);
    // SAFETY: by the caller; blocks lie within the room.
    unsafe {
        for at in (0..task.len).step_by(SIDE) {
            let rows = task.rows(at);
            fill::<E, I>(set, task.part(work.k, at), rows, width, room.keys.add(at * width));
            fill::<E, I>(set, task.part(work.v, at), rows, width, room.rows);
            down::<I>(set, room.rows, rows, width, room.down);
            turned::<I>(set, room.down, rows, width, room.values.add(at * width));
        }
        for at in (0..task.len).step_by(SIDE) {
            queries(task, ready, work, &room, at);
        }
    }
}

/// One block of queries.
///
/// # Safety
/// As [`forward`], with keys and values in the room.
unsafe fn queries<E: Kept, I: Kept>(task: &Task, ready: &Ready, work: &Forward<E>, room: &Room<I>, at: usize) {
    let (set, width, columns) = (task.set, task.width(), task.rows(at));
    let mut running = Running { top: [f32::MIN; SIDE], sum: [0.0; SIDE], factor: [0.0; SIDE] };
    // SAFETY: by the caller; blocks lie within the room.
    unsafe {
        fill::<E, I>(set, task.part(work.q, at), columns, width, room.rows);
        across::<I>(set, room.rows, columns, width, room.queries);
        for first in (0..=at).step_by(STRETCH * SIDE) {
            let end = (at + columns).min(first + STRETCH * SIDE);
            for key in (first..end).step_by(SIDE) {
                ready.multiply(Block {
                    out: (room.scores.add((key - first) * SIDE), SIDE),
                    left: (room.keys.add(key * width), width),
                    right: (room.queries, width * PANEL),
                    rows: task.rows(key),
                    columns,
                    inner: width,
                    add: false,
                });
            }
            stretch(task, ready, room, &mut running, (first, end, at));
        }
        upright(set, room.out, columns, width, room.upright);
        for row in 0..columns.min(task.len - at) {
            let (sum, top) = (running.sum[row], running.top[row] * task.scale);
            put_row::<E>(
                set,
                room.upright.add(row * width),
                1.0 / sum,
                task.dim,
                work.out.0.add((at + row) * work.out.1),
            );
            work.lse.0.add((at + row) * work.lse.1).write(top + sum.ln());
        }
    }
}

/// Adds the values of keys `first..end` to the queries from `at` on.
///
/// # Safety
/// As [`queries`], with the scores in the room.
unsafe fn stretch<I: Kept>(
    task: &Task,
    ready: &Ready,
    room: &Room<I>,
    running: &mut Running,
    (first, end, at): (usize, usize, usize),
) {
    let (set, width) = (task.set, task.width());
    // SAFETY: by the caller; panels lie within the room.
    unsafe {
        for panel in (0..task.rows(at)).step_by(PANEL) {
            let powers = room.powers.add(panel * STRETCH * SIDE);
            let keys = end.min(at + panel + STEP) - first;
            let scores = Scores {
                scores: room.scores.add(panel),
                keys,
                ahead: first as isize - (at + panel) as isize,
                scale: task.scale,
                out: powers,
            };
            let now = |numbers: &mut [f32; SIDE]| numbers[panel..].as_mut_ptr();
            soften_of(set, &scores, now(&mut running.top), now(&mut running.sum), now(&mut running.factor));
        }
        if first > 0 {
            shrink_of(set, room.out, width, running.factor.as_ptr());
        }
        for panel in (0..task.rows(at)).step_by(PANEL) {
            let keys = end.min(at + panel + STEP) - first;
            for key in (0..keys).step_by(SIDE) {
                ready.multiply(Block {
                    out: (room.out.add(panel), SIDE),
                    left: (room.values.add((first + key) * width), SIDE),
                    right: (room.powers.add(panel * STRETCH * SIDE + key * PANEL), 0),
                    rows: width,
                    columns: PANEL,
                    inner: SIDE.min(keys - key),
                    add: first + key > 0,
                });
            }
        }
    }
}
