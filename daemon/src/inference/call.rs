//! What is asked for: a checked request, whichever face of the API it came through. Every value is within its range; the
//! ranges are known to `http/`, where bodies are read.

use super::tools::Tools;
use empathd_proto::chat::CalledFunction;
use empathd_proto::generate::{Grammar, Prompt};
use serde::Serialize;

/// An answer to give.
#[derive(Clone, PartialEq)]
pub struct AnswerCall {
    /// Model name as the caller gave it.
    pub model: String,
    /// What is to be answered.
    pub question: Question,
    /// Choices for each prompt, at least one.
    pub choices: u32,
    /// Most tokens of each; the configured number when absent.
    pub max_tokens: Option<u32>,
    /// 0 (greedy) to 2.
    pub temperature: f32,
    /// In (0, 1].
    pub top_p: f32,
    /// -2 to 2.
    pub presence_penalty: f32,
    /// -2 to 2.
    pub frequency_penalty: f32,
    /// Token ids in ascending order, each once, with -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tell the probability of each token, and of so many of the likeliest.
    pub logprobs: Option<u8>,
    /// Same seed, same answer; a fresh one when absent.
    pub seed: Option<u64>,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// What the answer must look like.
    pub form: Form,
    /// For whom it is.
    pub client: Client,
    /// It may wait until nobody else does.
    pub nobody_waits: bool,
}

impl std::fmt::Debug for AnswerCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AnswerCall({:?}, {} choices)", self.question, self.choices)
    }
}

/// What is to be answered.
#[derive(Clone, PartialEq)]
pub enum Question {
    /// A conversation, at least one turn.
    Conversation(Vec<Turn>),
    /// Texts that go on, at least one.
    Texts(Vec<Prompt>),
}

impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Question::Conversation(turns) => write!(f, "Conversation({} turns)", turns.len()),
            Question::Texts(texts) => write!(f, "Texts({})", texts.len()),
        }
    }
}

impl Question {
    /// How many prompts it makes.
    #[must_use]
    pub fn prompts(&self) -> usize {
        match self {
            Question::Conversation(_) => 1,
            Question::Texts(texts) => texts.len(),
        }
    }

    /// What a person says in it.
    #[must_use]
    pub fn said(&self) -> Vec<&str> {
        match self {
            Question::Conversation(turns) => turns.iter().filter_map(Turn::said).collect(),
            Question::Texts(texts) => texts
                .iter()
                .filter_map(|prompt| if let Prompt::Text(text) = prompt { Some(text.as_str()) } else { None })
                .collect(),
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, PartialEq)]
pub enum Turn {
    /// Instructions.
    System(String),
    /// What the person says.
    Person(String),
    /// What the model said and asked for.
    Model {
        /// Its text.
        text: String,
        /// The tools it asked for.
        calls: Vec<CalledFunction>,
    },
    /// What a tool gave.
    Tool(String),
}

impl Turn {
    fn said(&self) -> Option<&str> {
        if let Turn::Person(text) = self { Some(text) } else { None }
    }
}

/// What an answer must look like.
#[derive(Clone, PartialEq, Serialize)]
pub enum Form {
    /// Any text.
    Text,
    /// JSON.
    Json(Grammar),
    /// Any text, or calls of tools.
    Tools(Tools),
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Form::Text => f.write_str("Text"),
            Form::Json(grammar) => write!(f, "Json({grammar:?})"),
            Form::Tools(tools) => write!(f, "Tools({}, {:?})", tools.offered.len(), tools.demand),
        }
    }
}

/// For whom an answer is, as far as the caller tells. What is in memory of one is never used for another.
#[derive(Clone, Default, PartialEq, Serialize)]
pub struct Client {
    /// Pseudonym of the person.
    pub user: Option<String>,
    /// The same under its newer name.
    pub safety_identifier: Option<String>,
    /// A purpose.
    pub prompt_cache_key: Option<String>,
}

/// Embeddings to make.
#[derive(Clone, PartialEq)]
pub struct EmbedCall {
    /// Model name as the caller gave it.
    pub model: String,
    /// At least one text, none empty.
    pub texts: Vec<String>,
    /// Width the vectors must have.
    pub dimensions: Option<u32>,
}

impl std::fmt::Debug for EmbedCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EmbedCall({} texts)", self.texts.len())
    }
}
