//! Matrices of weights packed for both ways through them. Knows where a number lies; refuses to compute.

use super::Precision;
use super::operand::{PANEL, Right, STEP, View};
use super::rounding::round_row;
use crate::kernels::lines::Lines;
use crate::kernels::pool::{Pointer, Pool};
use half::bf16;

/// Rows that one task packs: whole panels of the one way and whole pairs of the other.
const TASK_ROWS: usize = PANEL;

/// `W [out, inputs]`, for `y = x·Wᵀ` and `dx = dy·W`.
pub struct Weight {
    out: usize,
    inputs: usize,
    data: Data,
}

enum Data {
    /// Panels of 16 outputs over pairs of inputs, and panels of 16 inputs over pairs of outputs; both sides filled up with zeros.
    Half { forward: Lines, backward: Lines },
    /// Row after row, for both ways.
    Single(Vec<f32>),
}

/// Numbers of a packed `[k, n]`.
const fn packed_len(k: usize, n: usize) -> usize {
    k.next_multiple_of(STEP) * n.next_multiple_of(PANEL)
}

impl Weight {
    /// Zeros.
    #[must_use]
    pub fn new(precision: Precision, out: usize, inputs: usize) -> Self {
        let lines = |k, n| Lines::zeroed(packed_len(k, n) * size_of::<bf16>());
        let data = match precision {
            Precision::Half => Data::Half { forward: lines(inputs, out), backward: lines(out, inputs) },
            Precision::Single => Data::Single(vec![0.0; out * inputs]),
        };
        Self { out, inputs, data }
    }

    /// What such a matrix needs, in bytes.
    #[must_use]
    pub const fn bytes_for(precision: Precision, out: usize, inputs: usize) -> usize {
        match precision {
            Precision::Half => (packed_len(inputs, out) + packed_len(out, inputs)) * size_of::<bf16>(),
            Precision::Single => out * inputs * size_of::<f32>(),
        }
    }

    /// Outputs.
    #[must_use]
    pub const fn out(&self) -> usize {
        self.out
    }

    /// Inputs.
    #[must_use]
    pub const fn inputs(&self) -> usize {
        self.inputs
    }

    /// Sets the weights of one output.
    ///
    /// # Panics
    /// There is no such output, or the weights are not as many as the inputs.
    pub fn put_row(&mut self, row: usize, weights: &[f32]) {
        assert!(row < self.out, "a row of the matrix");
        let mut rounded = vec![bf16::ZERO; self.inputs];
        // SAFETY: the matrix is exclusively borrowed, and has the row.
        unsafe { self.raw().put(row, weights, &mut rounded) };
    }

    /// The weights of one output as they are kept, for a row of embeddings that are also the head.
    ///
    /// # Panics
    /// There is no such output, or `to` has not as many numbers as there are inputs.
    pub fn row(&self, row: usize, to: &mut [f32]) {
        assert!(row < self.out && to.len() == self.inputs, "a row of the matrix");
        match &self.data {
            Data::Single(data) => to.copy_from_slice(&data[row * self.inputs..][..self.inputs]),
            Data::Half { forward, .. } => {
                let panel = &half_of(forward)[row / PANEL * self.inputs.next_multiple_of(STEP) * PANEL..];
                for (both, line) in to.chunks_mut(2).zip(panel.chunks_exact(2 * PANEL)) {
                    both.iter_mut().zip(&line[row % PANEL * 2..]).for_each(|(to, weight)| *to = weight.to_f32());
                }
            }
        }
    }

    /// Sets all weights, those of each output by `row(output, weights)`, on the threads of the pool.
    pub fn fill(&mut self, pool: &mut Pool, row: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let (out, inputs, raw) = (self.out, self.inputs, self.raw());
        pool.run(out.div_ceil(TASK_ROWS), &|task, _| {
            let (mut weights, mut rounded) = (vec![0.0; inputs], vec![bf16::ZERO; inputs]);
            for output in task * TASK_ROWS..out.min((task + 1) * TASK_ROWS) {
                row(output, &mut weights);
                // SAFETY: there is such a row; tasks have different ones, and write different lines of both packs.
                unsafe { raw.put(output, &weights, &mut rounded) };
            }
        });
    }

    /// `[k = inputs, n = out]`, for `y = x·Wᵀ`.
    #[must_use]
    pub fn forward(&self) -> View<'_> {
        let right = match &self.data {
            Data::Half { forward, .. } => panels_of(forward, self.inputs),
            Data::Single(data) => Right::Single { data, down: 1, across: self.inputs },
        };
        View { right, k: self.inputs, n: self.out }
    }

    /// `[k = out, n = inputs]`, for `dx = dy·W`.
    #[must_use]
    pub fn backward(&self) -> View<'_> {
        let right = match &self.data {
            Data::Half { backward, .. } => panels_of(backward, self.out),
            Data::Single(data) => Right::Single { data, down: self.inputs, across: 1 },
        };
        View { right, k: self.out, n: self.inputs }
    }

    /// For writing from several threads.
    fn raw(&mut self) -> Raw {
        let (inputs, panel) = (self.inputs, self.out.next_multiple_of(STEP) * PANEL);
        let to = match &mut self.data {
            Data::Half { forward, backward } => To::Half {
                forward: Pointer(forward.bytes_mut().as_mut_ptr().cast()),
                backward: Pointer(backward.bytes_mut().as_mut_ptr().cast()),
                panel,
            },
            Data::Single(data) => To::Single(Pointer(data.as_mut_ptr())),
        };
        Raw { inputs, to }
    }
}

/// The numbers of a pack.
fn half_of(lines: &Lines) -> &[bf16] {
    let bytes = lines.bytes();
    // SAFETY: lines begin at a cache line; every two bytes are a bf16.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<bf16>()) }
}

/// The panels of a pack with inner side `k`.
fn panels_of(lines: &Lines, k: usize) -> Right<'_> {
    Right::Half { data: half_of(lines), panel: k.next_multiple_of(STEP) * PANEL }
}

#[derive(Clone, Copy)]
struct Raw {
    inputs: usize,
    to: To,
}

#[derive(Clone, Copy)]
enum To {
    Half { forward: Pointer<bf16>, backward: Pointer<bf16>, panel: usize },
    Single(Pointer<f32>),
}

impl Raw {
    /// Sets a row; `rounded` has room for it.
    ///
    /// # Safety
    /// The matrix has the row and is borrowed; nobody else touches the row.
    unsafe fn put(self, row: usize, weights: &[f32], rounded: &mut [bf16]) {
        assert_eq!(weights.len(), self.inputs, "as many weights as inputs");
        // SAFETY: all places lie within the packs, whose sides are filled up to whole pairs and panels.
        unsafe {
            match self.to {
                To::Single(to) => {
                    weights.as_ptr().copy_to_nonoverlapping(to.at(row * self.inputs), self.inputs);
                }
                To::Half { forward, backward, panel } => {
                    round_row(weights, rounded);
                    let strip = row / PANEL * self.inputs.next_multiple_of(STEP) * PANEL + row % PANEL * 2;
                    for (pair, both) in rounded.chunks(2).enumerate() {
                        both.as_ptr().copy_to_nonoverlapping(forward.at(strip + pair * 2 * PANEL), both.len());
                    }
                    for (index, columns) in rounded.chunks(PANEL).enumerate() {
                        let line = index * panel + row / 2 * 2 * PANEL + row % 2;
                        for (column, weight) in columns.iter().enumerate() {
                            backward.at(line + 2 * column).write(*weight);
                        }
                    }
                }
            }
        }
    }
}
