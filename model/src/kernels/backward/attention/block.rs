//! Products of blocks of up to 64 × 64 numbers, in tiles, in bf16 pairs, or in f32. Refuses to know what is multiplied.
//!
//! The left side lies row by row. The right side lies in panels of [`PANEL`] columns, within them row by row, and bf16
//! numbers of two neighbouring rows side by side: what both tiles and `vdpbf16ps` read.

use crate::kernels::backward::kept::private::PANEL;
use crate::kernels::backward::kept::{Kept, with_kept};
use crate::kernels::half::Unit;
use crate::kernels::lanes::{LANES, Lanes};
use crate::kernels::product::Instructions;

/// Rows, columns and inner sides of products are multiples of this.
pub(super) const STEP: usize = 32;
const _: () = assert!(PANEL == STEP && STEP == 2 * LANES);

/// What computes the products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    /// Tiles of bf16 pairs.
    #[cfg(target_arch = "x86_64")]
    Tiles,
    /// 512 bits of bf16 pairs.
    #[cfg(target_arch = "x86_64")]
    Pairs,
    /// f32.
    Single(Instructions),
}

impl Engine {
    /// What multiplies rows that are kept in `E`.
    pub(super) fn of<E: Kept>(unit: Unit, set: Instructions) -> Self {
        assert!(unit.is_available() && set.is_available(), "the processor has no {unit:?} or no {set:?}");
        match unit {
            _ if E::PAIR == 1 => Self::Single(set),
            #[cfg(target_arch = "x86_64")]
            Unit::Amx => Self::Tiles,
            #[cfg(target_arch = "x86_64")]
            Unit::Avx512Bf16 => Self::Pairs,
            _ => Self::Single(set),
        }
    }

    /// Makes the thread ready for products, until the guard is dropped.
    pub(super) fn begin(self) -> Ready {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Tiles {
            // SAFETY: `of` saw that there are tiles.
            unsafe { tiles::begin() };
        }
        Ready(self)
    }
}

/// A thread that is ready for products.
pub(super) struct Ready(Engine);

impl Drop for Ready {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Engine::Tiles {
            // SAFETY: `of` saw that there are tiles.
            unsafe { tiles::end() };
        }
    }
}

/// A product: `out[rows, columns]` is set to, or grows by, `left[rows, inner] · right[inner, columns]`.
#[derive(Clone, Copy)]
pub(super) struct Block<I> {
    /// The sums and the numbers from row to row.
    pub(super) out: (*mut f32, usize),
    /// The left side and the numbers from row to row.
    pub(super) left: (*const I, usize),
    /// The right side and the numbers from panel to panel.
    pub(super) right: (*const I, usize),
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) inner: usize,
    /// Whether the sums grow.
    pub(super) add: bool,
}

impl Ready {
    /// Computes a product.
    ///
    /// # Safety
    /// The memory is there, sides are multiples of [`STEP`], and `I` is what the engine multiplies.
    pub(super) unsafe fn multiply<I: Kept>(&self, block: Block<I>) {
        debug_assert!([block.rows, block.columns, block.inner].iter().all(|side| side % STEP == 0), "whole steps");
        for row in (0..block.rows).step_by(STEP) {
            for column in (0..block.columns).step_by(STEP) {
                // SAFETY: within the block.
                unsafe {
                    let tile = Block {
                        out: (block.out.0.add(row * block.out.1 + column), block.out.1),
                        left: (block.left.0.add(row * block.left.1), block.left.1),
                        right: (block.right.0.add(column / PANEL * block.right.1), block.right.1),
                        ..block
                    };
                    match self.0 {
                        #[cfg(target_arch = "x86_64")]
                        Engine::Tiles => tiles::square(tile),
                        #[cfg(target_arch = "x86_64")]
                        Engine::Pairs => pairs::square(tile),
                        Engine::Single(set) => square_of::<I>(set, tile),
                    }
                }
            }
        }
    }
}

/// # Safety
/// As [`Lanes`]; a product of [`STEP`] rows and columns of f32.
#[inline(always)]
unsafe fn square<V: Lanes, I: Kept>(block: Block<I>) {
    // SAFETY: by the caller.
    unsafe {
        let mut row = 0;
        while row < STEP {
            row += if V::WIDE { strip::<V, I, 8>(&block, row) } else { strip::<V, I, 2>(&block, row) };
        }
    }
}

/// `R` rows; gives `R`.
///
/// # Safety
/// As [`square`].
#[inline(always)]
unsafe fn strip<V: Lanes, I: Kept, const R: usize>(block: &Block<I>, row: usize) -> usize {
    // SAFETY: by the caller.
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; R];
        if block.add {
            for (r, sums) in sums.iter_mut().enumerate() {
                let from = block.out.0.add((row + r) * block.out.1);
                *sums = [V::load(from), V::load(from.add(LANES))];
            }
        }
        for k in 0..block.inner {
            let right = block.right.0.add(k * PANEL);
            let right = [I::load::<V>(right), I::load::<V>(right.add(LANES))];
            for (r, sums) in sums.iter_mut().enumerate() {
                let left = V::splat((*block.left.0.add((row + r) * block.left.1 + k)).wide());
                *sums = [left.fma(right[0], sums[0]), left.fma(right[1], sums[1])];
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let to = block.out.0.add((row + r) * block.out.1);
            sums[0].store(to);
            sums[1].store(to.add(LANES));
        }
    }
    R
}

with_kept! {
    /// # Safety
    /// A product of [`STEP`] rows and columns of f32.
    unsafe fn square_of[I](block: Block<I>) = square;
}

#[cfg(target_arch = "x86_64")]
mod pairs {
    use super::{Block, STEP};
    use std::arch::x86_64::*;

    /// Rows at a time.
    const ROWS: usize = 8;

    /// # Safety
    /// The processor has AVX512-BF16; a product of [`STEP`] rows and columns of bf16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn square<I>(block: Block<I>) {
        // SAFETY: by the caller; pairs of bf16 are 32 bits.
        unsafe {
            let (left, stride) = (block.left.0.cast::<i32>(), block.left.1 / 2);
            let right = block.right.0.cast::<i32>();
            for row in (0..STEP).step_by(ROWS) {
                let out = |r: usize| block.out.0.add((row + r) * block.out.1);
                let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
                if block.add {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        *sums = [_mm512_loadu_ps(out(r)), _mm512_loadu_ps(out(r).add(16))];
                    }
                }
                for k in 0..block.inner / 2 {
                    let at = right.add(k * STEP);
                    let two = [at, at.add(16)]
                        .map(|at| std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(at.cast())));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let pair = _mm512_set1_epi32(left.add((row + r) * stride + k).read_unaligned());
                        let pair = std::mem::transmute::<__m512i, __m512bh>(pair);
                        *sums = [_mm512_dpbf16_ps(sums[0], pair, two[0]), _mm512_dpbf16_ps(sums[1], pair, two[1])];
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    _mm512_storeu_ps(out(r), sums[0]);
                    _mm512_storeu_ps(out(r).add(16), sums[1]);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod tiles {
    use super::{Block, PANEL, STEP};
    use std::arch::asm;

    /// Eight tiles of 16 rows of 64 bytes (Intel SDM, volume 1, 18.2).
    #[repr(C, align(64))]
    struct Shape {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    static SHAPE: Shape = Shape {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    /// Gives this thread tiles.
    ///
    /// # Safety
    /// The processor has tiles, and the system lets this process use them.
    pub(super) unsafe fn begin() {
        // SAFETY: reads a valid shape.
        unsafe {
            asm!("ldtilecfg [{0}]", in(reg) &raw const SHAPE, out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, readonly, preserves_flags));
        }
    }

    /// Gives them back, so that the system need not save them.
    ///
    /// # Safety
    /// As [`begin`].
    pub(super) unsafe fn end() {
        // SAFETY: touches the tiles alone.
        unsafe {
            asm!("tilerelease", out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
                out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, nomem, preserves_flags));
        }
    }

    /// # Safety
    /// The thread has tiles; a product of [`STEP`] rows and columns of bf16, with an inner side of at least one step.
    #[inline(always)]
    pub(super) unsafe fn square<I>(block: Block<I>) {
        const HALF: usize = STEP / 2;
        let (out_stride, left_stride) = (block.out.1 * size_of::<f32>(), block.left.1 * size_of::<I>());
        let (out, left) = (block.out.0, block.left.0);
        // SAFETY: reads and writes the block alone; tiles are given back as they were taken, without a promise of what
        // they hold.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "test {add}, {add}",
                "jz 2f",
                "tileloadd tmm0, [{c0} + {cs}]", "tileloadd tmm1, [{c0} + {cs} + 64]",
                "tileloadd tmm2, [{c1} + {cs}]", "tileloadd tmm3, [{c1} + {cs} + 64]",
                "2:",
                "tileloadd tmm6, [{b} + {bs}]",
                "tileloadd tmm4, [{a0} + {a_s}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {bs} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {a_s}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 64", "add {a1}, 64", "add {b}, {b_step}",
                "dec {n}",
                "jnz 2b",
                "tilestored [{c0} + {cs}], tmm0", "tilestored [{c0} + {cs} + 64], tmm1",
                "tilestored [{c1} + {cs}], tmm2", "tilestored [{c1} + {cs} + 64], tmm3",
                add = in(reg) usize::from(block.add),
                c0 = in(reg) out, c1 = in(reg) out.add(HALF * block.out.1), cs = in(reg) out_stride,
                a0 = inout(reg) left => _, a1 = inout(reg) left.add(HALF * block.left.1) => _, a_s = in(reg) left_stride,
                b = inout(reg) block.right.0 => _, bs = in(reg) PANEL * size_of::<f32>(),
                b_step = const PANEL * STEP * 2,
                n = inout(reg) block.inner / STEP => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                out("tmm7") _, options(nostack),
            );
        }
    }
}
