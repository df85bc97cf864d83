//! A model behind the engine's own scheduler, without proposals and kept prefixes: prompts of given tokens, and answers whose
//! tokens are given too, so that every run computes the same. It knows no figures.

use anyhow::{Context, bail};
use empathd_model::infer::Model;
use empathd_model::schedule::{AdapterGeneration, Cancel, Continuation, Desk, Event, Request, Scheduler};
use empathd_model::tokenizer::Tokenizer;
use empathd_model::{device, gguf};
use empathd_proto::engine::ServingSpec;
use empathd_proto::generate::{CacheScope, CallerKey, SamplingSpec, ServiceClass};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Tokens whose time is taken at each depth.
pub(super) const ANSWER: usize = 64;
/// Steps that streams may take until all of them answer.
const GATHER: usize = 64;

/// One model, one scheduler.
pub(super) struct Stage {
    pub(super) model: Model,
    scheduler: Scheduler,
    token_bytes: Option<usize>,
    asked: u64,
}

/// Tokens of prompts: those of the peer's script.
pub(super) fn prompt(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| 100 + i * 37 % 40_000).collect()
}

/// Tokens of answers: those of the peer's script.
fn answer(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| 200 + i).collect()
}

/// The model of a file.
pub(super) fn open(path: &Path, serving: &ServingSpec, threads: usize) -> anyhow::Result<Model> {
    let sha256 = gguf::open(path)?.sha256()?;
    let device = device::open()?;
    Model::open(path, sha256, &device, serving, threads).with_context(|| format!("cannot load {}", path.display()))
}

impl Stage {
    pub(super) fn open(path: &Path, threads: usize) -> anyhow::Result<Self> {
        let serving = ServingSpec { drafting: false, prefix_cache: false, ..ServingSpec::default() };
        let model = open(path, &serving, threads)?;
        let began = Instant::now();
        let desk = Arc::new(Desk::new(Arc::new(move || began.elapsed())));
        let compute = model.compute()?;
        let token_bytes = compute.token_bytes();
        let mut scheduler = Scheduler::new(compute, Arc::clone(&model.format), &serving, desk);
        scheduler.warm_up().map_err(|failure| anyhow::anyhow!("{failure}"))?;
        Ok(Self { model, scheduler, token_bytes, asked: 0 })
    }

    /// Most tokens of a conversation.
    pub(super) const fn context(&self) -> usize {
        self.model.config().context
    }

    /// Bytes of weights that one decoded token reads, where they are packed.
    pub(super) const fn token_bytes(&self) -> Option<usize> {
        self.token_bytes
    }

    /// The tokens of a text, as the model reads them.
    pub(super) fn tokens(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let tokenizer: &Tokenizer = self.model.format.tokenizer();
        Ok(tokenizer.encode(text)?.into_iter().map(|piece| piece.id).collect())
    }

    fn ask(&mut self, prompt: Vec<u32>, answer: Vec<u32>, adapter: Option<&AdapterGeneration>) -> anyhow::Result<()> {
        self.asked += 1;
        let request = Request {
            tag: self.asked,
            prompt,
            adapter: adapter.cloned(),
            class: ServiceClass::Interactive,
            caller: CallerKey(1),
            scope: CacheScope::default(),
            arrived: self.scheduler.now(),
            first_token_within: None,
            max_tokens: answer.len() as u32,
            skip_tokens: 0,
            sampling: SamplingSpec::greedy(),
            stop: Vec::new(),
            grammar: None,
            continuation: Continuation::Given(answer),
            ignore_end: true,
            cancel: Cancel::default(),
        };
        self.scheduler.submit(request).map_err(|failure| anyhow::anyhow!("{failure}"))
    }

    /// One step; how many tokens it made.
    fn step(&mut self) -> anyhow::Result<usize> {
        let (mut made, mut failed) = (0, None);
        self.scheduler.step(&mut |_, event| match event {
            Event::Token { .. } => made += 1,
            Event::Finished(_) => {}
            Event::Failed(failure) => failed = Some(failure),
        });
        if let Some(failure) = failed {
            bail!("an answer failed: {failure}");
        }
        Ok(made)
    }

    fn run_out(&mut self) -> anyhow::Result<()> {
        while !self.scheduler.is_idle() {
            self.step()?;
        }
        Ok(())
    }

    /// Reads a prompt, up to the first token behind it.
    pub(super) fn prefill(&mut self, tokens: usize) -> anyhow::Result<()> {
        self.ask(prompt(tokens), answer(1), None)?;
        self.run_out()
    }

    /// Tokens a second behind `depth` tokens; each is a step of its own.
    pub(super) fn decode(&mut self, depth: usize, adapter: Option<&AdapterGeneration>) -> anyhow::Result<f64> {
        self.ask(prompt(depth), answer(ANSWER + 2), adapter)?;
        while self.step()? == 0 {}
        let began = Instant::now();
        for _ in 0..ANSWER {
            self.step()?;
        }
        let seconds = began.elapsed().as_secs_f64();
        self.run_out()?;
        Ok(ANSWER as f64 / seconds)
    }

    /// Tokens a second of all streams together, each behind `depth` tokens of its own.
    pub(super) fn decode_together(&mut self, streams: usize, depth: usize) -> anyhow::Result<f64> {
        for stream in 0..streams {
            let ids = prompt(depth + stream).split_off(stream);
            self.ask(ids, answer(GATHER + ANSWER + 2), None)?;
        }
        for _ in 0..GATHER {
            if self.step()? == streams {
                break;
            }
        }
        let (began, mut made) = (Instant::now(), 0);
        for _ in 0..ANSWER {
            made += self.step()?;
        }
        let seconds = began.elapsed().as_secs_f64();
        anyhow::ensure!(made == streams * ANSWER, "not all streams were answered at once");
        self.run_out()?;
        Ok(made as f64 / seconds)
    }
}
