//! One answer under way: its prompt is read in pieces, then each step makes one token. The answer is a function of
//! prompt, plan, weights and mixture; how steps are interleaved with other answers cannot change it. Refuses to know
//! threads and sockets.

use super::model::Model;
use super::sample::Sampling;
use super::text::{Pushed, TextStream};
use crate::adapter::{ExpertLoad, Mixture};
use crate::backbone::{Backbone, KvCache};
use empathd_proto::chat::FinishReason;
use empathd_proto::generate::{AnswerTimes, Finished};
use std::sync::Arc;
use zeroize::Zeroize;

/// Prompt tokens read in one step, so that a long prompt delays others by one piece only.
pub const PREFILL_TOKENS: usize = 256;

/// How to answer.
#[derive(Clone, PartialEq)]
pub struct Plan {
    /// Most tokens of the answer; the context may allow fewer.
    pub max_tokens: u32,
    /// Tokens at the beginning of the answer that are made and not shown.
    pub skip_tokens: u32,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Strings that end the answer.
    pub stop: Vec<String>,
}

/// Why an answer cannot be begun or continued.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// No room is left for one token.
    #[error("the prompt has {tokens} tokens, the limit is {limit}; shorten the conversation")]
    PromptTooLong {
        /// Of the prompt.
        tokens: u32,
        /// Largest possible.
        limit: u32,
    },
    /// The template made nothing of the conversation.
    #[error("the conversation has no tokens; send at least one message")]
    EmptyPrompt,
    /// The weights gave no finite number.
    #[error("the model gave no usable numbers; use another adapter")]
    NotFinite,
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// A token that is to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Position in the answer, from 0.
    pub index: u32,
    /// Text that became certain with it.
    pub text: String,
}

/// What one step did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// A token, when one was made and is to be shown.
    pub token: Option<Token>,
    /// The end, when it is reached.
    pub end: Option<FinishReason>,
}

/// One answer under way.
pub struct Generation {
    model: Arc<Model>,
    backbone: Backbone,
    mixture: Option<Arc<Mixture>>,
    prompt: Vec<u32>,
    plan: Plan,
    cache: KvCache,
    load: ExpertLoad,
    text: TextStream,
    /// The last token made; it is not yet in the cache.
    last: Option<u32>,
    /// Tokens made.
    made: u32,
    /// Tokens that may be made.
    allowed: u32,
}

impl Generation {
    /// Begins an answer to `prompt`.
    ///
    /// # Errors
    /// [`InferError::PromptTooLong`] or [`InferError::EmptyPrompt`].
    pub fn new(
        model: Arc<Model>,
        mixture: Option<Arc<Mixture>>,
        prompt: Vec<u32>,
        plan: Plan,
    ) -> Result<Self, InferError> {
        let backbone = model.backbone().map_err(candle_core::Error::wrap)?;
        let config = backbone.config();
        let room = config.context.saturating_sub(prompt.len());
        if prompt.is_empty() {
            return Err(InferError::EmptyPrompt);
        }
        if room == 0 {
            return Err(InferError::PromptTooLong { tokens: count(prompt.len()), limit: count(config.context - 1) });
        }
        Ok(Self {
            cache: KvCache::new(config, backbone.device()),
            load: ExpertLoad::default(),
            text: TextStream::new(plan.stop.clone()).unwrap_or_default(),
            last: None,
            made: 0,
            allowed: plan.max_tokens.min(count(room)),
            model,
            backbone,
            mixture,
            prompt,
            plan,
        })
    }

    /// Reads one piece of the prompt or makes one token.
    ///
    /// # Errors
    /// [`InferError::NotFinite`] or [`InferError::Tensor`].
    pub fn step(&mut self) -> Result<Step, InferError> {
        if self.made >= self.allowed {
            return Ok(Step { token: None, end: Some(FinishReason::Length) });
        }
        let read = self.cache.len();
        let piece = match self.last {
            Some(id) => vec![id],
            None => self.prompt[read..self.prompt.len().min(read + PREFILL_TOKENS)].to_vec(),
        };
        let mixture = self.mixture.as_deref();
        let load = mixture.is_some().then_some(&mut self.load);
        let logits = self.backbone.forward(&piece, &mut self.cache, mixture, load)?;
        if self.cache.len() < self.prompt.len() {
            return Ok(Step::default());
        }
        let id = self.plan.sampling.choose(&logits, self.made).ok_or(InferError::NotFinite)?;
        Ok(self.took(id))
    }

    /// What a new token means for the text and the end.
    fn took(&mut self, id: u32) -> Step {
        let index = self.made;
        self.made += 1;
        self.last = Some(id);
        let tokenizer = self.model.format.tokenizer();
        let (text, end) = if tokenizer.is_end(id) {
            (self.text.finish(), Some(FinishReason::Stop))
        } else {
            match self.text.push(tokenizer.bytes(id)) {
                Pushed::Stopped(text) => (text, Some(FinishReason::Stop)),
                Pushed::Text(text) if self.made == self.allowed => {
                    (text + &self.text.finish(), Some(FinishReason::Length))
                }
                Pushed::Text(text) => (text, None),
            }
        };
        let token = (index >= self.plan.skip_tokens).then_some(Token { index, text });
        Step { token, end }
    }

    /// What the one who asked is told at the end.
    #[must_use]
    pub fn finished(&self, reason: FinishReason) -> Finished {
        Finished {
            reason,
            prompt_tokens: count(self.prompt.len()),
            cached_tokens: 0,
            completion_tokens: self.made,
            drafted_tokens: 0,
            accepted_tokens: 0,
            expert_share: self.load.shares(),
            times: AnswerTimes::default(),
        }
    }

    /// Overwrites keys, values, prompt and text; the bytes of key-value memory overwritten.
    pub fn wipe(&mut self) -> u64 {
        self.prompt.zeroize();
        self.text.wipe();
        self.cache.wipe()
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
