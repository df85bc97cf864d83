//! The choice of the next token. Refuses to know models and texts.

use crate::counter::{Counter, Site};
use std::cmp::Ordering;

/// Tokens first looked at when only the likeliest may be drawn.
const CANDIDATES: usize = 64;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 always takes the likeliest.
    pub temperature: f32,
    /// Draws from the fewest likeliest tokens that have this much probability together; in (0, 1].
    pub top_p: f32,
    /// Token `i` is a function of this, `i` and the logits alone.
    pub seed: u64,
}

/// A token and its probability, not normalised.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    weight: f64,
}

impl Sampling {
    /// The token at position `index` of an answer, or nothing when no logit is a finite number.
    #[must_use]
    pub fn choose(&self, logits: &[f32], index: u32) -> Option<u32> {
        let finite = (0u32..).zip(logits.iter().copied()).filter(|(_, logit)| logit.is_finite());
        let (best, peak) = finite.clone().reduce(|best, next| if next.1 > best.1 { next } else { best })?;
        if self.temperature.is_nan() || self.temperature <= 0.0 {
            return Some(best);
        }
        let weight = |logit: f32| f64::from(((logit - peak) / self.temperature).exp());
        let mut candidates: Vec<Candidate> =
            finite.map(|(id, logit)| Candidate { id, weight: weight(logit) }).collect();
        if self.top_p < 1.0 {
            keep_nucleus(&mut candidates, f64::from(self.top_p));
        }
        let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
        let mut left = Counter::new(self.seed).uniform(Site::new("token", 0), u64::from(index)) * total;
        let drawn = candidates.iter().find(|candidate| {
            left -= candidate.weight;
            left < 0.0
        });
        Some(drawn.map_or(best, |candidate| candidate.id))
    }
}

/// Likeliest first, the smaller id first among equals.
fn by_weight(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

/// Keeps the fewest likeliest candidates that have the share `top_p` of the whole weight, likeliest first. The whole
/// vocabulary is sorted only when it has to be.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f64) {
    let wanted = candidates.iter().map(|candidate| candidate.weight).sum::<f64>() * top_p;
    let mut count = CANDIDATES;
    while count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, by_weight);
        if candidates[..count].iter().map(|candidate| candidate.weight).sum::<f64>() >= wanted {
            candidates.truncate(count);
        }
        count *= 8;
    }
    candidates.sort_unstable_by(by_weight);
    let mut reached = 0.0;
    let enough = candidates.iter().position(|candidate| {
        reached += candidate.weight;
        reached >= wanted
    });
    candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_p: f32, seed: u64) -> Sampling {
        Sampling { temperature, top_p, seed }
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        assert_eq!(sampling(0.0, 1.0, 1).choose(&[0.0, f32::NAN, 3.0, 3.0, -1.0], 9), Some(2));
        assert_eq!(sampling(0.0, 1.0, 1).choose(&[f32::NAN, f32::NEG_INFINITY], 0), None);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0, 2f32.ln(), 5f32.ln(), f32::NEG_INFINITY];
        let mut counts = [0u32; 4];
        for index in 0..8000 {
            counts[sampling(1.0, 1.0, 5).choose(&logits, index).expect("drawn") as usize] += 1;
        }
        assert_eq!(counts[3], 0);
        for (count, share) in counts.iter().zip([0.125, 0.25, 0.625]) {
            assert!((f64::from(*count) / 8000.0 - share).abs() < 0.02, "{counts:?}");
        }
    }

    #[test]
    fn the_nucleus_is_the_fewest_that_reach_its_mass() {
        let logits: Vec<f32> = (0..5000u16).map(|id| f32::from(id % 1000) * -0.001).collect();
        let share = |id: usize| f64::from(logits[id]).exp();
        let total: f64 = (0..5000).map(share).sum();
        let mut order: Vec<usize> = (0..5000).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let mut mass = 0.0;
        let kept = order.iter().take_while(|id| {
            let before = mass;
            mass += share(**id) / total;
            before < 0.3
        });
        let kept: std::collections::HashSet<u32> = kept.map(|id| *id as u32).collect();
        let drawn: Vec<u32> =
            (0..2000).map(|index| sampling(1.0, 0.3, 2).choose(&logits, index).expect("drawn")).collect();
        assert!(drawn.iter().all(|id| kept.contains(id)));
        assert!(drawn.iter().collect::<std::collections::HashSet<_>>().len() > 500);
        assert_eq!(sampling(1.0, 1e-6, 2).choose(&logits, 3), Some(0));
    }

    #[test]
    fn a_draw_depends_on_seed_and_index_alone() {
        let logits = [0.0; 64];
        let draw = |seed, index| sampling(0.8, 0.9, seed).choose(&logits, index);
        assert_eq!(draw(1, 7), draw(1, 7));
        assert!((0..20).any(|index| draw(1, index) != draw(2, index)));
        assert!((1..20).any(|index| draw(1, index) != draw(1, 0)));
    }
}
