//! The exponential function in a form that compilers turn into vector instructions, and the softmax over it.

/// `e^x` within 2e-7 of its value for `x` in -87..88; clamped outside, so the result is never infinite.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; a polynomial for `e^r`; `n` goes into the exponent bits.
#[inline]
#[must_use]
pub fn exp(x: f32) -> f32 {
    /// Adding it leaves the nearest integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let tail = 1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0)));
    let power = 1.0 + r + r * r * (0.5 + r * tail);
    power * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// Replaces `row` by its softmax; returns the logarithm of the sum of exponentials it had. An empty row is left as it is.
pub fn softmax(row: &mut [f32]) -> f32 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0f32; 8];
    let (chunks, rest) = row.as_chunks_mut::<8>();
    for chunk in chunks {
        for (value, sum) in chunk.iter_mut().zip(&mut sums) {
            *value = exp(*value - top);
            *sum += *value;
        }
    }
    for (value, sum) in rest.iter_mut().zip(&mut sums) {
        *value = exp(*value - top);
        *sum += *value;
    }
    let sum: f32 = sums.iter().sum();
    let inverse = 1.0 / sum;
    row.iter_mut().for_each(|value| *value *= inverse);
    top + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_its_bound() {
        let worst = (-86_000..87_000)
            .map(|i| i as f32 / 1000.0)
            .map(|x| ((f64::from(exp(x)) - f64::from(x).exp()) / f64::from(x).exp()).abs())
            .fold(0.0, f64::max);
        assert!(worst < 3e-7, "{worst}");
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(1e9).is_finite());
    }

    #[test]
    fn softmax_sums_to_one_and_gives_the_logarithm() {
        let mut row: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin() * 4.0).collect();
        let expected = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        let lse = softmax(&mut row);
        assert!((f64::from(lse) - expected).abs() < 1e-5);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
}
