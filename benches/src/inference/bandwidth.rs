//! How fast the threads of this machine read memory together: what no answer can be faster than.

use empathd_model::kernels::Arena;
use std::thread;
use std::time::Instant;

/// Bytes that are read, in huge pages as the weights are; far more than any cache holds.
const BYTES: usize = 2 << 30;
/// Runs, of which the best counts.
const RUNS: usize = 4;
/// Sums that grow side by side.
const SUMS: usize = 32;

/// Gigabytes a second that `threads` threads read together.
pub(super) fn gb_s(threads: usize) -> f64 {
    let arena = Arena::new(BYTES);
    let words = arena.free();
    let best = (0..RUNS).map(|_| seconds(words, threads)).fold(f64::INFINITY, f64::min);
    size_of_val(words) as f64 / best / 1e9
}

fn seconds(words: &[u64], threads: usize) -> f64 {
    let began = Instant::now();
    let sum = thread::scope(|scope| {
        let parts = words.chunks(words.len().div_ceil(threads));
        let readers: Vec<_> = parts.map(|part| scope.spawn(|| sum(part))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap_or(0)).fold(0, u64::wrapping_add)
    });
    let seconds = began.elapsed().as_secs_f64();
    std::hint::black_box(sum);
    seconds
}

fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; SUMS];
    for chunk in words.as_chunks::<SUMS>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}
