//! What happens to whole rows between products: norms, the gated activation, products with a few plain rows; and the spreading
//! of rows and tiles over threads. Refuses to know layers and adapters.

use super::activation::Activations;
use super::lanes::{LANES, Lanes, exp, with_lanes};
use super::packed::{PackedMatrix, TILE};
use super::pool::{Pointer, Pool};
use super::product::{Instructions, OutRows, product};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows of one task.
const TASK_ROWS: usize = 8;
/// Rows up to which one thread is faster than two.
const ALONE_ROWS: usize = 2;
/// Parts of the tiles of a product for each thread, so that a late thread has less to do.
const PARTS: usize = 4;

/// `x · weight / √(mean(x²) + eps)`.
///
/// # Safety
/// As [`Lanes`]; all three have the same length.
#[inline(always)]
unsafe fn norm_row<V: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let (chunks, rest) = x.as_chunks::<LANES>();
    // SAFETY: whole chunks.
    unsafe {
        let mut squares = V::splat(0.0);
        for chunk in chunks {
            let x = V::load(chunk.as_ptr());
            squares = x.fma(x, squares);
        }
        let sum = rest.iter().fold(squares.sum(), |sum, x| sum + x * x);
        let scale = 1.0 / (sum / x.len() as f32 + eps).sqrt();
        let all = out.as_chunks_mut::<LANES>().0.iter_mut().zip(chunks).zip(weight.as_chunks::<LANES>().0);
        for ((out, x), weight) in all {
            V::load(x.as_ptr()).mul(V::splat(scale)).mul(V::load(weight.as_ptr())).store(out.as_mut_ptr());
        }
        let from = chunks.len() * LANES;
        for ((out, x), weight) in out[from..].iter_mut().zip(rest).zip(&weight[from..]) {
            *out = x * scale * weight;
        }
    }
}

with_lanes! {
    /// `x · weight / √(mean(x²) + eps)`.
    ///
    /// # Safety
    /// All three have the same length.
    unsafe fn norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = norm_row;
}

/// `gate · sigmoid(gate) · up`. No closure: one would not be compiled for the instructions of its surroundings.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn gated<V: Lanes>(gate: V, up: V) -> V {
    // SAFETY: by the caller.
    unsafe { gate.mul(up).div(V::splat(1.0).add(exp(V::splat(0.0).sub(gate)))) }
}

/// `gate · sigmoid(gate) · up`, in place of the gate.
///
/// # Safety
/// As [`Lanes`]; both have the same length.
#[inline(always)]
unsafe fn swiglu_row<V: Lanes>(gate: &mut [f32], up: &[f32]) {
    let (gates, rest) = gate.as_chunks_mut::<LANES>();
    let (ups, up_rest) = up.as_chunks::<LANES>();
    // SAFETY: whole chunks; the rest is put into one.
    unsafe {
        for (gate, up) in gates.iter_mut().zip(ups) {
            gated(V::load(gate.as_ptr()), V::load(up.as_ptr())).store(gate.as_mut_ptr());
        }
        let (mut last, mut last_up) = ([0f32; LANES], [0f32; LANES]);
        last[..rest.len()].copy_from_slice(rest);
        last_up[..rest.len()].copy_from_slice(up_rest);
        gated(V::load(last.as_ptr()), V::load(last_up.as_ptr())).store(last.as_mut_ptr());
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

with_lanes! {
    /// `gate · sigmoid(gate) · up`, in place of the gate.
    ///
    /// # Safety
    /// Both have the same length.
    unsafe fn swiglu(gate: &mut [f32], up: &[f32]) = swiglu_row;
}

/// # Safety
/// As [`Lanes`]; `rows` are as long as `x`, one for each of `out`.
#[inline(always)]
unsafe fn dot_rows<V: Lanes>(x: &[f32], rows: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(x.len()).zip(out) {
        let (chunks, rest) = x.as_chunks::<LANES>();
        let (others, other_rest) = row.as_chunks::<LANES>();
        // SAFETY: whole chunks.
        let sum = unsafe {
            let mut sums = V::splat(0.0);
            for (x, other) in chunks.iter().zip(others) {
                sums = V::load(x.as_ptr()).fma(V::load(other.as_ptr()), sums);
            }
            sums.sum()
        };
        *out = rest.iter().zip(other_rest).fold(sum, |sum, (x, other)| sum + x * other);
    }
}

with_lanes! {
    /// # Safety
    /// `rows` are as long as `x`, one for each of `out`.
    unsafe fn dots_of(x: &[f32], rows: &[f32], out: &mut [f32]) = dot_rows;
}

/// The product of `x` with each row of `rows[out.len(), x.len()]`, in f32.
///
/// # Panics
/// The lengths do not fit.
pub fn dots(instructions: Instructions, x: &[f32], rows: &[f32], out: &mut [f32]) {
    assert!(!x.is_empty() && rows.len() == x.len() * out.len(), "rows as long as the input");
    // SAFETY: as asserted.
    unsafe { dots_of(instructions, x, rows, out) };
}

/// The root-mean-square norm of each row of `x`, into `seen` and into `input`.
///
/// # Panics
/// The lengths do not fit.
pub fn norm_rows(
    pool: &mut Pool,
    instructions: Instructions,
    x: &[f32],
    (weight, eps): (&[f32], f32),
    seen: &mut [f32],
    input: &mut Activations,
) {
    let width = weight.len();
    let rows = x.len() / width;
    assert!(rows * width == x.len() && x.len() == seen.len(), "whole rows");
    let writer = input.writer(rows, width);
    let seen = Pointer(seen.as_mut_ptr());
    each_row(pool, rows, &|row| {
        // SAFETY: each row is one task's, within the asserted length.
        unsafe {
            let seen = std::slice::from_raw_parts_mut(seen.at(row * width), width);
            norm(instructions, &x[row * width..][..width], weight, eps, seen);
            writer.fill_row(instructions, row, seen);
        }
    });
}

/// The gated activation of each row of `gate[rows, width]` and `up`, in place of the gate and into `input`.
///
/// # Panics
/// The lengths do not fit.
pub fn swiglu_rows(
    pool: &mut Pool,
    instructions: Instructions,
    (gate, up): (&mut [f32], &[f32]),
    width: usize,
    input: &mut Activations,
) {
    let rows = gate.len() / width;
    assert!(rows * width == gate.len() && gate.len() == up.len(), "whole rows");
    let writer = input.writer(rows, width);
    let start = Pointer(gate.as_mut_ptr());
    each_row(pool, rows, &|row| {
        // SAFETY: each row is one task's, within the asserted length.
        unsafe {
            let gate = std::slice::from_raw_parts_mut(start.at(row * width), width);
            swiglu(instructions, gate, &up[row * width..][..width]);
            writer.fill_row(instructions, row, gate);
        }
    });
}

/// The rows of `x[rows, width]` into `input`.
///
/// # Panics
/// The lengths do not fit.
pub fn fill_rows(pool: &mut Pool, instructions: Instructions, x: &[f32], width: usize, input: &mut Activations) {
    let rows = x.len() / width;
    assert!(rows * width == x.len(), "whole rows");
    let writer = input.writer(rows, width);
    each_row(pool, rows, &|row| {
        // SAFETY: each row is one task's.
        unsafe { writer.fill_row(instructions, row, &x[row * width..][..width]) };
    });
}

/// Spreads rows over threads when there are enough of them.
fn each_row(pool: &mut Pool, rows: usize, work: &(dyn Fn(usize) + Sync)) {
    if rows <= ALONE_ROWS {
        (0..rows).for_each(work);
        return;
    }
    let size = TASK_ROWS.min(rows.div_ceil(pool.threads()));
    pool.run(rows.div_ceil(size), &|task, _| (task * size..rows.min((task + 1) * size)).for_each(work));
}

/// What is added to the tiles of an output by the thread that computes them.
pub trait After: Sync {
    /// Asks for the memory of what will be added to some tiles, before they are computed.
    fn ahead(&self, tiles: Range<usize>);

    /// Adds to some tiles that were just computed; `h` are the finished numbers of [`Middle`].
    fn add(&self, h: &[f32], tiles: Range<usize>, out: &mut OutRows<'_>);
}

/// One product of several that read the same input.
pub struct Product<'a> {
    /// Weights.
    pub weights: &'a PackedMatrix,
    /// Where it goes.
    pub out: OutRows<'a>,
    /// Whether it is added to what is there.
    pub accumulate: bool,
    /// What is added to its tiles.
    pub after: Option<&'a dyn After>,
}

/// The narrow middle of low-rank adapters, `h = A·x` times what each row gives to a part. Computed tile by tile in the fork of the
/// products whose outputs it is added to, before the first of them.
pub struct Middle<'a> {
    /// Its numbers, stack after stack.
    pub h: &'a mut [f32],
    /// The tiles that some row needs: which stack, and which tile of it.
    pub tiles: &'a [(usize, usize)],
    /// A stack by its number.
    pub stack: &'a (dyn Fn(usize) -> Stack<'a> + Sync),
}

/// The A sides that read one input, for neighbouring rows of it.
pub struct Stack<'a> {
    /// `[linear maps · width, in]`.
    pub weights: &'a PackedMatrix,
    /// Rows of the input.
    pub rows: Range<usize>,
    /// Where its numbers `[rows, linear maps · width]` begin.
    pub at: usize,
    /// What the columns of each part are multiplied by, `[rows, parts]`.
    pub factors: &'a [f32],
    /// Columns of one linear map.
    pub width: usize,
    /// Columns of its first part, and of each further one.
    pub ranks: (usize, usize),
}

/// Products whose outputs several threads write, each its own tiles.
struct Shared<'a, 'b> {
    all: &'a [Product<'b>],
    /// The numbers of the middle.
    h: (Pointer<f32>, usize),
    /// How many of its tiles are wanted, and how many are done.
    wanted: usize,
    done: AtomicUsize,
}

// SAFETY: outputs are reached through `alias` alone, by tasks whose tiles are disjoint; the middle is written by tasks with
// tiles of their own and read when all of those are done.
unsafe impl Sync for Shared<'_, '_> {}

/// Tiles of a product before which the memory of what is added to them is asked for.
const AHEAD_TILES: usize = 2;
/// Looks before whoever waits for the middle lets others run.
const PATIENCE: u32 = 2_000;

impl Shared<'_, '_> {
    /// Computes one tile of the middle.
    fn narrow(&self, instructions: Instructions, x: &Activations, stack: &Stack<'_>, tile: usize) {
        let _done = Done(&self.done);
        let (stride, rows, parts) = (stack.weights.rows(), stack.rows.len(), stack.factors.len() / stack.rows.len());
        assert!(stack.at + rows * stride <= self.h.1, "room for the stack");
        // SAFETY: as asserted within the borrowed numbers; each tile of a stack is one task's.
        let mut out = unsafe { OutRows::raw(self.h.0.at(stack.at), rows * stride, stride) };
        product(instructions, x, stack.rows.clone(), stack.weights, tile..tile + 1, &mut out, false);
        let from = tile * TILE;
        let count = TILE.min(stride - from);
        let part = |column: usize| match (column % stack.width).checked_sub(stack.ranks.0) {
            None => 0,
            Some(behind) => 1 + behind / stack.ranks.1,
        };
        let of: [usize; TILE] = std::array::from_fn(|i| part(from + i.min(count - 1)));
        for (row, factors) in stack.factors.chunks_exact(parts).enumerate() {
            for (h, part) in out.part(row, from, count).iter_mut().zip(of) {
                *h *= factors[part];
            }
        }
    }

    /// The finished middle.
    fn middle(&self) -> &[f32] {
        let mut looks = 0u32;
        while self.done.load(Ordering::Acquire) < self.wanted {
            looks = looks.saturating_add(1);
            if looks > PATIENCE { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        // SAFETY: all who write have done so, and the numbers are borrowed as long as the products.
        unsafe { std::slice::from_raw_parts(self.h.0.at(0), self.h.1) }
    }

    /// Some tiles of an output, and what is added to them.
    fn wide(&self, instructions: Instructions, x: &Activations, rows: Range<usize>, task: usize, size: usize) {
        let (mut at, mut part) = (0, task);
        loop {
            let parts = self.all[at].weights.row_tiles().div_ceil(size);
            if part < parts {
                break;
            }
            (at, part) = (at + 1, part - parts);
        }
        let one = &self.all[at];
        let tiles = part * size..one.weights.row_tiles().min((part + 1) * size);
        // SAFETY: tasks have tiles of their own.
        let mut out = unsafe { one.out.alias() };
        let Some(after) = one.after else {
            return product(instructions, x, rows, one.weights, tiles, &mut out, one.accumulate);
        };
        // A few lines at a time: a burst of requests would hold up the loads of the product itself.
        for from in tiles.clone().step_by(AHEAD_TILES) {
            let few = from..tiles.end.min(from + AHEAD_TILES);
            after.ahead(few.clone());
            product(instructions, x, rows.clone(), one.weights, few, &mut out, one.accumulate);
        }
        after.add(self.middle(), tiles, &mut out);
    }
}

/// Counts a tile of the middle as done, also when it panicked: others wait for it, and the pool passes the panic on.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// Computes products of the same rows of an input, their tiles spread over threads.
///
/// # Panics
/// As [`product`], or there is no room for the middle.
pub fn products(
    pool: &mut Pool,
    instructions: Instructions,
    x: &Activations,
    rows: Range<usize>,
    middle: Option<Middle<'_>>,
    all: &mut [Product<'_>],
) {
    let tiles: usize = all.iter().map(|one| one.weights.row_tiles()).sum();
    let size = tiles.div_ceil(PARTS * pool.threads()).max(1);
    let tasks: usize = all.iter().map(|one| one.weights.row_tiles().div_ceil(size)).sum();
    let (h, tiles, stack) = match middle {
        Some(Middle { h, tiles, stack }) => (h, tiles, Some(stack)),
        None => (&mut [][..], &[][..], None),
    };
    let h = (Pointer(h.as_mut_ptr()), h.len());
    let shared = &Shared { all, h, wanted: tiles.len(), done: AtomicUsize::new(0) };
    // Whoever waits for the middle waits for tasks that others have begun: tasks are taken in order.
    pool.run(tiles.len() + tasks, &|task, _| match (tiles.get(task), stack) {
        (Some((number, tile)), Some(stack)) => shared.narrow(instructions, x, &stack(*number), *tile),
        _ => shared.wide(instructions, x, rows.clone(), task - tiles.len(), size),
    });
}

#[cfg(test)]
mod tests {
    use super::super::{Keep, PackKind};
    use super::*;

    fn numbers(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.7 + seed).sin() * 2.0).collect()
    }

    fn near(found: &[f32], expected: &[f64], bound: f64) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < bound, "{found} for {expected}");
        }
    }

    #[test]
    fn rows_are_what_their_definitions_say() {
        let (rows, width) = (11, 37);
        let (x, weight) = (numbers(rows * width, 0.0), numbers(width, 1.0));
        for instructions in Instructions::available() {
            let mut pool = Pool::new(2);
            let mut input = Activations::new(rows, width, Keep::Both);
            let mut seen = vec![0f32; rows * width];
            norm_rows(&mut pool, instructions, &x, (&weight, 1e-5), &mut seen, &mut input);
            for (x, seen) in x.chunks(width).zip(seen.chunks(width)) {
                let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                let scale = 1.0 / (mean + 1e-5).sqrt();
                let expected: Vec<f64> =
                    x.iter().zip(&weight).map(|(x, w)| f64::from(*x) * scale * f64::from(*w)).collect();
                near(seen, &expected, 1e-5);
            }
            let (mut gate, up) = (numbers(rows * width, 2.0), numbers(rows * width, 3.0));
            let silu = |(g, u): (&f32, &f32)| f64::from(*g) / (1.0 + (-f64::from(*g)).exp()) * f64::from(*u);
            let expected: Vec<f64> = gate.iter().zip(&up).map(silu).collect();
            swiglu_rows(&mut pool, instructions, (&mut gate, &up), width, &mut input);
            near(&gate, &expected, 1e-5);
            let mut found = vec![0f32; 3];
            dots(instructions, &x[..width], &x[width..4 * width], &mut found);
            let dot = |row: usize| (0..width).map(|i| f64::from(x[i]) * f64::from(x[row * width + i])).sum();
            near(&found, &[dot(1), dot(2), dot(3)], 1e-4);
        }
    }

    /// Adds the last row of a product once more.
    struct Twice<'a> {
        instructions: Instructions,
        input: &'a Activations,
        weights: &'a PackedMatrix,
    }

    impl After for Twice<'_> {
        fn ahead(&self, tiles: Range<usize>) {
            self.weights.fetch(tiles);
        }

        fn add(&self, _: &[f32], tiles: Range<usize>, out: &mut OutRows<'_>) {
            product(self.instructions, self.input, 4..5, self.weights, tiles, &mut out.from_row(4), true);
        }
    }

    #[test]
    fn spread_products_are_those_of_one_thread() {
        let (rows, width) = (5, 64);
        let x = numbers(rows * width, 0.5);
        let weights = [100, 33].map(|out| PackedMatrix::from_f32(PackKind::Q8, out, width, &numbers(out * width, 0.2)));
        let run = |threads| {
            let instructions = Instructions::best();
            let mut input = Activations::new(rows, width, Keep::Quantised);
            input.fill(instructions, &x, rows, width);
            let (mut first, mut second) = (vec![0f32; rows * 100], vec![1f32; rows * 40]);
            let after = Twice { instructions, input: &input, weights: &weights[1] };
            let mut all = [
                Product { weights: &weights[0], out: OutRows::new(&mut first, 100), accumulate: false, after: None },
                Product {
                    weights: &weights[1],
                    out: OutRows::new(&mut second, 40),
                    accumulate: true,
                    after: Some(&after),
                },
            ];
            products(&mut Pool::new(threads), instructions, &input, 0..rows, None, &mut all);
            (first, second)
        };
        let (alone, spread) = (run(1), run(3));
        assert_eq!(alone, spread);
        let double = |row: usize, n: usize| alone.1[row * 40 + n] - 1.0;
        assert!((0..33).all(|n| double(4, n).abs() > 0.0) && alone.1[39] == 1.0);
    }
}
