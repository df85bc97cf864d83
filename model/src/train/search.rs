//! How many tokens a pass has, found before the first step by passes of the worst kind and frozen from then on: the fewest
//! that come within three per cent of the best speed, in the memory that there is. Refuses to know what is learnt.

use super::batch::Batch;
use super::gradient::{Goals, Gradients, Keep};
use super::{Encoded, Host, TrainError};
use crate::adapter::Mixture;

/// Share of the best speed that is enough.
const ENOUGH: f64 = 0.97;
/// Fewest and most tokens of a pass that are tried.
const TRIED: (usize, usize) = (256, 16_384);
/// Tokens of a pass where trying would cost too much of the training.
const USUAL: usize = 1024;
/// Share of a job's tokens that trying may cost.
const COST_MAX: f64 = 0.05;
/// Passes by which a candidate is measured.
const PASSES: usize = 3;
/// Tokens of the shortest conversations that are packed.
const SHORT: usize = 16;
/// Share of the free memory that a pass may take.
const MEMORY_SHARE: f64 = 0.8;

/// What the search is for.
pub(super) struct Wanted<'a> {
    /// What is trained.
    pub(super) shape: &'a Mixture,
    /// Tokens of the longest piece.
    pub(super) longest: usize,
    pub(super) tokens_per_step: usize,
    pub(super) steps: u32,
    /// What was asked for, if anything.
    pub(super) asked: Option<usize>,
    /// Whether text is replayed, whose passes go through the base as well.
    pub(super) replays: bool,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Found {
    pub(super) pass_tokens: usize,
    /// Seconds of a full pass.
    pub(super) pass_s: f64,
}

/// Passes of a step.
pub(super) fn passes_per_step(tokens_per_step: usize, pass_tokens: usize) -> usize {
    ((tokens_per_step as f64 / pass_tokens as f64).round() as usize).max(1)
}

/// Halves of a step, the smallest first, that hold the longest piece.
fn candidates(longest: usize, tokens_per_step: usize) -> Vec<usize> {
    let (fewest, most) = (longest.max(TRIED.0.min(tokens_per_step)), longest.max(TRIED.1));
    let halves = (0..usize::BITS).map(|k| tokens_per_step.div_ceil(1 << k));
    let mut all: Vec<usize> = halves.filter(|tokens| (fewest..=most).contains(tokens)).collect();
    all.dedup();
    all.reverse();
    if all.is_empty() { vec![fewest] } else { all }
}

/// Finds the tokens of a pass and leaves the gradients holding the mixture with room for them.
pub(super) fn search(
    gradients: &mut Gradients,
    wanted: &Wanted<'_>,
    host: &Host<'_>,
    between_layers: &mut dyn FnMut(),
) -> Result<Found, TrainError> {
    let all = candidates(wanted.longest, wanted.tokens_per_step);
    let budget = COST_MAX * f64::from(wanted.steps) * wanted.tokens_per_step as f64;
    let worth_it = all.len() > 1 && (PASSES * (all[0] + all[1])) as f64 <= budget;
    if wanted.asked.is_some() || !worth_it {
        let usual = all.iter().copied().filter(|tokens| *tokens <= USUAL).max().unwrap_or(all[0]);
        let pass_tokens = wanted.asked.map_or(usual, |asked| asked.max(wanted.longest));
        let pass_s = probe(gradients, wanted, pass_tokens, 1, host, between_layers)?;
        return Ok(Found { pass_tokens, pass_s });
    }
    let mut measured: Vec<Found> = Vec::new();
    let mut spent = 0.0;
    for pass_tokens in all {
        let free = (host.memory)().available as f64;
        let fits = gradients.bytes_for(wanted.shape.spec(), pass_tokens) as f64 <= MEMORY_SHARE * free;
        spent += (PASSES * pass_tokens) as f64;
        if !measured.is_empty() && (!fits || spent > budget) {
            break;
        }
        let pass_s = probe(gradients, wanted, pass_tokens, PASSES, host, between_layers)?;
        measured.push(Found { pass_tokens, pass_s });
        if has_peaked(&measured) {
            break;
        }
    }
    let found = choose(&measured);
    gradients.hold(wanted.shape, found.pass_tokens)?;
    Ok(found)
}

impl Found {
    fn tok_s(&self) -> f64 {
        self.pass_tokens as f64 / self.pass_s.max(1e-9)
    }
}

/// Whether the last candidate was no faster than the one before.
fn has_peaked(measured: &[Found]) -> bool {
    measured.windows(2).last().is_some_and(|two| two[1].tok_s() * ENOUGH < two[0].tok_s())
}

/// The smallest that is fast enough.
fn choose(measured: &[Found]) -> Found {
    let best = measured.iter().map(Found::tok_s).fold(0.0, f64::max);
    let enough = measured.iter().find(|one| one.tok_s() >= ENOUGH * best);
    enough.copied().unwrap_or(Found { pass_tokens: USUAL, pass_s: 0.0 })
}

/// Seconds of a pass of the worst kind: as long as can be, or of as many conversations as can be, whichever is slower; the
/// first of several passes only warms up.
fn probe(
    gradients: &mut Gradients,
    wanted: &Wanted<'_>,
    pass_tokens: usize,
    passes: usize,
    host: &Host<'_>,
    between_layers: &mut dyn FnMut(),
) -> Result<f64, TrainError> {
    gradients.hold(wanted.shape, pass_tokens)?;
    let vocab = gradients.config().vocab;
    let mut sums: Vec<Vec<f32>> = wanted.shape.parameters().iter().map(|p| vec![0.0; p.tensor.elem_count()]).collect();
    let mut slowest = 0f64;
    for pass in 0..passes {
        let length = if pass == 1 { SHORT.min(wanted.longest) } else { wanted.longest };
        let batch = worst(pass_tokens, length, vocab);
        let weights = vec![1.0 / batch.target_tokens().max(1) as f32; batch.target_tokens()];
        let row = |row: usize| Keep { row: u32::try_from(row).unwrap_or(u32::MAX), weight: 0.0 };
        let kept: Vec<Keep> = if wanted.replays { (0..length).map(row).collect() } else { Vec::new() };
        let began = (host.now)();
        gradients.pass(&batch, &Goals { weights: &weights, kept: &kept, routers: None }, &mut sums, between_layers)?;
        let seconds = (host.now)().saturating_sub(began).as_secs_f64();
        slowest = if pass + 1 == passes || pass > 0 { slowest.max(seconds) } else { 0.0 };
    }
    Ok(slowest)
}

/// A full pass of conversations of one length, every token but the first a target.
fn worst(pass_tokens: usize, length: usize, vocab: usize) -> Batch {
    let length = length.clamp(2, pass_tokens.max(2));
    let id = |at: usize| u32::try_from((at * 7919) % vocab).unwrap_or(0);
    let one = |start: usize| {
        let ids: Vec<u32> = (start..(start + length).min(pass_tokens.max(length))).map(id).collect();
        Encoded { target: vec![true; ids.len()], ids }
    };
    let all: Vec<Encoded> = (0..pass_tokens.max(length)).step_by(length).map(one).collect();
    Batch::pack(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_divide_a_step_and_hold_the_longest_piece() {
        assert_eq!(candidates(200, 4096), [256, 512, 1024, 2048, 4096]);
        assert_eq!(candidates(700, 4096), [1024, 2048, 4096]);
        assert_eq!(candidates(12, 48), [48]);
        assert_eq!(candidates(3000, 1024), [3000]);
        assert_eq!(candidates(100, 65_536).last(), Some(&16_384));
        assert_eq!((passes_per_step(4096, 1024), passes_per_step(1024, 3000)), (4, 1));
    }

    #[test]
    fn the_smallest_that_is_fast_enough_is_taken() {
        let found = |pass_tokens: usize, tok_s: f64| Found { pass_tokens, pass_s: pass_tokens as f64 / tok_s };
        let chosen = |all: &[Found]| choose(all).pass_tokens;
        assert_eq!(chosen(&[found(256, 400.0), found(512, 600.0), found(1024, 610.0)]), 512);
        assert_eq!(chosen(&[found(256, 400.0), found(512, 500.0), found(1024, 610.0)]), 1024);
        assert!(has_peaked(&[found(512, 600.0), found(1024, 610.0)]));
        assert!(!has_peaked(&[found(512, 600.0), found(1024, 630.0)]) && !has_peaked(&[found(512, 600.0)]));
    }

    #[test]
    fn the_worst_pass_is_full() {
        for length in [1, 16, 100, 256] {
            let batch = worst(256, length, 97);
            assert_eq!(batch.tokens(), 256);
            assert!(batch.ids.iter().all(|id| *id < 97) && batch.target_tokens() > 100);
        }
        assert_eq!(worst(48, 100, 97).lengths, [48]);
    }
}
