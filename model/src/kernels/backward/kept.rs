//! Rows that a training pass keeps, in f32 or rounded to bf16, and their spreading over threads. Refuses to know what the
//! rows mean.

use crate::kernels::lanes::{LANES, Lanes};
use crate::kernels::pool::{Pointer, Pool};
use half::bf16;
use std::marker::PhantomData;

/// Rows of one task.
const TASK_ROWS: usize = 8;

/// Numbers as they are kept between kernels; every sum is f32.
pub trait Kept: private::Sealed + Copy + Default + Send + Sync + PartialEq + 'static {
    /// The number in f32.
    fn wide(self) -> f32;
    /// The nearest number, of two nearest the even one.
    fn near(value: f32) -> Self;
}

/// What kernels do with sixteen of them; nobody else implements or needs it.
#[expect(private_bounds, reason = "sealed: only kernels of this crate call it")]
pub(super) mod private {
    use super::{LANES, Lanes, bf16};

    /// Sixteen numbers from and to memory.
    pub trait Sealed: Sized {
        /// Numbers side by side in the right operand of a block product, see [`super::super::block`].
        #[doc(hidden)]
        const PAIR: usize;
        /// # Safety
        /// As [`Lanes`]; there are sixteen.
        #[doc(hidden)]
        unsafe fn load<V: Lanes>(from: *const Self) -> V;
        /// # Safety
        /// As [`Lanes`]; there is room for sixteen.
        #[doc(hidden)]
        unsafe fn store<V: Lanes>(value: V, to: *mut Self);
        /// Thirty-two numbers; of two nearest the larger.
        ///
        /// # Safety
        /// As [`Lanes`]; there is room for them.
        #[doc(hidden)]
        unsafe fn store_two<V: Lanes>(first: V, second: V, to: *mut Self);
        /// Sixteen columns of two neighbouring rows into a panel of the right side of a block product, where those rows
        /// begin at `to`; of two nearest numbers the larger.
        ///
        /// # Safety
        /// As [`Lanes`]; the columns are within the panel.
        #[doc(hidden)]
        unsafe fn store_rows<V: Lanes>(even: V, odd: V, to: *mut Self, column: usize);
    }

    /// Columns of a panel.
    pub(in super::super) const PANEL: usize = 2 * LANES;

    impl Sealed for f32 {
        const PAIR: usize = 1;

        #[inline(always)]
        unsafe fn load<V: Lanes>(from: *const Self) -> V {
            // SAFETY: by the caller.
            unsafe { V::load(from) }
        }

        #[inline(always)]
        unsafe fn store<V: Lanes>(value: V, to: *mut Self) {
            // SAFETY: by the caller.
            unsafe { value.store(to) }
        }

        #[inline(always)]
        unsafe fn store_two<V: Lanes>(first: V, second: V, to: *mut Self) {
            // SAFETY: by the caller.
            unsafe {
                first.store(to);
                second.store(to.add(LANES));
            }
        }

        #[inline(always)]
        unsafe fn store_rows<V: Lanes>(even: V, odd: V, to: *mut Self, column: usize) {
            // SAFETY: by the caller.
            unsafe {
                even.store(to.add(column));
                odd.store(to.add(PANEL + column));
            }
        }
    }

    impl Sealed for bf16 {
        const PAIR: usize = 2;

        #[inline(always)]
        unsafe fn load<V: Lanes>(from: *const Self) -> V {
            // SAFETY: by the caller; a bf16 is its sixteen bits.
            unsafe { V::load_bf16(from.cast()) }
        }

        #[inline(always)]
        unsafe fn store<V: Lanes>(value: V, to: *mut Self) {
            // SAFETY: by the caller; a bf16 is its sixteen bits.
            unsafe { value.store_bf16(to.cast()) }
        }

        #[inline(always)]
        unsafe fn store_two<V: Lanes>(first: V, second: V, to: *mut Self) {
            // SAFETY: by the caller.
            unsafe { first.store_bf16_two(second, to.cast()) }
        }

        #[inline(always)]
        unsafe fn store_rows<V: Lanes>(even: V, odd: V, to: *mut Self, column: usize) {
            // SAFETY: by the caller.
            unsafe { even.store_bf16_pairs(odd, to.add(2 * column).cast()) }
        }
    }

    const _: () = assert!(LANES == 16);
}

impl Kept for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn near(value: f32) -> Self {
        value
    }
}

impl Kept for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn near(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// The first `count` of sixteen numbers, zeros behind them.
///
/// # Safety
/// As [`Lanes`]; there are as many as `count` or sixteen.
#[inline(always)]
pub(super) unsafe fn load<V: Lanes, E: Kept>(from: *const E, count: usize) -> V {
    // SAFETY: by the caller; what is left goes through room for sixteen.
    unsafe {
        if count >= LANES {
            return E::load(from);
        }
        let mut all = [0f32; LANES];
        for (i, all) in all.iter_mut().enumerate().take(count) {
            *all = (*from.add(i)).wide();
        }
        V::load(all.as_ptr())
    }
}

/// The first `count` of sixteen numbers into memory.
///
/// # Safety
/// As [`Lanes`]; there is room for as many as `count` or sixteen.
#[inline(always)]
pub(super) unsafe fn store<V: Lanes, E: Kept>(value: V, to: *mut E, count: usize) {
    // SAFETY: by the caller.
    unsafe {
        if count >= LANES {
            return E::store(value, to);
        }
        for (i, value) in value.array().into_iter().enumerate().take(count) {
            to.add(i).write(E::near(value));
        }
    }
}

/// Rows to read: row `i` is `data[i·stride..][..width]`.
#[derive(Clone, Copy)]
pub struct Span<'a, E> {
    data: &'a [E],
    stride: usize,
    width: usize,
}

impl<'a, E: Kept> Span<'a, E> {
    /// Rows of `width` numbers, `stride` apart; as many as `data` holds, the last without what follows its width.
    ///
    /// # Panics
    /// Rows are empty or overlap, or `data` ends within one.
    #[must_use]
    pub fn new(data: &'a [E], stride: usize, width: usize) -> Self {
        check(data.len(), stride, width);
        Self { data, stride, width }
    }

    /// Rows behind one another.
    ///
    /// # Panics
    /// As [`Span::new`].
    #[must_use]
    pub fn packed(data: &'a [E], width: usize) -> Self {
        Self::new(data, width, width)
    }

    /// How many rows.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.data.len().div_ceil(self.stride)
    }

    /// Numbers of a row.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Numbers from the beginning of a row to that of the next.
    #[must_use]
    pub const fn stride(&self) -> usize {
        self.stride
    }

    /// All of them, with what lies between.
    #[must_use]
    pub const fn data(&self) -> &'a [E] {
        self.data
    }

    /// A row.
    ///
    /// # Panics
    /// There is no such row.
    #[inline(always)]
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [E] {
        &self.data[row * self.stride..][..self.width]
    }

    /// Panics unless there are this many rows of this width.
    #[track_caller]
    pub(super) fn expect(&self, rows: usize, width: usize) {
        let found = (self.rows(), self.width);
        assert!(found == (rows, width), "{} rows of {} where {rows} of {width} are due", found.0, found.1);
    }
}

/// Rows to write: row `i` is `data[i·stride..][..width]`.
pub struct SpanMut<'a, E> {
    start: Pointer<E>,
    len: usize,
    stride: usize,
    width: usize,
    borrow: PhantomData<&'a mut [E]>,
}

impl<'a, E: Kept> SpanMut<'a, E> {
    /// Rows of `width` numbers, `stride` apart; as many as `data` holds, the last without what follows its width.
    ///
    /// # Panics
    /// Rows are empty or overlap, or `data` ends within one.
    #[must_use]
    pub fn new(data: &'a mut [E], stride: usize, width: usize) -> Self {
        check(data.len(), stride, width);
        Self { start: Pointer(data.as_mut_ptr()), len: data.len(), stride, width, borrow: PhantomData }
    }

    /// Rows behind one another.
    ///
    /// # Panics
    /// As [`SpanMut::new`].
    #[must_use]
    pub fn packed(data: &'a mut [E], width: usize) -> Self {
        Self::new(data, width, width)
    }

    /// How many rows.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.len.div_ceil(self.stride)
    }

    /// Numbers of a row.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.width
    }

    /// A row, for one of several tasks.
    ///
    /// # Safety
    /// No two uses of the same columns of a row overlap in time.
    #[inline(always)]
    pub(super) unsafe fn row(&self, row: usize) -> &'a mut [E] {
        assert!(row < self.rows(), "a row of these");
        // SAFETY: within the borrow, as asserted here and in `new`; the caller keeps tasks apart.
        unsafe { std::slice::from_raw_parts_mut(self.start.at(row * self.stride), self.width) }
    }

    /// The address of a column of a row, and the numbers from row to row.
    ///
    /// # Safety
    /// As [`SpanMut::row`].
    pub(super) unsafe fn at(&self, row: usize, column: usize) -> (*mut E, usize) {
        assert!(row < self.rows() && column < self.width, "a number of these");
        // SAFETY: within the borrow, as asserted here and in `new`.
        (unsafe { self.start.at(row * self.stride + column) }, self.stride)
    }

    /// Panics unless there are this many rows of this width.
    #[track_caller]
    pub(super) fn expect(&self, rows: usize, width: usize) {
        let found = (self.rows(), self.width);
        assert!(found == (rows, width), "{} rows of {} where {rows} of {width} are due", found.0, found.1);
    }
}

#[track_caller]
fn check(len: usize, stride: usize, width: usize) {
    assert!(width > 0 && width <= stride, "rows of {width} numbers cannot begin {stride} apart");
    assert!(
        len.is_multiple_of(stride) || len % stride >= width,
        "{len} numbers end within a row of {width}, {stride} apart"
    );
}

/// Gives every row to one task, whatever the thread.
pub(super) fn each_row(pool: &mut Pool, rows: usize, work: &(dyn Fn(usize) + Sync)) {
    pool.run(rows.div_ceil(TASK_ROWS), &|task, _| (task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS)).for_each(work));
}

/// Makes a kernel written over [`Lanes`] and over what rows are kept in callable with the instructions at hand, as
/// `with_lanes` does for kernels of f32: `unsafe fn name[E, F](args) = generic;` calls `generic::<V, E, F>`.
macro_rules! with_kept {
    ($(#[$doc:meta])* $vis:vis unsafe fn $name:ident[$($kept:ident),*]($($arg:ident: $type:ty),* $(,)?) = $generic:ident;) => {
        $(#[$doc])*
        $vis unsafe fn $name<$($kept: $crate::kernels::backward::kept::Kept),*>(
            instructions: $crate::kernels::Instructions,
            $($arg: $type),*
        ) {
            use $crate::kernels::{Instructions, lanes};
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
            unsafe fn wide<$($kept: $crate::kernels::backward::kept::Kept),*>($($arg: $type),*) {
                // SAFETY: the instructions are enabled here; the rest is the caller's.
                unsafe { $generic::<lanes::Avx512, $($kept),*>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn half<$($kept: $crate::kernels::backward::kept::Kept),*>($($arg: $type),*) {
                // SAFETY: as above.
                unsafe { $generic::<lanes::Avx2, $($kept),*>($($arg),*) }
            }
            assert!(instructions.is_available(), "the processor has no {instructions:?} instructions");
            match instructions {
                // SAFETY: they are available; the rest is the caller's.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 => unsafe { wide::<$($kept),*>($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => unsafe { half::<$($kept),*>($($arg),*) },
                // SAFETY: plain code needs nothing.
                _ => unsafe { $generic::<lanes::Plain, $($kept),*>($($arg),*) },
            }
        }
    };
}
pub(super) use with_kept;
