//! `POST /v1/completions`, the older face: a text goes on. Ranges are not known here.

use super::{AnswerNotes, FinishReason, ServiceTier, Stop, StreamOptions, Usage};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Body of `POST /v1/completions`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompletionRequest {
    /// Model name; one of `GET /v1/models`.
    pub model: String,
    /// What goes on.
    pub prompt: PromptInput,
    /// 0 (greedy) to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Nucleus, in (0, 1].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Most tokens of each choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// How many choices for each prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Only the same as `n`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_of: Option<u32>,
    /// Only `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<bool>,
    /// Strings that end the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Same seed, same answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i128>,
    /// Answer as server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Options of the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// Tell the probability of each token, and of so many of the likeliest at its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u32>,
    /// Added to the logits of tokens, by their ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// Taken from the logit of each token the answer already has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    /// Taken from it as many times as the answer has the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
    /// Pseudonym of the person the answer is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Newer name of `user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety_identifier: Option<String>,
    /// Keeps what is in memory for one purpose apart from that for another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_cache_key: Option<String>,
    /// How urgent it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<ServiceTier>,
}

impl std::fmt::Debug for CompletionRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CompletionRequest(…)")
    }
}

/// One text or several, as characters or as token ids.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PromptInput {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// One text in token ids.
    Tokens(Vec<u32>),
    /// Several texts in token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// Body of a plain answer, and of each event of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// The request's id.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// Model that answered.
    pub model: String,
    /// The choices: those of the first prompt, then those of the second.
    pub choices: Vec<TextChoice>,
    /// Tokens used; in a stream in the last event when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What Empathd adds; in a stream in the event that ends the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empathd: Option<AnswerNotes>,
}

/// One choice, or an event's part of it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct TextChoice {
    /// Its place.
    pub index: u32,
    /// The text.
    pub text: String,
    /// Probabilities, when they were asked for.
    pub logprobs: Option<TextLogprobs>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
}

impl std::fmt::Debug for TextChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TextChoice({} bytes)", self.text.len())
    }
}

/// Probabilities in the older form: one list for each property, one entry for each token.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TextLogprobs {
    /// Their texts; `bytes:\xe2` for what is no text by itself.
    pub tokens: Vec<String>,
    /// Natural logarithms of their probabilities.
    pub token_logprobs: Vec<f32>,
    /// The likeliest at each place.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where each begins, in characters of the choice's text.
    pub text_offset: Vec<u32>,
}

impl std::fmt::Debug for TextLogprobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TextLogprobs({} tokens)", self.tokens.len())
    }
}
