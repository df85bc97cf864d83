//! How fast the threads of this machine read memory together: what no answer can be faster than.

use empathd_model::kernels::Arena;
use std::thread;
use std::time::Instant;

/// Bytes that are read, in huge pages as the weights are; far more than any cache holds.
const BYTES: usize = 2 << 30;
/// Runs, of which the best counts.
const RUNS: usize = 8;
/// Places that each thread reads in turn.
const STREAMS: usize = 8;
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

/// Reads several places in turn: more of the memory's answers are under way than with one.
fn sum(words: &[u64]) -> u64 {
    let len = words.len() / STREAMS / SUMS * SUMS;
    let streams: [&[[u64; SUMS]]; STREAMS] = std::array::from_fn(|i| words[i * len..][..len].as_chunks().0);
    let mut sums = [0u64; SUMS];
    for at in 0..len / SUMS {
        for stream in streams {
            for (sum, word) in sums.iter_mut().zip(&stream[at]) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}
