//! What training is asked for and what it tells: examples, the shape of a mixture, schedule and losses, scores and curves.
//! Words of the conversation between the daemon and the engine; how a mixture is trained is not known here.

use crate::generate::PlainMessage;
use crate::ids::JobId;
use crate::record::{Domain, words};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

words! {
    /// What an example is for.
    Part {
        /// Its answers are learnt.
        Learn = "learn",
        /// Held out: validation, by domain.
        HeldOut = "held_out",
        /// General and safety text on which the mixture shall say what the base model says: learnt by divergence alone.
        Replay = "replay",
        /// General text that is measured and never learnt: a guard.
        General = "general",
        /// Crisis items that are measured and never learnt: a guard.
        CrisisItem = "crisis_item",
    }

    /// A linear map of a layer, by the name that PEFT gives it.
    LinearName {
        /// Queries.
        Query = "q_proj",
        /// Keys.
        Key = "k_proj",
        /// Values.
        Value = "v_proj",
        /// Heads back into the stream.
        Output = "o_proj",
        /// Gate of the feed-forward part.
        Gate = "gate_proj",
        /// Its other half.
        Up = "up_proj",
        /// Back into the stream.
        Down = "down_proj",
    }

    /// Which weights move.
    TrainOnly {
        /// Every trained weight.
        All = "all",
        /// Routers, their prior weights and the session head.
        Routers = "routers",
    }
}

/// One training or evaluation example: a de-identified conversation.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Its domain.
    pub domain: Domain,
    /// What it is for.
    pub part: Part,
    /// Its messages; the assistant's are the targets.
    pub messages: Vec<PlainMessage>,
}

impl std::fmt::Debug for Example {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Example({}, {}, {} messages)", self.domain, self.part, self.messages.len())
    }
}

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSpec {
    /// The job, mixed into nothing: the seed alone decides.
    pub job: JobId,
    /// Shape of the mixture.
    pub mixture: MixtureSpec,
    /// Which weights move.
    pub only: TrainOnly,
    /// Longest sequence in tokens; longer examples are cut at the end of a turn.
    pub seq_len: u32,
    /// Tokens of one optimiser step, padding excluded.
    pub tokens_per_step: u32,
    /// Tokens of one pass; searched before the first step when absent.
    pub pass_tokens: Option<u32>,
    /// Steps to take.
    pub steps: u32,
    /// Most wall-clock seconds; the schedule is shortened when the measured speed would pass it.
    pub seconds_max: u32,
    /// Peak learning rate of the low-rank weights' A sides.
    pub learning_rate: f32,
    /// Times faster that B sides learn (LoRA+, Hayou et al. 2024).
    pub b_rate_ratio: f32,
    /// Peak learning rate of routers, prior weights and the session head.
    pub router_learning_rate: f32,
    /// Decoupled weight decay; none on routers.
    pub weight_decay: f32,
    /// Share of steps over which the rate rises.
    pub warmup: f32,
    /// Bound of the global gradient norm.
    pub clip: f32,
    /// Steps between validations.
    pub validate_every: u32,
    /// Steps between checkpoints.
    pub checkpoint_every: u32,
    /// Validations without a better one before it stops.
    pub patience: u32,
    /// What lowers the rate beside the schedule.
    pub plateau: Plateau,
    /// How labels guide routers with time.
    pub stages: Stages,
    /// Weights of the losses beside the language loss.
    pub losses: LossSpec,
    /// What the kept weights must hold to.
    pub guards: Guards,
    /// Seed of initialisation and order.
    pub seed: u64,
}

/// The rate falls when validation stops getting better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plateau {
    /// Validations without a better one before the rate falls; 0 switches it off.
    pub patience: u32,
    /// What the rate is multiplied by.
    pub factor: f32,
}

impl Default for Plateau {
    fn default() -> Self {
        Self { patience: 2, factor: 0.5 }
    }
}

/// The stages of a run, by share of its progress.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stages {
    /// Until here only the shared part learns.
    pub shared_until: f32,
    /// Until here labels route, with a probability that falls from one to a half; behind it to none at the end.
    pub forced_until: f32,
}

impl Default for Stages {
    fn default() -> Self {
        Self { shared_until: 0.05, forced_until: 0.5 }
    }
}

/// Weights of the losses beside the language loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossSpec {
    /// Session prior against the domain's experts.
    pub session: f32,
    /// Mean of the routers against the domain's experts, at the beginning.
    pub route: f32,
    /// The same at the end.
    pub route_end: f32,
    /// Balance of the experts against the label prior.
    pub balance: f32,
    /// Square of the routers' logsumexp.
    pub z: f32,
    /// Likeness of the experts' A sides.
    pub orthogonal: f32,
    /// Divergence from the base model on replayed text.
    pub base_kl: f32,
    /// Share of a step's tokens that are replayed, as far as there is replay.
    pub replay_share: f32,
}

impl Default for LossSpec {
    fn default() -> Self {
        Self {
            session: 0.1,
            route: 0.05,
            route_end: 0.01,
            balance: 1e-2,
            z: 1e-3,
            orthogonal: 1e-4,
            base_kl: 0.05,
            replay_share: 0.05,
        }
    }
}

/// What weights must hold to before they are kept as the best.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guards {
    /// Most that the loss of general text may rise over the base model's, nats per token.
    pub general_rise_max: f32,
    /// Most that the loss of crisis items may rise over the base model's, nats per token.
    pub crisis_rise_max: f32,
}

impl Default for Guards {
    fn default() -> Self {
        Self { general_rise_max: 0.05, crisis_rise_max: 0.02 }
    }
}

/// Shape of the mixture of experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MixtureSpec {
    /// Rank of the shared low-rank pair.
    pub shared_rank: u32,
    /// Rank of each routed expert on the feed-forward linears.
    pub expert_rank: u32,
    /// What each expert is for; `None` is free.
    pub experts: Vec<Option<Domain>>,
    /// Experts a token takes.
    pub top_k: u32,
    /// `alpha / rank`.
    pub scale: f32,
    /// Linear maps that have the shared pair.
    #[serde(default = "every_linear")]
    pub shared_on: Vec<LinearName>,
    /// Whether routers hear what the session is about.
    #[serde(default)]
    pub session_prior: bool,
    /// What a session in crisis is sure of.
    #[serde(default)]
    pub crisis_floor: Option<CrisisFloor>,
}

fn every_linear() -> Vec<LinearName> {
    LinearName::ALL.to_vec()
}

impl Default for MixtureSpec {
    /// A plain LoRA of rank 16 on every linear map.
    fn default() -> Self {
        Self {
            shared_rank: 16,
            expert_rank: 0,
            experts: Vec::new(),
            top_k: 0,
            scale: 2.0,
            shared_on: every_linear(),
            session_prior: false,
            crisis_floor: None,
        }
    }
}

/// Where the session prior sees a crisis, the crisis expert takes part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CrisisFloor {
    /// Session probability of the crisis expert above which it holds.
    pub above: f32,
    /// Least gate of the crisis expert then.
    pub floor: f32,
}

impl Default for CrisisFloor {
    fn default() -> Self {
        Self { above: 0.5, floor: 0.3 }
    }
}

/// What was measured of one example.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExampleScore {
    /// Sum of the loss over its targets, nats.
    pub nll: f64,
    /// Targets measured; 0 when it holds no answer.
    pub targets: u32,
    /// Longest run of targets that were each the likeliest token.
    pub longest_run: u32,
    /// Session prior where its last answer begins, by expert: what was known before it was given; empty without one.
    pub session: Vec<f32>,
}

/// Loss of held-out examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean loss per target token over all.
    pub loss: f64,
    /// The same by domain.
    pub by_domain: BTreeMap<String, f64>,
    /// Target tokens measured.
    pub target_tokens: u64,
}

impl Evaluation {
    /// What these scores say of examples of these domains together.
    #[must_use]
    pub fn of<'a>(scored: impl IntoIterator<Item = (Domain, &'a ExampleScore)>) -> Self {
        let mut sums: BTreeMap<String, (f64, u64)> = BTreeMap::new();
        for (domain, score) in scored.into_iter().filter(|(_, score)| score.targets > 0) {
            let sum = sums.entry(domain.as_str().to_owned()).or_default();
            *sum = (sum.0 + score.nll, sum.1 + u64::from(score.targets));
        }
        let (nll, target_tokens) = sums.values().fold((0.0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        let by_domain = sums.into_iter().map(|(domain, (nll, count))| (domain, nll / count as f64)).collect();
        Self { loss: nll / target_tokens as f64, by_domain, target_tokens }
    }

    /// Mean of the domains' losses; not a number without any.
    #[must_use]
    pub fn macro_loss(&self) -> f64 {
        self.by_domain.values().sum::<f64>() / self.by_domain.len() as f64
    }
}

/// One point of the curves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CurvePoint {
    /// An optimiser step.
    Step(StepPoint),
    /// A validation.
    Validation(ValidationPoint),
}

/// What one optimiser step measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepPoint {
    /// Steps taken with it.
    pub step: u32,
    /// Language loss per target, nats.
    pub loss: f32,
    /// The other losses by name, each before its weight.
    pub parts: BTreeMap<String, f32>,
    /// Norm of the gradient before it was bounded.
    pub grad_norm: f32,
    /// Learning rate of the A sides.
    pub rate: f32,
    /// Tokens per second of this step.
    pub tok_s: f32,
    /// Share of choices each expert took; empty without experts.
    pub expert_load: Vec<f32>,
    /// Mean entropy of the routers' decisions, nats; 0 without experts.
    pub routing_entropy: f32,
}

/// What one validation measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ValidationPoint {
    /// Steps taken before it.
    pub step: u32,
    /// Loss per target by domain, nats.
    pub by_domain: BTreeMap<String, f64>,
    /// Mean of the domains.
    pub macro_loss: f64,
    /// Loss of general text, when there is any.
    pub general: Option<f64>,
    /// Loss of crisis items, when there are any.
    pub crisis_items: Option<f64>,
    /// Whether these weights are the best so far.
    pub is_best: bool,
}
