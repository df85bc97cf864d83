//! From f32 to bf16 and back, rows at a time. Refuses to know what the numbers are.

use half::bf16;

/// The nearest bf16, to even at ties; a number that is none stays none.
#[inline(always)]
fn nearest(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet = bits | 0x40_0000;
    bf16::from_bits((if value.is_nan() { quiet } else { rounded } >> 16) as u16)
}

#[inline(always)]
fn round_all(from: &[f32], to: &mut [bf16]) {
    from.iter().zip(to).for_each(|(from, to)| *to = nearest(*from));
}

/// Puts the numbers of `from` into `to`, each rounded to the nearest bf16 (to even at ties).
///
/// # Panics
/// The two differ in length.
pub fn round_row(from: &[f32], to: &mut [bf16]) {
    assert_eq!(from.len(), to.len(), "as many numbers as there is room for");
    #[cfg(target_arch = "x86_64")]
    if super::avx512::is_available() {
        // SAFETY: the instructions are there.
        return unsafe { round_wide(from, to) };
    }
    round_all(from, to);
}

/// Compiled for 512 bits; the same numbers.
///
/// # Safety
/// The processor has AVX-512 F, BW and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn round_wide(from: &[f32], to: &mut [bf16]) {
    round_all(from, to);
}

/// Puts the numbers of `from` into `to`, exactly.
///
/// # Panics
/// The two differ in length.
pub fn widen_row(from: &[bf16], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "as many numbers as there is room for");
    from.iter().zip(to).for_each(|(from, to)| *to = f32::from_bits(u32::from(from.to_bits()) << 16));
}
