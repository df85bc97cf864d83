//! The input rows of products: filled once, shared by every matrix that reads them. In 8 bits with a scale per 32 for
//! quantised weights, as floats for the others. Refuses to know weights and models.
//!
//! A block of 32 becomes `round(x·127/max|x|)`, to even at ties; the same bits whatever instructions fill it. A block with a
//! number that is not finite gets the scale NaN, so that whatever is computed from it is NaN and nothing is undefined.

use super::format::BLOCK;
use super::packed::PackKind;
use super::product::Instructions;
use std::marker::PhantomData;

/// 32 inputs of one row: input `i` is `scale·q[i]`. One cache line less a quarter; a row is one stream.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(super) struct InputBlock {
    /// What one step is worth.
    pub(super) scale: f32,
    /// `scale` times the sum of all quants, for the minimum of a block of weights.
    pub(super) scaled_sum: f32,
    /// The sums of the first and of the second 16 quants, for the offset of unsigned weights.
    pub(super) sums: [i32; 2],
    /// The quants, -127 to 127.
    pub(super) q: [i8; BLOCK],
}

const ZERO: InputBlock = InputBlock { scale: 0.0, scaled_sum: 0.0, sums: [0; 2], q: [0; BLOCK] };

/// Which forms of the inputs are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// 8 bits, for quantised weights.
    Quantised,
    /// As they are, for weights in F16, BF16 and F32.
    Floats,
    /// Both.
    Both,
}

/// A static buffer for input rows.
pub struct Activations {
    blocks: Vec<InputBlock>,
    floats: Vec<f32>,
    keep: Keep,
    rows_max: usize,
    cols_max: usize,
    rows: usize,
    cols: usize,
}

impl Activations {
    /// A buffer for up to `rows_max × cols_max` inputs.
    #[must_use]
    pub fn new(rows_max: usize, cols_max: usize, keep: Keep) -> Self {
        let padded = rows_max * cols_max.next_multiple_of(BLOCK);
        let quantised = if keep == Keep::Floats { 0 } else { padded / BLOCK };
        let floats = if keep == Keep::Quantised { 0 } else { padded };
        Self { blocks: vec![ZERO; quantised], floats: vec![0.0; floats], keep, rows_max, cols_max, rows: 0, cols: 0 }
    }

    /// Rows that are held now.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of a row that is held now.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Takes the `rows × cols` numbers of `x`.
    ///
    /// # Panics
    /// They do not fit the buffer, or `x` has another length, or the processor has not these instructions.
    pub fn fill(&mut self, instructions: Instructions, x: &[f32], rows: usize, cols: usize) {
        assert_eq!(x.len(), rows * cols, "as many numbers as the shape says");
        let writer = self.writer(rows, cols);
        for (row, x) in x.chunks_exact(cols.max(1)).enumerate() {
            // SAFETY: this thread alone has the writer.
            unsafe { writer.fill_row(instructions, row, x) };
        }
    }

    /// Sets the shape; every row must be filled through the writer before a product reads it.
    ///
    /// # Panics
    /// The shape does not fit the buffer.
    pub fn writer(&mut self, rows: usize, cols: usize) -> ActivationsWriter<'_> {
        assert!(rows <= self.rows_max && cols <= self.cols_max, "{rows} x {cols} inputs do not fit");
        (self.rows, self.cols) = (rows, cols);
        ActivationsWriter {
            blocks: self.blocks.as_mut_ptr(),
            floats: self.floats.as_mut_ptr(),
            keep: self.keep,
            rows,
            cols,
            buffer: PhantomData,
        }
    }

    /// Whether the form that such weights need is there.
    pub(super) const fn holds(&self, kind: PackKind) -> bool {
        match self.keep {
            Keep::Quantised => kind.is_quantised(),
            Keep::Floats => !kind.is_quantised(),
            Keep::Both => true,
        }
    }

    /// Blocks of one row.
    pub(super) const fn row_blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }

    /// The blocks of one row.
    pub(super) fn blocks(&self, row: usize) -> &[InputBlock] {
        &self.blocks[row * self.row_blocks()..][..self.row_blocks()]
    }

    /// The numbers of one row, followed by zeros up to a whole block.
    pub(super) fn floats(&self, row: usize) -> &[f32] {
        let padded = self.row_blocks() * BLOCK;
        &self.floats[row * padded..][..padded]
    }

    /// Overwrites everything that was held.
    pub fn wipe(&mut self) {
        self.blocks.fill(ZERO);
        self.floats.fill(0.0);
        (self.rows, self.cols) = (0, 0);
    }
}

/// Fills rows of a buffer, possibly from several threads.
pub struct ActivationsWriter<'a> {
    blocks: *mut InputBlock,
    floats: *mut f32,
    keep: Keep,
    rows: usize,
    cols: usize,
    buffer: PhantomData<&'a mut Activations>,
}

// SAFETY: the pointers are those of an exclusively borrowed buffer of plain numbers, and `fill_row` asks that no row is
// written by two threads.
unsafe impl Send for ActivationsWriter<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for ActivationsWriter<'_> {}

impl ActivationsWriter<'_> {
    /// Fills row `row` with the numbers of `x`.
    ///
    /// # Panics
    /// There is no such row, `x` has another length, or the processor has not these instructions.
    ///
    /// # Safety
    /// No other thread fills the same row at the same time.
    pub unsafe fn fill_row(&self, instructions: Instructions, row: usize, x: &[f32]) {
        assert!(row < self.rows && x.len() == self.cols, "a row of the buffer");
        let blocks = self.cols.div_ceil(BLOCK);
        if self.keep != Keep::Floats {
            // SAFETY: `writer` checked that `rows × blocks` fit the buffer, and the caller leaves this row to this thread.
            let out = unsafe { std::slice::from_raw_parts_mut(self.blocks.add(row * blocks), blocks) };
            instructions.quantise(x, out);
        }
        if self.keep != Keep::Quantised {
            // SAFETY: as above, for the floats.
            let out = unsafe { std::slice::from_raw_parts_mut(self.floats.add(row * blocks * BLOCK), blocks * BLOCK) };
            out[..x.len()].copy_from_slice(x);
            out[x.len()..].fill(0.0);
        }
    }
}

/// The blocks of one row. Inlined into a function for each instruction set; it has no fused or reordered sums, so all of
/// them give the same bits.
#[inline(always)]
pub(super) fn quantise_row(x: &[f32], out: &mut [InputBlock]) {
    let (whole, tail) = x.as_chunks::<BLOCK>();
    for (x, out) in whole.iter().zip(out.iter_mut()) {
        quantise_block(x, out);
    }
    if !tail.is_empty() {
        let mut padded = [0f32; BLOCK];
        padded[..tail.len()].copy_from_slice(tail);
        quantise_block(&padded, &mut out[whole.len()]);
    }
}

#[inline(always)]
fn quantise_block(x: &[f32; BLOCK], out: &mut InputBlock) {
    /// Adding it leaves the nearest integer, to even at ties, in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    /// Below it the reciprocal would overflow; such a block is zero.
    const TINY: f32 = 1e-30;
    // As integers the magnitudes of floats are ordered, infinity and NaN last.
    let top_bits = x.iter().fold(0u32, |top, value| top.max(value.to_bits() & 0x7fff_ffff));
    let top = f32::from_bits(top_bits);
    if !top.is_finite() || top < TINY {
        *out = InputBlock { scale: if top.is_finite() { 0.0 } else { f32::NAN }, ..ZERO };
        out.scaled_sum = out.scale;
        return;
    }
    let inverse = 127.0 / top;
    let mut quants = [0i32; BLOCK];
    for (quant, value) in quants.iter_mut().zip(x) {
        *quant = (value * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most 127 in magnitude")]
    for (byte, quant) in out.q.iter_mut().zip(&quants) {
        *byte = *quant as i8;
    }
    out.sums = [quants[..16].iter().sum(), quants[16..].iter().sum()];
    out.scale = top / 127.0;
    #[expect(clippy::cast_precision_loss, reason = "a sum of 32 bytes is exact")]
    let sum = (out.sums[0] + out.sums[1]) as f32;
    out.scaled_sum = out.scale * sum;
}
