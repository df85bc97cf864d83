//! The claim of training: tokens a second and memory of a LoRA and of a mixture over random weights of the reference shape
//! (30 layers, 576 wide, 1,536, 9 heads with 3 for keys, vocabulary 49,152), a target at every token, beside PyTorch with
//! PEFT in the same minute. Each measurement is a process of its own, so that its memory is its own.

use crate::measure::{Figures, peak_rss_mib, rounded};
use anyhow::{Context, ensure};
use empathd_model::adapter::Mixture;
use empathd_model::config::{Architecture, BackboneConfig, RopeScaling};
use empathd_model::train::{
    AdamW, Batch, Encoded, Goals, Gradients, Labelled, PlannedRouting, Precision, Rate, RouterPlan, RouterWeights,
    TrainError, Wanted,
};
use empathd_proto::engine::{LossSpec, MixtureSpec};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// Half the width of the random weights: a standard deviation of 0.02, as models are initialised.
const WEIGHT_BOUND: f32 = 0.034_64;
/// Experts and rank of the measured mixture; the rank of the measured LoRA.
const EXPERTS: usize = 8;
const RANK: u32 = 16;
/// As the peer's.
const LEARNING_RATE: f32 = 2e-4;
/// Bound of the gradient's norm, as the peer's.
const CLIP: f32 = 1.0;
/// Steps after which both precisions are compared.
const COMPARED_STEPS: u32 = 10;
/// Numeric formats of the peer.
const PEER_TYPES: [(&str, &str); 2] = [("float32", "f32"), ("bfloat16", "bf16")];

/// Options of the claim.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Tokens of a sequence
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=8192))]
    seq: u32,
    /// Sequences of a step
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    batch: u32,
    /// Steps that are measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// Threads that compute
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Python of the peer, with torch and peft
    #[arg(long, requires = "peer_script")]
    peer: Option<PathBuf>,
    /// Script of the peer: SEQ BATCH STEPS TYPE RANK -> one line of JSON
    #[arg(long, requires = "peer")]
    peer_script: Option<PathBuf>,
    /// One measurement alone, in this process
    #[arg(long, hide = true)]
    only: Option<Only>,
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// A LoRA on every linear map.
    Lora,
    /// The mixture in its last stage.
    Mixture,
    /// Losses of a LoRA as it is trained.
    Half,
    /// The same in f32.
    Single,
}

impl Only {
    const fn word(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Mixture => "mixture",
            Self::Half => "half",
            Self::Single => "single",
        }
    }
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
    if let Some(only) = options.only {
        return alone(options, only);
    }
    let mut figures = Figures::new();
    let number = |figures: &Figures, key: &str| figures.get(key).and_then(Value::as_f64).context("a figure is missing");
    let lora = child(options, Only::Lora)?;
    let mixture = child(options, Only::Mixture)?;
    let (lora_speed, mixture_speed) = (number(&lora, "tok_s")?, number(&mixture, "tok_s")?);
    figures.insert("tok_s_lora16".into(), rounded(lora_speed));
    figures.insert("tok_s_moe_e8_r16".into(), rounded(mixture_speed));
    figures.insert("moe_over_lora".into(), rounded(lora_speed / mixture_speed));
    let keys = [("peak_rss_mib", &lora), ("trainable", &lora)];
    keys.iter().for_each(|(key, of)| _ = figures.insert((*key).into(), of[*key].clone()));
    figures.insert("peak_rss_mib_moe".into(), mixture["peak_rss_mib"].clone());
    figures.insert("trainable_moe".into(), mixture["trainable"].clone());
    let (half, single) = (child(options, Only::Half)?, child(options, Only::Single)?);
    let (half, single) = (number(&half, "loss")?, number(&single, "loss")?);
    figures.insert("loss_f32".into(), single.into());
    figures.insert("loss_rel_diff_f32".into(), ((half - single).abs() / single).into());
    if let (Some(python), Some(script)) = (&options.peer, &options.peer_script) {
        beside(options, (python, script), &mut figures)?;
    }
    Ok(figures)
}

/// The peer's figures, and ours over its.
fn beside(options: &Options, (python, script): (&PathBuf, &PathBuf), figures: &mut Figures) -> anyhow::Result<()> {
    let own = |figures: &Figures, key: &str| figures[key].as_f64().unwrap_or(f64::NAN);
    let (mut fastest, mut leanest) = (0f64, f64::INFINITY);
    for (kind, word) in PEER_TYPES {
        let numbers = [options.seq, options.batch, options.steps].map(|number| number.to_string());
        let mut command = Command::new(python);
        command.arg(script).args(numbers).args([kind, &RANK.to_string()]);
        let found = said(command)?;
        let number =
            |key: &str| found.get(key).and_then(Value::as_f64).with_context(|| format!("the peer says no {key}"));
        let (speed, memory) = (number("tok_s")?, number("peak_rss_mib")?);
        ensure!(found["trainable"] == figures["trainable"], "the peer trains another number of weights");
        figures.insert(format!("peer_tok_s_{word}"), rounded(speed));
        figures.insert(format!("peer_rss_mib_{word}"), rounded(memory));
        (fastest, leanest) = (fastest.max(speed), leanest.min(memory));
    }
    figures.insert("tok_s_ratio".into(), rounded(own(figures, "tok_s_lora16") / fastest));
    figures.insert("rss_ratio".into(), rounded(own(figures, "peak_rss_mib") / leanest));
    Ok(())
}

/// One measurement in a process of its own.
fn child(options: &Options, only: Only) -> anyhow::Result<Figures> {
    let mut command = Command::new(std::env::current_exe()?);
    let numbers = [("--seq", options.seq), ("--batch", options.batch), ("--steps", options.steps)];
    command.args(["train", "--only", only.word(), "--threads", &options.threads.to_string()]);
    numbers.iter().for_each(|(name, number)| _ = command.args([*name, &number.to_string()]));
    said(command).with_context(|| format!("measuring {}", only.word()))
}

/// The JSON that a command writes to its output.
fn said(mut command: Command) -> anyhow::Result<Figures> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "it failed: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let from = text.find('{').context("it said nothing")?;
    Ok(serde_json::from_str(text[from..].trim())?)
}

fn alone(options: &Options, only: Only) -> anyhow::Result<Figures> {
    let precision = if only == Only::Single { Precision::Single } else { Precision::of_machine() };
    let threads = options.threads as usize;
    let gradients = Gradients::open(reference_shape(), &mut random_rows, precision, threads)?;
    let compares = matches!(only, Only::Half | Only::Single);
    let steps = if compares { COMPARED_STEPS } else { options.steps };
    let mut run = Run::new(options, only, gradients)?;
    let mut figures = Figures::new();
    let mut loss = if compares { 0.0 } else { run.step(0)? };
    let began = Instant::now();
    for step in 1..=steps {
        loss = run.step(step)?;
    }
    let tokens = f64::from(steps * options.seq * options.batch);
    figures.insert("tok_s".into(), rounded(tokens / began.elapsed().as_secs_f64()));
    figures.insert("loss".into(), loss.into());
    figures.insert("peak_rss_mib".into(), peak_rss_mib().into());
    figures.insert("trainable".into(), run.weights.iter().map(|w| w.len() as u64).sum::<u64>().into());
    Ok(figures)
}

/// A number of `[-1, 1)` for each key (splitmix64, Steele et al. 2014).
fn uniform(key: u64) -> f32 {
    let mut z = key.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ z >> 31) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
}

/// Norms are one, everything else is random; a row at a time.
fn random_rows(name: &str, shape: &[usize], take: &mut dyn FnMut(usize, &[f32])) -> Result<(), TrainError> {
    let (rows, width) = if let [rows, width] = *shape { (rows, width) } else { (1, shape[0]) };
    let seed = name.bytes().fold(17u64, |sum, byte| sum.wrapping_mul(1_099_511_628_211).wrapping_add(byte.into()));
    let mut numbers = vec![1f32; width];
    for row in 0..rows {
        if !name.contains("norm") {
            let at = seed.wrapping_add((row * width) as u64);
            numbers.iter_mut().enumerate().for_each(|(i, x)| *x = WEIGHT_BOUND * uniform(at.wrapping_add(i as u64)));
        }
        take(row, &numbers);
    }
    Ok(())
}

/// A plain LoRA, or a shared part and experts behind routers that hear the session.
fn spec(only: Only) -> MixtureSpec {
    let plain = MixtureSpec { shared_rank: RANK, scale: 2.0, ..MixtureSpec::default() };
    if only != Only::Mixture {
        return plain;
    }
    MixtureSpec { expert_rank: RANK, experts: vec![None; EXPERTS], top_k: 2, session_prior: true, ..plain }
}

/// Training without a night: the same data for both precisions.
struct Run {
    gradients: Gradients,
    weights: Vec<Vec<f32>>,
    sums: Vec<Vec<f32>>,
    moments: AdamW,
    rates: Vec<Option<Rate>>,
    sequences: (u32, u32),
    experts: usize,
}

impl Run {
    fn new(options: &Options, only: Only, mut gradients: Gradients) -> anyhow::Result<Self> {
        let spec = spec(only);
        let mixture = Mixture::init(gradients.config(), &spec, 1)?;
        gradients.hold(&mixture, (options.seq * options.batch) as usize)?;
        let weights: Vec<Vec<f32>> =
            mixture.parameters().iter().map(|p| p.tensor.flatten_all()?.to_vec1()).collect::<Result<_, _>>()?;
        let rate = Some(Rate { rate: LEARNING_RATE, decay: 0.0 });
        Ok(Self {
            gradients,
            sums: weights.iter().map(|w| vec![0.0; w.len()]).collect(),
            moments: AdamW::new(&weights),
            rates: vec![rate; weights.len()],
            weights,
            sequences: (options.seq, options.batch),
            experts: spec.experts.len(),
        })
    }

    /// One optimiser step; its loss.
    fn step(&mut self, step: u32) -> anyhow::Result<f64> {
        let batch = self.batch(step);
        let weights = vec![1.0 / batch.target_tokens() as f32; batch.target_tokens()];
        let plan = (self.experts > 0).then(|| self.plan());
        let goals = Goals { weights: &weights, kept: &[], routers: plan.as_ref() };
        let lost = self.gradients.pass(&batch, &goals, &mut self.sums, &mut || ())?;
        self.moments.step(&mut self.weights, &mut self.sums, &self.rates, CLIP);
        self.gradients.set_weights(&self.weights)?;
        Ok(lost.language)
    }

    /// Random ids, each of them a target.
    fn batch(&self, step: u32) -> Batch {
        let (seq, count) = self.sequences;
        let id = |n: u32| (uniform(u64::from(n) << 20) * 0.5 + 0.5) * 49_000.0;
        let one = |sequence: u32| {
            let from = (step * count + sequence) * seq;
            let ids: Vec<u32> = (from..from + seq).map(|n| id(n) as u32).collect();
            Encoded { target: vec![true; ids.len()], ids }
        };
        let all: Vec<Encoded> = (0..count).map(one).collect();
        Batch::pack(&all)
    }

    /// The last stage: routers choose, every loss is there.
    fn plan(&self) -> RouterPlan {
        let losses = LossSpec::default();
        let shares: Arc<[f32]> = vec![1.0 / self.experts as f32; self.experts].into();
        let wanted = || Wanted { route: shares.clone(), session: shares.clone(), weight: 1.0 };
        let labelled = || Labelled { rows: self.sequences.0 as usize, wanted: Some(wanted()) };
        RouterPlan {
            routing: PlannedRouting::Own,
            documents: (0..self.sequences.1).map(|_| labelled()).collect(),
            prior: shares.clone(),
            weights: RouterWeights {
                session: losses.session,
                label: losses.route,
                balance: losses.balance,
                z: losses.z,
            },
            share: 1.0,
        }
    }
}
