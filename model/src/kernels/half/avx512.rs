//! Products with `vdpbf16ps` on 512 bits: up to eight rows by three panels in registers. Knows instructions; refuses to know who
//! asks.

use super::operand::PANEL;
use super::piece::{Piece, Target};
use half::bf16;
use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, __mmask16, _MM_HINT_T0, _mm_prefetch, _mm256_mask_storeu_epi16,
    _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_permutex2var_epi16, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_shuffle_i32x4, _mm512_storeu_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::mem::transmute;

/// Rows of a block.
const HIGH: usize = 8;
/// Panels of a block: 24 sums hide the latency of the products, and with three of the right side and one of the left side stay
/// in the 32 registers.
const WIDE: usize = 3;

/// Whether the processor has the instructions.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
}

/// Computes a piece.
///
/// # Safety
/// [`is_available`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn piece(piece: &Piece) {
    let panels = piece.columns.div_ceil(PANEL);
    let mut row = 0;
    while row < piece.rows {
        // SAFETY: the rows lie within the piece.
        row += unsafe {
            match piece.rows - row {
                HIGH.. => strip::<HIGH>(piece, row, panels),
                4.. => strip::<4>(piece, row, panels),
                2.. => strip::<2>(piece, row, panels),
                _ => strip::<1>(piece, row, panels),
            }
        };
    }
}

/// Computes `M` rows; gives `M`.
///
/// # Safety
/// [`is_available`]; they lie within the piece.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn strip<const M: usize>(piece: &Piece, row: usize, panels: usize) -> usize {
    let mut panel = 0;
    while panel < panels {
        // SAFETY: the panels lie within the piece.
        panel += unsafe {
            match panels - panel {
                WIDE.. => block::<M, WIDE>(piece, row, panel),
                2 => block::<M, 2>(piece, row, panel),
                _ => block::<M, 1>(piece, row, panel),
            }
        };
    }
    M
}

/// Which columns of a panel there are.
const fn mask(columns: usize, panel: usize) -> __mmask16 {
    let there = columns - panel * PANEL;
    if there >= PANEL { u16::MAX } else { (1 << there) - 1 }
}

/// Computes `M` rows by `N` panels; gives `N`.
///
/// # Safety
/// [`is_available`]; they lie within the piece.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn block<const M: usize, const N: usize>(piece: &Piece, row: usize, panel: usize) -> usize {
    let mut sums = [[_mm512_setzero_ps(); N]; M];
    let at = |i: usize, j: usize| (row + i) * piece.stride + (panel + j) * PANEL;
    // SAFETY: the rows and panels lie within the piece; columns that are not there are masked.
    unsafe {
        if let Target::Add(out) = piece.target {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_maskz_loadu_ps(mask(piece.columns, panel + j), out.add(at(i, j)));
                }
            }
        }
        for stretch in piece.stretches() {
            let stretch = stretch.at(row, panel);
            let (mut left, mut right) = (stretch.left.cast::<i32>(), stretch.right.cast::<i32>());
            for _ in 0..stretch.pairs {
                let b: [__m512bh; N] =
                    std::array::from_fn(|j| transmute(_mm512_loadu_si512(right.byte_add(j * stretch.panel).cast())));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = left.byte_add(i * stretch.left_stride).read_unaligned();
                    let a: __m512bh = transmute(_mm512_set1_epi32(a));
                    sums.iter_mut().zip(b).for_each(|(sum, b)| *sum = _mm512_dpbf16_ps(*sum, a, b));
                }
                left = left.add(1);
                right = right.add(PANEL);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                put(piece.target, at(i, j), mask(piece.columns, panel + j), sum);
            }
        }
    }
    N
}

/// Writes the masked sums from number `at` of the target on.
///
/// # Safety
/// [`is_available`]; they lie within the target.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn put(target: Target, at: usize, mask: __mmask16, sums: __m512) {
    // SAFETY: by the caller.
    unsafe {
        match target {
            Target::Set(out) | Target::Add(out) => _mm512_mask_storeu_ps(out.add(at), mask, sums),
            Target::Half(out) => {
                _mm256_mask_storeu_epi16(
                    out.add(at).cast(),
                    mask,
                    transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(sums)),
                );
            }
        }
    }
}

/// Rounds `rows × columns` sums, the rows of both sides as many numbers apart as is said with their first.
///
/// # Safety
/// [`is_available`]; both have that many rows and columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn round_rows(from: (*const f32, usize), to: (*mut bf16, usize), rows: usize, columns: usize) {
    for row in 0..rows {
        for panel in 0..columns.div_ceil(PANEL) {
            let mask = mask(columns, panel);
            // SAFETY: by the caller.
            unsafe {
                let sums = _mm512_maskz_loadu_ps(mask, from.0.add(row * from.1 + panel * PANEL));
                put(Target::Half(to.0), row * to.1 + panel * PANEL, mask, sums);
            }
        }
    }
}

/// Exchanges the rows and columns of 16 × 16 words.
///
/// # Safety
/// [`is_available`]; nobody else touches them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn transpose(lines: *mut [u32; PANEL]) {
    // SAFETY: there are 16 lines of 64 bytes.
    let rows: [__m512i; PANEL] = std::array::from_fn(|i| unsafe { _mm512_loadu_si512(lines.add(i).cast()) });
    let mut pairs = rows;
    for i in (0..PANEL).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Of each four rows: column `4·lane + c` of all four, for each c.
    let mut fours = pairs;
    for i in (0..PANEL).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for c in 0..4 {
        let [a, b, c0, d] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c0, d), _mm512_shuffle_i32x4::<0xdd>(c0, d));
        let columns = [
            _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even),
            _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd),
            _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even),
            _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd),
        ];
        for (lane, column) in columns.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(lines.add(4 * lane + c).cast(), column) };
        }
    }
}

/// Rows ahead of those that are put into pairs that are asked for: they lie far apart, where no processor looks by itself.
const AHEAD: usize = 24;

/// Puts `pairs` pairs of rows of 64 numbers into four panels that are `LINES` lines apart: in line `p` of a panel, for each column the
/// numbers of rows `2p` and `2p + 1`. The rows begin `from.1` numbers apart.
///
/// # Safety
/// [`is_available`]; there are so many rows and lines.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn pair_rows<const LINES: usize>(from: (*const bf16, usize), pairs: usize, to: *mut [u32; PANEL]) {
    // Number 2i comes from place i of the one row, number 2i + 1 from place i of the other, which is the second register.
    const ORDER: [[i16; 32]; 2] = {
        let mut order = [[0; 32]; 2];
        let mut i = 0;
        while i < 32 {
            let place = (i / 2 + i % 2 * 32) as i16;
            (order[0][i], order[1][i]) = (place, place + 16);
            i += 1;
        }
        order
    };
    // SAFETY: by the caller; an address that is only asked for need not exist.
    unsafe {
        let order = ORDER.map(|order| _mm512_loadu_si512(order.as_ptr().cast()));
        for pair in 0..pairs {
            let row = from.0.add(2 * pair * from.1);
            let other = row.add(from.1);
            for half in 0..2 {
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(AHEAD * from.1 + 32 * half).cast());
                _mm_prefetch::<_MM_HINT_T0>(other.wrapping_add(AHEAD * from.1 + 32 * half).cast());
                let a = _mm512_loadu_si512(row.add(32 * half).cast());
                let b = _mm512_loadu_si512(other.add(32 * half).cast());
                for (panel, order) in order.iter().enumerate() {
                    let both = _mm512_permutex2var_epi16(a, *order, b);
                    _mm512_storeu_si512(to.add((2 * half + panel) * LINES + pair).cast(), both);
                }
            }
        }
    }
}
