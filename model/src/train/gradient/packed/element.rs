//! In what a trainer keeps its rows: bf16, or f32. Refuses to know what the rows mean.

use crate::kernels::backward::{Kept, Span, SpanMut};
use crate::kernels::half::{Left, Out, Precision, round_row};
use half::bf16;

/// Numbers from which on a row begins again: products read whole steps of 32.
const STEP: usize = 32;

/// What rows are kept in.
pub(super) trait Element: Kept {
    /// Of products with such rows.
    const PRECISION: Precision;
    /// Rows as the left side of a product.
    fn left(data: &[Self], stride: usize) -> Left<'_>;
    /// Rows as what a product is put into.
    fn out(data: &mut [Self]) -> Out<'_>;
    /// Rounds a row.
    fn round(from: &[f32], to: &mut [Self]);
}

impl Element for bf16 {
    const PRECISION: Precision = Precision::Half;

    fn left(data: &[Self], stride: usize) -> Left<'_> {
        Left::Half { data, stride }
    }

    fn out(data: &mut [Self]) -> Out<'_> {
        Out::Half(data)
    }

    fn round(from: &[f32], to: &mut [Self]) {
        round_row(from, to);
    }
}

impl Element for f32 {
    const PRECISION: Precision = Precision::Single;

    fn left(data: &[Self], stride: usize) -> Left<'_> {
        Left::Single { data, stride }
    }

    fn out(data: &mut [Self]) -> Out<'_> {
        Out::Set(data)
    }

    fn round(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
}

/// Rows of one width that are kept: a buffer sized once, of which a pass uses the first rows.
pub(super) struct Rows<E> {
    data: Vec<E>,
    width: usize,
    stride: usize,
}

/// Numbers from row to row.
pub(super) const fn stride(width: usize) -> usize {
    width.next_multiple_of(STEP)
}

impl<E: Element> Rows<E> {
    /// Room for `rows` rows of `width`, zeros.
    pub(super) fn new(rows: usize, width: usize) -> Self {
        let stride = stride(width);
        Self { data: vec![E::default(); rows * stride], width, stride }
    }

    /// The first rows, as kernels read them.
    pub(super) fn span(&self, rows: usize) -> Span<'_, E> {
        self.columns(rows, self.width)
    }

    /// The first columns of the first rows.
    pub(super) fn columns(&self, rows: usize, width: usize) -> Span<'_, E> {
        Span::new(&self.data[..rows * self.stride], self.stride, width)
    }

    /// The first rows, as kernels write them.
    pub(super) fn span_mut(&mut self, rows: usize) -> SpanMut<'_, E> {
        self.columns_mut(rows, self.width)
    }

    /// The first columns of the first rows.
    pub(super) fn columns_mut(&mut self, rows: usize, width: usize) -> SpanMut<'_, E> {
        SpanMut::new(&mut self.data[..rows * self.stride], self.stride, width)
    }

    /// As the left side of a product.
    pub(super) fn left(&self) -> Left<'_> {
        E::left(&self.data, self.stride)
    }

    /// As what a product is put into, and its stride.
    pub(super) fn out(&mut self) -> (Out<'_>, usize) {
        (E::out(&mut self.data), self.stride)
    }

    /// Rows there is room for.
    pub(super) const fn rows(&self) -> usize {
        match self.data.len().checked_div(self.stride) {
            Some(rows) => rows,
            None => 0,
        }
    }

    /// Width of a row.
    pub(super) const fn width(&self) -> usize {
        self.width
    }

    /// One row.
    pub(super) fn row_mut(&mut self, row: usize) -> &mut [E] {
        &mut self.data[row * self.stride..][..self.width]
    }

    /// One row.
    pub(super) fn row(&self, row: usize) -> &[E] {
        &self.data[row * self.stride..][..self.width]
    }

    /// Rows with their padding, to be cut into pieces of whole rows; and the stride.
    pub(super) fn raw_mut(&mut self) -> (&mut [E], usize) {
        (&mut self.data, self.stride)
    }
}
