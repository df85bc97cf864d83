//! One run: a base model, a specification, examples; what comes of it on conversations that it never saw. It knows no
//! comparison.

use super::data::Data;
use super::keep::write;
use candle_core::Device;
use empathd_model::adapter::Mixture;
use empathd_model::config::BackboneConfig;
use empathd_model::gguf;
use empathd_model::infer::Model;
use empathd_model::train::{Gradients, Host, Memory, Observer, Start, TrainError, score, train};
use empathd_proto::engine::{Evaluation, ServingSpec, TrainSpec};
use empathd_proto::report::TrainProgress;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Seconds between two lines about a run.
const TOLD_EVERY_S: u64 = 20;

/// What a run led to.
pub(super) struct Outcome {
    /// Loss per target of each domain, nats.
    pub(super) by_domain: BTreeMap<String, f64>,
    /// Numbers that were trained.
    pub(super) trainable: u64,
    /// Tokens that were learnt from, context included.
    pub(super) tokens: u64,
    /// Of the steps.
    pub(super) tok_s: f64,
    /// Of all of it, since it last began.
    pub(super) seconds: f64,
}

impl Outcome {
    /// Mean of the domains.
    pub(super) fn macro_loss(&self) -> f64 {
        self.by_domain.values().sum::<f64>() / self.by_domain.len() as f64
    }

    pub(super) fn to_json(&self) -> Value {
        let Self { by_domain, trainable, tokens, tok_s, seconds } = self;
        json!({"by_domain": by_domain, "trainable": trainable, "tokens": tokens, "tok_s": tok_s, "seconds": seconds})
    }

    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let by_domain = value["by_domain"].as_object()?.iter();
        Some(Self {
            by_domain: by_domain.map(|(name, loss)| Some((name.clone(), loss.as_f64()?))).collect::<Option<_>>()?,
            trainable: value["trainable"].as_u64()?,
            tokens: value["tokens"].as_u64()?,
            tok_s: value["tok_s"].as_f64()?,
            seconds: value["seconds"].as_f64()?,
        })
    }
}

/// A base model, ready to be trained over.
pub(super) struct Subject {
    model: Model,
    gradients: Gradients,
}

impl Subject {
    pub(super) fn open(path: &Path, threads: usize) -> anyhow::Result<Self> {
        let sha256 = gguf::open(path)?.sha256()?;
        let model = Model::open(path, sha256, &Device::Cpu, &ServingSpec::default(), threads)?;
        let gradients = model.gradients(threads)?;
        Ok(Self { model, gradients })
    }

    pub(super) const fn config(&self) -> &BackboneConfig {
        self.model.config()
    }

    /// Of the model's file, in words.
    pub(super) fn digest(&self) -> String {
        self.model.facts.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The base model alone.
    pub(super) fn base(&mut self, data: &Data, seq_len: u32) -> anyhow::Result<Outcome> {
        let began = Instant::now();
        let by_domain = self.losses(None, data, seq_len)?;
        Ok(Outcome { by_domain, trainable: 0, tokens: 0, tok_s: 0.0, seconds: began.elapsed().as_secs_f64() })
    }

    /// Tokens a second of a short run.
    pub(super) fn speed(&mut self, spec: &TrainSpec, data: &Data) -> anyhow::Result<f64> {
        let mut watcher = Watcher { checkpoint: None, deadline: None, told: Instant::now() };
        Ok(self.trained(spec, data, Start::Fresh, &mut watcher)?.report.tok_s)
    }

    /// Trains from a checkpoint if there is one, and measures; none when the time is over before.
    pub(super) fn train(
        &mut self,
        spec: &TrainSpec,
        data: &Data,
        checkpoint: &Path,
        deadline: Instant,
    ) -> anyhow::Result<Option<Outcome>> {
        let began = Instant::now();
        if began >= deadline {
            return Ok(None);
        }
        let kept = fs::read(checkpoint).ok();
        let start = kept.as_deref().map_or(Start::Fresh, Start::Checkpoint);
        let mut watcher =
            Watcher { checkpoint: Some(checkpoint.to_owned()), deadline: Some(deadline), told: Instant::now() };
        let trained = self.trained(spec, data, start, &mut watcher)?;
        if trained.report.steps < spec.steps {
            return Ok(None);
        }
        let by_domain = self.losses(Some(&trained.mixture), data, spec.seq_len)?;
        let report = trained.report;
        let seconds = began.elapsed().as_secs_f64();
        Ok(Some(Outcome {
            by_domain,
            trainable: report.trainable,
            tokens: report.tokens,
            tok_s: report.tok_s,
            seconds,
        }))
    }

    fn trained(
        &mut self,
        spec: &TrainSpec,
        data: &Data,
        start: Start<'_>,
        watcher: &mut Watcher,
    ) -> Result<empathd_model::train::Trained, TrainError> {
        let began = Instant::now();
        let host = Host { now: &|| began.elapsed(), memory: &Memory::unknown };
        let (sha256, format) = (self.model.facts.sha256, self.model.format.as_ref());
        train(&mut self.gradients, sha256, format, spec, &data.train, start, &host, watcher)
    }

    fn losses(
        &mut self,
        mixture: Option<&Mixture>,
        data: &Data,
        seq_len: u32,
    ) -> anyhow::Result<BTreeMap<String, f64>> {
        let format = self.model.format.as_ref();
        let scores = score(&mut self.gradients, format, mixture, &data.test, seq_len as usize, &mut || ())?;
        Ok(Evaluation::of(data.test.iter().map(|example| example.domain).zip(&scores)).by_domain)
    }
}

/// Keeps the state of a run and stops it when the time is over.
struct Watcher {
    checkpoint: Option<PathBuf>,
    deadline: Option<Instant>,
    told: Instant,
}

impl Observer for Watcher {
    fn progress(&mut self, progress: &TrainProgress) -> ControlFlow<()> {
        if self.told.elapsed().as_secs() >= TOLD_EVERY_S {
            self.told = Instant::now();
            let TrainProgress { step, steps, loss, tok_s, .. } = progress;
            eprintln!("  step {step} of {steps}, loss {loss:.3}, {tok_s:.0} tok/s");
        }
        let is_over = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if is_over && progress.step < progress.steps { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn checkpoint(&mut self, _step: u32, bytes: Vec<u8>) {
        if let Some(Err(error)) = self.checkpoint.as_ref().map(|path| write(path, &bytes)) {
            eprintln!("{error:#}");
        }
    }

    fn between_layers(&mut self) {}
}
