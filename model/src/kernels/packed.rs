//! Weight matrices as the products want them: tiles of 16 outputs, so that one vector register holds one number of each
//! output and no sum runs across a register. Knows layouts; refuses to know files, models and instruction sets.
//!
//! A tile holds its 16 rows side by side; `k` counts the inputs, a block has 32 of them:
//!
//! | kind | one tile | bytes per 16 × 32 weights |
//! |---|---|---|
//! | `Q4` | per block: scale f16×16, min f16×16, 4 × 64 B: byte `4·row + i` of group `g` holds `k = 4g + i` low, `16 + 4g + i` high | 320 |
//! | `Q8` | scales f16×16 of all blocks (padded to a cache line), then per block 8 × 64 B: byte `4·row + i` of group `g` holds `k = 4g + i`, offset 128 | 544 |
//! | `Q6` | per block: scale f16×16 of `k < 16` and of the rest, then as `Q8`, offset 32 | 576 |
//! | `F16` | per `k`: f16×16 | 1,024 |
//! | `Bf16` | per two `k`: bf16 of the even and of the odd one, × 16 | 1,024 |
//! | `F32` | per `k`: f32×16 | 2,048 |
//!
//! `Q4` is Q4_0 (min = -8·scale), Q4_1 and Q4_K; `Q8` is Q8_0; `Q6` is Q6_K. The 6-bit and 8-bit scales of the K formats are
//! multiplied out and rounded to half precision, a relative error of at most 2^-11 of each scale. Inputs and rows that do not
//! fill a block or a tile are zeros.

use super::format::{BLOCK, WeightBlock, WeightFormat};
use super::lanes::fetch;
use super::lines::{Arena, Lines};
use half::{bf16, f16};
use std::ops::Range;

/// Outputs of one tile.
pub const TILE: usize = 16;

/// How the weights of a packed matrix are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackKind {
    /// 4 bits with scale and minimum per 32.
    Q4,
    /// 6 bits in a byte each, a scale per 16.
    Q6,
    /// 8 bits with a scale per 32.
    Q8,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
    /// IEEE single.
    F32,
}

/// Why bytes are not the matrix they are said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// A side is 0 or absurd, or a row does not consist of whole blocks.
    #[error("a matrix of {rows} x {cols} cannot be held in blocks of {block}")]
    Shape {
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
        /// Weights of a block of the format.
        block: usize,
    },
    /// Too few bytes, or too many.
    #[error("a matrix of {needed} bytes has {given}")]
    Bytes {
        /// What the shape asks for.
        needed: usize,
        /// What there is.
        given: usize,
    },
    /// The order of rows names a row that is not there.
    #[error("row {row} of {rows} was asked for")]
    Row {
        /// The row.
        row: usize,
        /// Rows there are.
        rows: usize,
    },
}

/// A weight matrix, rows = outputs, packed for products.
pub struct PackedMatrix {
    kind: PackKind,
    rows: usize,
    cols: usize,
    tile_bytes: usize,
    lines: Lines,
}

/// The most of either side; keeps every product of sides far from overflow.
const SIDE_MAX: usize = 1 << 24;

impl PackKind {
    /// Whether the activations are needed in 8 bits; otherwise as floats.
    #[must_use]
    pub const fn is_quantised(self) -> bool {
        matches!(self, Self::Q4 | Self::Q6 | Self::Q8)
    }

    /// The kind that holds a format.
    #[must_use]
    pub const fn of(format: WeightFormat) -> Self {
        match format {
            WeightFormat::F32 => Self::F32,
            WeightFormat::F16 => Self::F16,
            WeightFormat::Bf16 => Self::Bf16,
            WeightFormat::Q4_0 | WeightFormat::Q4_1 | WeightFormat::Q4K => Self::Q4,
            WeightFormat::Q8_0 => Self::Q8,
            WeightFormat::Q6K => Self::Q6,
        }
    }

    /// Bytes of 16 rows of `cols` weights.
    const fn tile_bytes(self, cols: usize) -> usize {
        let blocks = cols.div_ceil(BLOCK);
        match self {
            Self::Q4 => blocks * 320,
            Self::Q6 => blocks * 576,
            Self::Q8 => q8_quants_at(blocks) + blocks * 512,
            Self::F16 | Self::Bf16 => cols.div_ceil(2) * 64,
            Self::F32 => cols * 64,
        }
    }

    /// What is subtracted from a quant.
    const fn offset(self) -> i32 {
        match self {
            Self::Q8 => 128,
            Self::Q6 => 32,
            _ => 0,
        }
    }
}

/// Where the quants of a `Q8` tile begin, behind the scales.
pub(super) const fn q8_quants_at(blocks: usize) -> usize {
    (blocks * 32).next_multiple_of(64)
}

impl PackedMatrix {
    /// Bytes of memory that such a matrix will take.
    #[must_use]
    pub const fn bytes_for(kind: PackKind, rows: usize, cols: usize) -> usize {
        (rows.div_ceil(TILE) * kind.tile_bytes(cols)).next_multiple_of(64)
    }

    /// Reads `rows × cols` weights from the bytes of a file; `row_order(i)` is the row of the file that becomes row `i`.
    ///
    /// # Errors
    /// The bytes are not such a matrix.
    pub fn pack(
        format: WeightFormat,
        rows: usize,
        cols: usize,
        bytes: &[u8],
        row_order: &dyn Fn(usize) -> usize,
    ) -> Result<Self, PackError> {
        Self::pack_in(None, format, rows, cols, bytes, row_order)
    }

    /// As [`pack`](Self::pack), in an arena.
    ///
    /// # Errors
    /// The bytes are not such a matrix.
    pub fn pack_in(
        arena: Option<&mut Arena>,
        format: WeightFormat,
        rows: usize,
        cols: usize,
        bytes: &[u8],
        row_order: &dyn Fn(usize) -> usize,
    ) -> Result<Self, PackError> {
        let block = format.block_weights();
        if rows == 0 || cols == 0 || rows > SIDE_MAX || cols > SIDE_MAX || !cols.is_multiple_of(block) {
            return Err(PackError::Shape { rows, cols, block });
        }
        let row_bytes = cols / block * format.block_bytes();
        let needed = rows * row_bytes;
        if bytes.len() != needed {
            return Err(PackError::Bytes { needed, given: bytes.len() });
        }
        let mut matrix = Self::empty(arena, PackKind::of(format), rows, cols);
        for row in 0..rows {
            let source = row_order(row);
            if source >= rows {
                return Err(PackError::Row { row: source, rows });
            }
            matrix.put_row(row, format, &bytes[source * row_bytes..][..row_bytes]);
        }
        Ok(matrix)
    }

    /// Packs `rows × cols` numbers, rounded to what `kind` can hold. A block with a number that is not finite becomes NaN
    /// where its scale is shared.
    ///
    /// # Panics
    /// A side is 0 or absurd, or `values` has another length.
    #[must_use]
    pub fn from_f32(kind: PackKind, rows: usize, cols: usize, values: &[f32]) -> Self {
        Self::from_f32_in(None, kind, rows, cols, values)
    }

    /// [`PackedMatrix::from_f32`] into an arena.
    ///
    /// # Panics
    /// As there.
    #[must_use]
    pub fn from_f32_in(arena: Option<&mut Arena>, kind: PackKind, rows: usize, cols: usize, values: &[f32]) -> Self {
        assert!(rows > 0 && cols > 0 && rows <= SIDE_MAX && cols <= SIDE_MAX, "a matrix without a shape");
        assert_eq!(values.len(), rows * cols, "as many numbers as the shape says");
        let mut matrix = Self::empty(arena, kind, rows, cols);
        for (row, values) in values.chunks_exact(cols).enumerate() {
            if kind.is_quantised() {
                for (index, chunk) in values.chunks(BLOCK).enumerate() {
                    let mut weights = [0f32; BLOCK];
                    weights[..chunk.len()].copy_from_slice(chunk);
                    matrix.put_block(row, index, &quantise(kind, &weights));
                }
            } else {
                values.iter().enumerate().for_each(|(col, &value)| matrix.put_float(row, col, value));
            }
        }
        matrix
    }

    fn empty(arena: Option<&mut Arena>, kind: PackKind, rows: usize, cols: usize) -> Self {
        let bytes = Self::bytes_for(kind, rows, cols);
        let lines = arena.map_or_else(|| Lines::zeroed(bytes), |arena| arena.take(bytes));
        Self { kind, rows, cols, tile_bytes: kind.tile_bytes(cols), lines }
    }

    /// Outputs.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// How the weights are held.
    #[must_use]
    pub const fn kind(&self) -> PackKind {
        self.kind
    }

    /// Bytes of memory, all of which a product over every tile reads.
    #[must_use]
    pub const fn bytes_len(&self) -> usize {
        self.lines.len()
    }

    /// Units of 16 outputs, the smallest that a thread can take.
    #[must_use]
    pub const fn row_tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Asks for the memory of some tiles, which will be read soon.
    pub fn fetch(&self, tiles: Range<usize>) {
        let bytes = &self.lines.bytes()[tiles.start * self.tile_bytes..tiles.end * self.tile_bytes];
        bytes.iter().step_by(64).for_each(|byte| fetch(byte));
    }

    /// The bytes of one tile.
    pub(super) fn tile(&self, tile: usize) -> &[u8] {
        &self.lines.bytes()[tile * self.tile_bytes..][..self.tile_bytes]
    }

    /// Outputs of one tile: 16, or fewer in the last.
    pub(super) fn tile_rows(&self, tile: usize) -> usize {
        TILE.min(self.rows - tile * TILE)
    }

    /// Writes the weights of one row into `out`.
    ///
    /// # Panics
    /// There is no such row, or `out` is not one row long.
    pub fn unpack_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "a row of the matrix");
        let lane = row % TILE;
        let tile = self.tile(row / TILE);
        match self.kind {
            PackKind::F16 | PackKind::Bf16 | PackKind::F32 => {
                out.iter_mut().enumerate().for_each(|(col, value)| *value = self.float(tile, lane, col));
            }
            PackKind::Q4 | PackKind::Q6 | PackKind::Q8 => {
                for (index, chunk) in out.chunks_mut(BLOCK).enumerate() {
                    let block = self.block(tile, lane, index);
                    for (i, value) in chunk.iter_mut().enumerate() {
                        #[expect(clippy::cast_precision_loss, reason = "a byte less an offset is exact")]
                        let quant = (i32::from(block.q[i]) - self.kind.offset()) as f32;
                        *value = block.scale[i / 16].to_f32() * quant + block.min.to_f32();
                    }
                }
            }
        }
    }

    /// Whether every weight is a finite number: no scale, minimum or float is infinite or none.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        let blocks = self.cols.div_ceil(BLOCK);
        let scales =
            |bytes: &[u8], len: usize| (0..blocks).all(|index| is_half_finite(&bytes[self.block_at(index).0..][..len]));
        (0..self.row_tiles()).map(|tile| self.tile(tile)).all(|bytes| match self.kind {
            PackKind::Q4 | PackKind::Q6 => scales(bytes, 64),
            PackKind::Q8 => scales(bytes, 32),
            PackKind::F16 => is_half_finite(bytes),
            PackKind::Bf16 => bytes.as_chunks::<2>().0.iter().all(|half| bf16::from_le_bytes(*half).is_finite()),
            PackKind::F32 => bytes.as_chunks::<4>().0.iter().all(|float| f32::from_le_bytes(*float).is_finite()),
        })
    }

    fn put_row(&mut self, row: usize, format: WeightFormat, bytes: &[u8]) {
        match format {
            WeightFormat::F32 => {
                for (col, bytes) in bytes.as_chunks::<4>().0.iter().enumerate() {
                    self.put_float(row, col, f32::from_le_bytes(*bytes));
                }
            }
            WeightFormat::F16 | WeightFormat::Bf16 => {
                for (col, bytes) in bytes.as_chunks::<2>().0.iter().enumerate() {
                    self.put_half(row, col, *bytes);
                }
            }
            _ => (0..self.cols / BLOCK).for_each(|index| self.put_block(row, index, &format.read(bytes, index))),
        }
    }

    fn tile_mut(&mut self, row: usize) -> &mut [u8] {
        let bytes = self.tile_bytes;
        &mut self.lines.bytes_mut()[row / TILE * bytes..][..bytes]
    }

    fn put_half(&mut self, row: usize, col: usize, bits: [u8; 2]) {
        let at = self.half_at(row % TILE, col);
        self.tile_mut(row)[at..at + 2].copy_from_slice(&bits);
    }

    fn half_at(&self, lane: usize, col: usize) -> usize {
        match self.kind {
            PackKind::Bf16 => col / 2 * 64 + lane * 4 + col % 2 * 2,
            _ => col * 32 + lane * 2,
        }
    }

    fn put_float(&mut self, row: usize, col: usize, value: f32) {
        match self.kind {
            PackKind::F16 => self.put_half(row, col, f16::from_f32(value).to_le_bytes()),
            PackKind::Bf16 => self.put_half(row, col, bf16::from_f32(value).to_le_bytes()),
            _ => {
                let at = col * 64 + row % TILE * 4;
                self.tile_mut(row)[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    fn float(&self, tile: &[u8], lane: usize, col: usize) -> f32 {
        let at = self.half_at(lane, col);
        match self.kind {
            PackKind::F16 => f16::from_le_bytes([tile[at], tile[at + 1]]).to_f32(),
            PackKind::Bf16 => bf16::from_le_bytes([tile[at], tile[at + 1]]).to_f32(),
            _ => {
                let at = col * 64 + lane * 4;
                f32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]])
            }
        }
    }

    /// Where the first scale and the quants of a block begin in a tile.
    fn block_at(&self, index: usize) -> (usize, usize) {
        match self.kind {
            PackKind::Q8 => (index * 32, q8_quants_at(self.cols.div_ceil(BLOCK)) + index * 512),
            PackKind::Q6 => (index * 576, index * 576 + 64),
            _ => (index * 320, index * 320 + 64),
        }
    }

    fn put_block(&mut self, row: usize, index: usize, block: &WeightBlock) {
        let lane = row % TILE;
        let (scale_at, quants_at) = self.block_at(index);
        let kind = self.kind;
        let tile = self.tile_mut(row);
        let second = match kind {
            PackKind::Q4 => Some(block.min),
            PackKind::Q6 => Some(block.scale[1]),
            _ => None,
        };
        tile[scale_at + lane * 2..][..2].copy_from_slice(&block.scale[0].to_le_bytes());
        if let Some(second) = second {
            tile[scale_at + 32 + lane * 2..][..2].copy_from_slice(&second.to_le_bytes());
        }
        for (i, &quant) in block.q.iter().enumerate() {
            let at = |k: usize| quants_at + k / 4 * 64 + lane * 4 + k % 4;
            match kind {
                PackKind::Q4 if i >= 16 => tile[at(i - 16)] |= quant << 4,
                _ => tile[at(i)] = quant,
            }
        }
    }

    fn block(&self, tile: &[u8], lane: usize, index: usize) -> WeightBlock {
        let (scale_at, quants_at) = self.block_at(index);
        let half = |at: usize| f16::from_le_bytes([tile[at + lane * 2], tile[at + lane * 2 + 1]]);
        let byte = |k: usize| tile[quants_at + k / 4 * 64 + lane * 4 + k % 4];
        let q = std::array::from_fn(|i| match self.kind {
            PackKind::Q4 if i < 16 => byte(i) & 15,
            PackKind::Q4 => byte(i - 16) >> 4,
            _ => byte(i),
        });
        let first = half(scale_at);
        match self.kind {
            PackKind::Q4 => WeightBlock { q, scale: [first; 2], min: half(scale_at + 32) },
            PackKind::Q6 => WeightBlock { q, scale: [first, half(scale_at + 32)], min: f16::ZERO },
            _ => WeightBlock { q, scale: [first; 2], min: f16::ZERO },
        }
    }
}

/// Whether all of these IEEE halves are finite.
fn is_half_finite(bytes: &[u8]) -> bool {
    bytes.as_chunks::<2>().0.iter().all(|half| f16::from_le_bytes(*half).is_finite())
}

/// The nearest block that `kind` can hold.
fn quantise(kind: PackKind, weights: &[f32; BLOCK]) -> WeightBlock {
    if weights.iter().any(|weight| !weight.is_finite()) {
        return WeightBlock { q: [0; BLOCK], scale: [f16::NAN; 2], min: f16::ZERO };
    }
    let (low, high) = weights.iter().fold((0f32, 0f32), |(low, high), &w| (low.min(w), high.max(w)));
    let (min, steps) = match kind {
        PackKind::Q4 => (f16::from_f32(low), 15.0),
        PackKind::Q6 => (f16::ZERO, 31.0),
        _ => (f16::ZERO, 127.0),
    };
    let scale_of = |part: &[f32]| {
        let top = part.iter().fold(0f32, |top, w| top.max(w.abs()));
        f16::from_f32(if kind == PackKind::Q4 { high - low } else { top } / steps)
    };
    let scale = match kind {
        PackKind::Q6 => [scale_of(&weights[..16]), scale_of(&weights[16..])],
        _ => [scale_of(weights); 2],
    };
    let offset = kind.offset();
    let q = std::array::from_fn(|i| {
        let step = scale[i / 16].to_f32();
        let quant = if step > 0.0 { ((weights[i] - min.to_f32()) / step).round_ties_even() } else { 0.0 };
        let floor = if kind == PackKind::Q4 { 0.0 } else { -steps };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte")]
        let byte = (quant.clamp(floor, steps) as i32 + offset) as u8;
        byte
    });
    WeightBlock { q, scale, min }
}

#[cfg(test)]
mod tests;
