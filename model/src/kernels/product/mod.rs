//! Products of input rows with packed matrices, in the widest instructions that the processor has. Knows which tile goes
//! to which kernel and checks every bound once; refuses to know threads, models and files.
//!
//! **Same bits.** Within one [`Instructions`], output `n` of a row is one sum in one order: over blocks of 32 inputs, each an exact
//! integer product, scaled and added once (and once more for the minimum); over single inputs for float weights. It depends
//! neither on the other rows, nor on how many there are, nor on which tiles a call covers.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;

use super::activation::{Activations, InputBlock, quantise_row};
use super::packed::{PackKind, PackedMatrix, TILE};
use std::marker::PhantomData;
use std::ops::Range;

/// A set of instructions that a product can be computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    /// What every processor has.
    Portable,
    /// 256-bit integers and fused multiply-add.
    Avx2,
    /// 512 bits with `vpdpbusd`.
    Avx512,
}

impl Instructions {
    /// Whether the processor has them.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// All that the processor has, the slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        [Self::Portable, Self::Avx2, Self::Avx512].into_iter().filter(|set| set.is_available()).collect()
    }

    /// The fastest that the processor has.
    #[must_use]
    pub fn best() -> Self {
        [Self::Avx512, Self::Avx2].into_iter().find(|set| set.is_available()).unwrap_or(Self::Portable)
    }

    fn check(self) {
        assert!(self.is_available(), "the processor has no {self:?} instructions");
    }

    /// Turns the numbers of a row into blocks.
    pub(super) fn quantise(self, x: &[f32], out: &mut [InputBlock]) {
        self.check();
        match self {
            Self::Portable => quantise_row(x, out),
            // SAFETY: `check` saw the instructions.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::quantise(x, out) },
            // SAFETY: `check` saw the instructions.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512::quantise(x, out) },
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => quantise_row(x, out),
        }
    }
}

/// Where a product goes: rows that begin `stride` numbers apart.
pub struct OutRows<'a> {
    start: *mut f32,
    len: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is an exclusive borrow of plain numbers; `alias` makes its caller keep the parts apart.
unsafe impl Send for OutRows<'_> {}

impl<'a> OutRows<'a> {
    /// Row `i` begins at `i·stride` of `out`.
    #[must_use]
    pub const fn new(out: &'a mut [f32], stride: usize) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), stride, borrow: PhantomData }
    }

    /// Row `i` begins at `i·stride` of the `len` numbers from `start` on.
    ///
    /// # Safety
    /// They stay borrowed for `'a`; as for [`OutRows::alias`] no two products that run at the same time cover the same tile.
    pub(in crate::kernels) const unsafe fn raw(start: *mut f32, len: usize, stride: usize) -> Self {
        Self { start, len, stride, borrow: PhantomData }
    }

    /// The same rows for another thread.
    ///
    /// # Safety
    /// As long as both are in use, no two products that run at the same time cover the same tile of the same rows.
    #[must_use]
    pub const unsafe fn alias(&self) -> Self {
        Self { start: self.start, len: self.len, stride: self.stride, borrow: PhantomData }
    }

    /// The rows from `row` on.
    ///
    /// # Panics
    /// There is no such row.
    #[must_use]
    pub fn from_row(&mut self, row: usize) -> OutRows<'_> {
        let at = row * self.stride;
        assert!(at <= self.len, "a row of the output");
        // SAFETY: inside the borrowed slice, as asserted.
        let start = unsafe { self.start.add(at) };
        OutRows { start, len: self.len - at, stride: self.stride, borrow: PhantomData }
    }

    /// # Panics
    /// `rows` rows of `cols` numbers reach beyond the slice or into each other.
    fn check(&self, rows: usize, cols: usize) {
        let fits = rows == 0
            || (rows == 1 || cols <= self.stride)
                && (rows - 1)
                    .checked_mul(self.stride)
                    .and_then(|at| at.checked_add(cols))
                    .is_some_and(|end| end <= self.len);
        assert!(fits, "{rows} rows of {cols} do not fit the output");
    }

    /// `len` numbers of `row` from `col` on.
    pub(in crate::kernels) fn part(&mut self, row: usize, col: usize, len: usize) -> &mut [f32] {
        let at = row * self.stride + col;
        assert!(at + len <= self.len, "a part of the output");
        // SAFETY: inside the borrowed slice, as asserted; no other thread touches it, as `alias` demands.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

/// Rows of inputs and one tile of weights, all checked.
#[derive(Clone, Copy)]
struct Job<'a> {
    x: &'a Activations,
    first_row: usize,
    rows: usize,
    w: &'a PackedMatrix,
    tile: usize,
    accumulate: bool,
}

/// Writes the tiles `tiles` of `x·wᵀ` into `out`, or adds them: number `n` of output row `i` is the product of input row
/// `rows.start + i` with row `n` of the matrix.
///
/// # Panics
/// The shapes do not fit, `x` does not hold the form that the weights need, or the processor has not these instructions.
pub fn product(
    instructions: Instructions,
    x: &Activations,
    rows: Range<usize>,
    w: &PackedMatrix,
    tiles: Range<usize>,
    out: &mut OutRows<'_>,
    accumulate: bool,
) {
    instructions.check();
    assert_eq!(x.cols(), w.cols(), "inputs and weights differ in length");
    assert!(rows.end <= x.rows() && tiles.end <= w.row_tiles(), "no such rows or tiles");
    assert!(x.holds(w.kind()), "the inputs are not held in the form that the weights need");
    if rows.is_empty() || tiles.is_empty() {
        return;
    }
    out.check(rows.len(), w.rows().min(tiles.end * TILE));
    for tile in tiles {
        let job = Job { x, first_row: rows.start, rows: rows.len(), w, tile, accumulate };
        match instructions {
            Instructions::Portable => portable::tile(job, out),
            // SAFETY: `check` saw the instructions; the bounds are asserted above.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => unsafe { avx2::tile(job, out) },
            // SAFETY: `check` saw the instructions; the bounds are asserted above.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => unsafe { avx512::tile(job, out) },
            #[cfg(not(target_arch = "x86_64"))]
            Instructions::Avx2 | Instructions::Avx512 => portable::tile(job, out),
        }
    }
}

/// Neighbouring columns of a matrix; none when `len` is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Run {
    /// The first.
    pub first: usize,
    /// How many.
    pub len: usize,
}

/// The narrow middle of low-rank adapters: every row has its own choice of columns, the same number of runs each.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    /// Numbers per column, already weighted; row `i` begins at `i·stride`.
    pub h: &'a [f32],
    /// From row to row.
    pub stride: usize,
    /// The runs of the rows one after another.
    pub runs: &'a [Run],
    /// Of each row; there are `runs.len() / runs_per_row` rows.
    pub runs_per_row: usize,
}

impl LowRank<'_> {
    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.runs.len().checked_div(self.runs_per_row).unwrap_or(0)
    }

    /// The numbers of a row.
    fn row(&self, row: usize, cols: usize) -> &[f32] {
        &self.h[row * self.stride..][..cols]
    }

    /// Whether a row has any columns.
    fn is_chosen(&self, row: usize) -> bool {
        self.runs(row).iter().any(|run| run.len > 0)
    }

    /// The columns of a row.
    fn runs(&self, row: usize) -> &[Run] {
        &self.runs[row * self.runs_per_row..][..self.runs_per_row]
    }
}

/// Adds to every row of `out` its own columns of `w` (in F16), each times its number of `h`; for the tiles `tiles`.
///
/// Columns that a row did not choose are not read, so the sum has the same bits whatever else the matrix holds.
///
/// # Panics
/// The shapes do not fit, `w` is not F16, or the processor has not these instructions.
pub fn product_columns(
    instructions: Instructions,
    x: &LowRank<'_>,
    w: &PackedMatrix,
    tiles: Range<usize>,
    out: &mut OutRows<'_>,
) {
    instructions.check();
    assert!(w.kind() == PackKind::F16 && tiles.end <= w.row_tiles(), "no such columns");
    let fits = |run: &Run| run.first.checked_add(run.len).is_some_and(|end| end <= w.cols());
    assert!(x.runs.iter().all(fits), "a run of columns reaches beyond the matrix");
    let rows = x.rows();
    if rows == 0 || tiles.is_empty() {
        return;
    }
    assert!((rows - 1) * x.stride + w.cols() <= x.h.len(), "the narrow rows are too short");
    out.check(rows, w.rows().min(tiles.end * TILE));
    match instructions {
        Instructions::Portable => portable::columns(x, w, tiles, out),
        // SAFETY: `check` saw the instructions; the bounds are asserted above.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => unsafe { avx2::columns(x, w, tiles, out) },
        // SAFETY: `check` saw the instructions; the bounds are asserted above.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 => unsafe { avx512::columns(x, w, tiles, out) },
        #[cfg(not(target_arch = "x86_64"))]
        Instructions::Avx2 | Instructions::Avx512 => portable::columns(x, w, tiles, out),
    }
}
