//! Sixteen f32 numbers at once, on AVX-512, on AVX2, and in plain code. Kernels are written once over them; a kernel's
//! bits are the same for every shape of work on one processor, not from one set of instructions to another. Refuses to
//! know what is computed.

/// Numbers in one.
pub(super) const LANES: usize = 16;

/// Sixteen f32 numbers.
///
/// # Safety
/// Every function needs the instructions of its type: callers are reached through [`with_lanes`] alone.
pub(super) trait Lanes: Copy {
    /// Whether there are thirty-two registers of sixteen numbers, and not sixteen of eight.
    const WIDE: bool;
    /// All the same.
    unsafe fn splat(value: f32) -> Self;
    /// Sixteen numbers from memory.
    unsafe fn load(from: *const f32) -> Self;
    /// Sixteen numbers into memory.
    unsafe fn store(self, to: *mut f32);
    /// Sixteen 16-bit numbers from memory.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// Sixteen 16-bit numbers into memory, rounded to the nearest.
    unsafe fn store_f16(self, to: *mut u16);
    /// Sixteen bf16 numbers from memory.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Sixteen bf16 numbers into memory, rounded to the nearest, of two nearest to the even one; no number stays none.
    unsafe fn store_bf16(self, to: *mut u16);
    /// Sixteen pairs of bf16 numbers into memory, `self` before `odd`, rounded to the nearest, of two nearest to the larger.
    unsafe fn store_bf16_pairs(self, odd: Self, to: *mut u16);
    /// Thirty-two bf16 numbers into memory, rounded as pairs are.
    unsafe fn store_bf16_two(self, next: Self, to: *mut u16);
    /// `self · by + add`, in one rounding where the processor can.
    unsafe fn fma(self, by: Self, add: Self) -> Self;
    /// Sum.
    unsafe fn add(self, other: Self) -> Self;
    /// Difference.
    unsafe fn sub(self, other: Self) -> Self;
    /// Product.
    unsafe fn mul(self, other: Self) -> Self;
    /// Quotient.
    unsafe fn div(self, other: Self) -> Self;
    /// The larger, `other` when one is no number.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller, `other` when one is no number.
    unsafe fn min(self, other: Self) -> Self;
    /// The first `count` numbers; the rest from `other`.
    unsafe fn first(self, count: usize, other: Self) -> Self;
    /// `self · 2^n`, where `n` stands in the low bits of `shifted`, as the addition of [`ROUND`] leaves it.
    unsafe fn times_power(self, shifted: Self) -> Self;

    /// The sixteen numbers.
    #[inline(always)]
    unsafe fn array(self) -> [f32; LANES] {
        let mut all = [0f32; LANES];
        // SAFETY: there is room for sixteen.
        unsafe { self.store(all.as_mut_ptr()) };
        all
    }

    /// Their sum, always in the same order.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: by the caller.
        let mut all = unsafe { self.array() };
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                all[i] += all[i + width];
            }
        }
        all[0]
    }

    /// The largest.
    #[inline(always)]
    unsafe fn top(self) -> f32 {
        // SAFETY: by the caller.
        unsafe { self.array() }.into_iter().fold(f32::NEG_INFINITY, |top, x| if x > top { x } else { top })
    }
}

/// Asks for the cache line at an address that will be read soon; any address will do.
#[inline(always)]
pub(super) fn fetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: asking for an address does not read it, and every such processor has the instruction.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Adding it leaves the nearest integer in the low mantissa bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// `e^x` within 3e-7 of its value for `x` in -87..88; clamped outside, so the result is never infinite. No number gives no
/// number. The same polynomial as [`super::exp`].
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn exp<V: Lanes>(x: V) -> V {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // SAFETY: by the caller.
    unsafe {
        let x = V::splat(88.0).min(V::splat(-87.0).max(x));
        let shifted = x.fma(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
        let n = shifted.sub(V::splat(ROUND));
        let r = n.fma(V::splat(-LN2_HIGH), x);
        let r = n.fma(V::splat(-LN2_LOW), r);
        let tail = r.fma(V::splat(1.0 / 720.0), V::splat(1.0 / 120.0));
        let tail = r.fma(tail, V::splat(1.0 / 24.0));
        let tail = r.fma(tail, V::splat(1.0 / 6.0));
        let tail = r.fma(tail, V::splat(0.5));
        let power = r.mul(r).fma(tail, r.add(V::splat(1.0)));
        power.times_power(shifted)
    }
}

/// Plain code; what compilers make of it is up to them.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; LANES]);

impl Plain {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Plain {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: by the caller there are sixteen.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: by the caller there is room for sixteen.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: by the caller there are sixteen.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(bits.map(|bits| half::f16::from_bits(bits).to_f32_const()))
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        let bits = self.0.map(|value| half::f16::from_f32_const(value).to_bits());
        // SAFETY: by the caller there is room for sixteen.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(bits) };
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: by the caller there are sixteen.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        let bits = self.0.map(|value| half::bf16::from_f32(value).to_bits());
        // SAFETY: by the caller there is room for sixteen.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(bits) };
    }

    #[inline(always)]
    unsafe fn store_bf16_pairs(self, odd: Self, to: *mut u16) {
        const HALF: u32 = 0x8000;
        let pair = |i: usize| {
            let (even, odd) = (self.0[i].to_bits().wrapping_add(HALF), odd.0[i].to_bits().wrapping_add(HALF));
            even >> 16 | odd & 0xffff_0000
        };
        let pairs: [u32; LANES] = std::array::from_fn(pair);
        // SAFETY: by the caller there is room for sixteen pairs.
        unsafe { to.cast::<[u32; LANES]>().write_unaligned(pairs) };
    }

    #[inline(always)]
    unsafe fn store_bf16_two(self, next: Self, to: *mut u16) {
        let bits = [self.0, next.0].map(|all| all.map(|x| (x.to_bits().wrapping_add(0x8000) >> 16) as u16));
        // SAFETY: by the caller there is room for thirty-two.
        unsafe { to.cast::<[[u16; LANES]; 2]>().write_unaligned(bits) };
    }

    #[inline(always)]
    unsafe fn fma(self, by: Self, add: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * by.0[i] + add.0[i]))
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn first(self, count: usize, other: Self) -> Self {
        Self(std::array::from_fn(|i| if i < count { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    unsafe fn times_power(self, shifted: Self) -> Self {
        self.zip(shifted, |a, b| a * f32::from_bits((b.to_bits() << 23).wrapping_add(0x3f80_0000)))
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

/// The two sets of instructions. In every block below the caller of a function of [`Lanes`] answers for the instructions
/// and the memory.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256, __m256);

    const ROUNDING: i32 = _MM_FROUND_TO_NEAREST_INT;

    impl Lanes for Avx512 {
        const WIDE: bool = true;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm512_set1_ps(value)) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm512_loadu_ps(from)) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
        }

        #[inline(always)]
        unsafe fn store_f16(self, to: *mut u16) {
            // SAFETY: see above.
            unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<ROUNDING>(self.0)) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            // SAFETY: see above.
            unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
            }
        }

        #[inline(always)]
        unsafe fn store_bf16(self, to: *mut u16) {
            // SAFETY: see above.
            unsafe {
                let bits = _mm512_castps_si512(self.0);
                let lowest = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(lowest, _mm512_set1_epi32(0x7fff)));
                let none = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
                let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
                let rounded = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, none, quiet));
                _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(rounded));
            }
        }

        #[inline(always)]
        unsafe fn store_bf16_pairs(self, odd: Self, to: *mut u16) {
            // SAFETY: see above.
            unsafe {
                let half = _mm512_set1_epi32(0x8000);
                let even = _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_castps_si512(self.0), half));
                let odd = _mm512_add_epi32(_mm512_castps_si512(odd.0), half);
                let pairs = _mm512_mask_blend_epi16(0xaaaa_aaaa, even, odd);
                _mm512_storeu_si512(to.cast(), pairs);
            }
        }

        #[inline(always)]
        unsafe fn store_bf16_two(self, next: Self, to: *mut u16) {
            // SAFETY: see above.
            unsafe {
                let half = _mm512_set1_epi32(0x8000);
                let shifted = |x| _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_castps_si512(x), half));
                _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(shifted(self.0)));
                _mm256_storeu_si256(to.add(16).cast(), _mm512_cvtepi32_epi16(shifted(next.0)));
            }
        }

        #[inline(always)]
        unsafe fn fma(self, by: Self, add: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm512_fmadd_ps(self.0, by.0, add.0)) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm512_add_ps(self.0, other.0)) }
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
        }

        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm512_div_ps(self.0, other.0)) }
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm512_max_ps(self.0, other.0)) }
        }

        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm512_min_ps(self.0, other.0)) }
        }

        #[inline(always)]
        unsafe fn first(self, count: usize, other: Self) -> Self {
            let mask = if count >= 16 { u16::MAX } else { (1 << count) - 1 };
            // SAFETY: see above.
            unsafe { Self(_mm512_mask_mov_ps(other.0, mask, self.0)) }
        }

        #[inline(always)]
        unsafe fn times_power(self, shifted: Self) -> Self {
            // SAFETY: see above.
            unsafe {
                let bits = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted.0));
                let power = _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x3f80_0000)));
                Self(_mm512_mul_ps(self.0, power))
            }
        }
    }

    impl Lanes for Avx2 {
        const WIDE: bool = false;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: see above.
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            // SAFETY: see above.
            unsafe {
                let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(8).cast()));
                Self(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
            }
        }

        #[inline(always)]
        unsafe fn store_f16(self, to: *mut u16) {
            // SAFETY: see above.
            unsafe {
                _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<ROUNDING>(self.0));
                _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<ROUNDING>(self.1));
            }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            // SAFETY: see above.
            unsafe {
                let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(8).cast()));
                let wide = |bits| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)));
                Self(wide(low), wide(high))
            }
        }

        #[inline(always)]
        unsafe fn store_bf16(self, to: *mut u16) {
            // SAFETY: see above.
            let all = unsafe { self.array() };
            // SAFETY: see above.
            unsafe { to.cast::<[u16; 16]>().write_unaligned(all.map(|value| half::bf16::from_f32(value).to_bits())) };
        }

        #[inline(always)]
        unsafe fn store_bf16_pairs(self, odd: Self, to: *mut u16) {
            // SAFETY: see above.
            unsafe {
                let half = _mm256_set1_epi32(0x8000);
                let pairs = |even, odd| {
                    let even = _mm256_srli_epi32::<16>(_mm256_add_epi32(_mm256_castps_si256(even), half));
                    let odd = _mm256_add_epi32(_mm256_castps_si256(odd), half);
                    _mm256_blend_epi16::<0xaa>(even, odd)
                };
                _mm256_storeu_si256(to.cast(), pairs(self.0, odd.0));
                _mm256_storeu_si256(to.add(16).cast(), pairs(self.1, odd.1));
            }
        }

        #[inline(always)]
        unsafe fn store_bf16_two(self, next: Self, to: *mut u16) {
            // SAFETY: see above.
            unsafe {
                let all = [self.array(), next.array()];
                let bits = all.map(|all| all.map(|x| (x.to_bits().wrapping_add(0x8000) >> 16) as u16));
                to.cast::<[[u16; 16]; 2]>().write_unaligned(bits);
            }
        }

        #[inline(always)]
        unsafe fn fma(self, by: Self, add: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_fmadd_ps(self.0, by.0, add.0), _mm256_fmadd_ps(self.1, by.1, add.1)) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn first(self, count: usize, other: Self) -> Self {
            let count = i32::try_from(count.min(16)).unwrap_or(16);
            // SAFETY: see above.
            unsafe {
                let numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                let low = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), numbers);
                let high = _mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), numbers);
                Self(
                    _mm256_blendv_ps(other.0, self.0, _mm256_castsi256_ps(low)),
                    _mm256_blendv_ps(other.1, self.1, _mm256_castsi256_ps(high)),
                )
            }
        }

        #[inline(always)]
        unsafe fn times_power(self, shifted: Self) -> Self {
            // SAFETY: see above.
            unsafe {
                let one = _mm256_set1_epi32(0x3f80_0000);
                let low = _mm256_add_epi32(_mm256_slli_epi32::<23>(_mm256_castps_si256(shifted.0)), one);
                let high = _mm256_add_epi32(_mm256_slli_epi32::<23>(_mm256_castps_si256(shifted.1)), one);
                Self(_mm256_mul_ps(self.0, _mm256_castsi256_ps(low)), _mm256_mul_ps(self.1, _mm256_castsi256_ps(high)))
            }
        }
    }
}

/// Makes a kernel written over [`Lanes`] callable with the instructions at hand: `fn name(args) = generic;` gives a
/// function whose first argument is the set of instructions.
macro_rules! with_lanes {
    ($(#[$doc:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $generic:ident;) => {
        $(#[$doc])*
        $vis unsafe fn $name(instructions: $crate::kernels::Instructions, $($arg: $type),*) {
            use $crate::kernels::{Instructions, lanes};
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
            unsafe fn wide($($arg: $type),*) {
                // SAFETY: the instructions are enabled here; the rest is the caller's.
                unsafe { $generic::<lanes::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn half($($arg: $type),*) {
                // SAFETY: as above.
                unsafe { $generic::<lanes::Avx2>($($arg),*) }
            }
            assert!(instructions.is_available(), "the processor has no {instructions:?} instructions");
            match instructions {
                // SAFETY: they are available; the rest is the caller's.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 => unsafe { wide($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => unsafe { half($($arg),*) },
                // SAFETY: plain code needs nothing.
                _ => unsafe { $generic::<lanes::Plain>($($arg),*) },
            }
        }
    };
}
pub(super) use with_lanes;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Instructions;

    unsafe fn exp_row<V: Lanes>(x: &mut [f32]) {
        for chunk in x.chunks_exact_mut(LANES) {
            // SAFETY: a whole chunk.
            unsafe { exp(V::load(chunk.as_ptr())).store(chunk.as_mut_ptr()) };
        }
    }

    with_lanes! {
        unsafe fn exp_of(x: &mut [f32]) = exp_row;
    }

    #[test]
    fn exp_is_within_its_bound() {
        for instructions in Instructions::available() {
            let x: Vec<f32> = (-43_000..43_000).map(|i| i as f32 / 500.0).collect();
            let mut y = x.clone();
            // SAFETY: an available set.
            unsafe { exp_of(instructions, &mut y) };
            let apart = |(x, y): (&f32, &f32)| (f64::from(*y) / f64::from(*x).exp() - 1.0).abs();
            let worst = x.iter().zip(&y).map(apart).fold(0.0, f64::max);
            assert!(worst < 3e-7, "{instructions:?}: {worst}");
            let mut edges = [0f32; LANES];
            edges[..4].copy_from_slice(&[0.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN]);
            // SAFETY: an available set.
            unsafe { exp_of(instructions, &mut edges) };
            assert!(edges[0] == 1.0 && edges[1] < 1e-37 && edges[2].is_finite() && edges[3].is_nan());
        }
    }

    unsafe fn bf16_row<V: Lanes>(x: &[f32], out: &mut [u16], back: &mut [f32]) {
        // SAFETY: sixteen numbers, eighty halves and sixteen numbers, by the test.
        unsafe {
            V::load(x.as_ptr()).store_bf16(out.as_mut_ptr());
            V::load_bf16(out.as_ptr()).store(back.as_mut_ptr());
            V::load(x.as_ptr()).store_bf16_pairs(V::splat(1.5), out.as_mut_ptr().add(LANES));
            V::splat(1.5).store_bf16_two(V::load(x.as_ptr()), out.as_mut_ptr().add(3 * LANES));
        }
    }

    with_lanes! {
        unsafe fn bf16_of(x: &[f32], out: &mut [u16], back: &mut [f32]) = bf16_row;
    }

    #[test]
    fn bf16_rounds_alike_everywhere() {
        let mut x: [f32; LANES] = std::array::from_fn(|i| (i as f32 * 1.37).sin() * 3.0);
        // Halfway below an even one, halfway below an odd one, infinite, no number, a largest number that rounds up.
        x[..5].copy_from_slice(&[
            1.0 + 1.0 / 256.0,
            1.0 + 3.0 / 256.0,
            f32::NEG_INFINITY,
            f32::from_bits(u32::MAX),
            f32::MAX,
        ]);
        for instructions in Instructions::available() {
            let (mut out, mut back) = ([0u16; 5 * LANES], [0f32; LANES]);
            // SAFETY: an available set and room for all.
            unsafe { bf16_of(instructions, &x, &mut out, &mut back) };
            for i in 0..LANES {
                let expected = half::bf16::from_f32(x[i]);
                assert_eq!((out[i], back[i].to_bits()), (expected.to_bits(), expected.to_f32().to_bits()));
                if i > 4 {
                    assert_eq!(out[LANES + 2 * i..][..2], [expected.to_bits(), half::bf16::from_f32(1.5).to_bits()]);
                    assert_eq!(out[4 * LANES + i], expected.to_bits());
                }
            }
        }
    }

    unsafe fn halves_row<V: Lanes>(x: &[f32], halves: &mut [u16], back: &mut [f32]) {
        // SAFETY: sixteen each, by the test.
        unsafe {
            V::load(x.as_ptr()).first(9, V::splat(7.0)).store_f16(halves.as_mut_ptr());
            V::load_f16(halves.as_ptr()).store(back.as_mut_ptr());
        }
    }

    with_lanes! {
        unsafe fn halves_of(x: &[f32], halves: &mut [u16], back: &mut [f32]) = halves_row;
    }

    #[test]
    fn halves_round_alike_everywhere() {
        let x: [f32; LANES] = std::array::from_fn(|i| (i as f32 * 1.37).sin() * 3.0);
        for instructions in Instructions::available() {
            let (mut halves, mut back) = ([0u16; LANES], [0f32; LANES]);
            // SAFETY: an available set and sixteen numbers each.
            unsafe { halves_of(instructions, &x, &mut halves, &mut back) };
            for i in 0..LANES {
                let expected = half::f16::from_f32(if i < 9 { x[i] } else { 7.0 });
                assert_eq!((halves[i], back[i]), (expected.to_bits(), expected.to_f32()));
            }
        }
    }
}
