//! What a product is made of: rows, packed matrices, where the sums go. Knows shapes and checks them; refuses to compute.

use half::bf16;
use std::ops::Range;

/// Columns of one panel of a packed matrix.
pub(super) const PANEL: usize = 16;
/// Numbers of the inner side that a packed matrix is filled up to; one tile.
pub(super) const STEP: usize = 32;

/// The left side of a product: rows that begin `stride` numbers apart.
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// For [`Precision::Half`](super::Precision::Half). A term with inner side `k` reads `k` rounded up to a multiple of
    /// 32: the numbers behind meet zeros, and need only be finite.
    Half {
        /// From the first number of the first row on.
        data: &'a [bf16],
        /// From row to row.
        stride: usize,
    },
    /// For [`Precision::Single`](super::Precision::Single).
    Single {
        /// From the first number of the first row on.
        data: &'a [f32],
        /// From row to row.
        stride: usize,
    },
}

impl Left<'_> {
    /// Whether it is in bf16.
    pub(super) const fn is_half(&self) -> bool {
        matches!(self, Self::Half { .. })
    }

    /// Whether `rows` rows of `columns` numbers are there.
    pub(super) fn has(&self, rows: usize, columns: usize) -> bool {
        let (len, stride) = match *self {
            Self::Half { data, stride } => (data.len(), stride),
            Self::Single { data, stride } => (data.len(), stride),
        };
        rows == 0 || (rows - 1).checked_mul(stride).and_then(|at| at.checked_add(columns)).is_some_and(|end| end <= len)
    }

    /// Whether `rows` rows of `k` numbers, filled up as a product reads them, are there.
    pub(super) fn holds(&self, rows: usize, k: usize) -> bool {
        self.has(rows, if self.is_half() { k.next_multiple_of(STEP) } else { k })
    }
}

/// Where the numbers of a right side lie.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// From the first panel on; panels are `panel` numbers apart. A panel is 16 columns: for each pair of the inner side 16
    /// times the two numbers of a column.
    Half { data: &'a [bf16], panel: usize },
    /// Number (i, j) lies at `i·down + j·across`.
    Single { data: &'a [f32], down: usize, across: usize },
}

/// The right side `[k, n]` of a product, or a part of it.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub(super) right: Right<'a>,
    pub(super) k: usize,
    pub(super) n: usize,
}

impl View<'_> {
    /// Its inner side.
    #[must_use]
    pub const fn k(&self) -> usize {
        self.k
    }

    /// Its columns.
    #[must_use]
    pub const fn n(&self) -> usize {
        self.n
    }

    /// Only these columns.
    ///
    /// # Panics
    /// There are no such columns, or the first is no multiple of 16.
    #[must_use]
    pub fn columns(mut self, columns: Range<usize>) -> Self {
        assert!(columns.start <= columns.end && columns.end <= self.n, "columns of the matrix");
        assert_eq!(columns.start % PANEL, 0, "columns begin at a multiple of {PANEL}");
        self.n = columns.len();
        match &mut self.right {
            Right::Half { data, panel } => *data = data.get(columns.start / PANEL * *panel..).unwrap_or_default(),
            Right::Single { data, across, .. } => *data = data.get(columns.start * *across..).unwrap_or_default(),
        }
        self
    }

    /// Only this part of the inner side. Where it ends inside 32 numbers that are read together and the matrix goes on, the
    /// rows that it is multiplied with hold zeros up to the next multiple of 32.
    ///
    /// # Panics
    /// There is no such part, or it begins inside 32 numbers that are read together.
    #[must_use]
    pub fn depth(mut self, depth: Range<usize>) -> Self {
        assert!(depth.start <= depth.end && depth.end <= self.k, "a part of the inner side");
        assert!(depth.start.is_multiple_of(STEP), "a part of the inner side begins at a multiple of {STEP}");
        self.k = depth.len();
        match &mut self.right {
            Right::Half { data, .. } => *data = data.get(depth.start * PANEL..).unwrap_or_default(),
            Right::Single { data, down, .. } => *data = data.get(depth.start * *down..).unwrap_or_default(),
        }
        self
    }
}

/// Rows times a packed matrix.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// `[rows, k]`.
    pub rows: Left<'a>,
    /// `[k, n]`.
    pub weight: View<'a>,
}

/// Where the sums go.
pub enum Out<'a> {
    /// They replace what is there.
    Set(&'a mut [f32]),
    /// They begin with what is there.
    Add(&'a mut [f32]),
    /// They are rounded once, to bf16. Not for [`Precision::Single`](super::Precision::Single).
    Half(&'a mut [bf16]),
}

/// `out[i, j] = Σ_terms Σ_k rows[i, k]·weight[k, j]`.
pub struct Product<'a> {
    /// One or several, up to [`TERMS_MAX`]; all have the same number of columns and the same precision.
    pub terms: &'a [Term<'a>],
    /// `[rows, n]`; the numbers of a row behind the columns are left alone.
    pub out: Out<'a>,
    /// From row to row of `out`.
    pub stride: usize,
}

/// Terms of one sum: the stretches of a residual gradient are three projections and what their adapters add.
pub const TERMS_MAX: usize = 8;

impl Product<'_> {
    /// Columns of the output.
    pub(super) fn columns(&self) -> usize {
        self.terms.first().map_or(0, |term| term.weight.n)
    }

    /// Whether all terms are in bf16.
    pub(super) fn is_half(&self) -> bool {
        self.terms.iter().all(|term| matches!(term.weight.right, Right::Half { .. }))
    }

    /// # Panics
    /// The terms do not fit each other, the rows or the output.
    pub(super) fn check(&self, rows: usize) {
        let columns = self.columns();
        assert!((1..=TERMS_MAX).contains(&self.terms.len()), "one to {TERMS_MAX} terms");
        assert!(self.terms.iter().all(|term| term.weight.k > 0), "a term has an inner side");
        for term in self.terms {
            assert_eq!(term.weight.n, columns, "terms of one sum have the same columns");
            term.check(rows);
        }
        let single = self.terms.iter().any(|term| matches!(term.weight.right, Right::Single { .. }));
        assert!(!single || !self.is_half() && !matches!(self.out, Out::Half(_)), "a sum has one precision");
        let len = match &self.out {
            Out::Set(out) | Out::Add(out) => out.len(),
            Out::Half(out) => out.len(),
        };
        let fits = rows == 0
            || (rows == 1 || columns <= self.stride)
                && (rows - 1)
                    .checked_mul(self.stride)
                    .and_then(|at| at.checked_add(columns))
                    .is_some_and(|end| end <= len);
        assert!(fits, "{rows} rows of {columns} do not fit the output");
    }
}

impl Term<'_> {
    /// # Panics
    /// The two sides differ in precision, or one is shorter than it says.
    fn check(&self, rows: usize) {
        let View { right, k, n } = self.weight;
        assert!(self.rows.holds(rows, k), "the rows are too short for an inner side of {k}");
        let there = match (self.rows, right) {
            (Left::Half { .. }, Right::Half { data, panel }) => {
                let last = n.div_ceil(PANEL).saturating_sub(1);
                n == 0 || last * panel + k.next_multiple_of(STEP) * PANEL <= data.len()
            }
            (Left::Single { .. }, Right::Single { data, down, across }) => {
                n == 0 || k == 0 || (k - 1) * down + (n - 1) * across < data.len()
            }
            _ => panic!("both sides of a term have the same precision"),
        };
        assert!(there, "the matrix is shorter than its sides say");
    }
}
