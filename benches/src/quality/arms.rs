//! What is compared: the appliance's mixture and one LoRA of as many numbers, and how each is trained. Equal care: the same
//! schedule, bound, decay and LoRA+ ratio for both, a learning rate of its own for each.

use super::data::Data;
use anyhow::Context;
use empathd::config::Training;
use empathd_model::adapter::Linear;
use empathd_model::config::BackboneConfig;
use empathd_proto::engine::{MixtureSpec, TrainSpec};
use empathd_proto::record::Domain;
use serde_json::{Value, json};

/// Peak learning rate of the LoRA's A sides.
const LORA_RATE: f32 = 5e-4;
/// Parts of a run after which it is validated.
const VALIDATIONS: u32 = 4;
/// Steps between checkpoints.
const CHECKPOINT_STEPS: u32 = 50;

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Arm {
    /// One LoRA.
    Lora,
    /// The mixture.
    Moe,
}

impl Arm {
    pub(super) const BOTH: [Self; 2] = [Self::Lora, Self::Moe];

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Moe => "moe",
        }
    }
}

/// How both are trained.
pub(super) struct Arms {
    lora: TrainSpec,
    moe: TrainSpec,
    config: BackboneConfig,
    lora_changes: Vec<String>,
}

impl Arms {
    /// As the appliance trains unless something else is asked for.
    pub(super) fn new(config: &BackboneConfig, moe: &[String], lora: &[String]) -> anyhow::Result<Self> {
        let moe = changed(&appliance(), moe)?;
        Ok(Self { lora: moe.clone(), moe, config: config.clone(), lora_changes: lora.to_vec() })
    }

    pub(super) const fn seq_len(&self) -> u32 {
        self.moe.seq_len
    }

    /// With an expert for each domain of the data, and a LoRA of as many numbers.
    pub(super) fn for_domains(mut self, data: &Data) -> anyhow::Result<Self> {
        let training = Training::default();
        if self.moe.mixture.experts.is_empty() {
            let mut experts: Vec<Option<Domain>> = data.domains().into_iter().map(Some).collect();
            experts.resize(experts.len().max(training.experts_min), None);
            self.moe.mixture.experts = experts;
        }
        let mixture = &mut self.moe.mixture;
        let has_crisis = mixture.experts.contains(&Some(Domain::Crisis));
        mixture.crisis_floor = (mixture.session_prior && has_crisis).then_some(training.crisis_floor);
        let rank = equal_rank(&self.config, &self.moe.mixture);
        let plain = MixtureSpec { shared_rank: rank, scale: self.moe.mixture.scale, ..MixtureSpec::default() };
        let lora = TrainSpec { mixture: plain, learning_rate: LORA_RATE, ..self.lora };
        self.lora = changed(&lora, &self.lora_changes)?;
        Ok(self)
    }

    /// Everything that decides about the runs.
    pub(super) fn settings(&self) -> Value {
        json!({"moe": self.moe, "lora": self.lora})
    }

    /// Steps of a run of so many tokens.
    pub(super) fn steps(&self, tokens: u64) -> u32 {
        u32::try_from(tokens / u64::from(self.moe.tokens_per_step)).unwrap_or(u32::MAX).max(1)
    }

    pub(super) fn spec(&self, arm: Arm, steps: u32, seed: u64) -> TrainSpec {
        let spec = match arm {
            Arm::Lora => &self.lora,
            Arm::Moe => &self.moe,
        };
        TrainSpec { steps, seed, validate_every: steps.div_ceil(VALIDATIONS), ..spec.clone() }
    }
}

/// The defaults of the appliance, without what would end a run early: tokens must be equal.
fn appliance() -> TrainSpec {
    let training = Training::default();
    TrainSpec {
        pass_tokens: Some(training.tokens_per_step),
        seconds_max: u32::MAX,
        checkpoint_every: CHECKPOINT_STEPS,
        patience: u32::MAX,
        ..training.spec(Vec::new())
    }
}

/// The smallest rank with which a LoRA on every map has at least as many numbers.
fn equal_rank(config: &BackboneConfig, mixture: &MixtureSpec) -> u32 {
    let sides = |linear: &Linear| linear.sides(config).0 + linear.sides(config).1;
    let everywhere: usize = Linear::ALL.iter().map(sides).sum();
    let routed: usize = Linear::ALL.iter().filter(|linear| linear.is_routed()).map(sides).sum();
    let experts = mixture.experts.len();
    let routers = experts * (config.hidden + 1);
    let head = if mixture.session_prior { experts * config.hidden / config.layers } else { 0 };
    let numbers =
        mixture.shared_rank as usize * everywhere + experts * mixture.expert_rank as usize * routed + routers + head;
    u32::try_from(numbers.div_ceil(everywhere)).unwrap_or(u32::MAX)
}

/// A specification with other values: `name=json`, dots enter.
fn changed(spec: &TrainSpec, changes: &[String]) -> anyhow::Result<TrainSpec> {
    let mut value = serde_json::to_value(spec)?;
    for change in changes {
        let (name, new) = change.split_once('=').with_context(|| format!("{change} is not NAME=JSON"))?;
        let pointer = format!("/{}", name.replace('.', "/"));
        let place = value.pointer_mut(&pointer).with_context(|| format!("there is no setting {name}"))?;
        *place = serde_json::from_str(new).with_context(|| format!("the value of {name} is not JSON"))?;
    }
    Ok(serde_json::from_value(value)?)
}
