//! An answer to a chat, whole or as the events of a stream. How it comes about is not known here.

use super::{AnswerNotes, CalledFunction, ChatRole, FinishReason, ToolCall, ToolKind, Usage};
use serde::{Deserialize, Serialize};

/// Body of a plain answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletion {
    /// The request's id.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// Model that answered.
    pub model: String,
    /// The choices, in the order of their indices.
    pub choices: Vec<Choice>,
    /// Tokens used.
    pub usage: Usage,
    /// What Empathd adds.
    pub empathd: AnswerNotes,
}

/// One choice of a plain answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Its place.
    pub index: u32,
    /// The answer.
    pub message: AnswerMessage,
    /// Probabilities, when they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What the model says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerMessage {
    /// `assistant`.
    pub role: ChatRole,
    /// Its text; `null` when it only asks for tools.
    pub content: Option<String>,
    /// Tools it asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

impl std::fmt::Debug for AnswerMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AnswerMessage({} bytes)", self.content.as_ref().map_or(0, String::len))
    }
}

/// Probabilities of the tokens of a choice, or of an event's part of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatLogprobs {
    /// Token by token.
    pub content: Vec<TokenLogprob>,
}

/// The probability of the token that was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token itself.
    #[serde(flatten)]
    pub taken: OneLogprob,
    /// The likeliest at its place, likeliest first.
    pub top_logprobs: Vec<OneLogprob>,
}

/// The probability of one token.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct OneLogprob {
    /// Its text, as far as it has one by itself.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for OneLogprob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OneLogprob({} bytes)", self.bytes.len())
    }
}

/// One event of a streamed answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatChunk {
    /// The request's id.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// Model that answers.
    pub model: String,
    /// One choice, or none in the usage event.
    pub choices: Vec<ChunkChoice>,
    /// In the last event when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// In the event that ends the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empathd: Option<AnswerNotes>,
}

/// One choice of an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChunkChoice {
    /// Its place.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
    /// Probabilities, when they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<ChatLogprobs>,
    /// In the last event of the choice.
    pub finish_reason: Option<FinishReason>,
}

/// What is new in an event.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// In the first event of a choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<ChatRole>,
    /// More text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More tools it asks for, each whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

impl std::fmt::Debug for Delta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delta({} bytes)", self.content.as_ref().map_or(0, String::len))
    }
}

/// A tool that the model asks for, in an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallDelta {
    /// Its place among the calls of the choice.
    pub index: u32,
    /// Names this call in the message that answers it.
    pub id: String,
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: ToolKind,
    /// What is asked.
    pub function: CalledFunction,
}
