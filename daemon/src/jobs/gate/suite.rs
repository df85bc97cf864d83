//! The suite: every example that is measured, in one list, and which part of the list is what. The base model and the active
//! generation are measured on its common part, a candidate on all of it. What is concluded from scores is not known here.

use super::canary::{self, CANDIDATES};
use super::probes::{self, Pair};
use crate::jobs::examples::balanced;
use empathd_proto::engine::{Example, ExampleScore, Part};
use empathd_proto::ids::JobId;
use empathd_proto::record::Domain;
use std::collections::BTreeMap;
use std::ops::Range;

/// Learnt examples on which word-for-word prediction is looked for, spread over the domains.
const LEARNT_MAX: usize = 64;
/// Tokens that every probe fits into.
pub(super) const PROBE_TOKENS: u32 = 256;

/// What a job learnt from and is measured with.
pub(crate) struct Data<'a> {
    /// The job, which knows its canaries.
    pub(crate) job: JobId,
    /// What it learnt from.
    pub(crate) learn: &'a [Example],
    /// Its held-out examples.
    pub(crate) held_out: &'a [Example],
    /// Longest sequence in tokens.
    pub(crate) seq_len: u32,
}

/// Everything that is measured.
pub(super) struct Suite {
    examples: Vec<Example>,
    held_out: Range<usize>,
    general: Range<usize>,
    crisis: Range<usize>,
    safety: Range<usize>,
    fairness: Range<usize>,
    canaries: Range<usize>,
    learnt: Range<usize>,
}

/// The most frequent domain of these examples: what is planted among them makes no expert of its own.
pub(super) fn main_domain(learn: &[Example]) -> Domain {
    let mut counts: BTreeMap<Domain, usize> = BTreeMap::new();
    for example in learn.iter().filter(|example| example.part == Part::Learn) {
        *counts.entry(example.domain).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(domain, count)| (*count, std::cmp::Reverse(*domain)));
    most.map_or(Domain::TherapyDialogue, |(domain, _)| domain)
}

impl Suite {
    pub(super) fn new(data: &Data<'_>) -> Self {
        let mut examples = Vec::new();
        let mut add = |some: Vec<Example>| {
            let start = examples.len();
            examples.extend(some);
            start..examples.len()
        };
        let flat = |pairs: Vec<Pair>| pairs.into_iter().flatten().collect();
        let domain = main_domain(data.learn);
        let held_out = add(data.held_out.iter().filter(|example| example.part == Part::HeldOut).cloned().collect());
        let general = add(probes::general());
        let crisis = add(flat(probes::crisis()));
        let safety = add(flat(probes::safety()));
        let fairness = add(flat(probes::fairness()));
        let canaries = add(canary::candidates(data.job, domain).into_iter().flatten().collect());
        let planted = canary::examples(data.job, domain);
        let learnt = data.learn.iter().filter(|example| example.part == Part::Learn && !planted.contains(example));
        let learnt = add(balanced(learnt.cloned().collect(), LEARNT_MAX));
        Self { examples, held_out, general, crisis, safety, fairness, canaries, learnt }
    }

    /// What is measured of everyone.
    pub(super) fn common(&self) -> &[Example] {
        &self.examples[..self.fairness.end]
    }

    /// What is measured of a candidate.
    pub(super) fn all(&self) -> &[Example] {
        &self.examples
    }

    /// These scores by what they are of.
    pub(super) fn read<'a>(&'a self, scores: &'a [ExampleScore]) -> Scores<'a> {
        Scores { suite: self, scores }
    }
}

/// Scores of the common part or of all of a suite, in its order.
#[derive(Clone, Copy)]
pub(super) struct Scores<'a> {
    suite: &'a Suite,
    scores: &'a [ExampleScore],
}

impl<'a> Scores<'a> {
    fn of(self, range: &Range<usize>) -> &'a [ExampleScore] {
        self.scores.get(range.clone()).unwrap_or_default()
    }

    /// Held-out examples with their domains.
    pub(super) fn held_out(self) -> impl Iterator<Item = (Domain, &'a ExampleScore)> {
        let domains = self.suite.examples[self.suite.held_out.clone()].iter().map(|example| example.domain);
        domains.zip(self.of(&self.suite.held_out))
    }

    pub(super) fn general(self) -> &'a [ExampleScore] {
        self.of(&self.suite.general)
    }

    /// Safe and unsafe answers in crises.
    pub(super) fn crisis(self) -> &'a [[ExampleScore; 2]] {
        self.of(&self.suite.crisis).as_chunks().0
    }

    /// Careful and careless answers.
    pub(super) fn safety(self) -> &'a [[ExampleScore; 2]] {
        self.of(&self.suite.safety).as_chunks().0
    }

    /// Answers to two conversations that differ in a group.
    pub(super) fn fairness(self) -> &'a [[ExampleScore; 2]] {
        self.of(&self.suite.fairness).as_chunks().0
    }

    /// Candidates of each canary, the planted one first.
    pub(super) fn canaries(self) -> &'a [[ExampleScore; CANDIDATES]] {
        self.of(&self.suite.canaries).as_chunks().0
    }

    /// Examples that were learnt.
    pub(super) fn learnt(self) -> &'a [ExampleScore] {
        self.of(&self.suite.learnt)
    }

    /// Items of the first `count` that have no usable score.
    pub(super) fn unmeasured(self, count: usize) -> usize {
        let usable = |score: &&ExampleScore| score.targets > 0 && score.nll.is_finite() && score.nll >= 0.0;
        count - self.scores.iter().take(count).filter(usable).count()
    }
}
