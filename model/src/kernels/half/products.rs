//! Cuts products into pieces and spreads them over threads. Knows what fits the caches; refuses to know instructions.

use super::operand::{Left, Out, PANEL, Product, Right, STEP, Term};
use super::piece::{Piece, Stretch, Target};
use super::portable::{Widened, multiply};
use super::{Unit, portable};
use crate::kernels::pool::{PerThread, Pointer, Pool};
use half::bf16;

/// Rows of a piece: enough to pay for bringing its part of the matrix into the second cache.
const PIECE_ROWS: usize = 128;
/// Numbers of the right side of a piece: 512 KiB of bf16, half of the smallest second cache of processors that multiply bf16.
const PIECE_NUMBERS: usize = 256 << 10;
/// Columns at which a product is cut; a multiple of two and of three panels.
const COLUMNS_STEP: usize = 6 * PANEL;
/// Pieces that a product is cut into where its sides allow, so that two or eight threads end at about the same time.
const PIECES_MIN: usize = 6;
/// Steps of the inner side that are summed at a time where it is long, as that of the head's gradient: rows and panels of a piece stay in
/// the second cache meanwhile.
const STEPS_MAX: usize = 2048 / STEP;
/// Rows below which no further cut is worth its while.
const ROWS_MIN: usize = 32;

/// Computes products and gradients in one [`Unit`]; holds what they need on the way.
pub struct Multiplier {
    pub(super) unit: Unit,
    pub(super) gradient: super::gradient::Room,
    widened: PerThread<Widened>,
}

/// How a product is cut: rows and columns of a piece.
#[derive(Clone, Copy)]
struct Cut {
    rows: (usize, usize),
    columns: (usize, usize),
}

/// `total` in pieces of at most `most`, all about equal and multiples of `step`: the size of a piece and their number.
fn even(total: usize, most: usize, step: usize) -> (usize, usize) {
    let count = total.div_ceil(most.max(step)).max(1);
    let size = total.div_ceil(count).next_multiple_of(step);
    (size, total.div_ceil(size))
}

impl Cut {
    /// By shapes alone: the same on every machine and with any number of threads.
    fn new(rows: usize, k: usize, columns: usize) -> Self {
        let mut cut = Self {
            rows: even(rows, PIECE_ROWS, PANEL),
            columns: even(columns, PIECE_NUMBERS / k.clamp(1, STEPS_MAX * STEP), COLUMNS_STEP),
        };
        while cut.pieces() < PIECES_MIN && cut.rows.0 > ROWS_MIN && cut.columns.0 <= 2 * COLUMNS_STEP {
            cut.rows = even(rows, cut.rows.0 / 2, PANEL);
        }
        while cut.pieces() < PIECES_MIN && cut.columns.0 > COLUMNS_STEP {
            cut.columns = even(columns, cut.columns.0 / 2, COLUMNS_STEP);
        }
        cut
    }

    const fn pieces(self) -> usize {
        self.rows.1 * self.columns.1
    }
}

/// A product that is under way; raw, so that threads can share it.
struct Spread<'a> {
    terms: &'a [Term<'a>],
    target: Pointer<f32>,
    kind: Kind,
    stride: usize,
    rows: usize,
    columns: usize,
    cut: Cut,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Set,
    Add,
    Half,
}

impl<'a> Spread<'a> {
    fn new(rows: usize, product: &'a mut Product<'_>) -> Self {
        product.check(rows);
        let (columns, stride) = (product.columns(), product.stride);
        let k = product.terms.iter().map(|term| term.weight.k).sum();
        let (target, kind) = match &mut product.out {
            Out::Set(out) => (out.as_mut_ptr(), Kind::Set),
            Out::Add(out) => (out.as_mut_ptr(), Kind::Add),
            Out::Half(out) => (out.as_mut_ptr().cast(), Kind::Half),
        };
        let cut = Cut::new(rows, k, columns);
        Self { terms: product.terms, target: Pointer(target), kind, stride, rows, columns, cut }
    }

    /// Row, rows, column and columns of a piece; those that share columns follow each other.
    fn place(&self, index: usize) -> (usize, usize, usize, usize) {
        let (row, column) = (index % self.cut.rows.1 * self.cut.rows.0, index / self.cut.rows.1 * self.cut.columns.0);
        (row, self.cut.rows.0.min(self.rows - row), column, self.cut.columns.0.min(self.columns - column))
    }

    fn run(&self, index: usize, unit: Unit, scratch: &mut Widened) {
        let (row, rows, column, columns) = self.place(index);
        let at = row * self.stride + column;
        if matches!(self.terms[0].weight.right, Right::Single { .. }) {
            for (index, term) in self.terms.iter().enumerate() {
                // SAFETY: `check` saw that all shapes fit; pieces do not overlap.
                unsafe { single(term, self.target.at(at), self, (row, rows, column, columns), index) };
            }
            return;
        }
        // SAFETY: `check` saw that all rows and panels are there and the output has room; pieces do not overlap.
        unsafe {
            let target = match self.kind {
                Kind::Set => Target::Set(self.target.at(at)),
                Kind::Add => Target::Add(self.target.at(at)),
                Kind::Half => Target::Half(self.target.0.cast::<bf16>().add(at)),
            };
            let stretches = self.terms.iter().filter_map(|term| stretch(term).map(|s| s.at(row, column / PANEL)));
            let piece = Piece::new(stretches, (rows, columns), target, self.stride);
            if self.kind == Kind::Half || piece.steps() <= 2 * STEPS_MAX {
                return compute(unit, &piece, scratch);
            }
            // Sums that are put down and taken up again are the same bits.
            for (index, part) in piece.stretches().iter().flat_map(|stretch| stretch.cut(STEPS_MAX)).enumerate() {
                let target = if index == 0 { target } else { Target::Add(self.target.at(at)) };
                let part = Piece::new(std::iter::once(part), (rows, columns), target, self.stride);
                compute(unit, &part, scratch);
            }
        }
    }
}

/// A term of bf16 as the units read it.
fn stretch(term: &Term<'_>) -> Option<Stretch> {
    match (term.rows, term.weight.right) {
        (Left::Half { data, stride }, Right::Half { data: right, panel }) => {
            Some(Stretch::new((data.as_ptr(), stride), (right.as_ptr(), panel), term.weight.k))
        }
        _ => None,
    }
}

/// Computes a piece of one f32 term, the `index`-th of its sum.
///
/// # Safety
/// The shapes of the term fit, and nobody else touches the piece, which begins at `out`.
unsafe fn single(
    term: &Term<'_>,
    out: *mut f32,
    spread: &Spread<'_>,
    (row, rows, column, columns): (usize, usize, usize, usize),
    index: usize,
) {
    if let (Left::Single { data, stride }, Right::Single { data: right, down, across }) = (term.rows, term.weight.right)
    {
        let add = index > 0 || spread.kind == Kind::Add;
        // SAFETY: by the caller.
        unsafe {
            let a = (data.as_ptr().add(row * stride), stride, 1);
            let b = (right.as_ptr().add(column * across), down, across);
            multiply((out, spread.stride, 1), a, b, (rows, term.weight.k, columns), add);
        }
    }
}

/// Computes a piece of bf16.
///
/// # Safety
/// That of [`Piece::new`] is enough; the unit is available.
pub(super) unsafe fn compute(unit: Unit, piece: &Piece, scratch: &mut Widened) {
    // SAFETY: by the caller.
    unsafe {
        match unit {
            #[cfg(target_arch = "x86_64")]
            Unit::Amx => super::amx::piece(piece),
            #[cfg(target_arch = "x86_64")]
            Unit::Avx512Bf16 => super::avx512::piece(piece),
            _ => portable::piece(piece, scratch),
        }
    }
}

impl Multiplier {
    /// For a pool of `threads`, gradients over up to `tokens` rows and of matrices up to `narrow` wide.
    ///
    /// # Panics
    /// The processor has no such unit.
    #[must_use]
    pub fn new(unit: Unit, threads: usize, tokens: usize, narrow: usize) -> Self {
        assert!(unit.is_available(), "the processor has no {unit:?}");
        let gradient = super::gradient::Room::new(threads, tokens, narrow);
        Self { unit, gradient, widened: PerThread::new(threads, Widened::default) }
    }

    /// What computes.
    #[must_use]
    pub const fn unit(&self) -> Unit {
        self.unit
    }

    /// Computes products of `rows` rows in one parallel section.
    ///
    /// # Panics
    /// The shapes of a product do not fit, or the pool has more threads than the multiplier was made for.
    pub fn products(&mut self, pool: &mut Pool, rows: usize, products: &mut [Product<'_>]) {
        let spread: Vec<Spread<'_>> = products.iter_mut().map(|product| Spread::new(rows, product)).collect();
        let total = spread.iter().map(|one| one.cut.pieces()).sum();
        pool.run(total, &|mut index, thread| {
            for one in &spread {
                if index < one.cut.pieces() {
                    // SAFETY: the number of this thread, and no earlier borrow lives on.
                    let scratch = unsafe { self.widened.get(thread) };
                    return one.run(index, self.unit, scratch);
                }
                index -= one.cut.pieces();
            }
        });
    }
}
