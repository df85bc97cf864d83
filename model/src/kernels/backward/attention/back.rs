//! Attention of one group of heads over one document, backward: probabilities are computed again from the kept
//! log-sum-exp, block by block (Dao et al. 2022). Scores lie with keys down and queries across.

use super::block::{Block, Ready};
use super::pack::{SIDE, Source, across, down, fill, put_row, turned, upright};
use super::{Carve, Task};
use crate::kernels::backward::kept::private::PANEL;
use crate::kernels::backward::kept::{Kept, load, store, with_kept};
use crate::kernels::lanes::{LANES, Lanes, exp};

/// Vectors of a panel.
const WIDE: usize = PANEL / LANES;

/// Scores and gradients of probabilities of one panel of queries, and what becomes of them.
struct Panel<I> {
    scores: *const f32,
    d_powers: *const f32,
    lse: *const f32,
    /// `Σ out·d_out` of each query.
    pull: *const f32,
    keys: usize,
    /// The first key minus the first query.
    ahead: isize,
    scale: f32,
    /// Probabilities and gradients of scores as left sides, and the latter as a right side.
    powers: *mut I,
    d_scores: *mut I,
    d_down: *mut I,
}

/// # Safety
/// As [`Lanes`]; `keys` rows, an even number, of [`SIDE`] numbers each, the right side [`PANEL`] wide.
#[inline(always)]
unsafe fn gradient<V: Lanes, I: Kept>(part: &Panel<I>) {
    // SAFETY: by the caller.
    unsafe {
        let (zero, scale) = (V::splat(0.0), V::splat(part.scale));
        let mut lse = [zero; WIDE];
        let mut pull = [zero; WIDE];
        for v in 0..WIDE {
            lse[v] = V::load(part.lse.add(v * LANES));
            pull[v] = V::load(part.pull.add(v * LANES));
        }
        for key in (0..part.keys).step_by(2) {
            let (mut p, mut ds) = ([[zero; WIDE]; 2], [[zero; WIDE]; 2]);
            for i in 0..2 {
                for v in 0..WIDE {
                    let hidden = usize::try_from(part.ahead + (key + i) as isize - (v * LANES) as isize).unwrap_or(0);
                    let at = (key + i) * SIDE + v * LANES;
                    let power = exp(V::load(part.scores.add(at)).mul(scale).sub(lse[v]));
                    p[i][v] = zero.first(hidden, power);
                    let d = V::load(part.d_powers.add(at)).sub(pull[v]).mul(scale);
                    ds[i][v] = zero.first(hidden, power.mul(d));
                }
                I::store_two(p[i][0], p[i][1], part.powers.add((key + i) * SIDE));
                I::store_two(ds[i][0], ds[i][1], part.d_scores.add((key + i) * SIDE));
            }
            for (v, (even, odd)) in ds[0].into_iter().zip(ds[1]).enumerate() {
                I::store_rows(even, odd, part.d_down.add(key * PANEL), v * LANES);
            }
        }
    }
}

with_kept! {
    /// Probabilities and gradients of scores.
    ///
    /// # Safety
    /// `keys` rows, an even number, of [`SIDE`] numbers each, the right side [`PANEL`] wide.
    unsafe fn gradient_of[I](part: &Panel<I>) = gradient;
}

/// # Safety
/// As [`Lanes`]; both have the same rows.
#[inline(always)]
unsafe fn pulls<V: Lanes, E: Kept, D: Kept>(out: Source<E>, d_out: Source<D>, pull: *mut f32) {
    // SAFETY: by the caller.
    unsafe {
        for row in 0..out.count {
            let (out_row, d_row) = (out.start.add(row * out.stride), d_out.start.add(row * d_out.stride));
            let mut sums = V::splat(0.0);
            for at in (0..out.dim).step_by(LANES) {
                sums = load::<V, E>(out_row.add(at), out.dim - at).fma(load(d_row.add(at), out.dim - at), sums);
            }
            pull.add(row).write(sums.sum());
        }
    }
}

with_kept! {
    /// `Σ out·d_out` of each row.
    ///
    /// # Safety
    /// Both have the same rows.
    unsafe fn pulls_of[E, D](out: Source<E>, d_out: Source<D>, pull: *mut f32) = pulls;
}

/// Room of one task. Left and right sides of the keys' side, then those of a head.
#[derive(Clone, Copy)]
struct Room<I> {
    keys: *mut I,
    values: *mut I,
    keys_turned: *mut I,
    /// Of the head in work: what scores, their gradients, and the sums for keys and values read.
    q_across: *mut I,
    d_across: *mut I,
    q_down: *mut I,
    d_down: *mut I,
    lse: *mut f32,
    pull: *mut f32,
    /// `[padded, width]`, and for queries block after block `[width, SIDE]`.
    dk: *mut f32,
    dv: *mut f32,
    dq: *mut f32,
    /// Blocks.
    rows: *mut I,
    scores: *mut f32,
    d_powers: *mut f32,
    powers: *mut I,
    d_scores: *mut I,
    d_scores_down: *mut I,
    upright: *mut f32,
}

impl<I: Kept> Room<I> {
    fn new(carve: &mut Carve, padded: usize, width: usize) -> Self {
        let (all, block) = (padded * width, SIDE * width);
        Self {
            keys: carve.take(all),
            values: carve.take(all),
            keys_turned: carve.take(all),
            q_across: carve.take(all),
            d_across: carve.take(all),
            q_down: carve.take(all),
            d_down: carve.take(all),
            lse: carve.take(padded),
            pull: carve.take(padded),
            dk: carve.take(all),
            dv: carve.take(all),
            dq: carve.take(all),
            rows: carve.take(block),
            scores: carve.take(SIDE * SIDE),
            d_powers: carve.take(SIDE * SIDE),
            powers: carve.take(SIDE * SIDE),
            d_scores: carve.take(SIDE * SIDE),
            d_scores_down: carve.take(SIDE * SIDE),
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

/// # Safety
/// As [`Lanes`]; `from` has `dim` numbers for each of `group` heads, `to` has `dim`.
#[inline(always)]
unsafe fn gather_row<V: Lanes, F: Kept>(from: *const f32, group: usize, dim: usize, to: *mut F) {
    // SAFETY: by the caller.
    unsafe {
        for at in (0..dim).step_by(LANES) {
            let mut sum = load::<V, f32>(from.add(at), dim - at);
            for head in 1..group {
                sum = sum.add(load(from.add(head * dim + at), dim - at));
            }
            store(sum, to.add(at), dim - at);
        }
    }
}

with_kept! {
    /// The sum of what each head of a group gives to its key head.
    ///
    /// # Safety
    /// `from` has `dim` numbers for each of `group` heads, `to` has `dim`.
    pub(super) unsafe fn gather[F](from: *const f32, group: usize, dim: usize, to: *mut F) = gather_row;
}

/// What a task reads and writes: rows from the first of its document on. Sources of queries are those of the first head
/// of the group, further heads lie behind it.
pub(super) struct Back<E, D, F, G> {
    pub(super) q: Source<E>,
    pub(super) k: Source<E>,
    pub(super) v: Source<E>,
    pub(super) out: Source<E>,
    pub(super) d_out: Source<D>,
    /// Log-sum-exp, and numbers from row to row.
    pub(super) lse: (*const f32, usize),
    pub(super) dq: (*mut F, usize),
    pub(super) dk: (*mut G, usize),
    pub(super) dv: (*mut G, usize),
}

impl<E: Kept, D: Kept, F, G> Back<E, D, F, G> {
    /// The same with another place for the gradients of keys and values.
    pub(super) fn onto<H>(&self, dk: (*mut H, usize), dv: (*mut H, usize)) -> Back<E, D, F, H> {
        let Self { q, k, v, out, d_out, lse, dq, .. } = *self;
        Back { q, k, v, out, d_out, lse, dq, dk, dv }
    }
}

/// The way back through the heads of one group over one document.
///
/// # Safety
/// The rows are there, the outputs this task's alone, `carve` has the room, and `I` is what the thread multiplies.
pub(super) unsafe fn back<E: Kept, D: Kept, F: Kept, G: Kept, I: Kept>(
    task: &Task,
    ready: &Ready,
    work: &Back<E, D, F, G>,
    carve: &mut Carve,
) {
    let (set, width, padded) = (task.set, task.width(), task.padded());
    let room = Room::<I>::new(carve, padded, width);
    // SAFETY: by the caller; blocks lie within the room.
    unsafe {
        for at in (0..task.len).step_by(SIDE) {
            let rows = task.rows(at);
            fill::<E, I>(set, task.part(work.k, at), rows, width, room.keys.add(at * width));
            fill::<E, I>(set, task.part(work.v, at), rows, width, room.values.add(at * width));
            // The room of the first head's queries holds the keys on their way.
            down::<I>(set, room.keys.add(at * width), rows, width, room.q_down);
            turned::<I>(set, room.q_down, rows, width, room.keys_turned.add(at * width));
        }
        room.dk.write_bytes(0, padded * width);
        room.dv.write_bytes(0, padded * width);
        for head in 0..task.group {
            take_head(task, work, &room, head);
            for key in (0..task.len).step_by(SIDE) {
                for query in (key..task.len).step_by(SIDE) {
                    block(task, ready, &room, key, query);
                }
            }
            for at in (0..task.len).step_by(SIDE) {
                upright(set, room.dq.add(at * width), task.rows(at), width, room.upright);
                let to = work.dq.0.add(at * work.dq.1 + head * task.dim);
                put_rows(task, room.upright, at, (to, work.dq.1));
            }
        }
        for at in (0..task.len).step_by(SIDE) {
            put_rows(task, room.dk.add(at * width), at, (work.dk.0.add(at * work.dk.1), work.dk.1));
            put_rows(task, room.dv.add(at * width), at, (work.dv.0.add(at * work.dv.1), work.dv.1));
        }
    }
}

/// The rows of a block to where they belong.
///
/// # Safety
/// As [`back`].
unsafe fn put_rows<F: Kept>(task: &Task, from: *const f32, at: usize, to: (*mut F, usize)) {
    for row in 0..SIDE.min(task.len - at) {
        // SAFETY: by the caller.
        unsafe { put_row::<F>(task.set, from.add(row * task.width()), 1.0, task.dim, to.0.add(row * to.1)) };
    }
}

/// Brings the queries of a head and their gradients into the room.
///
/// # Safety
/// As [`back`].
unsafe fn take_head<E: Kept, D: Kept, F, G, I: Kept>(
    task: &Task,
    work: &Back<E, D, F, G>,
    room: &Room<I>,
    head: usize,
) {
    let (set, width) = (task.set, task.width());
    // SAFETY: by the caller; blocks lie within the room.
    unsafe {
        room.pull.write_bytes(0, task.padded());
        room.lse.write_bytes(0, task.padded());
        for row in 0..task.len {
            room.lse.add(row).write(*work.lse.0.add(row * work.lse.1 + head));
        }
        for at in (0..task.len).step_by(SIDE) {
            let (rows, to) = (task.rows(at), at * width);
            fill::<E, I>(set, task.head(work.q, at, head), rows, width, room.rows);
            across::<I>(set, room.rows, rows, width, room.q_across.add(to));
            down::<I>(set, room.rows, rows, width, room.q_down.add(to));
            fill::<D, I>(set, task.head(work.d_out, at, head), rows, width, room.rows);
            across::<I>(set, room.rows, rows, width, room.d_across.add(to));
            down::<I>(set, room.rows, rows, width, room.d_down.add(to));
            pulls_of(set, task.head(work.out, at, head), task.head(work.d_out, at, head), room.pull.add(at));
        }
    }
}

/// One block of keys with one of queries.
///
/// # Safety
/// As [`back`], with keys, values and the head in the room.
unsafe fn block<I: Kept>(task: &Task, ready: &Ready, room: &Room<I>, key: usize, query: usize) {
    let (width, keys, queries) = (task.width(), task.rows(key), task.rows(query));
    let (k, q) = (key * width, query * width);
    // SAFETY: by the caller; blocks lie within the room.
    unsafe {
        let scores = |out: *mut f32, left: *mut I, right: *mut I| {
            let (left, right) = ((left.add(k).cast_const(), width), (right.add(q).cast_const(), width * PANEL));
            Block { out: (out, SIDE), left, right, rows: keys, columns: queries, inner: width, add: false }
        };
        ready.multiply(scores(room.scores, room.keys, room.q_across));
        ready.multiply(scores(room.d_powers, room.values, room.d_across));
        for panel in (0..queries).step_by(PANEL) {
            gradient_of(
                task.set,
                &Panel {
                    scores: room.scores.add(panel),
                    d_powers: room.d_powers.add(panel),
                    lse: room.lse.add(query + panel),
                    pull: room.pull.add(query + panel),
                    keys,
                    ahead: key as isize - (query + panel) as isize,
                    scale: task.scale,
                    powers: room.powers.add(panel),
                    d_scores: room.d_scores.add(panel),
                    d_down: room.d_scores_down.add(panel * SIDE),
                },
            );
        }
        let sums = |out: *mut f32, left: *mut I, right: *mut I| {
            let (left, right) = ((left.cast_const(), SIDE), (right.add(q).cast_const(), SIDE * PANEL));
            Block { out: (out.add(k), width), left, right, rows: keys, columns: width, inner: queries, add: true }
        };
        ready.multiply(sums(room.dv, room.powers, room.d_down));
        ready.multiply(sums(room.dk, room.d_scores, room.q_down));
        ready.multiply(Block {
            out: (room.dq.add(q), SIDE),
            left: (room.keys_turned.add(k).cast_const(), SIDE),
            right: (room.d_scores_down.cast_const(), SIDE * PANEL),
            rows: width,
            columns: queries,
            inner: keys,
            add: key > 0,
        });
    }
}
