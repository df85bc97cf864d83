//! The claim of training: tokens a second and memory of a mixture over random weights of the reference shape (30 layers,
//! 576 wide, 1,536, 9 heads with 3 for keys, vocabulary 49,152), a target at every token.

use crate::measure::{Figures, peak_rss_mib, rounded};
use candle_core::{Device, Tensor};
use empathd_model::backbone::Backbone;
use empathd_model::config::{Architecture, BackboneConfig, RopeScaling};
use empathd_model::train::{Encode, EncodeError, Encoded, Observer, train};
use empathd_proto::JobId;
use empathd_proto::chat::ChatRole;
use empathd_proto::engine::{Example, Guards, LossSpec, MixtureSpec, Part, Plateau, Stages, TrainOnly, TrainSpec};
use empathd_proto::generate::PlainMessage;
use empathd_proto::record::Domain;
use empathd_proto::report::TrainProgress;
use std::ops::ControlFlow;
use std::time::Instant;

/// Standard deviation of the random weights, as models are initialised.
const WEIGHT_DEVIATION: f32 = 0.02;
/// Experts and rank of the measured mixture.
const EXPERTS: usize = 8;
const RANK: u32 = 16;

/// Options of the claim.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Tokens of a sequence
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=8192))]
    seq: u32,
    /// Sequences of a step
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    batch: u32,
    /// Steps
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
}

fn reference_shape() -> BackboneConfig {
    BackboneConfig {
        architecture: Architecture::Llama,
        vocab: 49_152,
        hidden: 576,
        ffn: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        context: 8192,
        rms_eps: 1e-5,
        rope_theta: 100_000.0,
        rope_scaling: RopeScaling::None,
        tied_head: true,
    }
}

pub(crate) fn measure(options: &Options) -> anyhow::Result<Figures> {
    let device = empathd_model::device::open()?;
    let base = Backbone::new(reference_shape(), &mut |name, shape| weight(name, shape, &device), &device)?;
    let tokens = Tokens { length: options.seq as usize, vocab: base.config().vocab };
    let examples = examples(options);
    let began = Instant::now();
    let now = || began.elapsed();
    let mut observer = Quiet { printed: Instant::now() };
    let trained = train(&base, [0; 32], &tokens, &spec(options), &examples, None, &now, &mut observer)?;
    let mut figures = Figures::new();
    figures.insert("tok_s_moe_e8_r16".into(), rounded(trained.report.tok_s));
    figures.insert("tokens".into(), trained.report.tokens.into());
    figures.insert("trainable_moe_e8_r16".into(), trained.report.trainable.into());
    figures.insert("peak_rss_mib".into(), peak_rss_mib().into());
    Ok(figures)
}

/// Norms are one, everything else is random.
fn weight(name: &str, shape: &[usize], device: &Device) -> candle_core::Result<Tensor> {
    if name.contains("norm") {
        return Tensor::ones(shape, candle_core::DType::F32, device);
    }
    Tensor::randn(0.0, WEIGHT_DEVIATION, shape, device)
}

fn spec(options: &Options) -> TrainSpec {
    TrainSpec {
        job: JobId::from_bytes([1; 16]),
        mixture: MixtureSpec {
            shared_rank: RANK,
            expert_rank: RANK,
            experts: vec![None; EXPERTS],
            top_k: 2,
            scale: 2.0,
            ..MixtureSpec::default()
        },
        only: TrainOnly::All,
        seq_len: options.seq,
        tokens_per_step: options.seq * options.batch,
        pass_tokens: None,
        steps: options.steps,
        seconds_max: 3600,
        learning_rate: 1e-4,
        b_rate_ratio: 1.0,
        router_learning_rate: 1e-4,
        weight_decay: 0.0,
        warmup: 0.0,
        clip: 1.0,
        validate_every: options.steps,
        checkpoint_every: options.steps + 1,
        patience: 1,
        plateau: Plateau::default(),
        stages: Stages::default(),
        losses: LossSpec::default(),
        guards: Guards::default(),
        seed: 1,
    }
}

/// One example for each sequence, and one held out.
fn examples(options: &Options) -> Vec<Example> {
    let message = |n: u32| PlainMessage { role: ChatRole::Assistant, text: n.to_string() };
    let example = |n: u32| Example {
        domain: Domain::TherapyDialogue,
        part: if n == 0 { Part::HeldOut } else { Part::Learn },
        messages: vec![message(n)],
    };
    (0..=options.batch * options.steps).map(example).collect()
}

/// Gives each example its own run of ids, each of them a target.
struct Tokens {
    length: usize,
    vocab: usize,
}

impl Encode for Tokens {
    fn encode(&self, messages: &[PlainMessage]) -> Result<Encoded, EncodeError> {
        let number = messages.first().and_then(|message| message.text.parse::<u64>().ok());
        let number = number.ok_or_else(|| EncodeError("not a number".into()))?;
        let id = |n: u64| (n.wrapping_add(number * 7919).wrapping_mul(2_654_435_761) >> 7) % self.vocab as u64;
        let ids = (0..self.length as u64).map(|n| u32::try_from(id(n)).unwrap_or(0)).collect();
        Ok(Encoded { ids, target: vec![true; self.length] })
    }
}

/// Says each step on standard error.
struct Quiet {
    printed: Instant,
}

impl Observer for Quiet {
    fn progress(&mut self, progress: &TrainProgress) -> ControlFlow<()> {
        if self.printed.elapsed().as_secs() >= 1 {
            self.printed = Instant::now();
            eprintln!("step {} of {}, {:.0} tok/s", progress.step, progress.steps, progress.tok_s);
        }
        ControlFlow::Continue(())
    }

    fn checkpoint(&mut self, _step: u32, _bytes: Vec<u8>) {}

    fn between_layers(&mut self) {}
}
