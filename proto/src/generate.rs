//! What the daemon asks of the engine for one answer or for embeddings, and what it is told of them. Refuses to know
//! HTTP and how tokens are made.

use crate::chat::{ChatRole, FinishReason};
use crate::ids::AdapterId;
use serde::{Deserialize, Serialize};

/// Most stop strings of an answer.
pub const MAX_STOPS: usize = 16;
/// Longest stop string in bytes.
pub const MAX_STOP_BYTES: usize = 1024;
/// Most tokens whose logits may be shifted in one answer.
pub const MAX_BIASES: usize = 1024;
/// Most likeliest tokens that are told beside each token.
pub const MAX_TOP_LOGPROBS: u8 = 20;
/// Longest schema or grammar in bytes.
pub const MAX_GRAMMAR_BYTES: usize = 64 * 1024;
/// Most texts of one request for embeddings.
pub const MAX_EMBED_TEXTS: usize = 256;
/// Longest text of one embedding in bytes; what is beyond the embedder's own limit of tokens is refused, not cut.
pub const MAX_EMBED_BYTES: usize = 64 * 1024;

/// What to answer and how.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateSpec {
    /// With which generation; the plain base model when absent.
    pub adapter: Option<AdapterId>,
    /// What comes before the answer.
    pub prompt: Prompt,
    /// How urgent it is.
    pub class: ServiceClass,
    /// Who waits for it: the key of fair sharing and of the bound on waiting works.
    pub caller: CallerKey,
    /// Who may reuse its keys and values: works of one scope share a prefix, works of two scopes never do.
    pub scope: CacheScope,
    /// The first token is of no use later than this after arrival.
    pub first_token_within_ms: Option<u32>,
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// How tokens are drawn.
    pub sampling: SamplingSpec,
    /// Strings that end the answer; they are not part of it. At most [`MAX_STOPS`] of [`MAX_STOP_BYTES`].
    pub stop: Vec<String>,
    /// What the answer must look like.
    pub grammar: Option<Grammar>,
    /// Tokens of the answer the daemon already has from a lost engine. They are generated again and not sent.
    pub skip_tokens: u32,
}

impl std::fmt::Debug for GenerateSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GenerateSpec({:?}, {:?}, max_tokens {})", self.class, self.prompt, self.max_tokens)
    }
}

/// What comes before an answer.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub enum Prompt {
    /// A conversation; the model's own chat template is applied.
    Chat {
        /// Its messages.
        messages: Vec<PlainMessage>,
        /// JSON descriptions of tools, for templates that know tools.
        tools: Vec<String>,
    },
    /// A text as it is, without a template.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<u32>),
}

impl std::fmt::Debug for Prompt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Chat { messages, tools } => write!(f, "Chat({} messages, {} tools)", messages.len(), tools.len()),
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Tokens(tokens) => write!(f, "Tokens({})", tokens.len()),
        }
    }
}

/// One message of a conversation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlainMessage {
    /// Who it is from.
    pub role: ChatRole,
    /// Its text.
    pub text: String,
}

impl std::fmt::Debug for PlainMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PlainMessage({}, {} bytes)", self.role.as_str(), self.text.len())
    }
}

/// How urgent an answer is. The order is the order of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServiceClass {
    /// Somebody may be in danger: never shed, first in every queue.
    Crisis,
    /// Somebody waits.
    Interactive,
    /// Nobody waits.
    Batch,
}

impl ServiceClass {
    /// All, most urgent first.
    pub const ALL: [Self; 3] = [Self::Crisis, Self::Interactive, Self::Batch];

    /// The word in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crisis => "crisis",
            Self::Interactive => "interactive",
            Self::Batch => "batch",
        }
    }
}

/// Who waits for an answer, without a name: a keyed hash of the caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CallerKey(pub u64);

/// Who may reuse keys and values: a keyed hash of caller and client. The engine adds the adapter generation to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CacheScope(pub [u8; 16]);

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingSpec {
    /// 0 is greedy; to 2.
    pub temperature: f32,
    /// In (0, 1].
    pub top_p: f32,
    /// Same seed and request, same answer: token `i` draws from a counter, not from a stream.
    pub seed: u64,
    /// Taken from the logit of each token the answer already has; -2 to 2.
    pub presence_penalty: f32,
    /// Taken from it as many times as the answer has the token; -2 to 2.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens; -100 to 100, at most [`MAX_BIASES`].
    pub logit_bias: Vec<(u32, f32)>,
    /// Tell the probability of each token, and of so many of the likeliest, at most [`MAX_TOP_LOGPROBS`].
    pub logprobs: Option<u8>,
}

impl SamplingSpec {
    /// Takes the likeliest token each time.
    #[must_use]
    pub const fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: None,
        }
    }
}

/// What an answer must look like. At most [`MAX_GRAMMAR_BYTES`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grammar {
    /// One JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(String),
    /// Any text; whatever stands between the two marks is JSON of the schema.
    Marked {
        /// Begins what is JSON: letters, `_`, `<` and `>`.
        open: String,
        /// Ends it.
        close: String,
        /// The schema.
        schema: String,
    },
}

impl Grammar {
    /// Its schema, if it has one.
    #[must_use]
    pub fn schema(&self) -> Option<&str> {
        match self {
            Self::JsonObject => None,
            Self::JsonSchema(schema) | Self::Marked { schema, .. } => Some(schema),
        }
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::JsonObject => f.write_str("JsonObject"),
            Self::JsonSchema(schema) => write!(f, "JsonSchema({} bytes)", schema.len()),
            Self::Marked { schema, .. } => write!(f, "Marked({} bytes)", schema.len()),
        }
    }
}

/// The probability of a token.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Logprob {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability before temperature and nucleus.
    pub logprob: f32,
}

impl std::fmt::Debug for Logprob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Logprob({} bytes)", self.bytes.len())
    }
}

/// What is told of one token when it was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// The token that was taken.
    pub taken: Logprob,
    /// The likeliest, likeliest first.
    pub top: Vec<Logprob>,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Those of them whose keys and values were in memory already.
    pub cached_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Tokens that were proposed by lookup in the text before them.
    pub drafted_tokens: u32,
    /// Those of them that were right.
    pub accepted_tokens: u32,
    /// Share of routed weight each expert had in this answer; empty for the plain base model.
    pub expert_share: Vec<f32>,
    /// How long each part took.
    pub times: AnswerTimes,
}

/// How long the parts of an answer took, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerTimes {
    /// From arrival to the first step.
    pub queued_us: u64,
    /// From the first step to the first token.
    pub prefill_us: u64,
    /// From the first token to the last.
    pub decode_us: u64,
}

/// Where the texts of one request for embeddings lie.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedded {
    /// One vector of length one a text, in their order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all texts.
    pub tokens: u32,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Embedded({} vectors)", self.vectors.len())
    }
}
