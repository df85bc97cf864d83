//! The OpenAI chat face, as the EHR speaks it. Fields that are not honoured are not listed here, and an unknown field is
//! refused by name when the body is parsed.

use crate::ids::AdapterId;
use serde::{Deserialize, Serialize};

/// Body of `POST /v1/chat/completions`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatRequest {
    /// Model name; one of `GET /v1/models`.
    pub model: String,
    /// The conversation.
    pub messages: Vec<ChatMessage>,
    /// 0 (greedy) to 2. Default 0.7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Nucleus, in (0, 1]. Default 0.95.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Older name of `max_completion_tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Most tokens of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<u32>,
    /// Answer as server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Options of the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// Strings that end the answer; up to four.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Same seed, same answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Only 1 is possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Pseudonym of the end user; taken and not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl std::fmt::Debug for ChatRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatRequest({} messages)", self.messages.len())
    }
}

/// Options of a streamed answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// Send a last event with the usage.
    #[serde(default)]
    pub include_usage: bool,
}

/// One string or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// Who a message is from, in the words of the API and of chat templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChatRole {
    /// Instructions.
    #[serde(rename = "system", alias = "developer")]
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

/// One message of the conversation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// Who it is from.
    pub role: ChatRole,
    /// Its text.
    pub content: Content,
    /// Name of the speaker; taken and not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl std::fmt::Debug for ChatMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatMessage({})", self.role.as_str())
    }
}

/// Text, or a list of text parts.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts; only text parts are possible.
    Parts(Vec<ContentPart>),
}

impl Content {
    /// The whole text.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => parts.iter().map(|ContentPart::Text { text }| text.as_str()).collect(),
        }
    }
}

/// One part of a message.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum ContentPart {
    /// Text.
    #[serde(rename = "text")]
    Text {
        /// The text.
        text: String,
    },
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
}

/// Tokens used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u32,
    /// Of the answer.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
}

/// What Empathd adds to an answer, under `"empathd"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerNotes {
    /// The generation that answered; absent for the plain base model.
    pub adapter: Option<AdapterId>,
    /// Share each routed expert had in this answer.
    pub expert_share: Vec<f32>,
    /// Whether the conversation shows a crisis signal.
    pub crisis_signal: bool,
}

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
    /// One choice.
    pub choices: Vec<Choice>,
    /// Tokens used.
    pub usage: Usage,
    /// What Empathd adds.
    pub empathd: AnswerNotes,
}

/// One choice of a plain answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// 0.
    pub index: u32,
    /// The answer.
    pub message: ChatMessage,
    /// Why it ended.
    pub finish_reason: FinishReason,
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
    /// 0.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
    /// In the last event of the choice.
    pub finish_reason: Option<FinishReason>,
}

/// What is new in an event.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// In the first event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<ChatRole>,
    /// More text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

impl std::fmt::Debug for Delta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delta({} bytes)", self.content.as_ref().map_or(0, String::len))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_refused_by_name() {
        let body = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"logprobs":true}"#;
        let error = serde_json::from_str::<ChatRequest>(body).expect_err("unknown field").to_string();
        assert!(error.contains("logprobs"), "{error}");
    }

    #[test]
    fn content_may_be_parts() {
        let body = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}"#;
        let request: ChatRequest = serde_json::from_str(body).expect("parses");
        assert_eq!(request.messages[0].content.to_text(), "ab");
    }
}
