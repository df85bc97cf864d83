//! How subjects are timed side by side: in turns, so that what the machine does meanwhile meets all of them alike. Which
//! databases they are is not known here.

use super::{BATCH, Subject, body};
use std::fs::File;
use std::time::Instant;

/// Operations that each subject carries out before it is the next one's turn.
const TURN: usize = 20;

/// Times of many operations of one kind.
pub(super) struct Pace {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// Mean of the middle four fifths: one stall of the disk says nothing about either of two.
    pub(super) typical_us: f64,
}

impl Pace {
    pub(super) fn of(mut times_us: Vec<f64>) -> Self {
        times_us.sort_by(f64::total_cmp);
        let at = |part: f64| times_us[((times_us.len() - 1) as f64 * part) as usize];
        let middle = &times_us[times_us.len() / 10..times_us.len() - times_us.len() / 10];
        let typical_us = middle.iter().sum::<f64>() / middle.len() as f64;
        Self { p50_us: at(0.5), p99_us: at(0.99), typical_us }
    }
}

/// How much more `one` is than `other`, in percent.
pub(super) fn percent_over(one: f64, other: f64) -> f64 {
    (one / other - 1.0) * 100.0
}

pub(super) fn timed_us<T>(f: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<f64> {
    let began = Instant::now();
    f()?;
    Ok(began.elapsed().as_secs_f64() * 1e6)
}

/// One body to a durable transaction.
pub(super) fn writes(subjects: &mut [&mut dyn Subject], count: usize, bytes: usize) -> anyhow::Result<Vec<Pace>> {
    let mut times = vec![Vec::new(); subjects.len()];
    for _ in 0..count.div_ceil(TURN) {
        for (subject, times) in subjects.iter_mut().zip(&mut times) {
            for _ in 0..TURN {
                let body = [body(bytes)];
                times.push(timed_us(|| subject.write(&body))?);
            }
        }
    }
    Ok(times.into_iter().map(Pace::of).collect())
}

/// Reads of what is in memory.
pub(super) fn reads(subjects: &mut [&mut dyn Subject], records: usize, count: usize) -> anyhow::Result<Vec<Pace>> {
    let numbers = numbers(records);
    for subject in subjects.iter_mut() {
        numbers.iter().take(records).try_for_each(|number| subject.read(*number).map(drop))?;
    }
    in_turns(subjects, &numbers, count)
}

/// Writes until there are so many.
pub(super) fn fill(subjects: &mut [&mut dyn Subject], records: usize, bytes: usize) -> anyhow::Result<()> {
    for _ in 0..records.div_ceil(BATCH) {
        let bodies: Vec<_> = (0..BATCH).map(|_| body(bytes)).collect();
        subjects.iter_mut().try_for_each(|subject| subject.write(&bodies))?;
    }
    Ok(())
}

/// Reads, each from a file of which the kernel holds nothing in memory.
pub(super) fn reads_from_disk(
    subjects: &mut [&mut dyn Subject],
    records: usize,
    count: usize,
) -> anyhow::Result<Vec<Pace>> {
    let numbers = numbers(records);
    let mut times = vec![Vec::new(); subjects.len()];
    let mut next = numbers.iter().cycle();
    for _ in 0..count.div_ceil(TURN) {
        for (subject, times) in subjects.iter_mut().zip(&mut times) {
            for _ in 0..TURN {
                forget(subject.file())?;
                let number = *next.next().expect("a cycle has no end");
                times.push(timed_us(|| subject.read(number))?);
            }
        }
    }
    Ok(times.into_iter().map(Pace::of).collect())
}

fn in_turns(subjects: &mut [&mut dyn Subject], numbers: &[usize], count: usize) -> anyhow::Result<Vec<Pace>> {
    let mut times = vec![Vec::new(); subjects.len()];
    for turn in 0..count.div_ceil(TURN) {
        for (subject, times) in subjects.iter_mut().zip(&mut times) {
            for n in 0..TURN {
                let number = numbers[(turn * TURN + n) % numbers.len()];
                times.push(timed_us(|| subject.read(number))?);
            }
        }
    }
    Ok(times.into_iter().map(Pace::of).collect())
}

/// All numbers below, in an order that jumps.
fn numbers(below: usize) -> Vec<usize> {
    const STRIDE: usize = 7_919;
    let stride = if below.is_multiple_of(STRIDE) { 1 } else { STRIDE };
    (0..below).map(|n| n * stride % below).collect()
}

/// Lets the kernel drop what it holds of a file.
fn forget(path: &std::path::Path) -> anyhow::Result<()> {
    rustix::fs::fadvise(File::open(path)?, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}
