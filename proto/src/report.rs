//! What jobs report: plain counts and figures that people and programs read. Nothing here can hold clinical text.

use crate::ids::{AdapterId, DatasetId, JobId};
use crate::record::{Domain, words};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What happened to the records of one or more sources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestReport {
    /// Source files read.
    pub files: u64,
    /// Records found in them.
    pub read: u64,
    /// Records sealed as training targets.
    pub accepted: u64,
    /// Records sealed as negatives for evaluation, never targets.
    pub negatives: u64,
    /// Records refused.
    pub rejected: u64,
    /// Records that the store already had.
    pub duplicates: u64,
    /// Refusals, negatives and duplicates by rule.
    pub reasons: BTreeMap<String, u64>,
    /// Identifiers found in sealed records.
    pub phi_spans: u64,
    /// Accepted targets that carry an unsafe or low-quality label. Must be zero.
    pub targets_unsafe: u64,
    /// Accepted targets by profile.
    pub by_profile: BTreeMap<String, u64>,
    /// Accepted targets by domain.
    pub by_domain: BTreeMap<String, u64>,
}

impl IngestReport {
    /// Adds another report to this one.
    pub fn add(&mut self, other: &IngestReport) {
        self.files += other.files;
        self.read += other.read;
        self.accepted += other.accepted;
        self.negatives += other.negatives;
        self.rejected += other.rejected;
        self.duplicates += other.duplicates;
        self.phi_spans += other.phi_spans;
        self.targets_unsafe += other.targets_unsafe;
        for (mine, theirs) in [
            (&mut self.reasons, &other.reasons),
            (&mut self.by_profile, &other.by_profile),
            (&mut self.by_domain, &other.by_domain),
        ] {
            for (key, count) in theirs {
                *mine.entry(key.clone()).or_default() += count;
            }
        }
    }
}

/// One dataset cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetSummary {
    /// Its identifier.
    pub id: DatasetId,
    /// Digest over the ordered record ids and the rule of the split, hexadecimal.
    pub hash: String,
    /// Consent epoch at which it was cut.
    pub consent_epoch: u64,
    /// Records to train on.
    pub train: u64,
    /// Records held out, of clients that are not in `train`.
    pub validation: u64,
    /// Milliseconds since the Unix epoch.
    pub cut_at_ms: u64,
}

words! {
    /// Where an adapter generation stands.
    AdapterState {
        /// Trained, not yet through its gate, or refused by it.
        Candidate = "candidate",
        /// Passed its gate; may be promoted.
        Approved = "approved",
        /// Answers with it.
        Active = "active",
        /// Was active, or its data was erased.
        Retired = "retired",
    }

    /// Where a job stands.
    JobState {
        /// Works.
        Running = "running",
        /// Stopped on request or by a restart; can go on from its checkpoint.
        Paused = "paused",
        /// Done.
        Finished = "finished",
        /// Ended with a problem.
        Failed = "failed",
        /// Goes on by itself when its window opens.
        Waiting = "waiting",
    }

    /// What part of training is under way.
    TrainPhase {
        /// Examples are sent and tokenised.
        Preparing = "preparing",
        /// The held-out records are measured.
        Validating = "validating",
        /// Steps are taken.
        Stepping = "stepping",
        /// The adapter goes through its gate.
        Gating = "gating",
        /// Over.
        Done = "done",
    }

    /// Why training took no more steps.
    #[derive(Default)]
    EndReason {
        /// All planned steps were taken.
        #[default]
        Steps = "steps",
        /// Its time was over before its plan was.
        Deadline = "deadline",
        /// Validation did not get better any more.
        Patience = "patience",
        /// It was told to.
        Command = "command",
        /// The loss or the gradient was not a number; the last good weights were kept.
        Diverged = "diverged",
    }
}

/// Fewer items than this are called a small sample.
pub const SMALL_SAMPLE_ITEMS: u64 = 30;

words! {
    /// On which side of its limit a figure has to stay.
    BoundRule {
        /// Below it or equal.
        AtMost = "at_most",
        /// Above it or equal.
        AtLeast = "at_least",
    }
}

/// One bound of the gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateBound {
    /// Its name, such as `validation_loss`.
    pub name: String,
    /// What was measured.
    pub measured: f64,
    /// What it was held against.
    pub limit: f64,
    /// On which side of the limit it has to stay.
    pub rule: BoundRule,
    /// Items it was measured on; 0 where nothing is counted.
    pub items: u64,
    /// Whether it held.
    pub held: bool,
}

impl GateBound {
    /// A bound with its outcome. What is not a number has not held.
    #[must_use]
    pub fn new(name: impl Into<String>, measured: f64, rule: BoundRule, limit: f64, items: u64) -> Self {
        let held = match rule {
            BoundRule::AtMost => measured <= limit,
            BoundRule::AtLeast => measured >= limit,
        };
        Self { name: name.into(), measured, limit, rule, items, held }
    }

    /// Whether it was measured on few items, so that one more or less of them could turn it.
    #[must_use]
    pub const fn is_small(&self) -> bool {
        self.items > 0 && self.items < SMALL_SAMPLE_ITEMS
    }
}

impl std::fmt::Display for GateBound {
    /// `crisis_recall 0.4583, at least 0.5000, 24 items`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = match self.rule {
            BoundRule::AtMost => "at most",
            BoundRule::AtLeast => "at least",
        };
        write!(f, "{} {:.4}, {side} {:.4}", self.name, self.measured, self.limit)?;
        if self.items > 0 {
            write!(f, ", {} items", self.items)?;
        }
        Ok(())
    }
}

/// What one suite measured of the base model, of the generation that answered meanwhile, and of the candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateFigure {
    /// Its name, such as `crisis_recall`.
    pub name: String,
    /// Items it was measured on.
    pub items: u64,
    /// Of the plain base model; absent where it has none.
    pub base: Option<f64>,
    /// Of the active generation; absent without one.
    pub active: Option<f64>,
    /// Of the candidate.
    pub candidate: f64,
}

/// What the gate found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GateReport {
    /// Version of the built-in probes; 0 before there were any.
    pub suite: u32,
    /// The generation that was active and was measured beside the candidate.
    pub against: Option<AdapterId>,
    /// What was measured.
    pub figures: Vec<GateFigure>,
    /// Each bound in the order it was checked.
    pub bounds: Vec<GateBound>,
}

impl GateReport {
    /// Whether there were bounds and each one held.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.bounds.is_empty() && self.bounds.iter().all(|bound| bound.held)
    }

    /// The bounds that did not hold.
    pub fn failed(&self) -> impl Iterator<Item = &GateBound> {
        self.bounds.iter().filter(|bound| !bound.held)
    }

    /// The bounds that did not hold, in words.
    #[must_use]
    pub fn reasons(&self) -> String {
        self.failed().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

/// One adapter generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterSummary {
    /// Its identifier.
    pub id: AdapterId,
    /// Where it stands.
    pub state: AdapterState,
    /// The cut it learned from.
    pub dataset: DatasetId,
    /// The job that made it.
    pub job: JobId,
    /// Size of its weights.
    pub bytes: u64,
    /// BLAKE3 of its weights, hexadecimal.
    pub digest: String,
    /// Milliseconds since the Unix epoch.
    pub made_at_ms: u64,
    /// What training measured.
    pub train: TrainReport,
    /// What the gate found, once it ran.
    pub gate: Option<GateReport>,
}

/// Progress of training, sent after every step and validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainProgress {
    /// What is under way.
    pub phase: TrainPhase,
    /// Steps taken.
    pub step: u32,
    /// Steps planned.
    pub steps: u32,
    /// Mean loss per target token of the last step.
    pub loss: f64,
    /// Last validation loss, before the first one `None`.
    pub val_loss: Option<f64>,
    /// Tokens processed since the job began or resumed.
    pub tokens: u64,
    /// Tokens per second since the job began or resumed.
    pub tok_s: f64,
    /// Estimated seconds until the end.
    pub left_s: f64,
}

/// What a finished training measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainReport {
    /// Optimiser steps taken.
    pub steps: u32,
    /// Tokens processed, context included.
    pub tokens: u64,
    /// Tokens that were targets.
    pub target_tokens: u64,
    /// Tokens per second over the steps.
    pub tok_s: f64,
    /// Trainable parameters.
    pub trainable: u64,
    /// Loss per target token on held-out records before the first step.
    pub val_loss_before: f64,
    /// The same for the weights that were kept.
    pub val_loss_after: f64,
    /// The same, by domain: before and after.
    pub val_by_domain: BTreeMap<String, (f64, f64)>,
    /// Names of the routed experts, in their order.
    pub experts: Vec<String>,
    /// Share of routed tokens each expert took over the steps, summing to one.
    pub expert_load: Vec<f64>,
    /// Domains that had too little data for an expert of their own.
    pub folded_domains: Vec<Domain>,
    /// Training loss by step.
    pub loss_curve: Vec<f32>,
    /// Whether it ended early by command or by patience.
    pub stopped_early: bool,
    /// Step from which it was resumed, when it was.
    pub resumed_from: Option<u32>,
    /// Why it took no more steps.
    pub ended: EndReason,
    /// Tokens of one pass, as frozen before the first step.
    pub pass_tokens: u32,
    /// Passes of one step.
    pub passes_per_step: u32,
    /// What was decided from clocks, the oldest first. With these decisions, the same examples and the same settings, the
    /// same machine makes the same weights bit for bit.
    pub plans: Vec<PlanChange>,
    /// Exchanges that were longer than a sequence and were left out.
    pub left_out: u64,
}

/// From a step on, training has so many steps in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanChange {
    /// Steps taken when it was decided.
    pub at_step: u32,
    /// Steps in all.
    pub steps: u32,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainStatus {
    /// Its identifier.
    pub job: JobId,
    /// Where it stands.
    pub state: JobState,
    /// The cut it learns from.
    pub dataset: DatasetId,
    /// Last progress known.
    pub progress: Option<TrainProgress>,
    /// The adapter it made, once finished.
    pub adapter: Option<AdapterId>,
    /// Why it failed, without clinical text.
    pub error: Option<String>,
}
