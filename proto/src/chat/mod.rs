//! The faces of OpenAI's API that the clinic's record system speaks: words that several of them share. Fields that are not
//! honoured are not listed in a request, and an unknown field is refused by name when the body is parsed.

mod answer;
mod completion;
mod embedding;
mod request;
mod tool;

pub use answer::*;
pub use completion::*;
pub use embedding::*;
pub use request::*;
pub use tool::*;

use crate::ids::AdapterId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A JSON value as the caller wrote it: the order of its members matters.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RawJson(Box<RawValue>);

impl RawJson {
    /// Its text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }
}

impl PartialEq for RawJson {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl std::fmt::Debug for RawJson {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RawJson({} bytes)", self.text().len())
    }
}

/// Who a message is from, in the words of chat templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChatRole {
    /// Instructions.
    #[serde(rename = "system")]
    System,
    /// The person who asks.
    #[serde(rename = "user")]
    User,
    /// The model.
    #[serde(rename = "assistant")]
    Assistant,
}

impl ChatRole {
    /// The word in chat templates.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ChatRole::System => "system",
            ChatRole::User => "user",
            ChatRole::Assistant => "assistant",
        }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model ended it, or a stop string was met.
    #[serde(rename = "stop")]
    Stop,
    /// The limit of tokens was met.
    #[serde(rename = "length")]
    Length,
    /// The caller went away.
    #[serde(rename = "cancelled")]
    Cancelled,
    /// The model asks for tools.
    #[serde(rename = "tool_calls")]
    ToolCalls,
    /// The clinic's own words stand in place of an answer in the form that was asked for.
    #[serde(rename = "content_filter")]
    ContentFilter,
}

impl FinishReason {
    /// The word in answers and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
            FinishReason::ToolCalls => "tool_calls",
            FinishReason::ContentFilter => "content_filter",
        }
    }
}

/// Tokens used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompts, each counted once.
    pub prompt_tokens: u32,
    /// Of all choices.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
    /// More about the prompts'.
    pub prompt_tokens_details: PromptTokens,
    /// More about the choices'.
    pub completion_tokens_details: CompletionTokens,
}

/// More about the tokens of prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokens {
    /// Those that were not computed again.
    pub cached_tokens: u32,
}

/// More about the tokens of choices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionTokens {
    /// Proposed by lookup in the text before them, and right.
    pub accepted_prediction_tokens: u32,
    /// Proposed and wrong; they are not part of the answer and not counted in it.
    pub rejected_prediction_tokens: u32,
}

/// What Empathd adds to an answer, under `"empathd"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerNotes {
    /// The generation that answered; absent for the plain base model.
    pub adapter: Option<AdapterId>,
    /// Share each routed expert had in this answer, over all choices.
    pub expert_share: Vec<f32>,
    /// Whether the conversation shows a crisis signal.
    pub crisis_signal: bool,
    /// The clinic's words for a person in danger, where an answer in JSON has no place for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crisis_words: Option<String>,
    /// Whether this answer was given before.
    pub cache: CacheNote,
    /// How long the parts of the answer took.
    pub times_ms: TimesMs,
}

/// Whether an answer came from the cache of answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheNote {
    /// It was not looked for: the same request may have another answer, or the conversation shows a crisis signal.
    #[default]
    None,
    /// It was not there.
    Miss,
    /// It is the one that the same request got before.
    Response,
}

/// How long the parts of an answer took in the engine, in milliseconds; of several choices the longest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TimesMs {
    /// From arrival to the first step.
    pub queued: f64,
    /// From the first step to the first token.
    pub prefill: f64,
    /// From the first token to the last.
    pub decode: f64,
}

/// Body of `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// The models.
    pub data: Vec<Model>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Its name.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// `empathd`.
    pub owned_by: String,
}
