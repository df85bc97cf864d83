//! A rectangle of a product as the units compute it: raw and already checked. Refuses to cut and to spread.

use super::operand::{PANEL, STEP, TERMS_MAX};
use half::bf16;

/// One stretch of the inner side.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Stretch {
    /// The first row of the piece.
    pub(super) left: *const bf16,
    /// Bytes from row to row.
    pub(super) left_stride: usize,
    /// The first panel of the piece.
    pub(super) right: *const bf16,
    /// Bytes from panel to panel.
    pub(super) panel: usize,
    /// Numbers of the inner side over [`STEP`], rounded up.
    pub(super) steps: usize,
    /// Pairs of the inner side, rounded up.
    pub(super) pairs: usize,
}

impl Stretch {
    /// Nothing.
    pub(super) const EMPTY: Self =
        Self { left: std::ptr::null(), left_stride: 0, right: std::ptr::null(), panel: 0, steps: 0, pairs: 0 };

    /// The inner side `k` of rows and panels that begin `left_stride` and `panel` numbers apart.
    pub(super) const fn new(left: (*const bf16, usize), right: (*const bf16, usize), k: usize) -> Self {
        Self {
            left: left.0,
            left_stride: left.1 * size_of::<bf16>(),
            right: right.0,
            panel: right.1 * size_of::<bf16>(),
            steps: k.div_ceil(STEP),
            pairs: k.div_ceil(2),
        }
    }

    /// The stretch in parts of up to `most` steps, one after the other.
    pub(super) fn cut(self, most: usize) -> impl Iterator<Item = Self> {
        (0..self.steps).step_by(most).map(move |step| Self {
            left: self.left.wrapping_add(step * STEP),
            right: self.right.wrapping_add(step * STEP * PANEL),
            steps: most.min(self.steps - step),
            pairs: (most * STEP / 2).min(self.pairs - step * STEP / 2),
            ..self
        })
    }

    /// The same stretch from another row and panel on.
    ///
    /// # Safety
    /// The piece has them.
    #[inline(always)]
    pub(super) unsafe fn at(mut self, row: usize, panel: usize) -> Self {
        // SAFETY: by the caller.
        unsafe {
            self.left = self.left.byte_add(row * self.left_stride);
            self.right = self.right.byte_add(panel * self.panel);
        }
        self
    }
}

/// Where a piece goes: the address of its first number.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// Replace.
    Set(*mut f32),
    /// Begin with what is there.
    Add(*mut f32),
    /// Round.
    Half(*mut bf16),
}

/// `rows × columns` of a product.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    stretches: [Stretch; TERMS_MAX],
    terms: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) target: Target,
    /// Numbers from row to row of the target.
    pub(super) stride: usize,
}

// SAFETY: whoever makes a piece answers for what it points to, on any thread; see `new`.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

impl Piece {
    /// # Safety
    /// Every stretch has `rows` rows and the panels of `columns` columns, readable up to its `steps` as long as the piece is used; the
    /// target has room for `rows` rows of `columns` numbers, which nobody else touches meanwhile.
    pub(super) unsafe fn new(
        stretches: impl Iterator<Item = Stretch>,
        (rows, columns): (usize, usize),
        target: Target,
        stride: usize,
    ) -> Self {
        let mut piece = Self { stretches: [Stretch::EMPTY; TERMS_MAX], terms: 0, rows, columns, target, stride };
        for (slot, stretch) in piece.stretches.iter_mut().zip(stretches) {
            *slot = stretch;
            piece.terms += 1;
        }
        piece
    }

    /// Its stretches.
    #[inline(always)]
    pub(super) fn stretches(&self) -> &[Stretch] {
        &self.stretches[..self.terms]
    }

    /// Those of its stretches from a row and a panel on.
    ///
    /// # Safety
    /// The piece has them.
    #[inline(always)]
    pub(super) unsafe fn stretches_at(&self, row: usize, panel: usize) -> [Stretch; TERMS_MAX] {
        let mut all = self.stretches;
        for stretch in &mut all[..self.terms] {
            // SAFETY: by the caller.
            *stretch = unsafe { stretch.at(row, panel) };
        }
        all
    }

    /// Steps of its inner side.
    pub(super) fn steps(&self) -> usize {
        self.stretches().iter().map(|stretch| stretch.steps).sum()
    }
}
