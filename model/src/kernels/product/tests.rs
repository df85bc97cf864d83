//! Every product against sums in double precision, for random shapes with tails; and the bits that may not differ.

use super::{Instructions, LowRank, OutRows, Run, product, product_columns};
use crate::kernels::{Activations, Keep, PackKind, PackedMatrix, WeightFormat};
use proptest::prelude::*;

const KINDS: [PackKind; 6] = [PackKind::Q4, PackKind::Q6, PackKind::Q8, PackKind::F16, PackKind::Bf16, PackKind::F32];

/// Numbers that look random; the same for the same seed.
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() * 2.0 + next()).collect()
}

fn multiply(set: Instructions, x: &[f32], rows: usize, w: &PackedMatrix) -> Vec<f32> {
    let mut inputs = Activations::new(rows, w.cols(), Keep::Both);
    inputs.fill(set, x, rows, w.cols());
    let mut out = vec![f32::MIN; rows * w.rows()];
    product(set, &inputs, 0..rows, w, 0..w.row_tiles(), &mut OutRows::new(&mut out, w.rows()), false);
    out
}

/// The product in double precision over the unpacked weights, and the bound within which a kernel must stay: half a step
/// of the inputs' 8 bits for each weight, and the rounding of the sums.
fn reference(x: &[f32], w: &PackedMatrix, row: usize, n: usize) -> (f64, f64) {
    let cols = w.cols();
    let mut weights = vec![0.0; cols];
    w.unpack_row(n, &mut weights);
    let x = &x[row * cols..][..cols];
    let (mut sum, mut bound) = (0.0, 0.0);
    for (x, weights) in x.chunks(32).zip(weights.chunks(32)) {
        let top = x.iter().fold(0f32, |top, x| top.max(x.abs()));
        let half_step = if w.kind().is_quantised() { f64::from(top) / 254.0 * 1.001 } else { 0.0 };
        for (&x, &weight) in x.iter().zip(weights) {
            sum += f64::from(x) * f64::from(weight);
            bound += f64::from(weight.abs()) * (half_step + f64::from(x.abs()) * 1e-5);
        }
        // The minimum of 4-bit weights is added as a number of its own, larger than the weights near zero.
        bound += 1e-5 * f64::from(top) * weights.iter().fold(0.0, |top, w| f64::from(w.abs()).max(top)) * 32.0;
    }
    (sum, bound + 1e-6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_product_is_the_plain_sum_within_its_bound(
        seed in 0u64..1 << 40, rows in 1usize..15, cols in 1usize..200, outputs in 1usize..40, kind in 0usize..KINDS.len(),
    ) {
        let w = PackedMatrix::from_f32(KINDS[kind], outputs, cols, &noise(seed, outputs * cols));
        let x = noise(seed + 1, rows * cols);
        for set in Instructions::available() {
            let out = multiply(set, &x, rows, &w);
            for row in 0..rows {
                for n in 0..outputs {
                    let (sum, bound) = reference(&x, &w, row, n);
                    let got = f64::from(out[row * outputs + n]);
                    prop_assert!((got - sum).abs() <= bound, "{set:?} {:?} {row} {n}: {got} for {sum}", KINDS[kind]);
                }
            }
        }
    }

    #[test]
    fn neither_other_rows_nor_the_cut_into_tiles_change_a_bit(
        seed in 0u64..1 << 40, rows in 2usize..30, cols in 1usize..200, outputs in 17usize..70, kind in 0usize..KINDS.len(),
    ) {
        let w = PackedMatrix::from_f32(KINDS[kind], outputs, cols, &noise(seed, outputs * cols));
        let x = noise(seed + 1, rows * cols);
        for set in Instructions::available() {
            let all = multiply(set, &x, rows, &w);
            for row in 0..rows {
                let alone = multiply(set, &x[row * cols..][..cols], 1, &w);
                prop_assert_eq!(bits(&alone), bits(&all[row * outputs..][..outputs]));
            }
            let mut inputs = Activations::new(rows, cols, Keep::Both);
            inputs.fill(set, &x, rows, cols);
            let mut out = vec![0.0; rows * outputs];
            for tile in 0..w.row_tiles() {
                product(set, &inputs, 1..rows, &w, tile..tile + 1, &mut OutRows::new(&mut out, outputs), true);
            }
            prop_assert_eq!(&out[..(rows - 1) * outputs], &all[outputs..]);
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn all_instructions_quantise_to_the_same_bits_and_the_wide_ones_multiply_to_the_same() {
    for kind in KINDS {
        let w = PackedMatrix::from_f32(kind, 37, 83, &noise(7, 37 * 83));
        let x: Vec<f32> = noise(8, 5 * 83).iter().map(|x| x * 1e3).collect();
        let outs: Vec<_> = Instructions::available().into_iter().map(|set| multiply(set, &x, 5, &w)).collect();
        for pair in outs.get(1..).unwrap_or_default().windows(2) {
            assert_eq!(bits(&pair[0]), bits(&pair[1]), "{kind:?}");
        }
        let mut held = Vec::new();
        for set in Instructions::available() {
            let mut inputs = Activations::new(5, 83, Keep::Quantised);
            inputs.fill(set, &x, 5, 83);
            let row = inputs.blocks(4).iter().map(|b| (b.scale.to_bits(), b.scaled_sum.to_bits(), b.sums, b.q));
            held.push(row.collect::<Vec<_>>());
        }
        assert!(held.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

#[test]
fn the_largest_quants_do_not_overflow() {
    for kind in [PackKind::Q4, PackKind::Q6, PackKind::Q8] {
        for sign in [1.0, -1.0] {
            let w = PackedMatrix::from_f32(kind, 16, 64, &[sign; 16 * 64]);
            for set in Instructions::available() {
                let out = multiply(set, &[1.0; 64], 1, &w);
                assert!(out.iter().all(|sum| (sum - 64.0 * sign).abs() < 0.1), "{set:?} {kind:?}: {out:?}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_ends_as_nan_where_it_belongs_and_nowhere_else() {
    for kind in KINDS {
        let mut weights = noise(3, 20 * 70);
        weights[18 * 70 + 69] = f32::NAN;
        let w = PackedMatrix::from_f32(kind, 20, 70, &weights);
        let mut x = noise(4, 3 * 70);
        x[70 + 5] = f32::INFINITY;
        x[70 + 6] = f32::NAN;
        for set in Instructions::available() {
            let out = multiply(set, &x, 3, &w);
            for (i, value) in out.iter().enumerate() {
                let poisoned = i / 20 == 1 || i % 20 == 18;
                assert_eq!(value.is_nan(), poisoned, "{set:?} {kind:?} row {} output {}", i / 20, i % 20);
            }
        }
    }
}

/// Formats whose blocks have scales of their own, whatever bits these are.
const BLOCKED: [WeightFormat; 5] =
    [WeightFormat::Q4_0, WeightFormat::Q4_1, WeightFormat::Q8_0, WeightFormat::Q4K, WeightFormat::Q6K];

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// As a file may hold them: scales that are infinite, NaN or subnormal among others.
    #[test]
    fn any_bytes_of_a_file_give_the_sum_or_no_number(
        seed in 0u64..1 << 40, rows in 1usize..14, outputs in 1usize..40, format in 0usize..BLOCKED.len(),
    ) {
        let (format, cols) = (BLOCKED[format], 256);
        let len = outputs * cols / format.block_weights() * format.block_bytes();
        let bytes: Vec<u8> = noise(seed, len).iter().map(|x| (x.to_bits() >> 8) as u8).collect();
        let w = PackedMatrix::pack(format, outputs, cols, &bytes, &|row| row).unwrap();
        let x = noise(seed + 1, rows * cols);
        let mut weights = vec![0.0; cols];
        for set in Instructions::available() {
            let out = multiply(set, &x, rows, &w);
            for (i, got) in out.iter().enumerate() {
                w.unpack_row(i % outputs, &mut weights);
                if weights.iter().all(|weight| weight.is_finite()) {
                    let (sum, bound) = reference(&x, &w, i / outputs, i % outputs);
                    prop_assert!((f64::from(*got) - sum).abs() <= bound, "{set:?} {format:?} {i}: {got} for {sum}");
                } else {
                    prop_assert!(!got.is_finite(), "{set:?} {format:?} {i}: {got} of weights that are none");
                }
            }
        }
    }
}

#[test]
fn chosen_columns_are_the_whole_matrix_with_zeros_elsewhere() {
    let (outputs, cols, rows) = (37, 24, 3);
    let w = PackedMatrix::from_f32(PackKind::F16, outputs, cols, &noise(5, outputs * cols));
    let h = noise(6, rows * cols);
    let runs = [Run { first: 0, len: 4 }, Run { first: 8, len: 5 }]
        .into_iter()
        .chain([Run::default(), Run { first: 20, len: 4 }, Run::default(), Run::default()])
        .collect::<Vec<_>>();
    let chosen = LowRank { h: &h, stride: cols, runs: &runs, runs_per_row: 2 };
    for set in Instructions::available() {
        let mut masked = h.clone();
        for (i, value) in masked.iter_mut().enumerate() {
            let own = &runs[i / cols * 2..][..2];
            if !own.iter().any(|run| (run.first..run.first + run.len).contains(&(i % cols))) {
                *value = 0.0;
            }
        }
        let mut out = vec![0.0; rows * outputs];
        product_columns(set, &chosen, &w, 0..w.row_tiles(), &mut OutRows::new(&mut out, outputs));
        assert_eq!(out, multiply(set, &masked, rows, &w), "{set:?}");
        assert!(out[2 * outputs..].iter().all(|&value| value == 0.0));
    }
}

#[test]
#[should_panic(expected = "do not fit the output")]
fn an_output_that_is_too_short_is_refused() {
    let w = PackedMatrix::from_f32(PackKind::Q8, 20, 32, &[0.0; 640]);
    let mut inputs = Activations::new(2, 32, Keep::Quantised);
    inputs.fill(Instructions::Portable, &[0.0; 64], 2, 32);
    let mut out = vec![0.0; 39];
    product(Instructions::Portable, &inputs, 0..2, &w, 0..2, &mut OutRows::new(&mut out, 20), false);
}
