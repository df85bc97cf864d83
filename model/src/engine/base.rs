//! A base model as requests meet it: its weights, its tokenizer, grammars made for it, and the rules its answers have in
//! common. Turns a request into an answer that can be scheduled. Refuses to know messages and threads.

use crate::infer::{GrammarError, GrammarFactory, Matcher, Model};
use crate::schedule::{AdapterGeneration, Answer, Ask, Cancel, Continuation, Desk, Request, Rules, Scheduler};
use crate::template::TemplateError;
use candle_core::Device;
use empathd_proto::engine::{EngineFailure, ServingSpec};
use empathd_proto::generate::{GenerateSpec, Grammar, Prompt};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Bytes of text taken for a token before they are tokenized.
const TOKEN_BYTES: usize = 4;

/// A base model in memory.
pub(super) struct Base {
    pub(super) model: Arc<Model>,
    serving: ServingSpec,
    rules: Rules,
    /// Made for the first request that needs it.
    grammars: OnceLock<Result<GrammarFactory, GrammarError>>,
}

/// What belongs to a request beside its words.
pub(super) struct Asked {
    pub(super) tag: u64,
    pub(super) adapter: Option<AdapterGeneration>,
    /// When it arrived, by the desk's clock.
    pub(super) arrived: Duration,
    pub(super) cancel: Cancel,
}

impl Base {
    /// Opens a model file and takes a step with it.
    pub(super) fn open(
        path: &Path,
        sha256: [u8; 32],
        serving: &ServingSpec,
        device: &Device,
        desk: &Arc<Desk>,
    ) -> Result<(Self, Scheduler), EngineFailure> {
        let bad = |error: crate::infer::ModelError| EngineFailure::BadModel(error.to_string());
        let model = Model::open(path, sha256, device, serving, rayon::current_num_threads()).map_err(bad)?;
        let compute = model.compute().map_err(bad)?;
        let mut scheduler = Scheduler::new(compute, Arc::clone(&model.format), serving, Arc::clone(desk));
        scheduler.warm_up()?;
        let rules = scheduler.rules();
        let base = Self { model: Arc::new(model), serving: serving.clone(), rules, grammars: OnceLock::new() };
        Ok((base, scheduler))
    }

    /// Whether it is this file, served like this.
    pub(super) fn is(&self, sha256: [u8; 32], serving: &ServingSpec) -> bool {
        self.model.facts.sha256 == sha256 && self.serving == *serving
    }

    /// Takes a place for a request and prepares its answer.
    pub(super) fn answer(&self, spec: GenerateSpec, asked: Asked, desk: &Desk) -> Result<Answer, EngineFailure> {
        let GenerateSpec { class, caller, scope, max_tokens, skip_tokens, sampling, stop, .. } = spec;
        let first_token_within = spec.first_token_within_ms.map(|within| Duration::from_millis(within.into()));
        let prompt_tokens = estimated_tokens(&spec.prompt);
        let place = desk.reserve(Ask { class, caller, prompt_tokens, first_token_within })?;
        let request = Request {
            tag: asked.tag,
            prompt: self.model.format.read(&spec.prompt).map_err(unreadable)?,
            adapter: asked.adapter,
            class,
            caller,
            scope,
            arrived: asked.arrived,
            first_token_within,
            max_tokens,
            skip_tokens,
            sampling,
            stop,
            grammar: spec.grammar.as_ref().map(|grammar| self.matcher(grammar)).transpose()?,
            continuation: Continuation::Sampled,
            ignore_end: false,
            cancel: asked.cancel,
        };
        Answer::new(request, place, self.rules)
    }

    fn matcher(&self, grammar: &Grammar) -> Result<Matcher, EngineFailure> {
        let made = self.grammars.get_or_init(|| GrammarFactory::new(self.model.format.tokenizer()));
        let factory = made.as_ref().map_err(|error| EngineFailure::Refused(error.to_string()))?;
        factory.matcher(grammar).map_err(|error| EngineFailure::Refused(error.to_string()))
    }
}

/// Tokens of a prompt, about: enough to decide whether there is room for it.
fn estimated_tokens(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Chat { messages, tools } => {
            let messages: usize = messages.iter().map(|message| message.text.len()).sum();
            (messages + tools.iter().map(String::len).sum::<usize>()) / TOKEN_BYTES
        }
        Prompt::Text(text) => text.len() / TOKEN_BYTES,
        Prompt::Tokens(tokens) => tokens.len(),
    }
}

fn unreadable(error: TemplateError) -> EngineFailure {
    match error {
        TemplateError::Syntax(_) | TemplateError::Tokenizer(_) => EngineFailure::Internal(error.to_string()),
        _ => EngineFailure::Refused(error.to_string()),
    }
}
