//! Matrix products on slices with strides: a checked face of the `gemm` crate, which picks the processor's widest
//! instructions at run time. Each element is one sum in a fixed order, whatever the number of threads.

use gemm::{Parallelism, gemm};

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// How a product is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// On the calling thread, for products that are themselves spread.
    One,
    /// Over the pool.
    All,
}

/// One past the largest index that is touched, or 0 when nothing is.
const fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

impl<'a> Matrix<'a> {
    /// Rows of `cols` numbers one after another.
    #[must_use]
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows that begin `row_stride` numbers apart.
    ///
    /// # Panics
    /// The slice is too short.
    #[must_use]
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(extent(rows, cols, row_stride, 1) <= data.len(), "a matrix reaches beyond its slice");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The same numbers with rows and columns exchanged.
    #[must_use]
    pub const fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// `dst = a·b`, or `dst += a·b` when `accumulate`; rows of `dst` begin `dst_stride` numbers apart.
///
/// # Panics
/// The shapes do not fit each other or `dst`.
pub fn multiply(dst: &mut [f32], dst_stride: usize, a: Matrix<'_>, b: Matrix<'_>, accumulate: bool, threads: Threads) {
    assert_eq!(a.cols, b.rows, "inner sides differ");
    assert!(dst_stride >= b.cols && extent(a.rows, b.cols, dst_stride, 1) <= dst.len(), "the destination is too short");
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    let step = |stride: usize| isize::try_from(stride).unwrap_or(isize::MAX);
    // SAFETY: `Matrix` and the assertion above hold every touched index inside its slice (strides are bounded by slice
    // lengths, so they fit an isize); `dst` is exclusively borrowed; its rows do not overlap.
    unsafe {
        gemm(
            a.rows,
            b.cols,
            a.cols,
            dst.as_mut_ptr(),
            1,
            step(dst_stride),
            accumulate,
            a.data.as_ptr(),
            step(a.col_stride),
            step(a.row_stride),
            b.data.as_ptr(),
            step(b.col_stride),
            step(b.row_stride),
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_the_definition() {
        let (m, k, n) = (5usize, 7usize, 3usize);
        let a: Vec<f32> = (0..m * k).map(|i| (i as f32).sin()).collect();
        let b: Vec<f32> = (0..n * 9).map(|i| (i as f32).cos()).collect();
        let mut dst = vec![1f32; m * 4];
        multiply(&mut dst, 4, Matrix::new(&a, m, k), Matrix::strided(&b, n, k, 9).transposed(), true, Threads::All);
        for i in 0..m {
            for j in 0..n {
                let sum: f32 = (0..k).map(|l| a[i * k + l] * b[j * 9 + l]).sum();
                assert!((dst[i * 4 + j] - 1.0 - sum).abs() < 1e-5);
            }
            assert_eq!(dst[i * 4 + 3], 1.0, "columns beyond the product are left alone");
        }
    }

    #[test]
    #[should_panic(expected = "beyond its slice")]
    fn a_short_slice_is_refused() {
        let _ = Matrix::strided(&[0.0; 10], 2, 6, 6);
    }
}
