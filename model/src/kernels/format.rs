//! The weight formats of model files, block by block, after their public definition in ggml. Knows how the bits of 32
//! weights lie in a file; refuses to know matrices, processors and who multiplies.

use half::f16;

/// How the numbers of a tensor are written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
    /// 32 weights `d·(q - 8)`, 4 bits each.
    Q4_0,
    /// 32 weights `d·q + m`, 4 bits each.
    Q4_1,
    /// 32 weights `d·q`, 8 bits each.
    Q8_0,
    /// 256 weights in 8 blocks `d·s·q - n·m` with 6-bit `s` and `m`, 4 bits each.
    Q4K,
    /// 256 weights in 16 blocks `d·s·q` with 8-bit `s`, 6 bits each.
    Q6K,
}

/// Weights that share a scale in a packed matrix, and activations likewise.
pub(super) const BLOCK: usize = 32;

/// 32 weights of one row: weight `i` is `scale[i / 16]·(q[i] - offset) + min`.
#[derive(Clone, Copy)]
pub(super) struct WeightBlock {
    /// Unsigned quants.
    pub(super) q: [u8; BLOCK],
    /// Of the first and of the second 16; alike where the format has one scale per 32.
    pub(super) scale: [f16; 2],
    /// Added to each; 0 where the format has none.
    pub(super) min: f16,
}

impl WeightFormat {
    /// Weights in the smallest piece that can be read alone.
    #[must_use]
    pub const fn block_weights(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of that piece.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// Block `index` (of 32) of a row's bytes.
    pub(super) fn read(self, row: &[u8], index: usize) -> WeightBlock {
        let part = index * BLOCK / self.block_weights().max(BLOCK);
        let bytes = &row[part * self.block_bytes()..][..self.block_bytes()];
        let inner = index * BLOCK % self.block_weights().max(BLOCK) / BLOCK;
        match self {
            Self::Q4_0 => {
                let scale = half_at(bytes, 0);
                let min = f16::from_f32(-8.0 * scale.to_f32());
                WeightBlock { q: nibbles(&bytes[2..]), scale: [scale; 2], min }
            }
            Self::Q4_1 => {
                WeightBlock { q: nibbles(&bytes[4..]), scale: [half_at(bytes, 0); 2], min: half_at(bytes, 2) }
            }
            Self::Q8_0 => WeightBlock {
                q: std::array::from_fn(|i| bytes[2 + i] ^ 0x80),
                scale: [half_at(bytes, 0); 2],
                min: f16::ZERO,
            },
            Self::Q4K => read_q4k(bytes, inner),
            Self::Q6K => read_q6k(bytes, inner),
            Self::F32 | Self::F16 | Self::Bf16 => unreachable!("float formats have no blocks"),
        }
    }
}

fn half_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The low nibbles of 16 bytes, then the high ones.
fn nibbles(bytes: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

/// Sub-block `inner` of 8; its two scales are rounded to half precision.
fn read_q4k(bytes: &[u8], inner: usize) -> WeightBlock {
    let packed = &bytes[4..16];
    let (scale, min) = if inner < 4 {
        (packed[inner] & 63, packed[inner + 4] & 63)
    } else {
        let low = packed[inner + 4];
        (low & 15 | packed[inner - 4] >> 6 << 4, low >> 4 | packed[inner] >> 6 << 4)
    };
    let quants = &bytes[16 + inner / 2 * 32..][..32];
    let shift = inner % 2 * 4;
    WeightBlock {
        q: std::array::from_fn(|i| quants[i] >> shift & 15),
        scale: [f16::from_f32(half_at(bytes, 0).to_f32() * f32::from(scale)); 2],
        min: f16::from_f32(-half_at(bytes, 2).to_f32() * f32::from(min)),
    }
}

/// Sub-block `inner` of 8; its two scales are rounded to half precision.
fn read_q6k(bytes: &[u8], inner: usize) -> WeightBlock {
    let (part, quarter) = (inner / 4, inner % 4);
    let low = &bytes[part * 64 + quarter % 2 * 32..][..32];
    let high = &bytes[128 + part * 32..][..32];
    let scales = &bytes[192 + part * 8 + quarter * 2..][..2];
    let d = half_at(bytes, 208).to_f32();
    WeightBlock {
        q: std::array::from_fn(|i| low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (quarter * 2) & 3) << 4),
        scale: [0, 1].map(|half| f16::from_f32(d * f32::from(scales[half].cast_signed()))),
        min: f16::ZERO,
    }
}
