//! The choice of the next token from one row of logits. What is chosen depends on the row, its position and the tokens
//! the answer has so far, on nothing else, so that a proposed row can be judged like any other. Refuses to know models
//! and texts.

use super::grammar::{GrammarError, Matcher};
use crate::counter::{Counter, Site};
use crate::kernels::exp;
use empathd_proto::generate::{MAX_BIASES, MAX_TOP_LOGPROBS, SamplingSpec};
use std::cmp::Ordering;
use std::ops::RangeInclusive;
use zeroize::Zeroize;

const TEMPERATURE: RangeInclusive<f32> = 0.0..=2.0;
const PENALTY: RangeInclusive<f32> = -2.0..=2.0;
const BIAS: RangeInclusive<f32> = -100.0..=100.0;
/// Logits looked at together while the largest is sought.
const BLOCK: usize = 1024;
/// Tokens of less than this share of the likeliest one's weight are looked at only when the nucleus needs them.
const FIRST_FLOOR: f32 = 1.0 / 16.0;
/// How much lower the floor is each time it was too high.
const FLOOR_STEP: f32 = 1.0 / 64.0;

/// A wish about an answer that cannot be honoured. The words name the field and quote nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A number outside its range, or no number.
    #[error("{field} must be {range}")]
    Range {
        /// Which field.
        field: &'static str,
        /// What it may be.
        range: &'static str,
    },
    /// More of something than is taken.
    #[error("{field} is too much; the limit is {limit}")]
    Limit {
        /// Which field, and what of it.
        field: &'static str,
        /// Most of it.
        limit: usize,
    },
    /// A token that the model does not have.
    #[error("{field} names a token that the model does not have; it has {tokens}, from 0")]
    Token {
        /// Which field.
        field: &'static str,
        /// Size of the vocabulary.
        tokens: usize,
    },
}

/// Why no token can be chosen.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    /// No token that may follow has a finite logit.
    #[error("the model gave no usable numbers; use another adapter")]
    NotFinite,
    /// What the answer must look like went wrong.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The token.
    pub id: u32,
    /// Its probability and those of the likeliest, when they were asked for.
    pub logprobs: Option<Logprobs>,
}

/// Natural logarithms of probabilities as the model gave them: before penalties, bias, grammar, temperature and nucleus.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// The chosen token's.
    pub taken: (u32, f32),
    /// Those of the likeliest, likeliest first, the smaller id first among equals.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one answer.
pub struct Chooser {
    vocab: usize,
    temperature: f32,
    top_p: f64,
    counter: Counter,
    presence: f32,
    frequency: f32,
    bias: Vec<(u32, f32)>,
    told: Option<usize>,
    /// How often the answer has each token, by id; kept only for penalties.
    counts: Vec<(u32, u32)>,
    matcher: Option<Matcher>,
    adjusted: Vec<f32>,
    drawing: Drawing,
}

impl Chooser {
    /// Makes one for a vocabulary of `vocab` tokens; logits beyond it are padding and never chosen.
    ///
    /// # Errors
    /// [`SpecError`] for numbers outside their ranges and tokens outside the vocabulary.
    pub fn new(spec: &SamplingSpec, vocab: usize, matcher: Option<Matcher>) -> Result<Self, SpecError> {
        let check = |field, range, fine: bool| if fine { Ok(()) } else { Err(SpecError::Range { field, range }) };
        check("temperature", "a number from 0 to 2", TEMPERATURE.contains(&spec.temperature))?;
        check("top_p", "a number above 0, at most 1", spec.top_p > 0.0 && spec.top_p <= 1.0)?;
        check("presence_penalty", "a number from -2 to 2", PENALTY.contains(&spec.presence_penalty))?;
        check("frequency_penalty", "a number from -2 to 2", PENALTY.contains(&spec.frequency_penalty))?;
        if spec.logit_bias.len() > MAX_BIASES {
            return Err(SpecError::Limit { field: "logit_bias", limit: MAX_BIASES });
        }
        let values = spec.logit_bias.iter().all(|(_, value)| BIAS.contains(value));
        check("logit_bias", "numbers from -100 to 100", values)?;
        if spec.logit_bias.iter().any(|(id, _)| *id as usize >= vocab) {
            return Err(SpecError::Token { field: "logit_bias", tokens: vocab });
        }
        if spec.logprobs.is_some_and(|top| top > MAX_TOP_LOGPROBS) {
            return Err(SpecError::Limit { field: "top_logprobs", limit: MAX_TOP_LOGPROBS.into() });
        }
        Ok(Self {
            vocab,
            temperature: spec.temperature,
            top_p: f64::from(spec.top_p),
            counter: Counter::new(spec.seed),
            presence: spec.presence_penalty,
            frequency: spec.frequency_penalty,
            bias: spec.logit_bias.clone(),
            told: spec.logprobs.map(usize::from),
            counts: Vec::new(),
            matcher,
            adjusted: Vec::new(),
            drawing: Drawing::default(),
        })
    }

    /// The token at position `index` of the answer, from one row of logits. Nothing but [`Chooser::took`] moves it on.
    ///
    /// # Errors
    /// [`ChooseError::NotFinite`], or [`ChooseError::Grammar`] when the grammar's bounds are exceeded.
    pub fn choose(&mut self, logits: &[f32], index: u32) -> Result<Chosen, ChooseError> {
        let logits = &logits[..logits.len().min(self.vocab)];
        let mut adjusted = std::mem::take(&mut self.adjusted);
        let row = if self.is_plain() {
            logits
        } else {
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            self.adjust(&mut adjusted)?;
            &adjusted
        };
        let uniform = self.counter.uniform(Site::new("token", 0), u64::from(index));
        let found = self.drawing.draw(row, self.temperature, self.top_p, uniform);
        self.adjusted = adjusted;
        let id = found.ok_or(ChooseError::NotFinite)?;
        let logprobs = self.told.map(|top| logprobs(logits, id, top));
        Ok(Chosen { id, logprobs })
    }

    /// The answer has one more token.
    ///
    /// # Errors
    /// [`ChooseError::Grammar`] for a token that the grammar does not allow here.
    pub fn took(&mut self, id: u32) -> Result<(), ChooseError> {
        if self.has_penalties() {
            match self.counts.binary_search_by_key(&id, |(id, _)| *id) {
                Ok(place) => self.counts[place].1 += 1,
                Err(place) => self.counts.insert(place, (id, 1)),
            }
        }
        match &mut self.matcher {
            Some(matcher) => Ok(matcher.took(id)?),
            None => Ok(()),
        }
    }

    /// Whether the answer is whole and nothing may follow it: it ends without an end token.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.matcher.as_ref().is_some_and(Matcher::is_complete)
    }

    fn has_penalties(&self) -> bool {
        self.presence != 0.0 || self.frequency != 0.0
    }

    fn is_plain(&self) -> bool {
        self.counts.is_empty() && self.bias.is_empty() && self.matcher.is_none()
    }

    fn adjust(&mut self, row: &mut [f32]) -> Result<(), ChooseError> {
        for (id, count) in &self.counts {
            if let Some(logit) = row.get_mut(*id as usize) {
                *logit -= self.presence + self.frequency * *count as f32;
            }
        }
        for (id, bias) in &self.bias {
            if let Some(logit) = row.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        match &mut self.matcher {
            Some(matcher) => Ok(matcher.restrict(row)?),
            None => Ok(()),
        }
    }
}

impl Drop for Chooser {
    fn drop(&mut self) {
        self.counts.zeroize();
    }
}

/// A number that can be compared: everything that is not finite counts as impossible.
const fn possible(logit: f32) -> f32 {
    if logit < f32::INFINITY { logit } else { f32::NEG_INFINITY }
}

/// The first of the largest finite logits.
fn peak(logits: &[f32]) -> Option<(u32, f32)> {
    let mut best = (0, f32::NEG_INFINITY);
    for (number, block) in logits.chunks(BLOCK).enumerate() {
        let largest = largest(block);
        if largest > best.1 {
            best = (number, largest);
        }
    }
    let begin = best.0 * BLOCK;
    let place = logits.get(begin..)?.iter().position(|logit| *logit == best.1 && best.1.is_finite())?;
    u32::try_from(begin + place).ok().map(|id| (id, best.1))
}

/// The largest possible number of a block, in lanes that become vector instructions.
fn largest(block: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = block.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, possible(*logit));
        }
    }
    lanes.into_iter().chain(rest.iter().map(|logit| possible(*logit))).fold(f32::NEG_INFINITY, larger)
}

/// The weight of a logit beside the peak's, which is 1; 0 for what is impossible.
fn weight(logit: f32, peak: f32, temperature: f32) -> f32 {
    let logit = possible(logit);
    if logit > f32::NEG_INFINITY { exp((logit - peak) / temperature) } else { 0.0 }
}

fn logprobs(logits: &[f32], taken: u32, count: usize) -> Logprobs {
    let top_logit = peak(logits).map_or(0.0, |(_, logit)| logit);
    let sums = logits.chunks(BLOCK).map(|block| {
        let sum: f64 = block.iter().map(|logit| f64::from(weight(*logit, top_logit, 1.0))).sum();
        sum
    });
    let log_sum = f64::from(top_logit) + sums.sum::<f64>().ln();
    let told = |id: u32| {
        let logit = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        (id, (f64::from(logit) - log_sum) as f32)
    };
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (id, logit) in (0u32..).zip(logits.iter().map(|logit| possible(*logit))) {
        let enters = top.len() < count || top.last().is_some_and(|(_, last)| logit > *last);
        if enters && logit > f32::NEG_INFINITY {
            let place = top.partition_point(|(_, other)| *other >= logit);
            top.insert(place, (id, logit));
            top.truncate(count);
        }
    }
    Logprobs { taken: told(taken), top: top.into_iter().map(|(id, _)| told(id)).collect() }
}

/// What a draw needs beside the row; kept from token to token.
#[derive(Default)]
struct Drawing {
    weights: Vec<f32>,
    /// Sum of each block of weights.
    sums: Vec<f64>,
    nucleus: Vec<(u32, f32)>,
}

impl Drawing {
    /// A token by the share that `uniform` of [0, 1) falls into.
    fn draw(&mut self, logits: &[f32], temperature: f32, top_p: f64, uniform: f64) -> Option<u32> {
        let (best, peak) = peak(logits)?;
        if temperature == 0.0 {
            return Some(best);
        }
        self.weights.clear();
        self.weights.extend(logits.iter().map(|logit| weight(*logit, peak, temperature)));
        self.sums.clear();
        self.sums.extend(self.weights.chunks(BLOCK).map(|block| block.iter().map(|w| f64::from(*w)).sum::<f64>()));
        let total: f64 = self.sums.iter().sum();
        let drawn = if top_p < 1.0 { self.of_nucleus(total * top_p, uniform) } else { self.of_all(total * uniform) };
        Some(drawn.unwrap_or(best))
    }

    fn of_all(&self, mut left: f64) -> Option<u32> {
        for (number, sum) in self.sums.iter().enumerate() {
            if left < *sum {
                let begin = number * BLOCK;
                let place = self.weights[begin..].iter().position(|weight| {
                    left -= f64::from(*weight);
                    left < 0.0
                });
                return u32::try_from(begin + place?).ok();
            }
            left -= sum;
        }
        None
    }

    /// Draws from the fewest likeliest tokens that have the weight `wanted` together.
    fn of_nucleus(&mut self, wanted: f64, uniform: f64) -> Option<u32> {
        let by_weight = |a: &(u32, f32), b: &(u32, f32)| -> Ordering { b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)) };
        let mut floor = FIRST_FLOOR;
        loop {
            let likely = (0u32..).zip(self.weights.iter().copied()).filter(|(_, weight)| *weight >= floor);
            self.nucleus.clear();
            self.nucleus.extend(likely);
            let reached: f64 = self.nucleus.iter().map(|(_, weight)| f64::from(*weight)).sum();
            if reached >= wanted || floor <= f32::MIN_POSITIVE {
                break;
            }
            floor = (floor * FLOOR_STEP).max(f32::MIN_POSITIVE);
        }
        self.nucleus.sort_unstable_by(by_weight);
        let mut mass = 0.0;
        let last = self.nucleus.iter().position(|(_, weight)| {
            mass += f64::from(*weight);
            mass >= wanted
        });
        self.nucleus.truncate(last.map_or(self.nucleus.len(), |last| last + 1));
        let mut left = mass * uniform;
        let drawn = self.nucleus.iter().find(|(_, weight)| {
            left -= f64::from(*weight);
            left < 0.0
        });
        drawn.map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn spec(temperature: f32, top_p: f32, seed: u64) -> SamplingSpec {
        SamplingSpec { temperature, top_p, seed, ..SamplingSpec::greedy() }
    }

    fn chooser(spec: &SamplingSpec, vocab: usize) -> Chooser {
        Chooser::new(spec, vocab, None).expect("within ranges")
    }

    fn choose(chooser: &mut Chooser, logits: &[f32], index: u32) -> u32 {
        chooser.choose(logits, index).expect("chosen").id
    }

    /// Deterministic numbers that look like logits.
    fn row(vocab: u64, seed: u64) -> Vec<f32> {
        (0..vocab).map(|id| (3.0 * Counter::new(seed).normal(Site::new("logit", 0), id)) as f32).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest_finite_ones_within_the_vocabulary() {
        let mut greedy = chooser(&spec(0.0, 1.0, 1), 5);
        assert_eq!(choose(&mut greedy, &[0.0, f32::NAN, 3.0, 3.0, -1.0, 9.0], 9), 2);
        assert!(matches!(greedy.choose(&[f32::NAN, f32::INFINITY], 0), Err(ChooseError::NotFinite)));
        assert!(matches!(greedy.choose(&[], 0), Err(ChooseError::NotFinite)));
        for seed in 0..20 {
            let logits = row(2 * BLOCK as u64 + 77, seed);
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let expected = logits.iter().position(|logit| *logit == largest).expect("one");
            assert_eq!(choose(&mut chooser(&spec(0.0, 1.0, 1), logits.len()), &logits, 0) as usize, expected);
        }
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0, 2f32.ln(), 5f32.ln(), f32::NEG_INFINITY];
        let mut chooser = chooser(&spec(1.0, 1.0, 5), 4);
        let mut counts = [0u32; 4];
        for index in 0..8000 {
            counts[choose(&mut chooser, &logits, index) as usize] += 1;
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
        let kept: HashSet<u32> = kept.map(|id| *id as u32).collect();
        let mut narrow = chooser(&spec(1.0, 0.3, 2), 5000);
        let drawn: Vec<u32> = (0..2000).map(|index| choose(&mut narrow, &logits, index)).collect();
        assert!(drawn.iter().all(|id| kept.contains(id)));
        assert!(drawn.iter().collect::<HashSet<_>>().len() > 500);
        assert_eq!(choose(&mut chooser(&spec(1.0, 1e-6, 2), 5000), &logits, 3), 0);
        // Almost everything is wanted, and most of it is far below the peak.
        let steep: Vec<f32> = (0..2000u16).map(|id| -0.04 * f32::from(id)).collect();
        assert!(chooser(&spec(1.0, 0.999_999_9, 2), 2000).choose(&steep, 0).is_ok());
    }

    #[test]
    fn a_draw_depends_on_seed_and_index_alone() {
        let logits = [0.0; 64];
        let draw = |seed, index| choose(&mut chooser(&spec(0.8, 0.9, seed), 64), &logits, index);
        assert_eq!(draw(1, 7), draw(1, 7));
        assert!((0..20).any(|index| draw(1, index) != draw(2, index)));
        assert!((1..20).any(|index| draw(1, index) != draw(1, 0)));
        let mut used = chooser(&spec(0.8, 0.9, 1), 64);
        choose(&mut used, &row(64, 3), 0);
        assert_eq!(choose(&mut used, &logits, 7), draw(1, 7));
    }

    #[test]
    fn penalties_count_the_answer_s_tokens_and_bias_shifts() {
        let logits = [1.0, 0.9, 0.0];
        let penalised = SamplingSpec { presence_penalty: 0.15, frequency_penalty: 0.5, ..SamplingSpec::greedy() };
        let mut chooser = chooser(&penalised, 3);
        let answer: Vec<u32> = (0..5)
            .map(|index| {
                let id = choose(&mut chooser, &logits, index);
                chooser.took(id).expect("no grammar");
                id
            })
            .collect();
        assert_eq!(answer, [0, 1, 0, 1, 2]);
        let biased = SamplingSpec { logit_bias: vec![(0, -100.0), (2, 1.0)], ..SamplingSpec::greedy() };
        assert_eq!(choose(&mut Chooser::new(&biased, 3, None).expect("within ranges"), &logits, 0), 2);
    }

    #[test]
    fn logprobs_are_the_log_softmax_of_the_row() {
        let logits = [2.0, f32::NAN, 2.0, 0.5, -1.0];
        let told = SamplingSpec { logprobs: Some(3), logit_bias: vec![(4, 50.0)], ..spec(0.7, 1.0, 3) };
        let chosen = Chooser::new(&told, 5, None).expect("within ranges").choose(&logits, 0).expect("chosen");
        let sum: f64 = logits.iter().filter(|logit| !logit.is_nan()).map(|logit| f64::from(*logit).exp()).sum();
        let expected = |id: u32| (f64::from(logits[id as usize]) - sum.ln()) as f32;
        let Logprobs { taken, top } = chosen.logprobs.expect("asked for");
        assert_eq!(taken.0, 4);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 2, 3]);
        for (id, logprob) in top.into_iter().chain([taken]) {
            assert!((logprob - expected(id)).abs() < 1e-6, "{id}");
        }
    }

    #[test]
    fn absurd_wishes_are_refused_by_name() {
        let plain = SamplingSpec::greedy();
        let refused = [
            (SamplingSpec { temperature: f32::NAN, ..plain.clone() }, "temperature"),
            (SamplingSpec { temperature: 2.1, ..plain.clone() }, "temperature"),
            (SamplingSpec { top_p: 0.0, ..plain.clone() }, "top_p"),
            (SamplingSpec { presence_penalty: -3.0, ..plain.clone() }, "presence_penalty"),
            (SamplingSpec { frequency_penalty: f32::INFINITY, ..plain.clone() }, "frequency_penalty"),
            (SamplingSpec { logit_bias: vec![(9, 1.0)], ..plain.clone() }, "logit_bias"),
            (SamplingSpec { logit_bias: vec![(1, 101.0)], ..plain.clone() }, "logit_bias"),
            (SamplingSpec { logit_bias: vec![(1, 0.0); MAX_BIASES + 1], ..plain.clone() }, "logit_bias"),
            (SamplingSpec { logprobs: Some(21), ..plain }, "top_logprobs"),
        ];
        for (spec, field) in refused {
            let words = Chooser::new(&spec, 9, None).err().map(|error| error.to_string());
            assert!(words.is_some_and(|words| words.starts_with(field)), "{field}");
        }
        // The smallest temperature there is divides without becoming no number.
        assert_eq!(choose(&mut chooser(&spec(f32::from_bits(1), 0.5, 0), 3), &[1.0, 2.0, 0.0], 0), 1);
    }
}
