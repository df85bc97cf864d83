//! Random numbers, and gradients by central differences of a formula in f64; for tests.

/// Numbers between −1 and 1, the same for the same seed.
pub(super) fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    // The first few are small.
    (0..8 + count).map(|_| next()).skip(8).collect()
}

/// The same in f64.
pub(super) fn exact(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// `Σ a·b`.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The gradient of a formula by central differences.
pub(super) fn slope(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let here = x[i];
            x[i] = here + STEP;
            let high = f(&x);
            x[i] = here - STEP;
            let low = f(&x);
            x[i] = here;
            (high - low) / (2.0 * STEP)
        })
        .collect()
}

/// Asserts that numbers are the expected ones, within `bound` of the largest.
#[track_caller]
pub(super) fn near(found: &[f32], expected: &[f64], bound: f64) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1e-3f64, |top, x| top.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let apart = (f64::from(*found) - expected).abs();
        assert!(apart <= bound * scale, "{i}: {found} is not {expected} (of {scale})");
    }
}
